"""Models behind breakers, tools, questions, and several of them at once: the journal is what a reader would expect."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from fsm.breakers import Backoff, Consecutive, Policy
from fsm.errors import (
    BreakerOpen,
)
from tests.support.engine_tools import WHO, events, in_memory, legal, only, simulated, states

# --- breakers -------------------------------------------------------------------------------------------------

ONE = Policy(trip=Consecutive(failures=1), cooldown_s=30.0, cooldown_max_s=600.0, jitter=0.0)


def test_an_open_breaker_gives_the_slot_back_and_another_model_is_taken(play):
    """Without a permit the execution is circuit_open and holds no slot; the agent goes on with another model."""

    async def scenario(engine, tracker):
        tracker.breakers.force_open("big")
        held = []

        async def agent(run):
            with pytest.raises(BreakerOpen):
                async with run.model("big"):
                    pass
            held.append((run.state, engine.running))
            async with run.model("small"):
                held.append((run.state, engine.running))

        await engine.run(agent, **WHO)
        assert held == [("circuit_open", 0), ("calling_model", 1)]
        assert states(tracker, only(tracker).id)[2:5] == ["circuit_open", "calling_model", "thinking"]

    play(scenario)


def test_a_call_that_opens_the_breaker_trips(play):
    """An error that opens the breaker is in the journal as a trip, and goes on to the agent."""

    async def scenario(engine, tracker):
        tracker.breakers.declare("*", ONE)

        async def agent(run):
            with pytest.raises(ConnectionError):
                async with run.model("big"):
                    raise ConnectionError("reset")
            return run.state

        assert await engine.run(agent, **WHO) == "circuit_open"
        assert "trip" in events(tracker, only(tracker).id)

    play(scenario)


def test_call_model_backs_off_without_a_slot(play):
    """Between two tries of a model call the execution is backing_off, and others have its slot."""

    async def scenario(engine, tracker):
        tries = []

        async def call():
            tries.append(len(tries))
            if len(tries) < 3:
                raise ConnectionError("reset")
            return "said"

        async def agent(run):
            backoff = Backoff(attempts=3, initial_s=100.0, max_s=100.0)
            return await run.call_model("big", call, backoff=backoff)

        async def looks():
            seen = Counter()
            while not handle.done:
                seen[handle.state, engine.running] += 1
                await asyncio.sleep(0.1)
            return seen

        handle = await engine.submit(agent, **WHO)
        seen = await looks()
        assert await handle == "said"
        # The commit comes just before the slot is given back: at most one look per wait may fall in between.
        assert seen["backing_off", 0] > 2 >= seen["backing_off", 1]
        assert events(tracker, handle.id).count("back_off") == 2

    play(scenario, slots={"total": 1})


def test_a_cancelled_call_gives_its_probe_back(play):
    """A model call that is cancelled while it is the breaker's probe leaves the probe to the next caller."""

    async def scenario(engine, tracker):
        tracker.breakers.declare("*", ONE)

        async def trips(run):
            async with run.model("big"):
                raise ConnectionError("reset")

        async def calls(run):
            async with run.model("big"):
                await asyncio.sleep(1e5)

        with pytest.raises(ConnectionError):
            await engine.run(trips, **WHO)
        await asyncio.sleep(31)
        for _ in range(2):
            handle = await engine.submit(calls, **WHO)
            await asyncio.sleep(1)
            assert tracker.breakers.get("big").row.state == "half_open"
            assert len(tracker.breakers.get("big").row.probes) == 1
            await handle.cancel()
            await handle.outcome()
            assert tracker.breakers.get("big").row.probes == ()

    play(scenario)


# --- several things at once -------------------------------------------------------------------------------------


async def _tool(run, name, seconds):
    async with run.tool(name):
        await asyncio.sleep(seconds)


async def _model(run, name, seconds):
    async with run.model(name):
        await asyncio.sleep(seconds)


