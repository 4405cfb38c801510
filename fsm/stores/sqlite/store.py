"""Executions in one SQLite file.

One connection writes, under a lock; a few more read. A transition is one UPDATE: its WHERE is the compare-and-set on
the version, and triggers check it against the table and write the journal (`0002_law.sql`), so there is no way to
write one without the other.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from fsm.core.records import CANCEL_CHILDREN, MachineRecord, Receipt, Snapshot, Step, receipt_of
from fsm.core.timeline import Era, Known, Mark
from fsm.errors import DamagedRecord
from fsm.stores.base import MAX_ERAS, Barred, Beat, Conflict, Damage, Due, Order, Query, WorkerRow
from fsm.stores.breakers import BreakerEntry, BreakerRow
from fsm.stores.sqlite import rows as shapes
from fsm.stores.sqlite.breakers import Breakers
from fsm.stores.sqlite.damage import LIMIT
from fsm.stores.sqlite.database import Database
from fsm.stores.sqlite.inspection import inspect
from fsm.stores.sqlite.machines import Machines
from fsm.stores.sqlite.rows import BORN, LIVED, is_object
from fsm.stores.sqlite.workers import Workers

_LAST = ("event", "key", "payload", "position")
_INSERTED = (*BORN, *LIVED, *_LAST, "born")
_INSERT = f"INSERT INTO executions ({', '.join(_INSERTED)}) VALUES ({', '.join('?' * len(_INSERTED))})"


def _update(columns: Sequence[str]) -> str:
    assigned = ", ".join(f"{name} = ?" for name in (*columns, *_LAST))
    return f"UPDATE executions SET {assigned} WHERE id = ? AND version = ?"


# What most transitions change is written alone: SQLite writes to the index of every column that is named.
_STAYED = ("version", "updated_at", "due_at", "due_kind", "model_attempt")
_PLACE_OF = ("state", "entered_at", "since_at")
_SELDOM = tuple(field for field in Snapshot._fields if field not in {"identity", *_STAYED, *_PLACE_OF})
_UPDATE, _UPDATE_USUAL, _UPDATE_STAYED = _update(tuple(LIVED)), _update(_STAYED + _PLACE_OF), _update(_STAYED)
_usual, _stayed = attrgetter(*_STAYED, *_PLACE_OF), attrgetter(*_STAYED)
_place_of, _seldom = attrgetter(*_PLACE_OF), attrgetter(*_SELDOM)

_COLUMNS = f"{', '.join(BORN | LIVED)}, {is_object('metadata')} AND {is_object('ending')}"
_SELECT = f"SELECT {_COLUMNS} FROM executions"
_PAGED = f"SELECT {_COLUMNS}, born FROM executions"
_ENTRY = f"{', '.join(shapes.ENTRY)}, {is_object('payload')}"
_RECEIPT = f"SELECT {_ENTRY} FROM journal"
_ORDER = (
    "INSERT OR REPLACE INTO orders (execution_id, version, event) "
    "SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM executions WHERE parent_id = ?1)"
)
_POSITION = "SELECT max((SELECT coalesce(max(position), 0) FROM journal), (SELECT position FROM horizon))"
_HISTORY = f"""
    WITH RECURSIVE chain (position) AS (
        SELECT position FROM executions WHERE id = :id
        UNION ALL
        -- Below its own position: a damaged link must not lead round in a circle.
        SELECT previous FROM journal JOIN chain USING (position) WHERE previous > :after AND previous < position
    )
    SELECT {_ENTRY}
    FROM chain JOIN journal USING (position) WHERE position > :after ORDER BY position LIMIT :limit
"""
_BY_KEY = "SELECT id FROM executions WHERE user_id = ? AND born_key = ?"
# Where a page goes on: after an execution that is there, that was deleted, or that is not remembered.
_PLACE = """
    SELECT coalesce(
        (SELECT born FROM executions WHERE id = :id),
        (SELECT born FROM places WHERE id = :id),
        (SELECT born FROM executions WHERE id < :id ORDER BY id DESC LIMIT 1),
        0
    )
