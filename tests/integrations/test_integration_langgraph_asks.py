"""Graphs that ask: interrupts, breakpoints, and attempts that go on where another one stopped."""

from __future__ import annotations

import asyncio

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Interrupt, interrupt

from fsm.engine import Answer, Engine
from fsm.errors import ConfigurationError
from fsm.integrations.common import TooManyQuestions
from fsm.integrations.langgraph import (
    NotApproved,
    default_question,
    default_resume,
    tracked,
)
from fsm.tracker.process import get_tracker
from tests.support.framework_tools import (
    ADA,
    journal,
    notes,
    on_loop,
    payloads,
    perform,
    states,
    tools,
    until,
)
from tests.support.langgraph_tools import (
    APPROVED,
    HI,
    LAST_TURN,
    TOOLS_TURN,
    Words,
    call,
    done,
    questions,
    react,
)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tracker):
    """Nothing is traced anywhere, and every test has a tracker of its own in memory."""
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
        monkeypatch.setenv(name, "false")
    return tracker


# --- interrupts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (APPROVED, True),
        ({"verdict": "refused", "text": "too much"}, False),
        ({"verdict": "text", "text": "half of it"}, "half of it"),
    ],
)
def test_an_interrupt_is_a_question(either, answer, value):
    """The run waits for a person, and what was answered is what `interrupt` returns."""
    outcome = perform(tracked(questions(first={"question": "Sure?", "eur": 12})), {}, answers=[answer])
    assert outcome.value() == {"first": value}
    assert states() == "starting thinking awaiting_input thinking processing_results completing completed"
    (asked,) = payloads("await_input")
    assert asked["question"] == "Sure?"
    assert asked["data"]["value"] == {"question": "Sure?", "eur": 12}
    assert notes() == ["node ask_first", "graph interrupted", "graph resumed", "node ask_first"]


def test_an_interrupt_in_a_tool_is_no_error_of_the_tool():
    """The tool that asks is left and called again; its sibling is given up, closed, and called again."""
    outcome = perform(tracked(react(call("refund", "slow"), done())), HI, answers=[APPROVED])
    assert outcome.completed
    assert tools() == [
        ("refund", True, {"left_by": "GraphInterrupt"}),
        ("slow", True, {"left_by": "GraphInterrupt"}),
        ("refund", True, "refund: True"),
        ("slow", True, "slow 1"),
    ]
    assert states() == (
        f"starting {TOOLS_TURN} awaiting_input thinking running_tools processing_results {LAST_TURN}"
    )


def test_what_an_interrupt_left_behind_says_nothing_more():
    """A tool that was given up goes on in the background and calls models; the journal has those of its next call."""

    async def main():
        async with Engine() as engine:
            graph = react(call("refund", "consult"), done())
            handle = await engine.submit(tracked(graph), HI, **ADA)
            await until(lambda: handle.state == "awaiting_input")
            before = len(journal())
            await asyncio.sleep(60)
            assert len(journal()) == before
            get_tracker().fire(handle.id, "receive_input", **APPROVED)
            return await handle.result()

    assert on_loop(main)["messages"][-1].content == "done"
    asked = next(at for at, one in enumerate(journal()) if one.event == "await_input")
    assert [one.event for one in journal() if one.target == "awaiting_input"] == ["await_input"]
    calls = [one.payload["name"] for one in journal()[asked:] if one.event == "call_model"]
    assert calls == ["slow:m-1", "slow:m-1", "named:m-1"]
    # A call beside another one is no phase of its own, but a line with the model's name.
    assert [one for one in journal()[asked:] if "model" in (one.payload.get("data") or {})] == []
    assert states().endswith(f"running_tools processing_results {LAST_TURN}")


def test_several_interrupts_at_once_are_asked_one_by_one():
    """Each answer goes to its own interrupt."""
    answers = [{"verdict": "text", "text": "one"}, APPROVED]
    outcome = perform(tracked(questions(first="A?", second="B?")), {}, answers=answers)
    asked = [one["question"] for one in payloads("await_input")]
    assert sorted(asked) == ["A?", "B?"]
    values = {"A?": "first", "B?": "second"}
    assert outcome.value() == {values[asked[0]]: "one", values[asked[1]]: True}


def test_a_graph_may_ask_again_but_not_for_ever():
    """The limit on questions ends the attempt with an error that names it."""

    async def nag(state):
        while True:
            interrupt("More?")

    graph = StateGraph(Words)
    graph.add_node("nag", nag)
    graph.add_edge(START, "nag")
    agent = tracked(graph.compile(checkpointer=InMemorySaver()), max_questions=3)
    outcome = perform(agent, {}, answers=[APPROVED] * 3)
    assert isinstance(outcome.error, TooManyQuestions)
    assert outcome.error.limit == 3
    assert len(payloads("await_input")) == 3


def test_an_answer_that_never_comes_times_out(clock):
    """The question's own limit ends the execution; the graph is not resumed."""

    async def main():
        async with Engine() as engine:
            handle = await engine.submit(tracked(questions(first="Sure?"), expires_s=60), {}, **ADA)
            await until(lambda: handle.state == "awaiting_input")
            clock.advance(61)
            return await handle.outcome()

    outcome = on_loop(main)
    assert outcome.state == "timed_out"
    assert outcome.end["kind"] == "input"
    assert states() == "starting thinking awaiting_input timed_out"
    assert "graph resumed" not in notes()


def test_the_shape_of_question_and_answer_is_the_users():
    """`question` and `resume` replace the defaults."""
    agent = tracked(
        questions(first={"eur": 12}),
        question=lambda one: f"Pay {one.value['eur']}?",
        resume=lambda answer, one: {"by": answer.by, "eur": one.value["eur"]},
    )
    assert perform(agent, {}, answers=[APPROVED]).value() == {"first": {"by": "bob", "eur": 12}}
    assert payloads("await_input")[0]["question"] == "Pay 12?"


