"""Agents that are plain functions run in threads, with the same names; a thread need not be cancelled to be stopped."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from fsm import Engine
from fsm.breakers import Consecutive, Policy
from fsm.engine import RunOver, SyncRun, current_run
from fsm.errors import (
    BadPayload,
    BreakerOpen,
    ConfigurationError,
    ExecutionCancelled,
    ExecutionTimedOut,
    PrerequisiteFailed,
)
from fsm.testing import fresh_tracker
from tests.support.engine_tools import (
    WHO,
    events,
    last,
    nothing_left,
    on_disk,
    only,
    open_ones,
    states,
    until,
)


@pytest.fixture(params=["memory", "sqlite"])
def play(request, tmp_path):
    """Run a scenario in real time, in memory and on SQLite."""

    def run(scenario, **options):
        if request.param == "sqlite":
            return on_disk(tmp_path, scenario, **options)

        async def main(tracker):
            engine = Engine(tracker, lease_s=None, sweep_every_s=None, **{"patience_s": 1.0, **options})
            await scenario(engine, tracker)
            await nothing_left(engine, tracker)

        with fresh_tracker() as tracker:
            return asyncio.run(main(tracker))

    return run


@pytest.fixture
def fresh():
    """A tracker in memory with the system's clock."""
    with fresh_tracker() as tracker:
        yield tracker


def test_a_plain_function_has_the_same_names(play):
    """Models, tools, questions, children, notes and phases work from a thread as they do from a coroutine."""

    async def scenario(engine, tracker):
        async def child(run, number):
            return number + 1

        def agent(run, number):
            assert isinstance(run, SyncRun)
            assert current_run() is run.run
            assert threading.current_thread() is not threading.main_thread()
            assert (run.user_id, run.thread_id, run.agent_name) == ("ada", "t", "agent")
            assert (run.attempt, run.over, run.metadata) == (1, False, {"k": 1})
            run.phase("preparing_tools")
            with run.model("m") as call:
                call.usage(tokens=3)
            with run.tool("search", call_id="c1", arguments=[1]) as tool:
                tool.result = "found"
            run.progress("half", data=1)
            run.log("line")
            run.annotate(cost=0.1)
            run.sleep(0.01)
            said = run.call_model("m", lambda: "said")
            return [run.child(child, number), run.ask("?").text, said, run.state]

        handle = await engine.submit(agent, 7, metadata={"k": 1}, **WHO)
        await until(handle, "awaiting_input")
        await tracker.aio.fire(handle.id, "receive_input", text="yes")
        assert await handle == [8, "yes", "said", "thinking"]
        seen = states(tracker, handle.id)
        assert seen[:4] == ["created", "starting", "thinking", "preparing_tools"]
        assert events(tracker, handle.id).count("progress") == 3

    play(scenario)


def test_an_exception_in_a_thread(play):
    """What a plain function raises is what the caller gets, inside and outside of its phases."""

    async def scenario(engine, tracker):
        def agent(run):
            with pytest.raises(ValueError, match="tool"), run.tool("t"):
                raise ValueError("tool")
            with run.model("m", breaker=False):
                raise KeyError("model")

        handle = await engine.submit(agent, **WHO)
        with pytest.raises(KeyError, match="model"):
            await handle
        closed = next(row for row in tracker.history(handle.id) if row.event == "close_tool")
        assert closed.payload["error"] == "ValueError: tool"
        assert last(tracker, handle.id)["error_type"] == "KeyError"

    play(scenario)


def test_stop_iteration_does_not_hang(play):
    """A function that raises StopIteration, which no future takes, fails like any other."""

    async def scenario(engine, tracker):
        def agent(run):
            raise StopIteration

        with pytest.raises(RuntimeError, match="StopIteration"):
            await engine.run(agent, **WHO)

    play(scenario)


@pytest.mark.parametrize("where", ["sleep", "ask", "child", "tool"])
def test_a_cancel_wakes_a_thread_that_waits(play, where):
    """A thread that waits in one of the run's own steps is stopped at once, and its phases are left."""

    async def scenario(engine, tracker):
        left = []

        async def slow(run):
            await asyncio.sleep(60)

        def agent(run):
            try:
                with run.tool("outer"):
                    if where == "sleep":
                        run.sleep(60)
                    elif where == "ask":
                        run.ask("?")
                    elif where == "child":
                        run.child(slow)
                    else:
                        while True:
                            run.progress()
                            time.sleep(0.01)
            except RunOver:
                left.append(run.over)
                raise

        handle = await engine.submit(agent, **WHO)
        await asyncio.sleep(0.1)
        await handle.cancel("enough")
        begun = time.monotonic()
        with pytest.raises(ExecutionCancelled):
            await handle
        assert time.monotonic() - begun < 0.8
        assert left == [True]

    play(scenario)


