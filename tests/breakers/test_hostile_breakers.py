"""Breakers under attack: exceptions that bite, hooks that raise, interrupts at every line, stores that fail."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fsm import (
    BREAKER,
    BadPayload,
    BreakerOpen,
    ConfigurationError,
    Engine,
    InvalidArgument,
    StoreUnavailable,
)
from fsm.breakers import (
    FAILURE,
    IGNORED,
    SUCCESS,
    Backoff,
    Breakers,
    Classifier,
    Consecutive,
    CountWindow,
    Kind,
    Policy,
    SlowCalls,
    TimeWindow,
    Verdict,
    http_result,
    registry,
    throttled,
)
from fsm.breakers import breaker as breaker_module
from fsm.breakers.verdicts import of_error, retry_after
from fsm.clock import ManualClock
from fsm.concurrency.supervised import Health
from fsm.core.journal import record_of
from fsm.engine.model_calls import call_model, model_call
from fsm.stores.breakers import BREAKER_LINES, BreakerEntry, BreakerRow
from fsm.stores.opening import open_store
from fsm.tracker import breakers as founding
from fsm.tracker.process import fresh_tracker
from tests.support.places import PACKAGE, ROOT

HUGE = pytest.param(10**5000, id="huge")
POLICY = Policy(trip=Consecutive(failures=3), cooldown_s=10.0, jitter=0.0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def small_heap():
    """Let the collector look at what the test makes, and at nothing that was there before: it is asked often."""
    gc.collect()
    gc.freeze()
    logging.disable(logging.CRITICAL)  # what is logged is kept, with every frame of its traceback
    yield
    logging.disable(logging.NOTSET)
    gc.unfreeze()


@pytest.fixture
def breakers(clock) -> Breakers:
    return make(clock)


def make(clock, store=None, draw=lambda: 0.0, **policy) -> Breakers:
    return Breakers(
        store or open_store("memory://"),
        clock,
        policy=POLICY.model_copy(update=policy),
        poll_s=None,
        draw=draw,
    )


def fail(breakers: Breakers, times: int = 3, key: str = "k") -> None:
    for _ in range(times):
        with suppress(TimeoutError), breakers.permit(key):
            raise TimeoutError


def half_open(breakers: Breakers, clock: ManualClock, key: str = "k") -> None:
    fail(breakers, key=key)
    clock.advance(10.0)


def state(breakers: Breakers, key: str = "k") -> str:
    return breakers.status_of(key).state


# --- exceptions that bite -------------------------------------------------------------------------------------


def biting(name: str, how: Callable[[], Any]) -> type[Exception]:
    """Return an exception class of which one attribute or method misbehaves."""
    method = name.startswith("__") and name not in {"__class__", "__cause__", "__dict__"}
    value = (lambda *_args: how()) if method else property(lambda _self: how())
    return type("Biting", (TimeoutError,), {name: value})


def bite() -> Any:
    raise RuntimeError("the response was not read")


def cancelled() -> Any:
    raise asyncio.CancelledError


def closed() -> Any:
    raise GeneratorExit


def endless() -> Any:
    return endless()


NAMES = (
    "__str__", "__repr__", "__class__", "__eq__", "__hash__", "__getattr__", "__cause__", "__bool__", "__len__",
    "__format__", "__dict__", "status_code", "status", "code", "response", "headers", "retry_after", "type", "body",
    "exceptions", "provider_error_code",
)  # fmt: skip
ODD = {
    "nan": float("nan"), "inf": float("inf"), "negative": -5.0, "huge": 10**5000, "tiny": 5e-324, "bytes": b"429",
    "object": object(), "a class": dict, "text": "9" * 5000, "a list": [[]], "a mapping": {"error": {"code": []}},
    "a body of odd codes": {"error": {"code": float("nan"), "type": b"x"}, "code": {}}, "true": True,
}  # fmt: skip


def faces(breakers: Breakers) -> dict[str, Callable[[BaseException], object]]:  # noqa: C901 - one each
    """Every way to make a call that raises."""

    def permit(error):
        with breakers.permit("k"):
            raise error

    async def permit_async(error):
        async with breakers.permit("k"):
            raise error

    @breakers("k")
    def guarded(error):
        raise error

    @breakers("k")
    async def guarded_async(error):
        raise error

    @breakers("k")
    def items(error):
        raise error
        yield

    @breakers("k")
    async def items_async(error):
        raise error
        yield

    async def last(stream):
        async for _ in stream:
            pass

    def call(error):
        def once():
            raise error

        breakers.call("k", once, backoff=Backoff(attempts=1))

    async def call_async(error):
        async def once():
            raise error

        await breakers.call_async("k", once, backoff=Backoff(attempts=1))

    return {
        "with": permit,
        "async with": lambda error: asyncio.run(permit_async(error)),
        "decorator": guarded,
        "coroutine": lambda error: asyncio.run(guarded_async(error)),
        "generator": lambda error: list(items(error)),
        "async generator": lambda error: asyncio.run(last(items_async(error))),
        "call": call,
        "call_async": lambda error: asyncio.run(call_async(error)),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [bite, cancelled, closed, endless], ids=lambda one: one.__name__)
def test_an_exception_that_bites(clock, name, how):
    """The caller gets its own exception whatever one of its parts raises, and the failure counts as one."""
    error = biting(name, how)()
    breakers = make(clock)

    def call() -> None:
        with breakers.permit("k"):
            raise error

    for _ in range(3):
        with pytest.raises(TimeoutError) as raised:
            call()
        assert raised.value is error
    with pytest.raises(BreakerOpen):
        call()
    clock.advance(10.0)
    with pytest.raises(TimeoutError) as raised:
        call()  # the probe
    assert raised.value is error
    assert (state(breakers), breakers.status_of("k").probes) == ("open", 0)


OF_OTHERS = {
    "async with",
    "coroutine",
    "async generator",
    "call",
    "call_async",
}  # asyncio and tenacity ask as well


@pytest.mark.parametrize(
    ("face", "name"),
    [(face, "__str__") for face in faces(make(ManualClock()))]
    + [(face, "__class__") for face in faces(make(ManualClock())) if face not in OF_OTHERS],
)
def test_every_way_to_call_raises_the_callers_own_error(breakers, clock, face, name):
    """Whichever way a call is made, the exception that bites is what its caller gets, and the breaker opens."""
    error = biting(name, bite)()
    for _ in range(3):
        with pytest.raises(TimeoutError) as raised:
            faces(breakers)[face](error)
        assert raised.value is error
    assert state(breakers) == "open"
    clock.advance(10.0)
    with pytest.raises(TimeoutError):
        faces(breakers)[face](error)
    assert breakers.status_of("k").probes == 0


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
@pytest.mark.parametrize("name", ["status_code", "response", "headers", "retry_after", "body", "code"])
def test_an_exception_with_odd_values(clock, name, value):
    """Odd values of the attributes that are looked at are no status and no time to wait: the failure counts."""
    error = ConnectionError()
    setattr(error, name, value)
    breakers = make(clock)
    for _ in range(3):
        with pytest.raises(ConnectionError), breakers.permit("k"):
            raise error
    left = breakers.status_of("k").retry_after_s
    assert (state(breakers), 0 <= left <= 10.0) == ("open", True)


@pytest.mark.parametrize(
    "value", [*ODD.values(), SimpleNamespace(), iter(())], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize("how", ["mapping", "get"])
def test_odd_headers(value, how):
    """A Retry-After that is no number and no date is none, and headers that raise have none."""

    class Headers(dict):
        def get(self, key, default=None):
            if how == "get":
                bite()
            return super().get(key, default)

    seconds = retry_after(Headers({"retry-after": value}), 0.0)
    assert seconds is None or 0 <= seconds < 1e9
    assert of_error(ConnectionError(), 0.0) == FAILURE


def test_deep_and_wide_groups(breakers):
    """A group of groups, however deep or wide, is judged by its worst part and recurses nowhere."""
    deep: Exception = TimeoutError()
    for _ in range(5_000):
        deep = ExceptionGroup("g", [deep])
    for error in (deep, ExceptionGroup("wide", [TimeoutError()] * 20_000)):
        with pytest.raises(ExceptionGroup) as raised, breakers.permit("k"):
            raise error
        assert raised.value is error
    assert breakers.status_of("k").failures == 2


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_while_an_error_is_looked_at(breakers, clock, interrupt):
    """An interrupt that comes while an error is looked at goes on, with the error as its context."""

    def interrupted():
        raise interrupt

    error = biting("__str__", interrupted)()
    half_open(breakers, clock)
    with pytest.raises(interrupt) as raised, breakers.permit("k"):
        raise error
    assert raised.value.__context__ is error
    del raised
    error.__traceback__ = None
    gc.collect()
    assert breakers.status_of("k").probes == 0
    with breakers.permit("k") as permit:
        assert permit.probe


def test_a_run_of_the_engine_gets_its_own_error(clock):
    """What an agent raises inside `run.model` and `run.call_model` is what `engine.run` raises."""
    error = biting("__str__", bite)()

    async def phase(run):
        async with run.model("m"):
            raise error

    async def call(run):
        async def ask():
            raise error

        await run.call_model("n", ask, backoff=Backoff(attempts=1))

    with fresh_tracker(clock=clock) as tracker:
        tracker.breakers.declare("*", Policy(trip=Consecutive(failures=1)))
        for agent in (phase, call):
            with pytest.raises(TimeoutError) as raised:
                asyncio.run(Engine(tracker, sweep_every_s=None).run(agent, user_id="u", thread_id="t"))
            assert raised.value is error
        assert [state(tracker.breakers, key) for key in "mn"] == ["open", "open"]


# --- hooks that raise -----------------------------------------------------------------------------------------


class Broken(Classifier):
    """A derived classifier with a mistake."""

    def error(self, error, now):
        raise ZeroDivisionError


WRONG = [
    None,
    "failure",
    Kind.FAILURE,
    7,
    (Kind.FAILURE, None),
    Verdict("failure"),
    Verdict(Kind.THROTTLED, float("nan")),
]


@pytest.mark.parametrize(
    "classifier",
    [
        Broken(),
        Classifier(errors=lambda _error: bite()),
        Classifier(errors=lambda _error: cancelled()),
        *(Classifier(errors=lambda _error, said=said: said) for said in WRONG[1:]),
        Classifier(ignored=("no class",)),
    ],
)
def test_a_classifier_that_raises(breakers, caplog, classifier):
    """A classifier of errors that raises or returns no verdict leaves it to the ready one; one line is logged."""
    breakers.declare("*", classifier=classifier)
    unknown = KeyError()
    unknown.status_code = 404
    with caplog.at_level(logging.ERROR, "fsm.breakers"):
        for _ in range(3):
            with pytest.raises(TimeoutError), breakers.permit("k"):
                raise TimeoutError
        for _ in range(5):
            with pytest.raises(KeyError), breakers.permit("other"):
                raise unknown
    assert (state(breakers), state(breakers, "other")) == ("open", "closed")
    assert breakers.status_of("k").calls["misjudged"] == 3
    assert breakers.status_of("other").calls == {"success": 0, "ignored": 5, "misjudged": 5}
    assert len(caplog.records) == 1


@pytest.mark.parametrize("results", [lambda *_: bite(), *(lambda *_, said=said: said for said in WRONG)])
def test_a_classifier_of_results_that_raises(breakers, caplog, results):
    """A classifier of results that raises or returns no verdict takes no result away: the call is a success."""
    breakers.declare("*", classifier=Classifier(results=results))
    value = object()
    guarded = breakers("k")(lambda: value)
    with caplog.at_level(logging.ERROR, "fsm.breakers"):
        for _ in range(5):
            assert guarded() is value
            with breakers.permit("k") as permit:
                assert permit.judge(value) is value
    assert breakers.status_of("k").calls == {"success": 10, "misjudged": 10}
    assert len(caplog.records) == 1


def test_a_question_about_content_that_raises(breakers):
    """If asking whether an item is content raises, the item is content and goes on."""
    assert list(breakers.stream("k", [1, 2], content=lambda _item: bite())) == [1, 2]

    async def scenario():
        async def items():
            yield 1
            yield 2

        return [one async for one in breakers.stream_async("k", items, content=lambda _item: bite())]

    assert asyncio.run(scenario()) == [1, 2]
    assert breakers.status_of("k").calls["misjudged"] == 2


def test_a_stream_that_cannot_be_closed(breakers):
    """What ended a stream is what its reader gets, not what closing it raises afterwards; both ends are closed."""
    closings: list[str] = []

    class Stream:
        def __iter__(self):
            return self

        def __next__(self):
            raise TimeoutError("the provider")

        def close(self):
            closings.append("sync")
            raise OSError("closing")

        def __aiter__(self):
            return self

        async def __anext__(self):
            raise TimeoutError("the provider")

        async def aclose(self):
            closings.append("async")
            raise OSError("closing")

    with pytest.raises(TimeoutError, match="the provider"):
        list(breakers.stream("k", Stream()))

    async def scenario():
        async for _ in breakers.stream_async("k", Stream()):
            pass

    with pytest.raises(TimeoutError, match="the provider"):
        asyncio.run(scenario())
    assert breakers.status_of("k").failures == 2
    assert closings == ["sync", "sync", "async", "async"]


@pytest.mark.parametrize("draw", [bite, lambda: float("nan"), lambda: "x", lambda: 7.0, lambda: -1.0])
def test_dice_that_cannot_be_thrown(clock, draw):
    """Dice of the jitter that raise or show no number leave a cooldown within its limits."""
    breakers = make(clock, draw=draw, jitter=0.5)
    fail(breakers)
    assert 5.0 <= breakers.status_of("k").retry_after_s <= 10.0


@pytest.mark.parametrize("where", ["handler", "filter"])
def test_a_log_that_raises(breakers, clock, where):
    """A log handler or filter that raises disturbs no call, and one that makes calls with the same breaker may."""
    logger = logging.getLogger("fsm.breakers.breaker")
    seen: list[str] = []

    class Handler(logging.Handler):
        def handle(self, record):
            seen.append(breakers.status_of("k").state)
            with suppress(BreakerOpen), breakers.permit("k"):
                pass
            bite()

    handler, level = Handler(), logger.level

    def looked(record):
        return handler.handle(record)

    logger.setLevel(logging.INFO)
    logger.addHandler(handler) if where == "handler" else logger.addFilter(looked)
    try:
        half_open(breakers, clock)
        with breakers.permit("k"):
            pass
    finally:
        logger.removeHandler(handler)
        logger.removeFilter(looked)
        logger.setLevel(level)
    assert state(breakers) == "closed"
    assert seen[0] == "open"


@pytest.mark.parametrize("asked", [float("nan"), float("inf"), -1.0, HUGE, "5", b"5", object(), True])
def test_an_odd_time_to_wait(breakers, clock, asked):
    """A time to wait that is no finite number of seconds is refused; the probe that it was said of is settled."""
    with pytest.raises(BadPayload, match="retry_after_s"):
        throttled(asked)
    with pytest.raises(BadPayload), breakers.permit("k") as permit:
        permit.throttle(asked)
    half_open(breakers, clock)
    with pytest.raises(BadPayload):
        breakers.release("k", breakers.acquire("k"), Verdict(Kind.THROTTLED, asked))
    assert (state(breakers), breakers.status_of("k").probes) == ("open", 0)


def test_releases_of_what_is_none(breakers, clock):
    """A verdict that is none settles its permit as a failure and is refused; a call that is none is refused."""
    half_open(breakers, clock)
    with pytest.raises(BadPayload, match="a verdict is"):
        breakers.release("k", breakers.acquire("k"), "fine")
    assert state(breakers) == "open"
    clock.advance(20.0)

    async def scenario():
        with pytest.raises(BadPayload, match="a verdict is"):
            await breakers.release_async("k", await breakers.acquire_async("k"), None)

    asyncio.run(scenario())
    assert state(breakers) == "open"
    for odd in (None, "call", object()):
        with pytest.raises(BadPayload, match="acquire"):
            breakers.release("k", odd, SUCCESS)


def test_one_permit_for_two_calls(breakers, clock):
    """A permit that is a probe cannot be entered twice at once; after its block it can be used for another call."""
    permit = breakers.permit("k")
    with pytest.raises(BadPayload, match="entered"):
        permit.fail()
    with suppress(TimeoutError), permit:
        permit.fail()
        raise TimeoutError
    with permit:
        pass
    assert breakers.status_of("k").calls == {"success": 1, "failure": 1}
    half_open(breakers, clock)
    with permit:
        assert permit.probe
        with pytest.raises(BadPayload, match="in use"), permit:
            pytest.fail("one probe, one call")
    assert (state(breakers), breakers.status_of("k").probes) == ("closed", 0)


# --- interrupts -----------------------------------------------------------------------------------------------

OURS = str(Path(breaker_module.__file__).parent)
WINDOWS = (
    Consecutive(failures=3),
    CountWindow(calls=5, minimum_calls=3),
    TimeWindow(minimum_calls=3),
    SlowCalls(minimum_calls=3, calls=5),
)


class Trap:
    """Raises at the n-th line of fsm.breakers that this thread reaches."""

    def __init__(self, number: int, error: type[BaseException]) -> None:
        self.left = number
        self.error = error

    def __call__(self, frame, event, _argument):
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise self.error
        return self

    @property
    def sprung(self) -> bool:
        return self.left <= 0


def with_permit(breakers: Breakers, fails: bool) -> None:
    with breakers.permit("k"):
        if fails:
            raise TimeoutError


def decorated(breakers: Breakers, fails: bool) -> None:
    @breakers("k")
    def call():
        if fails:
            raise TimeoutError

    call()


def streamed(breakers: Breakers, fails: bool) -> None:
    def items():
        yield "content"
        if fails:
            raise TimeoutError

    list(breakers.stream("k", items))


def called(breakers: Breakers, fails: bool) -> None:
    def call():
        if fails:
            raise TimeoutError

    breakers.call("k", call, backoff=Backoff(attempts=1))


def awaited(breakers: Breakers, fails: bool) -> None:
    """Drive a coroutine by hand, with no event loop around it."""

    async def call():
        async with breakers.permit("k"):
            if fails:
                raise TimeoutError

    with suppress(StopIteration):
        call().send(None)


@pytest.mark.parametrize("way", [with_permit, decorated, streamed, called, awaited])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, pytest.param(MemoryError, marks=pytest.mark.slow)])
@pytest.mark.parametrize("begin", ["closed", "half_open"])
def test_an_interrupt_at_every_line(small_heap, way, fails, error, begin):
    """After an interrupt at any line of a call no lock is held, no probe is out, and the breaker still works."""
    points = 0
    for number in count(1):
        clock = ManualClock()
        breakers = make(clock, trip=WINDOWS[:1], probes_at_once=1)
        if begin == "half_open":
            half_open(breakers, clock)
        trap = Trap(number, error)
        with suppress(TimeoutError, BreakerOpen, error):
            try:
                sys.settrace(trap)
                way(breakers, fails)
            finally:
                sys.settrace(None)
        if not trap.sprung:
            break
        points = number
        gc.collect()
        check_sound(breakers, clock)
    assert points > 10


def check_sound(breakers: Breakers, clock: ManualClock) -> None:
    """Another thread gets through every lock, no probe is out, and the breaker opens and closes as ever."""
    found: list[Any] = []

    def look() -> None:
        status = breakers.status_of("k")
        found.append((status.probes, status.state))
        breakers.poll()
        breakers.get("another")
        breakers.reset("k")
        fail(breakers)
        found.append(state(breakers))
        clock.advance(10.0)
        with breakers.permit("k") as permit:
            found.append(permit.probe)
        found.append(state(breakers))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "a lock is held"
    assert found[0][0] == 0, "a probe is out"
    assert found[1:] == ["open", True, "closed"]


@pytest.mark.parametrize("window", WINDOWS[2:], ids="time slow".split())
@pytest.mark.parametrize("action", ["declare", "force_open", "reset", "get", "status", "poll", "acquire"])
def test_an_interrupt_at_every_line_of_the_rest(small_heap, window, action):
    """The same holds while a breaker is declared, ordered, looked at, and asked by hand."""
    actions: dict[str, Callable[[Breakers], object]] = {
        "declare": lambda one: one.declare("k", Policy(trip=window)),
        "force_open": lambda one: one.force_open("k"),
        "reset": lambda one: one.reset("k"),
        "get": lambda one: one.get("x"),
        "status": lambda one: one.status(),
        "poll": lambda one: one.poll(),
        "acquire": lambda one: one.release("k", one.acquire("k"), SUCCESS),
    }
    for number in count(1):
        clock = ManualClock()
        breakers = make(clock)
        half_open(breakers, clock)
        trap = Trap(number, KeyboardInterrupt)
        with suppress(KeyboardInterrupt):
            try:
                sys.settrace(trap)
                actions[action](breakers)
            finally:
                sys.settrace(None)
        if not trap.sprung:
            break
        gc.collect()
        breakers.declare("k", POLICY)
        if action == "acquire":  # what is in the caller's own hands is the caller's to give back
            breakers.reset("k")
        check_sound(breakers, clock)


@pytest.mark.parametrize("window", WINDOWS, ids="row count time slow".split())
def test_a_finaliser_that_uses_the_breaker(clock, window):
    """A finaliser or signal handler that makes a call at any line of another call of its thread waits for nothing."""
    breakers = make(clock, trip=(window,))
    done = 0

    class Nested(Trap):
        def __call__(self, frame, event, argument):
            try:
                return super().__call__(frame, event, argument)
            except KeyboardInterrupt:
                sys.settrace(None)
                nonlocal done
                done += 1
                fail(breakers, 1)
                breakers.status()
                breakers.get(f"key {done}")
                return None

    def all_lines() -> None:
        for number in count(1):
            breakers.reset("k")
            trap = Nested(number, KeyboardInterrupt)
            try:
                sys.settrace(trap)
                fail(breakers, 1)
            finally:
                sys.settrace(None)
            if not trap.sprung:
                return

    thread = threading.Thread(target=all_lines, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for itself"
    assert done > 10
    breakers.declare("k", POLICY)
    check_sound(breakers, clock)


@pytest.mark.parametrize("times", [1, 2, 50])
@pytest.mark.parametrize("turns", range(8))
def test_a_cancel_that_comes_again_and_again(tmp_path, clock, times, turns):
    """A task that is cancelled once, twice or all the time, at any await of its probe, leaves no probe out."""
    store = open_store(f"sqlite:///{tmp_path}/fsm.db?synchronous=NORMAL")
    breakers = make(clock, store)
    half_open(breakers, clock)

    async def probe() -> None:
        async with breakers.permit("k"):
            await asyncio.sleep(0)
            raise TimeoutError

    async def scenario() -> None:
        task = asyncio.create_task(probe())
        for _ in range(turns):
            await asyncio.sleep(0)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with suppress(asyncio.CancelledError, TimeoutError):
            await task

    asyncio.run(scenario())
    gc.collect()
    assert breakers.status_of("k").probes == 0
    store.close()


def test_an_executor_without_threads_takes_no_probe_twice(tmp_path, clock):
    """An executor that raises and runs what it was handed all the same takes no second probe."""
    store = open_store(f"sqlite:///{tmp_path}/fsm.db?synchronous=NORMAL")
    breakers = make(clock, store, probes_at_once=5)
    half_open(breakers, clock)
    queued: list[Callable[[], object]] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        def refuse(_executor, function, *_args):
            queued.append(function)
            raise RuntimeError("can't start new thread")

        loop.run_in_executor = refuse
        async with breakers.permit("k") as permit:
            assert permit.probe
            for function in queued:
                function()
            assert breakers.status_of("k").probes == 1

    asyncio.run(scenario())
    assert (state(breakers), breakers.status_of("k").probes) == ("closed", 0)
    store.close()


def test_a_permit_that_is_thrown_away(breakers, clock):
    """A permit that was entered and never left gives its probe back to the next one who asks."""
    half_open(breakers, clock)
    permit = breakers.permit("k")
    permit.__enter__()
    with pytest.raises(BreakerOpen), breakers.permit("k"):
        pytest.fail("one probe at once")
    del permit
    gc.collect()
    with breakers.permit("k") as second:
        assert second.probe


# --- declarations ---------------------------------------------------------------------------------------------


def test_the_readmes_example_opens(clock):
    """The README's own example opens its breaker, although its key was used before the declaration."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [
        one for one in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "breakers.declare" in one
    ]
    with fresh_tracker(clock=clock) as tracker:
        with tracker.breakers.permit("openai:gpt-5"):
            pass
        exec(compile(block, "README", "exec"), {"tracker": tracker})
        events = [entry.event for entry in tracker.breakers.history("openai:gpt-5")]
    assert events == ["trip", "reset"]


