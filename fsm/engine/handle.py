"""What a caller holds of an execution that was handed to an engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from typing import Any

from fsm.concurrency.supervised import one_line
from fsm.engine.driver import Driver
from fsm.engine.outcome import Outcome

logger = logging.getLogger(__name__)


class Handle:
    """An execution that was handed to an engine.

    Attributes:
        id: The execution's id.
    """

    def __init__(self, driver: Driver, task: asyncio.Task[Outcome]) -> None:
        self._driver = driver
        self._task = task
        self.id = driver.connection.id

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return self._task.done()

    @property
    def state(self) -> str:
        """The state of the last commit."""
        return self._driver.connection.snapshot.state

    async def outcome(self) -> Outcome:
        """Wait until it is over; however it ends, nothing is raised. A cancelled wait does not cancel it."""
        await asyncio.wait({self._task})
        return self._outcome()

    def _outcome(self) -> Outcome:
        return self._driver.outcome() if self._task.cancelled() else self._task.result()

    async def result(self) -> Any:
        """Wait until it is over and return the result; raises as `Outcome.value` does."""
        return (await self.outcome()).value()

    async def attended(self) -> Any:
        """Return the result as `result` does; a caller that is cancelled during it cancels the execution."""
        try:
            await asyncio.wait({self._task})
            return self._outcome().value()
        except asyncio.CancelledError:
            if not self._task.done():
                await self.give_up("its caller was cancelled")
            raise

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    async def cancel(self, reason: str | None = None, *, by: str | None = None) -> None:
        """Cancel it: the agent is told to stop, and has its grace to do so. Nothing happens if it has ended.

        `reason` and `by` say why and who, for the journal.
        """
        await self._driver.connection.cancel(reason, by)

    async def give_up(self, reason: str) -> None:
        """Cancel it and wait until it is over, whether or not the store takes the cancel.

        A caller that is cancelled during it leaves; the engine goes on with it.
        """
        await self._driver.connection.runtime.through(self._give_up(reason), "fsm-give-up")

    async def _give_up(self, reason: str) -> None:
        try:
            await self.cancel(reason)
        except Exception as error:  # noqa: BLE001 - whatever it is, no caller waits for the agent any more
            said = one_line(error)
            logger.warning("%s: not cancelled, the agent is stopped all the same: %s", self.id, said)
            self._driver.leave(reason)
        await asyncio.wait({self._task})

    def add_done_callback(self, function: Callable[[], object]) -> None:
        """Call a function when it is over, on the event loop."""
        self._task.add_done_callback(lambda _: function())
