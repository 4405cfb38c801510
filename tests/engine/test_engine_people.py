"""A person is asked: the question outlives whoever asked it, and the answer reaches whoever goes on."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fsm import Engine
from fsm.engine import RunOver
from fsm.errors import ExecutionTimedOut
from fsm.testing import fresh_tracker
from tests.support.engine_tools import (
    WHO,
    events,
    in_memory,
    last,
    legal,
    nothing_left,
    on_disk,
    only,
    states,
    until,
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"verdict": "approved", "by": "bo"}, ("approved", None, "bo", True)),
        ({"verdict": "refused", "text": "too much", "by": "bo"}, ("refused", "too much", "bo", False)),
        ({"text": "only half"}, ("text", "only half", None, False)),
    ],
)
def test_an_answer_reaches_the_agent(play, answer, expected):
    """What a person says, and who said it, is what the agent gets."""

    async def scenario(engine, tracker):
        async def agent(run):
            got = await run.ask("Refund 120 EUR?", data={"order": 4711})
            return (*got, got.approved)

        handle = await engine.submit(agent, **WHO)
        await asyncio.sleep(60)
        assert handle.state == "awaiting_input"
        asked = tracker.history(handle.id)[-1].payload
        assert asked == {"question": "Refund 120 EUR?", "data": {"order": 4711}}
        await tracker.aio.fire(
            handle.id, "progress", fence=tracker.get(handle.id).fence, note="somebody looks at it"
        )
        await tracker.aio.fire(handle.id, "receive_input", **answer)
        assert await handle == expected

    play(scenario)


def test_a_question_expires_as_it_says(play):
    """A question that nobody answers ends the execution when it says, not when the machine's limit does."""

    async def scenario(engine, tracker):
        loop = asyncio.get_running_loop()

        async def agent(run):
            await run.ask("?", expires_s=90.0)

        with pytest.raises(ExecutionTimedOut, match="input"):
            await engine.run(agent, timeouts={"input_s": 1000.0}, **WHO)
        assert 90 <= loop.time() < 91

    play(scenario)


