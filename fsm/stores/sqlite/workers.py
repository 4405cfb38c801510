"""The workers and their leases in a SQLite file, and what processes report of their loops."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence

from fsm.stores.base import BEAT_KEPT_S, FUTURE_S, MAX_BEATS, SPARED_MAX, Beat, WorkerRow
from fsm.stores.sqlite import rows as shapes
from fsm.stores.sqlite.database import Database

STALL_S = 0.5
"""A wait for the write lock from which on the workers may have been kept from renewing, in seconds."""
CHANCE_S = 0.15
"""How long those who wait for the write lock are let go first before a worker is lost, in seconds; a waiting writer
tries again after `fsm.stores.sqlite.connect._LONGEST_WAIT_S` at the latest."""
MAX_CHANCES = 20
"""Maximum number of times that this is repeated while workers come back."""


def _columns(fields: Sequence[str]) -> str:
    return f"({', '.join(fields)}) VALUES ({', '.join('?' * len(fields))})"


_ADD = f"INSERT INTO workers {_columns(WorkerRow._fields)}"
_BEAT = f"INSERT OR REPLACE INTO beats {_columns(Beat._fields)}"
_FEWER_BEATS = """
    DELETE FROM beats WHERE (process, loop) IN (
        SELECT process, loop FROM beats ORDER BY seen_at DESC LIMIT -1 OFFSET ?
    )
"""
_SUSPECTS = "SELECT id, renewed_at FROM workers WHERE NOT lost AND (renewed_at + ttl_s < ? OR renewed_at > ?)"


class Workers:
    """The registered workers, and the reports of loops."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, worker: WorkerRow) -> None:
        """Register a worker."""
        self._database.write(lambda writer: writer.execute(_ADD, worker))

    def renew(self, worker_id: str, now: Callable[[], float]) -> bool:
        """Renew a lease: one row, whatever the worker owns; its time is taken when the lock is held."""

        def write(writer: sqlite3.Connection) -> bool:
            writer.execute("DELETE FROM spared WHERE id = ?", (worker_id,))
            renewed = writer.execute(
                "UPDATE workers SET renewed_at = ? WHERE id = ? AND NOT lost", (now(), worker_id)
            )
            return renewed.rowcount == 1

        return self._database.write(write)

    def remove(self, worker_id: str) -> None:
        """Forget a worker."""
        self._database.write(lambda writer: writer.execute("DELETE FROM workers WHERE id = ?", (worker_id,)))

    def rows(self) -> list[WorkerRow]:
        """Return every registered worker."""
        sql = f"SELECT {', '.join(WorkerRow._fields)} FROM workers ORDER BY id"
        return self._database.pages.all(sql, (), shapes.worker)

    def lose(self, now: float, *, spare: bool) -> list[str]:
        """Mark the workers whose lease ran out; nothing is written when there is none."""
        database = self._database
        began_s = time.monotonic()
        suspects = database.rows(_SUSPECTS, (now, now + FUTURE_S))
        for _ in range(MAX_CHANCES):
            if not suspects or spare:
                break
            # Workers that could not renew stand in the same queue for the lock: they go first.
            asked_s = time.monotonic()
            spare = database.write(lambda _: time.monotonic()) - asked_s >= STALL_S
            time.sleep(CHANCE_S)
            before, suspects = suspects, database.rows(_SUSPECTS, (now, now + FUTURE_S))
            if suspects == before:
                break
        if suspects:
            asked_s = time.monotonic()

            def write(writer: sqlite3.Connection) -> None:
                began = time.monotonic()
                _lose(writer, now, now + began - began_s, spare=spare or began - asked_s >= STALL_S)

            database.write(write)
        return database.pages.all("SELECT id FROM workers WHERE lost ORDER BY id", (), shapes.ended)

    def beat(self, beats: Sequence[Beat]) -> None:
        """Keep reports of loops: one short transaction."""
        if not beats:
            return
        since = max(one.seen_at for one in beats) - BEAT_KEPT_S

        def write(writer: sqlite3.Connection) -> None:
            writer.executemany(_BEAT, beats)
            writer.execute("DELETE FROM beats WHERE seen_at < ?", (since,))
            writer.execute(_FEWER_BEATS, (MAX_BEATS,))

        self._database.write(write)

    def beats(self) -> list[Beat]:
        """Return the reports of loops that are kept."""
        sql = f"SELECT {', '.join(Beat._fields)} FROM beats ORDER BY process, loop"
        return self._database.pages.all(sql, (), shapes.beat)


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
