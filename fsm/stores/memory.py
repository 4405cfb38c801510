"""The store in memory: everything in dicts, nothing that grows slower with the number of executions.

Per execution one list holds the record and its journal; indexes hold ids. The indexes by user, agent, thread and
parent are sorted lists, which ids make cheap: they ascend as they are made. The index by state is a set per state,
since an execution changes its state far more often than anybody asks; a query sorts what it needs.
"""

from __future__ import annotations

import heapq
import threading
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fsm.errors import StoreUnavailable
from fsm.records import Receipt, Snapshot, Step, receipt_of
from fsm.stores.base import Conflict, MachineRecord, Query
from fsm.stores.memory_breakers import MemoryBreakers


class _Index:
    """Ids by one value, sorted. Most values have one id, so a single one is kept without a list."""

    __slots__ = ("_ids",)

    def __init__(self) -> None:
        self._ids: dict[str, str | list[str]] = {}

    def add(self, value: str, execution_id: str) -> None:
        have = self._ids.get(value)
        if have is None:
            self._ids[value] = execution_id
        elif isinstance(have, list):
            _insert(have, execution_id)
        else:
            self._ids[value] = sorted((have, execution_id))

    def get(self, value: str) -> list[str]:
        have = self._ids.get(value)
        if have is None:
            return []
        return have if isinstance(have, list) else [have]


def _insert(ids: list[str], execution_id: str) -> None:
    """Keep the list sorted; nearly always the new id is the last."""
    if not ids or execution_id > ids[-1]:
        ids.append(execution_id)
    else:
        insort(ids, execution_id)


class MemoryStore(MemoryBreakers):
    """A registry that lives and ends with the process."""

    url = "memory://"
    instant = True

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._machines: dict[str, str] = {}
        # id -> [snapshot, first receipt, second receipt, ...]: one list, since there may be a million of them.
        self._rows: dict[str, list[Any]] = {}
        self._journal: list[Receipt] = []
        self._keys: dict[tuple[str, str], Receipt] = {}
        self._ids: list[str] = []
        self._by_state: dict[str, set[str]] = {}
        self._by_agent = _Index()
        self._by_user = _Index()
        self._by_thread = _Index()
        self._by_parent = _Index()
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the memory store is closed: configure() a new one")

    def register(self, record: MachineRecord) -> None:
        """Keep a machine's declaration."""
        self._check_open()
        self._machines[record.content_hash] = record.document

    def machines(self) -> dict[str, str]:
        """Return every registered machine."""
        with self._lock:
            self._check_open()
            return dict(self._machines)

    def load(self, execution_id: str) -> Snapshot | None:
        """Return an execution's record."""
        rows = self._rows.get(execution_id)
        if rows is None:
            self._check_open()
            return None
        snapshot: Snapshot = rows[0]
        return snapshot

    def append(self, steps: Sequence[Step]) -> list[Receipt | Conflict]:
        """Commit a batch; nothing here can fail halfway."""
        with self._lock:
            if self._closed:
                self._check_open()
            return [self._one(step) for step in steps]

    def _one(self, step: Step) -> Receipt | Conflict:
        after = step.after
        execution_id = after.identity.id
        rows = self._rows.get(execution_id)
        if rows is None:
            if after.version != 0:
                return Conflict(execution_id, None)
            receipt = receipt_of(step, len(self._journal) + 1)
            self._birth(after, receipt)
        else:
            before: Snapshot = rows[0]
            if before.version != after.version - 1:
                return Conflict(execution_id, before.version)
            key = step.key
            if key is not None and (execution_id, key) in self._keys:
                return Conflict(execution_id, before.version)
            receipt = receipt_of(step, len(self._journal) + 1)
            rows[0] = after
            rows.append(receipt)
            if before.state != after.state:
                self._by_state[before.state].discard(execution_id)
                ids = self._by_state.get(after.state)
                if ids is None:
                    ids = self._by_state[after.state] = set()
                ids.add(execution_id)
            if key is not None:
                self._keys[execution_id, key] = receipt
        self._journal.append(receipt)
        return receipt

    def _birth(self, snapshot: Snapshot, receipt: Receipt) -> None:
        identity = snapshot.identity
        self._rows[identity.id] = [snapshot, receipt]
        _insert(self._ids, identity.id)
        self._by_state.setdefault(snapshot.state, set()).add(identity.id)
        self._by_agent.add(identity.agent, identity.id)
        self._by_user.add(identity.user_id, identity.id)
        self._by_thread.add(identity.thread_id, identity.id)
        if identity.parent_id is not None:
            self._by_parent.add(identity.parent_id, identity.id)

    def keyed(self, execution_id: str, key: str) -> Receipt | None:
        """Return the receipt of an idempotency key."""
        return self._keys.get((execution_id, key))

    def history(self, execution_id: str) -> list[Receipt]:
        """Return an execution's journal."""
        with self._lock:
            self._check_open()
            return list(self._rows.get(execution_id, ())[1:])

    def journal(
        self, after: int, limit: int, execution_id: str | None = None, user_id: str | None = None
    ) -> list[Receipt]:
        """Return the registry's journal after a position; a position is an index here, so nothing is searched."""
        with self._lock:
            self._check_open()
            if execution_id is not None:
                found: Iterable[Receipt] = (
                    receipt for receipt in self._rows.get(execution_id, ())[1:] if receipt.position > after
                )
            else:
                found = (self._journal[index] for index in range(max(0, after), len(self._journal)))
            out: list[Receipt] = []
            for receipt in found:
                if user_id is None or self._rows[receipt.execution_id][0].identity.user_id == user_id:
                    out.append(receipt)
                    if len(out) >= limit:
                        break
            return out

    def position(self) -> int:
        """Return the journal's last position."""
        return len(self._journal)

    def find(self, query: Query) -> list[Snapshot]:
        """Return the executions that fit.

        Two ways lead to a page: walk a sorted index and skip what does not fit, or take the wanted states' sets
        and sort. The cheaper one is taken, so a page of n out of N costs at most about the root of n times N.
        """
        with self._lock:
            self._check_open()
            ids = self._narrowest(query)
            start = bisect_right(ids, query.after) if query.after is not None else 0
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
                        if query.after is None or execution_id > query.after
                    )
                    fits = (execution_id for execution_id in chosen if self._fits(execution_id, query))
                    return [self._rows[one][0] for one in heapq.nsmallest(query.limit, fits)]
            return list(self._walk(ids, start, query))

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

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._closed = True
            self._rows = {}
            self._journal = []
            self._keys = {}
