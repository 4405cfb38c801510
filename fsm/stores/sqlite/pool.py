"""The connections to one file: one that writes, a few that read, and none across a fork.

SQLite keeps its file locks per process, in tables that a fork copies while the locks themselves stay behind: a
connection that a child opens beside an inherited one believes that it holds locks which it does not hold, and what
the child commits can then be lost without an error. So every connection is closed before a fork and opened again at
its next use, in the parent as in the child (`tests/stores/test_sqlite.py` forks).
"""

from __future__ import annotations

import sqlite3
import threading
import weakref
from _thread import interrupt_main
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fsm.concurrency.forks import at_fork
from fsm.concurrency.locks import Lock, inside
from fsm.errors import StoreUnavailable
from fsm.stores.sqlite.connect import connect, patiently
from fsm.stores.sqlite.identity import Connection

T = TypeVar("T")

MAX_READERS = 8
"""So many idle connections for reading are kept."""
LOOK_S = 0.01
"""How often a fork looks whether a reader is done, in seconds."""
MAX_INTERRUPTS = 1_000
"""Maximum number of interrupts that the work around a fork is taken up again after."""


class _Connection(Connection):
    """A connection that is known before it is open: an interrupt may come before its opener has it in hand.

    It would stay open until the garbage collector finds it, over a fork as well.
    """

    def __init__(self, known: weakref.WeakSet[_Connection], *args: Any, **kwargs: Any) -> None:
        known.add(self)
        super().__init__(*args, **kwargs)


class _Reader:
    """A connection for reading, and the lock that its user holds."""

    __slots__ = ("connection", "lock", "sound")

    def __init__(self) -> None:
        self.lock = Lock("a read of the store")
        self.connection: sqlite3.Connection | None = None
        self.sound = False  # whether the last use of the connection was completed

    def close(self) -> None:
        connection, self.sound = self.connection, False
        if connection is not None:
            connection.close()
            self.connection = None


