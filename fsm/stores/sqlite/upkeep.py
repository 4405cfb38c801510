"""Time, workers and retention in the SQLite store: what the sweeper needs."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from fsm.errors import DamagedRecord
from fsm.stores.base import BEAT_KEPT_S, MAX_BEATS, Beat, Due, Order, WorkerRow
from fsm.stores.sqlite import rows as shapes
from fsm.stores.sqlite.damage import Pages


class _Connections(Protocol):
    _pages: Pages

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]: ...

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]: ...


_TERMINAL = "EXISTS (SELECT 1 FROM states WHERE machine = executions.machine AND name = state AND terminal)"
_CHAIN = """
    WITH RECURSIVE chain (position) AS (
        SELECT position FROM executions WHERE id = ?
        UNION ALL
        SELECT previous FROM journal JOIN chain USING (position) WHERE previous < position
    )
    SELECT position FROM chain
"""
_HORIZON = """
    UPDATE horizon SET position = max(position, (SELECT coalesce(max(position), 0) FROM journal))
"""


_BEAT = (
    f"INSERT OR REPLACE INTO beats ({', '.join(Beat._fields)}) VALUES ({', '.join('?' * len(Beat._fields))})"
)
_FEWER_BEATS = """
    DELETE FROM beats WHERE (process, loop) IN (
        SELECT process, loop FROM beats ORDER BY seen_at DESC LIMIT -1 OFFSET ?
    )
