"""Breakers shared over a store: several registries on one file, real processes, a store that is down, the law."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fsm import BREAKER, BreakerOpen, StoreUnavailable
from fsm.breakers import CANCELLED, FAILURE, SUCCESS, Breakers, Consecutive, Policy
from fsm.breakers.breaker import Breaker
from fsm.breakers.shared import ASK_AGAIN_S
from fsm.clock import ManualClock, SystemClock
from fsm.core.journal import record_of
from fsm.stores.breakers import BreakerEntry, BreakerRow
from fsm.stores.opening import open_store
from fsm.tracker.process import fresh_tracker
from tests.support.places import ROOT

POLICY = Policy(trip=Consecutive(failures=2), cooldown_s=10.0, jitter=0.0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/fsm.db"


@pytest.fixture
def stores(url):
    """Two stores on one file, as two processes have them."""
    both = [open_store(url), open_store(url)]
    yield both
    for store in both:
        store.close()


def make(store, clock, **policy) -> Breakers:
    return Breakers(
        store,
        clock,
        policy=POLICY.model_copy(update=policy),
        poll_s=None,
        draw=lambda: 0.0,
        worker=lambda: "w",
    )


def fail(breakers: Breakers, times: int, key: str = "k") -> None:
    for _ in range(times):
        breakers.release(key, breakers.acquire(key), FAILURE, why="dead")


def test_an_opening_is_learned_at_the_next_look(stores, clock):
    """One process opens, another one refuses from its next look on, for what is left of the cooldown."""
    here, there = (make(store, clock) for store in stores)
    there.get("k")
    fail(here, 2)
    there.acquire("k")
    clock.advance(4.0)
    there.poll()
    with pytest.raises(BreakerOpen) as refused:
        there.acquire("k")
    assert refused.value.retry_after_s == pytest.approx(6.0)
    late = make(stores[1], clock)
    with pytest.raises(BreakerOpen):
        late.acquire("k")
    journal = [(entry.event, entry.source, entry.target, entry.by, entry.why) for entry in there.history("k")]
    assert journal == [("trip", "closed", "open", "w", "dead")]


def test_probes_are_limited_over_all_processes(stores, clock):
    """Two processes at half-open share one limit of probes, and a probe given back is free for the other at once."""
    here, there = (make(store, clock, probes_at_once=2, successes_needed=2) for store in stores)
    fail(here, 2)
    there.poll()
    clock.advance(10.0)
    first, second = here.acquire("k"), there.acquire("k")
    for breakers in (here, there):
        with pytest.raises(BreakerOpen):
            breakers.acquire("k")
    there.release("k", second, CANCELLED)
    third = here.acquire("k")
    here.release("k", first, SUCCESS)
    here.release("k", third, SUCCESS)
    assert here.status_of("k").state == "closed"
    there.poll()
    assert there.status_of("k").state == "closed"


def test_many_threads_of_two_processes_take_as_many_probes_as_allowed(stores, clock):
    """Under contention no compare-and-set lets one probe too many through."""
    both = [make(store, clock, probes_at_once=3) for store in stores]
    fail(both[0], 2)
    both[1].poll()
    clock.advance(10.0)
    together = threading.Barrier(10, timeout=20)
    taken: list[str] = []

    def caller(breakers: Breakers) -> None:
        together.wait()
        with suppress(BreakerOpen):
            taken.append(breakers.acquire("k").token)

    threads = [threading.Thread(target=caller, args=(both[index % 2],)) for index in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 3


def test_twenty_tasks_over_a_file(stores, clock):
    """The same holds for tasks of one event loop whose store is a file."""
    breakers = make(stores[0], clock, probes_at_once=3)
    fail(breakers, 2)
    clock.advance(10.0)

    async def scenario() -> int:
        outcomes = await asyncio.gather(
            *(breakers.acquire_async("k") for _ in range(20)), return_exceptions=True
        )
        return sum(not isinstance(outcome, BreakerOpen) for outcome in outcomes)

    assert asyncio.run(scenario()) == 3


@pytest.mark.parametrize("turns", range(6))
def test_a_task_cancelled_while_it_waits_for_its_probe(stores, clock, turns):
    """A probe that is granted to a task which is cancelled before it receives it goes back to the others."""
    breakers = make(stores[0], clock)
    fail(breakers, 2)
    clock.advance(10.0)

    async def probe() -> None:
        async with breakers.permit("k"):
            await asyncio.Event().wait()

    async def scenario() -> None:
        task = asyncio.create_task(probe())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())  # it waits for the threads of its executor
    assert breakers.status_of("k").probes == 0
    breakers.acquire("k")


def test_a_task_cancelled_just_after_its_probe_was_granted(stores, clock, monkeypatch):
    """A probe that was granted in the very moment of the cancel goes back to the others as well."""
    breakers = make(stores[0], clock)
    fail(breakers, 2)
    clock.advance(10.0)
    granted = threading.Event()
    take = Breaker.take_probe

    def taking(self, held):
        call = take(self, held)
        granted.set()
        return call

    monkeypatch.setattr(Breaker, "take_probe", taking)

    async def scenario() -> None:
        task = asyncio.create_task(breakers.acquire_async("k"))
        await asyncio.sleep(0)
        assert granted.wait(20), "the loop is held here, so the task has not heard of it yet"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert breakers.status_of("k").probes == 0
    assert breakers.status_of("k").calls["cancelled"] == 1


def test_a_killed_task_gives_its_permit_back_over_a_file(stores, clock):
    """A probe whose coroutine is closed in the middle can wait for nothing, and still gives its permit back."""
    breakers = make(stores[0], clock)
    fail(breakers, 2)
    clock.advance(10.0)

    async def scenario() -> None:
        inside = asyncio.Event()

        async def probe() -> None:
            async with breakers.permit("k"):
                inside.set()
                await asyncio.Event().wait()

        coroutine = probe()
        task = asyncio.create_task(coroutine)
        await inside.wait()
        assert breakers.status_of("k").probes == 1
        coroutine.close()
        assert breakers.status_of("k").probes == 0
        task.cancel()
        with pytest.raises(RuntimeError, match="already awaited"):
            await task  # what asyncio says of a task whose coroutine was closed

    asyncio.run(scenario())


def test_a_row_survives_the_process(url, clock):
    """What was learned of a provider is still known after a restart."""
    store = open_store(url)
    breakers = make(store, clock)
    fail(breakers, 2)
    breakers.force_open("other", by="ada", why="x")
    store.close()
    again = open_store(url)
    states = {one.key: one.state for one in make(again, clock).status().breakers}
    again.close()
    assert states == {"k": "open", "other": "forced_open"}


def test_words_that_no_encoding_knows(stores, clock):
    """An error message or a reason with broken characters is noted as well as it can be, and breaks nothing."""
    breakers = make(stores[0], clock)
    for _ in range(2):
        with pytest.raises(ConnectionError), breakers.permit("k"):
            raise ConnectionError("\udce9")
    breakers.force_open("k", by="\udce9", why="a\udce9b")
    assert breakers.status().error is None
    assert [entry.why for entry in breakers.history("k")] == ["ConnectionError: ?", "a?b"]


# --- the background thread ------------------------------------------------------------------------------------


def test_one_thread_looks_for_others_changes(stores):
    """A thread that starts with the first key learns of another process's opening, and ends with its owner."""
    known = threading.Event()
    breakers = Breakers(stores[0], policy=POLICY, poll_s=0.01)
    assert not [one for one in threading.enumerate() if one.name == "fsm-breakers"]
    breaker = breakers.get("k")
    breakers.get("k 2")
    threads = [one for one in threading.enumerate() if one.name == "fsm-breakers"]
    assert len(threads) == 1
    adopt = type(breaker).adopt

    def adopting(self, row):
        adopt(self, row)
        if self is breaker:
            known.set()

    type(breaker).adopt = adopting
    try:
        fail(make(stores[1], SystemClock()), 2)
        assert known.wait(20)
        with pytest.raises(BreakerOpen):
            breakers.acquire("k")
    finally:
        type(breaker).adopt = adopt
        breakers.close()
    threads[0].join(20)
    assert not threads[0].is_alive()


