"""Whatever an agent does, its execution ends through the table, and nothing is left open."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from fsm import Engine, Timeouts
from fsm.errors import ExecutionCancelled, ExecutionFailed, ExecutionTimedOut, LimitReached
from tests.support.engine_tools import WHO, events, in_memory, last, only, states


def test_a_result_is_returned_and_kept(play):
    """What the agent returns is what the caller gets, and what the record has."""

    async def scenario(engine, tracker):
        async def agent(run, question):
            await asyncio.sleep(3)
            return {"said": question, "who": run.user_id}

        result = await engine.run(agent, "hello", **WHO)
        assert result == {"said": "hello", "who": "ada"}
        one = only(tracker)
        assert (one.state, one.agent, last(tracker, one.id)["result"]) == ("completed", "agent", result)

    play(scenario)


def test_an_exception_is_raised_and_recorded(play):
    """An agent's exception reaches the caller as itself, and the record has message, type and traceback."""

    async def scenario(engine, tracker):
        async def agent(run):
            raise KeyError("number 4711")

        with pytest.raises(KeyError, match="4711") as caught:
            await engine.run(agent, **WHO)
        one = only(tracker)
        said = last(tracker, one.id)
        assert one.state == "failed"
        assert (said["error"], said["error_type"]) == ("'number 4711'", "KeyError")
        assert "in agent" in said["traceback"]
        assert "number 4711" in said["traceback"]
        assert any(one.id in note for note in caught.value.__notes__)

    play(scenario)


@dataclasses.dataclass
class Found:
    number: int
    how: object