def test_an_asker_that_gives_up_takes_its_question_back(play):
    """An agent that waits for an answer only so long goes on without, and the next question is a new one."""

    async def scenario(engine, tracker):
        async def agent(run):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(run.ask("first?"), 5)
            async with run.tool("search"):
                await asyncio.sleep(1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(run.ask("second?"), 5)
            return (await run.ask("third?")).text

        handle = await engine.submit(agent, **WHO)
        await asyncio.sleep(20)
        assert tracker.history(handle.id)[-1].payload["question"] == "third?"
        await tracker.aio.fire(handle.id, "receive_input", text="yes")
        assert await handle == "yes"

    play(scenario)


def test_an_answer_counts_in_the_next_attempt_too(play):
    """What was answered in one attempt is not asked again in the next."""

    async def scenario(engine, tracker):
        async def agent(run):
            answers = [await run.ask("one?")]
            if run.attempt == 1:
                raise OSError("and now this")
            answers.append(await run.ask("two?"))
            if run.attempt == 2:
                raise OSError("again")
            return [answer.text for answer in answers]

        handle = await engine.submit(agent, retry={"attempts_max": 3, "backoff_s": 1.0}, **WHO)
        for text in "ab":
            await until(handle, "awaiting_input")
            await tracker.aio.fire(handle.id, "receive_input", text=text)
            await asyncio.sleep(0.5)
        assert await handle == ["a", "b"]
        assert events(tracker, handle.id).count("await_input") == 2

    play(scenario)


def test_a_branch_of_an_attempt_that_failed_waits_no_more(play):
    """A question of a failed attempt's branch is over with the attempt."""

    async def scenario(engine, tracker):
        branches = []

        async def agent(run):
            if run.attempt == 1:
                branches.append(asyncio.ensure_future(run.ask("?")))
                await asyncio.sleep(1)
                raise OSError("no")
            await asyncio.sleep(5)

        handle = await engine.submit(agent, retry={"attempts_max": 2, "backoff_s": 0.0}, **WHO)
        await handle
        with pytest.raises(RunOver):
            await branches[0]

    play(scenario)


def test_another_process_answers_and_the_agent_goes_on_at_once(tmp_path):
    """An answer from another process, with other rows around it, reaches a living agent within 0.3 s, unmixed."""

    async def scenario(engine, tracker):
        async def agent(run):
            answer = await run.ask("?")
            return answer, time.monotonic()

        handle = await engine.submit(agent, **WHO)
        await until(handle, "awaiting_input")

        def from_outside():
            with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as other:
                other.fire(handle.id, "progress", fence=other.get(handle.id).fence, note="looking")
                other.fire(handle.id, "receive_input", verdict="approved", by="bo")
                at = time.monotonic()
                other.fire(handle.id, "progress", fence=other.get(handle.id).fence, note="done")
                return at

        answered_at = await asyncio.to_thread(from_outside)
        answer, heard_at = await handle
        assert (answer.verdict, answer.by) == ("approved", "bo")
        assert heard_at - answered_at < 0.3

    on_disk(tmp_path, scenario)


def test_another_process_cancels(tmp_path):
    """A cancel from another process reaches the agent, and its reason whoever waits."""

    async def scenario(engine, tracker):
        async def agent(run):
            await asyncio.sleep(100)

        handle = await engine.submit(agent, **WHO)
        await asyncio.sleep(0.05)

        def from_outside():
            with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as other:
                other.fire(handle.id, "cancel", reason="enough", by="bo")

        await asyncio.to_thread(from_outside)
        outcome = await handle.outcome()
        assert (outcome.state, outcome.end["reason"], outcome.end["by"]) == ("cancelled", "enough", "bo")

    on_disk(tmp_path, scenario)


ASKER = """
    import asyncio, sys
    from fsm import Engine
    from fsm.tracker.process import configure

    engine = Engine(configure(sys.argv[1]), lease_s=0.6, sweep_every_s=None)

    @engine.agent(name="refund", resumable=True)
    async def refund(run, order):
        async with run.tool("look up"):
            pass
        answer = await run.ask(f"refund {order}?")
        print("answered", flush=True)
        return answer.verdict

    async def main():
        waiting = asyncio.ensure_future(engine.run_until_signal())
        handle = await refund.submit(4711, user_id="ada", thread_id="t")
        while handle.state != "awaiting_input":
            await asyncio.sleep(0.01)
        print(handle.id, flush=True)
        await waiting

    asyncio.run(main())
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "SIGTERM"])
def test_a_question_outlives_the_process_that_asked_it(tmp_path, end):
    """The asker is gone, a person answers elsewhere, and another engine goes on without asking again."""
    url = f"sqlite:///{tmp_path}/fsm.db"
    script = Path(tmp_path / "asker.py")
    script.write_text(textwrap.dedent(ASKER))
    with subprocess.Popen([sys.executable, str(script), url], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        execution_id = child.stdout.readline().strip()
        child.send_signal(end)
        assert child.wait(20) == -end
        assert child.stdout.read() == ""
    with fresh_tracker(url) as tracker:
        if end is signal.SIGKILL:
            assert tracker.get(execution_id).owner is not None
            time.sleep(0.7)  # a lease in real time
        tracker.sweep()
        one = tracker.get(execution_id)
        assert (one.state, one.owner) == ("awaiting_input", None)
        tracker.fire(execution_id, "receive_input", verdict="approved", by="bo")
        assert tracker.get(execution_id).state == "queued"

        async def go_on():
            engine = Engine(tracker, lease_s=None, sweep_every_s=None)

            @engine.agent(name="refund", resumable=True)
            async def refund(run, order):
                assert order == 4711
                return (await run.ask(f"refund {order}?")).by

            (handle,) = await engine.adopt()
            assert await handle == "bo"
            assert await engine.adopt() == []
            await nothing_left(engine, tracker)

        asyncio.run(go_on())
        assert events(tracker, execution_id).count("await_input") == 1
        assert last(tracker, execution_id)["result"] == "bo"


def test_a_question_that_was_taken_back_is_asked_again_by_the_next_process(tmp_path):
    """Only what a person said counts as an answer."""

    async def scenario(engine, tracker):
        @engine.agent(resumable=True)
        async def agent(run):
            if run.attempt == 1:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(run.ask("?"), 0.05)
                await run.log("no answer")
                await run.phase("thinking")
                async with run.tool("search"):
                    await asyncio.sleep(100)
            return (await run.ask("?")).text

        handle = await agent.submit(**WHO, retry={"attempts_max": 2, "backoff_s": 0.0})
        await until(handle, "running_tools")
        await engine.close()
        assert only(tracker).state == "queued"
        (handle,) = await engine.adopt()
        await until(handle, "awaiting_input")
        await tracker.aio.fire(handle.id, "receive_input", text="a person's")
        assert await handle == "a person's"
        legal(tracker, handle.id)
        assert states(tracker, handle.id).count("awaiting_input") == 2

    in_memory(scenario)
