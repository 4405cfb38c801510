"""The tracker: one per process, and one transition per key."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

import fsm.tracker.process as tracking
from fsm import (
    ConfigurationError,
    Engine,
    FsmError,
    NotAStore,
    Refused,
    StoreUnavailable,
    Tracker,
    configure,
    get_tracker,
)
from fsm.testing import fresh_tracker
from tests.support.tracker_tools import ERRAND, begun


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No tracker at all, in an empty folder; what a test sets up is closed after it."""
    monkeypatch.setattr(tracking, "_trackers", [])
    monkeypatch.delenv("FSM_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for tracker in list(tracking._trackers):
        tracker.close()


# --- the one ------------------------------------------------------------------------------------------------------


def test_the_default_store_is_a_file_beside_you(alone):
    """Without a word the executions are kept in fsm.db in the working folder, and every call gets the same tracker."""
    tracker = get_tracker()
    assert tracker is get_tracker()
    assert tracker.store_url == "sqlite:///fsm.db"
    assert (alone / "fsm.db").is_file()


def test_the_environment_names_the_store(alone, monkeypatch):
    """FSM_STORE names the store, unless configure() does; an empty one counts for nothing."""
    monkeypatch.setenv("FSM_STORE", "memory://")
    assert get_tracker().store_url == "memory://"
    get_tracker().close()
    assert configure("sqlite:///mine.db").store_url == "sqlite:///mine.db"
    get_tracker().close()
    monkeypatch.setenv("FSM_STORE", "")
    assert get_tracker().store_url == "sqlite:///fsm.db"
    get_tracker().close()
    monkeypatch.setenv("FSM_STORE", "nonsense://")
    with pytest.raises(NotAStore, match="nonsense"):
        get_tracker()


def test_configure_is_called_once(alone):
    """A second configure(), or one after the first use, is refused; after close() it may be called again."""
    configure("memory://")
    with pytest.raises(ConfigurationError, match=r"configure\(\) once"):
        configure("memory://")
    get_tracker().close()
    get_tracker()
    with pytest.raises(ConfigurationError, match=r"already set up, on sqlite:///fsm\.db"):
        configure("memory://")


def test_a_configure_that_fails_leaves_nothing_behind(alone):
    """When configure() fails it can be called again, rightly."""
    other = ERRAND.extend(name="execution")
    for wrong in (
        {"store": "sqlite:///none/x.db"},
        {"store": 5},
        {"store": "memory://", "machines": [other]},
    ):
        with pytest.raises((ConfigurationError, StoreUnavailable)):
            configure(**wrong)
    configure("memory://")


@pytest.mark.parametrize("arguments", [(), ("memory://",)])
def test_nobody_builds_a_tracker(arguments):
    """Building a tracker by hand is refused with an error that names get_tracker()."""
    with pytest.raises(ConfigurationError, match=r"get_tracker\(\)"):
        Tracker(*arguments)


def test_fresh_trackers_nest():
    """Inside a block get_tracker() gives the innermost fresh tracker, and afterwards the one around it again."""
    with fresh_tracker() as outer:
        assert get_tracker() is outer
        with fresh_tracker() as inner:
            assert get_tracker() is inner
        assert get_tracker() is outer
        with pytest.raises(StoreUnavailable, match="closed"):
            inner.create("a", user_id="u", thread_id="t")


def test_a_thread_that_a_block_starts_sees_the_blocks_tracker():
    """A thread started inside a block works on that block's tracker."""
    seen: list[Tracker] = []
    with fresh_tracker(), fresh_tracker() as tracker:
        thread = threading.Thread(target=lambda: seen.append(get_tracker()))
        thread.start()
        thread.join()
    assert seen == [tracker]


def test_threads_with_blocks_of_their_own_do_not_meet():
    """Threads that each open a block each have a tracker of their own, whatever the others do meanwhile."""
    together = threading.Barrier(4, timeout=60)
    seen: list[tuple[bool, dict[str, int]]] = []

    def work(number: int) -> None:
        with fresh_tracker() as tracker:
            together.wait()
            for _ in range(number):
                get_tracker().create("a", user_id="u", thread_id="t")
            together.wait()
            seen.append((get_tracker() is tracker, tracker.counts()))
            together.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(seen, key=str) == [(True, {"created": number}) for number in range(1, 5)]


def test_the_fixture_gives_a_fresh_tracker_on_its_clock(tracker, clock):
    """The plugin's fixtures give a fresh tracker in memory, which is get_tracker()'s, on a clock that obeys."""
    assert get_tracker() is tracker
    assert tracker.store_url == "memory://"
    assert tracker.counts() == {}
    made = tracker.create("a", user_id="u", thread_id="t")
    clock.advance(2.5)
    assert tracker.durations(made.id) == {"created": 2.5}


@pytest.mark.parametrize("number", range(3))
def test_the_fixture_is_fresh_every_time(tracker, number):
    """No test sees what another one, in this process or in another worker, has created."""
    assert tracker.find() == []
    tracker.create("a", user_id="u", thread_id="t")


# --- keys ---------------------------------------------------------------------------------------------------------


def test_the_same_key_gives_the_first_receipt_for_ever(either):
    """The same key again gives the first receipt: at once, after later transitions, and after the end."""
    one = begun(either)
    first = either.fire(one, "think", fence=either.get(one).fence, key="k", note="once")
    assert either.fire(one, "think", fence=either.get(one).fence, key="k", note="once") == first
    either.fire(one, "process_results", fence=either.get(one).fence)
    assert either.fire(one, "think", fence=either.get(one).fence, key="k") == first
    either.fire(one, "finish", fence=either.get(one).fence)
    either.fire(one, "complete", fence=either.get(one).fence)
    assert either.fire(one, "think", key="k", fence=99) == first
    assert either.get(one).version == 5


def test_a_key_for_another_event_is_refused(either):
    """A key that was used for another event is refused as a duplicate, and names its first use."""
    one = begun(either)
    either.fire(one, "think", fence=either.get(one).fence, key="k")
    with pytest.raises(Refused, match="was used for 'think' at version 2") as caught:
        either.fire(one, "process_results", fence=either.get(one).fence, key="k")
    assert caught.value.reason == "duplicate"
    assert either.get(one).version == 2


def test_concurrent_calls_with_one_key_make_one_transition(either):
    """However many call at once with one key, one transition is made and all get its receipt."""
    one = begun(either)
    together = threading.Barrier(16, timeout=60)
    receipts = []

    def call() -> None:
        together.wait()
        receipts.append(either.fire(one, "progress", fence=either.get(one).fence, key="k"))

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(receipts) == 16
    assert len(set(receipts)) == 1
    assert either.get(one).version == 2


def test_a_refused_call_does_not_use_its_key_up(either):
    """A key of a refused call is free: the same call succeeds once it is legal."""
    one = begun(either)
    with pytest.raises(Refused):
        either.fire(one, "finish", fence=either.get(one).fence, key="k")
    either.fire(one, "think", fence=either.get(one).fence)
    either.fire(one, "process_results", fence=either.get(one).fence)
    assert either.fire(one, "finish", fence=either.get(one).fence, key="k").target == "completing"


# --- blocks that end elsewhere ------------------------------------------------------------------------------------


def in_a_thread(action: Callable[[], object]) -> None:
    thread = threading.Thread(target=action)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


ELSEWHERE: dict[str, Callable[[Callable[[], object]], object]] = {
    "another context": lambda end: contextvars.copy_context().run(end),
    "an empty context": lambda end: contextvars.Context().run(end),
    "another thread": in_a_thread,
    "another task": lambda end: asyncio.run(asyncio.wait_for(asyncio.to_thread(end), 60)),
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_a_block_that_ends_elsewhere_is_over_everywhere(where):
    """A block that ends in another context closes its tracker, and get_tracker() returns the one around it again."""
    with fresh_tracker() as outer:
        block = fresh_tracker()
        inner = block.__enter__()
        assert get_tracker() is inner
        ELSEWHERE[where](lambda: block.__exit__(None, None, None))
        assert inner.closed
        assert get_tracker() is outer
        with fresh_tracker() as third:
            assert get_tracker() is third
        assert get_tracker() is outer
    assert outer.closed


def test_blocks_of_generators_end_when_they_are_collected():
    """A block in a generator that nobody finishes, or in an async fixture of another task, ends all the same."""

    def fixture() -> Iterator[Tracker]:
        with fresh_tracker() as tracker:
            yield tracker

    async def fixture_async() -> AsyncIterator[Tracker]:
        with fresh_tracker() as tracker:
            yield tracker

    async def scenario() -> Tracker:
        generator = fixture_async()
        tracker = await asyncio.create_task(anext(generator))
        assert not tracker.closed
        await asyncio.create_task(generator.aclose())
        return tracker

    with fresh_tracker() as outer:
        generator = fixture()
        inner = next(generator)
        del generator
        gc.collect()
        assert inner.closed
        assert asyncio.run(scenario()).closed
        assert get_tracker() is outer


def test_blocks_that_end_in_another_order_leave_the_open_one_current():
    """When an outer block ends before the inner one, get_tracker() gives the one that is still open."""
    outer, inner = fresh_tracker(), fresh_tracker()
    outer.__enter__()
    current = inner.__enter__()
    outer.__exit__(None, None, None)
    assert get_tracker() is current
    inner.__exit__(None, None, None)
    assert current.closed


def test_a_tracker_that_fails_to_close_is_not_current(monkeypatch):
    """A fresh tracker whose store cannot be closed is over all the same."""
    with fresh_tracker() as outer:
        with pytest.raises(RuntimeError, match="stuck"), fresh_tracker() as inner:  # noqa: PT012 - it ends there

            def stuck() -> None:
                inner._registry.closed = True
                raise RuntimeError("stuck")

            monkeypatch.setattr(inner._registry, "close", stuck)
        assert get_tracker() is outer


def test_threads_that_ask_while_trackers_come_and_go(alone):
    """get_tracker() in many threads, while trackers are configured and closed, gives one tracker or a typed error."""
    over, wrong = threading.Event(), []

    def ask() -> None:
        while not over.is_set():
            try:
                assert isinstance(get_tracker(), Tracker)
            except FsmError:
                pass
            except BaseException as error:  # noqa: BLE001 - which one is what the test tells
                wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        with contextlib.suppress(ConfigurationError):  # a thread was faster
            configure("memory://").close()
        with fresh_tracker():
            pass
    over.set()
    for thread in threads:
        thread.join(60)
    assert wrong == []


@pytest.mark.parametrize("where", ["memory://", "sqlite"])
def test_a_closed_tracker_is_collected(where, url):
    """Nothing keeps a closed tracker's registry in memory, whatever of it was used."""

    async def agent(run):
        async with run.model("m"):
            return 1

    async def scenario(tracker) -> None:
        async with Engine(tracker) as engine:
            await engine.run(agent, user_id="u", thread_id="t")
        assert [one async for one in tracker.aio.subscribe(after=0, follow=False)]

    def use() -> weakref.ref[object]:
        with fresh_tracker(url if where == "sqlite" else where) as tracker:
            tracker.breakers.force_open("k")
            with tracker.worker():
                asyncio.run(scenario(tracker))
            tracker.sweep()
            assert tracker.health().loops is not None
            return weakref.ref(tracker._registry)

    left = use()
    gc.collect()
    assert left() is None
