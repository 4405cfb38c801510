"""LangGraph graphs and LangChain runnables, tracked: every model call, tool call and interrupt is a transition.

    from fsm import Engine
    from fsm.integrations.langgraph import tracked

    state = await Engine().run(tracked(graph), {"messages": […]}, user_id="ada", thread_id="t-1")

The graph brings its own checkpointer; the run's user and thread together are the graph's `thread_id`, since a
checkpointer knows no users.

In an agent function of your own, hand the handler over:
`chain.ainvoke(…, config={"callbacks": [FsmCallbackHandler(run)]})`.

==============================================  ========================================================
in LangGraph                                    in the journal
==============================================  ========================================================
a chat model or LLM call, streamed or not       calling_model, with its usage; then thinking
a tool call, also several at once               open_tool, close_tool; with ok=False and the error if it raised
`interrupt(…)`, in a node or in a tool          awaiting_input; the answer resumes the graph
a breakpoint (`interrupt_before=…`)             awaiting_input; only an approval goes on
a node                                          progress with the node's name
GraphRecursionError                             time_out of the kind limit
==============================================  ========================================================

A later attempt of the same execution goes on where the checkpoint of the lost one stands: nodes that are done are not
run again, and a question that was open is asked again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from fsm.core.results import jsonable
from fsm.engine import Answer, Run
from fsm.errors import ConfigurationError, FsmError, LimitReached
from fsm.integrations.common import MAX_QUESTIONS, TooManyQuestions, cut

try:
    from langchain_core.callbacks import BaseCallbackManager
    from langchain_core.runnables import Runnable, RunnableConfig
    from langgraph.errors import GraphRecursionError, NodeCancelledError
    from langgraph.pregel.protocol import PregelProtocol
    from langgraph.types import Command, Interrupt

    from fsm.integrations.langchain import FsmCallbackHandler
except ImportError as error:  # pragma: no cover - a test runs this in a process without it
    raise ImportError(
        "fsm.integrations.langgraph needs langgraph 1.2 and langchain-core 1.7: pip install 'agent-fsm[langgraph]'"
    ) from error

__all__ = ["FsmCallbackHandler", "NotApproved", "default_question", "default_resume", "tracked"]

Question = Callable[[Interrupt[Any]], str]
Resume = Callable[[Answer, Interrupt[Any]], Any]
Chunk = Callable[[str, Any], Awaitable[None]]
Config = RunnableConfig | Callable[[Run], RunnableConfig]

_EXECUTION = "fsm_execution"
"""Stands in the metadata of every checkpoint, so that a later attempt knows which ones are its own."""
_INTERRUPT = "__interrupt__"


class NotApproved(FsmError):
    """A person did not approve that a graph goes on after a breakpoint, which knows no other answer."""


def default_question(interrupt: Interrupt[Any]) -> str:
    """Make the text that a person reads out of what the graph handed to `interrupt`.

    Args:
        interrupt: The interrupt. Its value is a text; or a dict with a `question`, `message`, `prompt` or
            `description`; or what LangChain's human-in-the-loop middleware sends; or anything else, shown as it is.

    Returns:
        The question.
    """
    value = interrupt.value
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        if requests := _action_requests(value):
            return "\n".join(
                str(one.get("description") or f"{one.get('name')}({one.get('args')})") for one in requests
            )
        for name in ("question", "message", "prompt", "description"):
            if isinstance(value.get(name), str):
                return cast("str", value[name])
    return json.dumps(jsonable(value), ensure_ascii=False)


def default_resume(answer: Answer, interrupt: Interrupt[Any]) -> Any:
    """Make the value that `interrupt(…)` returns in the graph out of a person's answer.

    Args:
        answer: The answer.
        interrupt: The interrupt that it is for.

    Returns:
        The text of a text; else ``True`` for approved, ``False`` for refused. For LangChain's human-in-the-loop
        middleware, the decisions that it expects: every action of the request is approved, or rejected with the
        text as its message.
    """
    if requests := _action_requests(interrupt.value):
        rejected: dict[str, Any] = {"type": "reject"} | ({"message": answer.text} if answer.text else {})
        return {"decisions": [{"type": "approve"} if answer.approved else rejected for _ in requests]}
    return answer.text if answer.verdict == "text" else answer.approved


def tracked(  # noqa: PLR0913 - options, each by its name
    graph: Runnable[Any, Any],
    *,
    config: Config | None = None,
    thread_id: Callable[[Run], str] | None = None,
    question: Question = default_question,
    resume: Resume = default_resume,
    expires_s: float | None = None,
    max_questions: int = MAX_QUESTIONS,
    on_chunk: Chunk | None = None,
    stream_mode: str | Sequence[str] = "updates",
    content: bool = True,
    nodes: bool = True,
    **options: Any,
) -> Callable[..., Awaitable[Any]]:
    """Make an agent function for the engine out of a compiled graph, or of any LangChain runnable.

    Args:
        graph: The graph. To be interrupted it needs a checkpointer; that is the caller's choice.
        config: More of the config (`recursion_limit`, `tags`, `callbacks` …), or a function that makes it of the run.
        thread_id: Makes the graph's `thread_id` of the run. The default is ``user_id/thread_id``, unless `config` says
            otherwise: a checkpointer knows no users, and two users' threads may bear one name. Where they cannot,
            ``lambda run: run.thread_id`` keeps the name that the rest of your program knows.
        question: Makes the text that a person reads of an interrupt.
        resume: Makes the value that the graph gets of the answer.
        expires_s: For how many seconds a person may think; ``None`` for the execution's own input timeout.
        max_questions: So often the graph may stop for a person, then `TooManyQuestions` ends the attempt.
        on_chunk: Called with (mode, chunk) for everything that the graph streams in `stream_mode`.
        stream_mode: What `on_chunk` sees: "updates", "messages", "values", "custom" …, or several of them.
        content: Whether arguments and results are journaled, or only names and errors.
        nodes: Whether nodes are journaled, each as one progress with its name.
        options: What else `ainvoke` and `astream` take: `context`, `durability` …

    Returns:
        `async def agent(run, input=None)`, whose result is the graph's final state.

    Raises:
        ConfigurationError: `on_chunk` was given for a runnable that is no graph, or a limit is below 1.
    """
    if on_chunk is not None and not isinstance(graph, PregelProtocol):
        raise ConfigurationError(
            "on_chunk needs a graph: a plain runnable streams no modes; call its astream yourself"
        )
    if max_questions < 1:
        raise ConfigurationError(f"max_questions is at least 1, not {max_questions}")
    asked = (stream_mode,) if isinstance(stream_mode, str) else tuple(stream_mode)

    async def run_graph(run: Run, input: Any = None) -> Any:  # noqa: A002 - LangChain's word for it
        watcher = partial(FsmCallbackHandler, run, content=content, nodes=nodes)
        call = _Call(graph, _config(run, config, thread_id), watcher, on_chunk, asked, options)
        people = _People(run, question, resume, expires_s)
        return await _until_done(call, people, input, max_questions)

    run_graph.__name__ = run_graph.__qualname__ = _name(graph)
    return run_graph


@dataclass
class _People:
    """Those who answer."""

    run: Run
    question: Question
    resume: Resume
    expires_s: float | None

    async def ask(self, interrupts: Sequence[Interrupt[Any]]) -> Command[Any]:
        """Ask about one interrupt after the other, and return what resumes the graph."""
        answers = {}
        for one in interrupts:
            data = {"interrupt": one.id, "value": one.value, "response_schema": one.response_schema}
            answer = await self.run.ask(cut(self.question(one)), expires_s=self.expires_s, data=data)
            answers[one.id] = self.resume(answer, one)
        return Command(resume=answers)

    async def approve(self, before: Sequence[str]) -> None:
        """Ask whether the graph may go on after a breakpoint.

        Raises:
            NotApproved: It may not.
        """
        where = ", ".join(before)
        answer = await self.run.ask(cut(f"Go on with {where}?"), expires_s=self.expires_s)
        if not answer.approved:
            raise NotApproved(
                f"the graph was not approved to go on with {where}: {answer.text or answer.verdict}"
            )


@dataclass
class _Call:
    """One call of a graph, and where it stopped."""

    graph: Runnable[Any, Any]
    config: RunnableConfig
    watcher: Callable[[], FsmCallbackHandler]
    on_chunk: Chunk | None
    asked: tuple[str, ...]
    options: dict[str, Any]
    interrupts: list[Interrupt[Any]] = field(default_factory=list)
    before: tuple[str, ...] = ()
    """The nodes that a breakpoint holds back."""

    async def go(self, given: Any) -> Any:
        """Run until the end or the next stop, and leave nothing open behind."""
        self.interrupts, self.before = [], ()
        # Each pass has a handler of its own. Where one tool asks, its siblings are given up, but not stopped: they
        # still report to the handler of their pass, which is closed by then, and run again in the next one.
        handler = self.watcher()
        config = _with(self.config, handler)
        try:
            result = await (self._streamed(given, config) if self.on_chunk else self._invoked(given, config))
        except GraphRecursionError as error:
            await handler.close(error)
            raise LimitReached(str(error)) from error
        except BaseException as error:
            await handler.close(error)
            raise
        await handler.close(None)
        if handler.breakpoint and not self.interrupts:
            self.before = tuple((await self._state()).next)
        return result

    async def earlier(self, run: Run) -> bool:
        """Whether an earlier attempt of this execution left a checkpoint; its open questions are taken over."""
        if not run.resumed or not getattr(self.graph, "checkpointer", None):
            return False
        state = await self._state()
        if (state.metadata or {}).get(_EXECUTION) != run.id:
            return False
        self.interrupts = list(state.interrupts)
        if not self.interrupts and self._has_breakpoints():
            # Nobody can tell any more whether the graph waited there: rather ask twice than pass unasked.
            self.before = tuple(state.next)
        return True

    def _has_breakpoints(self) -> bool:
        names = ("interrupt_before", "interrupt_after")
        return any(self.options.get(name) or getattr(self.graph, f"{name}_nodes", None) for name in names)

    async def _state(self) -> Any:
        return await cast("PregelProtocol[Any, Any, Any, Any]", self.graph).aget_state(self.config)

    async def _invoked(self, given: Any, config: RunnableConfig) -> Any:
        result = await self.graph.ainvoke(given, config, **self.options)
        if isinstance(self.graph, PregelProtocol) and isinstance(result, Mapping):
            self.interrupts = list(result.get(_INTERRUPT, ()))
        return result

    async def _streamed(self, given: Any, config: RunnableConfig) -> Any:
        modes = list(dict.fromkeys(("updates", "values", *self.asked)))
        chunks = cast("Any", self.graph).astream(given, config, stream_mode=modes, **self.options)
        result = None
        async with aclosing(chunks) as parts:
            async for part in parts:
                # With subgraphs=True the path of the subgraph comes first; only the outer graph's values count.
                *path, mode, chunk = part
                if not any(path):
                    if mode == "values":
                        result = chunk
                    elif mode == "updates" and isinstance(chunk, Mapping):
                        self.interrupts.extend(chunk.get(_INTERRUPT, ()))
                if self.on_chunk is not None and mode in self.asked:
                    await self.on_chunk(mode, chunk)
        return result


async def _until_done(call: _Call, people: _People, given: Any, max_questions: int) -> Any:
    run, questions = people.run, 0
    if await call.earlier(run):
        given = None
    result = None
    while True:
        # The loop ends by max_questions at the latest: every turn but the first one asks.
        if not call.interrupts and not call.before:
            try:
                result = await call.go(given)
            except NodeCancelledError:
                if run.over:
                    # A node was told that the run is over, and the graph makes an error of that.
                    raise asyncio.CancelledError from None
                raise
            if not call.interrupts and not call.before:
                return result
        questions += len(call.interrupts) or 1
        if questions > max_questions:
            raise TooManyQuestions(max_questions)
        if getattr(call.graph, "checkpointer", True) is None:
            raise ConfigurationError(
                "the graph was interrupted and cannot be resumed: compile it with a checkpointer, "
                "such as graph.compile(checkpointer=InMemorySaver())"
            )
        if call.interrupts:
            given = await people.ask(call.interrupts)
        else:
            await people.approve(call.before)
            given = None
        call.interrupts, call.before = [], ()


def _config(run: Run, config: Config | None, thread_id: Callable[[Run], str] | None) -> RunnableConfig:
    given: RunnableConfig | None = config(run) if callable(config) else config  # pyright: ignore[reportGeneralTypeIssues]
    merged: RunnableConfig = {**(given or {})}
    merged["metadata"] = {**merged.get("metadata", {}), _EXECUTION: run.id}
    configurable = {"thread_id": f"{run.user_id}/{run.thread_id}", **merged.get("configurable", {})}
    if thread_id is not None:
        configurable["thread_id"] = thread_id(run)
    merged["configurable"] = configurable
    return merged


def _with(config: RunnableConfig, handler: FsmCallbackHandler) -> RunnableConfig:
    given = config.get("callbacks")
    if isinstance(given, BaseCallbackManager):
        manager = given.copy()
        manager.add_handler(handler, inherit=True)
        return {**config, "callbacks": manager}
    return {**config, "callbacks": [*(given or ()), handler]}


def _action_requests(value: Any) -> Sequence[Mapping[str, Any]]:
    found = value.get("action_requests") if isinstance(value, Mapping) else None
    return found if isinstance(found, list) and all(isinstance(one, Mapping) for one in found) else ()


def _name(graph: Runnable[Any, Any]) -> str:
    return (graph.get_name() or type(graph).__name__).strip()
