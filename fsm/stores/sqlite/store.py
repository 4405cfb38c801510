"""Executions in one SQLite file.

One connection writes, under a lock; a few more read. A transition is one UPDATE: its WHERE is the compare-and-set on
the version, and triggers check it against the table and write the journal (`0002_law.sql`), so there is no way to
write one without the other.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TypeVar

from fsm.errors import BadPayload, DamagedRecord, FsmError, NotAStore, StoreUnavailable
from fsm.records import CANCEL_CHILDREN, Receipt, Snapshot, Step, receipt_of
from fsm.stores.base import Barred, Conflict, Damage, MachineRecord, Query
from fsm.stores.sqlite import rows as shapes
from fsm.stores.sqlite.breakers import SqliteBreakers
from fsm.stores.sqlite.connect import explain, parse_url, patiently, prepare
from fsm.stores.sqlite.damage import LIMIT, Pages
from fsm.stores.sqlite.identity import StoreFile
from fsm.stores.sqlite.inspection import inspect
from fsm.stores.sqlite.pool import Pool
from fsm.stores.sqlite.rows import is_object
from fsm.stores.sqlite.upkeep import Upkeep

T = TypeVar("T")

_BORN = (
    "id", "machine", "agent", "user_id", "thread_id", "parent_id", "retry_of", "created_at", "attempts_max",
    "model_attempts_max", "metadata", "timeouts", "born_at", "backoff_s", "backoff_cap_s", "born_key",
    "depth",
)  # fmt: skip
_LIVED = (
    "state", "version", "entered_at", "updated_at", "due_at", "due_kind", "attempt", "owner", "fence", "tools",
    "model_attempt", "not_before", "breaker", "limit_s", "ending", "since_at",
    "paused_s", "suspended",
)  # fmt: skip
_LAST = ("event", "key", "payload", "position")

_INSERT = (
    f"INSERT INTO executions ({', '.join((*_BORN, *_LIVED, *_LAST, 'born'))}) "
    f"VALUES ({', '.join('?' * len((*_BORN, *_LIVED, *_LAST, 'born')))})"
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

_COLUMNS = f"{', '.join(_BORN + _LIVED)}, {is_object('metadata')} AND {is_object('ending')}"
_SELECT = f"SELECT {_COLUMNS} FROM executions"
_PAGED = f"SELECT {_COLUMNS}, born FROM executions"
_ENTRY = (
    "position, execution_id, version, event, source, target, at, attempt, fence, owner, key, payload, "
    f"{is_object('payload')}"
)
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
MAX_MERGED = 50
"""Maximum number of states that are looked up one by one; SQLite joins no more than 500 queries into one."""


class SqliteStore(Upkeep, SqliteBreakers):
    """A registry in one file, shared by every process of this machine that opens it.

    A receipt is returned when its commit is in the file that bears the store's name at that moment; see
    `fsm.stores.sqlite.identity` for what is noticed when files are deleted, moved or replaced, and when.
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
        path, synchronous = parse_url(url)
        self._path = path.absolute()  # a process that changes its folder keeps its store
        self._file = StoreFile(self._path)
        self._pool = Pool(self._path, synchronous, prepare(self._file, synchronous))
        self._pages = Pages(self._rows)
        self._machines: dict[str, int] = {}
        self._known: dict[int, tuple[str, frozenset[str]]] = {}  # content hash and states by number

    # --- connections ------------------------------------------------------------------------------------------

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Let `work` write in one transaction: all of it or nothing, and nothing is left open however it ends."""
        return self._pool.writing.run(self._transact, work)

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        writer = self._begin()
        try:
            out = work(writer)
        except BaseException as error:  # noqa: BLE001 - raised again
            self._undo(error, writer, ending=False)
        self._end(writer)
        return out

    def _begin(self) -> sqlite3.Connection:
        writer: sqlite3.Connection | None = None
        try:
            writer = self._pool.writer()
            if self._file.trouble:
                self._file.check(writer)
            patiently(partial(writer.execute, "BEGIN IMMEDIATE"), str(self._path))
        except BaseException as error:  # noqa: BLE001 - raised again
            self._undo(error, writer, ending=False)
        assert writer is not None  # noqa: S101 - otherwise `_undo` has raised
        return writer

    def _end(self, writer: sqlite3.Connection) -> None:
        try:
            patiently(partial(writer.execute, "COMMIT"), str(self._path))
            self._pool.written()
        except BaseException as error:  # noqa: BLE001 - raised again
            self._undo(error, writer, ending=True)
        self._acknowledge(writer)

    def _undo(self, error: BaseException, writer: sqlite3.Connection | None, *, ending: bool) -> NoReturn:
        """Roll back, and raise the error with what is known of the transaction."""
        undone = writer is None or _roll_back(writer) or not ending
        if writer is not None and _is_open(writer):
            self._pool.discard_writer()
        if isinstance(error, (sqlite3.Error, UnicodeDecodeError)):
            error_ = self._explained(error)
            if isinstance(error_, StoreUnavailable) and not undone:
                error_.committed = None
            raise error_ from error
        raise error

    def _acknowledge(self, connection: sqlite3.Connection) -> None:
        """Refuse to say that a commit succeeded unless it is in the file that bears the store's name."""
        try:
            self._file.check(connection, wrote=True)
        except StoreUnavailable as error:
            error.committed = None  # it is in a file, which may be put back
            raise

    def _rows(self, sql: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._pool.read(lambda reader: self._ask(reader, sql, values))
        except UnicodeEncodeError:
            return []  # a text that no encoding knows is in no file
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            raise self._said(error, values) from error

    def _ask(
        self, reader: sqlite3.Connection, sql: str, values: Sequence[Any] | dict[str, Any]
    ) -> list[tuple[Any, ...]]:
        self._file.check(reader)
        try:
            return reader.execute(sql, values).fetchall()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) is not None:
                raise
        # Not SQLite but the driver has refused: a cell is no UTF-8. The other rows shall be read all the same.
        reader.text_factory = shapes.lenient
        try:
            return reader.execute(sql, values).fetchall()
        finally:
            reader.text_factory = str

    def _said(
        self,
        error: sqlite3.Error | UnicodeDecodeError | OverflowError,
        values: Sequence[Any] | dict[str, Any],
    ) -> FsmError:
        """Return the error for a question that was not answered: the caller's mistake, or the store's state."""
        for value in values.values() if isinstance(values, dict) else values:
            if type(value) not in {str, int, float, bytes, bool, type(None)}:
                return BadPayload(f"a store is asked for texts and numbers, not for a {type(value).__name__}")
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                return BadPayload("a whole number is too large for the store: 64 bits at most")
        if isinstance(error, OverflowError):
            return BadPayload(f"a value is too large for the store: {error}")
        return self._explained(error)

    def _explained(self, error: sqlite3.Error | UnicodeDecodeError) -> NotAStore | StoreUnavailable:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}:
            # What SQLite says then is true, but a missing file or -wal is the cause.
            try:
                self._file.database()
            except StoreUnavailable as gone:
                return gone
            if self._file.trouble:
                return StoreUnavailable(self._file.trouble)
        return explain(error, self._path)

    def identity(self) -> str:
        """Return what tells this store from another one under the same name, for people."""
        return self._file.shown()

    def close(self) -> None:
        """Close every connection; the last one folds the write-ahead log into the file."""
        self._pool.close()

    # --- machines ---------------------------------------------------------------------------------------------

    def register(self, record: MachineRecord) -> None:
        """Write a machine's rows as law, unless they are there."""
        if record.content_hash in self._machines or self._number(record.content_hash) is not None:
            return

        def write(writer: sqlite3.Connection) -> None:
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

        self._write(write)

    def _number(self, content_hash: str) -> int | None:
        number = self._machines.get(content_hash)
        if number is None:
            self._learn()
            number = self._machines.get(content_hash)
        return number

    def _learn(self) -> None:
        """Read the machines that other processes registered."""
        states: dict[int, set[str]] = {}
        for number, name in self._pages.all("SELECT machine, name FROM states", (), shapes.STATES.check):
            states.setdefault(number, set()).add(name)
        for number, hash_ in self._pages.all(
            "SELECT id, content_hash FROM machines", (), shapes.NUMBERS.check
        ):
            self._machines[hash_] = number
            self._known[number] = (hash_, frozenset(states.get(number, ())))

    def machines(self) -> dict[str, str]:
        """Return every registered machine."""
        rows = self._pages.all("SELECT content_hash, document FROM machines", (), shapes.MACHINES.check)
        return dict(rows)

    def machine_count(self) -> int:
        """Return how many machines are registered."""
        count: int = self._rows("SELECT count(*) FROM machines")[0][0]
        return count

    # --- write ------------------------------------------------------------------------------------------------

    def append(self, steps: Sequence[Step]) -> list[Receipt | Conflict | Barred]:
        """Commit a batch in one transaction."""
        births = {step.after.identity.machine for step in steps if step.source is None}
        numbers = {content_hash: self._number(content_hash) for content_hash in births}

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

        outcomes, last = self._write(write)
        self._file.seen(last)
        return outcomes

    def _last(self, writer: sqlite3.Connection) -> int:
        position = shapes.position(writer.execute(_POSITION).fetchone()[0])
        self._file.seen(position)
        return position

    def _one(
        self, writer: sqlite3.Connection, step: Step, position: int, numbers: dict[str, int | None]
    ) -> Conflict | Barred | None:
        after = step.after
        identity = after.identity
        last = (step.event, step.key, step.payload_json, position)
        try:
            if step.source is None:
                born = (identity.id, numbers[identity.machine], *identity[2:])
                writer.execute(_INSERT, (*born, *_lived(after), *last, position))
                return None
            sql, values = _changed(step.before, after)
            if writer.execute(sql, (*values, *last, identity.id, after.version - 1)).rowcount:
                if step.effects and CANCEL_CHILDREN in step.effects:
                    writer.execute(_ORDER, (identity.id, after.version, step.event))
                return None
        except sqlite3.IntegrityError as error:
            if "has created" in str(error):
                first = writer.execute(_BY_KEY, (identity.user_id, identity.key)).fetchone()
                return Barred(identity.id, "key", first[0])
            if not _is_race(error):
                return _barred(after, str(error))
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
        if row[1] not in self._known:
            self._learn()  # another process registered it
        return shapes.snapshot(row, self._known)

    # --- damage -----------------------------------------------------------------------------------------------

    def damaged(self) -> list[Damage]:
        """Return what pages have left out in this process."""
        self._rows("SELECT 1")  # a store that is closed, or gone, says so
        return self._pages.damaged()

    def inspect(self) -> list[Damage]:
        """Look through the file: SQLite's own checks, the schema, and what no single record shows."""
        return inspect(self._rows)


