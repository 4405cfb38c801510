"""What a store must do. It keeps records and journals, and knows nothing of any machine.

A store takes batches of steps. Each step is a compare-and-set on the execution's version together with one row of
the journal: both or neither. One thread at a time appends (the committer sees to that); any number may read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from fsm.errors import NotAStore
from fsm.records import Receipt, Snapshot, Step


class Conflict(NamedTuple):
    """A step that was not committed: somebody else moved the execution first.

    Attributes:
        execution_id: The execution.
        version: Its version now, or ``None`` if it does not exist.
    """

    execution_id: str
    version: int | None


class Barred(NamedTuple):
    """A step that was not committed because of another record than the execution's own; no repetition helps.

    Attributes:
        execution_id: The execution.
        why: ``parent``: it starts no children any more, since it has ended, is about to, or is gone. ``lease``: the
            worker that claims was lost, or has left.
        who: The parent, or the worker.
    """

    execution_id: str
    why: Literal["parent", "lease"]
    who: str


DEPARTED = 10_000
"""So many workers that were removed are remembered, so that nothing is claimed in their names any more."""


class Order(NamedTuple):
    """What a committed step ordered, as long as nobody has said that it is carried out.

    Attributes:
        execution_id: The execution whose children shall be cancelled.
        version: The version that the step made.
        event: Its event.
    """

    execution_id: str
    version: int
    event: str


class MachineRecord(NamedTuple):
    """A machine as data, for the store's own law.

    Attributes:
        content_hash: Its identity.
        name: Its name.
        document: The declaration as JSON text.
        states: Each state, whether it is terminal, and whether it is stopping.
        rows: Every (source, event, target) that a journal may hold; the creation has no source.
    """

    content_hash: str
    name: str
    document: str
    states: tuple[tuple[str, bool, bool], ...]
    rows: tuple[tuple[str | None, str, str], ...]


class WorkerRow(NamedTuple):
    """A worker and its lease.

    Attributes:
        id: The worker.
        name: What people call it, host and process.
        ttl_s: It is lost if it does not renew for so long, in seconds.
        started_at: When it registered, on the wall clock.
        renewed_at: When it last renewed, on the steady timeline.
        lost: Whether its lease ran out; it can never be renewed again.
    """

    id: str
    name: str
    ttl_s: float
    started_at: float
    renewed_at: float
    lost: bool


class Due(NamedTuple):
    """An execution whose deadline has passed.

    Attributes:
        execution_id: The execution.
        version: The version that was looked at: a later one is none of the sweeper's business.
        due_at: When the deadline passed, on the steady timeline.
        kind: Which deadline it was.
    """

    execution_id: str
    version: int
    due_at: float
    kind: str


class Query(NamedTuple):
    """Which executions to find; ``None`` means any.

    Attributes:
        states: The states that they are in.
        agent: The agent's name.
        user_id: Whose they are.
        thread_id: The conversation.
        parent_id: The execution that started them.
        limit: How many at the most.
        after: The id after which to go on.
    """

    states: frozenset[str] | None = None
    agent: str | None = None
    user_id: str | None = None
    thread_id: str | None = None
    parent_id: str | None = None
    limit: int = 100
    after: str | None = None


class Store(Protocol):
    """The protocol of every store; `tests/test_stores.py` holds each of them to it.

    Every method may raise `StoreUnavailable`. Executions are found in the order of their ids, which is the order of
    their creation.
    """

    @property
    def url(self) -> str:
        """Where it is, as `configure` takes it."""
        ...

    @property
    def instant(self) -> bool:
        """Whether nothing ever waits for a disk or a network, so that asyncio code may call it inline."""
        ...

    def register(self, record: MachineRecord) -> None:
        """Make a machine known, so that its executions can be kept; again and again if you like."""
        ...

    def machines(self) -> dict[str, str]:
        """Return every registered machine: its declaration as JSON text, by content hash."""
        ...

    def load(self, execution_id: str) -> Snapshot | None:
        """Return an execution's record as it is now, or ``None`` if there is none."""
        ...

    def append(self, steps: Sequence[Step]) -> list[Receipt | Conflict | Barred]:
        """Commit a batch, each step all or nothing.

        Nobody becomes owner who was registered as a worker and is lost or removed; one who never registered may. A
        child is born under an open parent only. A step whose effects name `CANCEL_CHILDREN` leaves the order with
        the store, if there are children: both or neither (a transactional outbox).

        Args:
            steps: In the order in which they shall happen; several may be of one execution. Once one of them is
                lost, those of the same execution after it are lost too: they were decided on what never was.

        Returns:
            For each step its receipt, or what kept it out.

        Raises:
            StoreUnavailable: Nothing was committed, or (``committed`` is ``None``) nobody can tell.
        """
        ...

    def keyed(self, execution_id: str, key: str) -> Receipt | None:
        """Return the receipt that was committed with this idempotency key, if any."""
        ...

    def history(self, execution_id: str) -> list[Receipt]:
        """Return an execution's journal from the beginning; empty if there is no such execution."""
        ...

    def journal(
        self, after: int, limit: int, execution_id: str | None = None, user_id: str | None = None
    ) -> list[Receipt]:
        """Return the registry's journal after a position, `limit` rows at the most, oldest first."""
        ...

    def position(self) -> int:
        """Return the position of the journal's last row; 0 if it is empty."""
        ...

    def find(self, query: Query) -> list[Snapshot]:
        """Return the executions that fit, ascending by id."""
        ...

    def counts(self, user_id: str | None = None) -> dict[str, int]:
        """Return how many executions there are by state; states without any are left out."""
        ...

    # --- orders -----------------------------------------------------------------------------------------------

    def orders(self, after: str, limit: int) -> list[Order]:
        """Return orders that are not known to be carried out, by id after `after`; `limit` at the most."""
        ...

    def carried(self, order: Order) -> None:
        """Take note that an order is carried out; one that was given anew meanwhile stays."""
        ...

    # --- time -------------------------------------------------------------------------------------------------

    def timeline(self, era: str, offset_s: float) -> float:
        """Return the offset from monotonic to steady time of an era; the first who asks decides it for all."""
        ...

    def due(self, now: float, limit: int) -> list[Due]:
        """Return executions whose deadline is before `now` on the steady timeline, the longest overdue first."""
        ...

    def next_due(self) -> float | None:
        """Return the nearest deadline of all, perhaps one that has been moved already; ``None`` if there is none."""
        ...

    # --- workers ----------------------------------------------------------------------------------------------

    def worker_add(self, worker: WorkerRow) -> None:
        """Register a worker."""
        ...

    def worker_renew(self, worker_id: str, now: float) -> bool:
        """Renew a lease: one write, whatever the worker owns. False if it was lost or never registered."""
        ...

    def worker_remove(self, worker_id: str) -> None:
        """Forget a worker; nothing can be claimed in its name any more."""
        ...

    def workers(self) -> list[WorkerRow]:
        """Return every registered worker, the lost ones included."""
        ...

    def lose(self, now: float) -> list[str]:
        """Mark the workers whose lease ran out before `now` as lost, for good, and return all that are lost."""
        ...

    def owned(self, worker_id: str, limit: int) -> list[tuple[str, int]]:
        """Return id and version of executions that a worker owns and that have not ended."""
        ...

    # --- retention --------------------------------------------------------------------------------------------

    def ended(self, before_at: float, limit: int) -> list[str]:
        """Return executions that ended before an instant of the wall clock, the oldest end first."""
        ...

    def ended_count(self) -> int:
        """Return how many executions have ended and are still kept."""
        ...

    def forget(self, execution_ids: Sequence[str]) -> int:
        """Delete ended executions with their journals; open ones are left alone. Returns how many were deleted."""
        ...

    def close(self) -> None:
        """Let go of everything; every later call raises `StoreUnavailable`."""
        ...


