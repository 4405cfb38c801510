"""The table is law in the file too: raw SQL of another program is held to it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fsm.core.journal import record_of
from fsm.core.records import Receipt
from fsm.core.timeline import Era, Mark
from fsm.errors import LeaseLost
from fsm.lifecycles import EXECUTION
from fsm.stores import Conflict, WorkerRow
from fsm.stores.sqlite import connect as connecting
from fsm.stores.sqlite.store import SqliteStore
from fsm.testing import ManualClock, fresh_tracker
from fsm.testing.conformance.steps import birth, committed, move, walk
from fsm.tracker.verify import verify
from tests.support.sqlite_tools import NEXT, ROW, STEP, born, contents, rogue, tamper

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

PROGRESS = f"{STEP}, event = 'progress', key = NULL"
WHOLE = {
    f"progress with {change}": f"{PROGRESS}, {change} WHERE id = 'open'"
    for change in (
        "fence = fence - 1", "fence = fence + 2", "fence = 'x'", "fence = 0.5", "fence = NULL",
        "owner = 'mallory'", "owner = NULL", "owner = x'00', fence = fence + 1",
        "attempt = 99", "attempt = attempt + 1", "attempt = attempt - 1, fence = fence + 1", "attempt = 'x'",
        "attempt = attempt + 2, fence = fence + 1",
        "tools = '['", "tools = '{}'", "tools = x'5b5d'", "tools = ''", "tools = 5",
        "due_at = NULL", "due_at = 'never'", "due_at = x'00'", "due_at = 9e999", "due_at = -9e999", "due_kind = NULL",
        "due_kind = x'00'", "due_at = NULL, due_kind = 'phase'",
        "model_attempt = 7", "model_attempt = -1", "model_attempt = 'x'", "model_attempt = NULL",
        "key = x'00'", "payload = '['", "payload = '[]'", "payload = 'x'", "payload = x'7b7d'", "payload = ''",
        "not_before = 'x'", "not_before = 9e999", "limit_s = 'x'", "limit_s = -1", "breaker = x'00'",
        "ending = '{}'", "ending = 'x'", "entered_at = 'x'", "entered_at = 5", "since_at = 'x'", "since_at = 5",
        "paused_s = 'x'", "paused_s = -1", "paused_s = 9e999", "paused_s = x'00'", "suspended = 2", "suspended = 'x'",
        "suspended = 0.5", "suspended = x'00'", "born = 7", "born_key = 'x'",
        "since_at = since_at + 1e6", "entered_at = updated_at + 1, since_at = 9e999",
    )
} | {
    "an end without JSON": f"{STEP}, state = 'failed', event = 'fail', ending = '[' WHERE id = 'open'",
    "an end that is a list": f"{STEP}, state = 'failed', event = 'fail', ending = '[]' WHERE id = 'open'",
}  # fmt: skip
ROGUE |= WHOLE
ROGUE |= {
    f"a birth with {column} {value}": born()
    .replace("user_id, thread_id", f"{column}, {'thread_id' if column == 'user_id' else 'user_id, thread_id'}")
    .replace("'a', 'u', 't'", f"'a', {value}, {'' if column == 'user_id' else chr(39) + 'u' + chr(39) + ', '}'t'")
    for column, value in (
        ("metadata", "'['"), ("metadata", "'[]'"), ("metadata", "x'7b7d'"), ("timeouts", "'x'"), ("payload", "'x'"),
        ("owner", "'w'"), ("tools", "'[]'"), ("ending", "'{}'"), ("due_at", "5"), ("due_at", "'x'"),
        ("due_kind", "'total'"), ("born_at", "'x'"), ("since_at", "9e999"), ("backoff_s", "-1"), ("key", "x'00'"),
        ("parent_id", "x'00'"), ("retry_of", "x'00'"), ("not_before", "5"), ("breaker", "'b'"), ("limit_s", "5"),
        ("user_id", "x'00'"), ("born_key", "x'00'"), ("paused_s", "-1"), ("paused_s", "'x'"), ("paused_s", "9e999"),
        ("suspended", "1"), ("suspended", "'x'"),
    )
}  # fmt: skip
ROGUE |= {
    "an execution born in the middle": born().replace("0, 0, 0, ", "1, 1, 0, "),
    "an id that is no text": born().replace("'new'", "x'00'"),
    "a birth at another place": born().replace(f"{NEXT}, 'create', {NEXT}", f"{NEXT}, 'create', 0"),
    "a birth at no place": born().replace(f"{NEXT}, 'create', {NEXT}", f"{NEXT}, 'create', 'x'"),
    "no attempts": born().replace("1, 1, 1, 'created'", "1, 0, 1, 'created'"),
    "the store id, changed": "UPDATE store SET token = 'x'",
    "the store id, deleted": "DELETE FROM store",
    "a second store id": "INSERT INTO store VALUES (2, 'x')",
    "the store id, replaced": "INSERT OR REPLACE INTO store VALUES (1, 'x')",
    "a tombstone for what is there": "INSERT INTO tombstones VALUES ('open')",
    "a tombstone without text": "INSERT INTO tombstones VALUES (x'00')",
    "what is bygone, moved": "UPDATE bygone SET first = 'a', last = 'z'",
    "what is bygone, counted": "UPDATE bygone SET kept = 5000000",
    "what is bygone, deleted": "DELETE FROM bygone",
    "what is bygone, again": "INSERT INTO bygone VALUES (2, 0, 'a', 'z')",
    "an order for a healthy parent": "INSERT INTO orders VALUES ('open', 1, 'start')",
    "an order of another event": "INSERT INTO orders VALUES ('open', 1, 'cancel')",
    "an order of another version": "INSERT INTO orders VALUES ('ended', 7, 'cancel')",
    "an order for nobody": "INSERT INTO orders VALUES ('nobody', 1, 'cancel')",
    "an order, replacing": "INSERT OR REPLACE INTO orders VALUES ('open', 1, 'x')",
    "the timeline, moved": "UPDATE eras SET offset_s = offset_s + 86400",
    "the timeline, as text": "UPDATE eras SET offset_s = 'x'",
    **{
        f"a timeline of another boot with {column} {value}": f"INSERT INTO eras ({given}) VALUES ('boot', {values})"
        for column in ("offset_s", "held_at", "begun_s", "lag_s", "drift_s", "even_s")
        for value in ("'x'", "9e999", "x'00'")
        for given, values in (
            [("era, offset_s", value)]
            if column == "offset_s"
            else [(f"era, offset_s, {column}", f"5, {value}")]
        )
    },
    "a second mark": "INSERT INTO mark VALUES (2, 9e9, 1, 1)",
    "a mark without a number": "INSERT INTO mark VALUES (NULL, 9e9, 1, 1)",
    "a mark, as text": "INSERT INTO mark VALUES (1, 'x', 1, 1)",
    "a mark without end": "INSERT OR REPLACE INTO mark VALUES (1, 9e999, 1, 1)",
    "a mark by another clock": "INSERT OR REPLACE INTO mark VALUES (1, 9e9, 'x', 1)",
    "a mark of bytes": "INSERT OR REPLACE INTO mark VALUES (1, 9e9, 1, x'00')",
    "the mark, lowered": "UPDATE mark SET steady_at = steady_at - 1",
    "the mark, of another time": "UPDATE mark SET wall_at = wall_at - 86400",
    "the mark, renumbered": "UPDATE mark SET id = 2, steady_at = steady_at + 1",
    "the mark, as text": "UPDATE mark SET steady_at = 'x'",
    "the mark, without end": "UPDATE mark SET steady_at = 9e999",
    "the mark, deleted": "DELETE FROM mark",
    "nobody, spared": "INSERT INTO spared VALUES ('nobody', 1)",
    "a place for what is there": "INSERT INTO places (id, born) VALUES ('open', 1)",
    "a place without a position": "INSERT INTO places (id, born) VALUES ('x', 'x')",
    "a place before all": "INSERT INTO places (id, born) VALUES ('x', -1)",
    "a place of bytes": "INSERT INTO places (id, born) VALUES (x'00', 1)",
    "a place far ahead": "INSERT INTO places VALUES (1000000, 'x', 1)",
    "a machine that is no document": "INSERT INTO machines (content_hash, name, document) VALUES ('x', 'x', 'x')",
    "a machine of bytes": "INSERT INTO machines (content_hash, name, document) VALUES ('x', 'x', x'7b7d')",
    "a worker without a time": "INSERT INTO workers VALUES ('w', 'w', 'x', 1, 1, 0)",
    "a worker for ever": "INSERT INTO workers VALUES ('w', 'w', 9e999, 1, 1, 0)",
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


# --- what was deleted is not born again -----------------------------------------------------------------------------


def delete_by_hand(connection: sqlite3.Connection, execution_id: str) -> None:
    """Delete an ended execution and its journal, as a script may."""
    connection.execute(f"DELETE FROM executions WHERE id = '{execution_id}'")
    connection.execute("UPDATE horizon SET position = max(position, (SELECT max(position) FROM journal))")
    connection.execute(f"DELETE FROM journal WHERE execution_id = '{execution_id}'")


HORIZON = "(SELECT max((SELECT coalesce(max(position), 0) FROM journal), (SELECT position FROM horizon)) + 1)"


@pytest.mark.parametrize("how", ["INSERT", "INSERT OR REPLACE", "INSERT OR IGNORE"])
def test_a_deleted_id_is_not_born_again(how, written):
    """An ended execution that is deleted, by the pruner or by hand, leaves a tombstone: its id is never born again."""
    with closing(SqliteStore(f"sqlite:///{written}")) as store:
        committed(store, *walk(birth(id="pruned"), "cancel"))
        assert store.forget(["pruned"]) == 1
    with closing(rogue(written)) as connection:
        delete_by_hand(connection, "ended")
        for name in ("ended", "pruned"):
            with pytest.raises(sqlite3.IntegrityError, match="not born again"):
                connection.execute(born(name, position=HORIZON, how=how))
        for attempt in (
            "DELETE FROM tombstones",
            "UPDATE tombstones SET id = 'x'",
            "UPDATE OR REPLACE tombstones SET id = 'x'",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="stays so"):
                connection.execute(attempt)
        connection.execute("INSERT OR REPLACE INTO tombstones VALUES ('ended')")  # it is there already
        assert connection.execute("SELECT id FROM tombstones").fetchall() == [("ended",), ("pruned",)]
        assert connection.execute("SELECT kept FROM bygone").fetchall() == [(2,)]
        connection.execute(born("new", position=HORIZON))
    with closing(SqliteStore(f"sqlite:///{written}")) as store:
        first, second = store.append([birth(id="pruned"), birth(id="fresh")])
        assert first == Conflict("pruned", None)
        assert isinstance(second, Receipt)


def test_tombstones_are_bounded(tmp_path, monkeypatch):
    """Beyond the limit the oldest tombstones become one range, in which nothing is born; later ids are free."""
    scripts = [script.replace("1000000", "3") for script in connecting._scripts()]
    monkeypatch.setattr(connecting, "_scripts", lambda: scripts)
    file = tmp_path / "fsm.db"
    names = [f"e{number:02}" for number in (5, 6, 7, 8, 9, 2, 10)]
    with closing(SqliteStore(f"sqlite:///{file}")) as store:
        store.register(record_of(EXECUTION))
        for name in names:
            committed(store, *walk(birth(id=name), "cancel"))
        assert store.forget(names) == 7
        assert store.forget(names) == 0
        for name in (*names, "e04"):
            assert store.append([birth(id=name)]) == [Conflict(name, None)], name
        committed(store, birth(id="e01"), birth(id="e99"))
    with closing(rogue(file)) as connection:
        [(kept, first, last)] = connection.execute("SELECT kept, first, last FROM bygone").fetchall()
        assert (kept, first, last) == (3, "e02", "e07")
        assert [row[0] for row in connection.execute("SELECT id FROM tombstones")] == ["e08", "e09", "e10"]
        for change in (
            "first = 'e03'",
            "last = 'e06'",
            "first = NULL, last = NULL",
            "last = 'e99'",
            "id = 2",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="stays so"):
                connection.execute(f"UPDATE bygone SET {change}")


def test_parents_that_were_pruned_before_there_were_tombstones_are_known(written):
    """The migration gives a tombstone to every deleted execution that another one still names."""
    with closing(SqliteStore(f"sqlite:///{written}")) as store:
        committed(store, birth(id="child", parent_id="open"))
    old = written.with_name("old.db")
    with closing(rogue(old)) as connection:
        for script in connecting._scripts()[:6]:
            connection.executescript(script)
        connection.execute(f"ATTACH '{written}' AS new")
        triggers = connection.execute(
            "SELECT name, sql FROM main.sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for table in ("machines", "states", "law", "executions", "journal"):
            columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA main.table_info({table})"))
            connection.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")
        connection.execute("DELETE FROM main.executions WHERE id = 'open'")
        connection.execute("DELETE FROM main.journal WHERE execution_id = 'open'")
        for _, sql in triggers:
            connection.execute(sql)
        connection.execute(f"PRAGMA application_id = {connecting.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 6")
    with fresh_tracker(f"sqlite:///{old}", clock=ManualClock()) as tracker:
        assert not [one for one in tracker._registry.store.inspect() if one.column == "parent_id"]
    with closing(rogue(old)) as connection, pytest.raises(sqlite3.IntegrityError, match="not born again"):
        connection.execute(born("open", position=HORIZON))


# --- workers and time -----------------------------------------------------------------------------------------------


def test_a_worker_that_has_left_stays_away(written):
    """Raw SQL cannot bring a departed worker back, nor forget that it left, nor say it of one that is here."""
    with fresh_tracker(f"sqlite:///{written}", clock=ManualClock()) as tracker:
        store = tracker._registry.store
        gone = tracker.worker(ttl_s=50.0)
        gone.close()
        here = tracker.worker(ttl_s=50.0)
        before = contents(written)
        row = f"'{gone.id}', 'x', 50, 1, 1, 0"
        for sql in (
            f"INSERT INTO workers VALUES ({row})",
            f"INSERT OR REPLACE INTO workers VALUES ({row})",
            f"INSERT OR REPLACE INTO workers VALUES ('{here.id}', 'x', 50, 1, 1, 0)",
            f"UPDATE workers SET id = '{gone.id}'",
            "UPDATE workers SET ttl_s = 1e9",
            "UPDATE workers SET renewed_at = 'x'",
            "UPDATE workers SET lost = 'x'",
            "UPDATE workers SET started_at = 5",
            "DELETE FROM departed",
            "UPDATE departed SET id = 'x'",
            "UPDATE departed SET number = 99",
            f"INSERT INTO departed (id) VALUES ('{here.id}')",
            "INSERT INTO departed (id) VALUES (x'00')",
            "INSERT INTO departed VALUES (1000000, 'x')",
            "INSERT OR REPLACE INTO departed VALUES (1, 'x')",
        ):
            with closing(rogue(written)) as connection, pytest.raises(sqlite3.IntegrityError, match="fsm: "):
                connection.execute(sql)
            assert contents(written) == before, sql
        assert store.worker_renew(here.id, lambda: 5.0)
        one = tracker.create("a", user_id="u", thread_id="t")
        with pytest.raises(LeaseLost):
            tracker.fire(one.id, "start", owner=gone.id)
        here._stop.set()


def test_an_era_is_begun_once_and_replaced_as_a_whole(written):
    """Whoever begins an era again is passed over in silence; only who names its row as it is replaces it."""
    first, later = Era(5.0, 4.0, 1.0), Era(4.0)
    with closing(SqliteStore(f"sqlite:///{written}")) as store:
        assert store.timeline_set("boot", None, first) == first
        with closing(rogue(written)) as connection:
            connection.execute("INSERT INTO eras (era, offset_s) VALUES ('boot', 99)")
            connection.execute("INSERT OR REPLACE INTO eras (era, offset_s) VALUES ('boot', 99)")
        assert store.timeline_set("boot", None, Era(7.0)) == first
        assert store.timeline("boot").era == first
        assert store.timeline_set("boot", first, later) == later
        assert store.timeline("boot").era == later


def test_a_mark_only_rises(written):
    """A mark that is not above the one that is kept is passed over in silence, whoever writes it."""
    with closing(SqliteStore(f"sqlite:///{written}")) as store:
        top = Mark(8e9, 8e9, 1.0)
        store.timeline_mark(top)
        store.timeline_mark(Mark(7e9, 9e9, 2.0))
        with closing(rogue(written)) as connection:
            connection.execute("INSERT OR REPLACE INTO mark VALUES (1, 8e9, 1, 1)")
        assert store.timeline("").mark == top


def test_the_place_of_what_was_deleted_stays(written):
    """No raw SQL moves or forgets the place of a deleted execution, from which pages go on."""
    with closing(SqliteStore(f"sqlite:///{written}")) as store:
        assert store.forget(["ended"]) == 1
        [place] = store.database.rows("SELECT * FROM places")
        assert place[1] == "ended"
        for sql in (
            "UPDATE places SET born = born + 1", "UPDATE places SET id = 'x'", "DELETE FROM places",
            "INSERT OR REPLACE INTO places VALUES (1000000, 'x', 1)", "INSERT INTO places VALUES (NULL, 'x', 0.5)",
        ):  # fmt: skip
            with closing(rogue(written)) as connection, pytest.raises(sqlite3.IntegrityError, match="fsm: "):
                connection.execute(sql)
        assert store.database.rows("SELECT * FROM places") == [place]


def test_a_worker_is_spared_one_time_after_the_other(url):
    """No raw SQL counts the terms that a worker was given otherwise than one by one."""
    file = Path(url.removeprefix("sqlite:///"))
    with closing(SqliteStore(url)) as store:
        store.worker_add(WorkerRow("w", "w", 1.0, 0.0, 0.0, False))
        assert store.lose(100.0, spare=True) == []
        for sql in (
            "UPDATE spared SET times = 9", "UPDATE spared SET times = 'x'", "UPDATE spared SET id = 'v'",
            "INSERT OR REPLACE INTO spared VALUES ('w', -5)", "INSERT OR REPLACE INTO spared VALUES (x'00', 1)",
        ):  # fmt: skip
            with closing(rogue(file)) as connection, pytest.raises(sqlite3.IntegrityError, match="fsm: "):
                connection.execute(sql)
        assert store.database.rows("SELECT * FROM spared") == [("w", 1)]


def test_a_breaker_holds_what_its_columns_say(url):
    """Raw SQL that takes rows of the breakers' table must keep every column whole too."""
    file = Path(url.removeprefix("sqlite:///"))
    with fresh_tracker(url) as tracker:
        tracker.breakers.force_open("m")
        for change in (
            "probes = '['", "probes = '{}'", "since = 'x'", "until = x'00'", "successes = 'x'", "abandoned = 0.5",
            "openings = NULL", "actor = x'00'", "changed_at = 'x'", "at = 9e999", "generation = generation + 0.5",
        ):  # fmt: skip
            with closing(rogue(file)) as connection, pytest.raises(sqlite3.IntegrityError):
                connection.execute(f"UPDATE breakers SET version = version + 1, event = NULL, {change}")
        row = tracker._registry.store.breaker_load("m")
        assert (row.state, row.version) == ("forced_open", 1)


