"""The connections to one file: one that writes, a few that read, and none across a fork.

SQLite keeps its file locks per process, in tables that a fork copies while the locks themselves stay behind: a
connection that a child opens beside an inherited one believes that it holds locks which it does not hold, and what
the child commits can then be lost without an error. So every connection is closed before a fork and opened again at
its next use, in the parent as in the child (`tests/test_sqlite.py` forks).
"""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fsm.errors import StoreUnavailable
from fsm.forks import at_fork
from fsm.stores.sqlite.connect import connect, patiently

T = TypeVar("T")

MAX_READERS = 8
"""So many idle connections for reading are kept."""


class Pool:
    """The connections of this process to one file."""

    def __init__(self, path: Path, synchronous: str, writer: sqlite3.Connection) -> None:
        """Take over the first connection.

        Args:
            path: The file.
            synchronous: For the connections that are opened later.
            writer: The connection that `prepare` opened.
        """
        self.path = path
        self.writing = threading.Lock()
        self._synchronous = synchronous
        self._writer: sqlite3.Connection | None = writer
        self._quiet = threading.Condition(threading.Lock())
        self._idle: list[sqlite3.Connection] = []
        self._out = 0
        self._closed = False
        _pools.add(self)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"{self.path}: the store is closed: configure() the tracker anew")

    def writer(self) -> sqlite3.Connection:
        """Return the connection that writes; only the holder of `writing` may call this."""
        self._check_open()
        if self._writer is None:
            self._writer = connect(self.path, self._synchronous)
        return self._writer

    def discard_writer(self) -> None:
        """Close a connection that cannot even roll back; only the holder of `writing` may call this."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def read(self, call: Callable[[sqlite3.Connection], T]) -> T:
        """Let `call` read, on a connection that is nobody else's meanwhile."""
        with self._quiet:
            self._check_open()
            self._out += 1
            reader = self._idle.pop() if self._idle else None
        sound = False
        try:
            if reader is None:
                reader = connect(self.path, self._synchronous)
            connection = reader
            out = patiently(lambda: call(connection), str(self.path))
            sound = True
        finally:
            self._give_back(reader, sound=sound)
        return out

    def _give_back(self, reader: sqlite3.Connection | None, *, sound: bool) -> None:
        with self._quiet:
            self._out -= 1
            if reader is not None:
                if sound and not self._closed and len(self._idle) < MAX_READERS:
                    self._idle.append(reader)
                else:
                    reader.close()
            if not self._out:
                self._quiet.notify_all()

    def close(self) -> None:
        """Close every connection; the last one folds the write-ahead log into the file."""
        with self.writing, self._quiet:
            self._closed = True
            self._close_all()

    def _close_all(self) -> None:
        while self._idle:
            self._idle.pop().close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # --- forks ------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Wait until nobody uses a connection, close them all, and let nobody open one."""
        self.writing.acquire()
        self._quiet.acquire()
        while self._out:
            self._quiet.wait()
        self._close_all()

    def after_fork(self) -> None:
        """Go on, in the parent and in the child."""
        self._quiet.release()
        self.writing.release()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_forking = threading.Lock()
_stopped: list[Pool] = []


def _before_fork() -> None:
    _forking.acquire()
    for pool in list(_pools):
        pool.before_fork()
        _stopped.append(pool)


def _after_fork() -> None:
    while _stopped:
        _stopped.pop().after_fork()
    _forking.release()


at_fork(_after_fork, before=_before_fork, in_parent=_after_fork)
