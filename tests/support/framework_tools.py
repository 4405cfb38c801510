"""What the tests of the framework integrations share: an engine, in virtual time or not, a person, and the journal."""

from __future__ import annotations

import asyncio
from itertools import groupby

from fsm.engine import Engine
from fsm.simulation.loop import SteppedLoop
from fsm.tracker.process import get_tracker
from tests.support.inside import store_of

ADA = {"user_id": "ada", "thread_id": "t-1"}
TURNS = 2_000
"""So often a person looks whether there is a question, and a test whether a state is reached."""


def perform(function, *args, answers=(), threads=False, **options):
    """Run an agent function on an engine while a person gives these answers; return the outcome.

    Time is virtual, unless the agent or the store needs threads, which there are none of in virtual time.
    """
    threads = threads or not store_of(get_tracker()).instant

    async def main():
        async with Engine() as engine:
            handle = await engine.submit(function, *args, **ADA, **options)
            for answer in answers:
                await until(lambda: get_tracker().get(handle.id).state == "awaiting_input" or handle.done)
                get_tracker().fire(handle.id, "receive_input", by="bob", **answer)
                await asyncio.sleep(0)
            return await handle.outcome()

    outcome = on_loop(main, threads=threads)
    execution = get_tracker().get(outcome.execution_id)
    assert execution.ended
    assert execution.open_tools == ()
    return outcome


def on_loop(main, *, threads=False):
    factory = None if threads else lambda: SteppedLoop(0, shuffle=False)
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


async def until(holds):
    """Wait until something holds; in virtual time that costs nothing."""
    for _ in range(TURNS):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


def journal(execution_id=None):
    """The rows of the only execution that there is, or of this one."""
    tracker = get_tracker()
    if execution_id is None:
        (only,) = tracker.find()
        execution_id = only.id
    return tracker.history(execution_id)


def states(execution_id=None):
    """The states that it went through after its creation, each once in a row."""
    return " ".join(state for state, _ in groupby(one.target for one in journal(execution_id)[1:]))


def payloads(event, execution_id=None):
    return [one.payload for one in journal(execution_id) if one.event == event]


def tools(execution_id=None):
    """The tools in the order in which they closed: name, ok, and the result or the error."""
    names = {one["call_id"]: one["name"] for one in payloads("open_tool", execution_id)}
    return [
        (names[one["call_id"]], one["ok"], one.get("result") if one["ok"] else one.get("error"))
        for one in payloads("close_tool", execution_id)
    ]


def notes(execution_id=None):
    return [one["note"] for one in payloads("progress", execution_id) if one.get("note")]


def usages(execution_id=None):
    """What the model calls used, in their order."""
    data = [
        one.payload.get("data")
        for one in journal(execution_id)
        if one.event in {"think", "run_tools", "progress"}
    ]
    return [one for one in data if isinstance(one, dict) and "input_tokens" in one]
