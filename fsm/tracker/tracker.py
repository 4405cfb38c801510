"""The tracker: one per process, and every execution goes through it.

`get_tracker()` returns it (`fsm.tracker.process`), and nothing else constructs one: two trackers are two truths.
``tracker.for_user(user_id)`` is what one user may see of it, ``tracker.aio`` the same for asyncio.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Unpack

from pydantic import ValidationError

from fsm.clock import Clock
from fsm.core.arguments import optional_text, seconds, text
from fsm.core.records import Execution
from fsm.errors import ConfigurationError, InvalidArgument
from fsm.errors.shown import shown
from fsm.machine.machine import Machine
from fsm.tracker.aio import AsyncScope
from fsm.tracker.health import HealthReport, examine
from fsm.tracker.options import CreateOptions, spelled
from fsm.tracker.retention import Retention, prune
from fsm.tracker.scope import Scope
from fsm.tracker.sweeper import Sweeper, Swept
from fsm.tracker.waiting import awaited, waits
from fsm.tracker.worker import Worker

if TYPE_CHECKING:
    from fsm.breakers.registry import Breakers


class Tracker(Scope):
    """The registry of all executions of this process; get it from `get_tracker()`."""

    def __init__(self, *_: object, **__: object) -> None:
        raise ConfigurationError(
            "nobody builds a tracker of their own, two trackers are two truths: call fsm.get_tracker(), or "
            "fsm.configure(...) once before its first use; in tests use fsm.testing.fresh_tracker()"
        )

    def __repr__(self) -> str:
        return f"<Tracker of {self.store_url}{', closed' if self.closed else ''}>"

    @waits
    @spelled(CreateOptions)
    def create(
        self, agent: str, /, *, user_id: str, thread_id: str, **options: Unpack[CreateOptions]
    ) -> Execution:
        """Register an execution; it begins in its machine's initial state.

        Args:
            agent: The agent's name.
            user_id: Whose it is.
            thread_id: The conversation that it belongs to.
            **options: What else it is born with:
                ``timeouts``: limits that take the place of the machine's own, in seconds;
                ``retry``: how often it may be tried, once by default;
                ``parent_id``: the execution that starts it: when that one is cancelled, so is this;
                ``retry_of``: the execution that it is a rerun of;
                ``metadata``: JSON to note with it, which is copied;
                ``machine``: the machine, or its name: the execution machine by default;
                ``key``: makes the call safe to repeat: the same key of the same user returns the execution that it
                created, as it is now, while that is kept.

        Returns:
            The execution, with its new id.

        Raises:
            InvalidArgument: An argument has a wrong type or value.
            UnknownExecution: The parent or the earlier execution is unknown, or another user's.
            Refused: The parent has ended, or has `fsm.registry.registry.MAX_DEPTH` parents above it (reason
                ``limit``), or the key created an execution with other arguments (``duplicate``).
            StoreUnavailable: The store did not take it.
        """
        return self._create(agent, user_id, thread_id, options)

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
        return AsyncTracker(self)

    @property
    def breakers(self) -> Breakers:
        """The circuit breakers, one per key, shared by everything that uses this registry."""
        from fsm.tracker.breakers import breakers_of  # noqa: PLC0415 - loaded by those who use it

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

    def __repr__(self) -> str:
        return f"<tracker of {self._registry.store.url} for user {self._user_id!r}>"

    def _own(self, user_id: str | None) -> str:
        """Return this tracker's user, unless another one is named."""
        if not self._sees(optional_text("user_id", user_id)):
            raise InvalidArgument(f"this tracker is narrowed to one user and cannot act for {shown(user_id)}")
        return self._user_id

    @waits
    @spelled(CreateOptions)
    def create(
        self, agent: str, /, *, user_id: str | None = None, thread_id: str, **options: Unpack[CreateOptions]
    ) -> Execution:
        """Register an execution of this user; see `Tracker.create`."""
        return self._create(agent, self._own(user_id), thread_id, options)

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
        return AsyncUserTracker(self)


class AsyncTracker(AsyncScope):
    """The tracker's face for asyncio; get it from ``tracker.aio``. Each method is that of `Tracker`, awaited."""

    _scope: Tracker

    create = awaited(Tracker.create)
    sweep = awaited(Tracker.sweep)
    prune = awaited(Tracker.prune)
    health = awaited(Tracker.health)
    position = awaited(Tracker.position)
    machines = awaited(Tracker.machines)

    def for_user(self, user_id: str) -> AsyncUserTracker:
        """Return the same narrowed to one user; see `Tracker.for_user`."""
        return AsyncUserTracker(self._scope.for_user(user_id))


class AsyncUserTracker(AsyncScope):
    """The face for asyncio of one user's tracker; get it from ``tracker.aio.for_user(user_id)``."""

    _scope: UserTracker

    create = awaited(UserTracker.create)

    def for_user(self, user_id: str) -> AsyncUserTracker:
        """Return the same; see `UserTracker.for_user`."""
        self._scope.for_user(user_id)
        return self