@pytest.mark.parametrize("pattern", ["k", "*", "?", "k*"])
@pytest.mark.parametrize("face", faces(make(ManualClock())))
def test_a_policy_declared_late_takes_effect(breakers, pattern, face):
    """A policy that is declared after a key's first use holds from its next call on, for whatever held the breaker."""
    call = faces(breakers)[face]
    for _ in range(2):
        with pytest.raises(TimeoutError):
            call(TimeoutError())
    held = breakers.get("k")
    breakers.declare(pattern, Policy(trip=Consecutive(failures=2), cooldown_s=77.0, jitter=0.0))
    assert (breakers.get("k"), held.failures) == (held, 0), "what was counted is forgotten"
    with pytest.raises(TimeoutError):
        call(TimeoutError())
    assert state(breakers) == "closed"
    with pytest.raises(TimeoutError):
        call(TimeoutError())
    assert (state(breakers), breakers.status_of("k").retry_after_s) == ("open", 77.0)


def test_a_policy_declared_while_open(breakers, clock):
    """An open breaker stays open until its cooldown ends; its probes and its next cooldown go by the new policy."""
    fail(breakers)
    breakers.declare("*", Policy(cooldown_s=100.0, jitter=0.0, probes_at_once=2, cooldown_factor=1.0))
    assert (state(breakers), breakers.status_of("k").retry_after_s) == ("open", 10.0)
    clock.advance(10.0)
    first, _second = breakers.acquire("k"), breakers.acquire("k")
    breakers.release("k", first, FAILURE)
    assert breakers.status_of("k").retry_after_s == 100.0


