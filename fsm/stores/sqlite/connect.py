"""Opening a file, bringing its schema up to date, and waiting for other processes with jitter.

SQLite's own busy handler sleeps in fixed steps, so that writers meet again and again; here every wait is drawn at
random and the whole wait has a limit.
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import parse_qs, unquote

from fsm.errors import NotAStore, StoreTooNew, StoreUnavailable
from fsm.stores.sqlite.identity import Connection, StoreFile, file_id

logger = logging.getLogger(__name__)

APPLICATION_ID = 0x66736D31
"""What SQLite's header says whose file this is: the letters fsm1."""
BUSY_LIMIT_S = 30.0
"""So long, in seconds, a call waits for other processes before it gives up."""
_SMALLEST = 512
_FIRST_WAIT_S = 0.0005
_LONGEST_WAIT_S = 0.05
SYNCHRONOUS = ("FULL", "NORMAL", "EXTRA")

T = TypeVar("T")


def parse_url(url: str) -> tuple[Path, str]:
    """Return the file and the synchronous level that a URL names.

    Raises:
        NotAStore: The URL is not of the form ``sqlite:///FILE[?synchronous=FULL|NORMAL|EXTRA]``.
    """
    head, _, query = url.partition("?")
    # A name that is no UTF-8 may be written with percent signs: it is the bytes that name the file.
    path = unquote(head.removeprefix("sqlite:///"), errors="surrogateescape")
    if not head.startswith("sqlite:///") or not path or path == ":memory:" or not _is_name(path):
        raise NotAStore(
            f"{url!r} names no file: write sqlite:///file.db (three slashes, beside you), "
            "sqlite:////absolute/file.db (four), or memory:// for no file at all"
        )
    options = parse_qs(query, keep_blank_values=True)
    level = options.pop("synchronous", ["FULL"])[-1].upper()
    if options or level not in SYNCHRONOUS:
        raise NotAStore(f"{url!r}: the one option is synchronous={'|'.join(SYNCHRONOUS)}")
    return Path(path), level


def _is_name(path: str) -> bool:
    """Return whether a file can be called so: without NUL, and of characters that file names are made of."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def patiently(call: Callable[[], T], what: str, limit_s: float = BUSY_LIMIT_S) -> T:
    """Call again while another process holds the file.

    Args:
        call: What to do; it must be safe to repeat.
        what: For the error message.
        limit_s: How long to go on, in seconds.

    Raises:
        StoreUnavailable: The file was busy all the time.
    """
    started = time.monotonic()
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            return call()
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            if time.monotonic() - started > limit_s:
                raise StoreUnavailable(
                    f"{what}: other processes kept the file busy for {limit_s:g} s; nothing was written"
                ) from error
        time.sleep(random.uniform(0, wait_s))  # noqa: S311 - jitter, not a secret
        wait_s = min(wait_s * 2, _LONGEST_WAIT_S)


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether an error means that another connection is at work."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def connect(
    path: Path,
    synchronous: str,
    *,
    create: bool = False,
    factory: Callable[..., Connection] = Connection,
) -> Connection:
    """Open one connection to a file.

    Args:
        path: The file.
        synchronous: FULL survives power loss; NORMAL survives a crash of the process.
        create: Make the file if it is not there; otherwise a file that was moved away is an error, not a new file.
        factory: Makes the connection, with the arguments of `sqlite3.connect`.
    """
    where = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
    opened_on = file_id(path)
    connection: Connection = sqlite3.connect(
        where,
        timeout=0,
        isolation_level=None,
        check_same_thread=False,
        uri=True,
        factory=cast("Any", factory),
    )
    try:
        connection.opened_on = opened_on
        patiently(lambda: connection.execute(f"PRAGMA synchronous={synchronous}"), str(path))
    except BaseException:
        connection.close()
        raise
    return connection


def known_version() -> int:
    """Return the schema version that this version of the library works with."""
    return len(_scripts())


def peek(path: Path) -> int:
    """Return the schema version of a file that is there, and change nothing in it.

    Raises:
        NotAStore: The file is no database, damaged, or another program's.
        StoreTooNew: A newer version of the library wrote it.
        StoreUnavailable: It cannot be opened.
    """
    try:
        connection = connect(path, SYNCHRONOUS[0])
        try:
            return patiently(lambda: _check(connection, path), str(path))
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise explain(error, path) from error


def prepare(file: StoreFile, synchronous: str) -> sqlite3.Connection:
    """Open a file, create or migrate its schema, and return the connection.

    Raises:
        NotAStore: The file is no database, damaged, another program's, or mounted as a single file.
        StoreTooNew: A newer version of the library wrote it.
        StoreUnavailable: It cannot be opened or written, or has a second name.
    """
    path = file.path
    try:
        _look_at(file)
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise StoreUnavailable(f"{path} cannot be opened: {error.strerror or error}") from error
    connection: sqlite3.Connection | None = None
    try:
        connection = connect(path, synchronous, create=True)
        file.admit()  # now it is there, and nothing was written into it
        patiently(lambda: _check(connection, path), str(path))
        patiently(lambda: _wal(connection, path), str(path))
        patiently(lambda: _migrate(connection, path), str(path))
        patiently(lambda: file.opened(connection), str(path))
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, (sqlite3.Error, UnicodeDecodeError)):
            raise explain(error, path) from error
        raise
    return connection


def _look_at(file: StoreFile) -> None:
    """Refuse what is no file of ours before SQLite is asked: it would write over what it takes for empty."""
    path = file.path
    if not path.parent.is_dir():
        raise StoreUnavailable(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise NotAStore(f"{path} is a folder, not a file: write sqlite:///{path}/fsm.db")
    if not path.exists():
        return
    if not path.is_file():
        raise NotAStore(f"{path} is no ordinary file (a device, a pipe): choose another name")
    file.admit()
    if 0 < path.stat().st_size < _SMALLEST:
        # SQLite takes a file of one byte for an empty database, and would write over it.
        raise NotAStore(f"{path} is no fsm store: nothing was changed in it; choose another file")


_SAID = {
    sqlite3.SQLITE_READONLY_DBMOVED: "was moved, deleted or replaced: restart this process, or move it back",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full; nothing was written",
    sqlite3.SQLITE_READONLY: "cannot be written: check its permissions and its folder's",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: check the path and the permissions",
}
"""What SQLite's codes mean, and what to do."""


