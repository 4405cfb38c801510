"""A look through a whole file: SQLite's own checks, the schema with its law, and what no single record shows."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

from fsm.stores.base import Damage
from fsm.stores.sqlite import rows as shapes
from fsm.stores.sqlite.connect import schema

MAX_FOUND = 1000
"""Maximum number of damages of one kind that an inspection names."""

Rows = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]

_IN_THE_PAST = """
    SELECT executions.id, {column} FROM executions
    WHERE {column} IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM executions AS named WHERE named.id = executions.{column})
        AND NOT EXISTS (SELECT 1 FROM tombstones WHERE tombstones.id = executions.{column})
        AND NOT EXISTS (SELECT 1 FROM bygone WHERE executions.{column} BETWEEN first AND last)
"""
_ONE = "SELECT count(*) FROM {table} HAVING count(*) <> 1"
_GHOST = (
    "SELECT id FROM executions WHERE EXISTS (SELECT 1 FROM tombstones WHERE tombstones.id = executions.id)"
)
_LAST = """
    SELECT id FROM executions WHERE NOT EXISTS (
        SELECT 1 FROM journal WHERE journal.position = executions.position
            AND journal.execution_id = executions.id AND journal.version = executions.version
    )
"""
_STRAY = "SELECT position FROM journal WHERE NOT EXISTS (SELECT 1 FROM executions WHERE id = execution_id)"
_ENDLESS = "SELECT id FROM executions WHERE typeof(due_at) NOT IN ('real', 'integer', 'null')"
_SILENT = """
    SELECT key FROM breakers WHERE NOT EXISTS (SELECT 1 FROM breaker_journal WHERE breaker_journal.key = breakers.key)
"""
_NO_NUMBER = "SELECT {key} FROM {table} WHERE typeof({column}) NOT IN ('real', 'integer'{null})"
_NUMBERS = (
    *(("eras", "era", column, "") for column in ("offset_s", "begun_s", "lag_s", "drift_s", "even_s")),
    ("eras", "era", "held_at", ", 'null'"),
    *(("mark", "id", column, "") for column in ("steady_at", "wall_at")),
    ("mark", "id", "monotonic_s", ", 'null'"),
)
_SPARED = """
    SELECT id FROM spared
    WHERE typeof(times) <> 'integer' OR NOT EXISTS (SELECT 1 FROM workers WHERE workers.id = spared.id)
"""
_PLACES = """
    SELECT id FROM places
    WHERE typeof(born) <> 'integer' OR EXISTS (SELECT 1 FROM executions WHERE executions.id = places.id)
"""
_BACK = "SELECT id FROM departed WHERE EXISTS (SELECT 1 FROM workers WHERE workers.id = departed.id)"
_LAWLESS = """
    SELECT content_hash FROM machines WHERE sealed AND json_valid(document) AND EXISTS (
        SELECT 1 FROM json_each(machines.document, '$.transitions') AS step
        WHERE NOT EXISTS (
            SELECT 1 FROM law WHERE law.machine = machines.id AND law.event = json_extract(step.value, '$.event')
        )
    )
"""
_UNSEALED = "SELECT content_hash FROM machines WHERE NOT sealed"
_ALONE = "is not the one row that there must be"
_QUESTIONS: tuple[tuple[str, str, str, str], ...] = (
    ("executions", "id", "has a tombstone although it is there: it was deleted and born again", _GHOST),
    ("executions", "position", "is not where the journal has its last row", _LAST),
    ("executions", "parent_id", "was never there", _IN_THE_PAST.format(column="parent_id")),
    ("executions", "due_at", "is no number", _ENDLESS),
    ("journal", "execution_id", "names an execution that is not there", _STRAY),
    ("machines", "sealed", "is not set: its states and rows were never completed", _UNSEALED),
    ("machines", "law", "has no row for an event of its document", _LAWLESS),
    ("breakers", "key", "has no line in the journal", _SILENT),
    *(
        (table, column, "is no number", _NO_NUMBER.format(table=table, column=column, key=key, null=null))
        for table, key, column, null in _NUMBERS
    ),
    ("spared", "times", "is no count of a worker that is there", _SPARED),
    ("places", "born", "is no position of an execution that was deleted", _PLACES),
    ("departed", "id", "is registered again although it has left", _BACK),
    *((table, "id", _ALONE, _ONE.format(table=table)) for table in ("horizon", "store", "bygone")),
)
"""What must have no answer: the table and column at fault, what is wrong, and the question."""


def inspect(rows: Rows) -> list[Damage]:
    """Return what is wrong with a file, beyond records that cannot be read.

    Args:
        rows: Answers a question to the file.

    Returns:
        The damages, at most `MAX_FOUND` of one kind.
    """
    return list(_found(rows))


def _found(rows: Rows) -> Iterator[Damage]:
    for (said,) in rows(f"PRAGMA integrity_check({MAX_FOUND})", ()):
        if said != "ok":
            yield Damage("file", "pages", "", shapes.shown(said))
    for table, row_id, parent, _ in rows("PRAGMA foreign_key_check", ())[:MAX_FOUND]:
        yield Damage(
            shapes.shown(table), shapes.shown(row_id), "", f"refers to a row of {parent} that is not there"
        )
    yield from _schema(rows)
    for table, column, why, question in _QUESTIONS:
        for row in rows(f"{question} LIMIT {MAX_FOUND}", ()):
            yield Damage(table, shapes.shown(row[0]), column, why)


def _schema(rows: Rows) -> Iterator[Damage]:
    """Compare tables, indexes and triggers with those of a file that was just made."""
    question = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
    found = {(kind, name): sql for kind, name, sql in rows(question, ())}
    with closing(sqlite3.connect(":memory:")) as made:
        schema(made)
        wanted = {(kind, name): sql for kind, name, sql in made.execute(question)}
    for (kind, name), sql in wanted.items():
        if (kind, name) not in found:
            yield Damage("file", f"{kind} {name}", "", "is missing: the law of this file is not complete")
        elif found[kind, name] != sql:
            yield Damage("file", f"{kind} {name}", "", "is not as this library makes it")
    for kind, name in found.keys() - wanted.keys():
        if kind == "trigger":
            yield Damage("file", f"{kind} {shapes.shown(name)}", "", "was added by another program")
