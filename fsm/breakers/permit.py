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

from fsm.breakers.breaker import Breaker, Call
from fsm.breakers.core import PASSING
from fsm.breakers.foreign import DROPPED, why_of
from fsm.breakers.verdicts import CANCELLED, FAILURE, IGNORED, SUCCESS, Kind, Verdict, throttled
from fsm.errors import BadPayload

T = TypeVar("T")


class _More:
    """What is kept of the few calls of which there is more to say than that they went well.

    Of a probe it is there before the probe is asked for; a breaker that finds it gone takes the probe back.
    """

    __slots__ = ("__weakref__", "answered", "call", "said")

    def __init__(self, call: Call | None) -> None:
        self.call = call
        self.said: Verdict | None = None
        self.answered = False


class Permit:
    """Leave to make one call. It is asked for on entering; on leaving, the call's verdict is noted.

    A block that ends is a SUCCESS, one that raises is what the classifier says. Whoever knows better says so inside:
    `fail`, `throttle`, `ignore` or `judge`.

    One is made for every call, so it has three slots and sets two of them: what else there may be to know about a
    call is in a part of its own that most calls never get.

    Attributes:
        generation: The breaker's generation when the permit was given; unset before it is entered.
    """

    __slots__ = ("_breaker", "_more", "generation")

    generation: int

    def __init__(self, breaker: Breaker) -> None:
        """Prepare to ask; `Breakers.permit` does.

        Args:
            breaker: Who is asked.
        """
        self._breaker = breaker
        self._more: _More | None = None

    # --- what the caller knows better -------------------------------------------------------------------------

    @property
    def call(self) -> Call:
        """The permit as `Breaker.finish` takes it."""
        more = self._more
        return Call(self.generation) if more is None or more.call is None else more.call

    @property
    def probe(self) -> bool:
        """Whether this call is a probe of a half-open breaker."""
        return self.call.token is not None

    @property
    def has_answered(self) -> bool:
        """Whether the first content of a stream is here."""
        return self._more is not None and self._more.answered

    def fail(self) -> None:
        """Say that the call failed although nothing was raised."""
        self._details().said = FAILURE

    def ignore(self) -> None:
        """Say that the call tells nothing about the provider."""
        self._details().said = IGNORED

    def throttle(self, retry_after_s: float | None = None) -> None:
        """Say that the server wants to be left alone.

        Args:
            retry_after_s: For how many seconds; ``None`` for the policy's cooldown.
        """
        self._details().said = throttled(retry_after_s)

    def judge(self, result: T) -> T:
        """Let the classifier look at what the call returned (an HTTP response that nobody raised).

        Args:
            result: What the call returned.

        Returns:
            The same, untouched.
        """
        self._details().said = self._breaker.verdict_of(result)
        return result

    def is_content(self, content: Callable[[Any], bool], item: Any) -> bool:
        """Ask whether an item of a stream is content; if the question raises, it is, as most items are."""
        try:
            return bool(content(item))
        except DROPPED as mistake:
            self._breaker.misjudged("asking whether an item is content", mistake)
            return True

    def _details(self) -> _More:
        if self._more is None:
            if not hasattr(self, "generation"):
                raise BadPayload(
                    "a permit is entered before anything is said of its call: with breakers.permit(key)"
                )
            self._more = _More(Call(self.generation))
        return self._more

    # --- with -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        generation = self._breaker.fast_in
        if generation:
            self.generation = generation
            return self
        more = self._asking()
        try:
            self._got(more, self._breaker.take(more))
            return self  # noqa: TRY300 - an interrupt at this line loses nothing either
        except BaseException:
            self._breaker.abandon(more)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        breaker = self._breaker
        if kind is None and self._more is None and self.generation == breaker.fast_out:
            breaker.succeeded += 1
            return
        try:
            verdict = self._verdict(error)
            if verdict is not None:
                breaker.finish(self.call, verdict, None if error is None else why_of(error))
        except BaseException:  # an interrupt
            breaker.lose(self.call.token)
            raise
        self._more = None

    def answered(self) -> None:
        """Say that the first content of a stream is here: the verdict falls now, and it is SUCCESS.

        What goes wrong later (a stall) is a FAILURE of its own; a cancel is none any more.
        """
        if not self.has_answered:
            self._breaker.finish(self.call, SUCCESS)
            self._onwards()

    # --- async with -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        generation = self._breaker.fast_in
        if generation:
            self.generation = generation
            return self
        more = self._asking()
        try:
            self._got(more, await take_async(self._breaker, more))
            return self  # noqa: TRY300 - as above
        except asyncio.CancelledError:
            raise  # the thread that takes it gives it back
        except BaseException:
            self._breaker.abandon(more)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        breaker = self._breaker
        if kind is None and self._more is None and self.generation == breaker.fast_out:
            breaker.succeeded += 1
            return
        try:
            verdict = self._verdict(error)
            if verdict is not None:
                why = None if error is None else why_of(error)
                await finish_async(breaker, self.call, verdict, why, closing=isinstance(error, GeneratorExit))
        except asyncio.CancelledError:
            raise  # the thread that settles it goes on
        except BaseException:  # an interrupt
            breaker.lose(self.call.token)
            raise
        finally:
            self._more = None

    async def answered_async(self) -> None:
        """Do the same as `answered` without blocking the event loop."""
        if not self.has_answered:
            await finish_async(self._breaker, self.call, SUCCESS, None)
            self._onwards()

    # --- inside -----------------------------------------------------------------------------------------------

    def _asking(self) -> _More:
        """Return what will hold a probe; one permit is for one call at a time."""
        if self._more is not None and self._more.call is not None:
            raise BadPayload(
                "this permit is in use: ask breakers.permit(key) for one of its own for each call"
            )
        self._more = more = _More(None)
        return more

    def _got(self, more: _More, call: Call) -> None:
        more.call = call
        self._more = more
        self.generation = call.generation

    def _onwards(self) -> None:
        """After the first content the rest of the stream is watched as a call of the generation that is now."""
        breaker = self._breaker
        self._got(_More(None), Call(breaker.row.generation, None, breaker.clock.monotonic()))
        self._details().answered = True

    def _verdict(self, error: BaseException | None) -> Verdict | None:
        """Return what the call came to, ``None`` if that was noted at its first content already."""
        said = None if self._more is None else self._more.said
        if error is None:
            verdict = said or SUCCESS
        else:
            verdict = self._breaker.verdict(error)
            if said is not None and verdict.kind is not Kind.CANCELLED:
                verdict = said
        if self.has_answered and verdict.kind in {Kind.SUCCESS, Kind.CANCELLED}:
            return None
        return verdict


