"""Which file a connection is on, and whether that is still the file that the store's name names.

A process that has a file open goes on writing into it after it was deleted, renamed, or replaced by a backup, and
every new connection opens whatever bears the name by then: two truths in one process, and receipts that no reader will
find again. So each connection notes what it was opened on (the file's device and inode, those of its ``-wal`` and
``-shm``, and the store id that is written inside), and that is compared with what the names mean now:

- after every commit, before its receipts are handed out: a receipt that was acknowledged stood in the file that bore
  the name after it was committed. A file that is taken away later takes its receipts along.
- before every read: what is read stood in the file that bore the name when the read began.
- when a connection is opened, with the store id.
- the ``-wal`` and the ``-shm`` after a commit, once every `BESIDE_S`: what is acknowledged in between without them is
  in this process's hands, and in the file once its tracker is closed; a kill loses it.

What differs is `StoreUnavailable` for every write and every read, until the names mean the same files again, or the
tracker is configured again. What cannot be noticed: bytes that are written over the same inode (``cp backup fsm.db``
under a running process). A journal that is shorter than this process has seen it is noticed, and refused for good.

A second name for one file has a ``-wal`` of its own, and what is committed under one name overwrites what is
committed under the other. A hard link is refused, also one that is made later. A single file that is mounted (as
``docker -v fsm.db:/data/fsm.db`` does) is refused where the system tells its mounts (Linux); mount its folder instead.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

from fsm.errors import NotAStore, StoreUnavailable

BESIDE_S = 0.005
"""How often, in seconds, a process that commits looks at the ``-wal`` and the ``-shm``, which takes as long again."""
MOUNTS = "/proc/self/mountinfo"
"""Where Linux lists the mounts that this process sees."""
_BACK = "restart this process, or move the file back: nothing is read or written until then"

FileId = tuple[int, int]
"""A file's device and inode."""


class Names(NamedTuple):
    """Which files the names of a store mean at one moment.

    Attributes:
        database: The database itself.
        wal: Its write-ahead log; ``None`` where there is none.
        shm: The index of that log, which all processes share.
    """

    database: FileId
    wal: FileId | None
    shm: FileId | None


class Connection(sqlite3.Connection):
    """A connection that knows what it was opened on."""

    opened_on: FileId | None = None
    """What the path meant just before it was opened."""
    names: Names | None = None
    """What the store's names meant when its store id was read."""


