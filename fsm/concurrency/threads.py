"""A few threads of one registry for what waits for a disk, so that no other blocking call stands before it.

asyncio's default executor belongs to the whole program: a handful of `asyncio.to_thread` calls of one agent occupy it,
and then no reads are done. These threads are used by the library alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from fsm.concurrency.forks import anew_after_fork

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

P = ParamSpec("P")
T = TypeVar("T")

STORE_THREADS = 8
"""Maximum number of threads of one registry that wait for its store at the same time; further calls queue up."""


class _Work:
    """One call. It is made once, by a thread of the pool, or by the caller where no thread can be had."""

    def __init__(self, function: Callable[[], Any]) -> None:
        from concurrent.futures import Future  # noqa: PLC0415 - loaded by those who use it

        self.future: Future[Any] = Future()
        self._function = function
        self._taken = threading.Lock()

    def __call__(self) -> None:
        if not self._taken.acquire(blocking=False):
            return
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._function()
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Threads:
    """The threads. They are started when they are needed, and a forked child starts its own."""

    def __init__(self, name: str, limit: int = STORE_THREADS) -> None:
        """Start none yet.

        Args:
            name: What the threads' names begin with.
            limit: Maximum number of threads.
        """
        self._name = name
        self._limit = limit
        self._starting = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        anew_after_fork(self)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in one of the threads, in the caller's context.

        A caller that is cancelled during it does not stop a call that has begun. Where no thread can be had (the
        interpreter is shutting down, the registry is closed), the call is made at once on this thread.
        """
        import asyncio  # noqa: PLC0415 - loaded by those who use it

        loop = asyncio.get_running_loop()
        work = _Work(partial(copy_context().run, partial(function, *args, **kwargs)))
        try:
            loop.run_in_executor(self._executor(), work)
        except RuntimeError:
            work()
        result: T = await asyncio.wrap_future(work.future, loop=loop)
        return result

    def _executor(self) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - loaded by those who use it

        with self._starting:
            if self._closed:
                raise RuntimeError("these threads are closed")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._limit, thread_name_prefix=self._name)
            return self._pool

    def close(self) -> None:
        """Let what is under way come to its end, and start nothing any more."""
        with self._starting:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)

    def after_fork(self) -> None:
        """Start over in a forked child: the parent's threads are not here."""
        self._starting = threading.Lock()
        self._pool = None