def test_a_policy_of_another_kind_declared_while_calls_run(breakers, clock):
    """A call that began before its breaker asked how long calls take is not slow."""
    early = breakers.acquire("k")
    clock.advance(1e6)
    breakers.declare("k", Policy(trip=SlowCalls(slow_call_s=1.0, calls=1, minimum_calls=1)))
    breakers.release("k", early, SUCCESS)
    assert state(breakers) == "closed"
    with breakers.permit("k"):
        clock.advance(1.0)
    assert state(breakers) == "open"


def test_a_classifier_declared_late(breakers):
    """A classifier that is declared late judges the next call, of a function that was decorated before as well."""
    guarded = breakers("k")(lambda: SimpleNamespace(status_code=500))
    guarded()
    fail(breakers, 2)
    breakers.declare("k", classifier=Classifier(results=http_result))
    assert breakers.get("k").failures == 2, "under the same policy the count goes on"
    guarded()
    with pytest.raises(BreakerOpen):
        guarded()
    breakers.reset("k")
    breakers.declare("k", classifier=Classifier(ignored=(TimeoutError,)))
    fail(breakers, 9)
    assert state(breakers) == "closed"


def test_the_same_declaration_again(breakers, monkeypatch):
    """Declaring the same again restarts nothing and takes no memory; too many patterns are refused."""
    policy = Policy(trip=Consecutive(failures=3))
    for _ in range(3):
        breakers.declare("*", policy)
        fail(breakers, 1)
    assert state(breakers) == "open"
    for _ in range(50):
        breakers.declare("*", policy, classifier=Classifier())
    assert len(breakers._declared) == 1
    monkeypatch.setattr(registry, "MAX_DECLARED", 3)
    breakers.declare("a")
    breakers.declare("b")
    with pytest.raises(ConfigurationError, match="declare patterns"):
        breakers.declare("c")


