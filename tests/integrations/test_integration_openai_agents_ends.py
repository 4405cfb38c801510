"""Agents of the OpenAI Agents SDK that ask, and how they end: approvals, limits, guardrails, cancels."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from agents import (
    GuardrailFunctionOutput,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    OutputGuardrailTripwireTriggered,
    RunConfig,
    Runner,
    function_tool,
    input_guardrail,
    output_guardrail,
    set_trace_processors,
    set_tracing_disabled,
)
from agents.testing import ScriptedModel, function_call

from fsm.engine import Engine, Recorder
from fsm.errors import ConfigurationError
from fsm.integrations.common import TooManyQuestions
from fsm.integrations.openai_agents import FsmRunHooks, tracked
from fsm.tracker.process import get_tracker
from tests.support.framework_tools import (
    ADA,
    notes,
    on_loop,
    payloads,
    perform,
    states,
    tools,
    until,
)
from tests.support.openai_agents_tools import APPROVED, LAST_TURN, TOOLS_TURN, an_agent, call, done, streamed


@pytest.fixture(autouse=True)
def offline(tracker):
    """Nothing is traced anywhere, and every test has a tracker of its own in memory."""
    set_tracing_disabled(True)
    yield tracker
    set_tracing_disabled(True)


@pytest.fixture
def traced():
    """Tracing is on, and goes nowhere."""
    set_trace_processors([])
    set_tracing_disabled(False)


# --- approvals --------------------------------------------------------------------------------------------------


@streamed
def test_an_approval_is_a_question(either, on_event):
    """The run waits for a person, and the tool runs after the yes; its sibling did not wait."""
    agent = an_agent(call("refund", "quick"), done())
    assert perform(tracked(agent, on_event=on_event), "hi", answers=[APPROVED]).value() == "done"
    assert payloads("await_input")[0]["question"] == 'refund({"x":1})'
    assert tools() == [("quick", True, "quick 1"), ("refund", True, "refunded 1")]
    assert states() == (
        f"starting {TOOLS_TURN} awaiting_input thinking running_tools processing_results {LAST_TURN}"
    )


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ({"verdict": "refused", "text": "too much"}, "too much"),
        ({"verdict": "text", "text": "half of it"}, "half of it"),
        ({"verdict": "refused"}, "Tool execution was not approved."),
    ],
)
def test_whatever_is_no_approval_does_not_run_the_tool(answer, read):
    """The model reads what the person said, or the SDK's own words."""
    agent = an_agent(call("refund"), done())
    assert perform(tracked(agent), "hi", answers=[answer]).value() == "done"
    assert tools() == []
    assert agent.model.last_call.input[-1]["output"] == read


def test_several_approvals_are_asked_one_by_one():
    """Each answer goes to its own call."""
    turn = [function_call("refund", {"x": x}, call_id=str(x)) for x in (1, 2)]
    agent = an_agent(turn, done())
    answers = [{"verdict": "refused"}, APPROVED]
    perform(tracked(agent, question=lambda item: f"Refund {item.call_id}?"), "hi", answers=answers)
    assert [one["question"] for one in payloads("await_input")] == ["Refund 1?", "Refund 2?"]
    assert tools() == [("refund", True, "refunded 2")]


def test_an_agent_within_a_tool_may_ask():
    """What waits for the person is no open tool; the inner tool's answer finds its way."""
    inner = an_agent(call("refund"), done("inner done"), name="inner")
    outer = an_agent(tools=[inner.as_tool("inner", "Ask.")])
    outer.model = ScriptedModel([[function_call("inner", {"input": "?"}, call_id="1")], done()])
    open_tools = []

    async def main():
        async with Engine() as engine:
            handle = await engine.submit(tracked(outer), "hi", **ADA)
            await until(lambda: handle.state == "awaiting_input")
            open_tools.extend(get_tracker().get(handle.id).open_tools)
            get_tracker().fire(handle.id, "receive_input", **APPROVED)
            return await handle.result()

    assert on_loop(main) == "done"
    assert open_tools == []
    assert outer.model.last_call.input[-1]["output"] == "inner done"


def test_an_agent_may_ask_again_but_not_for_ever():
    """The limit on questions ends the attempt with an error that names it."""
    turns = [[function_call("refund", {"x": x}, call_id=str(x))] for x in range(4)]
    outcome = perform(tracked(an_agent(*turns), max_questions=3), "hi", answers=[APPROVED] * 3)
    assert isinstance(outcome.error, TooManyQuestions)
    assert len(payloads("await_input")) == 3


def test_an_answer_that_never_comes_times_out(clock):
    """The question's own limit ends the execution, and the tool does not run."""

    async def main():
        async with Engine() as engine:
            agent = tracked(an_agent(call("refund"), done()), expires_s=60)
            handle = await engine.submit(agent, "hi", **ADA)
            await until(lambda: handle.state == "awaiting_input")
            clock.advance(61)
            return await handle.outcome()

    outcome = on_loop(main)
    assert (outcome.state, outcome.end["kind"]) == ("timed_out", "input")
    assert tools() == []


