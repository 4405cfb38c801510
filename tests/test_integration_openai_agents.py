"""Agents of the OpenAI Agents SDK on the engine: what they do is in the journal, in the states of the table."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    OpenAIChatCompletionsModel,
    OutputGuardrailTripwireTriggered,
    RunConfig,
    RunHooks,
    Runner,
    SQLiteSession,
    Usage,
    UserError,
    function_tool,
    input_guardrail,
    output_guardrail,
    set_trace_processors,
    set_tracing_disabled,
)
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from openai import AsyncOpenAI

from fsm.engine import Engine
from fsm.errors import ConfigurationError
from fsm.integrations.common import TooManyQuestions
from fsm.integrations.openai_agents import FsmRunHooks, reported, tracked
from fsm.integrations.openai_hooks import _model_name
from fsm.process import get_tracker
from tests.framework_tools import (
    ADA,
    journal,
    notes,
    on_loop,
    payloads,
    perform,
    states,
    tools,
    until,
    usages,
)

TOOLS_TURN = "calling_model thinking running_tools processing_results"
LAST_TURN = "calling_model thinking processing_results completing completed"
APPROVED = {"verdict": "approved"}


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


async def ignore(event):
    """See a stream."""


streamed = pytest.mark.parametrize("on_event", [None, ignore], ids=["whole", "streamed"])


@function_tool
async def slow(x: int) -> str:
    """Take a while."""
    await asyncio.sleep(0.05)
    return f"slow {x}"


@function_tool
async def quick(x: int) -> str:
    """Take less."""
    await asyncio.sleep(0.01)
    return f"quick {x}"


async def by_zero(x: int) -> str:
    """Break."""
    await asyncio.sleep(0.01)
    raise ZeroDivisionError(f"{x} by zero")


def told(context, error):
    return f"It broke: {error}"


broken = function_tool(by_zero, name_override="broken")
custom = function_tool(by_zero, name_override="custom", failure_error_function=told)
reporting = function_tool(by_zero, name_override="reporting", failure_error_function=reported(told))
raising = function_tool(by_zero, name_override="raising", failure_error_function=None)


@function_tool(timeout=1)
async def endless(x: int) -> str:
    """Take too long."""
    await asyncio.sleep(100)
    return "never"


@function_tool(needs_approval=True)
async def refund(x: int) -> str:
    """Ask first."""
    return f"refunded {x}"


def call(*names):
    """A model's answer that calls tools."""
    return [function_call(name, {"x": 1}, call_id=f"c-{name}") for name in names]


def done(text="done"):
    return [assistant_message(text)]


def an_agent(*turns, name="helper", **options):
    options.setdefault("tools", [slow, quick, broken, custom, reporting, raising, endless, refund])
    return Agent(name, model=ScriptedModel(turns), **options)


# --- what is seen -----------------------------------------------------------------------------------------------


@streamed
def test_an_agent_is_tracked_from_end_to_end(either, on_event):
    """A model, a tool, and the model again: on every store the journal says so, and the output is the result."""
    last = ModelStep(done(), usage=Usage(requests=1, input_tokens=3, output_tokens=2, total_tokens=5))
    outcome = perform(tracked(an_agent(call("quick"), last), on_event=on_event), "hi")
    assert outcome.value() == "done"
    assert states() == f"starting {TOOLS_TURN} {LAST_TURN}"
    assert [one["name"] for one in payloads("call_model")] == ["ScriptedModel"] * 2
    assert payloads("open_tool")[0]["arguments"] == {"x": 1}
    assert tools() == [("quick", True, "quick 1")]
    assert [(one["input_tokens"], one["output_tokens"]) for one in usages()] == [(0, 0), (3, 2)]
    assert notes() == ["agent helper"]
    assert either.get(outcome.execution_id).agent == "helper"


@streamed
def test_parallel_tools_are_open_at_the_same_time(on_event):
    """Both tools are open before the first of them closes, and each closes with its own result."""
    perform(tracked(an_agent(call("slow", "quick"), done()), on_event=on_event), "hi")
    kinds = [one.event for one in journal() if one.event in {"open_tool", "close_tool"}]
    assert kinds == ["open_tool", "open_tool", "close_tool", "close_tool"]
    assert tools() == [("quick", True, "quick 1"), ("slow", True, "slow 1")]


