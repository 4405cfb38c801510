"""The database refuses to every writer what the table refuses, and shows a user no more than is the user's."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest

from fsm.core.journal import record_of
from fsm.errors import StoreUnavailable
from fsm.lifecycles.breaker import BREAKER
from fsm.lifecycles.execution import EXECUTION
from fsm.stores import Query, open_store
from fsm.testing.conformance.steps import birth, committed, move, walk

psycopg = pytest.importorskip("psycopg")


@pytest.fixture
def store(pg_url):
    """A store with an open execution, ``open``, and one that has ended, ``ended``."""
    store = open_store(pg_url)
    store.register(record_of(EXECUTION))
    store.register(record_of(BREAKER))
    committed(store, *walk(birth(id="open"), "start"), *walk(birth(id="ended", user_id="bob"), "cancel"))
    yield store
    store.close()


@contextmanager
def rogue(server, schema, **options):
    """A program of somebody else's, which knows the tables and not the library."""
    with psycopg.connect(server.url(**options), autocommit=True) as connection:
        connection.execute(f'SET search_path TO "{schema}"')
        yield connection


MOVE = "UPDATE executions SET version = version + 1, updated_at = updated_at + 1, key = NULL, payload = NULL"
JOURNAL = (
    "INSERT INTO journal (position, execution_id, version, machine, event, source, target, at, attempt, fence) "
    "SELECT 99, id, version + 1, machine, '{event}', state, '{target}', 1, 1, 1 FROM executions WHERE id = 'open'"
)

TRIP = (
    "INSERT INTO breakers (key, machine, state, version, generation, changed_at, openings, successes, abandoned, "
    "event, at) SELECT 'k', id, 'closed', 1, 1, 1, 0, 0, 0, 'trip', 1 FROM machines WHERE name = 'breaker'"
)


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        (f"{MOVE}, event = 'complete', state = 'completed' WHERE id = 'open'", "23503"),
        (f"{MOVE}, event = 'nonsense' WHERE id = 'open'", "23503"),
        (f"{MOVE}, event = 'fail', state = 'nonsense' WHERE id = 'open'", "FS001"),
        (f"{MOVE}, event = 'start', state = 'starting' WHERE id = 'ended'", "FS001"),
        ("UPDATE executions SET updated_at = 1 WHERE id = 'ended'", "FS001"),
        ("UPDATE executions SET event = 'think', state = 'thinking' WHERE id = 'open'", "FS001"),
        ("UPDATE executions SET version = version + 2, event = 'think', state = 'thinking' WHERE id = 'open'", "FS001"),
        (f"{MOVE}, event = 'think', state = 'thinking', fence = 0 WHERE id = 'open'", "FS001"),
        (f"{MOVE}, event = 'think', state = 'thinking', owner = 'me' WHERE id = 'open'", "FS001"),
        (f"{MOVE}, event = 'think', state = 'thinking', due_at = 'NaN' WHERE id = 'open'", "FS001"),
        (f"{MOVE}, event = 'think', state = 'thinking', ending = '{{}}' WHERE id = 'open'", "FS001"),
        ("DELETE FROM executions WHERE id = 'open'", "FS001"),
        ("DELETE FROM executions", "FS001"),
        ("DELETE FROM identities WHERE id = 'ended'", "FS001"),
        ("UPDATE identities SET user_id = 'mallory' WHERE id = 'open'", "FS001"),
        ("INSERT INTO identities SELECT * FROM identities", "23505"),
        (JOURNAL.format(event="think", target="thinking"), "FS001"),
        ("UPDATE journal SET event = 'think'", "FS001"),
        ("DELETE FROM journal", "FS001"),
        ("TRUNCATE journal", "FS001"),
        ("TRUNCATE executions CASCADE", "FS001"),
        ("INSERT INTO tombstones VALUES ('x', 1)", "FS001"),
        ("DELETE FROM bygone", "FS001"),
        ("INSERT INTO law SELECT id, 'cancelled', 'start', 'starting' FROM machines", "FS001"),
        ("INSERT INTO states SELECT id, 'fine', false, false FROM machines", "FS001"),
        ("UPDATE states SET terminal = false", "FS001"),
        ("DELETE FROM law", "FS001"),
        ("UPDATE machines SET sealed = false", "FS001"),
        ("INSERT INTO machines (content_hash, name, document, sealed) VALUES ('x', 'x', '{}', true)", "FS001"),
        ("INSERT INTO departed (id) VALUES ('worker_1')", "FS001"),
        (TRIP, "23503"),
    ],
)  # fmt: skip
def test_what_breaks_the_law_is_refused(store, server, schema, statement, code):
    """Raw SQL that breaks the law is refused with a code of its own, and nothing of it is kept."""
    before = (store.find(Query()), store.journal(0, 100), store.machines())
    with rogue(server, schema) as connection:
        with pytest.raises(psycopg.Error) as caught:
            connection.execute(statement)
        assert caught.value.sqlstate == code
    assert (store.find(Query()), store.journal(0, 100), store.machines()) == before
    assert store.inspect() == []


