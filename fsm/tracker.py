"""The tracker: one per process, and every execution goes through it.

`get_tracker()` returns it (`fsm.process`), and nobody builds one of their own: two trackers are two truths.
``tracker.for_user(user_id)`` is the same narrowed to one user, ``tracker.aio`` the same for asyncio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from fsm import queries, stream
from fsm.checks import text
from fsm.clock import Clock
from fsm.decide import allowed as allowed_events
from fsm.errors import BadPayload, ConfigurationError
from fsm.health import HealthReport, examine
from fsm.machine import Machine
from fsm.records import Execution, Receipt, Retry, durations
from fsm.registry import Registry
from fsm.retention import Retention, prune
from fsm.sweeper import Sweeper, Swept
from fsm.timeouts import Timeouts
from fsm.worker import Worker

if TYPE_CHECKING:
    from fsm.aio import AsyncTracker
    from fsm.breakers.runtime import Breakers


class Tracker:
    """The registry of all executions of this process; get it from `get_tracker()`."""

    _registry: Registry
    _user_id: str | None

    def __init__(self, *_: object, **__: object) -> None:
        raise ConfigurationError(
            "nobody builds a tracker of their own, two trackers are two truths: call fsm.get_tracker(), or "
            "fsm.configure(...) once before its first use; in tests use fsm.testing.fresh_tracker()"
        )

    @classmethod
    def _of(cls, registry: Registry, user_id: str | None = None) -> Self:
        self = object.__new__(cls)
        self._registry = registry
        self._user_id = user_id
        return self

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
            BadPayload: An argument has a wrong type or value.
            UnknownExecution: The parent or the earlier execution is unknown, or another user's.
            Refused: The parent has ended, or has `fsm.registry.MAX_DEPTH` parents above it (reason ``limit``), or the
                key created an execution with other arguments (``duplicate``).
            StoreUnavailable: The store did not take it.
        """
        command = self._registry.birth(
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
        self._registry.committer.commit(command)
        return self._registry.created(command)

    def fire(
        self,
        execution_id: str,
        event: str,
        /,
        *,
        fence: int | None = None,
        key: str | None = None,
        **payload: Any,
    ) -> Receipt:
        """Hand an event to an execution and return when the transition is committed.

        Args:
            execution_id: The execution.
            event: The event, as in the table.
            fence: For a worker: the fence from the receipt of its claim; a stale one is refused.
            key: Makes the call idempotent: the same key again returns the first receipt.
            **payload: What comes with the event; see `fsm.payloads`.

        Returns:
            The receipt of the committed transition.

        Raises:
            Refused: Nothing was changed; the refusal says why, and what is allowed.
            UnknownExecution: There is no such execution, or it is another user's.
            BadPayload: The payload does not fit the event.
            StoreUnavailable: The store did not answer; ``committed`` says what is known.
        """
        registry = self._registry
        command = registry.event(execution_id, event, payload, fence=fence, key=key, user_id=self._user_id)
        registry.committer.commit(command)
        receipt = registry.receipt(command)
        if command.effects:
            registry.carry_out(command)
        return receipt

    # --- read -------------------------------------------------------------------------------------------------

    def get(self, execution_id: str) -> Execution:
        """Return an execution as it is now.

        Raises:
            UnknownExecution: There is no such execution, or it is another user's.
        """
        return self._registry.show(self._registry.load(execution_id, self._user_id))

    def history(self, execution_id: str) -> list[Receipt]:
        """Return the journal of an execution: its creation, then every transition.

        Raises:
            UnknownExecution: There is no such execution, or it is another user's.
        """
        self._registry.load(execution_id, self._user_id)
        return self._registry.store.history(execution_id)

    def durations(self, execution_id: str) -> dict[str, float]:
        """Return the seconds that an execution spent in each state so far; an ended one's stand still.

        Raises:
            UnknownExecution: There is no such execution, or it is another user's.
        """
        machine = self.machine_of(execution_id)
        history = self._registry.store.history(execution_id)
        return durations(history, machine.terminal, self._registry.clock.wall())

    def allowed(self, execution_id: str) -> tuple[str, ...]:
        """Return the events that an execution would accept now, in the order of the table.

        Those of its owner, which need a fence, are among them; those of the system are not for a user's tracker.

        Raises:
            UnknownExecution: There is no such execution, or it is another user's.
        """
        snapshot = self._registry.load(execution_id, self._user_id)
        machine = self._registry.law_of(snapshot.identity.machine).machine
        return allowed_events(machine, snapshot, narrowed=self._user_id is not None)

    def machine_of(self, execution_id: str) -> Machine:
        """Return the machine that an execution is an instance of.

        Raises:
            UnknownExecution: There is no such execution, or it is another user's.
        """
        snapshot = self._registry.load(execution_id, self._user_id)
        return self._registry.law_of(snapshot.identity.machine).machine

    def find(
        self,
        *,
        state: str | Iterable[str] | None = None,
        category: str | None = None,
        agent: str | None = None,
        user_id: str | None = None,
        thread_id: str | None = None,
        parent_id: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Execution]:
        """Return a page of executions in the order in which their creation was committed.

        Paging is stable: pass the last id of a page as `after` and nothing is seen twice or missed, whatever is
        created or deleted in between. The order is that of the commits and not of the ids, which are made before.

        Args:
            state: A state, or several.
            category: pending, running, waiting, stopping or terminal.
            agent: The agent's name.
            user_id: Whose they are.
            thread_id: The conversation.
            parent_id: The execution that started them.
            limit: How many at the most.
            after: The id after which to go on.

        Raises:
            BadPayload: A state or category does not exist, or the limit is out of range.
        """
        if self._hidden(user_id):
            return []
        question = queries.query(
            self._registry,
            state=state,
            category=category,
            agent=agent,
            user_id=self._user_id or user_id,
            thread_id=thread_id,
            parent_id=parent_id,
            limit=limit,
            after=after,
        )
        return queries.find(self._registry, question, category)

    def counts(self) -> dict[str, int]:
        """Return how many executions there are by state; states without any are left out."""
        return self._registry.store.counts(self._user_id)

    def subscribe(
        self,
        *,
        after: int | None = None,
        execution_id: str | None = None,
        user_id: str | None = None,
        follow: bool = True,
    ) -> Iterator[Receipt]:
        """Yield receipts as they are committed, by this process and by others on the same store.

        Args:
            after: The last position that was seen; 0 for the beginning, ``None`` for from now on.
            execution_id: Only this execution's; the stream then ends with the execution.
            user_id: Only this user's.
            follow: Wait for more; otherwise stop at the end of what there is.

        Raises:
            UnknownExecution: There is no such execution, or it is another user's.
        """
        if self._hidden(user_id):
            return iter(())
        return stream.follow(self._registry, after, execution_id, self._user_id or user_id, wait=follow)

    # --- time and death ---------------------------------------------------------------------------------------

    def worker(self, *, ttl_s: float = 15.0, name: str | None = None) -> Worker:
        """Register this process as a worker, whose lease a thread of its own renews; what it claims lives by it.

        Args:
            ttl_s: The worker is lost if it does not renew for so long, in seconds.
            name: What people call it; host and process id if nothing is said.

        Returns:
            The worker; close it, or use it in a ``with`` block, and what it still owns is handed back at once.

        Raises:
            BadPayload: `ttl_s` is not a positive number of seconds, or longer than `fsm.timeouts.MAX_SECONDS`.
            ConfigurationError: This process is a worker already.
        """
        registry = self._registry
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
            BadPayload: A limit is out of range.
        """
        try:
            policy = Retention(max_age_s=older_than_s, max_count=keep)
        except ValidationError as error:
            raise BadPayload(f"older_than_s and keep are not negative: {error}") from None
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
        """Return the same tracker narrowed to one user: what is another's is as unknown as if it did not exist.

        Args:
            user_id: The user.

        Raises:
            BadPayload: `user_id` is no usable name, or another user's than this tracker is narrowed to.
        """
        return UserTracker._of(self._registry, self._own(text("user_id", user_id)))

    @property
    def aio(self) -> AsyncTracker:
        """The same names for asyncio, over the same committer."""
        from fsm.aio import AsyncTracker  # noqa: PLC0415 - asyncio is loaded by those who use it

        return AsyncTracker(self)

    @property
    def breakers(self) -> Breakers:
        """The circuit breakers, one per key, shared by everything that uses this registry."""
        from fsm.breakers.runtime import breakers_of  # noqa: PLC0415 - loaded by those who use it

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

    def _own(self, user_id: str | None) -> str:
        if self._user_id is None or user_id is None or user_id == self._user_id:
            return user_id if user_id is not None else self._user_id or ""
        raise BadPayload(f"this tracker is narrowed to one user and cannot act for {user_id!r}")

    def _hidden(self, user_id: str | None) -> bool:
        """Return whether a user's executions are hidden from whoever this tracker is narrowed to."""
        return self._user_id is not None and user_id is not None and user_id != self._user_id

    @property
    def closed(self) -> bool:
        """Whether it was closed; `configure` may then set up another one."""
        return self._registry.closed

    def close(self) -> None:
        """Commit what is queued and close the store; `configure` may then be called again."""
        self._registry.close()


class UserTracker(Tracker):
    """The tracker narrowed to one user; get it from ``tracker.for_user(user_id)``."""

    def create(
        self, agent: str, /, *, user_id: str | None = None, thread_id: str, **options: Any
    ) -> Execution:
        """Register an execution of this user; see `Tracker.create`."""
        return super().create(agent, user_id=self._own(user_id), thread_id=thread_id, **options)
