"""Hostile callers and hostile stores: cancelled at their n-th wait, failing at their n-th call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from fsm import Engine, Tracker
from fsm.errors import FsmError, Refused
from fsm.stores.base import Store
from tests.support.cancelled import HangsUp
from tests.support.engine_tools import _ours, legal
from tests.support.inside import registry_of, store_of

MAX_POINTS = 2_000
"""Maximum number of points at which one scenario is disturbed; more would be a scenario without an end."""
REST_S = 900.0
"""How long an engine may take to come to rest: an end is handed in for minutes while the store is away."""
_looked_at: WeakKeyDictionary[Tracker, set[str]] = WeakKeyDictionary()
HOW = {"once": 1, "twice": 2, "four times": 4, "for ever": 1_000_000}


async def rest(engine: Engine) -> None:
    """Wait until no task is left but this one, within a bound."""
    loop, me = asyncio.get_running_loop(), asyncio.current_task()
    until = loop.time() + REST_S
    while [one for one in asyncio.all_tasks() if one is not me and _ours(one)]:
        assert loop.time() < until, asyncio.all_tasks()
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.02)  # what is called when a task is done has its turn


async def nothing_is_left(engine: Engine, tracker: Tracker, *, may_be_open: bool = False) -> None:
    """Hold an engine to its promise, after whatever was done to it."""
    await rest(engine)
    home = engine._runtime
    assert (engine.running, engine.queued, engine.stragglers) == (0, 0, {})
    assert engine._drives == {}
    assert registry_of(tracker).committer.watchers == {}
    if home is not None:
        assert (home.feed.listeners, home.tasks, home._helpers) == ({}, set(), [])
    for breaker in tracker.breakers.status().breakers:
        assert tracker.breakers.get(breaker.key).row.probes == ()
    seen = _looked_at.setdefault(tracker, set())
    for one in tracker.find(limit=1000):
        if one.id not in seen:
            legal(tracker, one.id)
        if one.ended:
            seen.add(one.id)
        else:
            assert may_be_open, one
            assert one.owner is None or one.due_at is not None, one


async def at_every_wait(
    engine: Engine, tracker: Tracker, times: int, scenario: Callable[[Callable[[Any], HangsUp]], Any]
) -> int:
    """Play a scenario again and again; its victim is cancelled at its first wait, its second, … until it has no more.

    Args:
        engine: The engine.
        tracker: The tracker.
        times: How often it is cancelled.
        scenario: Called with a function that makes a victim of a coroutine.

    Returns:
        At how many waits the victim was cancelled.
    """
    for at in range(1, MAX_POINTS):
        victims: list[HangsUp] = []

        def victim(coroutine: Any, at: int = at, victims: list[HangsUp] = victims) -> HangsUp:
            victims.append(HangsUp(coroutine, at, times))
            return victims[-1]

        task = asyncio.ensure_future(scenario(victim))
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # whatever it is: what counts is what is left
        await nothing_is_left(engine, tracker)
        if all(one.waits < at for one in victims):
            return at - 1
    raise AssertionError(f"a victim waits more than {MAX_POINTS} times")


async def at_every_step(  # noqa: C901 - one loop, and what it schedules
    engine: Engine,
    tracker: Tracker,
    scenario: Callable[[Callable[[Any], asyncio.Task[Any]]], Any],
    strike: Callable[[asyncio.Task[Any], asyncio.Task[Any]], object],
    *,
    times: int = 1,
    may_be_open: bool = False,
) -> int:
    """Play a scenario again and again; strike at each step of the loop after its victim began, one by one.

    Args:
        engine: The engine.
        tracker: The tracker.
        scenario: Called with a function that makes a task of a victim.
        strike: Called with the scenario's task and the victim's.
        times: At how many steps in a row.
        may_be_open: Whether the engine may have handed something back.

    Returns:
        At how many steps it was struck.
    """
    loop: Any = asyncio.get_running_loop()
    for at in range(1, MAX_POINTS):
        victims: list[asyncio.Task[Any]] = []
        tasks: list[asyncio.Task[Any]] = []
        struck: list[int] = []

        def strikes(left: int, victims: Any = victims, struck: Any = struck, strikes_at: Any = tasks) -> None:
            if all(one.done() for one in victims):
                return
            struck.append(left)
            for one in victims:
                strike(strikes_at[0], one)
            if left > 1:
                loop.at_step(loop.steps + 2, lambda: strikes(left - 1))

        def victim(coroutine: Any, at: int = at, victims: Any = victims, strikes: Any = strikes) -> Any:
            victims.append(asyncio.ensure_future(coroutine))
            if len(victims) == 1:
                loop.at_step(loop.steps + at, lambda: strikes(times))
            return victims[0]

        task = asyncio.ensure_future(scenario(victim))
        tasks.append(task)
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        await nothing_is_left(engine, tracker, may_be_open=may_be_open)
        for category in ("pending", "waiting"):
            for one in tracker.find(category=category):
                tracker.fire(one.id, "cancel")
        if not struck:
            return at - 1
    raise AssertionError(f"a victim takes more than {MAX_POINTS} steps")


class Failing:
    """A tracker's way to its store, on which the n-th call fails, and so many of the following ones.

    Attributes:
        calls: How many calls there were.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.calls = 0
        self._at = self._left = 0
        self._make: Callable[[], Exception] = ValueError
        self._after = False
        store: Any = store_of(tracker)
        names = {name for name in vars(Store) if not name.startswith("_")} - {
            "close",
            "instant",
            "url",
            "carry",
        }
        for name in names:
            setattr(store, name, self._failing(getattr(store, name), writes=name == "append"))
        if hasattr(store, "carry"):
            carry, carry_now = store.carry, store.carry_now
            store.carry = lambda this, answer: self._carried(this, lambda this: carry(this, answer), answer)
            store.carry_now = lambda this: self._carried(this, carry_now, lambda: None)

    def arm(self, at: int, make: Callable[[], Exception], *, times: int = 1, after: bool = False) -> None:
        """Let the n-th call from now on fail: a write before or after it is done."""
        self.calls, self._at, self._left, self._make, self._after = 0, at, times, make, after

    def mend(self) -> None:
        self._left = 0

    def _strikes(self) -> bool:
        self.calls += 1
        if self.calls < self._at or not self._left:
            return False
        self._left -= 1
        return True

    def _failing(self, call: Callable[..., Any], *, writes: bool) -> Callable[..., Any]:
        def failing(*args: Any, **kwargs: Any) -> Any:
            if not self._strikes():
                return call(*args, **kwargs)
            if writes and self._after:
                call(*args, **kwargs)
            raise self._make()

        return failing

    def _carried(self, this: Any, carry: Callable[[Any], None], answer: Callable[[], None]) -> None:
        if not self._strikes():
            carry(this)
            return
        this.error = self._make()
        asyncio.get_running_loop().call_soon(answer)


