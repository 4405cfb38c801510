"""Executions in one SQLite file.

One connection writes, under a lock; a few more read. A transition is one UPDATE: its WHERE is the compare-and-set on
the version, and triggers check it against the table and write the journal (`0002_law.sql`), so there is no way to
write one without the other.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from fsm.errors import StoreUnavailable
from fsm.records import CANCEL_CHILDREN, Identity, Receipt, Snapshot, Step, receipt_of
from fsm.stores.base import Barred, Conflict, MachineRecord, Query
from fsm.stores.sqlite.breakers import SqliteBreakers
from fsm.stores.sqlite.connect import explain, parse_url, patiently, prepare
from fsm.stores.sqlite.pool import Pool
from fsm.stores.sqlite.upkeep import Upkeep

_BORN = (
    "id", "machine", "agent", "user_id", "thread_id", "parent_id", "retry_of", "created_at", "attempts_max",
    "model_attempts_max", "metadata", "timeouts", "born_at", "backoff_s", "backoff_cap_s",
)  # fmt: skip
_LIVED = (
    "state", "version", "entered_at", "updated_at", "due_at", "due_kind", "attempt", "owner", "fence", "tools",
    "model_attempt", "not_before", "breaker", "limit_s", "ending", "since_at",
)  # fmt: skip
_LAST = ("event", "key", "payload", "position")

_INSERT = (
    f"INSERT INTO executions ({', '.join(_BORN + _LIVED + _LAST)}) "
    f"VALUES ({', '.join('?' * len(_BORN + _LIVED + _LAST))})"
)


def _update(columns: Sequence[str]) -> str:
    assigned = ", ".join(f"{name} = ?" for name in (*columns, *_LAST))
    return f"UPDATE executions SET {assigned} WHERE id = ? AND version = ?"


# What most transitions change is written alone: SQLite writes to the index of every column that is named.
_UPDATE = _update(_LIVED)
_UPDATE_USUAL = _update(
    ("version", "updated_at", "due_at", "due_kind", "model_attempt", "state", "entered_at", "since_at")
)
_UPDATE_STAYED = _update(("version", "updated_at", "due_at", "due_kind", "model_attempt"))

_SELECT = f"SELECT {', '.join(_BORN + _LIVED)} FROM executions"
_RECEIPT = (
    "SELECT position, execution_id, version, event, source, target, at, attempt, fence, owner, key, payload "
    "FROM journal"
)
_ORDER = (
    "INSERT OR REPLACE INTO orders (execution_id, version, event) "
    "SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM executions WHERE parent_id = ?1)"
)
_POSITION = "SELECT max((SELECT coalesce(max(position), 0) FROM journal), (SELECT position FROM horizon))"
_HISTORY = """
    WITH RECURSIVE chain (position) AS (
        SELECT position FROM executions WHERE id = :id
        UNION ALL
        SELECT previous FROM journal JOIN chain USING (position) WHERE previous > :after
    )
    SELECT position, execution_id, version, event, source, target, at, attempt, fence, owner, key, payload
    FROM chain JOIN journal USING (position) WHERE position > :after ORDER BY position LIMIT :limit