@pytest.mark.parametrize(
    ("value", "question"),
    [
        ("Sure?", "Sure?"),
        ({"message": "Sure?"}, "Sure?"),
        ({"eur": 12}, '{"eur": 12}'),
        (["a", 1], '["a", 1]'),
        (
            {"action_requests": [{"name": "pay", "args": {"eur": 1}}, {"description": "Go?"}]},
            "pay({'eur': 1})\nGo?",
        ),
    ],
)
def test_default_questions(value, question):
    """Whatever a graph hands to `interrupt`, a person gets a text."""
    assert default_question(Interrupt(value)) == question


@pytest.mark.parametrize(
    ("answer", "decisions"),
    [
        (Answer("approved", None, None), [{"type": "approve"}] * 2),
        (Answer("refused", None, None), [{"type": "reject"}] * 2),
        (Answer("text", "cheaper", None), [{"type": "reject", "message": "cheaper"}] * 2),
    ],
)
def test_the_human_in_the_loop_middleware_gets_its_decisions(answer, decisions):
    """What LangChain's middleware asks for is answered in its own words, one decision for each action."""
    asked = Interrupt({"action_requests": [{"name": "a"}, {"name": "b"}], "review_configs": []})
    assert default_resume(answer, asked) == {"decisions": decisions}


def test_a_graph_without_a_checkpointer_cannot_ask():
    """The error says what is missing, before anybody is asked in vain."""
    graph = StateGraph(Words)

    async def ask(state):
        return {"first": interrupt("Sure?")}

    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    outcome = perform(tracked(graph.compile()), {})
    assert isinstance(outcome.error, ConfigurationError)
    assert "checkpointer" in str(outcome.error)
    assert payloads("await_input") == []


def test_a_breakpoint_needs_an_approval():
    """A graph that stops before a node goes on if a person approves, and its state is then the whole result."""
    graph = react(call("quick"), done(), interrupt_before=["tools"])
    assert perform(tracked(graph), HI, answers=[APPROVED]).value()["messages"][-1].content == "done"
    assert [one["question"] for one in payloads("await_input")] == ["Go on with tools?"]


def test_a_breakpoint_that_is_refused_is_no_success():
    """A graph that stopped half way does not look completed."""
    graph = react(call("quick"), interrupt_before=["tools"])
    outcome = perform(tracked(graph), HI, answers=[{"verdict": "refused", "text": "no tools"}])
    assert isinstance(outcome.error, NotApproved)
    assert "no tools" in str(outcome.error)
    assert tools() == []


# --- attempts --------------------------------------------------------------------------------------------------


def test_the_next_attempt_goes_on_at_the_checkpoint():
    """Nodes that are done are not run again, and the input is not given twice."""
    graph = react(call("quick"), ConnectionError("gone"), done())
    outcome = perform(tracked(graph), HI, retry={"attempts_max": 2})
    assert outcome.attempts == 2
    assert [type(one).__name__ for one in outcome.value()["messages"]] == [
        "HumanMessage",
        "AIMessage",
        "ToolMessage",
        "AIMessage",
    ]
    assert len(payloads("open_tool")) == 1


def test_the_next_attempt_passes_no_breakpoint_unasked():
    """Where an attempt was lost at a breakpoint, the next one asks before it goes on."""
    graph = react(call("quick"), done(), interrupt_before=["tools"])
    config = {"configurable": {"thread_id": "ada/t-1"}}

    async def once_lost(run, given):
        if run.attempt == 1:
            await graph.ainvoke(given, {**config, "metadata": {"fsm_execution": run.id}})
            raise ConnectionError("gone")
        return await tracked(graph)(run, given)

    outcome = perform(once_lost, HI, answers=[APPROVED], retry={"attempts_max": 2})
    assert outcome.completed
    assert len(payloads("await_input")) == 1


def test_an_answer_finds_its_question_in_another_process():
    """Two questions of one text: the answer to the second, given while nobody was there, is not the first one's."""

    async def first(state):
        return {"first": interrupt("Sure?")}

    async def second(state):
        return {"second": interrupt("Sure?")}

    graph = StateGraph(Words)
    graph.add_sequence([first, second])
    graph.add_edge(START, "first")
    agent = tracked(graph.compile(checkpointer=InMemorySaver()))

    async def main():
        async with Engine() as gone:
            careful = gone.agent(agent, name="careful", resumable=True)
            handle = await careful.submit({}, **ADA)
            await until(lambda: handle.state == "awaiting_input")
            get_tracker().fire(handle.id, "receive_input", **APPROVED)
            await until(lambda: len(payloads("await_input")) == 2)
        get_tracker().fire(handle.id, "receive_input", verdict="refused")
        async with Engine() as engine:
            engine.agent(agent, name="careful", resumable=True)
            (adopted,) = await engine.adopt()
            return await adopted.result()

    assert on_loop(main) == {"first": True, "second": False}
    assert len(payloads("await_input")) == 2
    assert notes().count("node first") == 2


def test_another_executions_checkpoint_is_not_taken_over():
    """A second attempt that finds the thread at somebody else's checkpoint begins with its input."""
    graph = questions(first="Sure?")

    async def once_lost(run, given):
        if run.attempt == 1:
            await graph.ainvoke(
                given, {"configurable": {"thread_id": "t-1"}, "metadata": {"fsm_execution": "other"}}
            )
            raise ConnectionError("gone")
        return await tracked(graph)(run, given)

    outcome = perform(once_lost, {"second": 2}, answers=[APPROVED], retry={"attempts_max": 2})
    assert outcome.value() == {"first": True, "second": 2}
    assert notes().count("node ask_first") == 2
