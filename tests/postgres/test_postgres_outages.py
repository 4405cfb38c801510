"""Outages end in typed errors within a limit, and the store goes on without a restart; no commit is guessed at."""

from __future__ import annotations

import logging
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fsm.core.journal import record_of
from fsm.core.records import Receipt
from fsm.errors import BadPayload, NotAStore, StoreTooNew, StoreUnavailable
from fsm.lifecycles.breaker import BREAKER
from fsm.lifecycles.execution import EXECUTION
from fsm.stores import Conflict, Query, WorkerRow, open_store
from fsm.stores.breakers import BreakerEntry, BreakerRow
from fsm.stores.postgres import connections
from fsm.stores.postgres.place import parse_url
from fsm.testing.conformance.steps import birth, committed, move, walk
from tests.support.postgres import Server, own_server, proxy, unavailable

psycopg = pytest.importorskip("psycopg")


@pytest.fixture(scope="module")
def own():
    """A server that these tests may stop and restart."""
    server = own_server()
    yield server
    server.close()


def opened(url: str):
    store = open_store(url)
    store.register(record_of(EXECUTION))
    store.register(record_of(BREAKER))
    return store


@pytest.fixture
def store(own, schema_name):
    store = opened(own.url(schema_name, wait_s="20"))
    yield store
    store.close()


@pytest.fixture
def schema_name(request):
    return f"t_{abs(hash(request.node.name)) % 10**9}_{os.getpid()}"


# --- restarts and cuts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_restart_of_the_server_is_waited_out(own, store, how):
    """Calls that come while the server restarts, or recovers from a crash, wait for it and then succeed."""
    begin = birth()
    committed(store, begin)
    own.stop(how)
    with ThreadPoolExecutor(3) as threads:
        calls = [
            threads.submit(store.load, begin.after.identity.id),
            threads.submit(store.append, [move(begin.after, "start")]),
            threads.submit(store.find, Query()),
        ]
        own.start()
        assert calls[0].result() is not None
        assert isinstance(calls[1].result()[0], Receipt)
        assert len(calls[2].result()) == 1
    assert len(store.history(begin.after.identity.id)) == 2


def test_an_outage_is_a_typed_error_within_the_limit(own, schema_name):
    """While the server is down a call ends after the declared time, and the next one after it is back succeeds."""
    store = opened(own.url(schema_name, wait_s="0.5"))
    own.stop()
    try:
        for call in (store.position, lambda: store.load("x"), lambda: store.find(Query())):
            with pytest.raises(StoreUnavailable):
                call()
        with pytest.raises(StoreUnavailable) as caught:
            store.append([birth()])
    finally:
        own.start()
    assert caught.value.committed in {False, None}
    for _ in range(20):  # the pool tries again within the limit of each call
        try:
            committed(store, birth())
            break
        except StoreUnavailable:
            continue
    else:
        pytest.fail("the store never came back")
    store.close()


def _cut_commits(own, schema_name, act):
    """Return what a call on a store returns whose connection is cut after the commit, before the answer."""
    with proxy(own) as between:
        url = own.url(schema_name).replace("host=", "unused=").split("?")[0]
        store = opened(f"{url}?host=127.0.0.1&port={between.port}&user=fsm&schema={schema_name}")
        try:
            return act(store, between)
        finally:
            store.close()


def test_a_commit_whose_answer_is_lost_is_found_by_its_version(own, schema_name):
    """Of a batch whose answer was lost the receipts come back, and nothing is committed twice."""
    life = walk(birth(), "start", "think")
    stale = birth()

    def act(store, between):
        committed(store, stale, move(stale.after, "cancel"))
        between.deaf = True
        return store.append([*life, move(stale.after, "start")])

    *receipts, conflict = _cut_commits(own, schema_name, act)
    assert [(one.version, one.event) for one in receipts] == [(0, "create"), (1, "start"), (2, "think")]
    assert conflict == Conflict(stale.after.identity.id, 1)
    store = opened(own.url(schema_name))
    assert store.history(life[0].after.identity.id) == receipts
    store.close()


