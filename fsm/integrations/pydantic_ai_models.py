"""The model of a tracked pydantic-ai agent: every request that leaves it is a phase of the engine's run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Literal, TypeVar

from pydantic_ai.exceptions import ModelUnavailableError
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import RunContext

from fsm.engine import Run, RunOver
from fsm.engine.calls import ModelPhase
from fsm.errors import BreakerOpen

T = TypeVar("T")
PhaseT = TypeVar("PhaseT")
Breaker = str | Literal[False] | None
"""The key of a breaker; ``None`` for the one that bears the model's name, ``False`` for none."""


class ModelBreakerOpen(BreakerOpen, ModelUnavailableError):
    """A breaker let no request through. For pydantic-ai its model is unavailable, so a fallback goes on with the next.

    Attributes:
        refused: What the breaker said.
    """

    def __init__(self, refused: BreakerOpen) -> None:
        ModelUnavailableError.__init__(self, refused.key, str(refused), retry_after=refused.retry_after_s)
        self.refused = refused
        self.key, self.state = refused.key, refused.state
        self.retry_after_s, self.retry_at = refused.retry_after_s, refused.retry_at

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.refused,)


class TrackedModel(WrapperModel):
    """The model of one attempt; every request that it sends is a phase of the run."""

    def __init__(self, wrapped: Model, run: Run, breaker: Breaker) -> None:
        """Wrap a model.

        Args:
            wrapped: The model.
            run: The run that asks it.
            breaker: The breaker's key.
        """
        super().__init__(wrapped)
        self._run = run
        self._breaker: Breaker = breaker

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Send one request, as a phase."""
        async with self._phase() as phase:
            response = await self.wrapped.request(messages, model_settings, model_request_parameters)
            if phase is not None:
                phase.usage(**_usage(response))
            return response

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Send one request and stream its answer, as a phase that lasts until the stream is closed."""
        request = self.wrapped.request_stream(messages, model_settings, model_request_parameters, run_context)
        async with self._phase() as phase, request as stream:
            try:
                yield stream
            finally:
                # What was streamed is paid for, also where it broke off.
                if phase is not None:
                    phase.usage(**_usage(stream.get()))

    def _phase(self) -> AbstractAsyncContextManager[ModelPhase | None]:
        return unless_over(self._run, lambda: self._run.model(self.wrapped.model_id, breaker=self._breaker))


@asynccontextmanager
async def unless_over(
    run: Run, make: Callable[[], AbstractAsyncContextManager[PhaseT]]
) -> AsyncGenerator[PhaseT | None]:
    """Be in a phase of a run; once the run is over, be nowhere and say nothing.

    The engine cancels whoever runs on too long. A hook that raised as well would be a second error in the middle of
    a framework, which takes it for one of the model or of the tool.

    Args:
        run: The run.
        make: Makes the phase.

    Raises:
        ModelBreakerOpen: A breaker let no request through.
        RunOver: The run is over, and this is another thread, which nobody can cancel.
    """
    phase = entered = None
    if not run.over or not _at_home(run):
        phase = make()
        entered, over = await at_home(run, _enter(phase))
        if over:
            if not _at_home(run):
                raise RunOver(f"{run.id}: this run of the agent is over")
            phase = None
    try:
        yield entered
    except BaseException as error:
        if phase is not None:
            await at_home(run, _leave(phase, error))
        raise
    if phase is not None:
        await at_home(run, _leave(phase, None))


async def _enter(phase: AbstractAsyncContextManager[PhaseT]) -> tuple[PhaseT | None, bool]:
    """Enter a phase; return what it gave, and whether the run is over: between threads a RunOver would get lost."""
    try:
        return await phase.__aenter__(), False
    except RunOver:
        return None, True
    except BreakerOpen as refused:
        raise ModelBreakerOpen(refused) from refused


async def _leave(phase: AbstractAsyncContextManager[Any], error: BaseException | None) -> None:
    with suppress(RunOver):
        await phase.__aexit__(
            type(error) if error is not None else None, error, getattr(error, "__traceback__", None)
        )


def _at_home(run: Run) -> bool:
    return asyncio.get_running_loop() is run.loop


async def at_home(run: Run, step: Coroutine[Any, Any, T]) -> T:
    """Take a step of a run on the event loop that it belongs to: `agent.run_sync` in a thread has one of its own.

    Args:
        run: The run.
        step: The step.
    """
    if _at_home(run):
        return await step
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(step, run.loop))


def _usage(response: ModelResponse) -> dict[str, Any]:
    """The tokens of one response and its cost, without what is zero or unknown."""
    usage = response.usage
    found: dict[str, Any] = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    for name in ("cache_read_tokens", "cache_write_tokens"):
        if tokens := getattr(usage, name, 0):
            found[name] = tokens
    cost = usage.cost
    if cost is None:
        # No price is known for this model, or not all of its usage.
        with suppress(LookupError, ValueError, AssertionError):
            cost = response.cost().total_price
    if cost is not None:
        found["cost_usd"] = float(cost)
    if response.finish_reason is not None:
        found["finish_reason"] = response.finish_reason
    return found
