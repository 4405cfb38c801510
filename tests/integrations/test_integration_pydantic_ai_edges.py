"""pydantic-ai agents on the engine, at the edges: cancelled, late, nested, limited, untracked, without the extra."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from pydantic_ai import Agent
from pydantic_ai.capabilities import Hooks
from pydantic_ai.exceptions import (
    ModelRetry,
    UsageLimitExceeded,
)
from pydantic_ai.usage import UsageLimits

from fsm import get_tracker
from fsm.engine import Engine, RunOver, current_run
from fsm.errors import ExecutionCancelled, ExecutionTimedOut
from fsm.integrations.pydantic_ai import Approvals, Tracked, streamed, tracked
from fsm.integrations.pydantic_ai_models import at_home, unless_over
from fsm.simulation.loop import SteppedLoop
from tests.support.pydantic_ai_tools import (
    ADA,
    ONE_CALL,
    an_agent,
    call,
    journal,
    payloads,
    perform,
    said,
    scripted,
    states,
    the_only,
)


@pytest.fixture(autouse=True)
def fresh(tracker):
    """Every test has a tracker of its own in memory."""
    return tracker


def cancelled_at(function, state, then_s=0.0):
    """Run an agent function, call it off as soon as it is in a state, and give its leftovers some seconds."""

    async def main():
        handle = await Engine().submit(function, "hi", **ADA)
        for _ in range(100):
            if get_tracker().get(handle.id).state == state:
                break
            await asyncio.sleep(0.1)
        await handle.cancel()
        outcome = (await asyncio.gather(handle.result(), return_exceptions=True))[0]
        await asyncio.sleep(then_s)
        return outcome

    with asyncio.Runner(loop_factory=lambda: SteppedLoop(0)) as runner:
        return runner.run(main())


@pytest.mark.parametrize(
    ("turns", "state"), [([call("two"), said()], "running_tools"), ([call("one"), said()], "calling_model")]
)
def test_a_cancelled_run_ends_cancelled(turns, state):
    """Called off in the middle of a tool or of a request, the execution is cancelled and nothing of it is open."""

    async def slow(messages, info):
        await asyncio.sleep(3)
        return turns[0]

    agent = an_agent(*turns)
    options = {"model": scripted(*turns)} if state == "running_tools" else {"model": type(agent.model)(slow)}
    assert isinstance(cancelled_at(tracked(agent, **options), state), ExecutionCancelled)
    assert the_only().state == "cancelled"
    assert states().endswith(f"{state} cancelling cancelled")


def test_what_comes_after_a_cancel_is_no_second_error():
    """A tool that outlives its cancellation may end when it likes: its late end changes nothing and raises nothing."""
    agent = an_agent(call("stubborn"), said())
    ended = []

    @agent.tool_plain
    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(2)
        ended.append(current_run().over)
        return "late"

    cancelled_at(tracked(agent), "running_tools", then_s=10.0)
    assert ended == [True]
    assert the_only().state == "cancelled"
    assert journal()[-1].target == "cancelled"
    assert "late" not in str([one.payload for one in journal()])


def test_an_agent_that_is_started_when_the_run_is_over_leaves_no_trace():
    """Hooks are silent once the run is over, whoever swallowed the cancellation and goes on."""
    late = []

    async def cleaning(run, prompt):
        agent = an_agent(call("one"), said())
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            asyncio.current_task().uncancel()  # pydantic-ai cancels a run in a task that is being cancelled
            result = await agent.run("bye", capabilities=[Tracked(), Approvals()])
            late.append((result.output, run.over))

    cancelled_at(cleaning, "starting", then_s=10.0)
    assert late == [("done", True)]
    assert {one.event for one in journal()} <= {"create", "start", "cancel", "stopped"}


@pytest.mark.parametrize("at", ["enter", "leave"])
def test_a_run_that_ends_in_between_is_no_error(at):
    """A run that ends just as a phase of it begins or ends leaves the framework's own work alone."""

    @asynccontextmanager
    async def phase():
        if at == "enter":
            raise RunOver
        yield "phase"
        raise RunOver

    async def main():
        run = SimpleNamespace(id="exec_x", over=False, loop=asyncio.get_running_loop())
        async with unless_over(run, phase) as entered:
            return entered

    assert asyncio.run(main()) == (None if at == "enter" else "phase")


