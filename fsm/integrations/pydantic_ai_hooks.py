"""What watches a pydantic-ai agent, and what asks a person for it; see `fsm.integrations.pydantic_ai`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
from pydantic_ai.exceptions import (
    ApprovalRequired,
    CallDeferred,
    ModelRetry,
    SkipToolExecution,
    ToolFailed,
    ToolFailedError,
    ToolRetryError,
)
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.models import Model
from pydantic_ai.output import OutputContext
from pydantic_ai.run import AgentRunResult
from pydantic_ai.tools import (
    DeferredToolRequests,
    DeferredToolResults,
    RunContext,
    ToolApproved,
    ToolDefinition,
    ToolDenied,
)

from fsm.engine import Answer, Run, current_run
from fsm.engine.calls import ToolPhase
from fsm.integrations.pydantic_ai_models import Breaker, TrackedModel, at_home, unless_over

Question = Callable[[ToolCallPart, Mapping[str, Any]], str]
"""Makes the text of a question, from the call and what the tool said about it."""

_SENT_BACK = (ToolRetryError, ToolFailedError, ModelRetry, ToolFailed)
"""What the model is told about a tool that did not do; the run goes on."""
MAX_TEXT = 2_000
"""Reasons and questions are cut at so many characters; people read them."""


@dataclass
class Tracked(AbstractCapability[Any]):
    """Reports what an agent does to the engine's run that it is in, and does nothing where there is none.

    It overrides neither `on_event` nor `wrap_run_event_stream`: pydantic-ai streams every model request as soon as
    one capability does (`AgentRun.next` asks for both), so watching would change what goes over the wire, and a
    model that cannot stream would fail. It does not override `on_model_request_error` either, since streams are
    then opened in another way. Requests are seen by wrapping the model instead, which is asked for every attempt.

    Attributes:
        content: Whether arguments, results and outputs are journaled, or only names, ids and reasons.
        breaker: The key of the breaker for every model request of the agent; ``None`` for the one that bears the
            model's name, ``False`` for none.
    """

    content: bool = True
    breaker: Breaker = None

    _: KW_ONLY

    id: str | None = "fsm-tracked"
    """An agent has one: that of a run replaces that of the agent, and nothing is reported twice."""

    @classmethod
    def get_serialization_name(cls) -> str | None:
        """Return ``None``: a spec file says nothing about who watches."""
        return None

    def get_ordering(self) -> CapabilityOrdering:
        """Return the outermost place, where what other capabilities retry, refuse or replace is seen as it ends."""
        return CapabilityOrdering(position="outermost")

    async def wrap_run(
        self, ctx: RunContext[Any], *, handler: Callable[[], Awaitable[AgentRunResult[Any]]]
    ) -> AgentRunResult[Any]:
        """Journal the ids under which traces know this run."""
        run = current_run()
        if run is not None:
            ids = {"run_id": ctx.run_id, "conversation_id": ctx.conversation_id, "agent": _name(ctx.agent)}
            await at_home(run, run.recorder.note("pydantic-ai run", **ids))
        return await handler()

    def get_wrapper_model(self, model: Model) -> Model | None:
        """Wrap the model of this attempt.

        Not `wrap_model_request`: that spans all attempts and the hooks that choose the model, so it knows neither
        which model answers nor whether one was asked at all, and a breaker would learn of the wrong one.
        """
        run = current_run()
        return None if run is None else TrackedModel(model, run, self.breaker)

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: Callable[[dict[str, Any]], Awaitable[Any]],
    ) -> Any:
        """Journal a tool's call and what it came to."""
        run = current_run()
        if run is None:
            return await handler(args)
        sent_back: Exception
        shown = args if self.content else None
        async with unless_over(
            run, lambda: run.tool(call.tool_name, call_id=call.tool_call_id, arguments=shown)
        ) as phase:
            try:
                result = await handler(args)
            except (ApprovalRequired, CallDeferred, SkipToolExecution, *_SENT_BACK) as control:
                # The tool's end, which the model is told about or waits for; no error that goes on.
                sent_back = control
                if phase is not None:
                    self._end(phase, control)
            else:
                if phase is not None and self.content:
                    phase.result = result
                return result
        try:
            raise sent_back
        finally:
            del sent_back  # its traceback holds this frame, and the agent's dependencies with it

    def _end(self, phase: ToolPhase, control: Exception) -> None:
        if isinstance(control, SkipToolExecution):
            phase.result = control.result if self.content else None
        elif isinstance(control, (ApprovalRequired, CallDeferred)):
            phase.result = {"deferred": type(control).__name__}
        else:
            phase.failed(_reason(control))

    async def wrap_tool_validate(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: str | dict[str, Any],
        handler: Callable[[str | dict[str, Any]], Awaitable[dict[str, Any]]],
    ) -> dict[str, Any]:
        """Journal arguments that do not validate: the tool does not run, and the model is asked again."""
        try:
            return await handler(args)
        except (ValidationError, ModelRetry, ToolFailed) as error:
            if not ctx.partial_output:
                await _noted(
                    f"arguments of {call.tool_name} refused",
                    error,
                    ctx,
                    tool=call.tool_name,
                    call_id=call.tool_call_id,
                )
            raise

    async def wrap_output_validate(
        self,
        ctx: RunContext[Any],
        *,
        output_context: OutputContext,
        output: str | dict[str, Any],
        handler: Callable[[str | dict[str, Any]], Awaitable[Any]],
    ) -> Any:
        """Journal an output that does not validate: the model is asked again."""
        return await _watched_output(ctx, output, handler)

    async def wrap_output_process(
        self,
        ctx: RunContext[Any],
        *,
        output_context: OutputContext,
        output: Any,
        handler: Callable[[Any], Awaitable[Any]],
    ) -> Any:
        """Journal an output that a validator or an output function sends back."""
        return await _watched_output(ctx, output, handler)