async def _ask(run, question, seconds):
    await asyncio.sleep(seconds)
    return (await run.ask(question)).text


PARALLEL = {
    "tools": (
        [(_tool, "a", 1), (_tool, "b", 2), (_tool, "c", 3)],
        ["starting", "thinking", "running_tools", "processing_results"],
    ),
    "models": ([(_model, "a", 1), (_model, "b", 2)], ["starting", "calling_model", "thinking"]),
    "a tool that outlives a model": (
        [(_model, "a", 1), (_tool, "b", 2)],
        ["starting", "calling_model", "running_tools", "processing_results"],
    ),
    "a model that outlives a tool": (
        [(_model, "a", 2), (_tool, "b", 1)],
        ["starting", "calling_model", "thinking"],
    ),
}


@pytest.mark.parametrize("name", PARALLEL)
def test_several_things_at_once(name):
    """Tools and models at once: the journal's states are those that a reader would expect."""
    branches, expected = PARALLEL[name]

    async def scenario(engine, tracker):
        async def agent(run):
            pending = []
            for branch, *args in branches:
                pending.append(asyncio.ensure_future(branch(run, *args)))
                await asyncio.sleep(0.1)
            await asyncio.gather(*pending)

        await engine.run(agent, **WHO)
        seen = states(tracker, only(tracker).id)
        inside = seen[1 : 1 + len(expected)]
        assert (
            inside
            == [one for one in expected if one in seen]
            == [one for one in expected if one != "thinking" or one in seen]
        )
        assert events(tracker, only(tracker).id).count("close_tool") == sum(
            one[0] is _tool for one in branches
        )

    in_memory(scenario)
    simulated(scenario)


def test_a_model_inside_a_tool(play):
    """A tool that calls a model is running_tools again when the model has answered."""

    async def scenario(engine, tracker):
        async def agent(run):
            async with run.tool("summarise"):
                await _model(run, "small", 1)
                await asyncio.sleep(1)

        await engine.run(agent, **WHO)
        assert states(tracker, only(tracker).id)[2:-2] == [
            "thinking", "running_tools", "calling_model", "running_tools", "processing_results",
        ]  # fmt: skip

    play(scenario)


def test_two_questions_and_a_tool_at_once(play):
    """Two branches ask at once: one question after the other is shown, tools go on, and each gets its answer."""

    async def scenario(engine, tracker):
        async def agent(run):
            return await asyncio.gather(
                _ask(run, "first?", 0.1), _ask(run, "second?", 0.2), _tool(run, "search", 30)
            )

        handle = await engine.submit(agent, **WHO)
        for answer in ("one", "two"):
            await asyncio.sleep(2)
            assert handle.state == "awaiting_input"
            await tracker.aio.fire(handle.id, "receive_input", text=answer)
        assert (await handle)[:2] == ["one", "two"]
        assert events(tracker, handle.id).count("await_input") == 2
        legal(tracker, handle.id)

    play(scenario, slots={"total": 1})


def test_branches_that_wait_for_the_slot_take_one(play):
    """After a question several branches go on: they share the execution's one slot."""

    async def scenario(engine, tracker):
        async def agent(run):
            await asyncio.gather(_ask(run, "?", 0), *(_late_tool(run) for _ in range(5)))

        async def _late_tool(run):
            await asyncio.sleep(1)
            await _tool(run, "t", 10)

        async def other(run):
            await asyncio.sleep(20)

        handle = await engine.submit(agent, **WHO)
        await asyncio.sleep(2)
        between = await engine.submit(other, **WHO)
        await asyncio.sleep(1)
        await tracker.aio.fire(handle.id, "receive_input", text="yes")
        await asyncio.sleep(5)
        assert (engine.running, engine.queued) == (1, 1)
        await between
        await asyncio.sleep(1)
        assert (engine.running, engine.queued) == (1, 0)
        await handle

    play(scenario, slots={"total": 1})
