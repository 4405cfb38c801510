"""What a command that runs agents does when it is told to end: SIGTERM ends them through the table, as Ctrl-C does."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from fsm.engine import Engine
from fsm.errors import ConfigurationError

T = TypeVar("T")


async def ended_by_sigterm(engine: Engine, work: Coroutine[Any, Any, T]) -> T:
    """Await the work of an engine; a SIGTERM in between closes the engine, and then ends the process."""
    asked = asyncio.ensure_future(_wait(engine))
    try:
        return await work
    finally:
        asked.cancel()


async def _wait(engine: Engine) -> None:
    try:
        await engine.run_until_signal(signal.SIGTERM)
    except ConfigurationError:
        return  # this event loop hears of no signals: virtual time has none
