"""pydantic-ai agents on the engine: what they do is in the journal, in the states that the table has for it."""

from __future__ import annotations

import asyncio

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.capabilities import HandleDeferredToolCalls, ModelFallback
from pydantic_ai.exceptions import (
    ApprovalRequired,
    CallDeferred,
    ModelHTTPError,
    ModelRetry,
    ToolFailed,
    UnexpectedModelBehavior,
)
from pydantic_ai.messages import ToolReturnPart
from pydantic_ai.models.function import FunctionModel

from fsm.integrations.demo_agent import researcher
from fsm.integrations.pydantic_ai import Tracked, tracked
from tests.support.pydantic_ai_tools import (
    ONE_CALL,
    an_agent,
    answered,
    call,
    journal,
    notes,
    payloads,
    perform,
    said,
    scripted,
    states,
    the_only,
    tokens,
)


@pytest.fixture(autouse=True)
def fresh(tracker):
    """Every test has a tracker of its own in memory."""
    return tracker


def test_the_researcher_is_tracked_from_end_to_end(either):
    """Two tools at once, one of which asks for a retry, and three requests: on every store the journal says so."""
    assert (
        perform(tracked(researcher(0.01)), "Oslo?", for_real=True)
        == "Oslo lies in Norway and has 717710 people."
    )
    assert states(either) == (
        f"{ONE_CALL} calling_model thinking running_tools processing_results "
        "calling_model thinking processing_results completing completed"
    )
    assert [one["name"] for one in payloads("call_model", either)] == ["function:demo"] * 3
    assert [one["name"] for one in payloads("open_tool", either)] == ["gazetteer", "census", "census"]
    closed = {(one["call_id"], one.get("ok", True)) for one in payloads("close_tool", either)}
    assert sorted(ok for _, ok in closed) == [False, True, True]
    assert the_only(either).agent == "researcher"
    assert the_only(either).result == "Oslo lies in Norway and has 717710 people."


def test_parallel_tools_are_open_at_the_same_time():
    """Both tools of one answer are open before the first of them closes, each under its own id."""
    assert perform(tracked(an_agent(call("one", "two"), said()))) == "done"
    kinds = [one.event for one in journal() if one.event in {"open_tool", "close_tool"}]
    assert kinds == ["open_tool", "open_tool", "close_tool", "close_tool"]
    opened = {one["call_id"]: one["name"] for one in payloads("open_tool")}
    assert len(opened) == 2
    assert {(opened[one["call_id"]], one["result"]) for one in payloads("close_tool")} == {
        ("one", 1),
        ("two", 2),
    }
    assert states() == f"{ONE_CALL} calling_model thinking processing_results completing completed"


def test_tokens_stand_in_the_journal():
    """Each request leaves its tokens, beside the state in which it was made."""
    perform(tracked(an_agent(call("one"), said())))
    assert len(tokens()) == 2
    assert all(one["input_tokens"] > 0 and one["output_tokens"] > 0 for one in tokens())


@pytest.mark.parametrize("kind", [ModelRetry, ToolFailed])
def test_a_tool_that_sends_the_model_back_closes_with_its_reason(kind):
    """A retry or a failure that the model is told about closes the tool with ok=False, and the run goes on."""
    agent = an_agent(call("picky"), said())

    @agent.tool_plain
    async def picky() -> str:
        raise kind("say it nicely")

    assert perform(tracked(agent)) == "done"
    (closed,) = payloads("close_tool")
    assert closed["ok"] is False
    assert "say it nicely" in closed["error"]
    assert kind.__name__ in closed["error"]
    assert the_only().state == "completed"


def test_a_tool_that_breaks_ends_the_run():
    """An exception that pydantic-ai lets through closes its tool, and the one beside it, and fails the execution."""
    agent = an_agent(call("broken", "two"))

    @agent.tool_plain
    async def broken() -> str:
        await asyncio.sleep(1)
        raise ZeroDivisionError("by zero")

    assert isinstance(perform(tracked(agent)), ZeroDivisionError)
    assert the_only().state == "failed"
    assert "by zero" in the_only().error
    assert [one["ok"] for one in payloads("close_tool")] == [False, False]


