"""Whatever agents do, and whenever they are called off: afterwards nothing is left. Programs are drawn at random."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsm import Engine, Tracker
from fsm.breakers import Consecutive, Policy
from fsm.engine import Handle
from fsm.errors import EngineFull, FsmError
from fsm.simulation.faults import Chaos
from fsm.testing import fresh_tracker
from tests.support.engine_programs import (
    LEFT_BEHIND,
    MOMENTS,
    PROGRAMS,
    SHORT,
    THREAD_PROGRAMS,
    Player,
    Program,
    Threaded,
)
from tests.support.engine_tools import ENDS, WHO, in_memory, legal, simulated

TIMES = int(os.environ.get("FSM_RANDOM_TIMES", "1"))
"""So many times as many examples are drawn, and other ones in each run, if it is set: to 20 for a night, say."""
POLICY = Policy(trip=Consecutive(failures=2), cooldown_s=2.0, cooldown_max_s=8.0, jitter=0.0)
LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "total_s": st.sampled_from([0.7, 5.0]),
        "phase_s": st.sampled_from([0.4, 2.0]),
        "idle_s": st.sampled_from([0.6, 2.0]),
        "queue_s": st.sampled_from([0.5, 3.0]),
        "input_s": st.sampled_from([1.0, 8.0]),
        "grace_s": st.sampled_from([0.3, 4.0]),
    },
)


HANGS_UP = {"hangs up": 1, "hangs up twice": 2, "hangs up for ever": 1_000}
"""How often a caller is cancelled, once and then at each of the loop's next turns."""


TWICE = {
    "handle and fire": ("handle", "fire"),
    "handle twice": ("handle", "handle"),
    "driver twice": ("driver", "driver"),
    "driver and handle": ("driver", "handle"),
    "handle and caller": ("handle", "caller"),
}
"""Who cancels an execution that is being cancelled already."""


class Order(NamedTuple):
    """One execution to run, and what befalls it."""

    program: Program
    user: str
    limits: dict[str, float]
    attempts: int
    fallback: Any
    before: Any
    streams: bool
    cancel_at: float | None
    how: str


ORDERS = st.builds(
    Order,
    program=st.one_of(PROGRAMS, PROGRAMS, LEFT_BEHIND),
    user=st.sampled_from(["ada", "bo"]),
    limits=LIMITS,
    attempts=st.sampled_from([1, 1, 2, 3]),
    fallback=st.one_of(st.none(), st.just("value"), PROGRAMS),
    before=st.sampled_from([None, None, None, "no", "slow"]),
    streams=st.sampled_from([False, False, True]),
    cancel_at=st.one_of(st.none(), SHORT),
    how=st.sampled_from(["handle", "fire", "caller", "time_out", "lapse", *TWICE, *HANGS_UP]),
)
PLANS = st.fixed_dictionaries(
    {
        "orders": st.lists(ORDERS, min_size=1, max_size=4),
        "seed": st.integers(0, 1000),
        "slots": st.sampled_from(
            [{}, {"total": 1}, {"total": 2, "per_user": 1}, {"total": 1, "queued_max": 1}]
        ),
        "answer_every_s": st.sampled_from([0.3, 5.0]),
        "close_at": st.sampled_from([None, None, None, 0.4, 2.0]),
    }
)


async def _one(engine: Engine, tracker: Tracker, player: Player, order: Order) -> None:
    """Run one order, and do to it what the order says."""
    options: dict[str, Any] = {}
    if order.fallback is not None:
        program = order.fallback

        async def instead(run: Any, *_: Any) -> int:
            return await player.agent(run, program)

        options["fallback"] = "value" if program == "value" else instead
    if order.before is not None:
        options["before"] = [_slowly if order.before == "slow" else lambda _: "no"]
    agent = player.items if order.streams else player.agent
    options |= {
        "user_id": order.user, "thread_id": "t", "timeouts": order.limits,
        "retry": {"attempts_max": order.attempts, "backoff_s": 0.5},
    }  # fmt: skip
    if order.cancel_at is not None and order.how in HANGS_UP:
        await _hang_up(engine.run(agent, order.program, **options), order.cancel_at, HANGS_UP[order.how])
        return
    handle = await engine.submit(agent, order.program, **options)
    if order.cancel_at is None:
        await handle.outcome()
        return
    await asyncio.sleep(order.cancel_at)
    await asyncio.gather(*(_stop(tracker, handle, how) for how in TWICE.get(order.how, (order.how,))))
    await handle.outcome()


