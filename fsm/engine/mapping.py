"""One agent over many items."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fsm.engine.handle import Handle
from fsm.engine.outcome import Outcome
from fsm.errors import BadPayload, EngineFull, StoreUnavailable

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 100_000
"""Maximum number of executions of one map that are handed to the engine at once."""


class Fleet:
    """The executions of one `Engine.map`."""

    def __init__(
        self,
        submit: Callable[..., Awaitable[Handle]],
        at_once: int,
        on_done: Callable[[Outcome], object] | None,
    ) -> None:
        """Prepare; `submit` takes an item with the options that name the user, the conversation and the agent."""
        if not isinstance(at_once, int) or isinstance(at_once, bool) or not 1 <= at_once <= MAX_AT_ONCE:
            raise BadPayload(f"at_once is a number from 1 to {MAX_AT_ONCE}, not {at_once!r}")
        self._submit = submit
        self._on_done = on_done
        self._places = asyncio.Semaphore(at_once)
        self._outcomes: dict[int, Outcome] = {}
        self._under_way = 0
        self._held_up: deque[asyncio.Future[None]] = deque()

    async def run(self, items: Iterable[Any], named: dict[str, Any]) -> list[Outcome]:
        """Run all of them; `named` are the options that may be functions of the item."""
        try:
            async with asyncio.TaskGroup() as group:
                for index, item in enumerate(items):
                    await self._places.acquire()
                    group.create_task(self._one(index, item, named))
        except BaseExceptionGroup as errors:
            # A mistake of the caller's: the first one says it, the others were cancelled because of it.
            raise errors.exceptions[0] from None
        return [self._outcomes[index] for index in sorted(self._outcomes)]

    async def _one(self, index: int, item: Any, named: dict[str, Any]) -> None:
        """Run one to its end; its outcome is noted, whatever it is."""
        try:
            options = {name: value(item) if callable(value) else value for name, value in named.items()}
            outcome = await self._try(item, options)
            while isinstance(outcome.error, EngineFull) and not outcome.execution_id and self._under_way:
                # Each wait ends with one of the map's own, so there are no more of them than items.
                turn = asyncio.get_running_loop().create_future()
                self._held_up.append(turn)
                await turn
                outcome = await self._try(item, options)
            self._next()
            self._outcomes[index] = outcome
            if self._on_done is not None:
                try:
                    self._on_done(outcome)
                except Exception:
                    logger.exception("on_done failed; the others go on")
        finally:
            self._places.release()

    async def _try(self, item: Any, options: dict[str, Any]) -> Outcome:
        """Hand one in and wait for its end; if the engine or its store does not take it, that is its outcome."""
        self._under_way += 1
        try:
            try:
                handle = await self._submit(item, **options)
            except (EngineFull, StoreUnavailable) as error:
                return Outcome("", "", error=error)
            try:
                return await handle.outcome()
            except asyncio.CancelledError:
                await handle.give_up("its map was cancelled")
                raise
        finally:
            self._under_way -= 1

    def _next(self) -> None:
        """Let the first one that is held up try again."""
        while self._held_up:
            turn = self._held_up.popleft()
            if not turn.done():
                turn.set_result(None)
                return