def test_a_tracker_takes_its_thread_along(url):
    """Closing the tracker ends the thread that looks for changes."""
    with fresh_tracker(url) as tracker:
        tracker.breakers.get("k")
        (thread,) = [one for one in threading.enumerate() if one.name == "fsm-breakers"]
    thread.join(20)
    assert not thread.is_alive()


# --- a store that is down -------------------------------------------------------------------------------------


class Flaky:
    """A store whose breakers' part can be switched off."""

    def __init__(self, store):
        self._store = store
        self.down = False
        self.asked = 0

    def __getattr__(self, name):
        if name.startswith("breaker"):
            self.asked += 1
            if self.down:
                raise StoreUnavailable("the disk is gone")
        return getattr(self._store, name)


@pytest.fixture
def flaky(stores):
    one = Flaky(stores[0])
    # What isinstance looks at for a protocol's methods.
    for name in ("load", "swap", "list", "changes", "position"):
        setattr(one, f"breaker_{name}", lambda *args, name=name: one.__getattr__(f"breaker_{name}")(*args))
    return one


def test_a_store_that_is_down_stops_nobody(flaky, stores, clock, caplog):
    """With its store down a breaker opens, probes and closes by itself, says so, and says it once."""
    breakers = make(flaky, clock)
    flaky.down = True
    with caplog.at_level(logging.WARNING, "fsm.breakers"):
        for _ in range(3):
            fail(breakers, 2)
            with pytest.raises(BreakerOpen):
                breakers.acquire("k")
            clock.advance(10.0)
            breakers.release("k", breakers.acquire("k"), SUCCESS)
            breakers.poll()
    assert breakers.status_of("k").state == "closed"
    status = breakers.status()
    assert (status.shared, status.error, status.breakers[0].local) == (False, "the disk is gone", True)
    assert len([record for record in caplog.records if "without the store" in record.message]) == 1