def open_store(url: str) -> Store:
    """Open the store behind a URL.

    Args:
        url: ``memory://`` or ``sqlite:///FILE`` (four slashes for an absolute path; ``?synchronous=NORMAL`` trades
            safety against power loss for speed).

    Returns:
        The open store.

    Raises:
        NotAStore: The URL is of no known kind, or what it names is no store.
        StoreTooNew: A newer version of the library wrote it.
        StoreUnavailable: It cannot be opened.
    """
    from fsm.stores.memory import MemoryStore  # noqa: PLC0415 - each store only when it is asked for

    if url in {"memory://", "memory:"}:
        return MemoryStore()
    if url.startswith("sqlite:"):
        from fsm.stores.sqlite import SqliteStore  # noqa: PLC0415

        return SqliteStore(url)
    raise NotAStore(
        f"no store is known for {url!r}: use memory://, sqlite:///file.db or sqlite:////absolute/file.db"
    )


# --- breakers -------------------------------------------------------------------------------------------------

BREAKER_LINES = 1_000
"""So many lines of each breaker's journal are kept, the newest; a row of its own is kept for every key for ever."""
LAST = 2**63 - 1
"""A position that no line of a journal reaches."""


class BreakerRow(NamedTuple):
    """What is kept of a circuit breaker that ever changed its state. Instants are seconds since the epoch.

    Attributes:
        key: What it protects.
        state: Its state.
        version: How often the row was written; 0 stands for a breaker that has no row yet.
        generation: How often it changed its state, from 1 on.
        changed_at: When it last changed its state.
        since: When `until` was set; ``until - since`` is the most that anybody waits, whatever clocks say.
        until: When it may be probed again, while it is open.
        openings: How many probes have failed since it was last closed.
        probes: The probes in flight, each as (token, when its lease ends).
        successes: How many probes of this generation succeeded.
        abandoned: How many probes of this generation were cancelled.
    """

    key: str
    state: str
    version: int = 0
    generation: int = 1
    changed_at: float = 0.0
    since: float | None = None
    until: float | None = None
    openings: int = 0
    probes: tuple[tuple[str, float], ...] = ()
    successes: int = 0
    abandoned: int = 0


