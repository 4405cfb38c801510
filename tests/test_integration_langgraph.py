"""LangGraph graphs and LangChain runnables on the engine: what they do is in the journal, in the table's states."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from typing import TypedDict

import pytest
from langchain_core.language_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Interrupt, interrupt

from fsm.engine import Answer, Engine, current_run
from fsm.errors import ConfigurationError
from fsm.integrations.common import TooManyQuestions
from fsm.integrations.langgraph import (
    FsmCallbackHandler,
    NotApproved,
    default_question,
    default_resume,
    tracked,
)
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

HI = {"messages": [("user", "hi")]}
TOOLS_TURN = "calling_model thinking running_tools processing_results"
LAST_TURN = "calling_model thinking processing_results completing completed"
APPROVED = {"verdict": "approved"}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tracker):
    """Nothing is traced anywhere, and every test has a tracker of its own in memory."""
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
        monkeypatch.setenv(name, "false")
    return tracker


@tool
async def slow(x: int) -> str:
    """Take a while."""
    await asyncio.sleep(0.05)
    return f"slow {x}"


@tool
async def quick(x: int) -> str:
    """Take less."""
    await asyncio.sleep(0.01)
    return f"quick {x}"


@tool
async def broken(x: int) -> str:
    """Break."""
    await asyncio.sleep(0.01)
    raise ZeroDivisionError(f"{x} by zero")


@tool
async def refund(x: int) -> str:
    """Ask first."""
    return f"refund: {interrupt(f'Refund {x} EUR?')}"


def call(*names):
    """A model's answer that calls tools."""
    return AIMessage("", tool_calls=[{"name": name, "args": {"x": 1}, "id": name} for name in names])


def done(text="done"):
    return AIMessage(text, usage_metadata={"input_tokens": 3, "output_tokens": 2, "total_tokens": 5})


class Named(GenericFakeChatModel):
    """A fake model that says which one it is, and needs no thread; an exception among its messages is raised."""

    model: str = "m-1"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        turn = next(self.messages)
        if isinstance(turn, BaseException):
            raise turn
        return ChatResult(generations=[ChatGeneration(message=turn)])

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        return self._generate(messages, stop, None, **kwargs)

    async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
        turn = self._generate(messages).generations[0].message
        calls = [
            {"name": one["name"], "args": json.dumps(one["args"]), "id": one["id"], "index": at}
            for at, one in enumerate(turn.tool_calls)
        ]
        for at, word in enumerate([*turn.text, ""]):
            chunk = AIMessageChunk(word, tool_call_chunks=calls if at == 0 else [])
            yield ChatGenerationChunk(message=chunk)


def react(*messages, handle_errors=False, sync=False, **compile_options):
    """A graph of a model and its tools, as `create_agent` builds it."""
    model = Named(messages=iter(messages))

    async def amodel(state):
        return {"messages": [await model.ainvoke(state["messages"])]}

    def smodel(state):
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", smodel if sync else amodel)
    node = ToolNode([slow, quick, broken, refund], handle_tool_errors=handle_errors)
    graph.add_node("tools", node)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile(checkpointer=InMemorySaver(), **compile_options)


class Words(TypedDict, total=False):
    first: object
    second: object


def questions(**nodes):
    """A graph whose nodes ask what they are given, all at once, and keep the answers."""
    graph = StateGraph(Words)
    for name, value in nodes.items():

        async def node(state, name=name, value=value):
            return {name: interrupt(value)}

        graph.add_node(f"ask_{name}", node)
        graph.add_edge(START, f"ask_{name}")
    return graph.compile(checkpointer=InMemorySaver())


# --- what is seen -----------------------------------------------------------------------------------------------


