"""The callback handler for LangChain runnables and LangGraph graphs; see `fsm.integrations.langgraph`."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import CancelledError as FutureCancelledError
from functools import partial
from typing import Any
from uuid import UUID

from fsm.engine import Run, current_run
from fsm.engine.threads import SyncRun
from fsm.integrations.common import ToolAnsweredError

try:
    from langchain_core.callbacks import AsyncCallbackHandler
    from langchain_core.messages.ai import UsageMetadata, add_usage
    from langchain_core.outputs import LLMResult
    from langgraph.callbacks import GraphCallbackHandler, GraphInterruptEvent, GraphResumeEvent
    from langgraph.errors import GraphBubbleUp
except ImportError as error:  # pragma: no cover - a test runs this in a process without it
    raise ImportError(
        "fsm.integrations.langchain needs langgraph 1.2 and langchain-core 1.7: pip install 'agent-fsm[langgraph]'"
    ) from error

logger = logging.getLogger(__name__)

_Event = Callable[[], Awaitable[None]]


def _nothing(*_: Any, **__: Any) -> None:
    """Answer a callback that says nothing new."""


class FsmCallbackHandler(GraphCallbackHandler, AsyncCallbackHandler):
    """Reports what a LangChain runnable or a LangGraph graph does to one run of the engine.

    Make one for every run, within the agent function. Async calls are the straight way: each event is committed before
    the model or the tool begins. A sync node of an async graph, or an `invoke` in a thread, reports from there and
    waits for the commit too. A sync call on the event loop's own thread blocks the very loop that commits, so its
    events are kept in order and committed as soon as the loop is free.

    Args:
        run: The run, also that of an agent in a thread. Once it is over, events are ignored.
        content: Whether arguments and results are journaled, or only names and errors.
        nodes: Whether nodes of a graph are journaled, each as one progress with its name.

    Attributes:
        breakpoint: Whether the graph last stopped at a breakpoint rather than at its end or at an `interrupt`.
        wait_s: For so many seconds at most another thread waits for the commit of its event; it goes on then.
    """

    run_inline = True
    """Handlers that are not inline are called together with others in `asyncio.gather`, in no order."""

    wait_s = 1.0

    def __init__(self, run: Run | SyncRun, *, content: bool = True, nodes: bool = True) -> None:
        super().__init__()
        self.breakpoint = False
        self._run = run.run if isinstance(run, SyncRun) else run
        self._recorder = self._run.recorder
        self._content = content
        self._nodes = nodes
        self._loop = self._run.loop
        self._models: set[UUID] = set()
        self._tools: set[UUID] = set()
        # From other threads, in their order; it holds no more than these threads are waiting for or have gone past.
        self._foreign: deque[_Event] = deque()
        self._order = asyncio.Lock()
        self._behind = self._warned = False
        self._closed = False

    @property
    def ignore_chain(self) -> bool:
        """Whether nodes are left out; chains are of no other interest."""
        return not self._nodes

    @property
    def ignore_retriever(self) -> bool:
        """Retrievers are no phase of a run."""
        return True

    @property
    def ignore_custom_event(self) -> bool:
        """Users' own events are theirs."""
        return True

    @property
    def ignore_retry(self) -> bool:
        """A retry is seen by the next call."""
        return True

    # One call for each token and each step: a coroutine would cost sync code an event loop of its own every time.
    on_llm_new_token = on_stream_event = on_chain_end = on_chain_error = on_text = _nothing  # type: ignore[assignment]

    async def on_chat_model_start(
        self, serialized: dict[str, Any] | None, messages: Any, *, run_id: UUID, **kwargs: Any
    ) -> None:
        """Report that a chat model is called."""
        await self._report(partial(self._model_started, run_id, _model_name(serialized, kwargs)))

    async def on_llm_start(
        self, serialized: dict[str, Any] | None, prompts: Any, *, run_id: UUID, **kwargs: Any
    ) -> None:
        """Report that a text model is called."""
        await self._report(partial(self._model_started, run_id, _model_name(serialized, kwargs)))

    async def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Report that a model answered, and what that used."""
        await self._report(partial(self._model_ended, run_id, None, _usage(response)))

    async def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Report that a model call failed."""
        await self._report(partial(self._model_ended, run_id, error, None))

    async def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report that a tool is called."""
        name = (serialized or {}).get("name") or kwargs.get("name") or "tool"
        given = (input_str if inputs is None else inputs) if self._content else None
        await self._report(partial(self._tool_started, run_id, str(name), given))

    async def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Report that a tool answered; an answer that stands for an error is one."""
        answer = getattr(output, "content", output)
        if getattr(output, "status", None) == "error":
            await self._report(partial(self._tool_ended, run_id, ToolAnsweredError(str(answer)), None))
        else:
            await self._report(partial(self._tool_ended, run_id, None, answer if self._content else None))

    async def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Report that a tool failed. An interrupt within a tool is no failure: the tool runs again later."""
        if isinstance(error, GraphBubbleUp):
            await self._report(partial(self._tool_ended, run_id, None, {"left_by": type(error).__name__}))
        else:
            await self._report(partial(self._tool_ended, run_id, error, None))

    async def on_chain_start(
        self, serialized: dict[str, Any] | None, inputs: Any, *, run_id: UUID, **kwargs: Any
    ) -> None:
        """Report that a node begins; other chains are not reported."""
        node = (kwargs.get("metadata") or {}).get("langgraph_node")
        if node and any(tag.startswith("graph:step:") for tag in kwargs.get("tags") or ()):
            await self._report(partial(self._recorder.note, f"node {node}", node=node))

    async def on_interrupt(self, event: GraphInterruptEvent) -> None:
        """Report that the graph stopped for somebody's answer, or at a breakpoint."""
        self.breakpoint = not event.interrupts
        await self._report(
            partial(
                self._recorder.note,
                "graph interrupted",
                checkpoint_id=event.checkpoint_id,
                interrupts=[one.id for one in event.interrupts],
            )
        )

    async def on_resume(self, event: GraphResumeEvent) -> None:
        """Report that the graph goes on from a checkpoint."""
        await self._report(partial(self._recorder.note, "graph resumed", checkpoint_id=event.checkpoint_id))

    async def close(self, error: BaseException | None) -> None:
        """End whatever was begun and did not report its end; whatever is reported later is ignored.

        Args:
            error: Why, or ``None`` if it was given up because the graph stopped to ask.
        """
        await self._catch_up()
        self._closed = True
        for key in tuple(self._models):
            await self._model_ended(key, error, None)
        for key in tuple(self._tools):
            await self._tool_ended(key, error, None if error else {"left_by": "GraphInterrupt"})

    async def _model_started(self, key: UUID, name: str) -> None:
        self._models.add(key)
        await self._recorder.model_started(key, name)

    async def _model_ended(self, key: UUID, error: BaseException | None, usage: Any) -> None:
        if key in self._models:
            self._models.discard(key)
            await self._recorder.model_ended(key, error=error, usage=usage)

    async def _tool_started(self, key: UUID, name: str, arguments: Any) -> None:
        self._tools.add(key)
        await self._recorder.tool_started(key, name, arguments=arguments)

    async def _tool_ended(self, key: UUID, error: BaseException | None, result: Any) -> None:
        if key in self._tools:
            self._tools.discard(key)
            await self._recorder.tool_ended(key, error=error, result=result)

    async def _report(self, event: _Event) -> None:
        """Carry an event out on the run's own loop, whichever thread it comes from."""
        run = current_run()
        if self._closed or self._run.over or (run is not None and run.id != self._run.id):
            # Callbacks are inherited: a child run within a node would report to its parent's handler as well.
            return
        if asyncio.get_running_loop() is self._loop:
            await self._catch_up()
            await event()
            return
        # LangChain carries the coroutine of a sync call out on a loop that lives as long as this one event.
        self._foreign.append(event)
        catching_up = self._catch_up()
        try:
            done = asyncio.run_coroutine_threadsafe(catching_up, self._loop)
        except RuntimeError:
            catching_up.close()  # the run's loop is closed, so the run is over
            return
        if self._behind:
            return
        try:
            done.result(self.wait_s)
        except FutureCancelledError:
            return
        except TimeoutError:
            self._behind = True
            self._warn()

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "the event loop did not take an event of %s for %.1f s: is a sync call made on the loop's own thread? "
                "Call ainvoke, or invoke in a thread; until the loop is free the journal lags behind",
                self._run.id,
                self.wait_s,
            )

    async def _catch_up(self) -> None:
        """Carry out what other threads reported, one after the other."""
        self._behind = False
        if not self._foreign and not self._order.locked():
            return
        async with self._order:
            while self._foreign:
                await self._foreign.popleft()()


def _model_name(serialized: Mapping[str, Any] | None, kwargs: Mapping[str, Any]) -> str:
    """Return provider:model where both are known, else what is known."""
    metadata = kwargs.get("metadata") or {}
    params = kwargs.get("invocation_params") or {}
    provider = metadata.get("ls_provider")
    model = metadata.get("ls_model_name") or params.get("model") or params.get("model_name")
    if model:
        return f"{provider}:{model}" if provider else str(model)
    names: Sequence[Any] = ((serialized or {}).get("id") or ())[-1:]
    return str((serialized or {}).get("name") or (names[0] if names else None) or provider or "model")


def _usage(response: LLMResult) -> Any:
    """Return the tokens of all prompts of a call; the candidates of one prompt bear the same."""
    total: UsageMetadata | None = None
    for candidates in response.generations:
        found = (
            getattr(getattr(candidates[0], "message", None), "usage_metadata", None) if candidates else None
        )
        if found:
            total = add_usage(total, found)
    if total is not None:
        return dict(total)
    output = response.llm_output or {}
    found = output.get("token_usage") or output.get("usage")
    return dict(found) if isinstance(found, Mapping) else None