def test_a_step_of_another_one_is_not_taken_for_ones_own(own, schema_name):
    """After a lost answer a version that somebody else made is a conflict, not a receipt."""
    begin = birth()

    def act(store, between):
        committed(store, begin)
        others = opened(own.url(schema_name))
        inner = connections.Connections._once

        def cut_before(self, work, until):
            connections.Connections._once = inner
            committed(others, move(begin.after, "start", at=7777.0))
            raise psycopg.OperationalError("the connection was cut before the statement")

        connections.Connections._once = cut_before
        try:
            return store.append([move(begin.after, "start")])
        finally:
            connections.Connections._once = inner
            others.close()

    assert _cut_commits(own, schema_name, act) == [Conflict(begin.after.identity.id, 1)]


def test_a_breakers_swap_whose_answer_is_lost_is_its_own(own, schema_name):
    """A breaker's row that was written by a call whose answer was lost counts as written."""
    row = BreakerRow("k", "forced_open", 1, 2, 1.0)
    entry = BreakerEntry(0, "k", 1, "force_open", "closed", "forced_open", 2, 1.0, "ada", "x")

    def act(store, between):
        between.deaf = True
        return store.breaker_swap(BREAKER.content_hash, 0, row, entry), store.breaker_changes(0, 10)

    assert _cut_commits(own, schema_name, act) == (True, [entry._replace(position=1)])


def test_cut_connections_are_replaced(own, schema_name):
    """After every connection was cut the next calls get new ones."""

    def act(store, between):
        for _ in range(3):
            committed(store, birth())
            between.cut()
        return len(store.find(Query()))

    assert _cut_commits(own, schema_name, act) == 3


# --- what a server refuses ----------------------------------------------------------------------------------------


def test_an_exhausted_pool_is_a_typed_error(own, schema_name):
    """When no connection becomes free in time the caller is told, and nothing was written."""
    store = opened(own.url(schema_name, pool_max="2", wait_s="0.3"))
    pool = store._connections._open()
    held = [pool.getconn(), pool.getconn()]
    with pytest.raises(StoreUnavailable, match="pool_max") as caught:
        store.append([birth()])
    assert caught.value.committed is False
    for one in held:
        pool.putconn(one)
    committed(store, birth())
    store.close()


def test_a_lock_that_is_held_too_long_is_a_typed_error(own, schema_name):
    """A row that another transaction holds is waited for up to the limit; then nothing was written."""
    store = opened(own.url(schema_name, wait_s="0.3"))
    begin = birth()
    committed(store, begin)
    with psycopg.connect(own.conninfo) as other:
        other.execute(f'SELECT FROM "{schema_name}".executions FOR UPDATE')
        with pytest.raises(StoreUnavailable) as caught:
            store.append([move(begin.after, "start")])
    assert caught.value.committed is False
    committed(store, move(begin.after, "start"))
    store.close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("53100", "out of disk space"),
        ("57014", "took too long"),
        ("53300", "takes no more"),
        ("42501", "role"),
    ],
)
def test_what_a_server_refuses_is_said(store, own, schema_name, code, said):
    """A full disk, a statement that took too long and the like are typed errors that say what to do."""
    with psycopg.connect(own.conninfo, autocommit=True) as other:
        other.execute(
            f'CREATE FUNCTION "{schema_name}".fail() RETURNS trigger LANGUAGE plpgsql AS '
            f"$$ BEGIN RAISE EXCEPTION 'injected' USING ERRCODE = '{code}'; END $$"
        )
        other.execute(
            f'CREATE TRIGGER fail BEFORE INSERT ON "{schema_name}".identities '
            f'FOR EACH ROW EXECUTE FUNCTION "{schema_name}".fail()'
        )
        with pytest.raises(StoreUnavailable, match=said) as caught:
            store.append([birth(), birth()])
        assert caught.value.committed is False
        other.execute(f'DROP TRIGGER fail ON "{schema_name}".identities')
    committed(store, birth())


