"""What agents leave behind or do after their end: it is closed, refused, and reported."""

from __future__ import annotations

import asyncio

import pytest

from fsm.engine import RunOver
from fsm.errors import ExecutionCancelled, ExecutionTimedOut
from tests.support.engine_tools import WHO, events, in_memory, only, open_ones


def test_a_swallowed_cancellation_meets_run_over_at_the_next_step(play):
    """An agent that swallows its cancellation once is stopped by its next step."""

    async def scenario(engine, tracker):
        met = []

        async def agent(run):
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(1e6)
            try:
                await run.progress("as if nothing had happened")
            except RunOver:
                met.append(run.over)
                raise

        with pytest.raises(ExecutionTimedOut):
            await engine.run(agent, timeouts={"phase_s": 2.0}, **WHO)
        assert met == [True]
        assert events(tracker, only(tracker).id)[-1] == "time_out"

    play(scenario)


def test_one_that_swallows_for_ever_is_reported_and_left_to_itself(play):
    """An agent that swallows every cancellation keeps nobody waiting: it is a straggler, and what it says is late."""

    async def scenario(engine, tracker):
        over = []

        async def agent(run):
            until = asyncio.get_running_loop().time() + 60
            while (left := until - asyncio.get_running_loop().time()) > 0:
                try:
                    await asyncio.sleep(left)
                except asyncio.CancelledError:
                    over.append(await _refused(run))
            return "at last"

        loop = asyncio.get_running_loop()
        with pytest.raises(ExecutionTimedOut):
            await engine.run(agent, timeouts={"phase_s": 2.0}, **WHO)
        assert loop.time() < 4
        one = only(tracker)
        rows = len(tracker.history(one.id))
        assert engine.stragglers == {one.id: "agent"}
        assert (engine.running, open_ones(tracker)) == (0, [])
        await asyncio.sleep(100)
        assert engine.stragglers == {}
        (late,) = engine.late
        assert (late.execution_id, late.result, late.error) == (one.id, "at last", None)
        assert 55 < late.late_s < 60
        assert len(tracker.history(one.id)) == rows
        assert over
        assert all(over)

    play(scenario)


async def _refused(run) -> bool:
    """Try everything that a run can do; return whether each was RunOver."""

    async def phase(one):
        async with one:
            pass

    async def child():
        return 1

    steps = [
        lambda: phase(run.model("m", breaker=False)),
        lambda: phase(run.model("m")),
        lambda: phase(run.tool("t")),
        lambda: run.ask("?"),
        run.progress,
        lambda: run.log("x"),
        lambda: run.annotate(tokens=1),
        lambda: run.phase("preparing_tools"),
        lambda: run.call_model("m", child),
        lambda: run.child(child),
    ]
    for step in steps:
        try:
            await step()
        except RunOver:
            continue
        return False
    return True


def test_background_tasks_meet_run_over_after_the_end(play):
    """What an agent leaves running cannot write after its end: each step is RunOver, and holds no slot."""

    async def scenario(engine, tracker):
        met = []

        async def background(run):
            await asyncio.sleep(10)
            met.append(await _refused(run))

        async def agent(run):
            asyncio.ensure_future(background(run))  # noqa: RUF006 - it is forgotten, that is the point
            return 1

        assert await engine.run(agent, **WHO) == 1
        rows = len(tracker.history(only(tracker).id))
        await asyncio.sleep(20)
        assert met == [True]
        assert len(tracker.history(only(tracker).id)) == rows

    play(scenario)


def test_forgotten_tools_are_closed(play, caplog):
    """A tool that the agent left open is closed with a note before the execution completes."""

    async def scenario(engine, tracker):
        async def agent(run):
            for call_id in ("c1", "c2"):
                await run.tool("search", call_id=call_id).__aenter__()
            return "done"

        assert await engine.run(agent, **WHO) == "done"
        rows = [row for row in tracker.history(only(tracker).id) if row.event == "close_tool"]
        assert [row.payload["call_id"] for row in rows] == ["c1", "c2"]
        assert all(row.payload["ok"] is False and "still open" in row.payload["note"] for row in rows)
        assert only(tracker).state == "completed"

    play(scenario)
    assert "left the tool 'search' open" in caplog.text


def test_a_forgotten_question_is_taken_back(play):
    """An agent that returns while a branch of it still asks a person completes; the branch is over."""

    async def scenario(engine, tracker):
        branches = []

        async def agent(run):
            branches.append(asyncio.ensure_future(run.ask("may I?")))
            await asyncio.sleep(1)
            return "without an answer"

        assert await engine.run(agent, **WHO) == "without an answer"
        with pytest.raises(RunOver):
            await branches[0]
        assert only(tracker).state == "completed"

    play(scenario)


def test_a_branch_that_goes_on_using_tools_cannot_keep_the_end_away(play):
    """An agent returns, and a branch of it that opens one tool after another has no say any more."""

    async def scenario(engine, tracker):
        branches = []

        async def branch(run):
            while True:
                async with run.tool("again"):
                    await asyncio.sleep(0.001)

        async def agent(run):
            branches.extend(asyncio.ensure_future(branch(run)) for _ in range(3))
            await asyncio.sleep(0.1)
            return 1

        assert await engine.run(agent, **WHO) == 1
        assert only(tracker).state == "completed"
        await asyncio.wait(branches)

    play(scenario)


def test_a_close_stops_the_body_of_a_block(play):
    """An engine that is closed cancels the body of a with block, and its execution ends as called off."""

    async def scenario(engine, tracker):
        entered = asyncio.Event()

        async def by_hand():
            async with engine.execution("by-hand", **WHO):
                entered.set()
                await asyncio.sleep(1e6)

        body = asyncio.create_task(by_hand())
        await entered.wait()
        await engine.close()
        with pytest.raises(ExecutionCancelled, match="the engine was closed"):
            await body
        assert only(tracker).state == "cancelled"

    play(scenario)


@pytest.mark.parametrize("between_s", [0.0, 0.001, 0.003, 0.5])
@pytest.mark.parametrize("times", [2, 4])
def test_whoever_is_cancelled_again_while_it_leaves_leaves_all_the_same(play, times, between_s):
    """A drive that is cancelled again while it ends its execution ends it: a caller gave up, then the engine closes."""

    async def scenario(engine, tracker):
        async def agent(run):
            try:
                await asyncio.sleep(1e6)
            finally:
                await asyncio.sleep(0.2)

        handle = await engine.submit(agent, **WHO)
        await asyncio.sleep(1)
        for _ in range(times - 1):
            handle._task.cancel()
            await asyncio.sleep(between_s)
        await engine.close()
        assert only(tracker).state == "cancelled"
        assert events(tracker, handle.id)[-2:] == ["cancel", "stopped"]

    play(scenario)


def test_a_question_that_nobody_waits_for_is_withdrawn(play):
    """A question whose asker has given up is withdrawn in the journal, and is no answer to anybody."""

    async def scenario(engine, tracker):
        async def agent(run):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(5.0):
                    await run.ask("Refund 120 EUR?")
            return "not refunded"

        assert await engine.run(agent, **WHO) == "not refunded"
        assert "withdraw" in events(tracker, only(tracker).id)
        assert "receive_input" not in events(tracker, only(tracker).id)

    in_memory(scenario)
