"""Breakers in the executions' table: permits, trips, waits, fallbacks and retries, as the journal shows them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from fsm import BreakerOpen, Refused
from fsm.breakers import FAILURE, Backoff, Classifier, Consecutive, Policy
from fsm.clock import ManualClock
from fsm.engine.model_calls import call_model, call_model_async, model_call
from fsm.tracker.process import fresh_tracker

KEY = "openai:gpt-5"
THRESHOLD = 3


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "sqlite"])
def tracker(request, clock, tmp_path):
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/fsm.db"
    with fresh_tracker(url, clock=clock) as tracker:
        tracker.breakers.poll_every(None)
        tracker.breakers.declare(
            "*",
            Policy(trip=Consecutive(failures=THRESHOLD), cooldown_s=10.0, jitter=0.0, cooldown_max_s=40.0),
        )
        yield tracker


def started(tracker, **options):
    execution = tracker.create("agent", user_id="ada", thread_id="t", **options)
    tracker.fire(execution.id, "start")
    return execution.id


def steps(tracker, execution_id) -> list[tuple[str, str]]:
    """The journal after the start, as (event, target)."""
    return [(receipt.event, receipt.target) for receipt in tracker.history(execution_id)[2:]]


def dead():
    raise ConnectionError("dead")


def open_it(tracker, key: str = KEY) -> None:
    for _ in range(THRESHOLD):
        with pytest.raises(ConnectionError), tracker.breakers.permit(key):
            dead()


def run(tracker, kind, execution_id, function, clock, **options):
    """Make the model call in one of its two faces, as the owner."""
    options.setdefault("fence", tracker.get(execution_id).fence)
    if kind == "sync":
        return call_model(tracker.breakers, tracker, execution_id, KEY, function, **options)

    async def afunction():
        return function()

    async def sleep(seconds: float) -> None:
        clock.sleep(seconds)

    return asyncio.run(
        call_model_async(tracker.breakers, tracker, execution_id, KEY, afunction, sleep=sleep, **options)
    )


both = pytest.mark.parametrize("kind", ["sync", "async"])


@both
def test_with_a_permit(tracker, clock, kind):
    """With a permit the execution is calling_model, and what the call returned comes back untouched."""
    execution_id = started(tracker)
    assert run(tracker, kind, execution_id, lambda: 0, clock) == 0
    execution = tracker.get(execution_id)
    assert (execution.state, execution.breaker, execution.model_attempt) == ("calling_model", None, 1)


@both
def test_without_a_permit(tracker, clock, kind):
    """Without a permit the execution is circuit_open, shows the key, and knows when to try again."""
    open_it(tracker)
    clock.advance(4.0)
    execution_id = started(tracker)
    with pytest.raises(BreakerOpen):
        run(tracker, kind, execution_id, lambda: pytest.fail("it was called"), clock)
    execution = tracker.get(execution_id)
    assert (execution.state, execution.breaker) == ("circuit_open", KEY)
    assert execution.not_before == pytest.approx(clock.wall() + 6.0)
    assert execution.due_at is not None


@both
def test_the_wake_up(tracker, clock, kind):
    """From circuit_open the same event asks again: it stays while the breaker is open, and goes on with a probe."""
    open_it(tracker)
    execution_id = started(tracker)
    for left in (10.0, 5.0):
        with pytest.raises(BreakerOpen):
            run(tracker, kind, execution_id, lambda: 1, clock)
        assert tracker.get(execution_id).not_before == pytest.approx(clock.wall() + left)
        clock.advance(5.0)
    assert run(tracker, kind, execution_id, lambda: 1, clock) == 1
    assert steps(tracker, execution_id) == [
        ("call_model", "circuit_open"), ("call_model", "circuit_open"), ("call_model", "calling_model"),
    ]  # fmt: skip
    assert tracker.get(execution_id).breaker is None


def test_the_fallback(tracker, clock):
    """An execution behind an open breaker may think of something else and call another model."""
    open_it(tracker)
    execution_id = started(tracker)
    with pytest.raises(BreakerOpen), model_call(tracker.breakers, tracker, execution_id, KEY, fence=1):
        pytest.fail("it was called")
    tracker.fire(execution_id, "think", fence=tracker.get(execution_id).fence)
    assert tracker.get(execution_id).breaker is None
    with model_call(tracker.breakers, tracker, execution_id, "anthropic:opus", name="opus", fence=1):
        assert tracker.get(execution_id).state == "calling_model"
    assert tracker.history(execution_id)[-1].payload == {"name": "opus", "breaker": "anthropic:opus"}


@both
def test_a_trip_during_a_call(tracker, clock, kind):
    """An error that leaves the breaker open is a trip: circuit_open, with key, error and time."""
    with pytest.raises(ConnectionError), tracker.breakers.permit(KEY):
        dead()
    execution_id = started(tracker)
    with pytest.raises(ConnectionError):
        run(tracker, kind, execution_id, dead, clock, backoff=Backoff(attempts=5))
    assert steps(tracker, execution_id) == [
        ("call_model", "calling_model"), ("back_off", "backing_off"), ("call_model", "calling_model"),
        ("trip", "circuit_open"),
    ]  # fmt: skip
    payload = tracker.history(execution_id)[-1].payload
    assert payload == {"breaker": KEY, "retry_in_s": 10.0, "error": "ConnectionError: dead"}
    execution = tracker.get(execution_id)
    assert (execution.breaker, execution.not_before) == (KEY, pytest.approx(clock.wall() + 10.0))


@both
def test_retries_are_visible(tracker, clock, kind):
    """Between two tries the execution is backing_off, with the attempt, the error, and the time of the next."""
    execution_id = started(tracker)
    seen = []

    def flaky():
        execution = tracker.get(execution_id)
        seen.append((execution.state, execution.model_attempt))
        if len(seen) < THRESHOLD:
            raise TimeoutError("slow")
        return "answer"

    waits = []
    sleep = clock.sleep

    def watched(seconds: float) -> None:
        execution = tracker.get(execution_id)
        waits.append((execution.state, round(execution.not_before - clock.wall() - seconds, 6)))
        sleep(seconds)

    clock.sleep = watched
    assert run(tracker, kind, execution_id, flaky, clock) == "answer"
    assert seen == [("calling_model", 1), ("calling_model", 2), ("calling_model", 3)]
    assert waits == [("backing_off", 0.0), ("backing_off", 0.0)]
    assert [one.payload["error"] for one in tracker.history(execution_id) if one.event == "back_off"] == [
        "TimeoutError: slow"
    ] * 2


@both
def test_a_retry_waits_as_long_as_the_server_asks(tracker, clock, kind):
    """Retry-After is the time of the next try, and opens the breaker for all others until then."""
    execution_id = started(tracker)
    response = SimpleNamespace(status_code=429, headers={"Retry-After": "33"})
    asked = []

    def limited():
        asked.append(clock.wall())
        if len(asked) == 1:
            error = RuntimeError("slow down")
            error.response = response
            raise error
        return "answer"

    assert run(tracker, kind, execution_id, limited, clock, backoff=Backoff(open_wait_s=60.0)) == "answer"
    assert asked[1] - asked[0] == pytest.approx(33.0)
    assert steps(tracker, execution_id)[1:] == [("trip", "circuit_open"), ("call_model", "calling_model")]


@both
def test_hopeless_errors_are_never_retried(tracker, clock, kind):
    """A 400, a context that is too long and an empty quota are raised at once and leave the breaker alone."""
    calls = 0

    def hopeless():
        nonlocal calls
        calls += 1
        error = RuntimeError("no")
        error.status_code, error.code = (400, None) if calls % 2 else (429, "insufficient_quota")
        raise error

    for expected in range(1, 2 * THRESHOLD):
        execution_id = started(tracker)
        with pytest.raises(RuntimeError):
            run(tracker, kind, execution_id, hopeless, clock)
        assert calls == expected
        assert steps(tracker, execution_id) == [("call_model", "calling_model")]
    assert tracker.breakers.status_of(KEY).state == "closed"


@both
@pytest.mark.parametrize("error", [asyncio.CancelledError("stop"), KeyboardInterrupt("stop")])
def test_cancellation_passes_untouched(tracker, clock, kind, error):
    """A cancel is raised as the very exception that it was, is not retried, and is never counted."""
    execution_id = started(tracker)

    def cancelled():
        raise error

    with pytest.raises(type(error)) as raised:
        run(tracker, kind, execution_id, cancelled, clock)
    assert kind == "async" or raised.value is error
    assert steps(tracker, execution_id) == [("call_model", "calling_model")]
    assert tracker.breakers.status_of(KEY).calls == {"success": 0, "cancelled": 1}
    with pytest.raises(type(error)):
        tracker.breakers.call("other", cancelled)
    assert tracker.breakers.status_of("other").calls == {"success": 0, "cancelled": 1}


def test_no_classifier_makes_a_cancel_a_failure(tracker):
    """Even a classifier that calls everything a failure does not get a cancellation counted or retried."""

    class Gloomy(Classifier):
        def error(self, error, now):
            return FAILURE

    tracker.breakers.declare("gloomy", classifier=Gloomy())
    raised = []

    def cancelled():
        raised.append(KeyboardInterrupt())
        raise raised[-1]

    with pytest.raises(KeyboardInterrupt):
        tracker.breakers.call("gloomy", cancelled)
    assert len(raised) == 1
    assert tracker.breakers.status_of("gloomy").calls == {"success": 0, "cancelled": 1}


@both
def test_the_executions_own_number_of_attempts(tracker, clock, kind):
    """When the execution has no attempt of its model call left, the call's own error is raised."""
    execution_id = started(tracker, retry={"model_attempts_max": 2})
    with pytest.raises(ConnectionError):
        run(tracker, kind, execution_id, dead, clock, backoff=Backoff(attempts=9))
    assert steps(tracker, execution_id) == [
        ("call_model", "calling_model"), ("back_off", "backing_off"), ("call_model", "calling_model"),
    ]  # fmt: skip


