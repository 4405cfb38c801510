"""What the tests of the LangGraph integration run: tools, a fake model that needs no thread, and graphs."""

from __future__ import annotations

import asyncio
import json
from typing import TypedDict

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import interrupt

HI = {"messages": [("user", "hi")]}
TOOLS_TURN = "calling_model thinking running_tools processing_results"
LAST_TURN = "calling_model thinking processing_results completing completed"
APPROVED = {"verdict": "approved"}


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


@tool
async def consult(x: int) -> str:
    """Ask two models, one after the other."""
    for _ in range(2):
        await Slow(messages=iter([done()])).ainvoke("?")
    return "consulted"


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


class Slow(Named):
    """One that takes its time."""

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        await asyncio.sleep(0.05)
        return await super()._agenerate(messages, stop, run_manager, **kwargs)


def react(*messages, handle_errors=False, sync=False, **compile_options):
    """A graph of a model and its tools, as `create_agent` builds it."""
    model = Named(messages=iter(messages))

    async def amodel(state):
        return {"messages": [await model.ainvoke(state["messages"])]}

    def smodel(state):
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", smodel if sync else amodel)
    node = ToolNode([slow, quick, broken, refund, consult], handle_tool_errors=handle_errors)
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