async def _stop(tracker: Tracker, handle: Handle, how: str) -> None:
    """Stop an execution in one of the ways in which it can be stopped from outside."""
    if how == "driver":  # as the end of its event loop does it
        handle._task.cancel()
    elif how == "caller":
        await handle.give_up("drawn")
    else:
        with contextlib.suppress(FsmError):
            if how == "handle":
                await handle.cancel("drawn")
            else:
                await tracker.aio.fire(handle.id, "cancel" if how == "fire" else how)


async def _hang_up(call: Any, after_s: float, times: int) -> None:
    """Cancel a caller again and again, until it has left."""
    caller = asyncio.ensure_future(call)
    await asyncio.wait({caller}, timeout=after_s)
    for _ in range(times):
        if caller.done():
            break
        caller.cancel()
        await asyncio.sleep(0)
    await asyncio.wait({caller})
    if not caller.cancelled():
        caller.exception()  # whatever the agent came to


async def _slowly(run: Any) -> None:
    await asyncio.sleep(0.2)
    await run.log("looked at")


async def _person(tracker: Tracker, every_s: float) -> None:
    """Answer whatever is asked."""
    while True:
        await asyncio.sleep(every_s)
        with contextlib.suppress(FsmError):
            for one in await tracker.aio.find(state="awaiting_input"):
                await tracker.aio.fire(one.id, "receive_input", text="yes", by="bo")


def _scenario(plan: dict[str, Any], *, at_once: bool = False) -> Any:
    async def scenario(engine: Engine, tracker: Tracker) -> None:
        tracker.breakers.declare("*", POLICY)
        player = Player()
        person = asyncio.ensure_future(_person(tracker, plan["answer_every_s"]))
        pending = [asyncio.ensure_future(_one(engine, tracker, player, order)) for order in plan["orders"]]
        if plan["close_at"] is not None:
            await asyncio.sleep(plan["close_at"])
            await engine.close()
        for result in await asyncio.gather(*pending, return_exceptions=True):
            # A caller learns of a full queue, a refused or a lost command; anything else would be a defect.
            assert result is None or isinstance(result, (EngineFull, FsmError)), result
        person.cancel()
        for _ in range(10_000):
            if not player.left and not engine.stragglers and not engine._connections():
                break
            await asyncio.sleep(1.0)
        await _rest(engine, tracker)
        if at_once:
            _no_orphans(tracker)

    return scenario


async def _rest(engine: Engine, tracker: Tracker) -> None:
    """What was handed back is nobody's; let it end, and look at breakers and journals."""
    for one in tracker.find(limit=1000):
        if one.state not in ENDS:
            assert one.owner is None, one
            assert one.state in {"queued", "created", "awaiting_input"}, one
            for _ in range(20):  # the store fails even now
                with contextlib.suppress(FsmError):
                    tracker.fire(one.id, "cancel")
        legal(tracker, one.id)
    assert engine.stragglers == {}
    for breaker in tracker.breakers.status().breakers:
        assert tracker.breakers.get(breaker.key).row.probes == ()


def _no_orphans(tracker: Tracker) -> None:
    """Once the parent has ended, a child is called off, stops, or is lost; it does nothing else any more."""
    for child in tracker.find(limit=1000):
        if child.parent_id is None or (parent := tracker.get(child.parent_id)).ended_at is None:
            continue
        stopping = {one.name for one in tracker.machine_of(child.id).states if one.category == "stopping"}
        for row in tracker.history(child.id):
            if row.at > parent.ended_at:
                assert row.source in stopping or row.target in {*stopping, *ENDS}, (row, parent)


