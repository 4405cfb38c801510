"""Permits, probes, generations and time, on a clock that goes on only when it is told to."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest

from fsm import BadPayload, BreakerOpen, InvalidArgument
from fsm.breakers import (
    CANCELLED,
    FAILURE,
    SUCCESS,
    Breakers,
    Classifier,
    Consecutive,
    CountWindow,
    Policy,
    SlowCalls,
    http_result,
    throttled,
)
from fsm.clock import ManualClock
from fsm.stores.opening import open_store
from fsm.tracker.process import fresh_tracker

POLICY = Policy(trip=Consecutive(failures=3), cooldown_s=10.0, jitter=0.0, probe_lease_s=60.0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def breakers(clock) -> Breakers:
    return make(clock)


def make(clock, **policy) -> Breakers:
    return Breakers(open_store("memory://"), clock, policy=POLICY.model_copy(update=policy), draw=lambda: 0.0)


def fail(breakers: Breakers, times: int = 1, key: str = "k") -> None:
    for _ in range(times):
        with pytest.raises(TimeoutError), breakers.permit(key):
            raise TimeoutError


def state(breakers: Breakers, key: str = "k") -> str:
    return breakers.status_of(key).state


def half_open(breakers: Breakers, clock: ManualClock) -> None:
    """Open the breaker and wait until it may be probed."""
    fail(breakers, 3)
    clock.advance(10.0)


def test_the_way_there_and_back(breakers, clock):
    """A breaker opens at its threshold, refuses during its cooldown, and closes after a probe that went well."""
    fail(breakers, 2)
    assert state(breakers) == "closed"
    fail(breakers)
    with pytest.raises(BreakerOpen) as refused, breakers.permit("k"):
        pytest.fail("an open breaker lets no call through")
    assert (refused.value.key, refused.value.state, refused.value.retry_after_s) == ("k", "open", 10.0)
    assert refused.value.retry_at == clock.wall() + 10.0
    clock.advance(9.999)
    with pytest.raises(BreakerOpen), breakers.permit("k"):
        pytest.fail("not yet")
    clock.advance(0.001)
    with breakers.permit("k") as permit:
        assert permit.probe
        assert state(breakers) == "half_open"
    assert state(breakers) == "closed"
    assert [entry.event for entry in breakers.history("k")] == ["trip", "acquire", "probes_ok"]


@pytest.mark.parametrize(("at_once", "needed"), [(1, 1), (1, 3), (3, 3), (5, 2)])
def test_twenty_callers_at_half_open(clock, at_once, needed):
    """Of twenty concurrent callers at half-open exactly as many run as the policy allows."""
    breakers = make(clock, probes_at_once=at_once, successes_needed=needed)
    half_open(breakers, clock)
    running = 0
    refusals: list[BreakerOpen] = []

    async def caller(done: asyncio.Event) -> str:
        nonlocal running
        try:
            async with breakers.permit("k"):
                running += 1
                await done.wait()
        except BreakerOpen as refused:
            refusals.append(refused)
            return "refused"
        return "ran"

    async def scenario() -> list[str]:
        done = asyncio.Event()
        tasks = [asyncio.create_task(caller(done)) for _ in range(20)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert (running, sum(task.done() for task in tasks)) == (at_once, 20 - at_once)
        done.set()
        return await asyncio.gather(*tasks)

    outcomes = asyncio.run(scenario())
    assert outcomes.count("ran") == at_once
    assert all(one.state == "half_open" and 0 < one.retry_after_s <= 1.0 for one in refusals)
    assert state(breakers) == ("closed" if at_once >= needed else "half_open")


def test_a_cancelled_probe_gives_its_permit_back_at_once(breakers, clock):
    """A cancelled probe neither closes nor opens, and the very next caller gets the permit."""
    half_open(breakers, clock)

    async def scenario() -> None:
        inside = asyncio.Event()

        async def probe() -> None:
            async with breakers.permit("k") as permit:
                assert permit.probe
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(probe())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert state(breakers) == "half_open"
        async with breakers.permit("k") as permit:
            assert permit.probe

    asyncio.run(scenario())
    assert state(breakers) == "closed"


def test_a_killed_task_gives_its_permit_back_too(breakers, clock):
    """A probe whose coroutine is thrown away in the middle gives its permit back."""
    half_open(breakers, clock)

    async def probe() -> None:
        async with breakers.permit("k"):
            await asyncio.Event().wait()

    async def scenario() -> None:
        coroutine = probe()
        coroutine.send(None)
        assert breakers.status_of("k").probes == 1
        coroutine.close()
        del coroutine
        gc.collect()
        assert breakers.status_of("k").probes == 0

    asyncio.run(scenario())


def test_too_many_abandoned_probes_open_again(clock):
    """So many cancelled probes of one generation as the policy bears open the breaker for the same cooldown."""
    breakers = make(clock, abandoned_limit=2)
    half_open(breakers, clock)
    for expected in ("half_open", "open"):
        with pytest.raises(KeyboardInterrupt), breakers.permit("k"):
            raise KeyboardInterrupt
        assert state(breakers) == expected
    assert breakers.status_of("k").retry_after_s == 10.0
    assert breakers.status_of("k").openings == 0


def test_a_lost_probe_frees_its_lease_in_time(breakers, clock):
    """A probe that is never given back blocks no caller for longer than its lease and one cooldown."""
    half_open(breakers, clock)
    lost = breakers.acquire("k")
    with pytest.raises(BreakerOpen):
        breakers.acquire("k")
    clock.advance(60.0)
    with pytest.raises(BreakerOpen) as refused:
        breakers.acquire("k")
    assert (refused.value.state, refused.value.retry_after_s) == ("open", 20.0)
    clock.advance(20.0)
    breakers.release("k", breakers.acquire("k"), SUCCESS)
    assert state(breakers) == "closed"
    breakers.release("k", lost, FAILURE)
    assert state(breakers) == "closed"


def test_a_late_success_does_not_close(breakers, clock):
    """A success of an old generation only feeds metrics."""
    early = breakers.acquire("k")
    half_open(breakers, clock)
    probe = breakers.acquire("k")
    breakers.release("k", early, SUCCESS)
    assert state(breakers) == "half_open"
    breakers.release("k", probe, FAILURE)
    breakers.release("k", probe, SUCCESS)
    assert state(breakers) == "open"
    assert breakers.status_of("k").calls["late"] == 2


def test_late_failures_do_not_open_a_breaker_that_recovered(breakers, clock):
    """Failures of calls that began before the breaker opened do not count after it closed."""
    early = [breakers.acquire("k") for _ in range(5)]
    half_open(breakers, clock)
    with breakers.permit("k"):
        pass
    for call in early:
        breakers.release("k", call, FAILURE)
    assert (state(breakers), breakers.status_of("k").failures) == ("closed", 0)


def test_cancels_while_closed_neither_erase_nor_count(breakers):
    """Between two failures a cancel, an interrupt or an ignored error is as if it had not been."""
    fail(breakers, 2)
    for _ in range(10):
        with pytest.raises(KeyboardInterrupt), breakers.permit("k"):
            raise KeyboardInterrupt
        with pytest.raises(asyncio.CancelledError), breakers.permit("k"):
            raise asyncio.CancelledError
        with pytest.raises(BadPayload), breakers.permit("k"):
            raise BadPayload("our own mistake")
    assert (state(breakers), breakers.status_of("k").failures) == ("closed", 2)
    fail(breakers)
    assert state(breakers) == "open"


def test_eight_threads_are_inside_at_once(breakers):
    """No lock is held during a call: eight threads meet inside the same function."""
    together = threading.Barrier(8, timeout=20)

    @breakers("k")
    def meet() -> int:
        return together.wait()

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(meet())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(8)), "a lock would have broken the barrier"


def test_threads_that_fail_are_all_counted(breakers):
    """Failures of many threads at once are neither lost nor counted twice: the breaker opens once."""
    together = threading.Barrier(8, timeout=20)

    def work() -> None:
        together.wait()
        raise TimeoutError

    def caller() -> None:
        with pytest.raises(TimeoutError), breakers.permit("k"):
            work()

    threads = [threading.Thread(target=caller) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert breakers.status_of("k").calls["failure"] == 8
    assert [entry.event for entry in breakers.history("k")] == ["trip"]


def test_a_clock_set_back_does_not_prolong_open(breakers, clock):
    """A wall clock that is set back an hour leaves the cooldown as long as it was."""
    fail(breakers, 3)
    clock.jump(-3600.0)
    clock.advance(10.0)
    with breakers.permit("k") as permit:
        assert permit.probe
    assert state(breakers) == "closed"


def test_a_clock_set_back_does_not_prolong_a_lease(breakers, clock):
    """A wall clock that is set back an hour leaves a lost probe's lease as long as it was."""
    half_open(breakers, clock)
    breakers.acquire("k")
    clock.jump(-3600.0)
    clock.advance(60.0)
    with pytest.raises(BreakerOpen) as refused:
        breakers.acquire("k")
    assert refused.value.state == "open"