def test_what_is_left_of_an_earlier_declaration_counts(breakers):
    """A later declaration of a pattern replaces an earlier one only in what it says itself."""
    ignoring = Classifier(ignored=(TimeoutError,))
    breakers.declare("*", Policy(trip=Consecutive(failures=1)), classifier=ignoring)
    breakers.declare("k", Policy(trip=Consecutive(failures=2)))
    breakers.declare("*", classifier=Classifier())
    fail(breakers, 1)
    fail(breakers, 1, "other")
    assert (state(breakers), state(breakers, "other")) == ("closed", "open")


@pytest.mark.parametrize("odd", [7, "strict", Consecutive(), {"cooldown_s": -1.0}, {"cooldown": 1}, []])
def test_odd_declarations(breakers, odd):
    """What is no policy and no classifier is refused with a typed error, and nothing is declared."""
    with pytest.raises(InvalidArgument):
        breakers.declare("k", odd)
    with pytest.raises(InvalidArgument):
        breakers.declare("k", classifier=odd)
    assert breakers.status_of("k").known == "unknown"


# --- keys -----------------------------------------------------------------------------------------------------


class Evil:
    """An object on which nothing works."""

    __hash__ = None

    def __repr__(self):
        raise RuntimeError

    __str__ = __repr__


class EvilHash:
    def __hash__(self):
        raise RuntimeError


