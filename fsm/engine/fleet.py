"""One agent over many items."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from fsm.errors import BadPayload

if TYPE_CHECKING:
    from fsm.engine.engine import Engine
    from fsm.engine.outcome import Outcome

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
    outcomes: dict[int, Outcome] = {}
    places = asyncio.Semaphore(at_once)

    async def one(index: int, item: Any) -> None:
        try:
            handle = await engine.submit(
                agent,
                item,
                user_id=user_id(item) if callable(user_id) else user_id,
                thread_id=thread_id(item) if callable(thread_id) else thread_id,
                agent_name=agent_name(item) if callable(agent_name) else agent_name,
                **options,
            )
            try:
                outcome = await handle.outcome()
            except asyncio.CancelledError:
                await handle.cancel("its fleet was called off")
                await handle.outcome()
                raise
            outcomes[index] = outcome
            if on_done is not None:
                on_done(outcome)
        finally:
            places.release()

    async with asyncio.TaskGroup() as group:
        for index, item in enumerate(items):
            await places.acquire()
            group.create_task(one(index, item))
    return [outcomes[index] for index in sorted(outcomes)]