def test_a_step_is_taken_on_the_loop_that_the_run_belongs_to():
    """What another thread's event loop hands in runs on the run's own, and its answer comes back."""

    async def where():
        return asyncio.get_running_loop()

    async def main():
        home = asyncio.get_running_loop()
        run = SimpleNamespace(loop=home)
        elsewhere = await asyncio.to_thread(asyncio.run, at_home(run, where()))
        return {await at_home(run, where()), elsewhere} == {home}

    assert asyncio.run(main())


def test_outside_of_the_engine_nothing_happens():
    """The same agent runs untracked as if it carried no capability."""
    agent = an_agent(call("one"), said(), capabilities=[Tracked(), Approvals()])
    assert asyncio.run(agent.run("hi")).output == "done"
    assert get_tracker().find() == []


def test_an_agent_that_carries_the_capability_is_not_reported_twice():
    """`tracked` replaces the agent's own capability, and keeps the options that it is given."""
    agent = an_agent(call("one"), said(), capabilities=[Tracked()])
    assert perform(tracked(agent, content=False)) == "done"
    assert len(payloads("call_model")) == 2
    (opened,), (closed,) = payloads("open_tool"), payloads("close_tool")
    assert "arguments" not in opened
    assert "result" not in closed


def test_what_another_capability_hides_is_hidden_in_the_journal():
    """The journal stands outermost, so it sees what the model sees, wherever the capability is listed."""
    hooks = Hooks()

    @hooks.on.tool_execute
    async def mask(ctx, *, call, tool_def, args, handler):
        await handler(args)
        return "***"

    agent = an_agent(call("one"), said())
    assert perform(tracked(agent, capabilities=[hooks])) == "done"
    assert [one["result"] for one in payloads("close_tool")] == ["***"]


def test_the_execution_bears_the_agents_name():
    """An agent without a name is called agent, whatever variable holds it."""
    anonymous = an_agent(said())
    perform(tracked(anonymous))
    perform(tracked(an_agent(said(), name="clerk")))
    assert anonymous.name is None
    assert sorted(one.agent for one in get_tracker().find()) == ["agent", "clerk"]


def test_options_reach_the_agent():
    """What `agent.run` takes can be handed to `tracked`; what comes with the call goes before it."""
    agent = Agent(scripted(said()), deps_type=str)
    seen = []

    @agent.instructions
    async def who(ctx) -> str:
        seen.append(ctx.deps)
        return "Be nice."

    made = tracked(agent, deps="ada")

    async def both(run, prompt):
        await made(run, prompt)
        return await made(run, prompt, deps="bob")

    perform(both)
    assert seen == ["ada", "bob"]


def test_an_agent_inside_a_tool_is_part_of_the_run():
    """Requests of an agent that a tool runs are in the same journal, while the tool stays open."""
    inner = Agent(scripted(said("inner"), name="inner"))
    agent = an_agent(call("delegate"), said())

    @agent.tool_plain
    async def delegate() -> str:
        return (await inner.run("go", capabilities=[Tracked()])).output

    assert perform(tracked(agent)) == "done"
    names = [one["name"] for one in payloads("call_model")]
    assert names == ["function:scripted", "function:inner", "function:scripted"]
    events = [one.event for one in journal()]
    between = events[events.index("open_tool") : events.index("close_tool")]
    assert between.count("call_model") == 1
    assert the_only().state == "completed"


def test_an_agent_that_runs_in_a_thread_is_tracked_too(either):
    """An agent in a plain function has an event loop of its own; its steps are taken on the engine's."""
    agent = an_agent(call("fast"), call("bad", "fast"), said())

    @agent.tool_plain
    def fast() -> int:
        return 3

    @agent.tool_plain
    def bad() -> int:
        raise ModelRetry("not now")

    def plain(run, prompt):
        return asyncio.run(agent.run(prompt, capabilities=[Tracked(), Approvals()])).output

    assert perform(plain, for_real=True) == "done"
    assert len(payloads("call_model", either)) == 3
    assert sorted(one["ok"] for one in payloads("close_tool", either)) == [False, True, True]