def test_a_legal_move_in_raw_sql_is_journaled(store, server, schema):
    """A legal move keeps state and journal together even if it is written by hand."""
    with rogue(server, schema) as connection:
        connection.execute(f"{MOVE}, event = 'think', state = 'thinking' WHERE id = 'open'")
    last = store.history("open")[-1]
    assert (last.version, last.event, last.source, last.target) == (2, "think", "starting", "thinking")
    assert store.position() == last.position
    assert store.inspect() == []


def test_what_was_deleted_is_not_born_again(store, server, schema):
    """A deleted execution takes its journal along and leaves a tombstone, which no birth under its id passes."""
    with rogue(server, schema) as connection:
        connection.execute("DELETE FROM executions WHERE id = 'ended'")
        assert connection.execute("SELECT count(*) FROM journal WHERE execution_id = 'ended'").fetchone() == (
            0,
        )
        with pytest.raises(psycopg.Error) as caught:
            connection.execute(
                "INSERT INTO identities (id, machine, agent, user_id, thread_id, created_at, attempts_max, "
                "model_attempts_max, born_at, backoff_s, backoff_cap_s, depth) "
                "SELECT 'ended', machine, 'a', 'u', 't', 1, 1, 1, 1, 1, 1, 0 FROM identities WHERE id = 'open'"
            )
        assert caught.value.sqlstate == "FS001"
    [outcome] = store.append([birth(id="ended")])
    assert (outcome.execution_id, outcome.version) == ("ended", None)
    assert store.inspect() == []


def test_many_tombstones_are_kept_as_a_range(store, server, schema):
    """The oldest of more than a million tombstones become a range of ids in which nothing is born."""
    with rogue(server, schema) as connection:
        connection.execute("ALTER TABLE bygone DISABLE TRIGGER bygone_follows")
        connection.execute("ALTER TABLE tombstones DISABLE TRIGGER tombstone_follows")
        connection.execute("INSERT INTO tombstones VALUES ('a', 1), ('b', 2)")
        connection.execute("UPDATE bygone SET kept = 1000001")
        connection.execute("DELETE FROM executions WHERE id = 'ended'")
        assert connection.execute("SELECT kept, first, last FROM bygone").fetchone() == (1_000_000, "a", "b")
        assert connection.execute("SELECT id FROM tombstones").fetchall() == [("ended",)]
    assert [type(one).__name__ for one in store.append([birth(id="aa"), birth(id="c")])] == [
        "Conflict",
        "Receipt",
    ]


def test_switched_off_law_is_found(store, server, schema):
    """An inspection finds a trigger that was switched off, and what was then written past it."""
    with rogue(server, schema) as connection:
        connection.execute("ALTER TABLE executions DISABLE TRIGGER execution_moves")
        connection.execute("UPDATE executions SET state = 'thinking' WHERE id = 'open'")
    assert {(one.table, one.key) for one in store.inspect()} == {
        ("schema", "execution_moves"),
        ("executions", "open"),
    }


def test_a_step_that_the_law_refuses_spares_the_others(store):
    """One step that cannot be kept is named; the others of its batch are committed."""
    before = store.load("open")
    bad = move(before, "think")
    bad = bad._replace(after=bad.after._replace(state="completed"))
    nul, whole = birth(thread_id="a\0b"), birth()
    outcomes = store.append([bad, nul, whole])
    assert [type(one).__name__ for one in outcomes] == ["Barred", "Barred", "Receipt"]
    assert [one.why for one in outcomes[:2]] == ["law", "law"]
    assert store.load("open") == before