"""
_FILTERS = ("thread_id", "parent_id", "user_id", "agent")
# Why a trigger kept a step out: SQLite's code is the same for every trigger, so the file is asked. (The texts of the
# law are for people.)
_WHY_NOT_BORN = """
    SELECT CASE
        WHEN EXISTS (SELECT 1 FROM executions WHERE user_id = :user_id AND born_key = :key) THEN 'key'
        WHEN EXISTS (SELECT 1 FROM executions WHERE id = :id)
            OR EXISTS (SELECT 1 FROM tombstones WHERE id = :id)
            OR EXISTS (SELECT 1 FROM bygone WHERE :id BETWEEN first AND last) THEN 'race'
        WHEN :parent_id IS NOT NULL AND NOT EXISTS (
            SELECT 1 FROM executions JOIN states ON states.machine = executions.machine AND states.name = state
            WHERE id = :parent_id AND NOT terminal AND NOT stopping
        ) THEN 'parent'
    END
"""
_WHY_NOT_MOVED = """
    SELECT CASE
        WHEN EXISTS (SELECT 1 FROM journal WHERE execution_id = :id AND key = :key)
            OR EXISTS (
                SELECT 1 FROM executions JOIN states ON states.machine = executions.machine AND states.name = state
                WHERE id = :id AND terminal
            ) THEN 'race'
        WHEN :owner IS NOT (SELECT owner FROM executions WHERE id = :id) AND (
            EXISTS (SELECT 1 FROM workers WHERE id = :owner AND lost)
            OR EXISTS (SELECT 1 FROM departed WHERE id = :owner)
        ) THEN 'lease'
    END
"""
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
_HORIZON = """
    UPDATE horizon SET position = max(position, (SELECT coalesce(max(position), 0) FROM journal))
"""
_ERA = f"SELECT {', '.join(Era._fields)} FROM eras WHERE era = ?"
# The last commit tells when its execution entered its state, on both clocks.
_LATEST = """
    SELECT since_at, entered_at FROM executions
    WHERE id = (SELECT execution_id FROM journal ORDER BY position DESC LIMIT 1)
        AND since_at BETWEEN 1e-9 AND 1e12 AND entered_at BETWEEN -1e12 AND 1e12