def test_one_who_learns_of_an_opening_after_the_clock_was_set_back(clock):
    """Another process that reads an old row by a clock set back an hour waits one cooldown at the most."""
    store = open_store("memory://")
    first = Breakers(store, clock, policy=POLICY, draw=lambda: 0.0)
    fail(first, 3)
    clock.jump(-3600.0)
    other = Breakers(store, clock, policy=POLICY)
    assert other.status_of("k").retry_after_s == 10.0


def test_throttling_opens_and_a_longer_one_extends(breakers, clock):
    """Retry-After opens at once; a later, longer one extends, a shorter one changes nothing, and it has a cap."""
    waiting = [breakers.acquire("k") for _ in range(3)]
    with breakers.permit("k") as permit:
        permit.throttle(20.0)
    assert (state(breakers), breakers.status_of("k").retry_after_s) == ("open", 20.0)
    clock.advance(5.0)
    for call, asked, left in zip(waiting, (3.0, 60.0, 1e9), (15.0, 60.0, POLICY.throttle_max_s), strict=True):
        breakers.release("k", call, throttled(asked))
        assert breakers.status_of("k").retry_after_s == left
    assert breakers.status_of("k").generation == 2, "an extension is no change of state"


def test_an_extension_holds_on_a_clock_set_back(breakers, clock):
    """A Retry-After that comes after the clock was set back still extends the cooldown."""
    call = breakers.acquire("k")
    with breakers.permit("k") as permit:
        permit.throttle(20.0)
    clock.jump(-3600.0)
    breakers.release("k", call, throttled(60.0))
    assert breakers.status_of("k").retry_after_s == 60.0


