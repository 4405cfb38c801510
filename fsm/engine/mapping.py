"""One agent over many items."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from fsm.engine.outcome import Outcome
from fsm.errors import BadPayload, EngineFull, StoreUnavailable

if TYPE_CHECKING:
    from fsm.engine.engine import Engine

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 100_000


async def map_over(
    engine: Engine,
    agent: Callable[..., Any] | str,
    items: Iterable[Any],
    *,
    user_id: str | Callable[[Any], str],
    thread_id: str | Callable[[Any], str],
    at_once: int,
    on_done: Callable[[Outcome], object] | None,
    agent_name: str | Callable[[Any], str] | None = None,
    **options: Any,
) -> list[Outcome]:
    """Run an agent for each item, `at_once` at a time; see `Engine.map`."""
    if not isinstance(at_once, int) or isinstance(at_once, bool) or not 1 <= at_once <= MAX_AT_ONCE:
        raise BadPayload(f"at_once is a number from 1 to {MAX_AT_ONCE}, not {at_once!r}")
    fleet = _Fleet(engine, agent, on_done, options)
    places = asyncio.Semaphore(at_once)

    async def one(index: int, item: Any) -> None:
        try:
            await fleet.run(
                index,
                item,
                user_id=user_id(item) if callable(user_id) else user_id,
                thread_id=thread_id(item) if callable(thread_id) else thread_id,
                agent_name=agent_name(item) if callable(agent_name) else agent_name,
            )
        finally:
            places.release()

    try:
        async with asyncio.TaskGroup() as group:
            for index, item in enumerate(items):
                await places.acquire()
                group.create_task(one(index, item))
    except BaseExceptionGroup as errors:
        # A mistake of the caller's: the first one says it, the others were called off for its sake.
        raise errors.exceptions[0] from None
    return [fleet.outcomes[index] for index in sorted(fleet.outcomes)]


class _Fleet:
    """The executions of one map."""

    def __init__(
        self,
        engine: Engine,
        agent: Callable[..., Any] | str,
        on_done: Callable[[Outcome], object] | None,
        options: dict[str, Any],
    ) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self._engine = engine
        self._agent = agent
        self._on_done = on_done
        self._options = options
        self._under_way = 0
        self._held_up: deque[asyncio.Future[None]] = deque()

    async def run(self, index: int, item: Any, **whose: Any) -> None:
        """Run one to its end; its outcome is noted, whatever it is."""
        outcome: Outcome | None = None
        while outcome is None:
            self._under_way += 1
            try:
                outcome = await self._try(item, whose)
            finally:
                self._under_way -= 1
            if isinstance(outcome.error, EngineFull) and not outcome.execution_id and self._under_way:
                # Each wait ends with one of the fleet's own, so there are no more of them than items.
                outcome = None
                await self._turn()
        self._next()
        self.outcomes[index] = outcome
        if self._on_done is not None:
            try:
                self._on_done(outcome)
            except Exception:
                logger.exception("on_done failed; the others go on")

    async def _try(self, item: Any, whose: dict[str, Any]) -> Outcome:
        """Hand one in and wait for its end; if the engine or its store does not take it, that is its outcome."""
        try:
            handle = await self._engine.submit(self._agent, item, **whose, **self._options)
        except (EngineFull, StoreUnavailable) as error:
            return Outcome("", "", error=error)
        try:
            return await handle.outcome()
        except asyncio.CancelledError:
            await handle.give_up("its fleet was called off")
            raise

    async def _turn(self) -> None:
        """Wait until another one of the fleet has ended."""
        turn = asyncio.get_running_loop().create_future()
        self._held_up.append(turn)
        await turn

    def _next(self) -> None:
        """Let the first one that is held up try again."""
        while self._held_up:
            turn = self._held_up.popleft()
            if not turn.done():
                turn.set_result(None)
                return
