"""Functions that block, each in a thread of its own: neither another agent nor the engine's reads wait for it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def thread_of_its_own(function: Callable[[], T], name: str) -> tuple[asyncio.Future[T], threading.Thread]:
    """Call a function in a new thread, in the caller's context.

    How many there are is bounded by who calls: an agent has a slot, and waits for each of its calls. The thread is a
    daemon: it does not keep the process alive.

    Args:
        function: What to call.
        name: The thread's name, after a prefix.

    Returns:
        What it comes to, and the thread.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def tell(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, StopIteration):
            future.set_exception(RuntimeError("the function raised StopIteration"))
        else:
            future.set_exception(error)

    def work() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = function()
        except BaseException as raised:  # noqa: BLE001 - whatever it is, it belongs to the caller
            error = raised
        try:
            loop.call_soon_threadsafe(tell, result, error)
        except RuntimeError:
            return  # the loop was closed: no caller waits any more

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(work,), name=f"fsm-{name}"[:60], daemon=True
    )
    thread.start()
    return future, thread
