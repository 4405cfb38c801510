"""The breakers' rows in a SQLite file; see `fsm.stores.base.BreakerStore`.

A swap takes one of the pool's reading connections, not the writing one: a breaker must not wait behind a commit of
executions that itself waits for another process.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fsm.stores.breakers import BreakerEntry, BreakerRow
from fsm.stores.sqlite import rows as shapes
from fsm.stores.sqlite.connect import explain, patiently
from fsm.stores.sqlite.damage import Pages
from fsm.stores.sqlite.identity import StoreFile
from fsm.stores.sqlite.pool import Pool

logger = logging.getLogger(__name__)

SWAP_LIMIT_S = 2.0
"""So long, in seconds, a swap waits for other writers; a breaker then goes on alone rather than stop its callers."""

_ROW = "key, state, version, generation, changed_at, since, until, openings, probes, successes, abandoned"
_KNOWN = "EXISTS (SELECT 1 FROM states WHERE states.machine = breakers.machine AND states.name = state)"
_SELECT = f"SELECT {_ROW}, {_KNOWN} FROM breakers"
_ENTRY = (
    "SELECT position, key, version, event, source, target, generation, at, actor, reason FROM breaker_journal"
)
_INSERT = (
    "INSERT INTO breakers (state, version, generation, changed_at, since, until, openings, probes, successes, "
    "abandoned, event, at, actor, reason, machine, key) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_UPDATE = (
    "UPDATE breakers SET state = ?, version = ?, generation = ?, changed_at = ?, since = ?, until = ?, "
    "openings = ?, probes = ?, successes = ?, abandoned = ?, event = ?, at = ?, actor = ?, reason = ?, "
    "machine = ? WHERE key = ? AND version = ?"
)


class SqliteBreakers:
    """The part of the SQLite store that keeps breakers."""

    _path: Path
    _pool: Pool
    _file: StoreFile
    _pages: Pages

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    def _acknowledge(self, connection: sqlite3.Connection) -> None:
        raise NotImplementedError

    def _number(self, content_hash: str) -> int | None:
        raise NotImplementedError

    def breaker_load(self, key: str) -> BreakerRow | None:
        """Return a breaker's row."""
        rows = self._rows(f"{_SELECT} WHERE key = ?", (key,))
        return shapes.breaker(rows[0]) if rows else None

    def breaker_swap(
        self, machine: str, expected_version: int, row: BreakerRow, entry: BreakerEntry | None
    ) -> bool:
        """Write a row if nobody was faster."""
        number = self._number(machine)
        probes = json.dumps(row.probes, separators=(",", ":")) if row.probes else None
        event, by, why = (None, None, None) if entry is None else (entry.event, entry.by, entry.why)
        at = row.changed_at if entry is None else entry.at
        values = (*row[1:8], probes, row.successes, row.abandoned, event, at, by, why, number, row.key)
        sql, more = (_UPDATE, (expected_version,)) if expected_version else (_INSERT, ())

        def swap(connection: sqlite3.Connection) -> int:
            self._file.check(connection)
            # One statement is one transaction, its triggers included.
            written = patiently(
                lambda: connection.execute(sql, (*values, *more)).rowcount, str(self._path), SWAP_LIMIT_S
            )
            self._acknowledge(connection)
            return written

        try:
            return self._pool.read(swap) == 1
        except sqlite3.IntegrityError as error:
            if "exists already" in str(error):
                return False
            raise  # the table refused it: a mistake here, not a store that is down
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise explain(error, self._path) from error

    def breaker_list(self) -> list[BreakerRow]:
        """Return every row, by key."""
        return self._pages.all(f"{_SELECT} ORDER BY key", (), shapes.breaker)

    def breaker_changes(
        self, after: int, limit: int, key: str | None = None, before: int | None = None
    ) -> list[BreakerEntry]:
        """Return lines of the journal between two positions: the first of them, or the last before `before`."""
        where, values = ["position > ?"], [after]
        if before is not None:
            where, values = [*where, "position < ?"], [*values, before]
        ask: tuple[Any, ...] = tuple(values)
        if key is not None:
            where, ask = ["key = ?", *where], (key, *ask)
        direction = "" if before is None else " DESC"
        sql = f"{_ENTRY} WHERE {' AND '.join(where)} ORDER BY position{direction}"
        entries = self._pages.page(sql, ask, limit, shapes.breaker_entry)
        return entries if before is None else entries[::-1]

    def breaker_position(self) -> int:
        """Return the journal's last position."""
        position: int = self._rows("SELECT coalesce(max(position), 0) FROM breaker_journal")[0][0]
        return position
