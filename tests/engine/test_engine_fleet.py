"""One agent over many items: order, errors, calling off; and a thousand at once that leave nothing behind."""

from __future__ import annotations

import asyncio
import random

import pytest

from fsm import BadPayload, EngineFull, InvalidArgument
from tests.support.engine_tools import ENDS, in_memory, on_disk, simulated

WHO = {"user_id": "ada", "thread_id": "t"}
PLAYS = pytest.mark.parametrize("play", [in_memory, simulated])


# --- map ----------------------------------------------------------------------------------------------------------


@PLAYS
@pytest.mark.parametrize("seed", range(3))
def test_outcomes_come_in_the_order_of_the_items(play, seed):
    """Whoever is done first, the outcomes stand in the order of the items; `on_done` hears of each as it comes."""
    done = []

    async def scenario(engine, tracker):
        async def agent(run, item):
            await asyncio.sleep(10.0 - item)
            return item

        return await engine.map(
            agent, iter(range(10)), **WHO, on_done=lambda outcome: done.append(outcome.result)
        )

    outcomes = play(scenario, seed=seed)
    assert [outcome.result for outcome in outcomes] == list(range(10))
    assert done == list(range(9, -1, -1))


@PLAYS
def test_so_many_at_once(play):
    """No more than `at_once` items are in the engine's hands, and no more than one is taken in advance."""
    taken, most = [], []

    async def scenario(engine, tracker):
        running = 0

        async def agent(run, item):
            nonlocal running
            running += 1
            most.append(running)
            assert len(taken) <= item + 5
            await asyncio.sleep(1.0)
            running -= 1

        def items():
            for item in range(20):
                taken.append(item)
                yield item

        await engine.map(agent, items(), **WHO, at_once=4)

    play(scenario)
    assert max(most) == 4


@PLAYS
def test_users_and_threads_by_item(play):
    """Each item can belong to another user and another conversation."""

    async def scenario(engine, tracker):
        async def agent(run, item):
            return run.user_id, run.thread_id

        return await engine.map(
            agent, [1, 2], user_id=lambda item: f"user {item}", thread_id=lambda item: f"t{item}"
        )

    assert [one.result for one in play(scenario)] == [("user 1", "t1"), ("user 2", "t2")]


@PLAYS
def test_an_error_is_an_outcome_and_the_others_go_on(play):
    """However one ends (error, timeout, cancel, a raise from nowhere), it is an outcome, and the others go on."""

    async def scenario(engine, tracker):
        async def agent(run, item):
            match item:
                case 1:
                    raise ValueError("no")
                case 2:
                    await asyncio.sleep(1000.0)
                case 3:
                    await tracker.aio.fire(run.id, "cancel", reason="enough")
                case 4:
                    raise asyncio.CancelledError
                case 5:
                    raise SystemError("from below")
            await asyncio.sleep(1.0)
            return item

        return await engine.map(agent, range(7), **WHO, timeouts={"phase_s": 50.0})

    outcomes = play(scenario)
    assert [one.state for one in outcomes] == [
        "completed", "failed", "timed_out", "cancelled", outcomes[4].state, "failed", "completed",
    ]  # fmt: skip
    assert outcomes[4].state in ENDS - {"completed"}
    assert isinstance(outcomes[1].error, ValueError)


@PLAYS
def test_a_map_waits_where_the_queue_is_full(play):
    """A full queue holds a map up, since it can wait; nothing is lost and nothing raised."""

    async def scenario(engine, tracker):
        async def agent(run, item):
            await asyncio.sleep(1.0)
            return item

        return await engine.map(agent, range(30), **WHO, at_once=30)

    outcomes = play(scenario, slots={"total": 2, "queued_max": 3})
    assert [one.result for one in outcomes] == list(range(30))


@PLAYS
def test_a_map_that_cannot_wait_for_its_own_says_so(play):
    """If the queue is full of others' executions, and none of the map's own runs, `EngineFull` is the outcome."""

    async def scenario(engine, tracker):
        async def agent(run, item=None):
            await asyncio.sleep(10.0)

        others = [await engine.submit(agent, **WHO) for _ in range(2)]
        outcomes = await engine.map(agent, range(3), **WHO)
        assert engine.running == 1
        for other in others:
            await other
        return outcomes

    outcomes = play(scenario, slots={"total": 1, "queued_max": 1})
    assert [type(one.failure()) for one in outcomes] == [EngineFull] * 3
    assert [(one.execution_id, one.completed) for one in outcomes] == [("", False)] * 3