EVIL_KEYS = [
    "", None, 7, b"k", [], {}, set(), ["k"], Evil(), EvilHash(), "x" * 501, "a\0b", "a\nb", "\x1b[31m", "\x7f", "\x85",
    "\udce9", float("nan"), 10**5000, ("k",), object,
]  # fmt: skip


@pytest.mark.parametrize("key", EVIL_KEYS, ids=lambda key: type(key).__name__)
def test_a_key_that_is_none(breakers, key):
    """What is no usable key is refused with a typed error, wherever a key is asked for, and leaves nothing behind."""

    async def scenario():
        for call in (breakers.acquire_async(key), breakers.call_async(key, asyncio.sleep)):
            with pytest.raises(InvalidArgument):
                await call
        with pytest.raises(InvalidArgument):
            async with breakers.permit(key):
                pytest.fail("no key")

    for call in (
        breakers.permit, breakers.get, breakers.acquire, breakers.guard, breakers, breakers.force_open,
        breakers.disable, breakers.reset, breakers.status_of, breakers.history, breakers.declare,
        lambda one: breakers.call(one, int), lambda one: breakers.stream(one, []),
        lambda one: breakers.stream_async(one, []), lambda one: breakers.release(one, None, SUCCESS),
        lambda one: model_call(breakers, None, "exec", one), breakers.guard(lambda *_: key)(lambda: None),
    ):  # fmt: skip
        if call in (breakers.guard, breakers) and callable(key):
            continue  # a key that is made of the arguments
        with pytest.raises(InvalidArgument):
            call(key)
    asyncio.run(scenario())
    assert breakers.status().breakers == ()


