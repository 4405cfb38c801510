"""Retries, outside of the breaker: retry(breaker(timeout(call))).

So each try asks for its own permit, a call's own deadline is a failure that the breaker sees, and an open breaker
ends the hammering. Waiting and looping are `tenacity`'s: of the two well-kept libraries it is the one that takes the
sleep and the clock from outside and tells what it is about to wait *before* it waits, so that the row
``backing_off`` is committed first (`stamina` is built on it and hides both).

Cancellation and KeyboardInterrupt pass through as the very exception that was raised: no verdict, no attempt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tenacity
from pydantic import BaseModel, ConfigDict, Field

from fsm.breakers.core import PASSING
from fsm.breakers.execution import Fires, ModelCall
from fsm.breakers.foreign import say, why_of
from fsm.errors import BreakerOpen, Refused
from fsm.machine.timeouts import MAX_SECONDS, Span

if TYPE_CHECKING:
    from fsm.breakers.breaker import Breaker
    from fsm.clock import Clock

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Backoff(BaseModel):
    """How often a call is tried, and how long is waited in between.

    Attributes:
        attempts: How many tries in all; the first is 1. Asking a breaker that gives no permit is no try.
        initial_s: The first wait at the most, in seconds; each is drawn at random from 0 to its most.
        factor: By how much the most grows each time.
        max_s: What a wait never exceeds, in seconds, unless the server's own Retry-After is longer.
        retry_after_max_s: A longer Retry-After than this, in seconds, is not waited for: the error is raised.
        open_wait_s: For so many seconds in all is waited behind an open breaker. 0: `BreakerOpen` is raised at once,
            so that the caller can fall back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts: Annotated[int, Field(ge=1, le=1000, strict=True)] = 3
    initial_s: Span = 1.0
    factor: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False, strict=True)] = 2.0
    max_s: Span = 60.0
    retry_after_max_s: Span = 120.0
    open_wait_s: Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False, strict=True)] = 0.0


class _Course:
    """One call with all its tries: what tenacity asks while it loops."""

    def __init__(self, breaker: Breaker, backoff: Backoff) -> None:
        self._breaker = breaker
        self._backoff = backoff
        self._draw = tenacity.wait_random_exponential(
            multiplier=backoff.initial_s, exp_base=backoff.factor, max=backoff.max_s
        )
        self._waited_open_s = 0.0
        self.tries = 0
        self.tripped = False

    def counted(self, function: Callable[[], T]) -> T:
        """Make one try."""
        self.tries += 1
        return function()

    async def limited(self, function: Callable[[], Awaitable[T]], timeout_s: float | None) -> T:
        """Make one try with a limit of seconds."""
        self.tries += 1
        async with asyncio.timeout(timeout_s):
            return await function()

    def may_help(self, error: BaseException) -> bool:
        """Whether trying again may help; a cancellation's verdict is CANCELLED, which is never retried."""
        return self._refused(error) or self._breaker.verdict(error).retryable

    def _refused(self, error: BaseException) -> bool:
        """Whether our own breaker gave no permit; another one's refusal is an error like any other."""
        return isinstance(error, BreakerOpen) and error.key == self._breaker.key

    def wait(self, state: tenacity.RetryCallState) -> float:
        """Return the seconds until the next try."""
        error = _error_of(state)
        if isinstance(error, BreakerOpen) and self._refused(error):
            return error.retry_after_s
        asked_s = self._breaker.verdict(error).retry_after_s or 0.0
        # Behind a breaker that has just opened nothing is drawn: it says itself when it may be probed.
        return max(asked_s, self._breaker.retry_after_s() or self._draw(state))

    def stop(self, state: tenacity.RetryCallState) -> bool:
        """Whether it is enough."""
        error = _error_of(state)
        if self.tries >= self._backoff.attempts:
            return True
        if self._refused(error) or self._breaker.row.state not in PASSING:
            self._waited_open_s += state.upcoming_sleep
            return self._waited_open_s > self._backoff.open_wait_s
        return (self._breaker.verdict(error).retry_after_s or 0.0) > self._backoff.retry_after_max_s

    def back_off(self, state: tenacity.RetryCallState) -> dict[str, Any] | None:
        """Return the payload of ``back_off``; ``None`` if the execution is circuit_open already, and says when."""
        error = _error_of(state)
        if self.tripped or self._refused(error):
            return None
        return {"retry_in_s": state.upcoming_sleep, "error": why_of(error)}

    def arguments(self) -> dict[str, Any]:
        """Return what both of tenacity's loops are told."""
        return {
            "retry": tenacity.retry_if_exception(self.may_help),
            "wait": self.wait,
            "stop": self.stop,
            "reraise": True,
        }