class BreakerEntry(NamedTuple):
    """A row of the breakers' journal.

    Attributes:
        position: Its place in the journal; the store sets it.
        key: Whose transition it is.
        version: The version that it made.
        event: The event.
        source: The state before.
        target: The state after.
        generation: The generation after it.
        at: When it happened, in seconds since the epoch.
        by: Who did it: a person, or the worker whose call it was.
        why: What for, in words.
    """

    position: int
    key: str
    version: int
    event: str
    source: str
    target: str
    generation: int
    at: float
    by: str | None
    why: str | None


@runtime_checkable
class BreakerStore(Protocol):
    """What a store does that breakers are shared over. Every method may raise `StoreUnavailable`."""

    def breaker_load(self, key: str) -> BreakerRow | None:
        """Return a breaker's row, or ``None`` if it never changed its state."""
        ...

    def breaker_swap(
        self, machine: str, expected_version: int, row: BreakerRow, entry: BreakerEntry | None
    ) -> bool:
        """Write a row if nobody was faster, and its line of the journal with it: both or neither.

        Args:
            machine: The content hash of the breakers' machine, which was registered before.
            expected_version: The version that the row must have now; 0 for no row.
            row: The row after it, with the next version.
            entry: The journal's line; ``None`` for a note (a probe given back) that takes no row of the table.

        Returns:
            Whether it was written.
        """
        ...

    def breaker_list(self) -> list[BreakerRow]:
        """Return every row, by key."""
        ...

    def breaker_changes(
        self, after: int, limit: int, key: str | None = None, before: int | None = None
    ) -> list[BreakerEntry]:
        """Return lines of the breakers' journal, oldest first, of one key or all.

        Of each key the newest `BREAKER_LINES` are kept; no position is given out twice.

        Args:
            after: Only lines after this position.
            limit: So many at the most: the first of them, or the last ones if `before` is given.
            key: Only lines of this key.
            before: Only lines before this position; `LAST` for the end of the journal.
        """
        ...

    def breaker_position(self) -> int:
        """Return the position of the journal's last line; 0 if it is empty."""
        ...