def test_a_key_of_a_derived_text(breakers):
    """A key of a class derived from text names the breaker of its characters."""

    class Name(str):
        __slots__ = ()

        def __str__(self):
            return "another"

    fail(breakers, 3, Name("k"))
    assert state(breakers) == "open"
    assert type(breakers.get(Name("x")).key) is str


@pytest.mark.parametrize("odd", [0, -1, True, 1.5, "5", None, HUGE, pytest.param(Evil(), id="evil")])
def test_odd_limits_of_a_history(breakers, odd):
    """A limit or a position that is no whole number in its range is refused with a typed error."""
    with pytest.raises(InvalidArgument):
        breakers.history("k", odd)
    if odd not in (0, None):
        with pytest.raises(InvalidArgument):
            breakers.history("k", before=odd)


@pytest.mark.parametrize("odd", [0, -1.0, float("nan"), float("inf"), "1", True, HUGE])
def test_an_odd_interval(breakers, clock, odd):
    """An interval that would spin, or that is none, is refused with a typed error."""
    with pytest.raises(InvalidArgument):
        breakers.poll_every(odd)
    with pytest.raises(InvalidArgument):
        Breakers(open_store("memory://"), clock, poll_s=odd)


def test_what_is_known_of_a_key(breakers):
    """A status tells a key of which nothing is known from one that was declared, used, or changed its state."""
    breakers.declare("a*", Policy())
    with breakers.permit("used"):
        pass
    fail(breakers, 3, "stored")
    known = {key: breakers.status_of(key).known for key in ("typo", "abc", "used", "stored")}
    assert known == {"typo": "unknown", "abc": "declared", "used": "used", "stored": "stored"}
    assert [one.key for one in breakers.status().breakers] == ["stored", "used"], "looking makes no breaker"


# --- memory ---------------------------------------------------------------------------------------------------


def test_fifty_thousand_keys(breakers, clock):
    """Of fifty thousand keys a bounded number of breakers is kept; open ones are still open when they come back."""
    fail(breakers, 3, "open one")
    held = breakers.get("held")
    guarded = breakers("decorated")(lambda: None)
    for number in range(50_000):
        with breakers.permit(f"key {number}"):
            pass
    gc.collect()
    assert len(breakers._kept) <= registry.MAX_BREAKERS
    assert len(breakers._permits) <= registry.MAX_BREAKERS
    assert len(breakers._every()) <= registry.MAX_BREAKERS + 2
    assert breakers.get("held") is held
    guarded()
    assert breakers.status_of("decorated").calls == {"success": 1}
    assert state(breakers, "open one") == "open"
    with pytest.raises(BreakerOpen):
        breakers.acquire("open one")


def test_the_number_kept_is_bounded_whatever_the_keys_come_to(clock, monkeypatch):
    """Keys that fail, open or wait for a store that is down are bounded as well."""
    monkeypatch.setattr(registry, "MAX_BREAKERS", 40)
    for times in (1, 3):
        flaky = Failing(open_store("memory://"))
        breakers = make(clock, flaky)
        flaky.down = times == 3
        for number in range(200):
            fail(breakers, times, f"key {number}")
        flaky.error.__traceback__ = None
        gc.collect()
        assert len(breakers._every()) <= 40
    assert all(state(breakers, f"key {number}") == "open" for number in range(200))


def test_one_that_comes_back_begins_with_the_stores_row(clock, monkeypatch):
    """A breaker that was dropped and comes back has the state and the generation that the store has."""
    monkeypatch.setattr(registry, "MAX_BREAKERS", 4)
    breakers = make(clock)
    half_open(breakers, clock, "old")
    with breakers.permit("old"):
        pass
    before = breakers.status_of("old")
    for number in range(8):
        breakers.get(f"key {number}")
    gc.collect()
    assert "old" not in breakers._kept
    after = breakers.status_of("old")
    assert (after.state, after.generation, after.known) == (before.state, before.generation, "stored")
    fail(breakers, 3, "old")
    assert [one.event for one in breakers.history("old")] == ["trip", "acquire", "probes_ok", "trip"]


def test_the_ones_in_use_stay(clock, monkeypatch):
    """When room is made, those that made calls since the last time are kept before those that made none."""
    monkeypatch.setattr(registry, "MAX_BREAKERS", 8)
    breakers = make(clock)
    for number in range(100):
        with breakers.permit("busy"):
            pass
        breakers.get(f"key {number}")
    assert breakers.status_of("busy").calls == {"success": 100}