"""


class Upkeep:
    """The part of the store that keeps it in order; every method is as in `fsm.stores.base.Store`."""

    # --- orders -----------------------------------------------------------------------------------------------

    def orders(self: _Connections, after: str, limit: int) -> list[Order]:
        """Return orders that are not known to be carried out, from a table that is nearly always empty."""
        sql = "SELECT execution_id, version, event FROM orders WHERE execution_id > ? ORDER BY execution_id"
        return self._pages.page(sql, (after,), limit, shapes.order)

    def carried(self: _Connections, order: Order) -> None:
        """Take note that an order is carried out; nothing is written when there is none, as after most ends."""
        this = "FROM orders WHERE execution_id = ? AND version = ?"
        if self._rows(f"SELECT 1 {this}", order[:2]):
            with self._transaction() as writer:
                writer.execute(f"DELETE {this}", order[:2])

    # --- time -------------------------------------------------------------------------------------------------

    def timeline(self: _Connections, era: str, offset_s: float) -> float:
        """Return the offset of an era; the first process of a boot writes it."""
        question = "SELECT era, offset_s FROM eras WHERE era = ?"
        rows = self._rows(question, (era,))
        if not rows:
            with self._transaction() as writer:
                writer.execute("INSERT OR IGNORE INTO eras (era, offset_s) VALUES (?, ?)", (era, offset_s))
            rows = self._rows(question, (era,))
        if not rows:
            raise DamagedRecord("eras", shapes.shown(era), "offset_s", "cannot be kept")
        return shapes.offset(rows[0])

    def due(self: _Connections, now: float, limit: int, after: tuple[float, str] | None = None) -> list[Due]:
        """Return executions whose deadline has passed, from the index of deadlines alone."""
        place, values = ("", ()) if after is None else (" AND (due_at, id) > (?, ?)", after)
        sql = (
            "SELECT id, version, due_at, due_kind FROM executions "
            f"WHERE due_at IS NOT NULL AND due_at <= ?{place} ORDER BY due_at, id"
        )
        return self._pages.page(sql, (now, *values), limit, shapes.due)

    def next_due(self: _Connections, after: float = float("-inf")) -> float | None:
        """Return the nearest deadline after an instant."""
        sql = "SELECT min(due_at) FROM executions WHERE due_at IS NOT NULL AND due_at > ?"
        due_at = self._rows(sql, (after,))[0][0]
        return float(due_at) if isinstance(due_at, (int, float)) else None  # text sorts after every number

    # --- workers ----------------------------------------------------------------------------------------------

    def worker_add(self: _Connections, worker: WorkerRow) -> None:
        """Register a worker."""
        with self._transaction() as writer:
            writer.execute(
                "INSERT INTO workers (id, name, ttl_s, started_at, renewed_at, lost) VALUES (?, ?, ?, ?, ?, ?)",
                worker,
            )

    def worker_renew(self: _Connections, worker_id: str, now: float) -> bool:
        """Renew a lease: one row, whatever the worker owns."""
        with self._transaction() as writer:
            renewed = writer.execute(
                "UPDATE workers SET renewed_at = ? WHERE id = ? AND NOT lost", (now, worker_id)
            )
            return renewed.rowcount == 1

    def worker_remove(self: _Connections, worker_id: str) -> None:
        """Forget a worker."""
        with self._transaction() as writer:
            writer.execute("DELETE FROM workers WHERE id = ?", (worker_id,))

    def workers(self: _Connections) -> list[WorkerRow]:
        """Return every registered worker."""
        sql = "SELECT id, name, ttl_s, started_at, renewed_at, lost FROM workers ORDER BY id"
        return self._pages.all(sql, (), shapes.worker)

    def lose(self: _Connections, now: float) -> list[str]:
        """Mark the workers whose lease ran out; nothing is written when there is none."""
        expired = "NOT lost AND renewed_at + ttl_s < ?"
        if self._rows(f"SELECT 1 FROM workers WHERE {expired} LIMIT 1", (now,)):
            with self._transaction() as writer:
                writer.execute(f"UPDATE workers SET lost = 1 WHERE {expired}", (now,))
        return self._pages.all("SELECT id FROM workers WHERE lost ORDER BY id", (), shapes.ended)

    def owned(self: _Connections, worker_id: str, limit: int, after: str = "") -> list[tuple[str, int]]:
        """Return what a worker owns and has not ended."""
        sql = f"SELECT id, version FROM executions WHERE owner = ? AND id > ? AND NOT {_TERMINAL} ORDER BY id"
        return self._pages.page(sql, (worker_id, after), limit, shapes.owned)

    # --- what processes say of themselves -------------------------------------------------------------------------

    def beat(self: _Connections, beats: Sequence[Beat]) -> None:
        """Keep reports of loops: one short transaction."""
        if not beats:
            return
        since = max(one.seen_at for one in beats) - BEAT_KEPT_S
        with self._transaction() as writer:
            writer.executemany(_BEAT, beats)
            writer.execute("DELETE FROM beats WHERE seen_at < ?", (since,))
            writer.execute(_FEWER_BEATS, (MAX_BEATS,))

    def beats(self: _Connections) -> list[Beat]:
        """Return the reports of loops that are kept."""
        sql = f"SELECT {', '.join(Beat._fields)} FROM beats ORDER BY process, loop"
        return self._pages.all(sql, (), shapes.beat)

    def schema_version(self: _Connections) -> int:
        """Return the version that the file's own migrations have brought it to."""
        version: int = self._rows("PRAGMA user_version")[0][0]
        return version

    # --- retention --------------------------------------------------------------------------------------------

    def ended(self: _Connections, before_at: float, limit: int) -> list[str]:
        """Return executions that ended before an instant."""
        sql = (
            f"SELECT id FROM executions WHERE due_at IS NULL AND updated_at < ? AND {_TERMINAL} "
            "ORDER BY updated_at, id"
        )
        return self._pages.page(sql, (before_at,), limit, shapes.ended)

    def ended_count(self: _Connections) -> int:
        """Return how many ended executions are kept."""
        count: int = self._rows(f"SELECT count(*) FROM executions WHERE due_at IS NULL AND {_TERMINAL}")[0][0]
        return count

    def forget(self: _Connections, execution_ids: Sequence[str]) -> int:
        """Delete ended executions with their journals, all in one transaction."""
        gone = 0
        with self._transaction() as writer:
            writer.execute(_HORIZON)
            for execution_id in execution_ids:
                positions = writer.execute(_CHAIN, (execution_id,)).fetchall()
                deleted = writer.execute(
                    f"DELETE FROM executions WHERE id = ? AND {_TERMINAL}", (execution_id,)
                )
                if deleted.rowcount:
                    gone += 1
                    writer.executemany("DELETE FROM journal WHERE position = ?", positions)
        return gone