RARE = Chaos(fail_before=0.01, fail_after=0.01, unknown=0.01, hang=0.005, slow=0.02, late_s=0.5)


@given(PLANS)
@settings(max_examples=400 * TIMES, suppress_health_check=list(HealthCheck))
def test_nothing_is_left(plan):
    """Random agents with random limits, called off at random times, leave nothing behind."""
    in_memory(_scenario(plan, at_once=True), seed=plan["seed"], slots=plan["slots"])


@given(PLANS)
@settings(max_examples=200 * TIMES, suppress_health_check=list(HealthCheck))
def test_nothing_is_left_over_a_store_that_takes_its_time(plan):
    """The same over a store whose commits take time, so that everything happens while others are under way."""
    simulated(_scenario(plan), seed=plan["seed"], slots=plan["slots"])


@given(PLANS)
@settings(max_examples=150 * TIMES, suppress_health_check=list(HealthCheck))
def test_nothing_is_left_over_a_store_that_fails(plan):
    """The same over a store that fails, hangs, and does not say what it has committed."""
    simulated(_scenario(plan), seed=plan["seed"], slots=plan["slots"], chaos=RARE)


# --- plain functions ----------------------------------------------------------------------------------------------


class Threads(NamedTuple):
    """A plain function to run, in real time, and what befalls it."""

    program: Program
    attempts: int
    streams: bool
    phase_s: float | None
    cancel_at: float | None
    how: str


OF_THREADS = st.builds(
    Threads,
    program=THREAD_PROGRAMS,
    attempts=st.sampled_from([1, 1, 2]),
    streams=st.booleans(),
    phase_s=st.sampled_from([None, None, 0.01]),
    cancel_at=st.one_of(st.none(), MOMENTS),
    how=st.sampled_from(["handle", "fire", "caller", "time_out", "lapse", *TWICE, *HANGS_UP]),
)


async def _one_in_a_thread(engine: Engine, tracker: Tracker, threaded: Threaded, one: Threads) -> None:
    agent = threaded.items if one.streams else threaded.agent
    options = {
        **WHO, "timeouts": {"input_s": 0.1} | ({"phase_s": one.phase_s} if one.phase_s else {}),
        "retry": {"attempts_max": one.attempts, "backoff_s": 0.002},
    }  # fmt: skip
    if one.cancel_at is not None and one.how in HANGS_UP:
        await _hang_up(engine.run(agent, one.program, **options), one.cancel_at, HANGS_UP[one.how])
        return
    handle = await engine.submit(agent, one.program, **options)
    if one.cancel_at is not None:
        await asyncio.sleep(one.cancel_at)
        await asyncio.gather(*(_stop(tracker, handle, how) for how in TWICE.get(one.how, (one.how,))))
    await handle.outcome()


@given(st.lists(OF_THREADS, min_size=1, max_size=3), st.sampled_from([{}, {"total": 1}]), st.booleans())
@settings(max_examples=60 * TIMES, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_is_left_of_plain_functions(drawn, slots, closes):
    """Random plain functions in threads, stopped at random times and by several at once, leave nothing behind."""

    async def main(tracker):
        tracker.breakers.declare("*", POLICY)
        engine = Engine(tracker, slots=slots, sweep_every_s=None, patience_s=0.5)
        threaded = Threaded(Player())
        person = asyncio.ensure_future(_person(tracker, 0.003))
        pending = [asyncio.ensure_future(_one_in_a_thread(engine, tracker, threaded, one)) for one in drawn]
        if closes:
            await asyncio.sleep(0.005)
            await engine.close()
        for result in await asyncio.gather(*pending, return_exceptions=True):
            assert result is None or isinstance(result, FsmError), result
        person.cancel()
        for _ in range(1_000):
            if not engine.stragglers and not engine._connections():
                break
            await asyncio.sleep(0.005)
        await _rest(engine, tracker)
        assert (engine.running, engine.queued) == (0, 0)

    with fresh_tracker() as tracker:
        asyncio.run(main(tracker))
