"""Many processes on one database: one time, one stream, one history, one breaker."""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsm.clock import ManualClock, SystemClock
from fsm.core.journal import record_of
from fsm.core.records import Receipt
from fsm.errors import LeaseLost, StoreUnavailable
from fsm.lifecycles.execution import EXECUTION
from fsm.stores import Query, open_store
from fsm.stores.postgres.settled import MAX_LOOKS, Sample, Settled
from fsm.testing import fresh_tracker
from fsm.testing.conformance.steps import birth, committed, move, walk
from tests.stores.test_stores import Player, calls

psycopg = pytest.importorskip("psycopg")


@pytest.fixture
def store(pg_url):
    store = open_store(pg_url)
    store.register(record_of(EXECUTION))
    yield store
    store.close()


# --- one history --------------------------------------------------------------------------------------------------


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=st.lists(calls(), min_size=1, max_size=30))
def test_a_program_has_the_same_history_on_every_store(program, server, schema, tmp_path_factory):
    """Any program of calls, legal or not, has the same observable history in memory, in SQLite and in PostgreSQL."""
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        connection.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
    histories = []
    sqlite = f"sqlite:///{tmp_path_factory.mktemp('same')}/fsm.db?synchronous=NORMAL"
    for url in ("memory://", sqlite, server.url(schema)):
        clock = ManualClock()
        with fresh_tracker(url, clock=clock) as tracker:
            player = Player(tracker, clock)
            for call in program:
                player.play(call)
            histories.append(player.everything())
    assert histories[0] == histories[1] == histories[2]


# --- one time -----------------------------------------------------------------------------------------------------


class Host(SystemClock):
    """A machine of its own: a wall clock that is wrong, and a monotonic clock that the test moves on."""

    def __init__(self, name: str, ahead_s: float, up_s: float) -> None:
        self._name, self._ahead_s, self.up_s = name, ahead_s, up_s

    def wall(self) -> float:
        return super().wall() + self._ahead_s

    def monotonic(self) -> float:
        return super().monotonic() + self.up_s

    def era(self) -> str:
        return self._name


def test_workers_whose_clocks_differ_by_an_hour_agree(pg_url):
    """Deadlines and leases lie on the database's clock: a worker an hour off ends nothing too early or late."""
    ahead, behind = Host("boot-a", 3600.0, 10.0), Host("boot-b", -3600.0, 9e6)
    with fresh_tracker(pg_url, clock=ahead) as one, fresh_tracker(pg_url, clock=behind) as two:
        database = one._registry.store.clock()
        passed = [0.0]
        for store in (one._registry.store, two._registry.store):
            store.clock = lambda told=store.clock: told() + passed[0]

        def pass_time(seconds: float) -> None:
            for clock in (ahead, behind):
                clock.up_s += seconds
            passed[0] += seconds

        for tracker in (one, two):
            assert abs(tracker._registry.now() - database) < 30.0
        made = one.create("a", user_id="u", thread_id="t", timeouts={"queue_s": 1800.0})
        worker = one.worker(ttl_s=600.0)
        assert one.sweep() == two.sweep() == (0, 0, 0, 0, 0)
        pass_time(700.0)
        assert two.sweep().workers == 1
        with pytest.raises(LeaseLost):
            worker.renew()
        pass_time(1200.0)
        assert two.sweep().timed_out == 1
        assert one.get(made.id).ended_as == "timeout"


def test_the_timeline_follows_the_databases_clock(pg_url):
    """A clock that runs wrong is put right by comparison, and one that agrees stays as it is."""
    host = Host("boot-a", 0.0, 0.0)
    with fresh_tracker(pg_url, clock=host) as tracker:
        steady, store = tracker._registry.steady, tracker._registry.store
        before = steady._era
        host.up_s += 61.0
        steady.measure()  # as if 61 s had passed here and none there
        assert abs(steady.now() - store.clock()) < 30.0
        after = steady._era
        assert after.offset_s < before.offset_s
        steady.measure()
        assert steady._era is after, "it is compared once in a while"
        store.clock = steady.now
        steady._marked_s = float("-inf")
        steady.measure()
        assert steady._era == after


# --- one stream ---------------------------------------------------------------------------------------------------