# --- ends -------------------------------------------------------------------------------------------------------


@streamed
def test_too_many_turns_run_into_a_limit(on_event):
    """MaxTurnsExceeded ends the execution as a limit that was reached, with the SDK's own error behind."""
    agent = an_agent(call("quick"), call("quick"))
    outcome = perform(tracked(agent, max_turns=1, on_event=on_event), "hi")
    assert isinstance(outcome.error.__cause__, MaxTurnsExceeded)
    assert payloads("time_out")[0]["kind"] == "limit"


@input_guardrail
async def no_input(context, agent, given):
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)


@output_guardrail
async def no_output(context, agent, output):
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)


@streamed
@pytest.mark.parametrize(
    ("guard", "kind"),
    [
        ({"input_guardrails": [no_input]}, InputGuardrailTripwireTriggered),
        ({"output_guardrails": [no_output]}, OutputGuardrailTripwireTriggered),
    ],
    ids=["input", "output"],
)
def test_a_tripwire_fails_the_execution_and_names_the_guardrail(guard, kind, on_event):
    """The error type says which kind it was, a note says which one."""
    outcome = perform(tracked(an_agent(done(), **guard), on_event=on_event), "hi")
    assert isinstance(outcome.error, kind)
    assert payloads("fail")[0]["error_type"] == kind.__name__
    assert notes()[-1] == f"guardrail {next(iter(guard.values()))[0].get_name()} tripped"


@streamed
def test_a_cancel_in_the_middle_leaves_nothing_open(on_event):
    """The runner stops with its execution, and what its hooks say afterwards is ignored."""
    late = []

    @function_tool
    async def stubborn(x: int) -> str:
        """Clean up slowly."""
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(0.5)
            late.append("tool")
        return "late"

    agent = an_agent(call("stubborn"), done(), tools=[stubborn])

    async def main():
        async with Engine() as engine:
            handle = await engine.submit(tracked(agent, on_event=on_event), "hi", **ADA)
            await until(lambda: handle.state == "running_tools")
            await handle.cancel("enough", by="ada")
            outcome = await handle.outcome()
            await asyncio.sleep(10)
            return outcome

    assert on_loop(main).state == "cancelled"
    assert late == ["tool"]
    assert states() == f"starting {TOOLS_TURN.removesuffix(' processing_results')} cancelling cancelled"
    assert len(agent.model.calls) == 1


def test_an_error_in_the_users_own_stream_handler_ends_the_runner():
    """The SDK's task does not go on behind the back of the one who failed."""

    async def fail(event):
        raise LookupError("cannot show it")

    agent = an_agent(call("quick"), done())
    outcome = perform(tracked(agent, on_event=fail), "hi")
    assert isinstance(outcome.error, LookupError)
    assert len(agent.model.calls) <= 1


def test_a_sync_agent_runs_the_sync_runner_in_its_thread(either, monkeypatch):
    """The hooks speak to the event loop on which the run lives, whichever loop the SDK made for itself."""
    loops = []
    note = Recorder.note

    async def spy(recorder, text, **data):
        loops.append(asyncio.get_running_loop() is recorder._inflight.connection.runtime.loop)
        await note(recorder, text, **data)

    monkeypatch.setattr(Recorder, "note", spy)

    def agent(run):
        hooks = FsmRunHooks(run)
        result = Runner.run_sync(
            an_agent(call("quick"), done()), "hi", hooks=hooks, run_config=hooks.run_config
        )
        # The SDK leaves the loop that it made to its thread.
        asyncio.get_event_loop_policy().get_event_loop().close()
        return result.final_output

    assert perform(agent, threads=True).value() == "done"
    assert loops == [True]
    assert states() == f"starting {TOOLS_TURN} {LAST_TURN}"


def test_options_that_cannot_work_are_refused_at_once():
    """Nothing runs; the error says why."""
    with pytest.raises(ConfigurationError):
        tracked(an_agent(), max_questions=0)


def test_without_the_extra_the_error_names_it():
    """Whoever has no SDK is told what to install, and `import fsm` needs none of it."""
    code = (
        "import sys, fsm\n"
        "assert not {'agents', 'openai'} & set(sys.modules)\n"
        "sys.modules['agents'] = None\n"
        "try:\n    import fsm.integrations.openai_agents\n"
        "except ImportError as error:\n    assert 'agent-fsm[openai-agents]' in str(error), error\n"
        "else:\n    raise SystemExit('imported')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_tracing_stays_the_users(traced):
    """The integration neither switches tracing off nor on, and names nothing in the user's config."""
    config = RunConfig(workflow_name="mine", tracing_disabled=False)

    async def agent(run):
        hooks = FsmRunHooks(run, run_config=config)
        return [hooks.run_config.workflow_name, hooks.run_config.tracing_disabled, hooks.run_config.group_id]

    assert perform(agent).value() == ["mine", False, None]
    assert get_tracker().find()[0].state == "completed"