def test_a_store_that_comes_back_is_brought_up_to_date(flaky, stores, clock, caplog):
    """What happened while the store was down is written, row by row of the table, when the store answers again."""
    breakers, other = make(flaky, clock), make(stores[1], clock)
    flaky.down = True
    fail(breakers, 2)
    clock.advance(10.0)
    breakers.release("k", breakers.acquire("k"), FAILURE, why="still dead")
    assert other.history("k") == []
    flaky.down = False
    caplog.clear()
    breakers.poll()
    assert [entry.event for entry in other.history("k")] == ["trip", "acquire", "probe_failed"]
    other.poll()
    assert other.status_of("k").state == "open"
    assert (breakers.status().shared, breakers.status_of("k").local) == (True, False)
    assert [record.message for record in caplog.records] == ["breakers: the store answers again"]


def test_a_store_that_comes_back_with_others_changes(flaky, stores, clock):
    """If another process wrote in between, the store's row wins and what was done alone is dropped."""
    breakers, other = make(flaky, clock), make(stores[1], clock)
    flaky.down = True
    fail(breakers, 2)
    clock.advance(10.0)
    breakers.acquire("k")
    other.force_open("k", by="ada", why="x")
    flaky.down = False
    breakers.poll()
    assert (breakers.status_of("k").state, breakers.status_of("k").local) == ("forced_open", False)


def test_a_store_that_is_down_is_left_alone_for_a_while(flaky, clock):
    """Those who have calls to make do not each wait for a store that has just failed to answer."""
    breakers = make(flaky, clock)
    flaky.down = True
    fail(breakers, 2)
    asked = flaky.asked
    for _ in range(20):
        breakers.reset("k")
    assert flaky.asked == asked
    clock.advance(ASK_AGAIN_S)
    breakers.reset("k")
    assert flaky.asked > asked


def test_a_store_that_was_never_there(flaky, clock):
    """A process that starts while the store is down begins closed, and learns when the store is back."""
    fail(make(flaky, clock), 2)
    flaky.down = True
    breakers = make(flaky, clock)
    breakers.acquire("k")
    flaky.down = False
    breakers.poll()
    with pytest.raises(BreakerOpen):
        breakers.acquire("k")


def test_a_mistake_in_a_store_stops_nobody(flaky, clock, monkeypatch, caplog):
    """Even an error that no store should raise leaves the calls alone; it is logged with its traceback."""
    breakers = make(flaky, clock)

    def broken(*_args):
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(flaky, "breaker_swap", broken)
    with caplog.at_level(logging.ERROR, "fsm.breakers"):
        fail(breakers, 2)
    assert breakers.status_of("k").state == "open"
    assert [record.exc_info is not None for record in caplog.records] == [True]


class Plain:
    """A store that keeps no breakers."""

    url, instant = "plain://", False


def test_a_store_without_breakers(clock):
    """Over a store that keeps no breakers each process has its own, and the status says so."""
    breakers = make(Plain(), clock)
    fail(breakers, 2)
    with pytest.raises(BreakerOpen):
        breakers.acquire("k")
    assert (breakers.status().shared, "keeps no breakers" in breakers.status().error) == (False, True)
    assert breakers.history("k") == []


# --- the stores -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite"])
def store(request, url):
    one = open_store("memory://" if request.param == "memory" else url)
    one.register(record_of(BREAKER))
    yield one
    one.close()


def opened(version: int = 1, **values) -> tuple[BreakerRow, BreakerEntry]:
    row = BreakerRow(
        "k", "open", version, **{"generation": 2, "changed_at": 5.0, "since": 5.0, "until": 9.0, **values}
    )
    return row, BreakerEntry(0, "k", version, "trip", "closed", "open", row.generation, 5.0, "w", "dead")