def test_a_call_that_the_execution_may_not_make_costs_no_permit(tracker, clock):
    """Where the table refuses the model call, a probe that was taken for it is given back."""
    open_it(tracker)
    clock.advance(10.0)
    execution = tracker.create("agent", user_id="ada", thread_id="t")
    with pytest.raises(Refused), model_call(tracker.breakers, tracker, execution.id, KEY):
        pytest.fail("it was called")

    async def scenario() -> None:
        with pytest.raises(Refused):
            async with model_call(tracker.breakers, tracker, execution.id, KEY):
                pytest.fail("it was called")

    asyncio.run(scenario())
    assert (tracker.breakers.status_of(KEY).probes, tracker.breakers.status_of(KEY).state) == (0, "half_open")


def test_a_call_of_an_execution_that_was_cancelled_meanwhile(tracker):
    """The provider's error is raised as it is when the execution has moved on and takes no trip."""
    for _ in range(THRESHOLD - 1):
        with pytest.raises(ConnectionError), tracker.breakers.permit(KEY):
            dead()
    execution_id = started(tracker)

    def cancelled_meanwhile():
        tracker.fire(execution_id, "cancel")
        dead()

    with pytest.raises(ConnectionError):
        call_model(tracker.breakers, tracker, execution_id, KEY, cancelled_meanwhile, fence=1)
    assert tracker.get(execution_id).state == "cancelling"
    assert tracker.breakers.status_of(KEY).state == "open"


