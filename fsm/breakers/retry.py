"""Retries, outside of the breaker: retry(breaker(timeout(call))).

So each try asks for its own permit, a call's own deadline is a failure that the breaker sees, and an open breaker ends
the hammering. The loop and its waits are `tenacity`'s: of the two well-kept libraries it is the one that takes the
sleep and the clock from outside and tells what it is about to wait *before* it waits, so that the row ``backing_off``
is committed first (`stamina` is built on it and hides both).

Cancellation and KeyboardInterrupt pass through as the very exception that was raised: no verdict, no attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar, cast

import tenacity
from pydantic import BaseModel, ConfigDict, Field

from fsm.breakers.breaker import Breaker
from fsm.breakers.faces import Steps, later, now
from fsm.breakers.policy import Factor
from fsm.errors import BreakerOpen
from fsm.lifecycles.breaker import PASSING
from fsm.machine.timeouts import MAX_SECONDS, Span

T = TypeVar("T")


class Backoff(BaseModel):
    """How often a call is tried, and how long is waited in between.

    Attributes:
        attempts: How many tries in all; the first is 1. Asking a breaker that gives no permit is no try.
        initial_s: The longest first wait, in seconds; each wait is drawn at random from 0 to its longest.
        factor: By how much the longest wait grows each time.
        max_s: What a wait never exceeds, in seconds, unless the server's own Retry-After is longer.
        retry_after_max_s: A longer Retry-After than this, in seconds, is not waited for: the error is raised.
        open_wait_s: How long, in seconds, is waited behind an open breaker in all. 0: `BreakerOpen` is raised at once,
            so that the caller can fall back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts: Annotated[int, Field(ge=1, le=1000, strict=True)] = 3
    initial_s: Span = 1.0
    factor: Factor = 2.0
    max_s: Span = 60.0
    retry_after_max_s: Span = 120.0
    open_wait_s: Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False, strict=True)] = 0.0


class Tries:
    """One call with all its tries: what may be tried again, and how long is waited before.

    Both faces ask the same rules; they differ in ``await``, and in which of tenacity's two loops they are in.

    Args:
        breaker: Whose verdicts decide.
        backoff: How often and how long.
        block: Makes what each try runs inside, for ``with`` or ``async with``: a permit.
        before_wait: Asked before each wait, with the error and the seconds, whether to go on; its steps are those
            of the face that is run.
    """

    def __init__(
        self,
        breaker: Breaker[Any],
        backoff: Backoff | None,
        block: Callable[[], Any],
        before_wait: Callable[[BaseException, float], Steps[bool]] | None = None,
    ) -> None:
        self._breaker = breaker
        self._backoff = backoff = backoff or Backoff()
        self._block = block
        self._before_wait = before_wait
        self._draw = tenacity.wait_random_exponential(
            multiplier=backoff.initial_s, exp_base=backoff.factor, max=backoff.max_s
        )
        self._waited_open_s = 0.0
        self._tries = 0

    def run(self, function: Callable[[], T], sleep: Callable[[float], None]) -> T:
        """Call a function until it returns or trying again helps no more."""

        def once() -> T:
            with self._block(): return self._counted(function)  # noqa: E701  # fmt: skip

        def before_sleep(state: tenacity.RetryCallState) -> None:
            if not now(self._goes_on(state)):
                raise _error_of(state)

        return tenacity.Retrying(sleep=sleep, before_sleep=before_sleep, **self._rules())(once)

    async def run_async(
        self,
        function: Callable[[], Awaitable[T]],
        sleep: Callable[[float], Awaitable[None]],
        timeout_s: float | None,
    ) -> T:
        """Do the same as `run` for a coroutine function, with a limit of seconds for each try."""

        async def limited() -> T:
            async with asyncio.timeout(timeout_s):
                return await function()

        async def once() -> T:
            async with self._block(): return await self._counted(limited)  # noqa: E701  # fmt: skip

        async def before_sleep(state: tenacity.RetryCallState) -> None:
            if not await later(self._goes_on(state)):
                raise _error_of(state)

        return await tenacity.AsyncRetrying(sleep=sleep, before_sleep=before_sleep, **self._rules())(once)

    def _rules(self) -> dict[str, Any]:
        return {
            "retry": tenacity.retry_if_exception(self._may_help),
            "wait": self._wait_s,
            "stop": self._enough,
            "reraise": True,
        }

    def _goes_on(self, state: tenacity.RetryCallState) -> Steps[bool]:
        if self._before_wait is None:
            return True
        return (yield from self._before_wait(_error_of(state), state.upcoming_sleep))

    def _counted(self, function: Callable[[], T]) -> T:
        self._tries += 1
        return function()

    def refused(self, error: BaseException) -> bool:
        """Whether our own breaker gave no permit; another one's refusal is an error like any other."""
        # By its type: `isinstance` asks an object's own `__class__`, which may raise.
        return issubclass(type(error), BreakerOpen) and cast("BreakerOpen", error).key == self._breaker.key

    def _may_help(self, error: BaseException) -> bool:
        return self.refused(error) or self._breaker.verdict(error).retryable  # CANCELLED is never retried

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        error = _error_of(state)
        if self.refused(error):
            return cast("BreakerOpen", error).retry_after_s
        asked_s = self._breaker.verdict(error).retry_after_s or 0.0
        # Behind a breaker that has just opened nothing is drawn: it says itself when it may be probed.
        return max(asked_s, self._breaker.retry_after_s() or self._draw(state))

    def _enough(self, state: tenacity.RetryCallState) -> bool:
        error = _error_of(state)
        if self._tries >= self._backoff.attempts:
            return True
        if self.refused(error) or self._breaker.row.state not in PASSING:
            self._waited_open_s += state.upcoming_sleep
            return self._waited_open_s > self._backoff.open_wait_s
        return (self._breaker.verdict(error).retry_after_s or 0.0) > self._backoff.retry_after_max_s


def _error_of(state: tenacity.RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome is not None else None
    assert error is not None  # noqa: S101 - it is only asked after an error
    return error