def test_a_thread_that_blocks_is_reported_and_its_result_is_late(play, caplog):
    """A thread that does not look up keeps nobody waiting; it is a straggler, and its result is remembered."""

    async def scenario(engine, tracker):
        free = threading.Event()

        def agent(run):
            free.wait(30)
            try:
                run.progress()
            except RunOver:
                return "too late"

        handle = await engine.submit(agent, timeouts={"phase_s": 0.05}, **WHO)
        with pytest.raises(ExecutionTimedOut):
            await handle
        assert engine.stragglers == {handle.id: "agent"}
        assert engine.running == 0
        free.set()
        while engine.stragglers:
            await asyncio.sleep(0.005)
        (late,) = engine.late
        assert (late.execution_id, late.agent, late.result) == (handle.id, "agent", "too late")

    play(scenario, patience_s=0.1)
    assert "did not stop" in caplog.text
    assert "late: it returned" in caplog.text


@pytest.mark.parametrize("ended", [True, False], ids=["straggler", "running"])
def test_the_loop_closes_although_a_thread_blocks(fresh, ended):
    """A thread that blocks for ever does not keep the event loop from closing, nor its execution open."""
    free = threading.Event()
    engine = Engine(fresh, patience_s=0.1, sweep_every_s=None)

    def agent(run):
        free.wait(60)

    async def main():
        handle = await engine.submit(agent, timeouts={"phase_s": 0.05 if ended else 60.0}, **WHO)
        if ended:
            await handle.outcome()
        else:
            await asyncio.sleep(0.05)

    begun = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - begun < 5
    assert open_ones(fresh) == []
    assert only(fresh).state == ("timed_out" if ended else "cancelled")
    free.set()


def test_a_thread_is_stopped_when_the_engine_closes(fresh):
    """A thread meets RunOver at its next step when the engine is closed, though its execution may go on elsewhere."""
    met = []

    def agent(run):
        try:
            while True:
                run.progress()
                time.sleep(0.005)
        except RunOver:
            met.append(run.over)
            raise

    async def main():
        engine = Engine(fresh, sweep_every_s=None)
        await engine.submit(agent, retry={"attempts_max": 2}, **WHO)
        await asyncio.sleep(0.1)
        await engine.close()
        assert met == [True]
        assert only(fresh).state == "queued"
        rows = len(fresh.history(only(fresh).id))
        await asyncio.sleep(0.05)
        assert len(fresh.history(only(fresh).id)) == rows

    asyncio.run(main())


def test_a_stopped_thread_gives_its_probe_back(fresh):
    """A thread that is stopped inside a model call gives the breaker's probe back."""
    policy = Policy(trip=Consecutive(failures=1), cooldown_s=0.05, cooldown_max_s=0.05, jitter=0.0)
    fresh.breakers.declare("*", policy)

    def agent(run, fails):
        with run.model("m"):
            if fails:
                raise ConnectionError("reset")
            while True:
                run.progress()
                time.sleep(0.005)

    async def main():
        engine = Engine(fresh, sweep_every_s=None)
        with pytest.raises(ConnectionError):
            await engine.run(agent, True, **WHO)
        await asyncio.sleep(0.1)
        handle = await engine.submit(agent, False, **WHO)
        await asyncio.sleep(0.05)
        assert len(fresh.breakers.get("m").row.probes) == 1
        await handle.cancel()
        await handle.outcome()
        assert fresh.breakers.get("m").row.probes == ()

    asyncio.run(main())


def test_an_open_breaker_in_a_thread(play):
    """BreakerOpen is raised in the thread, and the agent goes on with something else."""

    async def scenario(engine, tracker):
        tracker.breakers.force_open("big")

        def agent(run):
            with pytest.raises(BreakerOpen), run.model("big"):
                pass
            with run.model("small"):
                return run.state

        assert await engine.run(agent, **WHO) == "calling_model"

    play(scenario)


