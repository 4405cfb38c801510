"""What a run costs: the calls of Python functions inside the library, which no machine's load moves."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from fsm import Engine
from fsm.testing import fresh_tracker
from tests.support.calls import calls_inside
from tests.support.engine_tools import WHO

MOST = 320
"""Maximum number of calls inside the library for a run whose agent returns a constant, in memory."""


async def constant(run: Any) -> int:
    return 7


def counted() -> Counter[str]:
    """Return how often each function is called during one such run; the first run sets everything up."""

    async def main(engine: Engine) -> list[str]:
        await engine.run(constant, **WHO)
        with calls_inside() as calls:
            await engine.run(constant, **WHO)
        return calls

    with fresh_tracker() as tracker:
        return Counter(asyncio.run(main(Engine(tracker, sweep_every_s=None))))


def test_a_trivial_run_takes_few_calls():
    """A run that does nothing passes a bounded number of the library's functions; if not, this says which."""
    calls = counted()
    listed = "\n".join(f"{count:4} {name}" for name, count in calls.most_common())
    assert sum(calls.values()) <= MOST, f"{sum(calls.values())} calls\n{listed}"