def test_a_row_that_is_committed_late_is_not_lost(store, server, schema):
    """A reader does not pass a position that a transaction under way may still fill, and finds it in its place then."""
    first, second = birth(), birth()
    with psycopg.connect(server.conninfo) as slow:
        slow.execute(
            f'INSERT INTO "{schema}".identities (id, machine, agent, user_id, thread_id, created_at, attempts_max, '
            "model_attempts_max, born_at, backoff_s, backoff_cap_s, depth) "
            f"SELECT 'late', id, 'a', 'u', 't', 1, 1, 1, 1, 1, 1, 0 FROM \"{schema}\".machines"
        )
        slow.execute(
            f'INSERT INTO "{schema}".executions (id, machine, born, state, ended, version, entered_at, updated_at, '
            "attempt, fence, model_attempt, since_at, paused_s, suspended, position, event) "
            f"SELECT id, machine, born, 'created', false, 0, 1, 1, 0, 0, 0, 1, 0, false, 0, 'create' "
            f"FROM \"{schema}\".identities WHERE id = 'late'"
        )
        [receipt] = committed(store, first)
        assert receipt.position == 2
        assert store.position() == 0
        assert store.journal(0, 10) == []
        assert store.journal(0, 10, first.after.identity.id) == [receipt], (
            "of one execution the order is certain"
        )
        slow.commit()
    committed(store, second)
    assert [one.position for one in store.journal(0, 10)] == [1, 2, 3]
    assert store.position() == 3


def test_transactions_that_write_something_else_hold_no_reader_back(store, server):
    """A long transaction of another program, with no business in the registry, does not hold up the stream."""
    with psycopg.connect(server.conninfo) as other:
        other.execute("CREATE TEMP TABLE theirs (id int)")
        [receipt] = committed(store, birth())
        assert store.journal(0, 10) == [receipt]
        assert store.position() == receipt.position


def test_what_is_known_of_the_journals_end_is_what_is_certain():
    """A position counts as settled when every transaction that could have taken one before it is over."""

    def sample(last: int, *writers: str) -> Sample:
        return Sample(last, frozenset(writers))

    waits: list[float] = []
    samples = [sample(5, "a", "b"), sample(7, "b", "c"), sample(8, "c", "d"), sample(9, "d"), sample(9, "e")]
    settled = Settled(iter(samples).__next__, waits.append)
    assert settled.reach(4) == 5
    assert len(waits) == 2
    assert settled.reach() == 9
    assert len(waits) == 3
    patient = Settled(lambda: sample(9, "a"), waits.append)
    waits.clear()
    assert patient.reach() == 0
    assert len(waits) == MAX_LOOKS - 1
    assert Settled(lambda: sample(9), waits.append).reach() == 9
    restored = Settled(iter([sample(9), sample(3)]).__next__, waits.append)
    assert (restored.reach(), restored.reach()) == (9, 3)


def test_a_writer_that_has_only_begun_is_waited_for(store, server, schema):
    """A writer whose transaction id is the newest of all is one that is under way, and its position is not passed."""
    committed(store, birth())
    assert store.position() == 1
    with psycopg.connect(server.conninfo) as slow:
        slow.execute(
            f"UPDATE \"{schema}\".executions SET version = 1, event = 'enqueue', state = 'queued', updated_at = 2e9, "
            "entered_at = 2e9"
        )
        assert (store.position(), store._sample().last) == (1, 2)
        slow.commit()
    assert [one.position for one in store.journal(0, 10)] == [1, 2]


@pytest.mark.parametrize("writers", [16])
def test_a_reader_under_many_writers_sees_every_row_once(pg_url, writers):
    """Who tails the journal while many write, and reconnects, sees every row exactly once, by position."""
    stores = [open_store(pg_url) for _ in range(4)]
    stores[0].register(record_of(EXECUTION))
    over = threading.Event()
    seen: list[Receipt] = []

    def write(number: int) -> int:
        rng, store, count = random.Random(number), stores[number % 3], 0
        for _ in range(15):
            steps = walk(birth(), *("start", "think", "fail")[: rng.randrange(4)])
            count += len(committed(store, *steps))
        return count

    def read() -> None:
        reader = stores[3]
        while True:
            last = over.is_set()
            while page := reader.journal(seen[-1].position if seen else 0, 7):
                seen.extend(page)
            reader._settled.known = 0  # as one that was just started
            if last:
                return

    with ThreadPoolExecutor(writers + 1) as threads:
        reading = threads.submit(read)
        written = sum(threads.map(write, range(writers)))
        over.set()
        reading.result()
    positions = [one.position for one in seen]
    assert positions == sorted(set(positions))
    assert len(positions) == written
    assert len(stores[0].find(Query(limit=1000))) == writers * 15
    for store in stores:
        store.close()


