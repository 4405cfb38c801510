"""What a store must do. It keeps records and journals, and knows nothing of any machine.

A store takes batches of steps. Each step is a compare-and-set on the execution's version together with one row of
the journal: both or neither. One thread at a time appends (the committer sees to that); any number may read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

from fsm.core.records import MachineRecord, Receipt, Snapshot, Step
from fsm.core.timeline import Era, Known, Mark


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
            worker that claims was lost, or has left. ``key``: the key has created an execution of this user already.
            ``law``: the store's own law refused the step, or a value of it cannot be kept.
        who: The parent, the worker, or the execution that is there; for ``law`` what the store said.
    """

    execution_id: str
    why: Literal["parent", "lease", "key", "law"]
    who: str


MAX_ERAS = 100
"""Number of eras that a store keeps; the oldest rows are dropped. Only the present boot's is ever asked for."""
FUTURE_S = 60.0
"""A lease that was renewed further in the future than this, in seconds, is taken to be renewed now."""
SPARED_MAX = 3
"""How often in a row a lease is given another term because the store was busy; then its worker counts as lost."""
PLACES = 1_000
"""How many deleted executions' places in the order of births are remembered, for pages that go on after them."""
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


class Beat(NamedTuple):
    """What a process last wrote of one of its loops, for other processes to see.

    Attributes:
        process: The process, under a name that no other one has.
        loop: The loop's name.
        worker: The name of the worker that the process is, or host and process id.
        host: The host's name.
        pid: The process id.
        running: Whether the loop was being driven.
        turns: Number of turns that ended without an error.
        failures: Number of turns that failed.
        failing: Number of failures since the last turn that succeeded.
        last_error: The last error, on one line; ``None`` if there was none.
        failed_at: When the last turn failed, in seconds since the epoch.
        succeeded_at: When the last turn succeeded, in seconds since the epoch.
        alive_at: When the last turn succeeded, on the steady timeline; ``None`` if none has yet.
        started_at: When the process began to report, in seconds since the epoch.
        seen_at: When this was written, on the steady timeline.
    """

    process: str
    loop: str
    worker: str
    host: str
    pid: int
    running: bool
    turns: int
    failures: int
    failing: int
    last_error: str | None
    failed_at: float | None
    succeeded_at: float | None
    alive_at: float | None
    started_at: float
    seen_at: float


MAX_BEATS = 1_000
"""Maximum number of reports of loops that are kept; the ones that were written longest ago go first."""
BEAT_KEPT_S = 86_400.0
"""How long the report of a process that writes no more is kept, in seconds."""


class Query(NamedTuple):
    """Which executions to find; ``None`` means any.

    Attributes:
        states: The states that they are in.
        agent: The agent's name.
        user_id: Whose they are.
        thread_id: The conversation.
        parent_id: The execution that started them.
        limit: How many at the most.
        after: The execution after which to go on. If it was deleted since, a store remembers its place at least for
            the latest `PLACES` deletions; of an id that it does not know the place is that among the ids.
    """

    states: frozenset[str] | None = None
    agent: str | None = None
    user_id: str | None = None
    thread_id: str | None = None
    parent_id: str | None = None
    limit: int = 100
    after: str | None = None


class Damage(NamedTuple):
    """A record that cannot be read, or a part of the store that is not as it must be.

    Attributes:
        table: What it is part of, such as ``executions``; ``file`` for the store as a whole.
        key: Which record, as text.
        column: The value that cannot be read; empty for all of it.
        why: What is wrong, in words.
    """

    table: str
    key: str
    column: str
    why: str