def explain(error: sqlite3.Error | UnicodeDecodeError, path: Path) -> NotAStore | StoreUnavailable:
    """Return the error of this library that says what SQLite's error means."""
    if isinstance(error, UnicodeDecodeError):
        # SQLite's own message names a part of the schema that is no text any more.
        return _damaged(path, "its schema is no text")
    full_code: int = getattr(error, "sqlite_errorcode", 0)
    code = full_code & 0xFF
    if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        return _damaged(path, str(error))
    said = _SAID.get(full_code) or _SAID.get(code)
    return StoreUnavailable(f"{path} {said}" if said else f"{path}: {error}")


def _damaged(path: Path, what: str) -> NotAStore:
    return NotAStore(
        f"{path} is no fsm store, or a damaged one ({what}): nothing was changed in it; "
        "restore it from a backup or choose another file"
    )


def _check(connection: sqlite3.Connection, path: Path) -> int:
    """Return the schema version of a file that is ours or empty."""
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if owner == APPLICATION_ID:
        if version > len(_scripts()):
            raise StoreTooNew(str(path), version, len(_scripts()))
        return version
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if owner or version or tables:
        raise NotAStore(
            f"{path} is another program's database ({tables} tables): nothing was changed in it; choose another file"
        )
    return 0


def _wal(connection: sqlite3.Connection, path: Path) -> None:
    mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        logger.warning("%s: this file system takes no write-ahead log; readers will wait for writers", path)


def _scripts() -> list[str]:
    """Return the migrations in order; script n brings version n-1 to n."""
    folder = resources.files("fsm.stores.sqlite")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [folder.joinpath(name).read_text(encoding="utf-8") for name in names]


def _statements(script: str) -> Iterator[str]:
    """Split a script; `executescript` would commit in between."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def schema(connection: sqlite3.Connection) -> None:
    """Carry every migration out on an empty database, for a comparison."""
    for script in _scripts():
        connection.executescript(script)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema up to date in one transaction: after a crash the file is as it was."""
    scripts = _scripts()
    if _check(connection, path) == len(scripts):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Looked at again inside the transaction: another process may have been faster.
        version = _check(connection, path)
        for script in scripts[version:]:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={len(scripts)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    logger.info("%s: schema brought from version %d to %d", path, version, len(scripts))
