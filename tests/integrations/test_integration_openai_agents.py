"""Agents of the OpenAI Agents SDK on the engine: what they do is in the journal, in the states of the table."""

from __future__ import annotations

import asyncio

import pytest
from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    RunConfig,
    RunHooks,
    SQLiteSession,
    Usage,
    UserError,
    function_tool,
    set_trace_processors,
    set_tracing_disabled,
)
from agents.testing import ModelStep, ScriptedModel, function_call
from openai import AsyncOpenAI

from fsm.integrations.openai_agents import tracked
from fsm.integrations.openai_hooks import _model_name
from tests.support.framework_tools import (
    journal,
    notes,
    payloads,
    perform,
    states,
    tools,
    usages,
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