def test_retry_after_on_a_200_is_ignored(breakers):
    """A response with status 200 is a success, whatever its headers say."""
    with breakers.permit("k") as permit:
        permit.judge(SimpleNamespace(status_code=200, headers={"Retry-After": "60"}))
    assert state(breakers) == "closed"
    assert breakers.status_of("k").calls == {"success": 1}
    with breakers.permit("k") as permit:
        permit.judge(SimpleNamespace(status_code=429, headers={"Retry-After": "60"}))
    assert breakers.status_of("k").retry_after_s == 60.0


def test_what_the_caller_says_goes_first(breakers):
    """A block may give the verdict of its call itself."""
    for _ in range(3):
        with breakers.permit("k") as permit:
            permit.fail()
    assert state(breakers) == "open"
    for _ in range(5):
        with suppress(TimeoutError), breakers.permit("other") as permit:
            permit.ignore()
            raise TimeoutError
    assert state(breakers, "other") == "closed"


def test_slow_calls_open_and_a_slow_probe_does_not_close(clock):
    """Calls that succeed too slowly open the breaker, and a probe that is as slow shows no recovery."""
    breakers = make(clock, trip=(SlowCalls(slow_call_s=2.0, slow_rate=0.5, calls=4, minimum_calls=2),))
    for expected in ("closed", "open"):
        with breakers.permit("k"):
            clock.advance(2.0)
        assert state(breakers) == expected
    clock.advance(10.0)
    with breakers.permit("k"):
        clock.advance(2.0)
    assert state(breakers) == "open"
    clock.advance(20.0)
    with breakers.permit("k"):
        clock.advance(1.9)
    assert state(breakers) == "closed"


def test_a_window_policy_counts_successes(clock):
    """With a share to reach, calls that go well keep the breaker closed."""
    breakers = make(clock, trip=(CountWindow(calls=10, failure_rate=0.5, minimum_calls=4),))
    for _ in range(6):
        with breakers.permit("k"):
            pass
    fail(breakers, 4)
    assert state(breakers) == "closed"
    fail(breakers)
    assert state(breakers) == "open", "five of the last ten"


def test_orders_by_hand(breakers, clock):
    """Held open no call gets through, disabled all do and none is judged, reset closes; all of it is journaled."""
    breakers.force_open("k", by="ada", why="the invoice")
    clock.advance(1e6)
    with pytest.raises(BreakerOpen) as refused:
        breakers.acquire("k")
    assert refused.value.state == "forced_open"
    breakers.disable("k", by="bob", why="a drill")
    fail(breakers, 20)
    with breakers.permit("k"):
        pass
    assert state(breakers) == "disabled"
    breakers.reset("k", by="ada", why="over")
    assert state(breakers) == "closed"
    journal = [(entry.event, entry.by, entry.why) for entry in breakers.history("k")]
    assert journal == [
        ("force_open", "ada", "the invoice"), ("disable", "bob", "a drill"), ("reset", "ada", "over"),
    ]  # fmt: skip
    fail(breakers, 2)
    assert state(breakers) == "closed", "what was seen before the reset is forgotten"


