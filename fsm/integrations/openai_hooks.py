"""The run hooks for the OpenAI Agents SDK; see `fsm.integrations.openai_agents`."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Coroutine, Hashable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from fsm.engine import Run
from fsm.engine.threads import SyncRun
from fsm.integrations.common import ToolAnsweredError

try:
    from agents import (
        Agent,
        FunctionTool,
        ModelResponse,
        MultiProvider,
        OpenAIChatCompletionsModel,
        OpenAIProvider,
        OpenAIResponsesModel,
        RunConfig,
        RunContextWrapper,
        RunHooks,
        Tool,
        default_tool_error_function,
    )
    from agents.models import get_default_model
    from agents.run_config import ToolErrorFormatterArgs
    from agents.tool import ToolErrorFunction, default_tool_timeout_error_message
    from agents.tool_context import ToolContext
    from agents.tracing import get_current_span
except ImportError as error:  # pragma: no cover - a test runs this in a process without it
    raise ImportError(
        "fsm.integrations.openai_hooks needs openai-agents 0.24: pip install 'agent-fsm[openai-agents]'"
    ) from error


class FsmRunHooks(RunHooks[Any]):
    """Reports what an agent of the SDK does to one run of the engine.

    Make one for every run, within the agent function, pass it as `hooks=` together with its `run_config`, and `close`
    it when the call has ended, since hooks see no errors: `tracked` does all that.

    Args:
        run: The run, also that of an agent in a thread. Once it is over, nothing is reported; hooks of your own are
            called all the same.
        also: Hooks of your own, called after these.
        run_config: The config to start from.
        content: Whether arguments and results are journaled, or only names and errors.

    Attributes:
        run_config: The config with one more part: a `tool_error_formatter` that sees the errors of tools, and leaves
            what the model reads to yours or to the SDK.
    """

    def __init__(
        self,
        run: Run | SyncRun,
        also: RunHooks[Any] | None = None,
        *,
        run_config: RunConfig | None = None,
        content: bool = True,
    ) -> None:
        run = run.run if isinstance(run, SyncRun) else run
        self._recorder = run.recorder
        self._loop = run.loop
        self._also = also if also is not None else RunHooks[Any]()
        self._content = content
        config = run_config or RunConfig()
        self._formatter = config.tool_error_formatter
        self.run_config = replace(config, tool_error_formatter=self._tool_error)
        self._models: list[tuple[str, Hashable]] = []
        self._tools: dict[Hashable, str] = {}
        self._errors: dict[str, BaseException] = {}
        _HOOKS.set(self)

    async def on_llm_start(
        self,
        context: RunContextWrapper[Any],
        agent: Agent[Any],
        system_prompt: str | None,
        input_items: list[Any],
    ) -> None:
        """Report that a model is called."""
        key = object()
        self._models.append((agent.name, key))
        await self._tell(self._recorder.model_started(key, _model_name(agent, self.run_config)))
        await self._also.on_llm_start(context, agent, system_prompt, input_items)

    async def on_llm_end(
        self, context: RunContextWrapper[Any], agent: Agent[Any], response: ModelResponse
    ) -> None:
        """Report that a model answered, and what that used."""
        for at in reversed(range(len(self._models))):
            if self._models[at][0] == agent.name:
                await self._tell(self._recorder.model_ended(self._models.pop(at)[1], usage=_usage(response)))
                break
        await self._also.on_llm_end(context, agent, response)

    async def on_tool_start(self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool) -> None:
        """Report that a tool is called."""
        key: Hashable = object()
        name, arguments, call_id = tool.name, None, None
        if isinstance(context, ToolContext):
            key, name = context.tool_call_id, context.qualified_tool_name
            call_id = context.tool_call_id
            arguments = _parsed(context.tool_arguments) if self._content else None
        self._tools[key] = tool.name
        await self._tell(self._recorder.tool_started(key, name, arguments=arguments, call_id=call_id))
        await self._also.on_tool_start(context, agent, tool)

    async def on_tool_end(
        self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool, result: object
    ) -> None:
        """Report that a tool answered; an answer that was made of an error is an error."""
        if isinstance(context, ToolContext):
            key: Hashable = context.tool_call_id
            error = self._errors.pop(context.tool_call_id, None) or _answered_error(context, tool, result)
        else:
            # The SDK's own tools bring no id of the call: the oldest open one of that name is meant.
            key = next((one for one, name in self._tools.items() if name == tool.name), None)
            error = None
        self._tools.pop(key, None)
        await self._tell(
            self._recorder.tool_ended(key, error=error, result=result if self._content else None)
        )
        await self._also.on_tool_end(context, agent, tool, result)

    async def on_agent_start(self, context: Any, agent: Any) -> None:
        """Report that an agent's turn begins."""
        await self._tell(self._recorder.note(f"agent {agent.name}", agent=agent.name))
        await self._also.on_agent_start(context, agent)

    async def on_agent_end(self, context: Any, agent: Any, output: Any) -> None:
        """Call the user's own hook: the engine reports the end."""
        await self._also.on_agent_end(context, agent, output)

    async def on_handoff(self, context: RunContextWrapper[Any], from_agent: Any, to_agent: Any) -> None:
        """Report that one agent hands over to another."""
        text = f"handoff from {from_agent.name} to {to_agent.name}"
        await self._tell(self._recorder.note(text, from_agent=from_agent.name, to_agent=to_agent.name))
        await self._also.on_handoff(context, from_agent, to_agent)

    def saw(self, call_id: str, error: BaseException) -> None:
        """Take note of an error that is about to become a tool's answer.

        Args:
            call_id: The id of the tool's call.
            error: What the tool raised.
        """
        self._errors[call_id] = error

    async def close(self, error: BaseException | None, note: str | None = None, **data: Any) -> None:
        """End whatever was begun and did not report its end.

        Args:
            error: What ended the call of the runner; ``None`` if it ended well, or stopped for an approval.
            note: What else to say, once nothing is open.
            data: JSON that comes with the note.
        """
        for _, key in self._models:
            await self._tell(self._recorder.model_ended(key, error=error))
        for key, name in self._tools.items():
            await self._tell(self._recorder.tool_ended(key, error=_own_error(name, error)))
        self._models, self._tools, self._errors = [], {}, {}
        if note is not None:
            await self._tell(self._recorder.note(note, **data))

    async def _tell(self, step: Coroutine[Any, Any, None]) -> None:
        """Let the run's own event loop do it: `Runner.run_sync` in a thread has another one."""
        if asyncio.get_running_loop() is self._loop:
            await step
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(step, self._loop))

    async def _tool_error(self, args: ToolErrorFormatterArgs[Any]) -> str | None:
        if args.error is not None:
            self.saw(args.call_id, args.error)
        text = self._formatter(args) if self._formatter is not None else None
        return await text if inspect.isawaitable(text) else text


