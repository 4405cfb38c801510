"""The two faces of the breakers, for threads and for asyncio, are one: whatever is asked of one, the other does too."""

from __future__ import annotations

import ast
import asyncio
import inspect
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import pytest

from fsm.breakers import (
    CANCELLED,
    FAILURE,
    SUCCESS,
    Backoff,
    Breakers,
    Classifier,
    Consecutive,
    CountWindow,
    Permit,
    Policy,
    SlowCalls,
    http_result,
)
from fsm.breakers import __file__ as package
from fsm.breakers import retry as retry_module
from fsm.clock import ManualClock
from fsm.engine import model_calls
from fsm.engine.model_calls import call_model, call_model_async, model_call
from fsm.errors import BreakerOpen
from fsm.tracker.process import fresh_tracker
from tests.conftest import ROOT

# Every public name that has an asynchronous twin, and how the two differ: what only one of them can be told.
TWINS = {
    (Breakers, "acquire", "acquire_async"): set(),
    (Breakers, "release", "release_async"): set(),
    (Breakers, "call", "call_async"): {"timeout_s", "sleep"},
    (Breakers, "stream", "stream_async"): {"first_s"},
    (Permit, "answered", "answered_async"): set(),
    (Permit, "__enter__", "__aenter__"): set(),
    (Permit, "__exit__", "__aexit__"): set(),
    (retry_module.Tries, "run", "run_async"): {"timeout_s"},
    (model_calls, "call_model", "call_model_async"): {"timeout_s", "sleep"},
    (model_calls.ModelCall, "__enter__", "__aenter__"): set(),
    (model_calls.ModelCall, "__exit__", "__aexit__"): set(),
}


@pytest.mark.parametrize(("owner", "plain", "twin"), TWINS, ids=lambda one: getattr(one, "__name__", one))
def test_twins_take_the_same(owner, plain, twin):
    """A method and its asynchronous twin take the same arguments, but for what waiting on a loop adds."""
    both = [inspect.signature(getattr(owner, name)).parameters for name in (plain, twin)]
    assert both[0].keys() <= both[1].keys()
    assert both[1].keys() - both[0].keys() == TWINS[owner, plain, twin]