def test_arguments_that_do_not_validate_open_no_tool():
    """The tool does not run; the journal says why, and which attempt it was."""
    assert perform(tracked(an_agent(call("two", of="many"), said()))) == "done"
    assert payloads("open_tool") == []
    (note,) = notes("arguments of two refused")
    assert note["error"].startswith("of: ")
    assert "valid integer" in note["error"]
    assert "many" not in note["error"]
    assert (note["tool"], note["attempt"], note["attempts_max"]) == ("two", 1, 2)


def test_an_output_that_is_refused_is_asked_for_again():
    """An output of the wrong type and one that a validator sends back are both in the journal."""
    agent = Agent(
        scripted(*(call("final_result", response=one) for one in ("many", 1, 2))), output_type=int, retries=3
    )

    @agent.output_validator
    async def even(output: int) -> int:
        if output % 2:
            raise ModelRetry("an even number")
        return output

    assert perform(tracked(agent)) == 2
    first, second = notes("output refused")
    assert "valid integer" in first["error"]
    assert second["error"] == "an even number"
    assert len(payloads("call_model")) == 3


def test_a_models_error_fails_the_execution():
    """What the provider said is the execution's error, and no request is left open."""
    error = ModelHTTPError(503, "scripted", {"error": "overloaded"})
    assert perform(tracked(an_agent(call("one"), error))) is error
    assert states() == f"{ONE_CALL} calling_model thinking failed"
    assert "503" in the_only().error


def test_a_model_that_never_answers_rightly_fails_the_execution():
    """Retries are counted by pydantic-ai; when they are used up the execution fails with its error."""
    agent = an_agent(*[call("two", of="many")] * 3)
    assert isinstance(perform(tracked(agent)), UnexpectedModelBehavior)
    assert the_only().state == "failed"
    assert len(notes("arguments of two refused")) == 2


def test_a_fallback_is_a_request_of_its_own():
    """Every attempt is journaled under the name of the model that was asked, not of the one that was wanted."""
    models = scripted(ModelHTTPError(503, "first"), name="first"), scripted(said(), name="second")
    agent = Agent(models[0], capabilities=[ModelFallback(*models)])
    assert perform(tracked(agent)) == "done"
    assert [one["name"] for one in payloads("call_model")] == ["function:first", "function:second"]


async def handled(agent, run):
    async def handler(ctx, events):
        async for _ in events:
            pass

    return await tracked(agent, event_stream_handler=handler)(run, "hi")


async def stream_text(agent, run):
    async with agent.run_stream("hi", capabilities=[Tracked()]) as stream:
        return [text async for text in stream.stream_text(debounce_by=None)][-1]


async def stream_events(agent, run):
    async with agent.run_stream_events("hi", capabilities=[Tracked()]) as events:
        return [event async for event in events][-1].result.output


async def iterated(agent, run):
    async with agent.iter("hi", capabilities=[Tracked()]) as nodes:
        async for _ in nodes:
            pass
        return nodes.result.output


STREAMS = [handled, stream_text, stream_events, iterated]


@pytest.mark.parametrize("way", STREAMS)
def test_every_way_to_run_an_agent_is_tracked_alike(way):
    """A streamed run goes through the same states as one that is not."""
    agent = an_agent(call("one", "two"), said())

    async def streaming(run, prompt):
        return await way(agent, run)

    assert perform(streaming) == "done"
    assert states() == f"{ONE_CALL} calling_model thinking processing_results completing completed"
    assert [one["output_tokens"] > 0 for one in tokens()] == [True, True]


@pytest.mark.parametrize("way", STREAMS[:3])
def test_a_stream_that_breaks_is_an_error(way):
    """An error in the middle of a stream ends the request, and reaches the caller."""
    error = ModelHTTPError(503, "scripted")

    async def stream(messages, info):
        yield "half an ans"
        raise error

    async def streaming(run, prompt):
        return await way(Agent(FunctionModel(stream_function=stream)), run)

    assert perform(streaming) is error
    assert states() == "starting calling_model thinking failed"
    assert len(tokens()) == 1


