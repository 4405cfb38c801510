"""Time, workers and retention in the SQLite store: what the sweeper needs."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from fsm.core.timeline import Era, Known, Mark
from fsm.stores.base import (
    BEAT_KEPT_S,
    FUTURE_S,
    MAX_BEATS,
    MAX_ERAS,
    SPARED_MAX,
    Beat,
    Due,
    Order,
    WorkerRow,
)
from fsm.stores.sqlite import rows as shapes
from fsm.stores.sqlite.damage import Pages

T = TypeVar("T")


class _Connections(Protocol):
    _pages: Pages

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]: ...

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T: ...


_TERMINAL = "EXISTS (SELECT 1 FROM states WHERE machine = executions.machine AND name = state AND terminal)"
_ENDED = f"SELECT count(*) FROM executions WHERE due_at IS NULL AND {_TERMINAL}"
_END = "coalesce(nullif(since_at, 0.0), updated_at)"  # as the index executions_ended has it
_CHAIN = """
    WITH RECURSIVE chain (position) AS (
        SELECT position FROM executions WHERE id = ?
        UNION ALL
        SELECT previous FROM journal JOIN chain USING (position) WHERE previous < position
    )
    SELECT position FROM chain
"""
_ERA = "SELECT offset_s, held_at, begun_s, lag_s, drift_s, even_s FROM eras WHERE era = ?"
# The last commit tells when its execution entered its state, on both clocks.
_LAST = """
    SELECT since_at, entered_at FROM executions
    WHERE id = (SELECT execution_id FROM journal ORDER BY position DESC LIMIT 1)
        AND since_at BETWEEN 1e-9 AND 1e12 AND entered_at BETWEEN -1e12 AND 1e12
