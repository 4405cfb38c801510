"""pydantic-ai agents, tracked: every model request, tool call and approval is a transition of the table.

    from fsm import Engine
    from fsm.integrations.pydantic_ai import tracked

    answer = await Engine().run(tracked(agent), "What is …?", user_id="ada", thread_id="t-1")

`tracked` hands two capabilities to the run: `Tracked`, which watches, and `Approvals`, which asks a person. An agent
that carries them itself (`Agent(…, capabilities=[Tracked(), Approvals()])`) may be called from any agent function.
Both do nothing outside of an engine's run, so the same agent works untracked.

============================================  ==========================================================
in pydantic-ai                                in the journal
============================================  ==========================================================
a request to a model, streamed or not         calling_model, with its tokens; then thinking
every attempt of a `ModelFallback`            a request of its own, under its own model's name and breaker
a tool call, also several at once             open_tool, close_tool
`ModelRetry`, `ToolFailed`, an exception      close_tool with ok=False and the reason; the run goes on or not
arguments or an output that do not validate   progress with the reason; the model is asked again
a tool that needs an approval, or asks        awaiting_input until a person answers, then the tool runs
============================================  ==========================================================
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fsm.engine import Run
from fsm.errors import LimitReached

try:
    from pydantic_ai.agent import AbstractAgent
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.exceptions import RunTimedOut, UsageLimitExceeded
    from pydantic_ai.messages import PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
except ImportError as error:
    raise ImportError(
        "fsm.integrations.pydantic_ai needs pydantic-ai 2.68 or newer: pip install 'agent-fsm[pydantic-ai]'"
    ) from error

from fsm.integrations.pydantic_ai_hooks import Approvals, Question, Tracked
from fsm.integrations.pydantic_ai_models import Breaker, ModelBreakerOpen

__all__ = ["Approvals", "ModelBreakerOpen", "Tracked", "streamed", "tracked"]

OutputT = TypeVar("OutputT")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def tracked(
    agent: AbstractAgent[Any, OutputT],
    *,
    content: bool = True,
    breaker: Breaker = None,
    expires_s: float | None = None,
    question: Question | None = None,
    **options: Any,
) -> Callable[..., Awaitable[OutputT]]:
    """Make an agent function for the engine out of a pydantic-ai agent.

    Its result is the run's `output`: what the agent was asked for. Whoever needs the messages or the usage as well
    calls `agent.run(…, capabilities=[Tracked(), Approvals()])` in an agent function of their own. To stream,
    see `streamed`, or hand an `event_stream_handler` in. The journal keeps the result whatever `content` says;
    `Engine(record_results=False)` keeps it out.

    Args:
        agent: The agent; its name is the execution's agent name ("agent" if it has none).
        content: Whether arguments and results are journaled; see `Tracked`.
        breaker: The key of the breaker for all its model requests; see `Tracked`.
        expires_s: For how many seconds a person may think about an approval; see `Approvals`.
        question: The text of such a question; see `Approvals`.
        options: What `agent.run` takes: `deps`, `message_history`, `usage_limits`, `model`, `event_stream_handler` …

    Returns:
        `async def agent(run, user_prompt=None, **more_options)`; more options go before the ones given here.
    """
    chosen = _chosen(options, Tracked(content, breaker), Approvals(expires_s, question))

    async def run_agent(_run: Run, user_prompt: Any = None, **more: Any) -> OutputT:
        with _limits():
            result = await agent.run(user_prompt, **chosen(more))
        output: OutputT = result.output
        return output

    return _named(run_agent, agent)


def streamed(
    agent: AbstractAgent[Any, Any],
    *,
    content: bool = True,
    breaker: Breaker = None,
    expires_s: float | None = None,
    question: Question | None = None,
    **options: Any,
) -> Callable[..., AsyncGenerator[str]]:
    """Make a streaming agent function for the engine: it yields the agent's text as it is written, piece by piece.

        async for piece in engine.stream(streamed(agent), "What is …?", user_id="ada", thread_id="t-1"):
            print(piece, end="")

    The agent runs to its end, tools included, as with `tracked`, which takes the same arguments.

    Args:
        agent: The agent; its model has to be able to stream.
        content: As for `tracked`.
        breaker: As for `tracked`.
        expires_s: As for `tracked`.
        question: As for `tracked`.
        options: As for `tracked`.

    Returns:
        `async def agent(run, user_prompt=None, **more_options)`, an asynchronous generator.
    """
    chosen = _chosen(options, Tracked(content, breaker), Approvals(expires_s, question))

    async def run_agent(_run: Run, user_prompt: Any = None, **more: Any) -> AsyncGenerator[str]:
        with _limits():
            async with agent.run_stream_events(user_prompt, **chosen(more)) as events:
                async for event in events:
                    if text := _text(event):
                        yield text

    return _named(run_agent, agent)


def _chosen(
    options: dict[str, Any], *watchers: AbstractCapability[Any]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What `agent.run` is called with: the options, those of this call before them, and who watches."""

    def chosen(more: dict[str, Any]) -> dict[str, Any]:
        merged = {**options, **more}
        merged["capabilities"] = [*(merged.get("capabilities") or ()), *watchers]
        # The name would else be inferred from the variables of this module.
        merged.setdefault("infer_name", False)
        return merged

    return chosen


def _named(function: FunctionT, agent: AbstractAgent[Any, Any]) -> FunctionT:
    function.__name__ = function.__qualname__ = agent.name or "agent"
    return function


@contextmanager
def _limits() -> Iterator[None]:
    """Say what the table says: a limit of pydantic-ai is a limit of the execution, which ends timed_out."""
    try:
        yield
    except (UsageLimitExceeded, RunTimedOut) as error:
        raise LimitReached(str(error)) from error


def _text(event: Any) -> str:
    if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
        return event.part.content
    if isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
        return event.delta.content_delta
    return ""
