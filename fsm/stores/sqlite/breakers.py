"""The breakers' rows in a SQLite file.

A swap takes one of the pool's reading connections, not the writing one: a breaker must not wait behind a commit of
executions that itself waits for another process.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from fsm.stores.breakers import BreakerEntry, BreakerRow
from fsm.stores.sqlite import rows as shapes
from fsm.stores.sqlite.connect import explain, patiently
from fsm.stores.sqlite.database import Database
from fsm.stores.sqlite.machines import Machines

SWAP_LIMIT_S = 2.0
"""Maximum time that a swap waits for other writers, in seconds; a breaker then goes on alone."""

_KNOWN = "EXISTS (SELECT 1 FROM states WHERE states.machine = breakers.machine AND states.name = state)"
_SELECT = f"SELECT {', '.join(BreakerRow._fields)}, {_KNOWN} FROM breakers"
_ENTRY = f"SELECT {', '.join(shapes.BREAKER_JOURNAL.columns)} FROM breaker_journal"
_COLUMNS = (*BreakerRow._fields, "event", "at", "actor", "reason", "machine")
_VALUES = ", ".join(f":{name}" for name in _COLUMNS)
_INSERT = f"INSERT INTO breakers ({', '.join(_COLUMNS)}) VALUES ({_VALUES})"
_ASSIGNED = ", ".join(f"{name} = :{name}" for name in _COLUMNS if name != "key")
_UPDATE = f"UPDATE breakers SET {_ASSIGNED} WHERE key = :key AND version = :expected"


class Breakers:
    """A row per breaker, and the newest lines of each breaker's journal."""

    def __init__(self, database: Database, machines: Machines) -> None:
        self._database = database
        self._machines = machines

    def load(self, key: str) -> BreakerRow | None:
        """Return a breaker's row."""
        rows = self._database.rows(f"{_SELECT} WHERE key = ?", (key,))
        return shapes.breaker(rows[0]) if rows else None

    def swap(self, machine: str, expected: int, row: BreakerRow, entry: BreakerEntry | None) -> bool:
        """Write a row if its version is as expected."""
        database = self._database
        values = row._asdict() | {
            "probes": json.dumps(row.probes, separators=(",", ":")) if row.probes else None,
            "event": entry and entry.event,
            "at": entry.at if entry else row.changed_at,
            "actor": entry and entry.by,
            "reason": entry and entry.why,
            "machine": self._machines.number(machine),
            "expected": expected,
        }

        def swap(connection: sqlite3.Connection) -> int:
            database.file.check(connection)
            # One statement is one transaction, its triggers included.
            written = patiently(
                lambda: connection.execute(_UPDATE if expected else _INSERT, values).rowcount,
                str(database.path),
                SWAP_LIMIT_S,
            )
            database.acknowledge(connection)
            return written

        try:
            return database.pool.read(swap) == 1
        except sqlite3.IntegrityError:
            if not expected and database.rows("SELECT 1 FROM breakers WHERE key = ?", (row.key,)):
                return False
            raise  # the table refused it: a mistake here, not a store that is down
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise explain(error, database.path) from error

    def all(self) -> list[BreakerRow]:
        """Return every row, by key."""
        return self._database.pages.all(f"{_SELECT} ORDER BY key", (), shapes.breaker)

    def changes(self, after: int, limit: int, key: str | None, before: int | None) -> list[BreakerEntry]:
        """Return lines of the journal between two positions: the first of them, or the last before `before`."""
        asked: dict[str, Any] = {"position > ?": after, "position < ?": before, "key = ?": key}
        where = {term: value for term, value in asked.items() if value is not None}
        direction = "" if before is None else " DESC"
        sql = f"{_ENTRY} WHERE {' AND '.join(where)} ORDER BY position{direction}"
        entries = self._database.pages.page(sql, tuple(where.values()), limit, shapes.breaker_entry)
        return entries if before is None else entries[::-1]

    def position(self) -> int:
        """Return the journal's last position."""
        sql = "SELECT coalesce(max(position), 0) FROM breaker_journal"
        position: int = self._database.rows(sql)[0][0]
        return position
