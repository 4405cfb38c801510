"""The store in memory: everything in dicts, nothing that grows slower with the number of executions.

Per execution one list holds the record and its journal; indexes hold ids. The indexes by user, agent, thread and
parent are lists in the order of the births, which only grow at their end. The index by state is a set per state,
since an execution changes its state far more often than anybody asks; a query sorts what it needs. Deadlines stand in
a heap that is put right lazily: an entry is only ever too early, never too late.

An exception may arise between any two bytecodes (Ctrl-C, no memory). A step is committed when it is noted as `_torn`,
in one bytecode: what is left undone is done by the next holder of the lock, and everything that follows from the
records is then built from them (`tests/registry/test_hostile_core.py` interrupts every line).
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, ParamSpec, TypeVar

from fsm.concurrency.locks import Lock, freeing
from fsm.core.records import CANCEL_CHILDREN, MachineRecord, Receipt, Snapshot, Step, receipt_of
from fsm.core.timeline import Era, Known, Mark
from fsm.errors import Reentered, StoreUnavailable
from fsm.stores.base import MAX_ERAS, PLACES, Barred, Beat, Conflict, Damage, Due, Order, Query, WorkerRow
from fsm.stores.breakers import BreakerEntry, BreakerRow
from fsm.stores.memory.breakers import Breakers
from fsm.stores.memory.index import CHUNK, Index, Journal
from fsm.stores.memory.workers import Workers

P = ParamSpec("P")
T = TypeVar("T")

_PARTS = (None, None)
"""What is torn: no step, only what follows from the records."""


@freeing("_guard", "_lock")
class MemoryStore:
    """A registry that lives and ends with the process."""

    url = "memory://"
    instant = True

    def __init__(self) -> None:
        self._guard = Lock("the memory store")
        self._torn: tuple[Step, Receipt] | tuple[None, None] | None = None
        self._machines: dict[str, str] = {}
        self._terminal: dict[str, frozenset[str]] = {}
        self._stopping: dict[str, frozenset[str]] = {}
        # id -> [snapshot, first receipt, second receipt, ...]: one list, since there may be a million of them.
        self._rows: dict[str, list[Any]] = {}
        self._journal = Journal()
        self._keys: dict[tuple[str, str], Receipt] = {}
        self._ids: list[str] = []
        self._places: dict[str, int] = {}  # of what was deleted
        self._born_keys: dict[tuple[str, str], str] = {}
        self._by_state: dict[str, set[str]] = {}
        self._by_agent = Index()
        self._by_user = Index()
        self._by_thread = Index()
        self._by_parent = Index()
        self._by_owner: dict[str, set[str]] = {}
        self._orders: dict[str, Order] = {}
        self._due: list[tuple[float, str]] = []
        self._armed: dict[str, float] = {}  # the time of each execution's entry in the heap
        self._ended: list[tuple[float, str]] = []
        self._eras: dict[str, Era] = {}
        self._mark: Mark | None = None
        self._workers = Workers()
        self._breakers = Breakers()
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the memory store is closed: configure() a new one")

    def _held(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Let a part of the store do something while the lock is held."""
        with self._lock:
            self._check_open()
            return call(*args, **kwargs)

    def register(self, record: MachineRecord) -> None:
        """Keep a machine's declaration."""
        with self._lock:
            self._check_open()
            terminal = frozenset(name for name, terminal, _ in record.states if terminal)
            self._terminal[record.content_hash] = terminal
            stopping = frozenset(name for name, _, stopping in record.states if stopping)
            self._stopping[record.content_hash] = stopping
            self._machines.setdefault(record.content_hash, record.document)

    def machines(self) -> dict[str, str]:
        """Return every registered machine."""
        with self._lock:
            self._check_open()
            return dict(self._machines)

    def machine_count(self) -> int:
        """Return how many machines are registered."""
        self._check_open()
        return len(self._machines)

    # --- write ------------------------------------------------------------------------------------------------

    def append(self, steps: Sequence[Step]) -> list[Receipt | Conflict | Barred]:
        """Commit a batch; no step of it is ever seen half done."""
        guard = self._guard
        if guard.mine():
            raise Reentered(guard.what)
        try:
            with guard.mutex:  # as `Lock.run`, written out: every event takes this way
                if self._closed:
                    self._check_open()
                if self._torn is not None:
                    self._mend()
                return [self._one(steps[0])] if len(steps) == 1 else self._several(steps)
        except BaseException:
            guard.free()
            self._whole()
            raise

    def _several(self, steps: Sequence[Step]) -> list[Receipt | Conflict | Barred]:
        outcomes: list[Receipt | Conflict | Barred] = []
        lost: dict[str, Conflict] = {}
        for step in steps:
            outcome = lost.get(step.after.identity.id) or self._one(step)
            if isinstance(outcome, Conflict):
                lost[outcome.execution_id] = outcome
            outcomes.append(outcome)
        return outcomes

    def _one(self, step: Step) -> Receipt | Conflict | Barred:  # noqa: C901 - every event takes this way
        after = step.after
        execution_id = after.identity.id
        rows = self._rows.get(execution_id)
        if rows is None:
            barred = self._kept_out(after)
            if barred is not None:
                return barred
            receipt = receipt_of(step, self._journal.last + 1)
            self._torn = (step, receipt)  # from here on it is committed
            self._rows[execution_id] = [after, receipt]
            self._list(after)
        else:
            before: Snapshot = rows[0]
            key = step.key
            if before.version != after.version - 1 or (key is not None and (execution_id, key) in self._keys):
                return Conflict(execution_id, before.version)
            owner = after.owner
            if before.owner != owner and owner is not None and self._workers.left(owner):
                return Barred(execution_id, "lease", owner)
            receipt = receipt_of(step, self._journal.last + 1)
            self._torn = (step, receipt)  # from here on it is committed
            rows[0] = after
            rows.append(receipt)
            if before.owner != owner:
                self._own(before.owner, owner, execution_id)
            if before.state != after.state:
                self._move(before, after)
            if key is not None:
                self._keys[execution_id, key] = receipt
            if step.effects:
                self._order(step)
        due_at = after.due_at
        if due_at is None:
            self._armed.pop(execution_id, None)
        else:
            armed_at = self._armed.get(execution_id)
            if armed_at is None or due_at < armed_at:
                self._arm(due_at, execution_id)
        self._journal.append(receipt)
        self._torn = None
        return receipt

    def _kept_out(self, born: Snapshot) -> Conflict | Barred | None:
        """Return what keeps an execution from being born, if anything."""
        identity = born.identity
        if born.version != 0:
            return Conflict(identity.id, None)
        if identity.key is not None:
            first = self._born_keys.get((identity.user_id, identity.key))
            if first is not None:
                return Barred(identity.id, "key", first)
        if identity.id in self._places:
            return Conflict(identity.id, None)  # an id that was deleted is not given out again
        if identity.parent_id is not None and not self._goes_on(identity.parent_id):
            return Barred(identity.id, "parent", identity.parent_id)
        return None

    def _list(self, snapshot: Snapshot) -> None:
        identity = snapshot.identity
        self._ids.append(identity.id)
        if identity.key is not None:
            self._born_keys[identity.user_id, identity.key] = identity.id
        self._by_state.setdefault(snapshot.state, set()).add(identity.id)
        self._by_agent.add(identity.agent, identity.id)
        self._by_user.add(identity.user_id, identity.id)
        self._by_thread.add(identity.thread_id, identity.id)
        if identity.parent_id is not None:
            self._by_parent.add(identity.parent_id, identity.id)

    def _order(self, step: Step) -> None:
        execution_id = step.after.identity.id
        if CANCEL_CHILDREN in step.effects and self._by_parent.get(execution_id):
            self._orders[execution_id] = Order(execution_id, step.after.version, step.event)

    def _goes_on(self, execution_id: str) -> bool:
        """Return whether an execution is there, and neither ended nor about to."""
        rows = self._rows.get(execution_id)
        if rows is None:
            return False
        machine, state = rows[0].identity.machine, rows[0].state
        return state not in self._terminal.get(machine, ()) and state not in self._stopping.get(machine, ())

    def _move(self, before: Snapshot, after: Snapshot) -> None:
        execution_id = after.identity.id
        self._by_state[before.state].discard(execution_id)
        ids = self._by_state.get(after.state)
        if ids is None:
            ids = self._by_state[after.state] = set()
        ids.add(execution_id)
        if after.state in self._terminal.get(after.identity.machine, ()):
            heapq.heappush(self._ended, (after.since_at, execution_id))
            self._own(after.owner, None, execution_id)

    def _own(self, before: str | None, after: str | None, execution_id: str) -> None:
        """Note a new owner."""
        if before is not None and before in self._by_owner:
            self._by_owner[before].discard(execution_id)
            if not self._by_owner[before]:
                del self._by_owner[before]
        if after is not None:
            self._by_owner.setdefault(after, set()).add(execution_id)

    def _arm(self, due_at: float, execution_id: str) -> None:
        self._armed[execution_id] = due_at
        heapq.heappush(self._due, (due_at, execution_id))
        if (
            len(self._due) > 2 * len(self._armed) + CHUNK
        ):  # mostly entries of what has ended or was armed anew
            self._due = [(at, one) for one, at in self._armed.items()]
            heapq.heapify(self._due)

    # --- interrupts -------------------------------------------------------------------------------------------

    @property
    def _lock(self) -> Lock:
        """The lock, for a ``with`` block; what was left half done is done before."""
        if self._torn is not None:
            self._whole()
        return self._guard

    def _whole(self) -> None:
        """Do what was left half done, unless this thread is in the middle of it."""
        if self._torn is not None and not self._guard.mine():
            self._guard.run(self._mend)

    def _mend(self) -> None:
        """Finish the step that was committed, and build from the records what follows from them."""
        if self._torn is None:
            return
        step, receipt = self._torn
        if step is not None and receipt is not None:
            rows = self._rows.setdefault(receipt.execution_id, [step.after])
            rows[0] = step.after
            if rows[-1] is not receipt:
                rows.append(receipt)
        self._index()
        if step is not None:
            self._order(step)
        self._torn = None

    def _index(self) -> None:
        """Rebuild every index from the records and their journals alone."""
        last = self._journal.last
        self._by_agent, self._by_user, self._by_thread, self._by_parent = Index(), Index(), Index(), Index()
        self._ids, self._by_state, self._by_owner, self._born_keys = [], {}, {}, {}
        self._armed, self._ended = {}, []
        receipts: list[Receipt] = []
        for rows in sorted(self._rows.values(), key=lambda rows: rows[1].position):  # as they were born
            execution_id = rows[0].identity.id
            snapshot: Snapshot = rows[0]
            receipts += rows[1:]
            self._list(snapshot)
            if snapshot.due_at is not None:
                self._armed[execution_id] = snapshot.due_at
            if snapshot.state in self._terminal.get(snapshot.identity.machine, ()):
                self._ended.append((snapshot.since_at, execution_id))
            else:
                self._own(None, snapshot.owner, execution_id)
        receipts.sort(key=attrgetter("position"))
        journal = Journal()
        for receipt in receipts:
            journal.append(receipt)
        journal.last = max(journal.last, last)
        self._journal = journal
        self._keys = {(one.execution_id, one.key): one for one in receipts if one.key is not None}
        self._due = [(at, one) for one, at in self._armed.items()]
        heapq.heapify(self._due)
        heapq.heapify(self._ended)

    # --- read -------------------------------------------------------------------------------------------------

    def load(self, execution_id: str) -> Snapshot | None:
        """Return an execution's record."""
        if self._torn is not None:
            self._whole()
        rows = self._rows.get(execution_id)
        if rows is None:
            self._check_open()
            return None
        snapshot: Snapshot = rows[0]
        return snapshot

    def keyed(self, execution_id: str, key: str) -> Receipt | None:
        """Return the receipt of an idempotency key."""
        if self._torn is not None:
            self._whole()
        receipt = self._keys.get((execution_id, key))
        if receipt is None:
            self._check_open()
        return receipt

    def history(self, execution_id: str) -> list[Receipt]:
        """Return an execution's journal."""
        with self._lock:
            self._check_open()
            return list(self._rows.get(execution_id, ())[1:])

    def journal(
        self, after: int, limit: int, execution_id: str | None = None, user_id: str | None = None
    ) -> list[Receipt]:
        """Return the registry's journal after a position."""
        with self._lock:
            self._check_open()
            if execution_id is None:
                found = self._journal.after(after)
            else:
                rows = self._rows.get(execution_id, ())
                found = (receipt for receipt in rows[1:] if receipt.position > after)
            out: list[Receipt] = []
            for receipt in found:
                if user_id is None or self._rows[receipt.execution_id][0].identity.user_id == user_id:
                    out.append(receipt)
                    if len(out) >= limit:
                        break
            return out

    def position(self) -> int:
        """Return the journal's last position."""
        self._check_open()
        if self._torn is not None:
            self._whole()
        return self._journal.last

    def find(self, query: Query) -> list[Snapshot]:
        """Return the executions that fit.

        Two ways lead to a page: walk a sorted index and skip what does not fit, or take the wanted states' sets
        and sort. The cheaper one is taken, so a page of n out of N costs at most about the root of n times N.
        """
        with self._lock:
            self._check_open()
            ids = self._narrowest(query)
            after = 0 if query.after is None else self._place(query.after)
            start = bisect_right(ids, after, key=self._born) if after else 0
            rest = len(ids) - start
            if query.states is not None:
                members = sum(len(self._by_state.get(state, ())) for state in query.states)
                if members == 0:
                    return []
                if members < min(rest, query.limit * rest // members + 1):
                    chosen = (
                        execution_id
                        for state in query.states
                        for execution_id in self._by_state.get(state, ())
                        if self._born(execution_id) > after
                    )
                    fits = (execution_id for execution_id in chosen if self._fits(execution_id, query))
                    return [self._rows[one][0] for one in heapq.nsmallest(query.limit, fits, key=self._born)]
            return list(self._walk(ids, start, query))

    def _born(self, execution_id: str) -> int:
        """Return the position of an execution's birth."""
        receipt: Receipt = self._rows[execution_id][1]
        return receipt.position

    def _place(self, execution_id: str) -> int:
        """Return the position after which a page goes on; see `Query.after`."""
        if execution_id in self._rows:
            return self._born(execution_id)
        if execution_id in self._places:
            return self._places[execution_id]
        before = max((one for one in self._ids if one < execution_id), default=None)
        return 0 if before is None else self._born(before)

    def born(self, user_id: str, key: str) -> str | None:
        """Return the execution that was created with a key."""
        with self._lock:
            self._check_open()
            return self._born_keys.get((user_id, key))

    def _narrowest(self, query: Query) -> list[str]:
        lists = [
            index.get(value)
            for index, value in (
                (self._by_thread, query.thread_id),
                (self._by_parent, query.parent_id),
                (self._by_user, query.user_id),
                (self._by_agent, query.agent),
            )
            if value is not None
        ]
        return min(lists, key=len) if lists else self._ids

    def _walk(self, ids: list[str], start: int, query: Query) -> Iterator[Snapshot]:
        left = query.limit
        for index in range(start, len(ids)):
            if left <= 0:
                return
            if self._fits(ids[index], query):
                left -= 1
                snapshot: Snapshot = self._rows[ids[index]][0]
                yield snapshot

    def _fits(self, execution_id: str, query: Query) -> bool:
        snapshot: Snapshot = self._rows[execution_id][0]
        identity = snapshot.identity
        return (
            (query.states is None or snapshot.state in query.states)
            and (query.user_id is None or identity.user_id == query.user_id)
            and (query.agent is None or identity.agent == query.agent)
            and (query.thread_id is None or identity.thread_id == query.thread_id)
            and (query.parent_id is None or identity.parent_id == query.parent_id)
        )

    def counts(self, user_id: str | None = None) -> dict[str, int]:
        """Return how many executions there are by state."""
        with self._lock:
            self._check_open()
            if user_id is None:
                return {state: len(ids) for state, ids in self._by_state.items() if ids}
            out: dict[str, int] = {}
            for execution_id in self._by_user.get(user_id):
                state = self._rows[execution_id][0].state
                out[state] = out.get(state, 0) + 1
            return out

    def schema_version(self) -> int:
        """Return 0: what lives in memory is never migrated."""
        self._check_open()
        return 0

    # --- orders -----------------------------------------------------------------------------------------------

    def orders(self, after: str, limit: int) -> list[Order]:
        """Return orders that are not known to be carried out."""
        with self._lock:
            self._check_open()
            return heapq.nsmallest(limit, (one for one in self._orders.values() if one.execution_id > after))

    def carried(self, order: Order) -> None:
        """Take note that an order is carried out."""
        with self._lock:
            self._check_open()
            if self._orders.get(order.execution_id) == order:
                del self._orders[order.execution_id]

    # --- time -------------------------------------------------------------------------------------------------

    def timeline(self, era: str) -> Known:
        """Return what is known of an era. Nothing outlives the process here, so the mark is the mark alone."""
        with self._lock:
            self._check_open()
            return Known(self._eras.get(era), self._mark, None)

    def timeline_set(self, era: str, before: Era | None, after: Era) -> Era:
        """Write an era's row, if it is as expected."""
        with self._lock:
            self._check_open()
            if self._eras.get(era) == before:
                self._eras[era] = after
                while len(self._eras) > MAX_ERAS:
                    del self._eras[next(iter(self._eras))]
            return self._eras[era]

    def timeline_mark(self, mark: Mark) -> None:
        """Keep a mark."""
        with self._lock:
            self._check_open()
            if self._mark is None or mark.steady_at > self._mark.steady_at:
                self._mark = mark

    def due(self, now: float, limit: int, after: tuple[float, str] | None = None) -> list[Due]:
        """Return executions whose deadline has passed, in the order of the heap once it is put right."""
        with self._lock:
            self._check_open()
            out: list[Due] = []
            self._torn = _PARTS
            passed: list[tuple[float, str]] = []
            try:
                while self._due and self._due[0][0] <= now and len(out) < limit:
                    entry = armed_at, execution_id = heapq.heappop(self._due)
                    if self._armed.get(execution_id) != armed_at:
                        continue  # an earlier entry took its place
                    del self._armed[execution_id]
                    rows = self._rows.get(execution_id)
                    snapshot: Snapshot | None = rows[0] if rows else None
                    if snapshot is None or snapshot.due_at is None:
                        continue
                    if snapshot.due_at != armed_at:
                        self._arm(snapshot.due_at, execution_id)  # it was only too early
                        continue
                    passed.append(entry)
                    if after is None or entry > after:
                        out.append(
                            Due(execution_id, snapshot.version, armed_at, snapshot.due_kind or "phase")
                        )
            finally:
                # The caller may die before it acts: they are found again until they have moved on.
                for due_at, execution_id in passed:
                    self._arm(due_at, execution_id)
            self._torn = None
            return out

    def next_due(self, after: float = float("-inf")) -> float | None:
        """Return the nearest entry of the heap after an instant: a child of one that is not after it."""
        nearest: float | None = None
        with self._lock:
            todo = [0]
            while todo:
                index = todo.pop()
                if index >= len(self._due):
                    continue
                due_at = self._due[index][0]
                if due_at <= after:
                    todo += (2 * index + 1, 2 * index + 2)
                elif nearest is None or due_at < nearest:
                    nearest = due_at
        return nearest

    # --- workers ----------------------------------------------------------------------------------------------

    def worker_add(self, worker: WorkerRow) -> None:
        """Register a worker."""
        self._held(self._workers.add, worker)

    def worker_renew(self, worker_id: str, now: Callable[[], float]) -> bool:
        """Renew a lease."""
        return self._held(self._workers.renew, worker_id, now)

    def worker_remove(self, worker_id: str) -> None:
        """Forget a worker, even of a store that is closed."""
        with self._lock:
            self._workers.remove(worker_id)

    def workers(self) -> list[WorkerRow]:
        """Return every registered worker."""
        return self._held(self._workers.rows)

    def lose(self, now: float, *, spare: bool = False) -> list[str]:
        """Mark the workers whose lease ran out, and return all that are lost."""
        return self._held(self._workers.lose, now, spare=spare)

    def beat(self, beats: Sequence[Beat]) -> None:
        """Keep reports of loops."""
        self._held(self._workers.beat, beats)

    def beats(self) -> list[Beat]:
        """Return the reports of loops that are kept."""
        return self._held(self._workers.beats)

    def owned(self, worker_id: str, limit: int, after: str = "") -> list[tuple[str, int]]:
        """Return what a worker owns."""
        with self._lock:
            self._check_open()
            ids = heapq.nsmallest(limit, (one for one in self._by_owner.get(worker_id, ()) if one > after))
            return [(one, self._rows[one][0].version) for one in ids]

    # --- retention --------------------------------------------------------------------------------------------

    def ended(self, before_at: float, limit: int) -> list[str]:
        """Return executions that ended before an instant."""
        with self._lock:
            self._check_open()
            if not self._ended or self._ended[0][0] >= before_at:
                return []
            oldest = heapq.nsmallest(limit, self._ended)
            return [execution_id for ended_at, execution_id in oldest if ended_at < before_at]

    def ended_count(self) -> int:
        """Return how many ended executions are kept."""
        return len(self._ended)

    def forget(self, execution_ids: Sequence[str], keep: int = 0) -> int:
        """Delete ended executions with their journals."""
        with self._lock:
            self._check_open()
            gone: dict[str, list[Any]] = {}
            self._torn = _PARTS
            for execution_id in execution_ids:
                rows = self._rows.get(execution_id)
                if keep and len(self._ended) - len(gone) <= keep:
                    break
                if rows is not None and rows[0].state in self._terminal.get(rows[0].identity.machine, ()):
                    gone[execution_id] = rows
            self._journal.forget([receipt for rows in gone.values() for receipt in rows[1:]])
            for execution_id, rows in gone.items():
                self._unlist(execution_id, rows)
            for execution_id in gone:
                self._places[execution_id] = self._born(execution_id)
                del self._rows[execution_id]
            while len(self._places) > PLACES:
                del self._places[next(iter(self._places))]
            if gone:
                self._ended = [entry for entry in self._ended if entry[1] not in gone]
                heapq.heapify(self._ended)
                self._ids = [one for one in self._ids if one not in gone]
            self._torn = None
            return len(gone)

    def _unlist(self, execution_id: str, rows: list[Any]) -> None:
        snapshot: Snapshot = rows[0]
        identity = snapshot.identity
        self._by_state[snapshot.state].discard(execution_id)
        self._by_agent.discard(identity.agent, execution_id, self._born)
        self._by_user.discard(identity.user_id, execution_id, self._born)
        self._by_thread.discard(identity.thread_id, execution_id, self._born)
        if identity.parent_id is not None:
            self._by_parent.discard(identity.parent_id, execution_id, self._born)
        if identity.key is not None:
            self._born_keys.pop((identity.user_id, identity.key), None)
        for receipt in rows[1:]:
            if receipt.key is not None:
                self._keys.pop((execution_id, receipt.key), None)
        self._armed.pop(execution_id, None)

    # --- breakers ---------------------------------------------------------------------------------------------

    def breaker_load(self, key: str) -> BreakerRow | None:
        """Return a breaker's row, without waiting for the lock."""
        self._check_open()
        return self._breakers.rows.get(key)

    def breaker_swap(
        self, machine: str, expected_version: int, row: BreakerRow, entry: BreakerEntry | None
    ) -> bool:
        """Write a row if its version is as expected."""
        del machine  # one process, one table: the runtime took the row from it
        return self._held(self._breakers.swap, expected_version, row, entry)

    def breaker_list(self) -> list[BreakerRow]:
        """Return every row, by key."""
        return self._held(self._breakers.all)

    def breaker_changes(
        self, after: int, limit: int, key: str | None = None, before: int | None = None
    ) -> list[BreakerEntry]:
        """Return lines of the journal between two positions: the first of them, or the last before `before`."""
        return self._held(self._breakers.changes, after, limit, key, before)

    def breaker_position(self) -> int:
        """Return the journal's last position."""
        return self._held(self._breakers.position)

    # --- damage -----------------------------------------------------------------------------------------------

    def damaged(self) -> list[Damage]:
        """Return nothing: what is in memory is as it was put there."""
        self._check_open()
        return []

    def inspect(self) -> list[Damage]:
        """Return nothing: there is no file."""
        self._check_open()
        return []

    def close(self) -> None:
        """Forget everything; when a handler calls this in the middle of a call, that one finishes first."""
        self._closed = True
        if not self._guard.mine():
            self._guard.run(self._forget_all)

    def _forget_all(self) -> None:
        self._torn = None
        self._rows = {}
        self._journal = Journal()
        self._keys = {}
        self._orders = {}
        self._due = []
        self._armed = {}
