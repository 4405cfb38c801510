"""Executions in one SQLite file.

One connection writes, under a lock; a few more read. A transition is one UPDATE: its WHERE is the compare-and-set on
the version, and triggers check it against the table and write the journal (`0002_law.sql`), so there is no way to
write one without the other.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from fsm.errors import StoreUnavailable
from fsm.records import Identity, Receipt, Snapshot, Step, receipt_of
from fsm.stores.base import Conflict, MachineRecord, Query
from fsm.stores.sqlite.connect import connect, explain, parse_url, patiently, prepare
from fsm.stores.sqlite.upkeep import Upkeep

T = TypeVar("T")

MAX_READERS = 8
"""So many idle connections for reading are kept."""

_BORN = (
    "id", "machine", "agent", "user_id", "thread_id", "parent_id", "retry_of", "created_at", "attempts_max",
    "model_attempts_max", "metadata", "timeouts", "born_at", "backoff_s", "backoff_cap_s",
)  # fmt: skip
_LIVED = (
    "state", "version", "entered_at", "updated_at", "due_at", "due_kind", "attempt", "owner", "fence", "tools",
    "model_attempt", "not_before", "breaker", "limit_s", "ending", "since_at",
)  # fmt: skip
_LAST = ("event", "key", "payload")

_INSERT = (
    f"INSERT INTO executions ({', '.join(_BORN + _LIVED + _LAST)}) "
    f"VALUES ({', '.join('?' * len(_BORN + _LIVED + _LAST))})"
)
_UPDATE = (
    f"UPDATE executions SET {', '.join(f'{name} = ?' for name in _LIVED + _LAST)} "
    "WHERE id = ? AND version = ?"
)
_SELECT = f"SELECT {', '.join(_BORN + _LIVED)} FROM executions"
_RECEIPT = (
    "SELECT position, execution_id, version, event, source, target, at, attempt, fence, owner, key, payload "
    "FROM journal"
)
_FILTERS = ("thread_id", "parent_id", "user_id", "agent")


class SqliteStore(Upkeep):
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
        self._path, self._synchronous = parse_url(url)
        self._path = self._path.absolute()  # a process that changes its folder keeps its store
        self._open(prepare(self._path, self._synchronous))
        self._machines: dict[str, int] = {}
        self._hashes: dict[int, str] = {}
        self._closed = False
        _stores.add(self)

    def _open(self, writer: sqlite3.Connection | None) -> None:
        self._writer = writer
        self._writing = threading.Lock()
        self._readers: deque[sqlite3.Connection] = deque()

    def after_fork(self) -> None:
        """Begin anew in a forked child. The parent's connections are left alone: SQLite forbids even closing them."""
        _left_to_parents.append((self._writer, self._readers))
        self._open(None)

    # --- connections ------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Write in one transaction: all of it or nothing."""
        with self._writing:
            self._check_open()
            if self._writer is None:
                self._writer = connect(self._path, self._synchronous)
            writer = self._writer
            try:
                patiently(lambda: writer.execute("BEGIN IMMEDIATE"), str(self._path))
                yield writer
                writer.execute("COMMIT")
            except BaseException as error:
                undone = self._roll_back(writer)
                if isinstance(error, sqlite3.Error):
                    problem = explain(error, self._path)
                    if isinstance(problem, StoreUnavailable) and not undone:
                        problem.committed = None
                    raise problem from error
                raise

    @staticmethod
    def _roll_back(writer: sqlite3.Connection) -> bool:
        """Return whether it is certain that nothing was committed."""
        if not writer.in_transaction:
            return False
        with suppress(sqlite3.Error):
            writer.execute("ROLLBACK")
        return not writer.in_transaction

    def _read(self, call: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()
        try:
            reader = self._readers.pop()
        except IndexError:
            reader = None
        try:
            if reader is None:
                reader = connect(self._path, self._synchronous)
            connection = reader
            out = patiently(lambda: call(connection), str(self._path))
        except sqlite3.Error as error:
            if reader is not None:
                reader.close()
            raise explain(error, self._path) from error
        if len(self._readers) < MAX_READERS and not self._closed:
            self._readers.append(reader)
        else:
            reader.close()
        return out

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._read(lambda reader: reader.execute(sql, values).fetchall())

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"{self.url} is closed: configure() the tracker anew")

    def close(self) -> None:
        """Close every connection; the last one folds the write-ahead log into the file."""
        with self._writing:
            self._closed = True
            while self._readers:
                self._readers.pop().close()
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    # --- machines ---------------------------------------------------------------------------------------------

    def register(self, record: MachineRecord) -> None:
        """Write a machine's rows as law, unless they are there."""
        if record.content_hash in self._machines or self._number(record.content_hash) is not None:
            return
        with self._transaction() as writer:
            inserted = writer.execute(
                "INSERT OR IGNORE INTO machines (content_hash, name, document) VALUES (?, ?, ?)",
                (record.content_hash, record.name, record.document),
            )
            if not inserted.rowcount:
                return  # another process was faster
            number = inserted.lastrowid
            writer.executemany(
                "INSERT INTO states (machine, name, terminal) VALUES (?, ?, ?)",
                [(number, name, terminal) for name, terminal in record.states],
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

    def append(self, steps: Sequence[Step]) -> list[Receipt | Conflict]:
        """Commit a batch in one transaction."""
        births = {step.after.identity.machine for step in steps if step.source is None}
        numbers = {content_hash: self._number(content_hash) for content_hash in births}
        outcomes: list[Receipt | Conflict] = []
        with self._transaction() as writer:
            last = writer.execute("SELECT seq FROM sqlite_sequence WHERE name = 'journal'").fetchone()
            position = last[0] if last else 0
            for step in steps:
                conflict = self._one(writer, step, numbers)
                if conflict is None:
                    position += 1
                    outcomes.append(receipt_of(step, position))
                else:
                    outcomes.append(conflict)
        return outcomes

    def _one(self, writer: sqlite3.Connection, step: Step, numbers: dict[str, int | None]) -> Conflict | None:
        after = step.after
        identity = after.identity
        lived = (*_lived(after), step.event, step.key, step.payload_json)
        try:
            if step.source is None:
                born = (identity.id, numbers[identity.machine], *identity[2:])
                writer.execute(_INSERT, (*born, *lived))
                return None
            if writer.execute(_UPDATE, (*lived, identity.id, after.version - 1)).rowcount:
                return None
        except sqlite3.IntegrityError as error:
            if not _is_race(error):
                raise
        found = writer.execute("SELECT version FROM executions WHERE id = ?", (identity.id,)).fetchone()
        return Conflict(identity.id, found[0] if found else None)

    # --- read -------------------------------------------------------------------------------------------------

    def load(self, execution_id: str) -> Snapshot | None:
        """Return an execution's record."""
        try:
            execution_id.encode()
        except UnicodeEncodeError:
            return None  # no id of ours, and SQLite could not even be asked for it
        rows = self._rows(f"{_SELECT} WHERE id = ?", (execution_id,))
        return self._snapshot(rows[0]) if rows else None

    def keyed(self, execution_id: str, key: str) -> Receipt | None:
        """Return the receipt of an idempotency key."""
        rows = self._rows(f"{_RECEIPT} WHERE execution_id = ? AND key = ?", (execution_id, key))
        return Receipt(*rows[0]) if rows else None

    def history(self, execution_id: str) -> list[Receipt]:
        """Return an execution's journal."""
        rows = self._rows(f"{_RECEIPT} WHERE execution_id = ? ORDER BY version", (execution_id,))
        return [Receipt(*row) for row in rows]

    def journal(
        self, after: int, limit: int, execution_id: str | None = None, user_id: str | None = None
    ) -> list[Receipt]:
        """Return the registry's journal after a position."""
        where, values = ["position > ?"], [after]
        more: list[Any] = []
        if execution_id is not None:
            where.append("execution_id = ?")
            more.append(execution_id)
        if user_id is not None:
            where.append("(SELECT user_id FROM executions WHERE id = execution_id) = ?")
            more.append(user_id)
        rows = self._rows(
            f"{_RECEIPT} WHERE {' AND '.join(where)} ORDER BY position LIMIT ?", (*values, *more, limit)
        )
        return [Receipt(*row) for row in rows]

    def position(self) -> int:
        """Return the journal's last position."""
        rows = self._rows("SELECT seq FROM sqlite_sequence WHERE name = 'journal'")
        return rows[0][0] if rows else 0

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
        if states is not None and len(where) > (query.after is not None):
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


def _lived(after: Snapshot) -> tuple[Any, ...]:
    tools = json.dumps(after.tools, separators=(",", ":")) if after.tools else None
    return (*after[1:10], tools, *after[11:])


def _is_race(error: sqlite3.IntegrityError) -> bool:
    """Whether somebody else was faster: with the key, with the id, or with an end."""
    said = str(error)
    return "journal.key" in said or "exists already" in said or "terminal state is final" in said


_stores: weakref.WeakSet[SqliteStore] = weakref.WeakSet()
_left_to_parents: list[object] = []


def _after_fork() -> None:
    for store in list(_stores):
        store.after_fork()


os.register_at_fork(after_in_child=_after_fork)