def _error_of(state: tenacity.RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome is not None else None
    assert error is not None  # noqa: S101 - it is only asked after an error
    return error


class Calling:
    """The part of `Breakers` that makes calls: with retries, and for executions."""

    clock: Clock

    def get(self, key: str) -> Breaker:
        """Return the breaker of a key."""
        raise NotImplementedError

    def model_call(
        self,
        tracker: Fires,
        execution_id: str,
        key: str,
        *,
        name: str | None = None,
        fence: int | None = None,
    ) -> ModelCall:
        """Return one try of an execution's model call, for ``with`` or ``async with``; it yields the permit.

        Entering takes a permit and fires ``call_model``; without a permit the execution is circuit_open afterwards
        and `BreakerOpen` is raised. An error that leaves the breaker open fires ``trip``.

        Args:
            tracker: Where the execution is found; it may be narrowed to a user.
            execution_id: Whose call it is.
            key: The breaker.
            name: The model's name for the journal; the key if nothing is said.
            fence: The worker's fence.
        """
        return ModelCall(self.get(key), tracker, execution_id, name=name, fence=fence)

    def call(self, key: str, function: Callable[[], T], *, backoff: Backoff | None = None) -> T:
        """Call a function behind a breaker, and again if it may help.

        Args:
            key: The breaker.
            function: What is called; its own timeout belongs inside it.
            backoff: How often and how long.

        Returns:
            What it returned.

        Raises:
            BreakerOpen: There is no permit.
        """
        breaker = self.get(key)
        course = _Course(breaker, backoff or Backoff())

        def once() -> T:
            with breaker.permit(): return course.counted(function)  # noqa: E701  # fmt: skip

        return tenacity.Retrying(sleep=self.clock.sleep, **course.arguments())(once)

    async def call_async(
        self,
        key: str,
        function: Callable[[], Awaitable[T]],
        *,
        backoff: Backoff | None = None,
        timeout_s: float | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> T:
        """Do the same as `call` for a coroutine function.

        Args:
            key: The breaker.
            function: What is called.
            backoff: How often and how long.
            timeout_s: So many seconds for each try; running out is a FAILURE.
            sleep: Waits for so many seconds.
        """
        breaker = self.get(key)
        course = _Course(breaker, backoff or Backoff())

        async def once() -> T:
            async with breaker.permit(): return await course.limited(function, timeout_s)  # noqa: E701  # fmt: skip

        return await tenacity.AsyncRetrying(sleep=sleep, **course.arguments())(once)

    def call_model(
        self,
        tracker: Fires,
        execution_id: str,
        key: str,
        function: Callable[[], T],
        *,
        name: str | None = None,
        fence: int | None = None,
        backoff: Backoff | None = None,
    ) -> T:
        """Make a model call of an execution, with retries that its journal shows.

        Between two tries the execution is backing_off, with the error and the time of the next try; behind an open
        breaker it is circuit_open, with the breaker's key and the time when it may be probed. How many tries there
        are is the smaller of `backoff` and what the execution was created with (``model_attempts_max``).

        Args:
            tracker: Where the execution is found; it may be narrowed to a user.
            execution_id: Whose call it is.
            key: The breaker.
            function: What is called; its own timeout belongs inside it.
            name: The model's name for the journal; the key if nothing is said.
            fence: The worker's fence.
            backoff: How often and how long.

        Returns:
            What it returned. The execution is calling_model then: say what follows.

        Raises:
            BreakerOpen: There is no permit, and `backoff.open_wait_s` does not reach as far: the execution is
                circuit_open; go on with ``call_model`` later, or with ``think`` now.
            Refused: The execution is where no model can be called.
        """
        course = _Course(self.get(key), backoff or Backoff())

        def once() -> T:
            attempt = self.model_call(tracker, execution_id, key, name=name, fence=fence)
            try:
                with attempt: return course.counted(function)  # noqa: E701  # fmt: skip
            finally:
                course.tripped = attempt.tripped

        def note(state: tenacity.RetryCallState) -> None:
            if (payload := course.back_off(state)) is None:
                return
            try:
                tracker.fire(execution_id, "back_off", fence=fence, **payload)
            except Exception as refused:  # noqa: BLE001 - the call's own error goes first
                _give_up(execution_id, state, refused)

        return tenacity.Retrying(sleep=self.clock.sleep, before_sleep=note, **course.arguments())(once)

    async def call_model_async(  # noqa: PLR0913 - a model call, whole
        self,
        tracker: Fires,
        execution_id: str,
        key: str,
        function: Callable[[], Awaitable[T]],
        *,
        name: str | None = None,
        fence: int | None = None,
        backoff: Backoff | None = None,
        timeout_s: float | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> T:
        """Do the same as `call_model` for a coroutine function.

        Args:
            tracker: Where the execution is found; it may be narrowed to a user.
            execution_id: Whose call it is.
            key: The breaker.
            function: What is called.
            name: The model's name for the journal; the key if nothing is said.
            fence: The worker's fence.
            backoff: How often and how long.
            timeout_s: So many seconds for each try; running out is a FAILURE.
            sleep: Waits for so many seconds.
        """
        course = _Course(self.get(key), backoff or Backoff())

        async def once() -> T:
            attempt = self.model_call(tracker, execution_id, key, name=name, fence=fence)
            try:
                async with attempt: return await course.limited(function, timeout_s)  # noqa: E701  # fmt: skip
            finally:
                course.tripped = attempt.tripped

        async def note(state: tenacity.RetryCallState) -> None:
            if (payload := course.back_off(state)) is None:
                return
            try:
                await tracker.aio.fire(execution_id, "back_off", fence=fence, **payload)
            except Exception as refused:  # noqa: BLE001 - the call's own error goes first
                _give_up(execution_id, state, refused)

        return await tenacity.AsyncRetrying(sleep=sleep, before_sleep=note, **course.arguments())(once)


def _give_up(execution_id: str, state: tenacity.RetryCallState, why_not: Exception) -> None:
    """The execution does not back off (no attempt is left, it was cancelled, the store is down): the error it is."""
    level = logging.DEBUG if isinstance(why_not, Refused) else logging.WARNING
    say(logger, level, "%s: not tried again: %s", execution_id, why_of(why_not))
    raise _error_of(state)