# --- legal SQL still is ---------------------------------------------------------------------------------------------


def test_a_claim_and_a_release_in_raw_sql_are_legal(written):
    """The law refuses what is wrong and nothing else: a claim with all that belongs to it is carried out, and folds."""
    with fresh_tracker(f"sqlite:///{written}", clock=ManualClock(900.0)) as tracker:
        store = tracker._registry.store
        fresh = birth(id="fresh")
        committed(store, fresh)
        started = move(fresh.after, "start").after
        with closing(rogue(written)) as connection:
            connection.execute(
                f"UPDATE executions SET version = 1, position = {NEXT}, state = 'starting', event = 'start', "
                "owner = 'worker_1', attempt = 1, fence = 1, updated_at = ?1, entered_at = ?1, since_at = ?1, "
                "due_at = ?2, due_kind = ?3 WHERE id = 'fresh'",
                (started.updated_at, started.due_at, started.due_kind),
            )
        assert store.load("fresh") == started
        assert [one for one in verify(tracker._registry) if "fresh" in one.row] == []


def test_what_the_law_lets_through_is_found(written):
    """A claim that no event made keeps to the law of the columns; the fold of the journal finds it."""
    with closing(rogue(written)) as connection:
        connection.execute(f"{PROGRESS}, owner = 'mallory', fence = fence + 1 WHERE id = 'open'")
        connection.execute(born())  # without the deadline that its machine demands
    with fresh_tracker(f"sqlite:///{written}", clock=ManualClock(900.0)) as tracker:
        found = {(one.code, one.row) for one in verify(tracker._registry)}
    assert {("fold", "open"), ("deadline", "new")} <= found


@pytest.mark.parametrize("trigger", ["execution_moves_whole", "execution_changes", "execution_born_whole"])
def test_without_a_trigger_the_store_still_reads_what_is_whole(trigger, written):
    """What a file without its law let in is damage that is named, and the rest of the file is read."""
    tamper(written, "UPDATE executions SET tools = '[' WHERE id = 'open'")
    with closing(rogue(written)) as connection:
        connection.execute(f"DROP TRIGGER {trigger}")
    with fresh_tracker(f"sqlite:///{written}") as tracker:
        assert [one.id for one in tracker.find()] == ["ended"]
        rows = {one.key for one in tracker._registry.store.inspect() + tracker._registry.store.damaged()}
        assert {f"trigger {trigger}", "open"} <= rows