@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_a_race_between_transactions_is_tried_again(store, own, schema_name, code):
    """A serialization failure and a deadlock are tried again, and no caller hears of them."""
    with psycopg.connect(own.conninfo, autocommit=True) as other:
        other.execute(f'CREATE SEQUENCE "{schema_name}".tries')
        other.execute(
            f'CREATE FUNCTION "{schema_name}".fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN '
            f"IF nextval('{schema_name}.tries') < 3 THEN RAISE EXCEPTION 'race' USING ERRCODE = '{code}'; END IF; "
            "RETURN NEW; END $$"
        )
        other.execute(
            f'CREATE TRIGGER fail BEFORE INSERT ON "{schema_name}".identities '
            f'FOR EACH ROW EXECUTE FUNCTION "{schema_name}".fail()'
        )
    assert isinstance(store.append([birth()])[0], Receipt)
    assert store.inspect() == []


def test_crossed_batches_of_two_processes_both_end(own, schema_name):
    """Two processes that move the same executions in opposite orders both get an outcome for each step."""
    one, two = opened(own.url(schema_name)), opened(own.url(schema_name))
    lives = [birth() for _ in range(20)]
    committed(one, *lives)
    steps = [move(begin.after, "start") for begin in lives]
    gate = threading.Barrier(2)

    def play(store, batch):
        gate.wait()
        return store.append(batch)

    with ThreadPoolExecutor(2) as threads:
        forth, back = threads.map(play, (one, two), (steps, steps[::-1]))
    assert all(
        sorted((type(a).__name__, type(b).__name__)) == ["Conflict", "Receipt"]
        for a, b in zip(forth, back[::-1], strict=True)
    )
    one.close()
    two.close()


def test_a_lost_lease_is_not_lost_to_an_outage(own, schema_name):
    """A worker that could not renew because the server was down is given another term; one that is gone is not."""
    store = opened(own.url(schema_name, wait_s="20"))
    now = store.clock()
    store.worker_add(WorkerRow("worker_1", "one", 5.0, now, now - 6.0, lost=False))
    own.restart()
    assert store.lose(store.clock()) == []
    assert store.lose(store.clock() + 6.0) == ["worker_1"]
    store.close()


# --- opening ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@h/d?schema=Big", "postgresql://u@h/d?schema=pg_x", "postgresql://u@h/d?schema=a;drop",
        "postgresql://u@h/d?synchronous_commit=maybe", "postgresql://u@h/d?wait_s=0", "postgresql://u@h/d?wait_s=x",
        "postgresql://u@h/d?pool_max=1", "postgresql://u@h/d?nonsense=1",
        "postgresql://u:secret%zz@h/d", "postgresql://u@h/d?a=b=c&d", "postgresql://u:secret@[h/d",
    ],
)  # fmt: skip
def test_a_url_that_names_no_place_is_refused(url):
    """A URL that is wrong is a typed error that says what is wrong and repeats no password."""
    with pytest.raises(NotAStore) as caught:
        open_store(url)
    assert "secret" not in f"{caught.value!r}{caught.value.__cause__!r}"


def test_no_password_is_shown(own, schema_name, caplog):
    """A password is in no error, log, URL or representation, whatever fails."""
    caplog.set_level(logging.DEBUG)
    with psycopg.connect(own.conninfo, autocommit=True) as other:
        other.execute("DROP ROLE IF EXISTS known; CREATE ROLE known LOGIN SUPERUSER PASSWORD 's3cret'")
    url = own.url(schema_name, user="known", password="s3cret", wait_s="0.3")
    store = opened(url)
    said = [store.url, repr(vars(store)), repr(store._connections.place), store.identity()]
    own.stop()
    try:
        for call in (store.position, lambda: store.append([birth()]), lambda: open_store(url)):
            with pytest.raises(StoreUnavailable) as caught:
                call()
            said += [str(caught.value), repr(caught.value.__cause__)]
    finally:
        own.start()
    store.close()
    with pytest.raises(StoreUnavailable):
        open_store("postgresql://known:s3cret@127.0.0.1:1/d?connect_timeout=2")
    assert parse_url(url).shown.count("known") == 1
    assert not [one for one in (*said, caplog.text) if "s3cret" in one]