def test_sync_generators(play):
    """A plain generator is streamed from as it comes, and is closed when its reader goes away."""

    async def scenario(engine, tracker):
        closed = []

        def agent(run, count):
            try:
                yield from range(count)
            finally:
                closed.append(count)

        assert await engine.run(agent, 5, **WHO) == [0, 1, 2, 3, 4]
        assert [item async for item in engine.stream(agent, 200, **WHO)] == list(range(200))
        stream = engine.stream(agent, 10_000, **WHO)
        assert await anext(stream) == 0
        await stream.aclose()
        assert closed == [5, 200, 10_000]
        assert sorted(one.state for one in tracker.find()) == ["cancelled", "completed", "completed"]

    play(scenario)


def test_run_sync(fresh):
    """Plain code runs agents of both kinds without an event loop; exceptions come through."""
    engine = Engine(fresh, sweep_every_s=None)

    async def coroutine(run, number):
        await asyncio.sleep(0)
        return number

    def function(run, number):
        with run.tool("t"):
            return number

    def fails(run):
        raise KeyError("no")

    assert engine.run_sync(coroutine, 1, **WHO) == 1
    assert engine.run_sync(function, 2, **WHO) == 2
    with pytest.raises(KeyError):
        engine.run_sync(fails, **WHO)
    assert (engine.running, open_ones(fresh)) == (0, [])
    engine.portal().close()
    assert engine.run_sync(function, 3, **WHO) == 3
    engine.portal().close()


@pytest.mark.parametrize("leaves", [SystemExit, KeyboardInterrupt])
def test_run_sync_of_an_agent_that_leaves(fresh, leaves):
    """SystemExit inside an agent is raised by run_sync, and the portal goes on."""
    engine = Engine(fresh, sweep_every_s=None)

    async def agent(run):
        raise leaves

    async def fine(run):
        return 1

    with pytest.raises(leaves):
        engine.run_sync(agent, **WHO)
    assert only(fresh).state == "failed"
    assert engine.run_sync(fine, **WHO) == 1
    engine.portal().close()


def test_run_sync_where_there_is_a_loop(fresh):
    """run_sync on an event loop's thread is refused: it would block the loop."""

    async def main():
        with pytest.raises(ConfigurationError, match="await"):
            Engine(fresh).run_sync(lambda: 1, **WHO)

    asyncio.run(main())


def test_a_with_block_is_an_execution(fresh):
    """The body of a `with` is the agent: its phases, its result, its exception."""
    engine = Engine(fresh, sweep_every_s=None)
    session = engine.execution("by hand", **WHO)
    with session as run:
        with run.tool("search"):
            pass
        session.result = 7
    assert last(fresh, run.id)["result"] == 7
    with pytest.raises(ValueError, match="no"), engine.execution("by hand", **WHO) as failed:
        raise ValueError("no")
    assert fresh.get(failed.id).state == "failed"
    with pytest.raises(PrerequisiteFailed), engine.execution("by hand", before=[lambda _: "no"], **WHO):
        raise AssertionError("not reached")
    with pytest.raises(BadPayload), engine.execution("by hand", retry={"attempts_max": 2}, **WHO):
        raise AssertionError("not reached")
    with pytest.raises(ExecutionCancelled), engine.execution("by hand", **WHO) as called_off:  # noqa: PT012 - the body
        fresh.fire(called_off.id, "cancel", reason="enough")
        time.sleep(0.05)
        called_off.progress()
    assert fresh.get(called_off.id).state == "cancelled"
    assert (engine.running, open_ones(fresh), engine._connections()) == (0, [], [])
    engine.portal().close()


def test_an_async_with_block_is_an_execution(play):
    """The body of an `async with` is the agent; a cancel from outside cancels the body."""

    async def scenario(engine, tracker):
        session = engine.execution("by hand", **WHO)
        async with session as run:
            assert current_run() is run
            async with run.model("m"):
                pass
            session.result = 7
        assert current_run() is None
        assert last(tracker, run.id)["result"] == 7
        with pytest.raises(ExecutionCancelled, match="enough"):  # noqa: PT012 - the body
            async with engine.execution("by hand", **WHO) as run:
                await tracker.aio.fire(run.id, "cancel", reason="enough")
                await asyncio.sleep(60)
        assert not asyncio.current_task().cancelling()
        with pytest.raises(ExecutionTimedOut):
            async with engine.execution("by hand", timeouts={"phase_s": 0.05}, **WHO):
                await asyncio.sleep(60)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), engine.execution("by hand", **WHO) as run:
                await asyncio.sleep(60)
        assert tracker.get(run.id).state == "cancelled"
        with pytest.raises(ValueError, match="no"):
            async with engine.execution("by hand", **WHO) as run:
                raise ValueError("no")
        assert tracker.get(run.id).state == "failed"

    play(scenario)