def test_pages_show_every_birth_once_while_many_are_born(pg_url):
    """Paging while other processes create executions shows each of them exactly once."""
    stores = [open_store(pg_url) for _ in range(3)]
    stores[0].register(record_of(EXECUTION))
    over = threading.Event()

    def write(number: int) -> None:
        for _ in range(40):
            committed(stores[number % 2], birth())

    def page() -> list[str]:
        seen: list[str] = []
        while True:
            last = over.is_set()
            while found := stores[2].find(Query(limit=3, after=seen[-1] if seen else None)):
                seen += [one.identity.id for one in found]
            if last:
                return seen

    with ThreadPoolExecutor(7) as threads:
        paging = threads.submit(page)
        list(threads.map(write, range(6)))
        over.set()
        seen = paging.result()
    assert len(seen) == len(set(seen)) == 240
    for store in stores:
        store.close()


def test_commits_of_other_processes_are_heard(pg_url, monkeypatch):
    """A reader hears of another process's commit at once, and finds it by polling if it was not told."""
    monkeypatch.setattr("fsm.tracker.stream.POLL_S", 60.0)
    with fresh_tracker(pg_url) as here, fresh_tracker(pg_url) as there:
        rows = here.subscribe(after=0)
        heard: list[Receipt] = []
        reading = threading.Thread(target=lambda: heard.append(next(rows)))
        reading.start()
        made = there.create("a", user_id="u", thread_id="t")
        reading.join(30.0)
        assert [one.execution_id for one in heard] == [made.id]


def test_a_batch_notifies_once(store, server):
    """A batch of any size sends one notification at most, after its commit."""
    store._told_s = float("-inf")
    with psycopg.connect(server.conninfo, autocommit=True) as ear_:
        ear_.execute(f'LISTEN "{store._channel}"')
        committed(store, *(birth() for _ in range(50)))
        ear_.execute("SELECT 1")
        assert len(list(ear_.notifies(timeout=0))) == 1


def test_an_ear_that_was_cut_off_listens_again(pg_url, server, schema):
    """A connection for listening that is cut is replaced; what was committed in between is looked for."""
    store = open_store(pg_url)
    assert store.heard(0.0) is True, "there may be commits from before"
    with psycopg.connect(server.conninfo, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (store._ear.info.backend_pid,))
    with pytest.raises(StoreUnavailable):
        store.heard(30.0)
    assert store.heard(0.0) is True
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.heard(0.0)


def test_an_async_reader_follows(pg_url):
    """A reader on an event loop sees the commits of another process."""

    async def play() -> list[str]:
        with fresh_tracker(pg_url) as here, fresh_tracker(pg_url) as there:
            made = there.create("a", user_id="u", thread_id="t")
            fence = there.fire(made.id, "start").fence
            there.fire(made.id, "fail", fence=fence, error="x")
            return [one.event async for one in here.aio.subscribe(execution_id=made.id, after=0)]

    assert asyncio.run(play()) == ["create", "start", "fail"]


# --- many writers -------------------------------------------------------------------------------------------------


def test_of_many_processes_one_moves_an_execution(pg_url):
    """Of many that move the same executions to the next version exactly one succeeds for each."""
    stores = [open_store(pg_url) for _ in range(6)]
    stores[0].register(record_of(EXECUTION))
    births = [birth() for _ in range(30)]
    committed(stores[0], *births)
    gate = threading.Barrier(6)

    def play(number: int) -> list[type]:
        order = random.Random(number).sample(range(30), 30)
        gate.wait()
        out: dict[int, type] = {}
        for at in range(0, 30, 5):
            chosen = order[at : at + 5]
            outcomes = stores[number].append([move(births[one].after, "start") for one in chosen])
            out |= dict(zip(chosen, map(type, outcomes), strict=True))
        return [out[one] for one in range(30)]

    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(play, range(6)))
    for one in range(30):
        assert sum(result[one] is Receipt for result in results) == 1
    assert stores[0].inspect() == []
    for store in stores:
        store.close()


def test_a_child_and_its_parents_end_do_not_pass_each_other(pg_url):
    """However a birth and its parent's end meet, the child is either kept out, or there for the order to cancel it."""
    one, two = open_store(pg_url), open_store(pg_url)
    one.register(record_of(EXECUTION))
    gate = threading.Barrier(2)

    def play(store, step) -> object:
        gate.wait()
        return store.append([step])[0]

    with ThreadPoolExecutor(2) as threads:
        for _ in range(25):
            parent = birth()
            committed(one, parent)
            parent_id = parent.after.identity.id
            born = threads.submit(play, one, birth(parent_id=parent_id))
            ended = threads.submit(play, two, move(parent.after, "fail", error="x"))
            assert isinstance(ended.result(), Receipt)
            is_born = isinstance(born.result(), Receipt)
            assert is_born == bool(one.find(Query(parent_id=parent_id)))
            assert is_born == any(order.execution_id == parent_id for order in one.orders("", 100))
    one.close()
    two.close()