def _roll_back(writer: sqlite3.Connection) -> bool:
    """Return whether it is certain that nothing was committed."""
    if not _is_open(writer):
        return False
    with suppress(sqlite3.Error):
        writer.execute("ROLLBACK")
    return not _is_open(writer)


def _is_open(writer: sqlite3.Connection) -> bool:
    """Return whether a transaction is open; none is on a connection that a handler's fork has closed."""
    try:
        return writer.in_transaction
    except sqlite3.ProgrammingError:
        return False


def _lived(after: Snapshot) -> tuple[Any, ...]:
    tools = json.dumps(after.tools, separators=(",", ":")) if after.tools else None
    return (*after[1:10], tools, *after[11:])


def _changed(before: Snapshot | None, after: Snapshot) -> tuple[str, tuple[Any, ...]]:
    """Return the statement that writes what changed, and the values of its columns."""
    # What changes seldom: attempt, owner, fence and tools, then the waits, the breaker and the ending. An attempt is
    # suspended, and goes on, together with a change of owner.
    if (
        before is None
        or before[7:11] != after[7:11]
        or before[12:16] != after[12:16]
        or before.paused_s != after.paused_s
    ):
        return _UPDATE, _lived(after)
    usual = (after.version, after.updated_at, after.due_at, after.due_kind, after.model_attempt)
    if (
        before.state == after.state
        and before.entered_at == after.entered_at
        and before.since_at == after.since_at
    ):
        return _UPDATE_STAYED, usual
    return _UPDATE_USUAL, (*usual, after.state, after.entered_at, after.since_at)


def _barred(after: Snapshot, said: str) -> Barred:
    """Return what kept one step out; the others of its batch go on."""
    identity = after.identity
    if "starts no children" in said:
        return Barred(identity.id, "parent", identity.parent_id or "")
    if "claims nothing" in said:
        return Barred(identity.id, "lease", after.owner or "")
    return Barred(identity.id, "law", said)


def _is_race(error: sqlite3.IntegrityError) -> bool:
    """Whether somebody else was faster: with the key, with the id (perhaps one that was deleted), or with an end."""
    said = str(error)
    races = ("key is in the journal", "exists already", "terminal state is final", "not born again")
    return any(race in said for race in races)