async def at_every_call(
    engine: Engine,
    tracker: Tracker,
    failing: Failing,
    make: Callable[[], Exception],
    scenario: Callable[[Callable[[Any], Any]], Any],
    *,
    times: int = 1,
    after: bool = False,
) -> int:
    """Play a scenario again and again; the store fails at the first call after its victim began, its second, and so on.

    Returns:
        At how many calls it failed.
    """
    for at in range(1, MAX_POINTS):

        def victim(coroutine: Any, at: int = at) -> Any:
            failing.arm(at, make, times=times, after=after)
            return coroutine

        task = asyncio.ensure_future(scenario(victim))
        await asyncio.wait({task})
        calls = failing.calls
        await rest(engine)
        failing.mend()
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        assert error is None or isinstance(error, (FsmError, asyncio.CancelledError)), repr(error)
        await nothing_is_left(engine, tracker, may_be_open=True)
        for one in tracker.find(limit=1000):
            if not one.ended:
                with contextlib.suppress(Refused):  # it is stopping already
                    tracker.fire(one.id, "cancel")
                with contextlib.suppress(Refused):
                    tracker.fire(one.id, "stopped", fence=tracker.get(one.id).fence)
        if calls < at:
            return at - 1
    raise AssertionError(f"a scenario makes more than {MAX_POINTS} calls")
