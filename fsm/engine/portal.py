"""An event loop in a thread, for code that has none."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from fsm.concurrency.supervised import Health, keep_going
from fsm.errors import ConfigurationError

logger = logging.getLogger(__name__)
T = TypeVar("T")

EXIT_S = 10.0
"""How long an interrupt and the end of the process wait for what runs in the portal, in seconds."""
JOIN_S = 2.0
"""How long the end of the process waits for the portal's thread after that, in seconds."""
CANCEL_ROUNDS = 10
"""Maximum number of times that tasks are looked for which began while others were being cancelled."""


class Portal:
    """Runs coroutines for threads that have no event loop. The thread is a daemon, and is stopped at exit."""

    def __init__(self, health: Health) -> None:
        """Start the thread.

        Args:
            health: Where failures of the loop itself are counted.
        """
        self._loop = asyncio.new_event_loop()
        self._stop = threading.Event()
        self._pid = os.getpid()
        self._health = health
        self._thread = threading.Thread(target=self._run, name="fsm-portal", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _run(self) -> None:
        """Run the loop until it is closed."""
        keep_going(self._health.loop("portal"), self._turn, self._stop.wait)

    def _turn(self) -> float:
        """Run the loop until it stops. SystemExit in an agent ends a loop; here it is for its caller alone."""
        try:
            self._loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:
            logger.info("an agent raised %s; its caller does too", type(error).__name__)
        return 0.0

    @property
    def closed(self) -> bool:
        """Whether it was closed, or this is a forked child, in which the thread is not."""
        return self._stop.is_set() or self._loop.is_closed() or os.getpid() != self._pid

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result; blocks.

        An interrupt cancels it, and waits until it has stopped, for `EXIT_S` at the most; a second one waits for
        nothing.

        Raises:
            ConfigurationError: This thread has an event loop: await instead. Or the portal was closed.
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
        result: Future[T] = Future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            task = self._loop.create_task(coroutine)
            tasks.append(task)
            task.add_done_callback(lambda done: _hand_over(done, result))

        try:
            self._loop.call_soon_threadsafe(begin)
        except RuntimeError:
            coroutine.close()
            raise ConfigurationError("the engine's event loop is closed: the process ends") from None
        try:
            return result.result()
        except KeyboardInterrupt:
            if not result.done():  # the interrupt is this thread's, not the agent's
                self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
                wait({result}, timeout=EXIT_S)
            raise

    def close(self) -> None:
        """Cancel what runs, wait for it, and stop the thread, within `EXIT_S` and `JOIN_S`; what is left is logged."""
        if self.closed or threading.current_thread() is self._thread:
            return
        atexit.unregister(self.close)
        cancelling = asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop)
        try:
            left = cancelling.result(timeout=EXIT_S + JOIN_S)
        except TimeoutError:
            left = ["the loop itself, which something blocks"]
        if left:
            logger.error(
                "at the end of the portal %d did not stop in time: %s", len(left), ", ".join(left[:20])
            )
        self._stop.set()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=JOIN_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _cancel_all(self) -> list[str]:
        """Cancel every task, and return the names of those that do not stop."""
        loop = asyncio.get_running_loop()
        until, told = loop.time() + EXIT_S, {asyncio.current_task()}
        for _ in range(CANCEL_ROUNDS):
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks - told:
                task.cancel()
            told |= tasks
            if not tasks or loop.time() >= until:
                break
            await asyncio.wait(tasks, timeout=max(0.0, until - loop.time()))
        return sorted(task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()})


def _hand_over(task: asyncio.Task[T], result: Future[T]) -> None:
    if task.cancelled():
        result.cancel()
        result.set_running_or_notify_cancel()
    elif (error := task.exception()) is not None:
        result.set_exception(error)
    else:
        result.set_result(task.result())
