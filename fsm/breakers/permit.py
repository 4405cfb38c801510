"""The permit: what a call runs inside, with ``with`` or ``async with``.

Both faces are here, line by line beside each other; what they share (`Breaker.take`, `leave`, `settle`) is written
once. The asyncio face differs in one thing: what may wait for a disk runs in a thread, and a caller that is
cancelled meanwhile leaves no probe behind.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from fsm.breakers.breaker import Breaker, Call, why_of
from fsm.breakers.verdicts import CANCELLED, FAILURE, IGNORED, SUCCESS, Kind, Verdict, http_result, throttled
from fsm.clock import Clock

T = TypeVar("T")


class Permit(Call):
    """Leave to make one call. It is asked for on entering; on leaving, the call's verdict is noted.

    A block that ends is a SUCCESS, one that raises is what the classifier says. Whoever knows better says so inside:
    `fail`, `throttle`, `ignore` or `judge`.

    Attributes:
        generation: The breaker's generation when the permit was given.
        token: The name of the probe that it is, ``None`` for an ordinary call.
    """

    __slots__ = ("_answered", "_breaker", "_clock", "_instant", "_said")

    def __init__(self, breaker: Breaker, clock: Clock, *, instant: bool) -> None:  # called for every call
        """Prepare to ask; `Breakers.permit` does.

        Args:
            breaker: Who is asked.
            clock: Where time comes from.
            instant: Whether the store never waits.
        """
        self._breaker = breaker
        self._clock = clock
        self._instant = instant
        self._said: Verdict | None = None
        self._answered = False
        self.token = None
        self.started = 0.0
        self.generation = 0

    # --- what the caller knows better -------------------------------------------------------------------------

    @property
    def probe(self) -> bool:
        """Whether this call is a probe of a half-open breaker."""
        return self.token is not None

    def fail(self) -> None:
        """Say that the call failed although nothing was raised."""
        self._said = FAILURE

    def ignore(self) -> None:
        """Say that the call tells nothing about the provider."""
        self._said = IGNORED

    def throttle(self, retry_after_s: float | None = None) -> None:
        """Say that the server wants to be left alone.

        Args:
            retry_after_s: For how many seconds; ``None`` for the policy's cooldown.
        """
        self._said = throttled(retry_after_s)

    def judge(self, result: T) -> T:
        """Let the classifier look at what the call returned (an HTTP response that nobody raised).

        Args:
            result: What the call returned.

        Returns:
            The same, untouched.
        """
        classifier, now = self._breaker.classifier, self._clock.wall()
        self._said = classifier.result(result, now) if classifier.judges_results else http_result(result, now)
        return result

    # --- with -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        generation = self._breaker.fast_in
        if generation:
            self.generation = generation
            return self
        self._got(self._breaker.take())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        breaker = self._breaker
        if kind is None and self._said is None and self.generation == breaker.fast_out:
            if not self._answered:
                breaker.succeeded += 1
            return
        verdict = self._verdict(error)
        if verdict is not None:
            breaker.finish(self, verdict, None if error is None else why_of(error))

    def answered(self) -> None:
        """Say that the first content of a stream is here: the verdict falls now, and it is SUCCESS.

        What goes wrong later (a stall) is a FAILURE of its own; a cancel is none any more.
        """
        if not self._answered:
            self._breaker.finish(self, SUCCESS)
            self._onwards()

    @property
    def has_answered(self) -> bool:
        """Whether the first content is here."""
        return self._answered

    # --- async with -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        generation = self._breaker.fast_in
        if generation:
            self.generation = generation
            return self
        self._got(await take_async(self._breaker, instant=self._instant))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        breaker = self._breaker
        if kind is None and self._said is None and self.generation == breaker.fast_out:
            if not self._answered:
                breaker.succeeded += 1
            return
        verdict = self._verdict(error)
        if verdict is not None:
            why = None if error is None else why_of(error)
            instant = self._instant or isinstance(error, GeneratorExit)
            await finish_async(breaker, self, verdict, why, instant=instant)

    async def answered_async(self) -> None:
        """Do the same as `answered` without blocking the event loop."""
        if not self._answered:
            await finish_async(self._breaker, self, SUCCESS, None, instant=self._instant)
            self._onwards()

    # --- inside -----------------------------------------------------------------------------------------------

    def _got(self, call: Call) -> None:
        self.generation, self.token, self.started = call.generation, call.token, call.started

    def _onwards(self) -> None:
        """After the first content the rest of the stream is watched as a call of the generation that is now."""
        self._answered = True
        self.token = None
        self.generation = self._breaker.row.generation
        self.started = self._clock.monotonic()

    def _verdict(self, error: BaseException | None) -> Verdict | None:
        """Return what the call came to, ``None`` if that was noted at its first content already."""
        if error is None:
            verdict = self._said or SUCCESS
        else:
            verdict = self._breaker.verdict(error)
            if self._said is not None and verdict.kind is not Kind.CANCELLED:
                verdict = self._said
        if self._answered and verdict.kind in {Kind.SUCCESS, Kind.CANCELLED}:
            return None
        return verdict


# --- waiting for a disk without blocking the event loop --------------------------------------------------------


class _Handover:
    """A permit on its way from a thread to a task that may be gone by then."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._lock = threading.Lock()
        self._gone = False
        self._call: Call | None = None

    def take(self) -> Call:
        call = self._breaker.take()
        with self._lock:
            self._call = call
            gone = self._gone
        if gone:
            self._breaker.give_back(call)
        return call

    def leave(self) -> Call | None:
        """Say that nobody waits any more; return the permit if it had been given already."""
        with self._lock:
            self._gone = True
            return self._call