class StoreFile:
    """The file behind a store: what it is called, and which one it is."""

    def __init__(self, path: Path) -> None:
        """Note its name.

        Args:
            path: The absolute path; it may be, or lead through, a symbolic link.
        """
        self.path = path
        self._name = str(path)
        self._beside = os.path.realpath(path)  # SQLite resolves links: the -wal lies beside the file itself
        self._id: FileId | None = None
        self._store_id: str | None = None
        self._look_at = 0.0
        self._position = 0
        self._shorter = ""
        self.trouble = ""
        """What the last look found wrong: then the next one comes before anything is done, and is at everything."""

    def admit(self) -> None:
        """Refuse a file that may have a second name.

        Raises:
            NotAStore: It is mounted as a single file.
            StoreUnavailable: It has a hard link, or cannot be looked at.
        """
        self.database()
        for name in (self._name, self._beside):
            if name in _mounted():
                raise NotAStore(
                    f"{self.path} is mounted as a single file: its write-ahead log lies elsewhere than that of the "
                    "same file under its other name, and each would overwrite the other's commits. Mount the folder "
                    "that holds it"
                )

    def opened(self, connection: sqlite3.Connection) -> None:
        """Note what a new connection is on; the first one decides which file is the store's.

        Raises:
            StoreUnavailable: It is on another file than the store's connections before it.
        """
        if not isinstance(connection, Connection):
            return
        store_id = _store_id(connection)  # reading it has opened the -wal and the -shm
        names = Names(self.database(), file_id(f"{self._beside}-wal"), file_id(f"{self._beside}-shm"))
        if connection.opened_on not in {None, names.database}:
            raise StoreUnavailable(f"{self.path} was replaced while it was opened: {_BACK}")
        if self._id is None:
            self._id, self._store_id = names.database, store_id
        if store_id != self._store_id:
            raise StoreUnavailable(f"{self.path} holds another store than it did before; {_BACK}")
        if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            for suffix in ("wal", "shm"):
                if getattr(names, suffix) is None:
                    raise self._beside_gone(
                        suffix
                    )  # others of this process hold one that has no name any more
        connection.names = names

    def _beside_gone(self, suffix: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self.path}-{suffix} was deleted or replaced under the running process, so that other processes do not "
            "see what is committed here: stop all of them, this one in order (closing the tracker writes what it has "
            "committed into the file), and start again"
        )

    def check(self, connection: sqlite3.Connection, *, wrote: bool = False) -> None:
        """Refuse to go on unless a connection is on what the store's names mean now.

        Args:
            connection: The connection that was, or is about to be, used.
            wrote: It has just committed: the ``-wal`` and the ``-shm`` are looked at too, every `BESIDE_S`.

        Raises:
            StoreUnavailable: It is not.
        """
        names: Names | None = getattr(connection, "names", None)
        if names is not None and names.database == self._id and not self.trouble:
            try:
                found = os.stat(self._name)  # noqa: PTH116 - after every commit: a Path would cost as much again
            except OSError:
                found = None
            if found is not None and found.st_nlink == 1 and (found.st_dev, found.st_ino) == self._id:
                if not wrote:
                    return
                now = time.monotonic()
                if now < self._look_at:
                    return
                self._look_at = now + BESIDE_S
        try:
            self._look(connection)
        except StoreUnavailable as error:
            self.trouble = str(error)
            raise
        self.trouble = ""

    def _look(self, connection: sqlite3.Connection) -> None:
        """Look at everything, and say what is wrong."""
        if self._shorter:
            raise StoreUnavailable(self._shorter)
        here = self.database()
        if getattr(connection, "names", None) is None:
            self.opened(connection)
        names: Names | None = getattr(connection, "names", None)
        if here != self._id or (names is not None and names.database != here):
            raise StoreUnavailable(
                f"{self.path} is another file than the one that this process has open: it was replaced (by a backup, "
                f"say), and what is committed here would not be in it; {_BACK}"
            )
        for suffix in ("wal", "shm") if names is not None else ():
            known: FileId | None = getattr(names, suffix)
            if known is not None and file_id(f"{self._beside}-{suffix}") != known:
                raise self._beside_gone(suffix)

    def shown(self) -> str:
        """Return what tells this file from another one, for people."""
        device, inode = self._id or self.database()
        return f"store id {self._store_id}, device {os.major(device)}:{os.minor(device)}, inode {inode}"

    def seen(self, position: int) -> None:
        """Note how long the journal is, and refuse one that is shorter than it was.

        Args:
            position: The position of a row that is committed, and the last one.

        Raises:
            StoreUnavailable: The file has gone back in time.
        """
        if position < self._position:
            self._shorter = (
                f"{self.path} ends at position {position}, and has ended at {self._position}: a backup was written "
                "over the file, and some of what is in memory here is not in it; restart this process"
            )
            self.trouble = self._shorter
            raise StoreUnavailable(self._shorter)
        self._position = position

    def database(self) -> FileId:
        """Return which file the store's name means now.

        Raises:
            StoreUnavailable: None, or one with a second name.
        """
        try:
            found = os.stat(self._name)  # noqa: PTH116 - as above
        except (FileNotFoundError, NotADirectoryError):
            raise StoreUnavailable(
                f"{self.path} is gone and cannot be opened: the file, or a folder above it, was deleted or renamed, "
                f"and what is committed here would be lost with it; {_BACK}"
            ) from None
        except OSError as error:
            raise StoreUnavailable(f"{self.path} cannot be looked at: {error}; {_BACK}") from error
        if found.st_nlink > 1:
            raise StoreUnavailable(
                f"{self.path} has {found.st_nlink} names (hard links): each name has a write-ahead log of its own, "
                "and commits under one overwrite those under the other. Delete the other names (find them with "
                f"`find -inum {found.st_ino}`), or use a symbolic link"
            )
        return found.st_dev, found.st_ino


def file_id(name: str | Path) -> FileId | None:
    """Return which file a name means; ``None`` for none that can be looked at."""
    try:
        found = os.stat(name)  # noqa: PTH116 - as above
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _store_id(connection: sqlite3.Connection) -> str | None:
    try:
        row = connection.execute("SELECT token FROM store").fetchone()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR:
            return None  # no such table: whatever this file is, it is not the one that was opened before
        raise
    return row[0] if row and isinstance(row[0], str) else None


def _mounted() -> frozenset[str]:
    """Return the places at which something is mounted, as far as the system tells."""
    try:
        lines = Path(MOUNTS).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return frozenset()
    fields = [line.split(" ") for line in lines]
    return frozenset(_unescaped(field[4]) for field in fields if len(field) > 4)  # noqa: PLR2004 - see proc(5)


def _unescaped(name: str) -> str:
    """Return a path as it is: mountinfo writes blanks, tabs, newlines and backslashes in octal."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), name)
