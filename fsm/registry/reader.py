"""Threads that wait for the store on behalf of an event loop.

They are the registry's own: asyncio's default executor is shared with the blocking calls of agents, and a few of those
would keep every other caller from reading.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from fsm.concurrency.forks import anew_after_fork
from fsm.errors import StoreUnavailable
from fsm.stores.base import Store

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

MAX_READERS = 8
"""Maximum number of threads in which one registry waits for its store on behalf of event loops."""

P = ParamSpec("P")
T = TypeVar("T")


class Reader:
    """Calls functions that wait for one store, off the event loop; its threads start with the first such call."""

    def __init__(self, store: Store) -> None:
        """Begin without a thread."""
        self._store = store
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False
        anew_after_fork(self)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function here if the store never waits, and in a thread if it may.

        Raises:
            StoreUnavailable: No thread can be had; a busy one may still carry the call out.
        """
        if self._store.instant:
            return function(*args, **kwargs)
        return await self.in_thread(function, *args, **kwargs)

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread, in the caller's context. A cancel does not stop a call that has begun.

        Raises:
            StoreUnavailable: No thread can be had; a busy one may still carry the call out.
        """
        import asyncio  # noqa: PLC0415 - loaded by those who use it

        call = cast("Callable[[], T]", partial(contextvars.copy_context().run, function, *args, **kwargs))
        threads = self._started()
        if threads is None:
            return call()  # the store is closed, and says so without waiting
        try:
            future = asyncio.get_running_loop().run_in_executor(threads, call)
        except RuntimeError as error:  # the process has too many threads, or the interpreter is shutting down
            if self._closed:
                return call()
            raise StoreUnavailable(
                f"no thread can be had to wait for the store ({error}): end some threads and try again",
                committed=None,
            ) from error
        return await future

    def close(self) -> None:
        """Let the threads end when what they were given is done; called after the store was closed."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)

    def after_fork(self) -> None:
        """Begin without a thread in a forked child: it has none of its parent's."""
        self._lock = threading.Lock()
        self._threads = None

    def _started(self) -> ThreadPoolExecutor | None:
        with self._lock:
            if self._threads is None and not self._closed:
                from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - as asyncio

                self._threads = ThreadPoolExecutor(MAX_READERS, thread_name_prefix="fsm-read")
            return self._threads