@streamed
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("broken", "ZeroDivisionError: 1 by zero"),
        ("reporting", "ZeroDivisionError: 1 by zero"),
        ("endless", "ToolAnsweredError: Tool 'endless' timed out after 1 seconds."),
    ],
)
def test_a_tools_error_that_becomes_text_is_an_error_all_the_same(name, error, on_event):
    """The SDK tells the model, and the run goes on; the journal has what the tool raised."""
    outcome = perform(tracked(an_agent(call(name), done()), on_event=on_event), "hi")
    assert outcome.value() == "done"
    assert tools() == [(name, False, error)]
    assert states() == f"starting {TOOLS_TURN} {LAST_TURN}"


def test_the_trace_tells_of_errors_that_nobody_else_shows(traced):
    """A tool whose own function makes text of its error is seen through while the SDK traces."""
    perform(tracked(an_agent(call("custom"), done())), "hi")
    ((name, ok, error),) = tools()
    assert (name, ok) == ("custom", False)
    assert "1 by zero" in error


def test_without_a_trace_such_a_text_is_an_answer():
    """This is what `reported` is for."""
    perform(tracked(an_agent(call("custom"), done())), "hi")
    assert tools() == [("custom", True, "It broke: 1 by zero")]


def test_an_agent_as_a_tool_that_fails_is_an_error():
    """The SDK hands its own function to such tools, as if it were the user's; its text gives it away."""
    inner = an_agent(ConnectionError("no answer"), name="inner")
    outer = an_agent(call("inner"), done(), tools=[inner.as_tool("inner", "Ask.")])
    outer.model = ScriptedModel([[function_call("inner", {"input": "?"}, call_id="1")], done()])
    perform(tracked(outer), "hi")
    ((name, ok, error),) = tools()
    assert (name, ok) == ("inner", False)
    assert "ToolAnsweredError" in error


@streamed
def test_a_tool_that_raises_ends_the_run(on_event):
    """The tool closes with what it raised; its sibling with what the SDK says about it."""
    outcome = perform(tracked(an_agent(call("raising", "slow")), on_event=on_event), "hi")
    assert isinstance(outcome.error, UserError)
    assert sorted(tools()) == [
        ("raising", False, "ZeroDivisionError: 1 by zero"),
        ("slow", False, "UserError: Error running tool raising: 1 by zero"),
    ]
    assert states() == f"starting {TOOLS_TURN} failed"


@streamed
def test_a_models_error_is_that_models(on_event):
    """Hooks do not see it: the call is closed with what came out of the runner."""
    outcome = perform(tracked(an_agent(ConnectionError("no answer")), on_event=on_event), "hi")
    assert isinstance(outcome.error, ConnectionError)
    assert states() == "starting calling_model thinking failed"
    assert "ConnectionError: no answer" in payloads("think")[0]["note"]


@streamed
def test_a_handoff_is_noted(on_event):
    """The journal says who handed over to whom, and whose turn begins."""
    second = an_agent(done(), name="second")
    first = an_agent([function_call("transfer_to_second", {}, call_id="1")], name="first", handoffs=[second])
    assert perform(tracked(first, on_event=on_event), "hi").value() == "done"
    assert notes() == ["agent first", "handoff from first to second", "agent second"]


def test_content_stays_out_of_the_journal_if_it_shall():
    """Names and errors are left, and arguments and results are not."""
    perform(tracked(an_agent(call("quick"), done()), content=False), "hi")
    assert "arguments" not in payloads("open_tool")[0]
    assert tools() == [("quick", True, None)]


@pytest.mark.parametrize(
    ("model", "config", "name"),
    [
        ("gpt-5", RunConfig(), "openai:gpt-5"),
        ("gpt-5", RunConfig(model="gpt-5-mini"), "openai:gpt-5-mini"),
        ("litellm/anthropic/claude", RunConfig(), "litellm:anthropic/claude"),
        (ScriptedModel(), RunConfig(), "ScriptedModel"),
        (
            OpenAIChatCompletionsModel("gpt-5", AsyncOpenAI(api_key="none")),
            RunConfig(),
            "openai:gpt-5",
        ),
    ],
)
def test_models_have_names(model, config, name):
    """Provider and model where both are known, else what is known."""
    assert _model_name(Agent("a", model=model), config) == name