def test_every_asynchronous_function_is_a_twin():
    """Whatever the breakers and the model calls offer as a coroutine has its plain twin, and is enumerated here."""
    found = set()
    for file in (*(ROOT / package).parent.glob("*.py"), ROOT / "fsm" / "engine" / "model_calls.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            within = node.body if isinstance(node, ast.ClassDef) else [node]
            found |= {
                (node.name, one.name)
                for one in within
                if isinstance(one, ast.AsyncFunctionDef)
                and (not one.name.startswith("_") or one.name[1] == "_")
            }
    enumerated = {(twin if owner is model_calls else owner.__name__, twin) for owner, _, twin in TWINS}
    helpers = {
        ("later", "later"),
        ("stream_async", "stream_async"),
    }  # the driver; what Breakers.stream_async passes on
    assert found == enumerated - {("Breakers", "stream_async")} | helpers


# --- the same script on both faces ----------------------------------------------------------------------------


class Odd(Exception):
    """An error of the provider; `status_code` says which."""

    def __init__(self, status_code: int = 500, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code
        self.response = SimpleNamespace(status_code=status_code, headers=headers or {})


CALLS: list[object] = [
    "well", Odd(500), "well", Odd(503), Odd(400), Odd(500), Odd(500), "well", 12.0, Odd(500), 30.0, "well", "well",
    Odd(429, {"Retry-After": "7"}), 3.0, "well", 60.0, asyncio.CancelledError(), "bad", KeyboardInterrupt(), "well",
    "slow", "slow", "slow", "well", 60.0, "bad", 60.0, "well", Odd(500), Odd(500), Odd(500), Odd(500),
]  # fmt: skip
"""Calls one after another: they return, are slow, raise, or return a bad status; a number lets seconds pass."""


def plain(breakers: Breakers, clock: ManualClock, outcome: object) -> Callable[[], object]:
    def function() -> object:
        if outcome == "slow":
            clock.advance(2.0)
        if isinstance(outcome, BaseException):
            raise outcome
        return SimpleNamespace(status_code=500 if outcome == "bad" else 200)

    return function


def with_permit(breakers, function):
    with breakers.permit("k") as permit:
        permit.judge(function())


async def with_permit_async(breakers, function):
    async with breakers.permit("k") as permit:
        permit.judge(function())


def by_hand(breakers, function):
    call = breakers.acquire("k")
    verdict = FAILURE
    try:
        function()
        verdict = SUCCESS
    except (asyncio.CancelledError, KeyboardInterrupt):
        verdict = CANCELLED
        raise
    finally:
        breakers.release("k", call, verdict)


async def by_hand_async(breakers, function):
    call = await breakers.acquire_async("k")
    verdict = FAILURE
    try:
        function()
        verdict = SUCCESS
    except (asyncio.CancelledError, KeyboardInterrupt):
        verdict = CANCELLED
        raise
    finally:
        await breakers.release_async("k", call, verdict)


def decorated(breakers, function):
    breakers("k")(function)()


async def decorated_async(breakers, function):
    @breakers("k")
    async def call():
        return function()

    await call()


def decorated_by_arguments(breakers, function):
    breakers(lambda key: key)(lambda _key: function())("k")


async def decorated_by_arguments_async(breakers, function):
    @breakers(lambda key: key)
    async def call(_key):
        return function()

    await call("k")


def streamed(breakers, function):
    def items():
        yield ""
        yield function()
        yield "more"

    list(breakers.stream("k", items))


async def streamed_async(breakers, function):
    async def items():
        yield ""
        yield function()
        yield "more"

    async for _ in breakers.stream_async("k", items):
        pass


def left_early(breakers, function):
    @breakers("k")
    def items():
        yield ""
        yield function()

    stream = items()
    next(stream)
    stream.close()


async def left_early_async(breakers, function):
    @breakers("k")
    async def items():
        yield ""
        yield function()

    stream = items()
    await anext(stream)
    await stream.aclose()


def left_after_content(breakers, function):
    def items():
        yield ""
        yield function()
        yield "more"

    stream = breakers.stream("k", items)
    next(stream)
    next(stream)
    stream.close()


async def left_after_content_async(breakers, function):
    async def items():
        yield ""
        yield function()
        yield "more"

    stream = breakers.stream_async("k", items)
    await anext(stream)
    await anext(stream)
    await stream.aclose()


def called(breakers, function):
    breakers.call("k", function, backoff=Backoff(attempts=2, open_wait_s=5.0))


async def called_async(breakers, function):
    async def once():
        return function()

    async def sleep(seconds: float) -> None:
        breakers.clock.sleep(seconds)

    await breakers.call_async("k", once, backoff=Backoff(attempts=2, open_wait_s=5.0), sleep=sleep)


FACES = [
    (with_permit, with_permit_async), (by_hand, by_hand_async), (decorated, decorated_async),
    (decorated_by_arguments, decorated_by_arguments_async), (streamed, streamed_async),
    (left_early, left_early_async), (left_after_content, left_after_content_async), (called, called_async),
]  # fmt: skip
RULES = [
    Consecutive(failures=2),
    CountWindow(calls=4, minimum_calls=2),
    SlowCalls(slow_call_s=1.0, calls=4, minimum_calls=2),
]


@pytest.mark.parametrize("judges", [False, True], ids=["errors", "results"])
@pytest.mark.parametrize("rule", RULES, ids="row count slow".split())
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize(("one", "twin"), FACES, ids=lambda one: one.__name__)
def test_both_faces_come_to_the_same(tmp_path, monkeypatch, kind, one, twin, rule, judges):
    """The same calls on both faces raise the same, are counted alike, and leave the same journal, whatever the rule."""
    monkeypatch.setattr("tenacity.wait.random.uniform", lambda _low, high: high)

    async def awaited(breakers, function):
        await twin(breakers, function)

    stories = []
    for number, way in enumerate((one, lambda *args: asyncio.run(awaited(*args)))):
        clock = ManualClock()
        url = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/{number}.db?synchronous=NORMAL"
        with fresh_tracker(url, clock=clock) as tracker:
            breakers = tracker.breakers
            breakers.poll_every(None)
            classifier = Classifier(results=http_result) if judges else None
            breakers.declare("*", Policy(trip=rule, cooldown_s=10.0, jitter=0.0), classifier=classifier)
            story: list[object] = []
            for call in CALLS:
                if isinstance(call, float):
                    clock.advance(call)
                    continue
                try:
                    way(breakers, plain(breakers, clock, call))
                except BaseException as error:  # noqa: BLE001 - it is compared
                    story.append((type(error), str(error)))
                status = breakers.status_of("k")
                story.append(
                    (status.state, status.generation, status.calls, status.retry_after_s, status.probes)
                )
            history = breakers.history("k")
            story += [(line.event, line.target, line.why, line.at) for line in history]
        stories.append(story)
    assert stories[0] == stories[1]
    assert history or one in {left_early, left_after_content}, "something has to happen"


@pytest.mark.parametrize("retried", [False, True])
def test_both_faces_of_a_model_call_come_to_the_same(monkeypatch, retried):
    """The same model calls on both faces leave the same journal of their executions and the same breaker."""
    monkeypatch.setattr("tenacity.wait.random.uniform", lambda _low, high: high)
    journals = []
    for face in ("plain", "twin"):
        clock = ManualClock()
        with fresh_tracker(clock=clock) as tracker:
            tracker.breakers.declare("*", Policy(trip=Consecutive(failures=3), cooldown_s=10.0, jitter=0.0))
            journal = []
            for outcome in (
                "well",
                Odd(500),
                Odd(500),
                "well",
                Odd(400),
                Odd(500),
                Odd(500),
                Odd(500),
                "well",
            ):
                execution = tracker.create("a", user_id="u", thread_id="t")
                tracker.fire(execution.id, "start")
                function = plain(tracker.breakers, clock, outcome)
                run = _run_model if face == "plain" else lambda *args: asyncio.run(_run_model_async(*args))
                with suppress(Odd, BreakerOpen):
                    run(tracker, execution.id, function, retried)
                journal += [(one.event, one.target, one.payload) for one in tracker.history(execution.id)]
            status = tracker.breakers.status_of("k")
        journals.append((journal, status.state, status.calls))
    assert journals[0] == journals[1]
    assert {event for event, *_ in journals[0][0]} >= {"call_model", "trip"} | (
        {"back_off"} if retried else set()
    )


def _run_model(tracker, execution_id, function, retried):
    if retried:
        call_model(tracker.breakers, tracker, execution_id, "k", function, fence=1)
        return
    with model_call(tracker.breakers, tracker, execution_id, "k", fence=1):
        function()


async def _run_model_async(tracker, execution_id, function, retried):
    async def once():
        return function()

    async def sleep(seconds: float) -> None:
        tracker.clock.sleep(seconds)

    if retried:
        await call_model_async(tracker.breakers, tracker, execution_id, "k", once, fence=1, sleep=sleep)
        return
    async with model_call(tracker.breakers, tracker, execution_id, "k", fence=1):
        await once()