def test_policies_by_pattern(clock):
    """A key behaves as the last pattern says that fits it, others by the default."""
    breakers = make(clock)
    breakers.declare("openai:*", Policy(trip=Consecutive(failures=2)))
    breakers.declare("openai:mini", classifier=Classifier(ignored=(TimeoutError,)))
    fail(breakers, 2, "openai:gpt")
    fail(breakers, 9, "openai:mini")
    fail(breakers, 2, "other")
    assert [state(breakers, key) for key in ("openai:gpt", "openai:mini", "other")] == [
        "open",
        "closed",
        "closed",
    ]
    for key in ("", None, 7, "a\0b"):
        with pytest.raises(InvalidArgument):
            breakers.permit(key)


def test_one_for_all_faces(clock):
    """All faces of a registry have the same breakers, and another registry has its own."""
    with fresh_tracker(clock=clock) as tracker, fresh_tracker(clock=clock) as other:
        assert tracker.breakers is tracker.breakers
        assert not hasattr(tracker.for_user("ada"), "breakers"), "one user does not speak for all"
        assert tracker.breakers is not other.breakers


FALSY = [None, 0, "", [], {}, False]


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("value", FALSY)
def test_the_decorator_leaves_values_alone(clock, value, judged):
    """What a decorated function returns comes back untouched, falsy or not, and so do its name and arguments."""
    breakers = make(clock)
    breakers.declare("*", classifier=Classifier(results=http_result) if judged else None)

    @breakers.guard("k")
    def plain(*args, **kwargs):
        """Text."""
        return (value, args, kwargs) if args else value

    @breakers.guard(lambda *_args, **_kwargs: "k")
    async def awaited(*args, **kwargs):
        return (value, args, kwargs) if args else value

    for result in (plain(), asyncio.run(awaited())):
        assert result is value
    assert plain(1, b=2) == asyncio.run(awaited(1, b=2)) == (value, (1,), {"b": 2})
    assert (plain.__name__, plain.__doc__) == ("plain", "Text.")
    assert breakers.status_of("k").calls["success"] == 4


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_decorator_breaks_the_circuit(breakers, clock, kind):
    """A decorated function or coroutine opens the breaker, is not called while it is open, and closes it again."""
    calls = 0
    well = False

    def work():
        nonlocal calls
        calls += 1
        if not well:
            raise TimeoutError
        return "well"

    async def awork():
        return work()

    guarded = breakers("k")(work) if kind == "sync" else breakers("k")(awork)
    run = guarded if kind == "sync" else lambda: asyncio.run(guarded())
    for _ in range(3):
        with pytest.raises(TimeoutError):
            run()
    for _ in range(5):
        with pytest.raises(BreakerOpen):
            run()
    assert calls == 3
    well = True
    clock.advance(10.0)
    assert run() == "well"
    assert (state(breakers), calls) == ("closed", 4)
    assert run() == "well"


def test_results_are_judged_if_asked_for(breakers):
    """With a classifier of results a decorated function's bad responses count although nothing was raised."""
    breakers.declare("k", classifier=Classifier(results=http_result))
    bad = SimpleNamespace(status_code=500)
    guarded = breakers("k")(lambda: bad)
    for _ in range(3):
        assert guarded() is bad
    with pytest.raises(BreakerOpen):
        guarded()


class Spy:
    """A store that counts what is asked of it."""

    def __init__(self, store):
        self._store = store
        self.asked: list[str] = []

    def __getattr__(self, name):
        if name.startswith("breaker"):
            self.asked.append(name)
        return getattr(self._store, name)


def test_a_closed_breaker_touches_no_store_and_no_machine(clock, monkeypatch):
    """While a breaker is closed a call asks no store, not even the first one, and runs no machine."""
    spy = Spy(open_store("memory://"))
    breakers = Breakers(spy, clock, policy=POLICY)
    spy.asked.clear()

    def never(*_args):
        pytest.fail("a machine run")

    monkeypatch.setattr("fsm.breakers.core.decide_breaker", never)
    for index in range(100):
        with breakers.permit(f"key {index % 3}"):
            pass
    asyncio.run(breakers("key 1")(asyncio.sleep)(0))
    assert spy.asked == []
    assert sum(one.calls["success"] for one in breakers.status().breakers) == 101


def test_release_by_hand(breakers, clock):
    """A permit taken by hand is given back by hand, also without blocking the event loop."""
    half_open(breakers, clock)

    async def scenario() -> None:
        call = await breakers.acquire_async("k")
        with pytest.raises(BreakerOpen):
            await breakers.acquire_async("k")
        await breakers.release_async("k", call, CANCELLED)
        call = await breakers.acquire_async("k")
        await breakers.release_async("k", call, SUCCESS)

    asyncio.run(scenario())
    assert state(breakers) == "closed"