# --- what the user brings ---------------------------------------------------------------------------------------


class Mine(RunHooks):
    """Hooks that write down what they hear."""

    def __init__(self):
        self.heard = []

    async def on_llm_start(self, context, agent, system_prompt, input_items):
        self.heard.append("llm_start")

    async def on_llm_end(self, context, agent, response):
        self.heard.append("llm_end")

    async def on_tool_start(self, context, agent, tool):
        self.heard.append("tool_start")

    async def on_tool_end(self, context, agent, tool, result):
        self.heard.append(f"tool_end {result}")

    async def on_agent_start(self, context, agent):
        self.heard.append("agent_start")

    async def on_agent_end(self, context, agent, output):
        self.heard.append(f"agent_end {output}")

    async def on_handoff(self, context, from_agent, to_agent):
        self.heard.append(f"handoff {to_agent.name}")


def test_hooks_of_the_user_keep_working():
    """Each of them is called as without the tracking."""
    mine = Mine()
    second = an_agent(done(), name="second")
    first = an_agent(call("quick"), [function_call("transfer_to_second", {}, call_id="1")], handoffs=[second])
    perform(tracked(first, hooks=mine), "hi")
    assert mine.heard == [
        "agent_start", "llm_start", "llm_end", "tool_start", "tool_end quick 1",
        "llm_start", "llm_end", "handoff second", "agent_start", "llm_start", "llm_end", "agent_end done",
    ]  # fmt: skip


def test_the_users_formatter_still_formats():
    """What the model reads of an error is the user's text; the journal has the error."""
    seen = []

    async def formatter(args):
        seen.append(args.error)
        return "Sorry."

    agent = an_agent(call("broken"), done())
    config = RunConfig(tool_error_formatter=formatter)
    perform(tracked(agent, run_config=config), "hi")
    assert [type(one) for one in seen] == [ZeroDivisionError]
    assert agent.model.last_call.input[-1]["output"] == "Sorry."
    assert tools() == [("broken", False, "ZeroDivisionError: 1 by zero")]
    assert config.tool_error_formatter is formatter


def test_context_and_session_are_handed_on():
    """A context comes with the call, or with the options, also after an approval; a session is made of the run."""
    contexts = []

    @function_tool(needs_approval=True)
    async def look(context_wrapper: int) -> str:
        """Look."""
        return "seen"

    class Looking(Mine):
        async def on_llm_start(self, context, agent, system_prompt, input_items):
            contexts.append(context.context)

    for given, options in (("mine",), {}), ((), {"context": "mine"}):
        sessions = []

        def session(run, sessions=sessions):
            sessions.append(SQLiteSession(run.thread_id))
            return sessions[-1]

        agent = tracked(an_agent(call("refund"), done()), hooks=Looking(), session=session, **options)
        assert perform(agent, "hi", *given, answers=[APPROVED], threads=True).value() == "done"
        assert len(asyncio.run(sessions[0].get_items())) == 4
        sessions[0].close()
    assert contexts == ["mine"] * 4


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
def test_too_many_turns_fail_with_the_sdks_own_error(on_event):
    """MaxTurnsExceeded is the execution's error type."""
    agent = an_agent(call("quick"), call("quick"))
    outcome = perform(tracked(agent, max_turns=1, on_event=on_event), "hi")
    assert isinstance(outcome.error, MaxTurnsExceeded)
    assert payloads("fail")[0]["error_type"] == "MaxTurnsExceeded"


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


def test_a_sync_agent_runs_the_sync_runner_in_its_thread():
    """The hooks speak to the event loop on which the run lives, whichever loop the SDK made for itself."""

    def agent(run):
        hooks = FsmRunHooks(run)
        result = Runner.run_sync(
            an_agent(call("quick"), done()), "hi", hooks=hooks, run_config=hooks.run_config
        )
        return result.final_output

    assert perform(agent, threads=True).value() == "done"
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