"""
_RENEWED = "SELECT renewed_at FROM workers WHERE renewed_at BETWEEN -1e12 AND 1e12"
MAX_MERGED = 50
"""Maximum number of states that are looked up one by one; SQLite joins no more than 500 queries into one."""


class SqliteStore:
    """A registry in one file, shared by every process of this machine that opens it.

    A receipt is returned when its commit is in the file that bears the store's name at that moment; see
    `fsm.stores.sqlite.identity` for what is noticed when files are deleted, moved or replaced, and when.

    Attributes:
        database: The file and the connections to it.
    """

    instant = False

    def __init__(self, url: str) -> None:
        """Open the file, creating or migrating its schema.

        Args:
            url: ``sqlite:///FILE``, with ``?synchronous=NORMAL`` for speed instead of safety at power loss.

        Raises:
            NotAStore: The URL or the file is not one of ours.
            StoreTooNew: A newer version of the library wrote the file.
            StoreUnavailable: The file cannot be opened or written.
        """
        self.url = url
        self.database = database = Database(url)
        self._rows, self._pages = database.rows, database.pages
        self._machines = Machines(database)
        self._workers = Workers(database)
        self._breakers = Breakers(database, self._machines)

    def identity(self) -> str:
        """Return what tells this store from another one under the same name, for people."""
        return self.database.file.shown()

    def schema_version(self) -> int:
        """Return the version that the file's own migrations have brought it to."""
        version: int = self._rows("PRAGMA user_version")[0][0]
        return version

    def close(self) -> None:
        """Close every connection; the last one folds the write-ahead log into the file."""
        self.database.pool.close()

    def register(self, record: MachineRecord) -> None:
        """Write a machine's rows as law, unless they are there."""
        self._machines.register(record)

    def machines(self) -> dict[str, str]:
        """Return every registered machine."""
        return self._machines.documents()

    def machine_count(self) -> int:
        """Return how many machines are registered."""
        count: int = self._rows("SELECT count(*) FROM machines")[0][0]
        return count

    # --- write ------------------------------------------------------------------------------------------------

    def append(self, steps: Sequence[Step]) -> list[Receipt | Conflict | Barred]:
        """Commit a batch in one transaction."""
        births = {step.after.identity.machine for step in steps if step.source is None}
        numbers = {content_hash: self._machines.number(content_hash) for content_hash in births}

        def write(writer: sqlite3.Connection) -> tuple[list[Receipt | Conflict | Barred], int]:
            outcomes: list[Receipt | Conflict | Barred] = []
            position = self._last(writer) + 1
            lost: dict[str, Conflict] = {}
            for step in steps:
                kept_out = lost.get(step.after.identity.id) or self._one(writer, step, position, numbers)
                if kept_out is None:
                    outcomes.append(receipt_of(step, position))
                    position += 1
                    continue
                if isinstance(kept_out, Conflict):
                    lost[kept_out.execution_id] = kept_out
                outcomes.append(kept_out)
            return outcomes, position - 1

        outcomes, last = self.database.write(write)
        self.database.file.seen(last)
        return outcomes

    def _last(self, writer: sqlite3.Connection) -> int:
        position = shapes.position(writer.execute(_POSITION).fetchone()[0])
        self.database.file.seen(position)
        return position

    def _one(
        self, writer: sqlite3.Connection, step: Step, position: int, numbers: dict[str, int | None]
    ) -> Conflict | Barred | None:
        after = step.after
        identity = after.identity
        last = (step.event, step.key, step.payload_json, position)
        try:
            if step.source is None:
                born = identity._asdict() | {"machine": numbers[identity.machine]}
                writer.execute(_INSERT, (*born.values(), *_lived(after), *last, position))
                return None
            sql, values = _changed(step.before, after)
            if writer.execute(sql, (*values, *last, identity.id, after.version - 1)).rowcount:
                if step.effects and CANCEL_CHILDREN in step.effects:
                    writer.execute(_ORDER, (identity.id, after.version, step.event))
                return None
        except sqlite3.IntegrityError as error:
            barred = _barred(writer, step, error)
            if barred is not None:
                return barred
        except (sqlite3.DataError, OverflowError, UnicodeEncodeError) as error:
            return Barred(identity.id, "law", f"{type(error).__name__}: {error}")
        found = writer.execute("SELECT version FROM executions WHERE id = ?", (identity.id,)).fetchone()
        return Conflict(identity.id, found[0] if found else None)

    # --- read -------------------------------------------------------------------------------------------------

    def load(self, execution_id: str) -> Snapshot | None:
        """Return an execution's record."""
        rows = self._rows(f"{_SELECT} WHERE id = ?", (execution_id,))
        return self._snapshot(rows[0]) if rows else None

    def keyed(self, execution_id: str, key: str) -> Receipt | None:
        """Return the receipt of an idempotency key."""
        rows = self._rows(f"{_RECEIPT} WHERE execution_id = ? AND key = ?", (execution_id, key))
        return shapes.receipt(rows[0]) if rows else None

    def history(self, execution_id: str) -> list[Receipt]:
        """Return an execution's journal."""
        return self._history(execution_id, -1, -1)

    def _history(self, execution_id: str, after: int, limit: int) -> list[Receipt]:
        rows = self._rows(_HISTORY, {"id": execution_id, "after": after, "limit": limit})
        receipts = [shapes.receipt(row) for row in rows]
        shapes.chained(execution_id, receipts, whole=after < 0)
        if (
            not receipts
            and after < 0
            and self._rows("SELECT 1 FROM executions WHERE id = ?", (execution_id,))
        ):
            raise DamagedRecord("executions", shapes.shown(execution_id), "position", "leads to no journal")
        return receipts

    def journal(
        self, after: int, limit: int, execution_id: str | None = None, user_id: str | None = None
    ) -> list[Receipt]:
        """Return the registry's journal after a position."""
        if execution_id is not None:
            if user_id is not None and not self._rows(
                "SELECT 1 FROM executions WHERE id = ? AND user_id = ?", (execution_id, user_id)
            ):
                return []
            return self._history(execution_id, after, limit)
        where = "position > ?"
        values: list[Any] = [after]
        if user_id is not None:
            where += " AND (SELECT user_id FROM executions WHERE id = execution_id) = ?"
            values.append(user_id)
        return self._pages.page(f"{_RECEIPT} WHERE {where} ORDER BY position", values, limit, shapes.receipt)

    def position(self) -> int:
        """Return the journal's last position."""
        return shapes.position(self._rows(_POSITION)[0][0])

    def find(self, query: Query) -> list[Snapshot]:
        """Return the executions that fit: by the state's index alone state for state, else by the narrower one."""
        where: list[str] = []
        values: list[Any] = []
        for name in _FILTERS:
            value = getattr(query, name)
            if value is not None:
                where.append(f"{name} = ?")
                values.append(value)
        if query.after is not None:
            where.append("(born, id) > (?, ?)")
            values += [self._rows(_PLACE, {"id": query.after})[0][0], query.after]
        states = None if query.states is None else sorted(query.states)
        if states is not None and not states:
            return []
        if states is not None and len(states) > MAX_MERGED:
            where.append("state IN (SELECT value FROM json_each(?))")
            values.append(json.dumps(states))
            states = None
        elif states is not None and (len(states) == 1 or len(where) > (query.after is not None)):
            where.append(f"state IN ({', '.join('?' * len(states))})")
            values += states
            states = None
        if states is None:
            condition = f" WHERE {' AND '.join(where)}" if where else ""
            return self._pages.page(
                f"{_SELECT}{condition} ORDER BY born, id", values, query.limit, self._snapshot
            )
        # One sorted stretch of the index per state, then merged: what does not fit is never looked at.
        inner = f"{_PAGED} WHERE {' AND '.join([*where, 'state = ?'])} ORDER BY born, id LIMIT {LIMIT}"
        sql = " UNION ALL ".join([f"SELECT * FROM ({inner})"] * len(states))
        each = [value for state in states for value in (*values, state)]
        return self._pages.page(
            f"{sql} ORDER BY born, id", each, query.limit, lambda row: self._snapshot(row[:-1])
        )

    def born(self, user_id: str, key: str) -> str | None:
        """Return the execution that was created with a key."""
        rows = self._rows(_BY_KEY, (user_id, key))
        return rows[0][0] if rows else None

    def counts(self, user_id: str | None = None) -> dict[str, int]:
        """Return how many executions there are by state."""
        where, values = ("", ()) if user_id is None else (" WHERE user_id = ?", (user_id,))
        sql = f"SELECT state, count(*) FROM executions{where} GROUP BY state"
        return dict(self._pages.all(sql, values, shapes.COUNTS.check))

    def _snapshot(self, row: tuple[Any, ...]) -> Snapshot:
        known = self._machines.known
        if shapes.number_of(row) not in known:
            self._machines.learn()  # another process registered it
        return shapes.snapshot(row, known)

    # --- orders -----------------------------------------------------------------------------------------------

    def orders(self, after: str, limit: int) -> list[Order]:
        """Return orders that are not known to be carried out, from a table that is nearly always empty."""
        sql = "SELECT execution_id, version, event FROM orders WHERE execution_id > ? ORDER BY execution_id"
        return self._pages.page(sql, (after,), limit, shapes.order)

    def carried(self, order: Order) -> None:
        """Take note that an order is carried out; nothing is written when there is none, as after most ends."""
        this = "FROM orders WHERE execution_id = ? AND version = ?"
        if self._rows(f"SELECT 1 {this}", order[:2]):
            self.database.write(lambda writer: writer.execute(f"DELETE {this}", order[:2]))

    # --- time -------------------------------------------------------------------------------------------------

    def timeline(self, era: str) -> Known:
        """Return what is known of an era, and where the timeline was last seen if it is new."""
        rows = self._rows(_ERA, (era,))
        if rows:
            return Known(shapes.era(rows[0]), None, None)
        marks = [shapes.mark(row) for row in self._rows("SELECT steady_at, wall_at, monotonic_s FROM mark")]
        marks += [Mark(*shapes.LAST.check(row)) for row in self._rows(_LATEST)]
        # A process that is an era of its own needs the monotonic clock's reading, which commits do not tell.
        mark = max(marks[:1] if not era else marks, key=lambda one: one.steady_at, default=None)
        instants = [one.steady_at for one in marks]
        instants += [row[0] for row in self._rows(_RENEWED)]
        return Known(None, mark, max(instants, default=None))

    def timeline_set(self, era: str, before: Era | None, after: Era) -> Era:
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

        return self.database.write(write)

    def timeline_mark(self, mark: Mark) -> None:
        """Keep a mark."""
        self.database.write(
            lambda writer: writer.execute(
                "INSERT INTO mark (id, steady_at, wall_at, monotonic_s) VALUES (1, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET steady_at = excluded.steady_at, wall_at = excluded.wall_at, "
                "monotonic_s = excluded.monotonic_s WHERE excluded.steady_at > mark.steady_at",
                mark,
            )
        )

    def due(self, now: float, limit: int, after: tuple[float, str] | None = None) -> list[Due]:
        """Return executions whose deadline has passed, from the index of deadlines alone."""
        place, values = ("", ()) if after is None else (" AND (due_at, id) > (?, ?)", after)
        sql = (
            "SELECT id, version, due_at, due_kind FROM executions "
            f"WHERE due_at IS NOT NULL AND due_at <= ?{place} ORDER BY due_at, id"
        )
        return self._pages.page(sql, (now, *values), limit, shapes.due)

    def next_due(self, after: float = float("-inf")) -> float | None:
        """Return the nearest deadline after an instant."""
        sql = "SELECT min(due_at) FROM executions WHERE due_at IS NOT NULL AND due_at > ?"
        due_at = self._rows(sql, (after,))[0][0]
        return float(due_at) if isinstance(due_at, (int, float)) else None  # text sorts after every number

    # --- workers ----------------------------------------------------------------------------------------------

    def worker_add(self, worker: WorkerRow) -> None:
        """Register a worker."""
        self._workers.add(worker)

    def worker_renew(self, worker_id: str, now: Callable[[], float]) -> bool:
        """Renew a lease."""
        return self._workers.renew(worker_id, now)

    def worker_remove(self, worker_id: str) -> None:
        """Forget a worker."""
        self._workers.remove(worker_id)

    def workers(self) -> list[WorkerRow]:
        """Return every registered worker."""
        return self._workers.rows()

    def lose(self, now: float, *, spare: bool = False) -> list[str]:
        """Mark the workers whose lease ran out, and return all that are lost."""
        return self._workers.lose(now, spare=spare)

    def beat(self, beats: Sequence[Beat]) -> None:
        """Keep reports of loops."""
        self._workers.beat(beats)

    def beats(self) -> list[Beat]:
        """Return the reports of loops that are kept."""
        return self._workers.beats()

    def owned(self, worker_id: str, limit: int, after: str = "") -> list[tuple[str, int]]:
        """Return what a worker owns and has not ended."""
        sql = f"SELECT id, version FROM executions WHERE owner = ? AND id > ? AND NOT {_TERMINAL} ORDER BY id"
        return self._pages.page(sql, (worker_id, after), limit, shapes.owned)

    # --- retention --------------------------------------------------------------------------------------------

    def ended(self, before_at: float, limit: int) -> list[str]:
        """Return executions that ended before an instant."""
        sql = f"SELECT id FROM executions WHERE due_at IS NULL AND {_END} < ? AND {_TERMINAL} ORDER BY {_END}, id"
        return self._pages.page(sql, (before_at,), limit, shapes.ended)

    def ended_count(self) -> int:
        """Return how many ended executions are kept."""
        count: int = self._rows(_ENDED)[0][0]
        return count

    def forget(self, execution_ids: Sequence[str], keep: int = 0) -> int:
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

        return self.database.write(write)

    # --- breakers ---------------------------------------------------------------------------------------------

    def breaker_load(self, key: str) -> BreakerRow | None:
        """Return a breaker's row."""
        return self._breakers.load(key)

    def breaker_swap(
        self, machine: str, expected_version: int, row: BreakerRow, entry: BreakerEntry | None
    ) -> bool:
        """Write a row if its version is as expected."""
        return self._breakers.swap(machine, expected_version, row, entry)

    def breaker_list(self) -> list[BreakerRow]:
        """Return every row, by key."""
        return self._breakers.all()

    def breaker_changes(
        self, after: int, limit: int, key: str | None = None, before: int | None = None
    ) -> list[BreakerEntry]:
        """Return lines of the journal between two positions: the first of them, or the last before `before`."""
        return self._breakers.changes(after, limit, key, before)

    def breaker_position(self) -> int:
        """Return the journal's last position."""
        return self._breakers.position()

    # --- damage -----------------------------------------------------------------------------------------------

    def damaged(self) -> list[Damage]:
        """Return what pages have left out in this process."""
        self._rows("SELECT 1")  # a store that is closed, or gone, says so
        return self._pages.damaged()

    def inspect(self) -> list[Damage]:
        """Look through the file: SQLite's own checks, the schema, and what no single record shows."""
        return inspect(self._rows)