def test_a_hundred_executions_and_one_dead_provider(tracker, clock):
    """A hundred executions with three tries each cause as many calls as the threshold says, not three hundred."""
    calls = 0

    async def provider():
        nonlocal calls
        calls += 1
        raise ConnectionError("refused")

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    async def one() -> str:
        execution = await tracker.aio.create("agent", user_id="ada", thread_id="t")
        await tracker.aio.fire(execution.id, "start")
        try:
            await call_model_async(
                tracker.breakers,
                tracker,
                execution.id,
                KEY,
                provider,
                fence=1,
                backoff=Backoff(attempts=3),
                sleep=sleep,
            )
        except (BreakerOpen, ConnectionError):
            return (await tracker.aio.get(execution.id)).state
        return "answered"

    async def scenario() -> list[str]:
        return [await one() for _ in range(100)]

    assert asyncio.run(scenario()) == ["circuit_open"] * 100
    assert calls == THRESHOLD
    assert len(tracker.find(state="circuit_open", limit=200)) == 100
    assert {one.breaker for one in tracker.find(state="circuit_open", limit=200)} == {KEY}


def test_a_hundred_executions_at_the_same_time(clock):
    """A hundred concurrent executions whose provider refuses at once cause threshold calls and no more."""
    calls = 0

    async def provider():
        nonlocal calls
        calls += 1
        raise ConnectionError("refused")

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    with fresh_tracker(clock=clock) as tracker:
        tracker.breakers.declare("*", Policy(trip=Consecutive(failures=THRESHOLD)))

        async def scenario() -> list:
            ids = [started(tracker) for _ in range(100)]
            return await asyncio.gather(
                *(
                    call_model_async(
                        tracker.breakers, tracker, execution_id, KEY, provider, fence=1, sleep=sleep
                    )
                    for execution_id in ids
                ),
                return_exceptions=True,
            )

        outcomes = asyncio.run(scenario())
        assert calls == THRESHOLD
        assert sum(isinstance(outcome, BreakerOpen) for outcome in outcomes) >= 100 - THRESHOLD
        assert tracker.counts() == {"circuit_open": 100}