"""
_RENEWED = "SELECT renewed_at FROM workers WHERE renewed_at BETWEEN -1e12 AND 1e12"
STALL_S = 0.5
"""A wait for the write lock from which on the workers may have been kept from renewing, in seconds."""
CHANCE_S = 0.15
"""How long those who wait for the write lock are let go first before a worker is lost, in seconds; a waiting writer
tries again after `fsm.stores.sqlite.connect._LONGEST_WAIT_S` at the latest."""
MAX_CHANCES = 20
"""How often that is repeated while workers come back."""
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
            self._write(lambda writer: writer.execute(f"DELETE {this}", order[:2]))

    # --- time -------------------------------------------------------------------------------------------------

    def timeline(self: _Connections, era: str) -> Known:
        """Return what is known of an era, and where the timeline was last seen if it is new."""
        rows = self._rows(_ERA, (era,))
        if rows:
            return Known(shapes.era(rows[0]), None, None)
        marks = [shapes.mark(row) for row in self._rows("SELECT steady_at, wall_at, monotonic_s FROM mark")]
        marks += [Mark(*shapes.LAST.check(row)) for row in self._rows(_LAST)]
        # A process that is an era of its own needs the monotonic clock's reading, which commits do not tell.
        mark = max(marks[:1] if not era else marks, key=lambda one: one.steady_at, default=None)
        instants = [one.steady_at for one in marks]
        instants += [row[0] for row in self._rows(_RENEWED)]
        return Known(None, mark, max(instants, default=None))

    def timeline_set(self: _Connections, era: str, before: Era | None, after: Era) -> Era:
        """Write an era's row, if it is as expected; the first process of a boot writes the first."""

        def write(writer: sqlite3.Connection) -> Era:
            row = writer.execute(_ERA, (era,)).fetchone()
            now = None if row is None else shapes.era(row)
            if now != before:
                return now or after
            writer.execute("DELETE FROM eras WHERE era = ?", (era,))
            writer.execute(
                "INSERT INTO eras (era, offset_s, held_at, begun_s, lag_s, drift_s, even_s) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (era, *after),
            )
            writer.execute("DELETE FROM eras WHERE rowid <= (SELECT max(rowid) FROM eras) - ?", (MAX_ERAS,))
            return after

        return self._write(write)

    def timeline_mark(self: _Connections, mark: Mark) -> None:
        """Keep a mark."""
        self._write(
            lambda writer: writer.execute(
                "INSERT INTO mark (id, steady_at, wall_at, monotonic_s) VALUES (1, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET steady_at = excluded.steady_at, wall_at = excluded.wall_at, "
                "monotonic_s = excluded.monotonic_s WHERE excluded.steady_at > mark.steady_at",
                mark,
            )
        )

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
        self._write(
            lambda writer: writer.execute(
                "INSERT INTO workers (id, name, ttl_s, started_at, renewed_at, lost) VALUES (?, ?, ?, ?, ?, ?)",
                worker,
            )
        )

    def worker_renew(self: _Connections, worker_id: str, now: Callable[[], float]) -> bool:
        """Renew a lease: one row, whatever the worker owns; its time is taken when the lock is held."""

        def write(writer: sqlite3.Connection) -> bool:
            writer.execute("DELETE FROM spared WHERE id = ?", (worker_id,))
            renewed = writer.execute(
                "UPDATE workers SET renewed_at = ? WHERE id = ? AND NOT lost", (now(), worker_id)
            )
            return renewed.rowcount == 1

        return self._write(write)

    def worker_remove(self: _Connections, worker_id: str) -> None:
        """Forget a worker."""
        self._write(lambda writer: writer.execute("DELETE FROM workers WHERE id = ?", (worker_id,)))

    def workers(self: _Connections) -> list[WorkerRow]:
        """Return every registered worker."""
        sql = "SELECT id, name, ttl_s, started_at, renewed_at, lost FROM workers ORDER BY id"
        return self._pages.all(sql, (), shapes.worker)

    def lose(self: _Connections, now: float, *, spare: bool = False) -> list[str]:
        """Mark the workers whose lease ran out; nothing is written when there is none."""
        expired = "NOT lost AND (renewed_at + ttl_s < ? OR renewed_at > ?)"
        began_s = time.monotonic()
        suspects = self._rows(f"SELECT id, renewed_at FROM workers WHERE {expired}", (now, now + FUTURE_S))
        for _ in range(MAX_CHANCES):
            if not suspects or spare:
                break
            # Workers that could not renew stand in the same queue for the lock: they go first.
            asked_s = time.monotonic()
            spare = self._write(lambda _: time.monotonic()) - asked_s >= STALL_S
            time.sleep(CHANCE_S)
            before = suspects
            suspects = self._rows(
                f"SELECT id, renewed_at FROM workers WHERE {expired}", (now, now + FUTURE_S)
            )
            if suspects == before:
                break
        if suspects:
            asked_s = time.monotonic()

            def write(writer: sqlite3.Connection) -> None:
                began = time.monotonic()
                _lose(writer, now, now + began - began_s, spare=spare or began - asked_s >= STALL_S)

            self._write(write)
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

        def write(writer: sqlite3.Connection) -> None:
            writer.executemany(_BEAT, beats)
            writer.execute("DELETE FROM beats WHERE seen_at < ?", (since,))
            writer.execute(_FEWER_BEATS, (MAX_BEATS,))

        self._write(write)

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
        sql = f"SELECT id FROM executions WHERE due_at IS NULL AND {_END} < ? AND {_TERMINAL} ORDER BY {_END}, id"
        return self._pages.page(sql, (before_at,), limit, shapes.ended)

    def ended_count(self: _Connections) -> int:
        """Return how many ended executions are kept."""
        count: int = self._rows(_ENDED)[0][0]
        return count

    def forget(self: _Connections, execution_ids: Sequence[str], keep: int = 0) -> int:
        """Delete ended executions with their journals, all in one transaction."""

        def write(writer: sqlite3.Connection) -> int:
            gone = 0
            writer.execute(_HORIZON)
            spare = writer.execute(_ENDED).fetchone()[0] - keep if keep else len(execution_ids)
            for execution_id in execution_ids:
                if gone >= spare:
                    break
                positions = writer.execute(_CHAIN, (execution_id,)).fetchall()
                deleted = writer.execute(
                    f"DELETE FROM executions WHERE id = ? AND {_TERMINAL}", (execution_id,)
                )
                if deleted.rowcount:
                    gone += 1
                    writer.executemany("DELETE FROM journal WHERE position = ?", positions)
            return gone

        return self._write(write)


def _lose(writer: sqlite3.Connection, now: float, at: float, *, spare: bool) -> None:
    """Mark the workers whose lease ran out as lost.

    Args:
        writer: A connection in a transaction.
        now: The instant up to which a lease must last.
        at: The instant of the transaction.
        spare: Whether to give another term to those that may have been kept from renewing.
    """
    writer.execute("UPDATE workers SET renewed_at = ? WHERE NOT lost AND renewed_at > ?", (at, at + FUTURE_S))
    ran_out = "NOT lost AND renewed_at + ttl_s < ?"
    if spare:
        writer.execute(
            f"INSERT INTO spared (id, times) SELECT id, 1 FROM workers WHERE {ran_out} "
            "ON CONFLICT (id) DO UPDATE SET times = times + 1",
            (now,),
        )
        writer.execute(
            f"UPDATE workers SET renewed_at = ? WHERE {ran_out} AND "
            "(SELECT times FROM spared WHERE spared.id = workers.id) <= ?",
            (at, now, SPARED_MAX),
        )
    writer.execute(f"UPDATE workers SET lost = 1 WHERE {ran_out}", (now,))