def test_a_streamed_output_is_refused_once_it_is_whole():
    """The pieces of an output that does not validate yet are no refusals."""
    agent = Agent(scripted(call("final_result", response=[1, 2, 300])), output_type=list[int])

    async def streaming(run, prompt):
        async with agent.run_stream("hi", capabilities=[Tracked()]) as stream:
            return [output async for output in stream.stream_output(debounce_by=None)][-1]

    assert perform(streaming) == [1, 2, 300]
    assert notes("output refused") == []


def test_a_stream_that_nobody_wants_to_the_end_is_closed():
    """A reader that leaves early leaves no request open."""
    agent = an_agent(said("a long answer"))

    async def reading(run, prompt):
        async with agent.run_stream("hi", capabilities=[Tracked()]) as stream:
            return await anext(aiter(stream.stream_text(debounce_by=None)))

    assert perform(reading) == "a"
    assert the_only().state == "completed"


def test_watching_does_not_make_a_run_stream():
    """A model that cannot stream is not asked to, though every request is seen."""

    async def answer(messages, info):
        return said()

    agent = Agent(FunctionModel(answer))
    assert perform(tracked(agent)) == "done"
    assert len(payloads("call_model")) == 1


def needs_approval():
    agent = Agent(scripted(call("refund", "delete", "whoami", eur=120), said()))
    ran = []

    @agent.tool_plain(requires_approval=True)
    async def refund(eur: int) -> str:
        ran.append("refund")
        return f"refunded {eur}"

    @agent.tool
    async def delete(ctx: RunContext, eur: int) -> str:
        if not ctx.tool_call_approved:
            raise ApprovalRequired(metadata={"reason": "Delete it all?"})
        ran.append("delete")
        return "deleted"

    @agent.tool_plain
    async def whoami(eur: int) -> str:
        raise CallDeferred(kind="question", metadata={"question": "Who are you?"})

    return agent, ran


YES, NO = {"verdict": "approved"}, {"verdict": "refused", "text": "not today"}
REFUND, DELETE, WHO = 'refund({"eur":120})?', "Delete it all?", "Who are you?"


def test_a_tool_that_was_approved_runs():
    """Each call that waits is a question to a person, one after the other; what was approved then runs."""
    agent, ran = needs_approval()
    name = {"verdict": "text", "text": "Ada"}
    result, asked = answered(tracked(agent), {REFUND: YES, DELETE: YES, WHO: name})
    assert result == "done"
    assert sorted(asked) == sorted([REFUND, DELETE, WHO])
    assert sorted(ran) == ["delete", "refund"]
    assert "awaiting_input thinking awaiting_input thinking awaiting_input thinking running_tools" in states()
    assert all(one.get("ok", True) for one in payloads("close_tool"))


def test_a_tool_that_was_refused_does_not_run():
    """The model is told what the person said, and the run goes on."""
    agent, ran = needs_approval()
    seen = []

    async def told(messages, info):
        parts = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
        seen.extend(part.content for part in parts)
        return said() if parts else call("refund", eur=120)

    result, _ = answered(tracked(agent, model=FunctionModel(told)), {REFUND: NO})
    assert result == "done"
    assert ran == []
    assert seen == ["not today"]
    assert payloads("open_tool") == []
    assert payloads("receive_input") == [{"by": "bob", **NO}]


def test_a_rule_answers_before_a_person_is_asked():
    """A handler of the agent's own goes first, and a person is asked about what it left."""
    agent, ran = needs_approval()
    rule = HandleDeferredToolCalls(lambda ctx, requests: requests.build_results(approve_all=True))
    result, asked = answered(tracked(agent, capabilities=[rule]), {WHO: NO})
    assert (result, asked, sorted(ran)) == ("done", [WHO], ["delete", "refund"])


def test_the_question_and_its_time_can_be_chosen():
    """The text of a question, and how long a person may think, are options."""
    agent, _ = needs_approval()
    made = tracked(agent, expires_s=60.0, question=lambda call, about: f"May it {call.tool_name}?")
    _, asked = answered(made, {f"May it {name}?": NO for name in ("refund", "delete", "whoami")})
    assert len(asked) == 3
    assert {one["expires_s"] for one in payloads("await_input")} == {60.0}
