"""Callers that hang up at every await, stores that fail at every call, agents that do not stop: nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from engine_tools import WHO, in_memory, on_disk, simulated
from hostile_tools import HOW, Failing, at_every_call, at_every_step, at_every_wait, nothing_is_left

from fsm.breakers import Backoff, Consecutive, Policy
from fsm.engine.drive import Drive
from fsm.errors import LimitReached, StoreUnavailable

# --- callers that hang up ---------------------------------------------------------------------------------------


async def busy(run, *_):
    """Do a bit of everything."""
    async with run.model("m"):
        await run.annotate(tokens=1)
    async with run.tool("t") as call:
        call.result = 1
    await run.progress("on")
    return 7


async def sleeps(run, *_):
    await asyncio.sleep(0.3)
    return 7


async def yields(run, *_):
    for item in range(3):
        yield item
        await asyncio.sleep(0.01)


async def _run(engine, tracker, victim):
    await victim(engine.run(busy, 1, **WHO))


async def _run_that_lasts(engine, tracker, victim):
    await victim(engine.run(sleeps, 1, **WHO))


async def _checked(engine, tracker, victim):
    async def slow(run):
        await run.log("looked at")

    await victim(engine.run(busy, 1, before=[slow], after=[lambda run, result: None], **WHO))


async def _submit(engine, tracker, victim):
    handle = await victim(engine.submit(sleeps, 1, **WHO))
    await handle.outcome()


async def _result(engine, tracker, victim):
    handle = await engine.submit(sleeps, 1, **WHO)
    with contextlib.suppress(asyncio.CancelledError):
        await victim(handle.result())
    await handle.outcome()


async def _cancel(engine, tracker, victim):
    handle = await engine.submit(sleeps, 1, **WHO)
    await asyncio.sleep(0.05)
    with contextlib.suppress(asyncio.CancelledError):
        await victim(handle.cancel("no need"))
    await handle.outcome()


async def _give_up(engine, tracker, victim):
    handle = await engine.submit(sleeps, 1, **WHO)
    await asyncio.sleep(0.05)
    await victim(handle.give_up("no need"))


async def _map(engine, tracker, victim):
    await victim(engine.map(busy, range(2), at_once=1, **WHO))


async def _stream(engine, tracker, victim):
    async def reads():
        async with contextlib.aclosing(engine.stream(yields, **WHO)) as items:
            async for _ in items:
                await asyncio.sleep(0)

    await victim(reads())


async def _execution(engine, tracker, victim):
    async def body():
        async with engine.execution("by-hand", **WHO) as run:
            async with run.tool("t"):
                await asyncio.sleep(0.01)

    await victim(body())


async def _execution_that_fails(engine, tracker, victim):
    async def body():
        async with engine.execution("by-hand", before=[busy], **WHO):
            raise OSError("no")

    with contextlib.suppress(OSError):
        await victim(body())


async def _execution_that_waits(engine, tracker, victim):
    """Its caller waits for a slot: another one has the only one."""
    async with engine.execution("first", **WHO):
        task = asyncio.ensure_future(_execution(engine, tracker, victim))
        await asyncio.sleep(0.05)
    await asyncio.wait({task})


async def _agent(engine, tracker, victim):
    async def agent(run):
        await victim(busy(run))

    await engine.run(agent, **WHO)


async def _asks(engine, tracker, victim):
    async def agent(run):
        await victim(run.ask("May I?"))

    handle = await engine.submit(agent, **WHO)
    for _ in range(100):
        await asyncio.sleep(0.01)
        if handle.done:
            break
        if handle.state == "awaiting_input":
            with contextlib.suppress(Exception):  # the person's own trouble; another answer follows
                await tracker.aio.fire(handle.id, "receive_input", text="yes", by="bo")
    await handle.outcome()


async def _calls_model(engine, tracker, victim):
    async def call():
        await asyncio.sleep(0.01)
        raise LimitReached("tokens")

    async def agent(run):
        await victim(run.call_model("m", call, backoff=Backoff(attempts=3, initial_s=0.5)))

    await engine.run(agent, **WHO)


async def _child(engine, tracker, victim):
    async def agent(run):
        await victim(run.child(busy))

    await engine.run(agent, **WHO)


async def _close(engine, tracker, victim):
    handle = await engine.submit(sleeps, 1, **WHO)
    await asyncio.sleep(0.05)
    with contextlib.suppress(asyncio.CancelledError):
        await victim(engine.close())
    await handle.outcome()


async def _adopt(engine, tracker, victim):
    one = await tracker.aio.create("kept", metadata={"called_with": {"args": [], "kwargs": {}}}, **WHO)
    await tracker.aio.fire(one.id, "enqueue")
    with contextlib.suppress(asyncio.CancelledError):
        await victim(engine.adopt())
    for handle in await engine.adopt():
        await handle.outcome()


async def _serve(engine, tracker, victim):
    one = await tracker.aio.create("kept", metadata={"called_with": {"args": [], "kwargs": {}}}, **WHO)
    await tracker.aio.fire(one.id, "enqueue")

    async def serves():
        async with asyncio.timeout(2.0):
            await engine.serve(every_s=0.5)

    with contextlib.suppress(asyncio.CancelledError, TimeoutError):
        await victim(serves())
    for handle in await engine.adopt():
        await handle.outcome()


async def _registered(engine, tracker, victim):
    await victim(engine._agents["kept"].registered(**WHO))


VICTIMS = [
    _run, _run_that_lasts, _checked, _submit, _result, _cancel, _give_up, _map, _stream, _execution,
    _execution_that_fails, _execution_that_waits, _agent, _asks, _calls_model, _child, _close, _adopt, _serve,
    _registered,
]  # fmt: skip
POLICY = Policy(trip=Consecutive(failures=2), cooldown_s=0.2, cooldown_max_s=0.4, jitter=0.0)


def _hung_up(victim: Any, how: str, points: list[int]) -> Any:
    async def scenario(engine, tracker):
        tracker.breakers.declare("*", POLICY)
        kept = engine.agent(sleeps, name="kept", resumable=True)
        engine._agents["kept"].registered = kept
        points.append(
            await at_every_wait(engine, tracker, HOW[how], lambda make: victim(engine, tracker, make))
        )

    return scenario


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("victim", VICTIMS, ids=lambda one: one.__name__[1:])
def test_a_caller_that_is_cancelled_leaves_nothing(victim, how):
    """A cancel at every await, once or again and again, leaves no slot, link, watcher, task, permit or execution."""
    points: list[int] = []
    simulated(_hung_up(victim, how, points), seed=3, slots={"total": 1}, sweep_every_s=1.0)
    in_memory(_hung_up(victim, how, points), slots={"total": 1})
    assert points[0] > 0


def some(*now: Any) -> list[Any]:
    """Return all victims, of which these are quick enough for every run of the tests."""
    return [
        pytest.param(one, id=one.__name__[1:], marks=[] if one in now else pytest.mark.slow)
        for one in VICTIMS
    ]


def _caller(_: asyncio.Task[Any], victim: asyncio.Task[Any]) -> None:
    victim.cancel()


@pytest.mark.parametrize("times", [1, 50])
@pytest.mark.parametrize("victim", some(_run, _execution, _execution_that_waits, _child, _stream))
def test_a_caller_that_is_cancelled_at_any_moment_leaves_nothing(victim, times):
    """A cancel at every step of the event loop while a caller waits leaves nothing either."""

    async def scenario(engine, tracker):
        tracker.breakers.declare("*", POLICY)
        kept = engine.agent(sleeps, name="kept", resumable=True)
        engine._agents["kept"].registered = kept
        assert await at_every_step(
            engine, tracker, lambda make: victim(engine, tracker, make), _caller, times=times
        )

    simulated(scenario, seed=5, slots={"total": 1}, sweep_every_s=1.0)


def _drives(engine: Any) -> Any:
    def strike(*_: object) -> None:
        for _, task in list(engine._drives.values()):
            task.cancel()

    return strike


def _closes(engine: Any) -> Any:
    left: set[Any] = set()

    def strike(*_: object) -> None:
        left.add(asyncio.ensure_future(engine.close()))

    return strike


def _tears_down(engine: Any) -> Any:
    def strike(task: asyncio.Task[Any], victim: asyncio.Task[Any]) -> None:
        home = engine._home
        for one in {
            task,
            victim,
            *(home.tasks if home else ()),
            *(task for _, task in engine._drives.values()),
        }:
            one.cancel()

    return strike


@pytest.mark.parametrize("times", [1, 50])
@pytest.mark.parametrize("strike", [_drives, _closes, _tears_down], ids=["drives", "close", "the loop ends"])
@pytest.mark.parametrize("victim", some(_execution, _asks))
def test_an_engine_that_is_stopped_at_any_moment_leaves_nothing(victim, strike, times):
    """Drives that are cancelled, an engine that is closed, a loop that ends: at every step, nothing is left."""

    async def scenario(engine, tracker):
        tracker.breakers.declare("*", POLICY)
        kept = engine.agent(sleeps, name="kept", resumable=True)
        engine._agents["kept"].registered = kept
        assert await at_every_step(
            engine,
            tracker,
            lambda make: victim(engine, tracker, make),
            strike(engine),
            times=times,
            may_be_open=True,
        )

    simulated(scenario, seed=7, slots={"total": 1}, sweep_every_s=1.0)


# --- stores that fail -------------------------------------------------------------------------------------------

ERRORS = {
    "unavailable": lambda: StoreUnavailable("drawn: not for a moment"),
    "nobody can tell": lambda: StoreUnavailable("drawn: the connection broke", committed=None),
    "unexpected": lambda: RuntimeError("drawn: a defect of the store"),
}


async def _handed_over(engine, tracker, victim):
    """A worker that is lost has claimed it; another one goes on with it."""
    one = await tracker.aio.create(
        "kept",
        metadata={"called_with": {"args": [], "kwargs": {}}},
        retry={"attempts_max": 2, "backoff_s": 0.0},
        **WHO,
    )
    await tracker.aio.fire(one.id, "start")
    await tracker.aio.fire(one.id, "lapse")
    for handle in await victim(engine.adopt()):
        await handle.result()


@pytest.mark.parametrize(
    "more",
    [
        {},
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in ({"after": True}, {"times": 4}, {"times": 60})
        ),
    ],
    ids=["once", "after it is done", "4 times", "60 times"],
)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("victim", [*some(_run, _execution, _asks, _child, _stream, _adopt), _handed_over])
def test_a_store_that_fails_at_any_call_leaves_nothing(victim, error, more):
    """A store that fails once, at whichever call, leaves no slot, link, watcher or task; its error is a typed one."""

    async def scenario(engine, tracker):
        tracker.breakers.declare("*", POLICY)
        kept = engine.agent(sleeps, name="kept", resumable=True)
        engine._agents["kept"].registered = kept
        failing = Failing(tracker)
        assert await at_every_call(
            engine, tracker, failing, ERRORS[error], lambda make: victim(engine, tracker, make), **more
        )

    simulated(scenario, seed=11, slots={"total": 1}, sweep_every_s=1.0)
    in_memory(scenario, slots={"total": 1}, sweep_every_s=1.0)