class Store(Protocol):
    """The protocol of every store; `tests/stores/test_stores.py` holds each of them to it.

    Every method may raise `StoreUnavailable`. A record that cannot be read raises `DamagedRecord` where it is asked
    for by name (`load`, `history`, `keyed`, one execution's `journal`); pages leave it out, and `damaged` names it.
    Executions are found in the order in which their births were committed.
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

    def machine_count(self) -> int:
        """Return how many machines are registered; none is ever taken away, so that an equal number means no news."""
        ...

    def load(self, execution_id: str) -> Snapshot | None:
        """Return an execution's record as it is now, or ``None`` if there is none."""
        ...

    def append(self, steps: Sequence[Step]) -> list[Receipt | Conflict | Barred]:
        """Commit a batch, each step all or nothing.

        Nobody becomes owner who was registered as a worker and is lost or removed; one who never registered may. Of
        one user's births with the same key (`Identity.key`) the first is committed; that is looked at first. A birth
        under an id that is there, or was deleted (and is remembered: the latest `PLACES` at least), is a conflict. A
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
        """Return the executions that fit, in the order in which their births were committed.

        What is committed after a page was read comes after its last execution, so that paging shows everything once,
        whatever the ids are.
        """
        ...

    def born(self, user_id: str, key: str) -> str | None:
        """Return the execution of a user that was created with this key, if any."""
        ...

    def counts(self, user_id: str | None = None) -> dict[str, int]:
        """Return how many executions there are by state; states without any are left out."""
        ...

    def schema_version(self) -> int:
        """Return the version of the store's own layout; 0 where there is none to migrate."""
        ...

    # --- orders -----------------------------------------------------------------------------------------------

    def orders(self, after: str, limit: int) -> list[Order]:
        """Return orders that are not known to be carried out, by id after `after`; `limit` at the most."""
        ...

    def carried(self, order: Order) -> None:
        """Take note that an order is carried out; one that was given anew meanwhile stays."""
        ...

    # --- time -------------------------------------------------------------------------------------------------

    def timeline(self, era: str) -> Known:
        """Return what is known of the steady timeline, and of one era of it.

        The mark is what `timeline_mark` was told or, if that is later, what the last commit tells; the floor covers
        renewed leases besides. Both are only needed, and may be left out, while the era is unknown.

        Args:
            era: The era; empty for a process that is an era of its own. Such eras are not kept, and only a mark that
                holds the monotonic clock's reading is of use to them.
        """
        ...

    def timeline_set(self, era: str, before: Era | None, after: Era) -> Era:
        """Write an era's row if it is still `before`, and return the row as it is then: all processes follow one.

        Args:
            era: The era; the latest `MAX_ERAS` are kept.
            before: What the decision was made on; ``None`` for an era without a row.
            after: The row.
        """
        ...

    def timeline_mark(self, mark: Mark) -> None:
        """Keep a mark, unless a later one is kept."""
        ...

    def due(self, now: float, limit: int, after: tuple[float, str] | None = None) -> list[Due]:
        """Return executions whose deadline is before `now` on the steady timeline, the longest overdue first.

        They are in the order of (`due_at`, id). A row that cannot be read is no reason to leave out another one.

        Args:
            now: The instant.
            limit: Maximum number of executions.
            after: The (`due_at`, id) after which to go on; ``None`` for the beginning.
        """
        ...

    def next_due(self, after: float = float("-inf")) -> float | None:
        """Return the nearest deadline later than `after`, perhaps one that has been moved already."""
        ...

    # --- workers ----------------------------------------------------------------------------------------------

    def worker_add(self, worker: WorkerRow) -> None:
        """Register a worker."""
        ...

    def worker_renew(self, worker_id: str, now: Callable[[], float]) -> bool:
        """Renew a lease: one write, whatever the worker owns. False if it was lost or never registered.

        Args:
            worker_id: The worker.
            now: Returns the instant on the steady timeline. It is asked once the write can no longer be held up: a
                renewal that had to wait is worth as much as any other.
        """
        ...

    def worker_remove(self, worker_id: str) -> None:
        """Forget a worker; nothing can be claimed in its name any more."""
        ...

    def workers(self) -> list[WorkerRow]:
        """Return every registered worker, the lost ones included."""
        ...

    def lose(self, now: float, *, spare: bool = False) -> list[str]:
        """Mark the workers whose lease ran out before `now` as lost, for good, and return all that are lost.

        A worker that could not renew because the store could not be written to is not lost. A store in which writers
        wait for each other therefore lets the others go first, and gives every lease that ran out another term if it
        has itself had to wait long; `SPARED_MAX` times in a row at most. A lease that was renewed in the future (the
        timeline was set back) is taken to be renewed now.

        Args:
            now: The instant on the steady timeline.
            spare: Whether the caller itself was stopped for a while, so that the workers may have been too: give the
                leases that ran out another term.
        """
        ...

    def owned(self, worker_id: str, limit: int, after: str = "") -> list[tuple[str, int]]:
        """Return id and version of executions that a worker owns and that have not ended, by id after `after`."""
        ...

    # --- what processes say of themselves -------------------------------------------------------------------------

    def beat(self, beats: Sequence[Beat]) -> None:
        """Keep reports in the place of earlier ones of the same process and loop.

        Reports that were written more than `BEAT_KEPT_S` before the newest of these are dropped, and the oldest ones
        beyond `MAX_BEATS`.
        """
        ...

    def beats(self) -> list[Beat]:
        """Return the reports that are kept, by process and loop."""
        ...

    # --- retention --------------------------------------------------------------------------------------------

    def ended(self, before_at: float, limit: int) -> list[str]:
        """Return executions that ended before an instant of the steady timeline, the oldest end first."""
        ...

    def ended_count(self) -> int:
        """Return how many executions have ended and are still kept."""
        ...

    def forget(self, execution_ids: Sequence[str], keep: int = 0) -> int:
        """Delete ended executions with their journals, in one transaction; open ones are left alone.

        Args:
            execution_ids: Which ones; the first go first.
            keep: Delete only so many of them that this many ended executions are left, counted in the transaction.

        Returns:
            How many were deleted.
        """
        ...

    # --- damage -----------------------------------------------------------------------------------------------

    def damaged(self) -> list[Damage]:
        """Return what pages have left out in this process because it cannot be read; empty for a whole store."""
        ...

    def inspect(self) -> list[Damage]:
        """Look through the store's own files and return what is wrong with them; this may take minutes."""
        ...

    def close(self) -> None:
        """Let go of everything; every later call raises `StoreUnavailable`."""
        ...
