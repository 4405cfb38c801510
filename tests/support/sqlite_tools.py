"""What the tests of SQLite files share: raw SQL, a look at everything, processes of their own."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

from fsm.core.journal import fold
from fsm.lifecycles import EXECUTION
from fsm.stores.sqlite import connect as connecting
from fsm.testing import fresh_tracker

SQL = Path(connecting.__file__).parent
NEXT = "(SELECT max(position) + 1 FROM journal)"
STEP = f"UPDATE executions SET version = version + 1, position = {NEXT}, updated_at = updated_at + 1"
"""A transition in raw SQL; with a state and an event of the table it would be a legal one."""
BORN = (
    "(id, machine, agent, user_id, thread_id, created_at, attempts_max, model_attempts_max, state, version,"
    " entered_at, updated_at, attempt, fence, model_attempt, position, event)"
)


def born(
    one: str = "new", machine: str = "1", state: str = "created", version: int = 0, position: str = NEXT,
    event: str = "create", how: str = "INSERT",
) -> str:  # fmt: skip
    """Return raw SQL that brings an execution into being; as it stands a legal one."""
    return (
        f"{how} INTO executions {BORN[:-1]}, born) "
        f"SELECT '{one}', {machine}, 'a', 'u', 't', 1, 1, 1, '{state}', {version}, 1, 1, "
        f"0, 0, 0, {position}, '{event}', {position} WHERE 1"
    )


ROW = "(position, execution_id, version, machine, event, source, target, at, attempt, fence)"


def rogue(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, isolation_level=None)


def contents(file: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(rogue(file)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr)
                if name not in {"horizon", "eras", "sqlite_stat1"}
                else connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}  # fmt: skip


def sound(file: Path) -> None:
    """Assert that a file is whole: SQLite's own check, and every state the fold of its journal."""
    with closing(rogue(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with fresh_tracker(f"sqlite:///{file}") as tracker:
        after = None
        while page := tracker.find(limit=1000, after=after):
            after = page[-1].id
            for one in page:
                history = tracker.history(one.id)
                assert [receipt.version for receipt in history] == list(range(one.version + 1))
                assert fold(history, EXECUTION) == one.state


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process of its own, with pipes to talk to it."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def tamper(file: Path, *statements: str) -> None:
    """Write past the law, as damage would: with every trigger out of the way, and back in its place afterwards."""
    with closing(rogue(file)) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        for _, sql in triggers:
            connection.execute(sql)
        connection.execute("COMMIT")