@dataclass
class Approvals(AbstractCapability[Any]):
    """Asks a person, through `Run.ask`, about tools that need an approval and about questions that tools have.

    It stands innermost, so a handler that answers by a rule of its own is asked first, and a person only about what
    is left. Calls that wait for the result of another system are left alone: they are no question to a person.

    Attributes:
        expires_s: For how many seconds a person may think; ``None`` for the execution's own input timeout.
        question: Makes the text that the person reads, from the call and its metadata.
    """

    expires_s: float | None = None
    question: Question | None = None

    _: KW_ONLY

    id: str | None = "fsm-approvals"

    @classmethod
    def get_serialization_name(cls) -> str | None:
        """Return ``None``: a question is a function, which no spec file can hold."""
        return None

    def get_ordering(self) -> CapabilityOrdering:
        """Return the innermost place: every handler that can answer without a person goes first."""
        return CapabilityOrdering(position="innermost")

    async def handle_deferred_tool_calls(
        self,
        ctx: RunContext[Any],
        *,
        requests: DeferredToolRequests,
    ) -> DeferredToolResults | None:
        """Ask about one call after the other.

        Raises:
            RunOver: The execution ended meanwhile. There is nobody to ask then, and nothing that may go on unasked.
        """
        run = current_run()
        if run is None:
            return None
        results = DeferredToolResults()
        for call in requests.approvals:
            answer = await self._ask(run, call, requests)
            denied = ToolDenied(answer.text) if answer.text else ToolDenied()
            results.approvals[call.tool_call_id] = ToolApproved() if answer.approved else denied
            if answer.by:
                results.answered_by[call.tool_call_id] = answer.by
        for call in requests.calls:
            if requests.kind(call.tool_call_id) != "question":
                continue
            answer = await self._ask(run, call, requests)
            refused = ToolFailed(answer.text or "The question was not answered.")
            results.calls[call.tool_call_id] = (
                refused if answer.verdict == "refused" else answer.text or "yes"
            )
            if answer.by:
                results.answered_by[call.tool_call_id] = answer.by
        return results if results.approvals or results.calls else None

    async def _ask(self, run: Run, call: ToolCallPart, requests: DeferredToolRequests) -> Answer:
        about = requests.metadata.get(call.tool_call_id, {})
        question = (self.question or _question)(call, about)
        data = {
            "tool": call.tool_name,
            "call_id": call.tool_call_id,
            "arguments": call.args,
            "metadata": dict(about),
        }
        return await at_home(run, run.ask(_cut(question), expires_s=self.expires_s, data=data))


async def _watched_output(ctx: RunContext[Any], output: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
    try:
        return await handler(output)
    except (ValidationError, ModelRetry, ToolRetryError) as error:
        # While it streams, an output is tried at every chunk, and only the last one counts.
        if not ctx.partial_output:
            await _noted("output refused", error, ctx)
        raise


async def _noted(text: str, error: Exception, ctx: RunContext[Any], **data: Any) -> None:
    run = current_run()
    if run is not None:
        data |= {"error": _said(error), "attempt": ctx.retry + 1, "attempts_max": ctx.max_retries + 1}
        await at_home(run, run.recorder.note(text, **data))


def _said(error: Exception) -> str:
    """What is wrong, without the value that is: that is content, and may be anything."""
    if not isinstance(error, ValidationError):
        return _cut(str(error))
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return _cut("; ".join(f"{'.'.join(map(str, one['loc'])) or 'value'}: {one['msg']}" for one in found))


def _reason(error: BaseException) -> str:
    """What the tool itself raised: pydantic-ai wraps a retry and a failure for the model's eyes."""
    cause = error.__cause__
    wrapped = isinstance(error, (ToolRetryError, ToolFailedError)) and isinstance(cause, Exception)
    raised = cause if wrapped else error
    return f"{type(raised).__name__}: {raised}"


def _name(agent: Any) -> str:
    return getattr(agent, "name", None) or "agent"


def _question(call: ToolCallPart, about: Mapping[str, Any]) -> str:
    asked = about.get("question") or about.get("reason")
    if isinstance(asked, str):
        return asked
    return f"{call.tool_name}({call.args_as_json_str()})?"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
