"""An event loop in a thread, for code that has none."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from fsm.errors import ConfigurationError

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Portal:
    """Runs coroutines for threads that have no event loop. The thread is a daemon, and is stopped at exit."""

    def __init__(self) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        self._stopping = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="fsm-portal", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _run(self) -> None:
        """Run the loop until it is closed. SystemExit in an agent ends a loop; here it is for its caller alone."""
        while not self._stopping:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                logger.info("an agent raised %s; its caller does too", type(error).__name__)

    @property
    def closed(self) -> bool:
        """Whether it was closed, or this is a forked child, in which the thread is not."""
        return self._loop.is_closed() or os.getpid() != self._pid

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result; blocks. An interrupt cancels it, and waits until it has stopped.

        Raises:
            ConfigurationError: This thread has an event loop: await instead.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            coroutine.close()
            raise ConfigurationError(
                "this thread has an event loop, which must not be blocked: await instead"
            )
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel what runs, wait for it, and stop the thread."""
        if self.closed:
            return
        atexit.unregister(self.close)
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result(timeout=30.0)
        self._stopping = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=30.0)
        self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
