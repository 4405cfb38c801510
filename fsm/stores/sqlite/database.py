"""One file as the parts of the store use it: rows are read, transactions are written, SQLite's errors become ours.

One connection writes, under a lock; a few more read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TypeVar

from fsm.errors import BadPayload, FsmError, NotAStore, StoreUnavailable
from fsm.stores.sqlite import rows as shapes
from fsm.stores.sqlite.connect import explain, parse_url, patiently, prepare
from fsm.stores.sqlite.damage import Pages
from fsm.stores.sqlite.identity import StoreFile
from fsm.stores.sqlite.pool import Pool

T = TypeVar("T")
Values = Sequence[Any] | dict[str, Any]


class Database:
    """The connections of this process to one file, and which file that is.

    Attributes:
        path: The file, absolute: a process that changes its folder keeps its store.
        file: What tells the file from another one under the same name.
        pool: The connections.
        pages: Reads pages, and notes what they leave out.
    """

    def __init__(self, url: str) -> None:
        """Open the file, and create or migrate its schema."""
        path, synchronous = parse_url(url)
        self.path = path.absolute()
        self.file = StoreFile(self.path)
        self.pool = Pool(self.path, synchronous, prepare(self.file, synchronous))
        self.pages = Pages(self.rows)

    # --- writing ----------------------------------------------------------------------------------------------

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Let `work` write in one transaction: all of it or nothing, and nothing is left open however it ends."""
        return self.pool.writing.run(self._transact, work)

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
            writer = self.pool.writer()
            if self.file.trouble:
                self.file.check(writer)
            patiently(partial(writer.execute, "BEGIN IMMEDIATE"), str(self.path))
        except BaseException as error:  # noqa: BLE001 - raised again
            self._undo(error, writer, ending=False)
        assert writer is not None  # noqa: S101 - otherwise `_undo` has raised
        return writer

    def _end(self, writer: sqlite3.Connection) -> None:
        try:
            patiently(partial(writer.execute, "COMMIT"), str(self.path))
            self.pool.written()
        except BaseException as error:  # noqa: BLE001 - raised again
            self._undo(error, writer, ending=True)
        self.acknowledge(writer)

    def _undo(self, error: BaseException, writer: sqlite3.Connection | None, *, ending: bool) -> NoReturn:
        """Roll back, and raise the error with what is known of the transaction."""
        undone = writer is None or _roll_back(writer) or not ending
        if writer is not None and _is_open(writer):
            self.pool.discard_writer()
        if isinstance(error, (sqlite3.Error, UnicodeDecodeError)):
            error_ = self._explained(error)
            if isinstance(error_, StoreUnavailable) and not undone:
                error_.committed = None
            raise error_ from error
        raise error

    def acknowledge(self, connection: sqlite3.Connection) -> None:
        """Refuse to say that a commit succeeded unless it is in the file that bears the store's name."""
        try:
            self.file.check(connection, wrote=True)
        except StoreUnavailable as error:
            error.committed = None  # it is in a file, which may be put back
            raise

    # --- reading ----------------------------------------------------------------------------------------------

    def rows(self, sql: str, values: Values = ()) -> list[tuple[Any, ...]]:
        """Return the rows that answer a question."""
        try:
            return self.pool.read(lambda reader: self._ask(reader, sql, values))
        except UnicodeEncodeError:
            return []  # a text that no encoding knows is in no file
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            raise self._said(error, values) from error

    def _ask(self, reader: sqlite3.Connection, sql: str, values: Values) -> list[tuple[Any, ...]]:
        self.file.check(reader)
        try:
            return reader.execute(sql, values).fetchall()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) is not None:
                raise
        # Not SQLite but the driver has refused: a cell is no UTF-8. The other rows are read all the same.
        reader.text_factory = shapes.lenient
        try:
            return reader.execute(sql, values).fetchall()
        finally:
            reader.text_factory = str

    def _said(self, error: sqlite3.Error | UnicodeDecodeError | OverflowError, values: Values) -> FsmError:
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
                self.file.database()
            except StoreUnavailable as gone:
                return gone
            if self.file.trouble:
                return StoreUnavailable(self.file.trouble)
        return explain(error, self.path)


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