@both
def test_order_of_the_wrappers(tracker, clock, kind):
    """Each try asks the breaker anew, and a try's own deadline is a failure that the breaker counts."""
    if kind == "sync":
        tries = []

        def slow():
            tries.append(1)
            raise TimeoutError

        with pytest.raises(TimeoutError):
            tracker.breakers.call("k", slow, backoff=Backoff(attempts=2))
        assert len(tries) == 2
    else:

        async def hangs():
            await asyncio.Event().wait()

        async def sleep(seconds: float) -> None:
            clock.advance(seconds)

        with pytest.raises(TimeoutError):
            asyncio.run(
                tracker.breakers.call_async(
                    "k", hangs, backoff=Backoff(attempts=2), timeout_s=0.01, sleep=sleep
                )
            )
    assert tracker.breakers.status_of("k").calls == {"success": 0, "failure": 2}


def test_waiting_behind_a_breaker_has_a_limit(tracker, clock):
    """A caller that is willing to wait waits for the breaker's probes as long as it said and no longer."""
    begun = clock.monotonic()
    with pytest.raises(ConnectionError):
        tracker.breakers.call("k", dead, backoff=Backoff(attempts=50, open_wait_s=35.0))
    waited = clock.monotonic() - begun
    assert 30.0 <= waited <= 30.0 + 7.0, "10 s and 20 s of cooldown, two short waits between the first calls"
    assert tracker.breakers.status_of("k").calls["failure"] == THRESHOLD + 2


def test_a_long_retry_after_is_not_waited_for(tracker, clock):
    """A Retry-After beyond the limit raises the error instead of sleeping for it."""
    error = RuntimeError("slow down")
    error.response = SimpleNamespace(status_code=429, headers={"Retry-After": "500"})

    def limited():
        raise error

    begun = clock.monotonic()
    with pytest.raises(RuntimeError) as raised:
        tracker.breakers.call("k", limited, backoff=Backoff(open_wait_s=60.0))
    assert raised.value is error
    assert clock.monotonic() == begun
