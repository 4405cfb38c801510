"""The tracker: one per process, and every execution goes through it.

`get_tracker()` returns it (`fsm.tracker.process`), and nobody builds one of their own: two trackers are two truths.
``tracker.for_user(user_id)`` is what one user may see of it, ``tracker.aio`` the same for asyncio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from fsm.clock import Clock
from fsm.core.arguments import optional_text, seconds, text
from fsm.core.records import Execution, Retry
from fsm.errors import ConfigurationError, InvalidArgument
from fsm.errors.shown import shown
from fsm.machine.machine import Machine
from fsm.machine.timeouts import Timeouts
from fsm.registry.registry import Registry
from fsm.tracker.health import HealthReport, examine
from fsm.tracker.retention import Retention, prune
from fsm.tracker.scope import Scope
from fsm.tracker.sweeper import Sweeper, Swept
from fsm.tracker.worker import Worker

if TYPE_CHECKING:
    from fsm.breakers.registry import Breakers
    from fsm.tracker.aio import AsyncTracker, AsyncUserTracker


class Tracker(Scope):
    """The registry of all executions of this process; get it from `get_tracker()`."""

    def __init__(self, *_: object, **__: object) -> None:
        raise ConfigurationError(
            "nobody builds a tracker of their own, two trackers are two truths: call fsm.get_tracker(), or "
            "fsm.configure(...) once before its first use; in tests use fsm.testing.fresh_tracker()"
        )

    @classmethod
    def _of(cls, registry: Registry) -> Self:
        self = object.__new__(cls)
        self._registry = registry
        self._user_id = None
        return self

    def _sees(self, user_id: str | None) -> bool:  # noqa: ARG002 - everybody's are shown
        return True

    def _filter(self, user_id: str | None) -> str | None:
        return user_id

    # --- write ------------------------------------------------------------------------------------------------

    def create(  # noqa: PLR0913 - what an execution is born with
        self,
        agent: str,
        /,
        *,
        user_id: str,
        thread_id: str,
        timeouts: Timeouts | Mapping[str, Any] | None = None,
        retry: Retry | Mapping[str, Any] | None = None,
        parent_id: str | None = None,
        retry_of: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        machine: Machine | str | None = None,
        key: str | None = None,
    ) -> Execution:
        """Register an execution; it begins in its machine's initial state.

        Args:
            agent: The agent's name.
            user_id: Whose it is.
            thread_id: The conversation that it belongs to.
            timeouts: Limits that take the place of the machine's own, in seconds.
            retry: How often it may be tried; once if nothing is said.
            parent_id: The execution that starts it; when that one is called off, so is this.
            retry_of: The execution that it is a rerun of.
            metadata: JSON to note with it; it is copied.
            machine: The machine, or its name; the execution machine if nothing is said.
            key: Makes the call safe to repeat: the same key of the same user returns the execution that it created,
                as it is now, as long as that is kept.

        Returns:
            The execution, with its new id.

        Raises:
            InvalidArgument: An argument has a wrong type or value.
            UnknownExecution: The parent or the earlier execution is unknown, or another user's.
            Refused: The parent has ended, or has `fsm.registry.registry.MAX_DEPTH` parents above it (reason
                ``limit``), or the key created an execution with other arguments (``duplicate``).
            StoreUnavailable: The store did not take it.
        """
        return self._create(
            agent,
            user_id=user_id,
            thread_id=thread_id,
            timeouts=timeouts,
            retry=retry,
            parent_id=parent_id,
            retry_of=retry_of,
            metadata=metadata,
            machine=machine,
            key=key,
        )

    # --- time and death ---------------------------------------------------------------------------------------

    def worker(self, *, ttl_s: float = 15.0, name: str | None = None) -> Worker:
        """Register this process as a worker, whose lease a thread of its own renews; what it claims lives by it.

        Args:
            ttl_s: The worker is lost if it does not renew for so long, in seconds.
            name: What people call it; host and process id if nothing is said.

        Returns:
            The worker; close it, or use it in a ``with`` block, and what it still owns is handed back at once.

        Raises:
            InvalidArgument: `ttl_s` is not a positive number of seconds, or longer than
                `fsm.machine.timeouts.MAX_SECONDS`, or `name` is no usable name.
            ConfigurationError: This process is a worker already.
        """
        registry = self._registry
        ttl_s, name = seconds("ttl_s", ttl_s), optional_text("name", name)
        if registry.worker is not None and not registry.worker.lost:
            raise ConfigurationError(
                f"this process is the worker {registry.worker.id} already: one lease is enough"
            )
        registry.worker = Worker(registry, ttl_s, name).start()
        return registry.worker

    def sweep(self) -> Swept:
        """Turn the deadlines that have passed and the leases that ran out into events, once.

        Returns:
            What was done.

        Raises:
            StoreUnavailable: The store did not answer.
        """
        return Sweeper(self._registry).sweep()

    def prune(
        self,
        *,
        older_than_s: float | None = None,
        keep: int | None = None,
        archive: Callable[[dict[str, Any]], None] | None = None,
    ) -> int:
        """Delete ended executions with their journals; open ones are never touched.

        Args:
            older_than_s: Those that ended longer ago, in seconds on the steady timeline; 0 for all.
            keep: All but so many; the oldest ends go first.
            archive: Called with each execution and its history before it is deleted.

        Returns:
            How many were deleted.

        Raises:
            InvalidArgument: A limit is out of range.
        """
        if archive is not None and not callable(archive):
            raise InvalidArgument(f"archive is a function that takes a record, not {shown(archive)}")
        try:
            policy = Retention(max_age_s=older_than_s, max_count=keep)
        except ValidationError as error:
            raise InvalidArgument(f"older_than_s and keep are not negative: {error}") from None
        return prune(self._registry, policy, archive)

    def health(self) -> HealthReport:
        """Say how the registry is: loops, leases, what is set aside or overdue. It only reads; `fsm doctor` prints it.

        Raises:
            StoreUnavailable: The store did not answer.
        """
        return examine(self._registry)

    def position(self) -> int:
        """Return the position of the journal's last row: where a subscription that begins now would begin."""
        return self._registry.store.position()

    def machines(self) -> tuple[Machine, ...]:
        """Return every machine that this registry has, also those that other processes brought."""
        return self._registry.machines()

    # --- faces ------------------------------------------------------------------------------------------------

    def for_user(self, user_id: str) -> UserTracker:
        """Return the tracker of one user: what is another's is as unknown as if it did not exist.

        What cannot be narrowed to one user (sweep, prune, worker, close, breakers, ...) is no method of it.

        Args:
            user_id: The user.

        Raises:
            InvalidArgument: `user_id` is no usable name.
        """
        return UserTracker._of(self._registry, text("user_id", user_id))

    @property
    def aio(self) -> AsyncTracker:
        """The same names for asyncio, over the same committer."""
        from fsm.tracker.aio import AsyncTracker  # noqa: PLC0415 - asyncio is loaded by those who use it

        return AsyncTracker(self)

    @property
    def breakers(self) -> Breakers:
        """The circuit breakers, one per key, shared by everything that uses this registry."""
        from fsm.breakers.registry import breakers_of  # noqa: PLC0415 - loaded by those who use it

        return breakers_of(self._registry)

    @property
    def store_url(self) -> str:
        """Where the executions are kept."""
        return self._registry.store.url

    @property
    def worker_id(self) -> str:
        """The id under which this process claims executions."""
        return self._registry.worker_id

    @property
    def clock(self) -> Clock:
        """Where time comes from."""
        return self._registry.clock

    @property
    def closed(self) -> bool:
        """Whether it was closed; `configure` may then set up another one."""
        return self._registry.closed

    def close(self) -> None:
        """Commit what is queued and close the store; `configure` may then be called again."""
        self._registry.close()