# --- history --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_history_shows_the_last_changes(tmp_path, clock, kind):
    """A history is the newest lines, oldest first; earlier ones are paged; a bounded number of each key is kept."""
    store = open_store("memory://" if kind == "memory" else f"sqlite:///{tmp_path}/fsm.db?synchronous=NORMAL")
    breakers = make(clock, store)
    breakers.force_open("other", why="stays")
    for number in range(BREAKER_LINES // 2 + 20):
        breakers.force_open("k", why=f"open {number}")
        breakers.reset("k", why=f"reset {number}")
    last = BREAKER_LINES // 2 + 19
    newest = breakers.history("k", 3)
    assert [one.why for one in newest] == [f"reset {last - 1}", f"open {last}", f"reset {last}"]
    assert [one.why for one in breakers.history("k", 2, before=newest[0].position)] == [
        f"reset {last - 2}", f"open {last - 1}",
    ]  # fmt: skip
    assert len(breakers.history("k", 5_000)) == BREAKER_LINES
    assert [one.why for one in breakers.history("other")] == ["stays"]
    assert store.breaker_position() == newest[-1].position == 2 * (last + 1) + 1
    store.close()


def test_a_file_of_before_is_brought_within_the_limit(tmp_path):
    """A file whose journal was never bounded is cut to the newest lines of each key; rogues may delete none of them."""
    url = f"sqlite:///{tmp_path}/fsm.db"
    open_store(url).close()
    connection = sqlite3.connect(f"{tmp_path}/fsm.db", isolation_level=None)
    names = (
        "breaker_journal_kept breaker_journal_bounded breaker_begins_readable breaker_moves_readable".split()
    )
    for name in names:
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute("DROP TRIGGER breaker_journal_follows")
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO breaker_journal (key, version, machine, event, source, target, generation, at) "
        "VALUES (?, ?, 1, 'reset', 'open', 'closed', 1, 1.0)",
        [(key, number) for number in range(1_500) for key in ("a", "b")],
    )
    connection.execute(
        "CREATE TRIGGER breaker_journal_kept BEFORE DELETE ON breaker_journal BEGIN SELECT 1; END"
    )
    folder = PACKAGE / "stores" / "sqlite"
    (script,) = [one for one in folder.glob("*.sql") if "breaker_journal_bounded" in one.read_text()]
    connection.executescript(script.read_text())
    kept = "SELECT key, count(*), min(version), max(version) FROM breaker_journal GROUP BY key"
    assert connection.execute(kept).fetchall() == [("a", 1000, 500, 1499), ("b", 1000, 500, 1499)]
    with pytest.raises(sqlite3.IntegrityError, match="fsm: "):
        connection.execute("DELETE FROM breaker_journal WHERE version = 500")
    connection.close()


@pytest.mark.parametrize(
    "column",
    [
        "probes = 'x'",
        "until = 'x'",
        "openings = 'x'",
        "changed_at = 'x'",
        "probes = x'00'",
        "abandoned = 1.5",
    ],
)
def test_a_row_that_nobody_could_read_is_refused(tmp_path, column):
    """A rogue script can write no breaker's row that no process could read."""
    store = open_store(f"sqlite:///{tmp_path}/fsm.db")
    store.register(record_of(BREAKER))
    row = BreakerRow("k", "open", 1, 2, 5.0, 5.0, 9.0)
    assert store.breaker_swap(BREAKER.content_hash, 0, row, entry(row))
    connection = sqlite3.connect(f"{tmp_path}/fsm.db")
    with pytest.raises(sqlite3.IntegrityError, match="fsm: "):
        connection.execute(f"UPDATE breakers SET version = 2, event = NULL, {column}")
    connection.close()
    store.close()


def entry(row: BreakerRow) -> BreakerEntry:
    return BreakerEntry(
        0, row.key, row.version, "trip", "closed", row.state, row.generation, 5.0, "w", "dead"
    )


# --- stores that fail -----------------------------------------------------------------------------------------


class Failing:
    """A store that fails at chosen calls of the breakers' part, before or after they are done."""

    def __init__(self, store):
        self._store = store
        self.instant, self.url = store.instant, store.url
        self.down = False
        self.fail_at: int | None = None
        self.after = False
        self.error: BaseException = StoreUnavailable("the disk is gone", committed=None)
        self.asked = 0

    def _do(self, name, arguments):
        self.asked += 1
        bad = self.down or self.asked == self.fail_at
        if bad and not self.after:
            raise self.error
        out = getattr(self._store, name)(*arguments)
        if bad:
            raise self.error
        return out

    def register(self, *arguments):
        return self._do("register", arguments)

    def breaker_load(self, *arguments):
        return self._do("breaker_load", arguments)

    def breaker_swap(self, *arguments):
        return self._do("breaker_swap", arguments)

    def breaker_list(self, *arguments):
        return self._do("breaker_list", arguments)

    def breaker_changes(self, *arguments):
        return self._do("breaker_changes", arguments)

    def breaker_position(self, *arguments):
        return self._do("breaker_position", arguments)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [StoreUnavailable("gone", committed=None), ZeroDivisionError("a mistake")])
def test_a_store_that_fails_at_any_call(after, error):
    """Whichever call of the store fails, before or after it took effect, each call is governed and no probe is out."""
    for number in count(1):
        clock = ManualClock()
        store = Failing(open_store("memory://"))
        store.fail_at, store.after, store.error = number, after, error
        breakers, other = make(clock, store), make(clock, store._store)
        fail(breakers)
        assert state(breakers) == "open"
        with pytest.raises(BreakerOpen):
            breakers.acquire("k")
        clock.advance(10.0)
        breakers.poll()
        with suppress(TimeoutError), breakers.permit("k") as permit:
            assert permit.probe
            raise TimeoutError
        assert state(breakers) == "open"
        clock.advance(20.0)
        breakers.poll()
        with breakers.permit("k") as permit:
            assert permit.probe
        assert (state(breakers), breakers.status_of("k").probes) == ("closed", 0)
        over = store.asked < number
        store.fail_at = None
        clock.advance(2.0)
        breakers.poll()
        other.poll()
        assert (breakers.status_of("k").local, state(other)) == (False, "closed")
        assert breakers.status().error is None
        if over:
            break
    assert number > 10


def test_news_are_not_lost_when_a_row_cannot_be_read(clock):
    """A look at the store that fails half-way is begun again from where it began."""
    store = Failing(open_store("memory://"))
    here, there = make(clock, store), make(clock, store._store)
    here.get("k")
    fail(there)
    store.fail_at = store.asked + 3  # position, changes, and now the row
    here.poll()
    assert state(here) == "closed"
    here.poll()
    assert state(here) == "open"