def test_a_thread_is_stopped_by_its_next_step():
    """Nobody can cancel a thread: once the run is over, the next request of an agent in one is cancelled instead."""
    went_on = []
    agent = an_agent(call("fast"), said())

    def plain(run, prompt):
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(agent.run(prompt, capabilities=[Tracked()]))
        went_on.append(run.over)

    @agent.tool_plain
    async def fast() -> int:
        run = current_run()
        get_tracker().fire(run.id, "cancel")
        for _ in range(1000):
            await asyncio.sleep(0 if run.over else 0.001)
        return 3

    assert isinstance(perform(plain, for_real=True), ExecutionCancelled)
    assert went_on == [True]
    assert len(payloads("call_model")) == 1


def test_a_result_of_any_type_is_journaled():
    """What a tool returns need not be JSON, nor small."""
    agent = an_agent(call("odd", "large"), said())

    @agent.tool_plain
    async def odd() -> object:
        return {"when": complex(1, 2), "raw": b"\xff"}

    @agent.tool_plain
    async def large() -> str:
        return "x" * 2_000_000

    async def answer(messages, info):
        return said() if len(messages) > 1 else call("large")

    assert perform(tracked(agent, model=type(agent.model)(answer))) == "done"
    assert len(str(payloads("close_tool"))) < 100_000


def test_a_run_that_takes_too_long_for_pydantic_ai_is_timed_out():
    """A timeout of `agent.run` is a limit of the execution, too."""
    error = perform(tracked(an_agent(call("two"), said()), timeout=2.0))
    assert isinstance(error, ExecutionTimedOut)
    assert the_only().state == "timed_out"
    assert [one["ok"] for one in payloads("close_tool")] == [False]


def test_text_can_be_streamed_from_the_engine():
    """A streamed agent yields its text as it is written, tools and all, and is tracked like any other."""

    async def main():
        return [
            piece async for piece in Engine().stream(streamed(an_agent(call("one"), said())), "hi", **ADA)
        ]

    with asyncio.Runner(loop_factory=lambda: SteppedLoop(0)) as runner:
        assert runner.run(main()) == ["d", "o", "n", "e"]
    assert states() == f"{ONE_CALL} calling_model thinking processing_results completing completed"


def test_a_reader_that_goes_away_ends_the_run():
    """Whoever stops reading a stream calls the execution off, in the middle of the request."""

    async def main():
        pieces = Engine().stream(streamed(an_agent(said("a long answer"))), "hi", **ADA)
        first = await anext(pieces)
        await pieces.aclose()
        return first

    with asyncio.Runner(loop_factory=lambda: SteppedLoop(0)) as runner:
        assert runner.run(main()) == "a"
    assert the_only().state in {"cancelled", "completed"}


def test_a_usage_limit_ends_the_execution():
    """A limit of pydantic-ai is a limit of the execution: it ends timed_out, with the reason, and is not retried."""
    agent = an_agent(call("one"), said())
    error = perform(tracked(agent, usage_limits=UsageLimits(request_limit=1)))
    assert isinstance(error, ExecutionTimedOut)
    assert error.kind == "limit"
    assert isinstance(error.__cause__.__cause__, UsageLimitExceeded)
    assert states() == f"{ONE_CALL} timed_out"
    assert the_only().outcome == "limit"
    assert "request_limit of 1" in payloads("time_out")[0]["note"]


@pytest.mark.parametrize("module", ["pydantic_ai", "demo_agent"])
def test_without_the_extra_the_error_says_what_to_install(module):
    """Importing the integration without pydantic-ai names the extra."""
    code = f"import sys; sys.modules['pydantic_ai'] = None; import fsm.integrations.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: " in done.stderr
    assert "pip install 'agent-fsm[pydantic-ai]'" in done.stderr
