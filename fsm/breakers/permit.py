"""The permit: what a call runs inside, with ``with`` or ``async with``.

What both faces do is written once, as steps (`fsm.breakers.faces`). Each face keeps only its short way past them,
for a call that a closed breaker lets through and that goes well.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

from fsm.breakers.breaker import Breaker, Call
from fsm.breakers.faces import Disk, Steps, later, now
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
    """Leave to make one call. Entering asks for it; leaving notes the call's verdict.

    A block that ends is a SUCCESS; one that raises gets the classifier's verdict. A caller that knows better says so
    inside: `fail`, `throttle`, `ignore` or `judge`.

    One is made for every call, so it has three slots and sets two of them: what else there may be to know about a
    call is in a part of its own that most calls never get.

    Attributes:
        generation: The breaker's generation when the permit was given; unset before it is entered.
    """

    __slots__ = ("_breaker", "_more", "generation")

    generation: int

    def __init__(self, breaker: Breaker[Permit]) -> None:
        self._breaker = breaker
        self._more: _More | None = None

    # --- what the caller knows better -------------------------------------------------------------------------

    @property
    def call(self) -> Call:
        """The permit as `Breakers.release` takes it."""
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
        """Say that the server wants to be left alone for some seconds; ``None`` for the policy's cooldown."""
        self._details().said = throttled(retry_after_s)

    def judge(self, result: T) -> T:
        """Let the classifier read what the call returned (an HTTP response that was not raised); return the same."""
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

    # --- the two faces ----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        generation = self._breaker.fast_in
        if generation:
            self.generation = generation
            return self
        return self if self._let_in() else now(self._probe())

    async def __aenter__(self) -> Self:
        generation = self._breaker.fast_in
        if generation:
            self.generation = generation
            return self
        return self if self._let_in() else await later(self._probe())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        breaker = self._breaker
        if kind is None and self._more is None and self.generation == breaker.fast_out:
            breaker.succeeded += 1
            return
        settle = self._left(error)
        if settle is not None:
            now(self._settled(settle))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        breaker = self._breaker
        if kind is None and self._more is None and self.generation == breaker.fast_out:
            breaker.succeeded += 1
            return
        settle = self._left(error)
        if settle is not None:
            await later(self._settled(settle), closing=issubclass(type(error), GeneratorExit))

    def answered(self) -> None:
        """Say that the first content of a stream is here: the verdict falls now, and it is SUCCESS.

        What goes wrong later (a stall) is a FAILURE of its own; a cancel is none any more.
        """
        now(self.answer())

    async def answered_async(self) -> None:
        """Do the same as `answered` without blocking the event loop."""
        await later(self.answer())

    # --- what both do -----------------------------------------------------------------------------------------

    def entered(self, generation: int) -> Self:
        """Count as entered when the breaker was closed in this generation."""
        self.generation = generation
        return self

    def enter(self) -> Steps[Self]:
        """Ask for the permit; raises `BreakerOpen` if there is none."""
        return self if self._let_in() else (yield from self._probe())

    def _let_in(self) -> bool:
        """Ask without waiting; ``False`` if a probe has to be asked for. One permit is for one call at a time."""
        if self._more is not None and self._more.call is not None:
            raise BadPayload(
                "this permit is in use: ask breakers.permit(key) for one of its own for each call"
            )
        call = self._breaker.ask()
        if call is not None:
            self._got(_More(None), call)
        return call is not None

    def _probe(self) -> Steps[Self]:
        more = self._more = _More(None)
        try:
            self._got(more, (yield from take_probe(self._breaker, more)))
            return self  # noqa: TRY300 - an interrupt at this line loses nothing either
        except asyncio.CancelledError:
            raise  # the thread that takes it gives it back
        except BaseException:
            self._breaker.abandon(more)
            raise

    def _left(self, error: BaseException | None) -> Disk | None:
        """Note the verdict of the call that ended, with the error that it raised; return what is left to do."""
        settle = None
        try:
            verdict = self._verdict(error)
            if verdict is not None:
                why = None if error is None else why_of(error)
                settle = left(self._breaker, self.call, verdict, why)
        except BaseException:  # an interrupt
            self._breaker.lose(self.call.token)
            raise
        if settle is None:
            self._more = None
        return settle

    def _settled(self, settle: Disk) -> Steps[None]:
        try:
            yield from _run(self._breaker, settle)
        except asyncio.CancelledError:
            raise  # the thread that settles it goes on
        except BaseException:  # an interrupt
            self._breaker.lose(self.call.token)
            raise
        finally:
            self._more = None

    def answer(self) -> Steps[None]:
        """See `answered`. The rest of the stream is watched as a call of the generation that is now."""
        if self.has_answered:
            return
        breaker = self._breaker
        yield from finish(breaker, self.call, SUCCESS)
        self._got(_More(None), Call(breaker.row.generation, None, breaker.clock.monotonic()))
        self._details().answered = True

    def _got(self, more: _More, call: Call) -> None:
        more.call = call
        self._more = more
        self.generation = call.generation

    def _verdict(self, error: BaseException | None) -> Verdict | None:
        """Return the call's verdict, ``None`` if it was noted at its first content already."""
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


ABreaker: TypeAlias = Breaker[Permit]
"""A breaker whose permits are for ``with`` and ``async with``."""


def take(breaker: ABreaker) -> Steps[Call]:
    """Return a permit by hand; raises `BreakerOpen` if there is none."""
    return breaker.ask() or (yield from take_probe(breaker, None))


def take_probe(breaker: ABreaker, held: object | None) -> Steps[Call]:
    """Do `Breaker.take_probe`; a caller that is cancelled while it waits leaves no probe out."""
    if breaker.instant:
        return breaker.take_probe(held)
    handover: Future[Call] = Future()
    turn = threading.Lock()

    def taking() -> None:
        # An executor that can start no thread raises, and may run what it was handed all the same, later.
        if turn.acquire(blocking=False) and handover.set_running_or_notify_cancel():
            try:
                handover.set_result(breaker.take_probe(held))
            except BaseException as error:  # noqa: BLE001 - it is raised where the permit is waited for
                handover.set_exception(error)

    try:
        yield Disk(taking)
        return handover.result()
    except BaseException:
        if not handover.cancel():  # it was begun, and is given back where it ends
            handover.add_done_callback(partial(_give_back, breaker))
        raise


def _give_back(breaker: ABreaker, taken: Future[Call]) -> None:
    if taken.exception() is None:
        now(finish(breaker, taken.result(), CANCELLED))


def left(breaker: ABreaker, call: Call, verdict: Verdict, why: str | None) -> Disk | None:
    """Note a call's verdict; return what settles it if the row has to change."""
    question = breaker.leave(call, verdict)
    return None if question is None else Disk(breaker.settle, call, question, why)


def finish(breaker: ABreaker, call: Call, verdict: Verdict, why: str | None = None) -> Steps[None]:
    """Note a call's verdict, and settle it if the row has to change; a cancel while it waits does not undo it."""
    settle = left(breaker, call, verdict, why)
    if settle is not None:
        yield from _run(breaker, settle)


def _run(breaker: ABreaker, settle: Disk) -> Steps[None]:
    if breaker.instant:
        settle()
    else:
        yield settle