class UserTracker(Scope):
    """The tracker narrowed to one user; get it from ``tracker.for_user(user_id)``."""

    _user_id: str  # pyright: ignore[reportIncompatibleVariableOverride] - set once, never None here

    def __init__(self, *_: object, **__: object) -> None:
        raise ConfigurationError("the tracker of one user comes from get_tracker().for_user(user_id)")

    @classmethod
    def _of(cls, registry: Registry, user_id: str) -> Self:
        self = object.__new__(cls)
        self._registry = registry
        self._user_id = user_id
        return self

    def _sees(self, user_id: str | None) -> bool:
        return user_id is None or user_id == self._user_id

    def _filter(self, user_id: str | None) -> str | None:  # noqa: ARG002 - there is one answer
        return self._user_id

    def _own(self, user_id: str | None) -> str:
        """Return this tracker's user, unless another one is named."""
        if not self._sees(optional_text("user_id", user_id)):
            raise InvalidArgument(f"this tracker is narrowed to one user and cannot act for {shown(user_id)}")
        return self._user_id

    def create(  # noqa: PLR0913 - what an execution is born with
        self,
        agent: str,
        /,
        *,
        user_id: str | None = None,
        thread_id: str,
        timeouts: Timeouts | Mapping[str, Any] | None = None,
        retry: Retry | Mapping[str, Any] | None = None,
        parent_id: str | None = None,
        retry_of: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        machine: Machine | str | None = None,
        key: str | None = None,
    ) -> Execution:
        """Register an execution of this user; see `Tracker.create`."""
        return self._create(
            agent,
            user_id=self._own(user_id),
            thread_id=thread_id,
            timeouts=timeouts,
            retry=retry,
            parent_id=parent_id,
            retry_of=retry_of,
            metadata=metadata,
            machine=machine,
            key=key,
        )

    def for_user(self, user_id: str) -> UserTracker:
        """Return this tracker; it cannot be turned to another user.

        Raises:
            InvalidArgument: `user_id` is no usable name, or another user's.
        """
        self._own(text("user_id", user_id))
        return self

    @property
    def aio(self) -> AsyncUserTracker:
        """The same names for asyncio, over the same committer."""
        from fsm.tracker.aio import AsyncUserTracker  # noqa: PLC0415 - asyncio is loaded by those who use it

        return AsyncUserTracker(self)