"""
_FILTERS = ("thread_id", "parent_id", "user_id", "agent")


MAX_STRETCHES = 100
"""Maximum number of states whose stretches of the index are merged in one question; SQLite takes 500."""


class SqliteStore(Upkeep, SqliteBreakers):
    """A registry in one file, shared by every process of this machine that opens it."""

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
        path, synchronous = parse_url(url)
        self._path = path.absolute()  # a process that changes its folder keeps its store
        self._pool = Pool(self._path, synchronous, prepare(self._path, synchronous))
        self._machines: dict[str, int] = {}
        self._hashes: dict[int, str] = {}

    # --- connections ------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Write in one transaction: all of it or nothing."""
        where = str(self._path)
        with self._pool.writing:
            ending = False
            writer: sqlite3.Connection | None = None
            try:
                writer = self._pool.writer()
                patiently(partial(writer.execute, "BEGIN IMMEDIATE"), where)
                yield writer
                ending = True
                patiently(partial(writer.execute, "COMMIT"), where)
            except BaseException as error:
                undone = writer is None or _roll_back(writer) or not ending
                if writer is not None and writer.in_transaction:
                    self._pool.discard_writer()
                if isinstance(error, sqlite3.Error):
                    error_ = explain(error, self._path)
                    if isinstance(error_, StoreUnavailable) and not undone:
                        error_.committed = None
                    raise error_ from error
                raise

    def _rows(self, sql: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._pool.read(lambda reader: reader.execute(sql, values).fetchall())
        except UnicodeEncodeError:
            return []  # a text that no encoding knows is in no file
        except sqlite3.Error as error:
            raise explain(error, self._path) from error

    def close(self) -> None:
        """Close every connection; the last one folds the write-ahead log into the file."""
        self._pool.close()

    # --- machines ---------------------------------------------------------------------------------------------

    def register(self, record: MachineRecord) -> None:
        """Write a machine's rows as law, unless they are there."""
        if record.content_hash in self._machines or self._number(record.content_hash) is not None:
            return
        with self._transaction() as writer:
            known = "SELECT 1 FROM machines WHERE content_hash = ?"
            if writer.execute(known, (record.content_hash,)).fetchone():
                return  # another process was faster
            number = writer.execute(
                "INSERT INTO machines (content_hash, name, document) VALUES (?, ?, ?)",
                (record.content_hash, record.name, record.document),
            ).lastrowid
            writer.executemany(
                "INSERT INTO states (machine, name, terminal, stopping) VALUES (?, ?, ?, ?)",
                [(number, *state) for state in record.states],
            )
            writer.executemany(
                "INSERT INTO law (machine, source, event, target) VALUES (?, ?, ?, ?)",
                [(number, source or "", event, target) for source, event, target in record.rows],
            )
            writer.execute("UPDATE machines SET sealed = 1 WHERE id = ?", (number,))

    def _number(self, content_hash: str) -> int | None:
        number = self._machines.get(content_hash)
        if number is None:
            for number_, hash_ in self._rows("SELECT id, content_hash FROM machines"):
                self._machines[hash_] = number_
                self._hashes[number_] = hash_
            number = self._machines.get(content_hash)
        return number

    def machines(self) -> dict[str, str]:
        """Return every registered machine."""
        return dict(self._rows("SELECT content_hash, document FROM machines"))

    # --- write ------------------------------------------------------------------------------------------------

    def append(self, steps: Sequence[Step]) -> list[Receipt | Conflict | Barred]:
        """Commit a batch in one transaction."""
        births = {step.after.identity.machine for step in steps if step.source is None}
        numbers = {content_hash: self._number(content_hash) for content_hash in births}
        outcomes: list[Receipt | Conflict | Barred] = []
        with self._transaction() as writer:
            position = writer.execute(_POSITION).fetchone()[0] + 1
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
        return outcomes

    def _one(
        self, writer: sqlite3.Connection, step: Step, position: int, numbers: dict[str, int | None]
    ) -> Conflict | Barred | None:
        after = step.after
        identity = after.identity
        last = (step.event, step.key, step.payload_json, position)
        try:
            if step.source is None:
                born = (identity.id, numbers[identity.machine], *identity[2:])
                writer.execute(_INSERT, (*born, *_lived(after), *last))
                return None
            sql, values = _changed(step.before, after)
            if writer.execute(sql, (*values, *last, identity.id, after.version - 1)).rowcount:
                if step.effects and CANCEL_CHILDREN in step.effects:
                    writer.execute(_ORDER, (identity.id, after.version, step.event))
                return None
        except sqlite3.IntegrityError as error:
            if "starts no children" in str(error):
                return Barred(identity.id, "parent", identity.parent_id or "")
            if "claims nothing" in str(error):
                return Barred(identity.id, "lease", after.owner or "")
            if not _is_race(error):
                raise
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
        return Receipt(*rows[0]) if rows else None

    def history(self, execution_id: str) -> list[Receipt]:
        """Return an execution's journal."""
        rows = self._rows(_HISTORY, {"id": execution_id, "after": -1, "limit": -1})
        return [Receipt(*row) for row in rows]

    def journal(
        self, after: int, limit: int, execution_id: str | None = None, user_id: str | None = None
    ) -> list[Receipt]:
        """Return the registry's journal after a position."""
        whose = "(SELECT user_id FROM executions WHERE id = execution_id) = ?"
        if execution_id is not None:
            if user_id is not None and not self._rows(
                "SELECT 1 FROM executions WHERE id = ? AND user_id = ?", (execution_id, user_id)
            ):
                return []
            rows = self._rows(_HISTORY, {"id": execution_id, "after": after, "limit": limit})
        elif user_id is not None:
            rows = self._rows(
                f"{_RECEIPT} WHERE position > ? AND {whose} ORDER BY position LIMIT ?",
                (after, user_id, limit),
            )
        else:
            rows = self._rows(f"{_RECEIPT} WHERE position > ? ORDER BY position LIMIT ?", (after, limit))
        return [Receipt(*row) for row in rows]

    def position(self) -> int:
        """Return the journal's last position."""
        position: int = self._rows(_POSITION)[0][0]
        return position

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
            where.append("id > ?")
            values.append(query.after)
        states = None if query.states is None else sorted(query.states)
        if states is not None and not states:
            return []
        if states is not None and (len(where) > (query.after is not None) or len(states) > MAX_STRETCHES):
            where.append(f"state IN ({', '.join('?' * len(states))})")
            values += states
            states = None
        if states is None:
            condition = f" WHERE {' AND '.join(where)}" if where else ""
            rows = self._rows(f"{_SELECT}{condition} ORDER BY id LIMIT ?", (*values, query.limit))
        else:
            # One sorted stretch of the index per state, then merged: what does not fit is never looked at.
            part = (
                f"SELECT * FROM ({_SELECT} WHERE {' AND '.join([*where, 'state = ?'])} ORDER BY id LIMIT ?)"
            )
            sql = " UNION ALL ".join([part] * len(states))
            each = [value for state in states for value in (*values, state, query.limit)]
            rows = self._rows(f"{sql} ORDER BY id LIMIT ?", (*each, query.limit))
        return [self._snapshot(row) for row in rows]

    def counts(self, user_id: str | None = None) -> dict[str, int]:
        """Return how many executions there are by state."""
        where, values = ("", ()) if user_id is None else (" WHERE user_id = ?", (user_id,))
        return dict(self._rows(f"SELECT state, count(*) FROM executions{where} GROUP BY state", values))

    def _snapshot(self, row: tuple[Any, ...]) -> Snapshot:
        number = row[1]
        if number not in self._hashes:
            self._number("")  # another process registered it
        identity = Identity(row[0], self._hashes[number], *row[2 : len(_BORN)])
        lived = list(row[len(_BORN) :])
        tools = lived[9]
        lived[9] = tuple((name, call_id) for name, call_id in json.loads(tools)) if tools else ()
        return Snapshot(identity, *lived)


def _roll_back(writer: sqlite3.Connection) -> bool:
    """Return whether it is certain that nothing was committed."""
    if not writer.in_transaction:
        return False
    with suppress(sqlite3.Error):
        writer.execute("ROLLBACK")
    return not writer.in_transaction


def _lived(after: Snapshot) -> tuple[Any, ...]:
    tools = json.dumps(after.tools, separators=(",", ":")) if after.tools else None
    return (*after[1:10], tools, *after[11:])


def _changed(before: Snapshot | None, after: Snapshot) -> tuple[str, tuple[Any, ...]]:
    """Return the statement that writes what changed, and the values of its columns."""
    # What changes seldom: attempt, owner, fence and tools, then the waits, the breaker and the ending.
    if before is None or before[7:11] != after[7:11] or before[12:16] != after[12:16]:
        return _UPDATE, _lived(after)
    usual = (after.version, after.updated_at, after.due_at, after.due_kind, after.model_attempt)
    if (
        before.state == after.state
        and before.entered_at == after.entered_at
        and before.since_at == after.since_at
    ):
        return _UPDATE_STAYED, usual
    return _UPDATE_USUAL, (*usual, after.state, after.entered_at, after.since_at)


def _is_race(error: sqlite3.IntegrityError) -> bool:
    """Whether somebody else was faster: with the key, with the id, or with an end."""
    said = str(error)
    return "key is in the journal" in said or "exists already" in said or "terminal state is final" in said
