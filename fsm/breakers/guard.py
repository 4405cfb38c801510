"""The decorator, and streams.

A function that goes well costs two look-ups on top of its own call. A ``with`` stands on one line with its body where
an interrupt between the two would skip the exit. A stream's verdict falls at its first content
item: from there on the provider has shown that it answers. Before that, closing the stream is a cancel; after that,
a stall or an error is a failure.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fsm.breakers.breaker import Breaker, Call
from fsm.breakers.foreign import DROPPED
from fsm.breakers.keys import key_of
from fsm.breakers.permit import Permit, finish_async, leave_async
from fsm.breakers.verdicts import SUCCESS, has_content
from fsm.clock import Clock
from fsm.errors import BadPayload

if TYPE_CHECKING:
    from fsm.breakers.registry import Breakers

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class Guard:
    """A decorator that puts a breaker around a callable; get one from ``breakers.guard(key)``."""

    def __init__(self, breakers: Breakers, key: str | Callable[..., str], stall_s: float | None) -> None:
        """Note what to put around.

        Args:
            breakers: Where the breaker is found.
            key: The breaker, or a function of the call's arguments that returns it.
            stall_s: For generators: so many seconds between two items are a failure.
        """
        if not callable(key):
            key = key_of(key)
        self._breakers = breakers
        self._key = key
        self._stall_s = stall_s

    def __call__(self, function: F) -> F:
        """Wrap `function`; what it returns, yields and raises stays as it is."""
        if not callable(function):
            raise BadPayload(
                f"breakers(key) decorates something that can be called, not a {type(function).__name__}"
            )
        if inspect.isasyncgenfunction(function):
            return cast("F", self._async_generator(function))
        if inspect.isgeneratorfunction(function):
            return cast("F", self._generator(function))
        if inspect.iscoroutinefunction(function):
            return cast("F", self._coroutine(function))
        return cast("F", self._function(function))

    def _of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        return self._key if isinstance(self._key, str) else self._key(*args, **kwargs)

    def _fixed(self) -> Breaker | None:
        """The breaker, if it is the same for every call."""
        return self._breakers.get(self._key) if isinstance(self._key, str) else None

    def _function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        breakers, fixed = self._breakers, self._fixed()

        def slowly(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            permit = breakers.permit(self._of(args, kwargs))
            with permit: return _judged(permit, fixed, function(*args, **kwargs))  # noqa: E701  # fmt: skip

        if fixed is None:
            return functools.wraps(function)(lambda *args, **kwargs: slowly(args, kwargs))
        breaker = fixed

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            generation = breaker.fast_call
            if not generation:
                return slowly(args, kwargs)
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                breaker.finish_error(Call(generation), error)
                raise
            if generation == breaker.fast_out:
                breaker.succeeded += 1
            else:
                breaker.finish(Call(generation), SUCCESS)
            return result

        return wrapped

    def _coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        breakers, fixed = self._breakers, self._fixed()

        async def slowly(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            permit = breakers.permit(self._of(args, kwargs))
            async with permit: return _judged(permit, fixed, await function(*args, **kwargs))  # noqa: E701  # fmt: skip

        if fixed is None:

            @functools.wraps(function)
            async def judged(*args: Any, **kwargs: Any) -> Any:
                return await slowly(args, kwargs)

            return judged
        breaker = fixed

        @functools.wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            generation = breaker.fast_call
            if not generation:
                return await slowly(args, kwargs)
            try:
                result = await function(*args, **kwargs)
            except BaseException as error:
                await leave_async(breaker, Call(generation), error)
                raise
            if generation == breaker.fast_out:
                breaker.succeeded += 1
            else:
                await finish_async(breaker, Call(generation), SUCCESS, None)
            return result

        return wrapped

    def _generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            breakers = self._breakers
            permit = breakers.permit(self._of(args, kwargs))
            opened = functools.partial(function, *args, **kwargs)
            return (yield from stream_sync(permit, opened, has_content, self._stall_s, breakers.clock))

        return wrapped

    def _async_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            permit = self._breakers.permit(self._of(args, kwargs))
            opened = functools.partial(function, *args, **kwargs)
            passed: AsyncGenerator[Any, None] = stream_async(permit, opened, has_content, None, self._stall_s)
            async with aclosing(passed):
                async for item in passed:
                    yield item

        return wrapped


def _judged(permit: Permit, fixed: Breaker | None, result: Any) -> Any:
    """Return a result; whether it is judged is asked after the call, since a classifier may be declared at any time."""
    return permit.judge(result) if fixed is None or fixed.classifier.judges_results else result


def stream_sync(
    permit: Permit,
    items: Iterable[T] | Callable[[], Iterable[T]],
    content: Callable[[Any], bool],
    stall_s: float | None,
    clock: Clock,
) -> Generator[T, Any, Any]:
    """Pass a stream on inside a permit; see `Breakers.stream`.

    A thread cannot be called back from a read, so a stall is seen when it is over; the client's own read timeout
    ends it, which is a failure as well.
    """
    with permit:
        opened = items() if callable(items) else items
        iterator = iter(opened)
        sent: Any = None
        failed = True
        try:
            while True:
                since = clock.monotonic()
                try:
                    item = next(iterator) if sent is None else cast("Any", iterator).send(sent)
                except StopIteration as end:
                    failed = False
                    return end.value
                if permit.has_answered:
                    if stall_s is not None and clock.monotonic() - since >= stall_s:
                        permit.fail()
                elif permit.is_content(content, item):
                    permit.answered()
                sent = yield item
        finally:
            _close_both(iterator, opened, failed=failed)


async def stream_async(
    permit: Permit,
    items: AsyncIterable[T] | Callable[[], Any],
    content: Callable[[Any], bool],
    first_s: float | None,
    stall_s: float | None,
) -> AsyncGenerator[T, None]:
    """Pass an asynchronous stream on inside a permit; see `Breakers.stream_async`."""
    async with permit:
        loop = asyncio.get_running_loop()
        first_at = None if first_s is None else loop.time() + first_s
        async with asyncio.timeout_at(first_at):
            opened: Any = items() if callable(items) else items
            if inspect.isawaitable(opened):
                opened = await opened
        iterator = aiter(opened)
        failed = True
        try:
            while True:
                until = first_at
                if permit.has_answered:
                    until = None if stall_s is None else loop.time() + stall_s
                try:
                    async with asyncio.timeout_at(until):
                        item = await anext(iterator)
                except StopAsyncIteration:
                    failed = False
                    return
                if not permit.has_answered and permit.is_content(content, item):
                    await permit.answered_async()
                yield item
        finally:
            try:
                await _close(iterator, opened)
            except DROPPED as error:
                # What ended the stream goes first; only a cancel is heard even now.
                if not failed or isinstance(error, asyncio.CancelledError):
                    raise
                logger.debug("a stream that had failed could not be closed: %s", type(error).__name__)


def _close_both(iterator: Any, opened: Any, *, failed: bool) -> None:
    """Close a stream and what opened it; what ended it goes before what closing it raises."""
    try:
        try:
            _close_one(iterator)
        finally:
            _close_one(opened)
    except DROPPED as error:
        if not failed:
            raise
        logger.debug("a stream that had failed could not be closed: %s", type(error).__name__)


def _close_one(stream: Any) -> None:
    close = getattr(stream, "close", None)
    if close is not None:
        close()


async def _close(iterator: Any, opened: Any) -> None:
    try:
        await _close_one_async(iterator)
    finally:
        await _close_one_async(opened)


async def _close_one_async(stream: Any) -> None:
    close = getattr(stream, "aclose", None) or getattr(stream, "close", None)
    if close is not None and inspect.isawaitable(closing := close()):
        await closing