_HOOKS: ContextVar[FsmRunHooks | None] = ContextVar("fsm_openai_hooks", default=None)


def reported(function: ToolErrorFunction = default_tool_error_function) -> ToolErrorFunction:
    """Let the journal see the errors of a tool whose `failure_error_function` is your own.

    The SDK shows the errors of tools with its default function to a formatter; a function of your own it calls alone.
    Without `reported` such an error is seen only while the SDK's tracing is on.

        @function_tool(failure_error_function=reported(my_function))

    Args:
        function: Makes the text that the model reads of a tool's error.

    Returns:
        The same function, which takes note of the error first.
    """

    async def failure_error_function(context: RunContextWrapper[Any], error: Exception) -> str:
        hooks = _HOOKS.get()
        if hooks is not None and isinstance(context, ToolContext):
            hooks.saw(context.tool_call_id, error)
        text = function(context, error)
        return await text if inspect.isawaitable(text) else text

    return failure_error_function


def _own_error(name: str, error: BaseException | None) -> BaseException | None:
    """Return what the tool of that name raised, where the SDK's error says so; for its siblings, the SDK's error."""
    if (
        error is not None
        and error.__cause__ is not None
        and str(error).startswith(f"Error running tool {name}:")
    ):
        return error.__cause__
    return error


def _answered_error(context: ToolContext[Any], tool: Tool, result: object) -> BaseException | None:
    """Tell an answer that was made of an error nobody showed: by the trace, else by the SDK's own texts."""
    span = get_current_span()
    if span is not None and span.error is not None and span.span_data.type == "function":
        detail = (span.error["data"] or {}).get("error")
        return ToolAnsweredError(f"{span.error['message']}: {detail}" if detail else span.error["message"])
    limit = tool.timeout_seconds if isinstance(tool, FunctionTool) else None
    if limit is not None and result == default_tool_timeout_error_message(
        tool_name=tool.name, timeout_seconds=limit
    ):
        return ToolAnsweredError(str(result))
    # Agents as tools and MCP tools come with the default function, but as if it were the user's.
    if isinstance(result, str) and result == default_tool_error_function(context, Exception()):
        return ToolAnsweredError(result)
    return None


def _model_name(agent: Agent[Any], config: RunConfig) -> str:
    """Return provider:model where both are known, else what is known."""
    model = config.model or agent.model or get_default_model()
    if isinstance(model, str):
        prefix, slash, rest = model.partition("/")
        if slash:
            return f"{prefix}:{rest}"
        known = isinstance(config.model_provider, (MultiProvider, OpenAIProvider))
        return f"openai:{model}" if known else model
    name = getattr(model, "model", None)
    if not isinstance(name, str):
        return type(model).__name__
    known = isinstance(model, (OpenAIChatCompletionsModel, OpenAIResponsesModel))
    return f"openai:{name}" if known else name


def _usage(response: ModelResponse) -> Any:
    usage = response.usage
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": usage.input_tokens_details.cached_tokens,
        "reasoning_tokens": usage.output_tokens_details.reasoning_tokens,
    }


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
