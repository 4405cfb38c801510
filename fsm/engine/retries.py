"""The one retry policy of the engine: what must not be lost is handed in again while the store does not answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import tenacity

from fsm.errors import StoreUnavailable

logger = logging.getLogger(__name__)
T = TypeVar("T")

MANY_TRIES = 40
"""Maximum number of tries to record an agent's outcome, some five minutes in all; then a deadline ends it."""
FEW_TRIES = 6
"""Maximum number of tries, some six seconds in all, where an attempt, a sweep or another process can follow."""
WAIT_S = 0.1
"""The first wait between two tries, in seconds; it doubles."""
WAIT_MAX_S = 10.0
"""The longest wait between two tries, in seconds."""


async def surely(
    do: Callable[[], Awaitable[T]],
    what: str,
    *,
    tries: int = FEW_TRIES,
    retry_on: tuple[type[BaseException], ...] = (StoreUnavailable,),
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    enough: Callable[[], bool] = lambda: False,
) -> T:
    """Do what may be done twice until the store takes it; raise its last error after `tries`, or once `enough`."""

    def note(error: BaseException | None, tried: int) -> None:
        logger.warning("%s was not taken (%d of %d): %s", what, tried, tries, error)

    async def pause(seconds: float) -> None:
        await sleep(seconds)

    try:
        return await do()  # nearly every call ends here, at a tenth of what the machinery below costs
    except retry_on as error:
        if enough():
            raise
        note(error, 1)
    await sleep(WAIT_S)
    return await tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(retry_on),
        stop=lambda state: state.attempt_number + 1 >= tries or enough(),
        wait=tenacity.wait_exponential(multiplier=2 * WAIT_S, max=WAIT_MAX_S),
        sleep=pause,
        before_sleep=lambda state: note(
            state.outcome.exception() if state.outcome else None, state.attempt_number + 1
        ),
        reraise=True,
    )(do)
