"""One implementation for threads and for asyncio.

What may wait is written once, as a coroutine that waits for nothing but the `Wait` it is handed. The synchronous face
runs it with `now` and `here`, and it is over before `now` returns; the asynchronous face awaits it with `in_thread`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


class Wait(Protocol):
    """Calls a function that may wait for a disk, and returns what it returned."""

    def __call__(self, function: Callable[[], T], /) -> Coroutine[Any, Any, T]:
        """Call it."""
        ...


async def here(function: Callable[[], T]) -> T:
    """Call a function in this thread, which waits for it."""
    return function()


async def in_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread of the event loop's, to its end, even if the caller is cancelled before."""
    try:
        future: asyncio.Future[Any] = asyncio.get_running_loop().run_in_executor(None, function)
    except RuntimeError:
        return function()  # the loop is about to close and has no threads left
    out: T = await asyncio.shield(future)
    return out


def now(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a coroutine that waits `here` to its end."""
    try:
        function(*args, **kwargs).send(
            None
        )  # begun where it is made: an interrupt leaves none that never ran
    except StopIteration as end:
        return cast("T", end.value)
    raise RuntimeError(f"{function.__qualname__} waits for an event loop, but it was called without one")