def test_a_swap_is_all_or_nothing(store):
    """A row is written together with its line of the journal, and only on the version that was expected."""
    row, entry = opened()
    assert store.breaker_load("k") is None
    assert store.breaker_swap(BREAKER.content_hash, 0, row, entry) is True
    assert store.breaker_swap(BREAKER.content_hash, 0, row, entry) is False
    half = row._replace(
        state="half_open", version=2, generation=3, probes=(("p", 8.5), ("q", 9.5)), until=None
    )
    acquire = entry._replace(version=2, event="acquire", source="open", target="half_open", generation=3)
    assert store.breaker_swap(BREAKER.content_hash, 7, half, acquire) is False
    assert store.breaker_swap(BREAKER.content_hash, 1, half, acquire) is True
    noted = half._replace(version=3, probes=(("q", 9.5),), abandoned=1)
    assert store.breaker_swap(BREAKER.content_hash, 2, noted, None) is True
    assert store.breaker_load("k") == noted
    assert store.breaker_list() == [noted]
    assert store.breaker_changes(0, 10) == [entry._replace(position=1), acquire._replace(position=2)]
    assert store.breaker_changes(1, 10) == [acquire._replace(position=2)]
    assert store.breaker_changes(0, 1) == [entry._replace(position=1)]
    assert store.breaker_changes(0, 10, "other") == []
    assert store.breaker_position() == 2


def test_a_closed_store_says_so(store):
    """After it was closed every method raises StoreUnavailable."""
    row, entry = opened()
    store.close()
    for call in (
        lambda: store.breaker_load("k"),
        lambda: store.breaker_swap(BREAKER.content_hash, 0, row, entry),
        store.breaker_list,
        lambda: store.breaker_changes(0, 1),
    ):
        with pytest.raises(StoreUnavailable):
            call()


ROGUES = {
    "a state without a row": "UPDATE breakers SET state = 'closed', version = 2, generation = 3, event = 'acquire'",
    "a note that changes the state": "UPDATE breakers SET state = 'closed', version = 2, generation = 3, event = NULL",
    "a change without a generation": "UPDATE breakers SET state = 'closed', version = 2, event = 'reset'",
    "a skipped version": "UPDATE breakers SET state = 'closed', version = 3, generation = 3, event = 'reset'",
    "another key": "UPDATE breakers SET key = 'x', state = 'closed', version = 2, generation = 3, event = 'reset'",
    "a deletion": "DELETE FROM breakers",
    "a journal without a change": "INSERT INTO breaker_journal (key, version, machine, event, source, target, "
    "generation, at) SELECT key, 2, machine, 'reset', 'open', 'closed', 3, 1.0 FROM breakers",
    "a second line for one change": "INSERT INTO breaker_journal (key, version, machine, event, source, target, "
    "generation, at) SELECT key, version, machine, event, 'closed', state, generation, 1.0 FROM breakers",
    "a rewritten journal": "UPDATE breaker_journal SET actor = 'nobody'",
    "a forgotten journal": "DELETE FROM breaker_journal",
    "a birth in no row": "INSERT INTO breakers (key, machine, state, version, generation, changed_at, openings, "
    "successes, abandoned, event, at) SELECT 'x', machine, 'half_open', 1, 2, 1.0, 0, 0, 0, 'acquire', 1.0 "
    "FROM breakers",
    "a replaced row": "INSERT OR REPLACE INTO breakers (key, machine, state, version, generation, changed_at, "
    "openings, successes, abandoned, event, at) SELECT key, machine, 'open', 1, 2, 1.0, 0, 0, 0, 'trip', 1.0 "
    "FROM breakers",
    "a birth that is late": "INSERT INTO breakers (key, machine, state, version, generation, changed_at, openings, "
    "successes, abandoned, event, at) SELECT 'x', machine, 'open', 2, 2, 1.0, 0, 0, 0, 'trip', 1.0 FROM breakers",
}


@pytest.mark.parametrize("rogue", ROGUES.values(), ids=ROGUES)
def test_the_table_is_law_in_the_file(url, rogue):
    """A rogue script with raw SQL is refused, and what the table allows is not."""
    store = open_store(url)
    store.register(record_of(BREAKER))
    row, entry = opened()
    assert store.breaker_swap(BREAKER.content_hash, 0, row, entry)
    store.close()
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    with pytest.raises(sqlite3.IntegrityError, match="fsm: "):
        connection.execute(rogue)
    connection.execute(
        "UPDATE breakers SET state = 'closed', version = 2, generation = 3, event = 'reset', actor = 'me', reason = 'y'"
    )
    last = "SELECT event, source, target, actor FROM breaker_journal ORDER BY position DESC LIMIT 1"
    assert connection.execute(last).fetchone() == ("reset", "open", "closed", "me")
    connection.close()