class Pool:
    """The connections of this process to one file.

    An interrupt may end any call here at any point. So nothing is counted: a reader is in use if somebody holds its
    lock, and a connection whose use was not completed is closed by its next user.
    """

    def __init__(self, path: Path, synchronous: str, writer: sqlite3.Connection) -> None:
        """Take over the first connection.

        Args:
            path: The file.
            synchronous: For the connections that are opened later.
            writer: The connection that `prepare` opened.
        """
        self.path = path
        self.writing = Lock("a transaction of the store")
        self._synchronous = synchronous
        self._known: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._make = partial(_Connection, self._known)
        self._writer: sqlite3.Connection | None = writer
        self._opening = Lock("a connection that is opened")
        self._readers: list[_Reader] = []
        self._idle: list[_Reader] = []
        self._closed = False
        _pools.add(self)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"{self.path}: the store is closed: configure() the tracker anew")

    # Both are called by the holder of `_opening` only: a connection without an owner then is left of an interrupt.

    def _open_writer(self) -> None:
        self._writer = connect(self.path, self._synchronous, factory=self._make)

    def _open_reader(self, reader: _Reader) -> None:
        reader.connection = connect(self.path, self._synchronous, factory=self._make)

    def _forked(self) -> NoReturn:
        raise StoreUnavailable(
            f"{self.path}: a handler forked in the middle of this call; nothing was written"
        )

    # --- writing ----------------------------------------------------------------------------------------------

    def writer(self) -> sqlite3.Connection:
        """Return the connection that writes, in no transaction; only the holder of `writing` may call this."""
        self._check_open()
        writer = self._writer
        if writer is not None and writer.in_transaction:
            self.discard_writer()  # an interrupt ended its last user, and then the end of its transaction
        writer = self._writer
        if writer is None:
            self._opening.run(self._open_writer)
            writer = self._writer
        return writer or self._forked()

    def discard_writer(self) -> None:
        """Close a connection that cannot even roll back; only the holder of `writing` may call this."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def written(self) -> None:
        """End the use of the connection that writes; only the holder of `writing` may call this."""
        if self._closed:
            self.discard_writer()

    # --- reading ----------------------------------------------------------------------------------------------

    def read(self, call: Callable[[sqlite3.Connection], T]) -> T:
        """Let `call` read, on a connection that is nobody else's meanwhile."""
        try:
            try:
                reader = self._idle.pop()
            except IndexError:
                reader = _Reader()
            out = reader.lock.run(self._use, reader, call)
            self._give_back(reader)
        except BaseException:
            self._tidy()
            raise
        return out

    def _use(self, reader: _Reader, call: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()
        if reader not in self._readers:
            self._readers.append(reader)  # before it has a connection: a fork has to find it
        if not reader.sound:
            reader.close()
        reader.sound = False
        connection = reader.connection
        if connection is None:
            self._opening.run(self._open_reader, reader)
            connection = reader.connection or self._forked()
        try:
            out = patiently(lambda: call(connection), str(self.path))
        except sqlite3.ProgrammingError:
            if reader.connection is connection:
                raise
            return self._use(
                reader, call
            )  # a handler forked in the middle of it, which has closed the connection
        reader.sound = reader.connection is connection
        return out

    def _give_back(self, reader: _Reader) -> None:
        if reader.sound and not self._closed and len(self._idle) < MAX_READERS:
            self._idle.append(reader)
        else:
            reader.lock.run(self._drop, reader)

    def _drop(self, reader: _Reader) -> None:
        reader.close()
        with suppress(ValueError):
            self._readers.remove(reader)

    def _tidy(self) -> None:
        """Close the readers that are neither idle nor in use: an error or an interrupt ended their last use."""
        for reader in tuple(self._readers):
            if reader in self._idle or reader.lock.mine():
                continue
            try:
                if reader.lock.acquire(0):  # its next user opens it again
                    self._drop(reader)
            finally:
                reader.lock.free()
        if not self._opening.mine():
            self._opening.run(self._close_strays)

    def _close_strays(self) -> None:
        """Close what was opened and has no owner; only the holder of `_opening` may call this."""
        held = {id(self._writer)} | {id(reader.connection) for reader in self._readers}
        for connection in list(self._known):
            if id(connection) not in held:
                with suppress(sqlite3.Error):  # it was not opened at all, or is closed
                    connection.close()

    # --- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close every connection; the last one folds the write-ahead log into the file.

        A handler that interrupts a call of the library cannot wait for the others: it closes nothing yet, but lets
        nobody begin.
        """
        self._closed = True
        if inside():
            return
        for reader in tuple(self._readers):
            reader.lock.run(reader.close)
        self.writing.run(self.discard_writer)
        self._opening.run(self._close_strays)

    # --- forks ------------------------------------------------------------------------------------------------

    def before_fork(self, held: list[Lock]) -> None:
        """Wait until no connection is in use, close them all, and let none be opened.

        What an interrupt has ended is completed by another call.

        Args:
            held: Takes the locks to release after the fork.
        """
        for lock in (self.writing, self._opening):
            _take(lock, held)
        self.discard_writer()
        for reader in tuple(self._readers):
            # One without a connection may wait for `_opening`; it opens none until we release that.
            while reader.connection is not None:
                _take(reader.lock, held, LOOK_S)
                if reader.lock.mine():
                    reader.close()
        self._close_strays()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_forking = Lock("a fork")
_stopped: list[
    list[Lock]
] = []  # a list for each fork under way: a handler may fork while its thread is about to
_interrupts: list[BaseException] = []


def _take(lock: Lock, held: list[Lock], timeout: float = -1) -> None:
    """Take a lock for the length of a fork, unless this thread has it."""
    if not lock.mine():
        if lock not in held:
            held.append(lock)  # first: what is listed and not held is passed over in the end
        lock.acquire(timeout)


def _through(work: Callable[[], None]) -> None:
    """Do what must be complete around a fork. Python would drop an interrupt here, and the rest of the work with it.

    Args:
        work: Can be interrupted and done again.
    """
    for _ in range(MAX_INTERRUPTS):
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised or delivered after the fork
            _interrupts.append(error)
        else:
            return


def _before_fork() -> None:
    held: list[Lock] = []

    def hold() -> None:
        if not any(one is held for one in _stopped):
            _stopped.append(held)
        _take(_forking, held)
        for pool in list(_pools):
            pool.before_fork(held)

    _through(hold)


def _let_go() -> None:
    held = _stopped[-1]
    while held:
        if held[-1].mine():
            held[-1].release()
        held.pop()


def _after_fork_in_child() -> None:
    _through(_let_go)
    _stopped.pop()
    _interrupts.clear()


def _after_fork_in_parent() -> None:
    _through(_let_go)
    _stopped.pop()
    if _stopped or not _interrupts:
        return
    interrupts = tuple(_interrupts)
    _interrupts.clear()
    for error in interrupts:
        if not isinstance(error, KeyboardInterrupt):
            raise error  # nothing that is raised here goes further, but Python prints it
    # In a moment, when this function cannot swallow it any more.
    timer = threading.Timer(LOOK_S, interrupt_main)
    timer.daemon = True
    timer.start()


at_fork(_after_fork_in_child, before=_before_fork, in_parent=_after_fork_in_parent)