@PLAYS
def test_a_mistake_of_the_caller_is_raised_as_it_is(play):
    """Options that do not fit, and items that raise, end the map with that error, and nothing goes on."""

    async def scenario(engine, tracker):
        async def agent(run, item):
            await asyncio.sleep(1000.0)

        def items():
            yield 1
            yield 2
            raise LookupError("no third one")

        def whose(item):
            if item == 3:
                raise KeyError(item)
            return "ada"

        with pytest.raises(LookupError, match="no third"):
            await engine.map(agent, items(), **WHO)
        with pytest.raises(KeyError):
            await engine.map(agent, [1, 2, 3], user_id=whose, thread_id="t")
        with pytest.raises(InvalidArgument):
            await engine.map(agent, [1, 2], **WHO, timeouts={"nonsense_s": 1})
        for wrong in (0, -1, True, 1.5, "3", 100_001):
            with pytest.raises(BadPayload, match="at_once"):
                await engine.map(agent, [1], **WHO, at_once=wrong)
        assert await engine.map(agent, [], **WHO) == []
        return [one.state for one in tracker.find()]

    assert set(play(scenario)) <= {"cancelled"}


@PLAYS
def test_a_broken_progress_bar_stops_nobody(play):
    """What `on_done` raises is logged; the outcomes are all there."""

    async def scenario(engine, tracker):
        async def agent(run, item):
            return item

        def bar(outcome):
            raise RuntimeError("no terminal")

        return await engine.map(agent, range(3), **WHO, on_done=bar)

    assert [one.result for one in play(scenario)] == [0, 1, 2]


@PLAYS
@pytest.mark.parametrize("after_s", [0.0, 0.004, 0.01, 0.05, 2.5])
@pytest.mark.parametrize("seed", range(3))
def test_calling_a_map_off_calls_all_off(play, after_s, seed):
    """A cancelled map cancels what runs, what waits and what is just being created, and waits until it has stopped."""

    async def scenario(engine, tracker):
        stopped = []

        async def agent(run, item):
            try:
                await asyncio.sleep(1.0 if item < 5 else 1000.0)
            except asyncio.CancelledError:
                await asyncio.sleep(0.1)
                stopped.append(item)
                raise

        fleet = asyncio.ensure_future(engine.map(agent, range(50), **WHO, at_once=20))
        await asyncio.sleep(after_s)
        fleet.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fleet
        states = [one.state for one in tracker.find()]
        assert set(states) <= {"completed", "cancelled"}
        assert engine.running == engine.queued == 0
        assert len(stopped) == len(set(stopped))

    play(scenario, seed=seed, slots={"total": 10})


# --- a thousand at once -------------------------------------------------------------------------------------------


async def mixed(run, item):
    """Do a bit of everything, and end in one of several ways."""
    draw = random.Random(item)
    kind = item % 10
    for number in range(2):
        async with run.model("m", breaker=f"b{item % 5}" if item % 2 else False):
            await asyncio.sleep(draw.random() * 0.01)
        async with run.tool(f"tool {number}") as call:
            call.result = number
    if kind == 1:
        raise ValueError("as planned")
    if kind == 2:
        await asyncio.sleep(1000.0)
    if kind == 3 and run.attempt == 1:
        raise ConnectionError("once more")
    if kind == 4:
        await run.child(mixed, item - 4)
    if kind == 5:
        async with run.model("m", breaker="broken"):
            raise ConnectionError("the model is down")
    if kind == 6:
        raise asyncio.CancelledError
    return item


PLANNED = {
    0: {"completed"}, 1: {"failed"}, 2: {"timed_out"}, 3: {"completed"}, 4: {"completed"}, 5: {"failed"},
    6: {"failed", "cancelled"}, 7: {"cancelled"}, 8: {"completed"}, 9: {"completed"},
}  # fmt: skip


async def a_thousand(engine, tracker, count: int = 1000):
    async def agent(run, item):
        if item % 10 == 7:
            await asyncio.sleep(1000.0)
        return await mixed(run, item)

    handles = []
    for item in range(count):
        options = {"retry": {"attempts_max": 2, "backoff_s": 0.01}} if item % 10 == 3 else {}
        if item % 10 == 2:
            options["timeouts"] = {"total_s": 2.0}
        handles.append(
            await engine.submit(
                agent, item, user_id=f"user {item % 50}", thread_id="t", agent_name="mixed", **options
            )
        )

    for item in range(7, count, 10):
        await handles[item].cancel("as planned")
    outcomes = [await handle.outcome() for handle in handles]
    for item, outcome in enumerate(outcomes):
        assert outcome.state in PLANNED[item % 10], (item, outcome)
    for key in ("b1", "b3", "broken"):
        assert tracker.breakers.status_of(key).probes == 0
    admission = engine._runtime.admission
    assert (admission._users, admission._agents, admission._ready) == ({}, {}, [])
    assert sum(tracker.counts().values()) == count + count // 10


def test_a_thousand_at_once_end_as_they_must():
    """Of a thousand executions at once each ends as planned; no slot, permit, task or watcher is left."""
    in_memory(a_thousand, slots={"total": 200, "per_user": 20})


@pytest.mark.slow
def test_a_thousand_at_once_on_disk(tmp_path):
    """The same over SQLite, in real time."""
    on_disk(tmp_path, a_thousand, slots={"total": 200, "per_user": 20})