# --- roles --------------------------------------------------------------------------------------------------------


@pytest.fixture
def roles(store, server, schema):
    """A worker, a reader, one bound to a user by name, and one that names its user in each session."""
    names = {kind: f"{schema}_{kind}" for kind in ("worker", "reader", "ada", "chat")}
    with rogue(server, schema) as connection:
        for name in names.values():
            connection.execute(f"CREATE ROLE {name} LOGIN")
        connection.execute("SELECT grant_worker(%s), grant_reader(%s)", (names["worker"], names["reader"]))
        connection.execute("SELECT grant_user(%s, 'ada'), grant_user(%s)", (names["ada"], names["chat"]))
    yield names
    with rogue(server, schema) as connection:
        for name in names.values():
            connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_worker_does_everything_and_changes_no_law(store, server, schema, roles):
    """A worker's role is enough for the whole protocol, and for no table, trigger or law."""
    worker = open_store(server.url(schema, user=roles["worker"]))
    worker.register(record_of(EXECUTION))
    committed(worker, *walk(birth(), "cancel"))
    assert worker.forget(["ended"]) == 1
    assert worker.inspect() == []
    worker.close()
    with rogue(server, schema, user=roles["worker"]) as connection:
        for statement in (
            "ALTER TABLE executions DISABLE TRIGGER execution_moves",
            "DROP TABLE journal",
            "CREATE TABLE more (id int)",
            "UPDATE law SET target = 'completed'",
            "UPDATE layout SET version = 1",
            "SET session_replication_role = replica",
            "SELECT * FROM bound",
            "INSERT INTO journal SELECT * FROM journal",
            "DELETE FROM journal",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
        with pytest.raises(psycopg.Error):
            connection.execute(f"{MOVE}, event = 'complete', state = 'completed' WHERE id = 'open'")


def test_a_reader_reads(store, server, schema, roles):
    """A reader's role reads everything and writes nothing; a write is a typed error."""
    reader = open_store(server.url(schema, user=roles["reader"]))
    reader.register(record_of(EXECUTION))
    assert reader.find(Query()) == store.find(Query())
    assert reader.journal(0, 100) == store.journal(0, 100)
    with pytest.raises(StoreUnavailable, match="does not let this role") as caught:
        reader.append([birth()])
    assert caught.value.committed is False
    reader.close()


def test_a_bound_session_sees_its_user_alone(store, server, schema, roles):
    """A role that is bound to a user sees that user's rows alone, with raw SQL too, whatever its session sets."""
    for setting in (None, "bob"):
        with rogue(server, schema, user=roles["ada"]) as connection:
            if setting:
                connection.execute(f"SET agent_fsm.user_id = '{setting}'")
            assert connection.execute("SELECT id FROM executions").fetchall() == [("open",)]
            assert connection.execute("SELECT DISTINCT execution_id FROM journal").fetchall() == [("open",)]
            assert connection.execute("SELECT user_id FROM identities").fetchall() == [("ada",)]
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("DELETE FROM executions")


def test_a_session_names_its_user(store, server, schema, roles):
    """A role that is bound to no name sees the rows of the user that its session names, and none before."""
    with rogue(server, schema, user=roles["chat"]) as connection:
        assert connection.execute("SELECT count(*) FROM executions").fetchone() == (0,)
        connection.execute("SET agent_fsm.user_id = 'bob'")
        assert connection.execute("SELECT id FROM executions").fetchall() == [("ended",)]
        assert connection.execute("SELECT count(*) FROM journal").fetchone() == (2,)
    narrowed = open_store(server.url(schema, user=roles["chat"], user_id="ada"))
    assert [one.identity.id for one in narrowed.find(Query())] == ["open"]
    assert {one.execution_id for one in narrowed.journal(0, 100)} == {"open"}
    assert narrowed.counts() == {"starting": 1}
    assert narrowed.load("ended") is None
    narrowed.close()


def test_machines_are_whole_documents(store):
    """What is registered is kept as it was given."""
    assert {json.loads(one)["name"] for one in store.machines().values()} == {"execution", "breaker"}
