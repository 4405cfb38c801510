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
from fsm.errors import EngineFull, FsmError
from fsm.simulation.faults import Chaos
from tests.support.engine_programs import LEFT_BEHIND, PROGRAMS, SHORT, Player, Program
from tests.support.engine_tools import ENDS, in_memory, legal, simulated

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
    how=st.sampled_from(["handle", "fire", "caller", "time_out", "lapse", *HANGS_UP]),
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
    if order.how == "handle":
        with contextlib.suppress(FsmError):
            await handle.cancel("drawn")
    elif order.how == "caller":
        await handle.give_up("drawn")
    else:
        fired = "cancel" if order.how == "fire" else order.how
        with contextlib.suppress(FsmError):
            await tracker.aio.fire(handle.id, fired)
    await handle.outcome()


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