def test_the_breakers_machine_disturbs_no_execution(url, clock):
    """That the store knows the breakers' machine as law leaves the executions' own machines and searches alone."""
    with fresh_tracker(url, clock=clock) as tracker:
        tracker.breakers.poll_every(None)
        tracker.breakers.force_open("k")
        assert BREAKER.content_hash in tracker._registry.store.machines()
        assert "execution" in {machine.name for machine in tracker.machines()}
        execution = tracker.create("agent", user_id="ada", thread_id="t")
        assert [one.id for one in tracker.find(state="created", category="pending")] == [execution.id]


# --- real processes -------------------------------------------------------------------------------------------


class Other:
    """Another process on the same file."""

    def __init__(self, url: str, cooldown_s: float, probes: int) -> None:
        program = ROOT / "tests" / "support" / "breaker_process.py"
        self._process = subprocess.Popen(
            [sys.executable, str(program), url, str(cooldown_s), str(probes)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.answer() == "ready"

    def answer(self) -> str:
        return self._process.stdout.readline().strip()

    def ask(self, order: str) -> None:
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()

    def do(self, order: str) -> str:
        self.ask(order)
        return self.answer()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


@pytest.fixture
def two(url):
    """Two real processes on one file."""
    made: list[Other] = []

    def start(cooldown_s: float, probes: int) -> list[Other]:
        made.extend(Other(url, cooldown_s, probes) for _ in range(2))
        return made

    yield start
    for one in made:
        one.end()


def test_another_process_learns_within_a_second(two):
    """A process that makes calls all the while refuses them within a second of another one's opening."""
    here, there = two(60.0, 1)
    assert there.do("take") == "permit"
    there.ask("wait")
    for _ in range(2):
        assert here.do("take") == "permit"
        here.do("fail")
    assert here.do("take") == "refused open"
    opened_at = time.monotonic()
    assert there.answer() != "never"
    assert time.monotonic() - opened_at < 1.0
    assert there.do("take") == "refused open"


def test_probes_of_two_processes(two):
    """Two processes at half-open together run as many probes as the policy allows, and close for both."""
    here, there = two(0.2, 3)
    for _ in range(2):
        here.do("take")
        here.do("fail")
    there.do("poll")
    deadline = time.monotonic() + 20
    while here.do("take") != "probe":
        assert time.monotonic() < deadline
    taken = [one.do("take") for one in (there, here, there, here, there)]
    assert taken == ["probe", "probe", "refused half_open", "refused half_open", "refused half_open"]
    there.do("succeed")
    here.do("succeed")
    here.do("succeed")
    assert here.do("state") == "closed"
    there.do("poll")
    assert there.do("state") == "closed"


def test_a_killed_processs_probe_frees_its_lease(url, two):
    """A probe whose process was killed is taken over by another process when its lease has run out."""
    here, _ = two(0.05, 1)
    for _ in range(2):
        here.do("take")
        here.do("fail")
    deadline = time.monotonic() + 20
    while here.do("take") != "probe":
        assert time.monotonic() < deadline
    here.kill()
    clock = ManualClock(time.time())
    store = open_store(url)
    breakers = make(store, clock, cooldown_s=0.05, probe_lease_s=60.0)
    with pytest.raises(BreakerOpen):
        breakers.acquire("openai:gpt-5")
    clock.advance(60.0)
    with pytest.raises(BreakerOpen) as refused:
        breakers.acquire("openai:gpt-5")
    assert refused.value.state == "open"
    clock.advance(refused.value.retry_after_s)
    breakers.release("openai:gpt-5", breakers.acquire("openai:gpt-5"), SUCCESS)
    assert breakers.status_of("openai:gpt-5").state == "closed"
    store.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_goes_on(url):
    """A forked child has working breakers and a thread of its own that looks for changes."""
    with fresh_tracker(url) as tracker:
        breakers = tracker.breakers
        breakers.declare("*", POLICY)
        breakers.get("k")
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            said = b"?"
            try:
                fail(breakers, 2)
                names = [one.name for one in threading.enumerate()]
                said = (
                    b"open"
                    if breakers.status_of("k").state == "open" and "fsm-breakers" in names
                    else b"wrong"
                )
            finally:
                os.write(write, said)
                os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 10) == b"open"
        os.close(read)
        os.close(write)
        breakers.poll()
        assert breakers.status_of("k").state == "open"