def _lived(after: Snapshot) -> list[Any]:
    """Return the values of the columns `LIVED`."""
    values = after._asdict()
    del values["identity"]
    values["tools"] = json.dumps(after.tools, separators=(",", ":")) if after.tools else None
    return list(values.values())


def _changed(before: Snapshot | None, after: Snapshot) -> tuple[str, Sequence[Any]]:
    """Return the statement that writes what changed, and the values of its columns."""
    if before is None or _seldom(before) != _seldom(after):
        return _UPDATE, _lived(after)
    if _place_of(before) == _place_of(after):
        return _UPDATE_STAYED, _stayed(after)
    return _UPDATE_USUAL, _usual(after)


def _barred(writer: sqlite3.Connection, step: Step, error: sqlite3.IntegrityError) -> Barred | None:
    """Return what the law kept out; ``None`` if another writer was faster: with the key, the id or an end."""
    after, identity = step.after, step.after.identity
    why = None
    if error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_TRIGGER:
        sql, key = (_WHY_NOT_BORN, identity.key) if step.source is None else (_WHY_NOT_MOVED, step.key)
        asked = {"id": identity.id, "user_id": identity.user_id, "parent_id": identity.parent_id}
        why = writer.execute(sql, asked | {"key": key, "owner": after.owner}).fetchone()[0]
    if why == "race":
        return None
    if why == "key":
        return Barred(
            identity.id, "key", writer.execute(_BY_KEY, (identity.user_id, identity.key)).fetchone()[0]
        )
    if why == "parent":
        return Barred(identity.id, "parent", identity.parent_id or "")
    if why == "lease":
        return Barred(identity.id, "lease", after.owner or "")
    return Barred(identity.id, "law", str(error))
