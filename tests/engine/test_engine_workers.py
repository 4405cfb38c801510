"""Engines in several simulated worker processes that crash, stop, and lose their store: every execution ends."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from fsm import Engine
from fsm.errors import FsmError
from fsm.simulation.faults import STORM
from fsm.simulation.simulation import Simulation

COUNT = 12


def _engine(tracker):
    engine = Engine(tracker, lease_s=None, sweep_every_s=None, slots={"total": 4})

    @engine.agent(
        name="errand",
        resumable=True,
        retry={"attempts_max": 5, "backoff_s": 0.5},
        timeouts={"total_s": 900.0, "input_s": 60.0, "grace_s": 5.0},
    )
    async def errand(run, number):
        async with run.model("m", breaker=False):
            await asyncio.sleep(number % 3)
        async with asyncio.TaskGroup() as group:
            for seconds in (1, 2):
                group.create_task(_tool(run, seconds))
        if number % 4 == 0:
            return (await run.ask("may I?")).text
        return number

    return engine, errand


async def _tool(run, seconds):
    async with run.tool("t"):
        await asyncio.sleep(seconds)


async def _program(worker):
    """What each worker process does, from its beginning after every crash."""
    engine, errand = _engine(worker.tracker)
    if worker.boots == 1:
        for number in range(worker.index, COUNT, 3):
            with contextlib.suppress(FsmError):  # the store fails now and then
                await errand.submit(number, user_id=f"u{number % 2}", thread_id="t")
    while True:
        with contextlib.suppress(FsmError):
            await engine.serve(every_s=1.0)
        await asyncio.sleep(1.0)


async def _person(tracker):
    while True:
        await asyncio.sleep(3.0)
        for one in tracker.find(state="awaiting_input"):
            with contextlib.suppress(FsmError):
                tracker.fire(one.id, "receive_input", text="yes", by="bo")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chaos", [None, STORM], ids=["crashes", "storm"])
def test_engines_in_several_processes(seed, chaos):
    """Workers crash and stop while others go on: every execution ends, and the guarantees hold all the while."""

    async def scenario(sim):
        for worker in sim.workers:
            worker.start(_program)
        person = asyncio.ensure_future(_person(sim.tracker))
        await asyncio.sleep(3.0)
        sim.workers[0].crash(5.0)
        sim.workers[1].pause(40.0)  # longer than its lease
        await asyncio.sleep(120.0)
        await sim.settled(within_s=4000.0)
        person.cancel()
        ends = [one.state for one in sim.tracker.find()]
        assert ends
        if chaos is None:
            assert ends.count("completed") == COUNT

    more = {} if chaos is None else {"chaos": chaos}
    Simulation(seed=seed, workers=3, **more).run(scenario)
