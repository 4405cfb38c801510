"""What a run costs: the calls of Python functions inside the library, which no machine's load moves."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from types import FrameType
from typing import Any

import fsm
from fsm import Engine
from fsm.testing import fresh_tracker
from tests.support.engine_tools import WHO

INSIDE = os.path.dirname(fsm.__file__) + os.sep  # noqa: PTH120 - compared with what frames say
MOST = 320
"""Maximum number of calls inside the library for a run whose agent returns a constant, in memory."""


async def constant(run: Any) -> int:
    return 7


def counted() -> Counter[str]:
    """Return how often each function is called during one such run; the first run sets everything up."""
    calls: Counter[str] = Counter()

    def note(frame: FrameType, what: str, _: Any) -> None:
        code = frame.f_code
        # What watches the table for --fsm-cover is no part of a run.
        watches = "/testing/" in code.co_filename
        if what == "call" and code.co_filename.startswith(INSIDE) and not watches:
            calls[f"{code.co_filename[len(INSIDE) :]}:{code.co_qualname}"] += 1

    async def main(engine: Engine) -> None:
        await engine.run(constant, **WHO)
        sys.setprofile(note)
        try:
            await engine.run(constant, **WHO)
        finally:
            sys.setprofile(None)

    with fresh_tracker() as tracker:
        asyncio.run(main(Engine(tracker, sweep_every_s=None)))
    return calls


def test_a_trivial_run_takes_few_calls():
    """A run that does nothing passes a bounded number of the library's functions; if not, this says which."""
    calls = counted()
    listed = "\n".join(f"{count:4} {name}" for name, count in calls.most_common())
    assert sum(calls.values()) <= MOST, f"{sum(calls.values())} calls\n{listed}"
