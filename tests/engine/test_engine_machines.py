"""An engine drives machines of the user's own: it reads outcomes and categories, and knows no state's name."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

import fsm.engine
from fsm import EXECUTION, Engine, Machine
from fsm.errors import ExecutionCancelled, ExecutionLost, ExecutionTimedOut
from fsm.machine.grammar import row, state
from fsm.testing import fresh_tracker
from tests.support.engine_tools import WHO

JOB = Machine(
    name="job",
    initial="new",
    states=(
        state("new", "pending", "queue"),
        state("queued", "running", "phase"),  # what another machine calls a pending state
        state("shelved", "pending", "queue"),
        state("going", "running", "phase"),
        state("braking", "stopping", "grace"),
        state("done", "terminal", outcome="success"),
        state("broken", "terminal", outcome="error"),
        state("overdue", "terminal", outcome="timeout"),
        state("dropped", "terminal", outcome="cancelled"),
        state("vanished", "terminal", outcome="lost"),
    ),
    transitions=(
        row("new", "enqueue", "shelved", by="owner"),
        row("new shelved", "start", "going", assign="claim"),
        row("going", "await_more", "queued", by="owner"),
        row("@running", "progress", None, by="owner"),
        row("@running", "complete", "done", by="owner"),
        row(
            "@pending @running",
            "fail",
            "shelved",
            "retryable and attempts_left",
            assign="release",
            by="owner",
        ),
        row("@pending @running", "fail", "broken", by="owner"),
        row("@pending @running", "time_out", "overdue", by="system"),
        row("@running", "lapse", "shelved", "attempts_left", assign="release", by="system"),
        row("@running", "lapse", "vanished", by="system"),
        row("@running", "cancel", "braking"),
        row("@pending", "cancel", "dropped"),
        row("braking", "stopped", "dropped", by="owner"),
        row("braking", "fail", "dropped", by="owner"),
        row("braking", "time_out", "dropped", by="system"),
        row("braking", "lapse", "dropped", by="system"),
    ),
    facts=EXECUTION.facts,
    payloads=tuple(
        (event, event) for event in "start complete fail time_out lapse cancel stopped progress".split()
    ),
)


def played(scenario):
    """Run a scenario with an engine whose tracker knows two machines."""

    async def main(tracker):
        engine = Engine(tracker, sweep_every_s=None, lease_s=None)
        await scenario(engine, tracker)

    with fresh_tracker(machines=[EXECUTION, JOB]) as tracker:
        asyncio.run(main(tracker))


def test_a_state_of_outcome_success_gives_a_value():
    """An execution that ends in a state called done, declared a success, has completed and returns its result."""

    async def scenario(engine, tracker):
        async def agent(run):
            await run.progress("on")
            return 7

        handle = await engine.submit(agent, machine=JOB, **WHO)
        outcome = await handle.outcome()
        assert (outcome.state, outcome.completed, outcome.value()) == ("done", True, 7)
        assert await engine.run(agent, machine="job", **WHO) == 7

    played(scenario)


@pytest.mark.parametrize(
    ("how", "ends", "raised"),
    [
        ("raise", "broken", OSError),
        ("cancel", "dropped", ExecutionCancelled),
        ("time_out", "overdue", ExecutionTimedOut),
        ("lapse", "vanished", ExecutionLost),
    ],
)
def test_every_kind_of_end_raises_what_it_means(how, ends, raised):
    """The outcome that a terminal state declares decides what its caller gets, whatever the state is called."""

    async def scenario(engine, tracker):
        async def agent(run):
            if how == "raise":
                raise OSError("no")
            await asyncio.sleep(60)

        handle = await engine.submit(agent, machine=JOB, **WHO)
        await asyncio.sleep(0.01)
        if how != "raise":
            await tracker.aio.fire(handle.id, how)
        outcome = await handle.outcome()
        assert outcome.state == ends
        with pytest.raises(raised):
            outcome.value()

    played(scenario)


@pytest.mark.parametrize("machine", [EXECUTION, JOB], ids=lambda one: one.name)
def test_what_waits_in_a_pending_state_of_any_machine_is_adopted(machine):
    """serve() takes over what is pending in any machine that the process knows, and nothing that is not."""

    async def scenario(engine, tracker):
        @engine.agent(name="kept", resumable=True)
        async def kept(run, number):
            return number

        called = {"called_with": {"args": [7], "kwargs": {}}}
        one = await tracker.aio.create("kept", machine=machine, metadata=called, **WHO)
        await tracker.aio.fire(one.id, "enqueue")
        # Pending in one machine, running in the other, under one name.
        runs = await tracker.aio.create("kept", machine=JOB, metadata=called, **WHO)
        receipt = await tracker.aio.fire(runs.id, "start")
        await tracker.aio.fire(runs.id, "await_more", fence=receipt.fence)
        serving = asyncio.ensure_future(engine.serve(every_s=0.01))
        while not (await tracker.aio.get(one.id)).ended:
            assert not serving.done()
            await asyncio.sleep(0.005)
        assert tracker.get(one.id).result == 7
        assert tracker.get(runs.id).version == 2
        serving.cancel()
        await tracker.aio.fire(runs.id, "cancel")
        await tracker.aio.fire(runs.id, "stopped", fence=receipt.fence)

    played(scenario)


def test_a_released_execution_of_another_machine_is_gone_on_with():
    """What a closing engine releases goes to its machine's own pending state; another engine takes it from there."""

    async def scenario(engine, tracker):
        async def kept(run):
            if run.attempt == 1:
                await asyncio.sleep(60)
            return run.attempt

        engine.agent(kept, name="kept", resumable=True)
        handle = await engine.submit("kept", machine=JOB, retry={"attempts_max": 2}, **WHO)
        await asyncio.sleep(0.01)
        await engine.close()
        assert engine.left_open == {handle.id: "shelved"}
        other = Engine(tracker, sweep_every_s=None, lease_s=None)
        other.agent(kept, name="kept", resumable=True)
        (adopted,) = await other.adopt()
        assert await adopted == 2
        assert tracker.get(handle.id).state == "done"

    played(scenario)


def test_the_engine_names_no_state():
    """No module of the engine holds the name of a state as a value: categories, outcomes and rows say what it needs."""
    states = {one.name for one in EXECUTION.states}
    for path in Path(fsm.engine.__file__).parent.glob("*.py"):
        words = set(re.findall(r'(?<!")"([a-z_]+)"(?!")', path.read_text()))
        # Stages of a driver and kinds of ends are declared by their own enumerations.
        own = {"queued"} if path.name == "stages.py" else {"cancelled"} if path.name == "driver.py" else set()
        own |= {"cancelled"} if path.name == "outcome.py" else set()
        assert not (words & states) - own, (path.name, words & states)
