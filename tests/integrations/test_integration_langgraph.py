"""LangGraph graphs and LangChain runnables on the engine: what they do is in the journal, in the table's states."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, StateGraph

from fsm.engine import Engine, current_run
from fsm.errors import ConfigurationError
from fsm.integrations.langgraph import (
    FsmCallbackHandler,
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
    usages,
)
from tests.support.langgraph_tools import (
    APPROVED,
    HI,
    LAST_TURN,
    TOOLS_TURN,
    Named,
    Words,
    call,
    done,
    quick,
    react,
)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tracker):
    """Nothing is traced anywhere, and every test has a tracker of its own in memory."""
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
        monkeypatch.setenv(name, "false")
    return tracker


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


def test_a_graph_that_turns_in_circles_runs_into_a_limit():
    """LangGraph's limit of steps ends the execution as a limit that was reached, with the graph's own error behind."""
    graph = react(*(call("quick") for _ in range(9)))
    outcome = perform(tracked(graph, config={"recursion_limit": 4}), HI)
    assert isinstance(outcome.error.__cause__, GraphRecursionError)
    assert (outcome.state, outcome.end["kind"]) == ("timed_out", "limit")


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

    class Mine(BaseCallbackHandler):
        def on_llm_end(self, response, **kwargs):
            seen.append("llm_end")

    graph = react(done())
    config = {"callbacks": [Mine()], "configurable": {"thread_id": "mine"}}
    perform(tracked(graph, config=lambda run: config), HI)
    assert seen == ["llm_end"]
    assert graph.get_state({"configurable": {"thread_id": "mine"}}).values["messages"]
    assert config["callbacks"][1:] == []


def test_the_journal_is_written_before_the_users_handlers_are_called():
    """A handler that looks at the journal finds the call there, wherever it stands in the list."""
    seen = []

    class Looking(AsyncCallbackHandler):
        async def on_chat_model_start(self, serialized, messages, **kwargs):
            seen.append(current_run().state)

    perform(tracked(react(done()), config={"callbacks": [Looking()]}), HI)
    assert seen == ["calling_model"]


def test_the_runs_thread_is_the_graphs():
    """Without more words checkpoints are the user's and the thread's own; a function may say otherwise."""
    graph = react(done("one"), done("two"))
    perform(tracked(graph), HI)
    perform_again = tracked(graph, thread_id=lambda run: run.thread_id)
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


# --- ends and streams ------------------------------------------------------------------------------------------


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
    """LangGraph makes an error of a cancellation that a node raises by itself; here it stays one."""
    raised = []

    async def node(state):
        run = current_run()
        get_tracker().fire(run.id, "cancel")
        await asyncio.sleep(0.1)
        await run.progress("too late")

    graph = StateGraph(Words)
    graph.add_node("node", node)
    graph.add_edge(START, "node")

    async def agent(run):
        inner = asyncio.ensure_future(tracked(graph.compile())(run, {}))
        try:
            await asyncio.shield(inner)
        except asyncio.CancelledError:
            raised.extend(await asyncio.gather(inner, return_exceptions=True))
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
