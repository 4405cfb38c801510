"""The decorator, and streams.

A function that goes well costs two look-ups on top of its own call. A ``with`` stands on one line with its body where
an interrupt between the two would skip the exit. A stream's verdict falls at its first content item: from there on the
provider has shown that it answers. Before that, closing the stream is a cancel; after that, a stall or an error is a
failure.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from fsm.breakers.faces import Steps, later, now
from fsm.breakers.foreign import DROPPED
from fsm.breakers.keys import key_of
from fsm.breakers.permit import ABreaker, Permit
from fsm.breakers.verdicts import has_content
from fsm.clock import Clock
from fsm.errors import BadPayload

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
_NO_FAST_WAY: Any = SimpleNamespace(fast_call=0)
"""In place of a breaker whose key depends on the arguments."""


class Guard:
    """A decorator that puts a breaker around a callable; get one from ``breakers.guard(key)``.

    Args:
        get: Returns the breaker of a key.
        key: The breaker's key, or a function of the call's arguments that returns it.
        stall_s: For generators: this many seconds between two items are a failure.
    """

    def __init__(
        self, get: Callable[[str], ABreaker], key: str | Callable[..., str], stall_s: float | None
    ) -> None:
        self._get = get
        self._key = key if callable(key) else key_of(key)
        self._stall_s = stall_s

    def __call__(self, function: F) -> F:
        """Wrap `function`; what it returns, yields and raises stays as it is."""
        if not callable(function):
            raise BadPayload(
                f"breakers(key) decorates something that can be called, not a {type(function).__name__}"
            )
        for is_one, wrap in (
            (inspect.isasyncgenfunction, self._async_generator),
            (inspect.isgeneratorfunction, self._generator),
            (inspect.iscoroutinefunction, self._coroutine),
        ):
            if is_one(function):
                return cast("F", functools.wraps(function)(wrap(function)))
        return cast("F", functools.wraps(function)(self._function(function)))

    def _of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ABreaker:
        return self._get(self._key if isinstance(self._key, str) else self._key(*args, **kwargs))

    def _fixed(self) -> ABreaker:
        return self._get(self._key) if isinstance(self._key, str) else _NO_FAST_WAY

    def _function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        breaker = self._fixed()

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            generation = breaker.fast_call
            if not generation:
                asked = self._of(args, kwargs)
                permit = asked.permit()
                with permit: return _judged(asked, permit, function(*args, **kwargs))  # noqa: E701  # fmt: skip
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                breaker.permit().entered(generation).__exit__(type(error), error, None)
                raise
            if generation == breaker.fast_out:
                breaker.succeeded += 1
            else:
                breaker.permit().entered(generation).__exit__(None, None, None)
            return result

        return wrapped

    def _coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        breaker = self._fixed()

        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            generation = breaker.fast_call
            if not generation:
                asked = self._of(args, kwargs)
                permit = asked.permit()
                async with permit: return _judged(asked, permit, await function(*args, **kwargs))  # noqa: E701  # fmt: skip
            try:
                result = await function(*args, **kwargs)
            except BaseException as error:
                await breaker.permit().entered(generation).__aexit__(type(error), error, None)
                raise
            if generation == breaker.fast_out:
                breaker.succeeded += 1
            else:
                await breaker.permit().entered(generation).__aexit__(None, None, None)
            return result

        return wrapped

    def _generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            breaker = self._of(args, kwargs)
            opened = functools.partial(function, *args, **kwargs)
            return (
                yield from stream_sync(breaker.permit(), opened, has_content, self._stall_s, breaker.clock)
            )

        return wrapped

    def _async_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapped(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            opened = functools.partial(function, *args, **kwargs)
            permit = self._of(args, kwargs).permit()
            passed: AsyncGenerator[Any, None] = stream_async(permit, opened, has_content, None, self._stall_s)
            async with aclosing(passed):
                async for item in passed:
                    yield item

        return wrapped


def _judged(breaker: ABreaker, permit: Permit, result: Any) -> Any:
    """Return a result; whether it is judged is asked after the call: a classifier may be declared at any time."""
    return permit.judge(result) if breaker.classifier.judges_results else result


def stream_sync(
    permit: Permit,
    items: Iterable[T] | Callable[[], Iterable[T]],
    content: Callable[[Any], bool],
    stall_s: float | None,
    clock: Clock,
) -> Generator[T, Any, Any]:
    """Pass a stream on inside a permit; see `Breakers.stream`.

    A thread that reads cannot be interrupted, so a stall is seen when it is over; the client's own read timeout ends
    it, which is a failure as well.
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
                took_s = clock.monotonic() - since
                now(_came(permit, content, item, stalled=stall_s is not None and took_s >= stall_s))
                sent = yield item
        finally:
            now(_close((iterator, opened), ("close",), DROPPED, failed=failed))


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
                await later(_came(permit, content, item, stalled=False))  # a stall was a TimeoutError
                yield item
        finally:
            heard = (Exception, GeneratorExit)  # a cancel of the reader goes on even now
            await later(_close((iterator, opened), ("aclose", "close"), heard, failed=failed))


def _came(permit: Permit, content: Callable[[Any], bool], item: Any, *, stalled: bool) -> Steps[None]:
    """Look at an item of a stream: the first content is the answer, and a stall after it is a failure."""
    if permit.has_answered:
        if stalled:
            permit.fail()
    elif permit.is_content(content, item):
        yield from permit.answer()


def _close(
    streams: tuple[Any, Any],
    names: tuple[str, ...],
    dropped: tuple[type[BaseException], ...],
    *,
    failed: bool,
) -> Steps[None]:
    """Close a stream and what opened it; what ended the stream goes before what closing it raises."""
    error: BaseException | None = None
    for stream in streams:
        try:
            found = (getattr(stream, name, None) for name in names)
            close = next((one for one in found if one is not None), None)
            if close is not None:
                yield close
        except BaseException as raised:  # noqa: BLE001 - it is raised below, unless the stream's own error goes first
            error = raised
            if issubclass(type(raised), GeneratorExit):
                break  # these steps may be closed themselves, and yield no more then
    if error is None:
        return
    if not failed or not issubclass(type(error), dropped):
        raise error
    logger.debug("a stream that had failed could not be closed: %s", type(error).__name__)