def test_a_graph_is_tracked_from_end_to_end(either):
    """A model, a tool, and the model again: on every store the journal says so, and the state is the result."""
    outcome = perform(tracked(react(call("quick"), done())), HI)
    assert outcome.value()["messages"][-1].content == "done"
    assert states() == f"starting {TOOLS_TURN} {LAST_TURN}"
    assert [one["name"] for one in payloads("call_model")] == ["named:m-1"] * 2
    assert payloads("open_tool")[0]["arguments"] == {"x": 1}
    assert tools() == [("quick", True, "quick 1")]
    assert usages() == [{"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}]
    assert notes() == ["node model", "node tools", "node model"]


def test_parallel_tools_are_open_at_the_same_time():
    """Both tools are open before the first of them closes, and each closes with its own result."""
    perform(tracked(react(call("slow", "quick"), done())), HI)
    kinds = [one.event for one in journal() if one.event in {"open_tool", "close_tool"}]
    assert kinds == ["open_tool", "open_tool", "close_tool", "close_tool"]
    assert tools() == [("quick", True, "quick 1"), ("slow", True, "slow 1")]
    assert states() == f"starting {TOOLS_TURN} {LAST_TURN}"


def test_a_tool_that_breaks_ends_the_run():
    """The tool closes with what it raised; its sibling, which the graph gives up, closes with the same error."""
    outcome = perform(tracked(react(call("broken", "slow"))), HI)
    assert isinstance(outcome.error, ZeroDivisionError)
    assert states() == f"starting {TOOLS_TURN} failed"
    assert tools() == [(name, False, "ZeroDivisionError: 1 by zero") for name in ("broken", "slow")]


def test_a_tools_error_that_the_model_is_told_is_an_error_all_the_same():
    """The graph goes on, and the journal has the error."""
    perform(tracked(react(call("broken"), done(), handle_errors=True)), HI)
    assert tools() == [("broken", False, "ZeroDivisionError: 1 by zero")]
    assert states() == f"starting {TOOLS_TURN} {LAST_TURN}"


def test_a_tool_that_answers_with_an_error_closes_with_it():
    """A tool that turns its exception into its answer does not look as if it had worked."""

    @tool
    async def polite() -> str:
        """Fail politely."""
        raise ToolException("not today")

    polite.handle_tool_error = True

    async def agent(run):
        config = {"callbacks": [FsmCallbackHandler(run)]}
        await polite.ainvoke({"type": "tool_call", "id": "1", "name": "polite", "args": {}}, config)

    perform(agent)
    assert tools() == [("polite", False, "ToolAnsweredError: not today")]


def test_a_models_error_fails_the_execution():
    """What the model raised is the error of its call and of the execution."""
    outcome = perform(tracked(react(ConnectionError("no answer"))), HI)
    assert isinstance(outcome.error, ConnectionError)
    assert states() == "starting calling_model thinking failed"
    assert "ConnectionError: no answer" in payloads("think")[0]["note"]


def test_a_graph_that_turns_in_circles_fails_with_the_graphs_own_error():
    """LangGraph's limit of steps ends the execution through the table."""
    graph = react(*(call("quick") for _ in range(9)))
    outcome = perform(tracked(graph, config={"recursion_limit": 4}), HI)
    assert isinstance(outcome.error, GraphRecursionError)
    assert get_tracker().get(outcome.execution_id).state == "failed"


def test_a_bare_runnable_is_tracked():
    """A chain in an agent function of one's own reports through the handler; text models are models too."""

    async def agent(run):
        config = {"callbacks": [FsmCallbackHandler(run)]}
        chain = ChatPromptTemplate.from_messages([("user", "{q}")]) | FakeListChatModel(responses=["a"])
        first = await chain.ainvoke({"q": "?"}, config)
        return first.content + await FakeListLLM(responses=["b"]).ainvoke("?", config)

    assert perform(agent).value() == "ab"
    assert (
        states()
        == "starting calling_model thinking calling_model thinking processing_results completing completed"
    )
    assert [one["name"] for one in payloads("call_model")] == ["FakeListChatModel", "FakeListLLM"]
    assert notes() == []


def test_tracked_takes_a_bare_runnable_too():
    """Without a graph there is nothing to resume, and the result is the runnable's."""
    assert perform(tracked(FakeListChatModel(responses=["a"])), "?").value().content == "a"


def test_content_stays_out_of_the_journal_if_it_shall():
    """Names and errors are left, and arguments and results are not."""
    perform(tracked(react(call("quick"), done()), content=False, nodes=False), HI)
    assert "arguments" not in payloads("open_tool")[0]
    assert tools() == [("quick", True, None)]
    assert notes() == []


def test_callbacks_and_config_of_the_user_keep_working():
    """The user's handler sees its events, and the user's thread is the graph's."""
    seen = []

    class Mine(FsmCallbackHandler.__mro__[2]):
        def on_llm_end(self, response, **kwargs):
            seen.append("llm_end")

    graph = react(done())
    config = {"callbacks": [Mine()], "configurable": {"thread_id": "mine"}}
    perform(tracked(graph, config=lambda run: config), HI)
    assert seen == ["llm_end"]
    assert graph.get_state({"configurable": {"thread_id": "mine"}}).values["messages"]
    assert config["callbacks"][1:] == []


def test_the_runs_thread_is_the_graphs():
    """Without more words the checkpoints are those of the run's own thread; a function may say otherwise."""
    graph = react(done("one"), done("two"))
    perform(tracked(graph), HI)
    perform_again = tracked(graph, thread_id=lambda run: f"{run.user_id}/{run.thread_id}")
    on_loop(lambda: Engine().run(perform_again, HI, **ADA))
    for thread in ("t-1", "ada/t-1"):
        assert len(graph.get_state({"configurable": {"thread_id": thread}}).values["messages"]) == 2


# --- threads ----------------------------------------------------------------------------------------------------


def test_sync_nodes_report_in_order():
    """A sync node runs in a thread; its model's call is committed there before the model answers."""
    perform(tracked(react(call("quick"), done(), sync=True)), HI, threads=True)
    assert states() == f"starting {TOOLS_TURN} {LAST_TURN}"


def test_a_sync_agent_invokes_in_its_thread():
    """An agent in a thread hands its own run to the handler and calls `invoke`."""

    def agent(run):
        assert threading.current_thread() is not threading.main_thread()
        config = {"callbacks": [FsmCallbackHandler(run)], "configurable": {"thread_id": "x"}}
        return quick_model().invoke("?", config).content

    assert perform(agent, threads=True).value() == "a"
    assert states() == f"starting {LAST_TURN}"


def quick_model():
    return FakeListChatModel(responses=["a"])


def test_a_sync_call_on_the_loop_itself_does_not_block_for_ever(caplog, monkeypatch):
    """The loop that commits is blocked: the events wait, in their order, and a warning says what to do."""
    monkeypatch.setattr(FsmCallbackHandler, "wait_s", 0.02)

    async def agent(run):
        handler = FsmCallbackHandler(run)
        for _ in range(2):
            quick_model().invoke("?", {"callbacks": [handler]})
        await quick_model().ainvoke("?", {"callbacks": [handler]})

    perform(agent, threads=True)
    turns = " ".join(["calling_model thinking"] * 3)
    assert states() == f"starting {turns} processing_results completing completed"
    assert [one.getMessage() for one in caplog.records if "ainvoke" in one.getMessage()]


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


def test_late_siblings_of_an_interrupt_say_nothing():
    """What a given-up tool still reports, while a person thinks or after that, is ignored."""

    async def main():
        async with Engine() as engine:
            handle = await engine.submit(tracked(react(call("refund", "slow"), done())), HI, **ADA)
            await until(lambda: handle.state == "awaiting_input")
            await asyncio.sleep(60)
            before = len(journal())
            await asyncio.sleep(60)
            assert len(journal()) == before
            get_tracker().fire(handle.id, "receive_input", **APPROVED)
            return await handle.result()

    assert on_loop(main)["messages"][-1].content == "done"
    rows = [one for one in journal() if one.target == "awaiting_input"]
    assert [one.event for one in rows] == ["await_input"]


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


# --- attempts, ends, streams ------------------------------------------------------------------------------------


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
    config = {"configurable": {"thread_id": "t-1"}}

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


def test_a_cancel_in_the_middle_leaves_nothing_open():
    """The graph's task is cancelled; what its tools and models report afterwards is ignored."""
    late = []

    class Stubborn(Named):
        async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                late.append("cancelled")
                await asyncio.sleep(0.5)
            return await super()._agenerate(messages, stop, run_manager, **kwargs)

    handlers = []

    async def agent(run):
        handlers.append(FsmCallbackHandler(run))
        model = Stubborn(messages=iter([done()]))
        await model.ainvoke("?", {"callbacks": handlers})
        await quick.ainvoke({"x": 1}, {"callbacks": handlers})

    async def main():
        async with Engine() as engine:
            handle = await engine.submit(agent, **ADA)
            await until(lambda: handle.state == "calling_model")
            await handle.cancel("enough", by="ada")
            outcome = await handle.outcome()
            await handlers[0].on_tool_end("late", run_id=object())
            await handlers[0].on_chat_model_start({}, [], run_id=object())
            return outcome

    outcome = on_loop(main)
    assert late == ["cancelled"]
    assert outcome.state == "cancelled"
    assert states() == "starting calling_model cancelling cancelled"


def test_a_node_that_hears_that_the_run_is_over_is_no_failure():
    """LangGraph makes an error of a cancellation that a node raises; here it stays one."""
    raised = []

    async def node(state):
        run = current_run()
        get_tracker().fire(run.id, "cancel")
        await asyncio.sleep(0)
        await run.progress("too late")

    graph = StateGraph(Words)
    graph.add_node("node", node)
    graph.add_edge(START, "node")

    async def agent(run):
        try:
            await tracked(graph.compile())(run, {})
        except BaseException as error:
            raised.append(error)
            raise

    assert perform(agent).state == "cancelled"
    assert [type(one) for one in raised] == [asyncio.CancelledError]


def test_a_stream_is_seen_and_the_result_is_the_same():
    """Chunks of the modes that were asked for come to `on_chunk`, interrupts are asked about, and the end is kept."""
    chunks = []

    async def keep(mode, chunk):
        chunks.append((mode, chunk))

    agent = tracked(
        react(call("refund"), done("well done")), on_chunk=keep, stream_mode=["messages", "updates"]
    )
    outcome = perform(agent, HI, answers=[APPROVED])
    assert outcome.value()["messages"][-1].content == "well done"
    assert {mode for mode, _ in chunks} == {"messages", "updates"}
    spoken = [
        one[0].content for mode, one in chunks if mode == "messages" and one[0].type == "AIMessageChunk"
    ]
    assert "".join(spoken) == "well done"
    assert len(spoken) > 1
    assert states() == (
        f"starting {TOOLS_TURN} awaiting_input thinking running_tools processing_results {LAST_TURN}"
    )


def test_an_error_in_the_stream_is_the_models_error():
    """A model that breaks off in the middle of its answer fails its call and the execution."""

    async def agent(run):
        model = FakeListChatModel(responses=["abc"], error_on_chunk_number=1)
        async for _ in model.astream("?", {"callbacks": [FsmCallbackHandler(run)]}):
            pass

    perform(agent)
    assert states() == "starting calling_model thinking failed"


def test_a_child_within_a_node_reports_to_itself_alone():
    """LangChain hands callbacks down; a child run's calls are in the child's journal, not in the parent's."""
    inner = react(done("inner"))

    async def node(state):
        state = await current_run().child(tracked(inner), HI)
        return {"first": state["messages"][-1].content}

    graph = StateGraph(Words)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    outcome = perform(tracked(graph.compile(checkpointer=InMemorySaver())), {})
    assert outcome.value() == {"first": "inner"}
    (child,) = (one for one in get_tracker().find() if one.id != outcome.execution_id)
    assert payloads("call_model", outcome.execution_id) == []
    assert len(payloads("call_model", child.id)) == 1


@pytest.mark.parametrize("options", [{"max_questions": 0}, {"on_chunk": print}])
def test_options_that_cannot_work_are_refused_at_once(options):
    """Nothing runs; the error says why."""
    with pytest.raises(ConfigurationError):
        tracked(quick_model(), **options)


def test_without_the_extra_the_error_names_it():
    """Whoever has no LangGraph is told what to install, and `import fsm` needs none of it."""
    code = (
        "import sys, fsm\n"
        "assert not {'langgraph', 'langchain_core', 'langsmith', 'agents', 'openai'} & set(sys.modules)\n"
        "sys.modules['langgraph'] = None\n"
        "try:\n    import fsm.integrations.langgraph\n"
        'except ImportError as error:\n    assert "agent-fsm[langgraph]" in str(error), error\n'
        "else:\n    raise SystemExit('imported')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