async def take_async(breaker: Breaker, *, instant: bool) -> Call:
    """Do `Breaker.take` without blocking the event loop.

    Args:
        breaker: Who is asked.
        instant: Whether the store never waits.

    Raises:
        BreakerOpen: There is no permit.
    """
    if instant or breaker.fast_in:
        return breaker.take()
    shut = breaker.shut()
    if shut is not None:
        raise shut
    handover = _Handover(breaker)
    try:
        return await _in_thread(handover.take)
    except asyncio.CancelledError:
        call = handover.leave()
        if call is not None:
            await finish_async(breaker, call, CANCELLED, None, instant=False)
        raise


async def finish_async(breaker: Breaker, call: Call, verdict: Verdict, why: str | None, *, instant: bool) -> None:
    """Do `Breaker.finish` without blocking the event loop; a cancel meanwhile does not undo it.

    Args:
        breaker: Whose call it was.
        call: The permit.
        verdict: What the call came to.
        why: For the journal.
        instant: Whether the store never waits, or nothing may be awaited here.
    """
    open_question = breaker.leave(call, verdict)
    if open_question is None:
        return
    if instant:
        breaker.settle(call, open_question, why)
    else:
        question = open_question
        await _in_thread(lambda: breaker.settle(call, question, why))


async def leave_async(breaker: Breaker, call: Call, error: BaseException, *, instant: bool) -> None:
    """Note that a call raised, without blocking the event loop.

    Args:
        breaker: Whose call it was.
        call: The permit.
        error: What was raised. A coroutine that is being closed cannot wait for anything any more.
        instant: Whether the store never waits.
    """
    closing = isinstance(error, GeneratorExit)
    await finish_async(breaker, call, breaker.verdict(error), why_of(error), instant=instant or closing)


async def _in_thread(function: Callable[[], T]) -> T:
    """Run `function` in a thread, to its end, even if the caller is cancelled before."""
    try:
        future: asyncio.Future[Any] = asyncio.get_running_loop().run_in_executor(None, function)
    except RuntimeError:
        return function()  # the loop is about to close and has no threads left
    out: T = await asyncio.shield(future)
    return out
