"""Agents of the OpenAI Agents SDK, tracked: every model call, tool call and approval is a transition of the table.

    from fsm import Engine
    from fsm.integrations.openai_agents import tracked

    answer = await Engine().run(tracked(agent), "What is …?", user_id="ada", thread_id="t-1")

==============================================  ========================================================
in the SDK                                      in the journal
==============================================  ========================================================
a model call, streamed or not                   calling_model, with its usage; then thinking
a tool call, also several at once               open_tool, close_tool
a tool's error, even one that becomes text      close_tool with ok=False and the error
a tool with `needs_approval`                    awaiting_input; then the run goes on
an agent's turn, a handoff                      progress with the agents' names
MaxTurnsExceeded                                time_out of the kind limit
a guardrail's tripwire                          fail with that error type
==============================================  ========================================================

Hooks see neither errors nor cancels, so `tracked` also wraps the call: what is open when it ends, ends with it. The
SDK's own tracing is left as it is: on or off, with whatever processors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from fsm.engine import Run
from fsm.errors import ConfigurationError, LimitReached
from fsm.integrations.common import MAX_QUESTIONS, TooManyQuestions, cut

try:
    from agents import (
        Agent,
        InputGuardrailTripwireTriggered,
        MaxTurnsExceeded,
        OutputGuardrailTripwireTriggered,
        RunConfig,
        RunHooks,
        Runner,
        RunResult,
        RunResultStreaming,
        RunState,
        StreamEvent,
        ToolApprovalItem,
    )
    from agents.memory import Session

    from fsm.integrations.openai_hooks import FsmRunHooks, reported
except ImportError as error:  # pragma: no cover - a test runs this in a process without it
    raise ImportError(
        "fsm.integrations.openai_agents needs openai-agents 0.24: pip install 'agent-fsm[openai-agents]'"
    ) from error

__all__ = ["FsmRunHooks", "default_question", "reported", "tracked"]

Question = Callable[[ToolApprovalItem], str]
OnEvent = Callable[[StreamEvent], Awaitable[None]]


def default_question(item: ToolApprovalItem) -> str:
    """Make the text that a person reads out of a tool call that needs an approval.

    Args:
        item: The call.

    Returns:
        The tool's name and the arguments that the model chose.
    """
    return f"{item.qualified_name or item.name or 'tool'}({item.arguments or ''})"


def tracked(  # noqa: PLR0913 - options, each by its name
    agent: Agent[Any],
    *,
    hooks: RunHooks[Any] | None = None,
    run_config: RunConfig | None = None,
    session: Session | Callable[[Run], Session | None] | None = None,
    on_event: OnEvent | None = None,
    question: Question = default_question,
    expires_s: float | None = None,
    max_questions: int = MAX_QUESTIONS,
    content: bool = True,
    **options: Any,
) -> Callable[..., Awaitable[Any]]:
    """Make an agent function for the engine out of an agent of the SDK.

    An approval runs the tool. A refusal, and a text, do not: the text, if there is one, is what the model reads.

    Args:
        agent: The agent; its name is the execution's agent name.
        hooks: Hooks of your own; they are called as without this, after the journal's.
        run_config: As for `Runner.run`.
        session: A session, or a function that makes it of the run: ``lambda run: SQLiteSession(run.thread_id)``.
        on_event: Called with every event of the stream. The agent is streamed only if this is given.
        question: Makes the text that a person reads of a call that needs an approval.
        expires_s: For how many seconds a person may think; ``None`` for the execution's own input timeout.
        max_questions: So many approvals may be asked for, then `TooManyQuestions` ends the attempt.
        content: Whether arguments and results are journaled, or only names and errors.
        options: What else `Runner.run` takes: `max_turns`, `context`, `error_handlers` …

    Returns:
        `async def agent(run, input, context=None)`, whose result is the run's `final_output`.

    Raises:
        ConfigurationError: `max_questions` is below 1.
    """
    if max_questions < 1:
        raise ConfigurationError(f"max_questions is at least 1, not {max_questions}")

    async def run_agent(run: Run, input: Any, context: Any = None) -> Any:  # noqa: A002 - the SDK's word for it
        mine = FsmRunHooks(run, hooks, run_config=run_config, content=content)
        settings = {**options, "session": session(run) if callable(session) else session}
        call = _Call(agent, mine, on_event, settings)
        given, questions = input, 0
        more = {} if context is None else {"context": context}
        while True:
            # The loop ends by max_questions at the latest: every turn but the last one asks.
            result = await call.go(given, more)
            if not result.interruptions:
                return result.final_output
            questions += len(result.interruptions)
            if questions > max_questions:
                raise TooManyQuestions(max_questions)
            # The state holds the context and the turns that are used up.
            given, more = result.to_state(), {}
            for item in result.interruptions:
                # Without the call's id: a later attempt calls the model again, and the same question has another.
                data = {"tool": item.qualified_name, "arguments": item.arguments}
                answer = await run.ask(cut(question(item)), expires_s=expires_s, data=data)
                if answer.approved:
                    given.approve(item)
                else:
                    given.reject(item, rejection_message=answer.text or None)

    run_agent.__name__ = run_agent.__qualname__ = agent.name
    return run_agent


@dataclass
class _Call:
    """One agent's calls of the SDK's runner."""

    agent: Agent[Any]
    hooks: FsmRunHooks
    on_event: OnEvent | None
    options: dict[str, Any]

    async def go(self, given: str | list[Any] | RunState[Any], more: dict[str, Any]) -> Any:
        """Run until the end or the next approval, and leave nothing open behind."""
        options = {**self.options, **more, "hooks": self.hooks, "run_config": self.hooks.run_config}
        try:
            result = await (self._streamed(given, options) if self.on_event else self._whole(given, options))
        except (InputGuardrailTripwireTriggered, OutputGuardrailTripwireTriggered) as tripped:
            # Its text names the class of all guardrails alone.
            name = tripped.guardrail_result.guardrail.get_name()
            await self.hooks.close(tripped, f"guardrail {name} tripped", guardrail=name)
            raise
        except MaxTurnsExceeded as error:
            await self.hooks.close(error)
            raise LimitReached(str(error)) from error
        except BaseException as error:
            await self.hooks.close(error)
            raise
        await self.hooks.close(None)
        return result

    async def _whole(self, given: Any, options: dict[str, Any]) -> RunResult | RunResultStreaming:
        return await Runner.run(self.agent, given, **options)

    async def _streamed(self, given: Any, options: dict[str, Any]) -> RunResult | RunResultStreaming:
        result = Runner.run_streamed(self.agent, given, **options)
        async with aclosing(cast("Any", result.stream_events())) as events:
            try:
                async for event in events:
                    if self.on_event is not None:
                        await self.on_event(event)
            except BaseException:
                # The runner works in a task of its own, which the end of the stream would wait for.
                result.cancel()
                raise
        return result
