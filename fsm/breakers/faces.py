"""One implementation for threads and for asyncio.

What may have to wait is written once, as a generator of steps: it yields what is to be called and is sent what that
returned. The synchronous face runs the steps with `now`, the asynchronous one with `later`. (A coroutine could be
run by both as well, but one that an interrupt hits before its first line is a warning.)

Steps that an interrupt abandons are closed: after a `GeneratorExit` they yield no more.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

T = TypeVar("T")

Steps: TypeAlias = Generator[Callable[[], Any], Any, T]
"""Yields what is to be called, one after another, and returns what comes of it."""


class Disk(partial[Any]):
    """A step that may wait for a disk: an event loop leaves it to a thread."""


def now(steps: Steps[T]) -> T:
    """Run steps in this thread."""
    try:
        step = next(steps)
        while True:
            try:
                got = step()
            except BaseException as error:  # noqa: BLE001 - the steps say what becomes of it
                step = steps.throw(error)
            else:
                step = steps.send(got)
    except StopIteration as end:
        return cast("T", end.value)


async def later(steps: Steps[T], *, closing: bool = False) -> T:
    """Run steps without blocking the event loop.

    In a coroutine that is being closed nothing can be awaited any more: with `closing`, what waits for a disk runs in
    this thread.
    """
    try:
        step = next(steps)
        while True:
            try:
                if isinstance(step, Disk):
                    got = step() if closing else await _in_thread(step)
                elif inspect.isawaitable(got := step()):
                    got = await got
            except BaseException as error:  # noqa: BLE001 - as above
                step = steps.throw(error)
            else:
                step = steps.send(got)
    except StopIteration as end:
        return cast("T", end.value)


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Call a function in a thread, to its end, even if the caller is cancelled before."""
    try:
        future = asyncio.get_running_loop().run_in_executor(None, function)
    except RuntimeError:
        return function()  # the loop is about to close and has no threads left
    return await asyncio.shield(future)