def test_a_change_that_the_store_refuses_for_good(clock, caplog):
    """A change of one breaker that can never be written is dropped, and stands before no other breaker's changes."""
    store = Failing(open_store("memory://"))
    breakers = make(clock, store)
    swap = store._store.breaker_swap

    def refuse(machine, version, row, line):
        if row.key == "bad":
            raise ZeroDivisionError
        return swap(machine, version, row, line)

    store._store.breaker_swap = refuse
    fail(breakers, 3, "bad")
    store.down = True
    fail(breakers, 3, "good")
    store.down = False
    for _ in range(3):
        clock.advance(1.5)
        breakers.poll()
    assert [one.event for one in breakers.history("good")] == ["trip"]
    assert (state(breakers, "bad"), state(breakers, "good")) == ("open", "open")
    assert not breakers.status_of("bad").local
    assert breakers.status().error is None


@pytest.mark.parametrize(
    "damage",
    [
        {"state": "of the next version"},
        {"until": float("inf")},
        {"since": "x"},
        {"probes": (("t", None),)},
        {"openings": None},
    ],
)
def test_a_row_that_nothing_can_be_made_of(clock, damage):
    """A row that this version cannot work with is logged and set aside; its calls and all other breakers go on."""
    store = open_store("memory://")
    row = BreakerRow("bad", "open", 1, 2, 5.0, 5.0, 9.0)._replace(**damage)
    breakers = make(clock, store)
    breakers.get("bad")
    store.breaker_swap("", 0, row, entry(row))
    fail(make(clock, store), 3, "good")
    breakers.poll()
    assert state(breakers, "good") == "open"
    fail(breakers, 3, "bad")
    late = make(clock, store)
    assert state(late, "good") == "open"
    with late.permit("bad"):
        pass


def test_a_row_that_is_gone(clock):
    """If a breaker's row is gone (an older file is in the place of the newer one), it begins again and goes on."""
    store = open_store("memory://")
    breakers = make(clock, store)
    fail(breakers)
    store._breakers.rows.clear()
    clock.advance(10.0)
    with breakers.permit("k"):
        pass
    fail(breakers)
    assert state(breakers) == "open"


def test_the_store_fails_while_an_execution_calls_a_model(clock, monkeypatch):
    """Where the journal of an execution cannot be written at a failure, the caller still gets its own error."""
    with fresh_tracker(clock=clock) as tracker:
        tracker.breakers.declare("*", Policy(trip=Consecutive(failures=1)))
        one = tracker.create("a", user_id="u", thread_id="t")
        tracker.fire(one.id, "start")
        fire = type(tracker).fire

        def failing(self, execution_id, event, /, **payload):
            if event in {"trip", "back_off"}:
                raise StoreUnavailable("gone")
            return fire(self, execution_id, event, **payload)

        monkeypatch.setattr(type(tracker), "fire", failing)

        def ask():
            raise TimeoutError("the provider")

        with pytest.raises(TimeoutError, match="the provider"):
            call_model(tracker.breakers, tracker, one.id, "k", ask, fence=1)
        assert state(tracker.breakers) == "open"


# --- the background thread ------------------------------------------------------------------------------------


def looking(url: str) -> Breakers:
    return Breakers(open_store(url), policy=POLICY, poll_s=0.001)


def test_the_thread_goes_on_after_a_mistake(url, monkeypatch):
    """The thread that looks for changes is reported, logs an unexpected error once, and goes on."""
    health, twice = Health(lambda: 0.0), threading.Event()
    turns: list[int] = []
    poll = Breakers.poll

    def failing(self):
        turns.append(1)
        if len(turns) < 2:
            raise ZeroDivisionError
        twice.set()
        poll(self)

    monkeypatch.setattr(Breakers, "poll", failing)
    monkeypatch.setattr("fsm.concurrency.supervised.BACKOFF_S", 0.001)
    breakers = Breakers(open_store(url), policy=POLICY, poll_s=0.001, health=health)
    breakers.get("k")
    thread = breakers._thread
    assert twice.wait(20)
    assert health.loops()[0].name == "breakers"
    assert (health.loops()[0].failures, thread.is_alive()) == (1, True)
    breakers.close()
    assert not thread.is_alive()


def test_a_thread_that_cannot_be_had(url, monkeypatch):
    """A process that can start no thread makes its calls all the same, and tries again with the next key."""
    breakers = looking(url)
    start = threading.Thread.start

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with breakers.permit("k"):
        pass
    monkeypatch.setattr(threading.Thread, "start", start)
    breakers.get("k 2")
    assert breakers._thread.is_alive()
    breakers.close()
    breakers.close()


def test_a_health_report_of_the_tracker(url):
    """The tracker's health knows the loop of its breakers."""
    with fresh_tracker(url) as tracker:
        tracker.breakers.get("k")
        assert "breakers" in {one.name for one in tracker._registry.health.loops()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("lock", ["_creating", "_noting", "_changing", "_polling", "_founding"])
def test_a_fork_while_a_lock_is_held(breakers, clock, lock):
    """A child that was forked while another thread was inside any section makes its calls, and takes no probe along."""
    half_open(breakers, clock)
    permit = breakers.permit("k")
    permit.__enter__()
    owner = {"_creating": breakers, "_polling": breakers._shared, "_founding": founding}.get(
        lock, breakers.get("k")
    )
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        done.wait(30)

    thread = threading.Thread(target=getattr(owner, lock).run, args=(hold,))
    thread.start()
    assert inside.wait(20)
    child = os.fork()
    if child == 0:
        said = 1
        try:
            del permit
            gc.collect()
            fail(breakers, 3, "new")
            breakers.poll()
            with fresh_tracker(clock=clock) as tracker, tracker.breakers.permit("k"):
                pass
            said = 0 if (state(breakers, "new"), breakers.status_of("k").probes) == ("open", 1) else 2
        finally:
            os._exit(said)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join(20)
    assert os.waitstatus_to_exitcode(status) == 0
    permit.__exit__(None, None, None)
    assert (state(breakers), IGNORED.retryable) == ("closed", False)