class Unshowable:
    def __repr__(self) -> str:
        raise ValueError("no")


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        (None, None),
        (0, 0),
        ("", ""),
        (float("nan"), "NaN"),
        (b"\xff\xfe", "b'\\xff\\xfe'"),
        ("\ud800", "'\\ud800'"),
        ({1, 2}, [1, 2]),
        (Found(1, print), {"number": 1, "how": "<built-in function print>"}),
        (Unshowable(), "<Unshowable that cannot be shown>"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_results_that_json_cannot_say(result, kept):
    """An agent may return anything: the caller gets the object itself, the record what JSON can say of it."""

    async def scenario(engine, tracker):
        async def agent(run):
            return result

        assert await engine.run(agent, **WHO) is result
        assert last(tracker, only(tracker).id).get("result") == kept

    in_memory(scenario)


def test_a_result_that_refers_to_itself_and_a_huge_one_are_kept_in_part():
    """A result without an end and one that is too large do not keep an execution from completing."""

    async def scenario(engine, tracker):
        endless: list[Any] = []
        endless.append(endless)
        for result in (endless, "x" * 1_000_000):

            async def agent(run, result=result):
                return result

            handle = await engine.submit(agent, **WHO)
            assert await handle.result() is result
            assert len(str(last(tracker, handle.id))) < 100_000

    in_memory(scenario)


def test_limit_reached_ends_timed_out(play):
    """LimitReached ends the execution timed_out of the kind limit, whatever attempts are left."""

    async def scenario(engine, tracker):
        async def agent(run):
            raise LimitReached("ten turns")

        with pytest.raises(ExecutionTimedOut, match="limit") as caught:
            await engine.run(agent, retry={"attempts_max": 3}, **WHO)
        assert isinstance(caught.value.__cause__, LimitReached)
        one = only(tracker)
        assert (one.state, one.attempt) == ("timed_out", 1)
        assert last(tracker, one.id) == {"kind": "limit", "note": "ten turns", "outcome": "limit"}

    play(scenario)


async def _asks(run):
    await run.ask("may I?")


async def _silent(run):
    await asyncio.sleep(1e6)


async def _talks(run):
    while True:
        await asyncio.sleep(1)
        await run.progress()


@pytest.mark.parametrize(
    ("kind", "limits", "agent"),
    [
        ("phase", {"phase_s": 5.0}, _silent),
        ("idle", {"idle_s": 5.0}, _silent),
        ("input", {"input_s": 5.0}, _asks),
        ("total", {"total_s": 5.0}, _talks),
        ("total", {"total_s": 5.0, "idle_s": 4.0}, _talks),
    ],
)
def test_a_deadline_cancels_the_agent(play, kind, limits, agent):
    """Each kind of deadline ends the execution in time, and its coroutine is really cancelled."""

    async def scenario(engine, tracker):
        cancelled = []
        loop = asyncio.get_running_loop()

        async def watched(run):
            try:
                await agent(run)
            except asyncio.CancelledError:
                cancelled.append(loop.time())
                raise

        begun = loop.time()
        with pytest.raises(ExecutionTimedOut, match=kind) as caught:
            await engine.run(watched, timeouts=limits, **WHO)
        assert caught.value.kind == kind
        assert [round(at - begun, 1) for at in cancelled] == [5.0]
        assert last(tracker, only(tracker).id)["kind"] == kind

    play(scenario)


def test_a_queue_limit_ends_what_waits_for_a_slot(play):
    """An execution that gets no slot in time ends timed_out of the kind queue, and its agent never begins."""

    async def scenario(engine, tracker):
        begun = []

        async def agent(run, name):
            begun.append(name)
            await asyncio.sleep(60)

        first = await engine.submit(agent, "first", **WHO)
        second = await engine.submit(agent, "second", timeouts=Timeouts(queue_s=5.0), **WHO)
        with pytest.raises(ExecutionTimedOut, match="queue"):
            await second
        await first
        assert begun == ["first"]
        assert states(tracker, second.id) == ["created", "queued", "timed_out"]

    play(scenario, slots={"total": 1})


def test_grace_ends_a_cancelling_one(play):
    """An agent that does not stop when it is called off is cancelled by the table when its grace is over."""

    async def scenario(engine, tracker):
        async def agent(run):
            try:
                await asyncio.sleep(1e6)
            finally:
                await asyncio.sleep(20)  # cleans up, for longer than it may

        loop = asyncio.get_running_loop()
        handle = await engine.submit(agent, timeouts={"grace_s": 5.0}, **WHO)
        await asyncio.sleep(1)
        begun = loop.time()
        await handle.cancel("enough", by="ada")
        with pytest.raises(ExecutionCancelled):
            await handle
        assert 5.0 <= loop.time() - begun <= 6.5
        assert states(tracker, handle.id)[-2:] == ["cancelling", "cancelled"]
        assert last(tracker, handle.id)["kind"] == "grace"
        await asyncio.sleep(0.1)
        assert engine.stragglers == {}  # told to stop once more, it did

    play(scenario)


def test_a_cleanup_within_the_grace_is_waited_for(play):
    """An agent that is called off may clean up, and its execution is cancelled when it has."""

    async def scenario(engine, tracker):
        cleaned = []

        async def agent(run):
            try:
                await asyncio.sleep(1e6)
            finally:
                await asyncio.sleep(3)
                cleaned.append(run.state)

        handle = await engine.submit(agent, **WHO)
        await asyncio.sleep(1)
        await handle.cancel()
        await handle.outcome()
        assert cleaned == ["cancelling"]
        assert events(tracker, handle.id)[-2:] == ["cancel", "stopped"]

    play(scenario)


def test_an_agent_that_cancels_itself_has_failed(play):
    """A CancelledError of the agent's own is a failure of the execution, and not a cancellation of the caller."""

    async def scenario(engine, tracker):
        async def agent(run):
            raise asyncio.CancelledError("from inside")

        with pytest.raises(ExecutionFailed, match="cancelled from inside"):
            await engine.run(agent, **WHO)
        assert only(tracker).state == "failed"
        assert last(tracker, only(tracker).id)["error_type"] == "CancelledError"

    play(scenario)


@pytest.mark.parametrize("leaves", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_agent_that_leaves_the_process_has_failed(leaves, tracker):
    """SystemExit and KeyboardInterrupt end the program as they would without an engine; the record says why."""

    async def agent(run):
        await asyncio.sleep(0)
        raise leaves

    async def main():
        await Engine(tracker).run(agent, retry={"attempts_max": 2}, **WHO)

    with pytest.raises(type(leaves)):
        asyncio.run(main())
    one = only(tracker)
    assert (one.state, last(tracker, one.id)["error_type"]) == ("failed", type(leaves).__name__)
