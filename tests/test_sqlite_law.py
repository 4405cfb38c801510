"""The table is law in the file too: raw SQL of another program is held to it."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from sqlite_tools import NEXT, ROW, STEP, born, contents, rogue

from fsm.stores.sqlite.store import SqliteStore
from fsm.testing import fresh_tracker

ROGUE = {
    "a row that is not in the table": f"{STEP}, state = 'completed', event = 'complete' WHERE id = 'open'",
    "a state without its event": f"{STEP}, state = 'failed', event = 'think' WHERE id = 'open'",
    "an event nobody knows": f"{STEP}, state = 'failed', event = 'hack' WHERE id = 'open'",
    "a state nobody knows": f"{STEP}, state = 'hacked', event = 'fail' WHERE id = 'open'",
    "no state at all": f"{STEP}, state = NULL, event = 'fail' WHERE id = 'open'",
    "no state at all, ignored": "UPDATE OR IGNORE executions SET state = NULL WHERE id = 'open'",
    "a state alone": "UPDATE executions SET state = 'thinking' WHERE id = 'open'",
    "a field alone": "UPDATE executions SET fence = 0 WHERE id = 'open'",
    "an end that goes on": f"{STEP}, state = 'queued', event = 'fail' WHERE id = 'ended'",
    "an end that ends otherwise": f"{STEP}, state = 'failed', event = 'fail' WHERE id = 'ended'",
    "an end, touched": "UPDATE executions SET ending = '{}' WHERE id = 'ended'",
    "an end, with a note": f"{STEP}, event = 'progress' WHERE id = 'ended'",
    "an end, for all": "UPDATE OR REPLACE executions SET state = 'created', version = 0",
    "a gap in versions": f"{STEP}, state = 'thinking', event = 'think', version = 9 WHERE id = 'open'",
    "a version again": f"{STEP}, state = 'thinking', event = 'think', version = version WHERE id = 'open'",
    "a version back": f"{STEP}, state = 'thinking', event = 'think', version = 0 WHERE id = 'open'",
    "a gap in positions": f"{STEP}, state = 'thinking', event = 'think', position = 99 WHERE id = 'open'",
    "a position again": f"{STEP}, state = 'thinking', event = 'think', position = 1 WHERE id = 'open'",
    "time running backwards": f"{STEP}, state = 'thinking', event = 'think', updated_at = 1 WHERE id = 'open'",
    "time that is text": f"{STEP}, state = 'thinking', event = 'think', updated_at = 'x' WHERE id = 'open'",
    "time without end": f"{STEP}, state = 'thinking', event = 'think', updated_at = 9e999 WHERE id = 'open'",
    "a used key": f"{STEP}, state = 'thinking', event = 'think', key = 'k' WHERE id = 'open'",
    "a used key, replacing": f"{STEP}, state = 'thinking', event = 'think', key = 'k' WHERE id = 'open'".replace(
        "UPDATE", "UPDATE OR REPLACE", 1
    ),
    "a used key, ignored": f"{STEP}, state = 'thinking', event = 'think', key = 'k' WHERE id = 'open'".replace(
        "UPDATE", "UPDATE OR IGNORE", 1
    ),
    **{
        f"another {column}": f"{STEP}, state = 'thinking', event = 'think', {column} = {value} WHERE id = 'open'"
        for column, value in {
            "id": "'other'",
            "machine": "2",
            "agent": "'x'",
            "user_id": "'mallory'",
            "thread_id": "'x'",
            "parent_id": "'ended'",
            "retry_of": "'ended'",
            "created_at": "1",
            "attempts_max": "99",
            "model_attempts_max": "99",
            "metadata": "'{}'",
            "timeouts": "'{}'",
            "born_at": "7",
            "backoff_s": "7",
            "backoff_cap_s": "7",
        }.items()
    },
    "the id of another, replacing it": "UPDATE OR REPLACE executions SET id = 'ended' WHERE id = 'open'",
    "an open one deleted": "DELETE FROM executions WHERE id = 'open'",
    "a birth in a later state": born(state="thinking"),
    "a birth at a later version": born(version=5),
    "a birth by another event": born(event="start"),
    "a birth on no machine": born(machine="77"),
    "a birth at an old position": born(position="1"),
    "a birth under an ended parent": born()
    .replace("user_id,", "parent_id, user_id,")
    .replace("'a', 'u',", "'a', 'ended', 'u',"),
    "a birth in the place of an ended one": born("ended", how="INSERT OR REPLACE"),
    "a birth upon conflict": born("ended") + " ON CONFLICT DO UPDATE SET state = 'created'",
    "a journal row": (
        f"INSERT INTO journal {ROW} VALUES ({NEXT}, 'open', 3, 1, 'think', 'starting', 'thinking', 1, 1, 1)"
    ),
    "a journal row of the present": (
        f"INSERT INTO journal {ROW} SELECT {NEXT}, id, version, machine, event, 'created', state, 1, 1, 1 "
        "FROM executions WHERE id = 'open'"
    ),
    "a journal row without a position": (
        "INSERT INTO journal (execution_id, version, machine, event, target, at, attempt, fence) "
        "SELECT id, version, machine, event, state, 1, 1, 1 FROM executions WHERE id = 'open'"
    ),
    "a journal row, replaced": (
        f"INSERT OR REPLACE INTO journal {ROW} SELECT position, id, version, machine, event, 'queued', state, 1, 1, 1 "
        "FROM executions WHERE id = 'open'"
    ),
    "a journal row, rewritten": "UPDATE journal SET at = 1",
    "a journal row, rewritten by force": "UPDATE OR REPLACE journal SET position = 1 WHERE position = 2",
    "a journal row, deleted": "DELETE FROM journal WHERE execution_id = 'ended'",
    "the journal, deleted": "DELETE FROM journal",
    "the horizon, moved": "UPDATE horizon SET position = 99",
    "the horizon, deleted": "DELETE FROM horizon",
    "the horizon, replaced": "INSERT OR REPLACE INTO horizon VALUES (1, 99)",
    "a law for a machine": "INSERT INTO law VALUES (1, 'completed', 'undo', 'created')",
    "a law for a machine, replaced": "INSERT OR REPLACE INTO law VALUES (1, '', 'create', 'created')",
    "a law for a machine to come": "INSERT INTO law VALUES (99, '', 'create', 'created')",
    "a law rewritten": "UPDATE law SET target = 'completed'",
    "a law rewritten by force": "UPDATE OR IGNORE law SET target = 'completed'",
    "a law repealed": "DELETE FROM law",
    "a state for a machine": "INSERT INTO states VALUES (1, 'limbo', 0, 0)",
    "a state for a machine to come": "INSERT INTO states VALUES (99, 'limbo', 0, 0)",
    "an end that is none any more": "UPDATE states SET terminal = 0",
    "an end, replaced": "INSERT OR REPLACE INTO states VALUES (1, 'completed', 0, 0)",
    "a state that stops": "UPDATE states SET stopping = 1",
    "a state deleted": "DELETE FROM states WHERE name = 'completed'",
    "a machine unsealed": "UPDATE machines SET sealed = 0",
    "a machine renamed": "UPDATE machines SET name = 'x'",
    "a machine rewritten": "UPDATE machines SET document = '{}'",
    "a machine deleted": "DELETE FROM machines",
    "a machine replaced by its number": (
        "INSERT OR REPLACE INTO machines (id, content_hash, name, document) VALUES (1, 'x', 'x', '{}')"
    ),
    "a machine replaced by its hash": (
        "INSERT OR REPLACE INTO machines (content_hash, name, document) "
        "SELECT content_hash, name, document FROM machines"
    ),
    "a machine born sealed": (
        "INSERT INTO machines (content_hash, name, document, sealed) VALUES ('x', 'x', '{}', 1)"
    ),
}


@pytest.mark.parametrize("what", ROGUE)
def test_raw_sql_against_the_law_is_refused(what, written):
    """Whatever another program writes against the law is refused, and nothing has changed."""
    before = contents(written)
    with closing(rogue(written)) as connection, pytest.raises(sqlite3.IntegrityError, match="fsm: "):
        connection.execute(ROGUE[what])
    assert contents(written) == before
    with closing(rogue(written)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("recursive", [0, 1])
@pytest.mark.parametrize("pragma", ["ignore_check_constraints", "foreign_keys", "recursive_triggers"])
def test_no_pragma_turns_the_law_off(pragma, recursive, written):
    """The law does not hang on a setting of the connection that writes."""
    before = contents(written)
    with closing(rogue(written)) as connection:
        connection.execute(f"PRAGMA {pragma} = {recursive}")
        for what in ("a row that is not in the table", "an end that ends otherwise", "a used key, replacing"):
            with pytest.raises(sqlite3.IntegrityError, match="fsm: "):
                connection.execute(ROGUE[what])
    assert contents(written) == before


def test_a_legal_transition_in_raw_sql_is_journaled(written):
    """Raw SQL that keeps to the law is carried out, and the file itself writes the journal."""
    with closing(rogue(written)) as connection:
        connection.execute(f"{STEP}, state = 'thinking', event = 'think', key = 'k2' WHERE id = 'open'")
        connection.execute(born())
    with closing(SqliteStore(f"sqlite:///{written}")) as store:
        history = store.history("open")
        assert [(one.version, one.source, one.event, one.target) for one in history][1:] == [
            (1, "created", "start", "starting"),
            (2, "starting", "think", "thinking"),
        ]
        assert store.keyed("open", "k2") == history[-1]
        assert [one.event for one in store.history("new")] == ["create"]


def test_a_machine_of_another_program_cannot_take_a_sealed_ones_place(written):
    """An unsealed machine cannot be moved onto the number of a sealed one."""
    with closing(rogue(written)) as connection:
        connection.execute("INSERT INTO machines (content_hash, name, document) VALUES ('x', 'x', '{}')")
        before = contents(written)
        with pytest.raises(sqlite3.IntegrityError, match="immutable"):
            connection.execute("UPDATE OR REPLACE machines SET id = 1, sealed = 1 WHERE content_hash = 'x'")
        with pytest.raises(sqlite3.IntegrityError, match="terminal"):
            connection.execute("INSERT INTO law SELECT id, 'a', 'go', 'a' FROM machines WHERE name = 'x'")
        connection.execute("INSERT INTO states SELECT id, 'a', 1, 0 FROM machines WHERE name = 'x'")
        with pytest.raises(sqlite3.IntegrityError, match="terminal"):
            connection.execute("INSERT INTO law SELECT id, 'a', 'go', 'a' FROM machines WHERE name = 'x'")
        with pytest.raises(sqlite3.IntegrityError, match="immutable"):
            connection.execute(
                "INSERT OR REPLACE INTO states SELECT id, 'a', 0, 0 FROM machines WHERE name = 'x'"
            )
        with pytest.raises(sqlite3.IntegrityError, match="initial state"):
            connection.execute(born(machine="(SELECT id FROM machines WHERE name = 'x')", state="a"))
    assert contents(written)["executions"] == before["executions"]


def test_a_machine_that_cannot_be_read_hides_nothing_else(written, caplog):
    """A machine that another program wrote wrongly is left out with a warning; everything else is found."""
    with closing(rogue(written)) as connection:
        connection.execute("INSERT INTO machines (content_hash, name, document) VALUES ('x', 'x', '{}')")
    with fresh_tracker(f"sqlite:///{written}") as tracker:
        assert [one.id for one in tracker.find(state=["starting", "cancelled"])] == ["open", "ended"]
        assert tracker.find(category="terminal")[0].id == "ended"
    assert "cannot be read" in caplog.text