# --- waiting for a disk without blocking the event loop --------------------------------------------------------


class _Handover:
    """A permit on its way from a thread to a task that may be gone by then."""

    def __init__(self, breaker: Breaker, held: object | None) -> None:
        self._breaker = breaker
        self._held = held
        self._lock = threading.RLock()  # without a thread to be had, both ends are in one
        self._gone = False
        self._begun = False
        self._call: Call | None = None

    def take(self) -> Call | None:
        """Take the permit; without a taker it is given back, and none is taken twice.

        An executor that can start no thread raises, and may run what it was handed all the same, later.
        """
        with self._lock:
            if self._gone or self._begun:
                return self._call
            self._begun = True
        call = self._breaker.take(self._held)
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


async def take_async(breaker: Breaker, held: object | None = None) -> Call:
    """Do `Breaker.take` without blocking the event loop.

    Args:
        breaker: Who is asked.
        held: As for `Breaker.take`.

    Raises:
        BreakerOpen: There is no permit.
    """
    if breaker.instant or breaker.row.state in PASSING:
        return breaker.take(held)
    shut = breaker.shut()
    if shut is not None:
        raise shut
    handover = _Handover(breaker, held)
    try:
        call = await _in_thread(handover.take)
        assert call is not None  # noqa: S101 - a caller that waits is not gone
    except BaseException as error:
        given = handover.leave()
        if given is not None:
            await finish_async(breaker, given, CANCELLED, None, closing=isinstance(error, GeneratorExit))
        raise
    return call


async def finish_async(
    breaker: Breaker, call: Call, verdict: Verdict, why: str | None, *, closing: bool = False
) -> None:
    """Do `Breaker.finish` without blocking the event loop; a cancel meanwhile does not undo it.

    Args:
        breaker: Whose call it was.
        call: The permit.
        verdict: What the call came to.
        why: For the journal.
        closing: Whether the caller is being closed, so that it cannot wait for anything any more.
    """
    open_question = breaker.leave(call, verdict)
    if open_question is None:
        return
    if closing or breaker.instant:
        breaker.settle(call, open_question, why)
    else:
        question = open_question
        await _in_thread(lambda: breaker.settle(call, question, why))


async def leave_async(breaker: Breaker, call: Call, error: BaseException) -> None:
    """Note that a call raised, without blocking the event loop.

    Args:
        breaker: Whose call it was.
        call: The permit.
        error: What was raised.
    """
    closing = isinstance(error, GeneratorExit)
    await finish_async(breaker, call, breaker.verdict(error), why_of(error), closing=closing)


async def _in_thread(function: Callable[[], T]) -> T:
    """Run `function` in a thread, to its end, even if the caller is cancelled before."""
    try:
        future: asyncio.Future[Any] = asyncio.get_running_loop().run_in_executor(None, function)
    except RuntimeError:
        return function()  # the loop is about to close and has no threads left
    out: T = await asyncio.shield(future)
    return out