def test_ten_processes_make_one_schema(own, schema_name):
    """Processes that open an empty place at the same moment make one whole schema of it."""
    url = own.url(schema_name)
    gate = threading.Barrier(10)

    def open_at_once(_):
        gate.wait()
        store = opened(url)
        committed(store, birth())
        store.close()

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(open_at_once, range(10)))
    store = opened(url)
    assert len(store.find(Query())) == 10
    assert store.inspect() == []
    store.close()


def test_what_is_not_ours_is_left_alone(own, schema_name):
    """A schema of another program, a newer one, and a database that is not there are typed errors."""
    with psycopg.connect(own.conninfo, autocommit=True) as other:
        other.execute(f'CREATE SCHEMA "{schema_name}"; CREATE TABLE "{schema_name}".theirs (id int)')
        with pytest.raises(NotAStore, match="another program"):
            open_store(own.url(schema_name))
        other.execute(f'DROP TABLE "{schema_name}".theirs')
    opened(own.url(schema_name)).close()  # an empty schema that an administrator made
    with psycopg.connect(own.conninfo, autocommit=True) as other:
        other.execute(f'UPDATE "{schema_name}".layout SET version = 99')
    with pytest.raises(StoreTooNew):
        open_store(own.url(schema_name))
    with pytest.raises(StoreUnavailable, match="database"):
        open_store(own.url(schema_name, database="nowhere"))


def test_a_dropped_schema_is_a_typed_error(own, schema_name):
    """A schema that was dropped under an open store is said so, and an odd question is the caller's mistake."""
    store = opened(own.url(schema_name))
    with pytest.raises(BadPayload):
        store.load(7)
    with psycopg.connect(own.conninfo, autocommit=True) as other:
        other.execute(f'DROP SCHEMA "{schema_name}" CASCADE')
    with pytest.raises(StoreUnavailable):
        store.load("x")
    store.close()


def test_a_forked_child_has_connections_of_its_own(own, schema_name):
    """A child works on its own connections, and its end cuts none of its parent's."""
    store = opened(own.url(schema_name))
    committed(store, birth())
    inherited = store._connections._pool
    pid = os.fork()
    if pid == 0:
        try:
            committed(store, birth())
            assert store._connections._pool is not inherited
        except BaseException:  # noqa: BLE001 - said by the exit code
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    committed(store, birth())
    assert len(store.find(Query())) == 3
    assert store._connections._pool is inherited
    store.close()


def test_the_declared_synchronous_commit_is_used(own, schema_name):
    """Each session commits as the URL declares, and with ``on`` if it says nothing."""
    for declared in (None, "off", "local"):
        store = opened(own.url(schema_name, **({"synchronous_commit": declared} if declared else {})))
        assert store._rows("SHOW synchronous_commit") == [(declared or "on",)]
        store.close()


def test_a_missing_server_is_skipped_or_fails(monkeypatch):
    """Without a server these tests are skipped, and fail where they must not be missing."""
    monkeypatch.delenv("FSM_REQUIRE_POSTGRES", raising=False)
    with pytest.raises(pytest.skip.Exception):
        unavailable("nothing")
    monkeypatch.setenv("FSM_REQUIRE_POSTGRES", "1")
    with pytest.raises(pytest.fail.Exception):
        unavailable("nothing")


def test_a_server_is_stopped_for_certain():
    """A server of the tests is gone with its folder when it is closed."""
    server = own_server()
    process, home = server._process, server.home
    server.close()
    assert isinstance(server, Server)
    assert process.poll() is not None
    assert not home.exists()
