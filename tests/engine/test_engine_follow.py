"""Two engines over one store: each execution is driven once, and whoever asked for it gets its result."""

from __future__ import annotations

import asyncio

import pytest

from fsm import ConfigurationError, Engine, Machine, State, Transition
from fsm.engine import Slots
from fsm.tracker.process import fresh_tracker

WHO = {"user_id": "ada", "thread_id": "t"}


def engine_of(tracker, seen, **options) -> Engine:
    engine = Engine(tracker, poll_s=0.02, sweep_every_s=None, **options)

    @engine.agent(name="double", resumable=True)
    async def double(run, number):
        seen.append((number, run.id))
        if number < 0:
            raise ValueError("negative")
        return {"double": 2 * number}

    return engine


def test_what_another_engine_takes_is_awaited(tmp_path):
    """A queued execution that another process's engine adopts runs there, once, and its caller gets the result."""
    url, here, there = f"sqlite:///{tmp_path}/fsm.db", [], []

    async def main(first, second):
        busy = asyncio.Event()

        async def block(run):
            await busy.wait()

        a, b = engine_of(first, here, slots=Slots(total=1)), engine_of(second, there)
        blocking = await a.submit(block, **WHO)
        queued = [await a.submit("double", number, **WHO) for number in (21, -1)]
        for _ in range(500):
            if all(one.state == "queued" for one in queued):
                break
            await asyncio.sleep(0.01)
        assert await a.adopt() == [], "what is driven here is not adopted here"
        adopted = await b.adopt()
        assert sorted(one.id for one in adopted) == sorted(one.id for one in queued)
        await asyncio.gather(*(one.outcome() for one in adopted))
        busy.set()
        await blocking.result()
        good, bad = [await one.outcome() for one in queued]
        assert (good.result, good.state) == ({"double": 42}, "completed")
        assert bad.state == "failed"
        with pytest.raises(Exception, match="negative"):
            bad.value()
        assert (here, [number for number, _ in there]) == ([], [21, -1])
        assert (a.running, b.running, a._connections(), b._connections()) == (0, 0, [], [])

    with fresh_tracker(url) as first, fresh_tracker(url) as second:
        asyncio.run(main(first, second))


def test_a_machine_that_an_engine_cannot_drive_is_refused():
    """A machine without the events that an engine says is refused before anything is created."""
    machine = Machine(
        name="lamp",
        initial="on",
        states=[
            State(name="on", category="pending", deadline="queue"),
            State(name="off", category="terminal"),
        ],
        transitions=[
            Transition(source="on", event="switch", target="off"),
            Transition(source="on", event="time_out", target="off"),
            Transition(source="on", event="cancel", target="off"),
        ],
    )
    with fresh_tracker() as tracker:

        async def main():
            with pytest.raises(ConfigurationError, match="no complete, fail"):
                await Engine(tracker).run(print, machine=machine, **WHO)

        asyncio.run(main())
        assert tracker.find() == []
