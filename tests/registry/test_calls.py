"""How many Python calls an event takes: what a caller pays for on every event."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import fsm
from fsm.testing import fresh_tracker

MOST = 25
"""Maximum number of calls inside the package from the call of `fire` to its receipt, in memory."""
PACKAGE = str(Path(fsm.__file__).parent)


def calls_of(function: Any, *args: Any, **kwargs: Any) -> list[str]:
    """Return the calls inside the package that a call makes, in order."""
    calls: list[str] = []

    def note(frame: FrameType, what: str, _arg: object) -> None:
        file = frame.f_code.co_filename
        # What watches the table for --fsm-cover is no part of an event.
        if what == "call" and file.startswith(PACKAGE) and not file.startswith(f"{PACKAGE}/testing/"):
            calls.append(f"{frame.f_code.co_filename[len(PACKAGE) + 1 :]}: {frame.f_code.co_name}")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function(*args, **kwargs)
    finally:
        sys.setprofile(before)
    return calls


def test_an_event_in_memory_takes_few_calls():
    """From the call of `fire` to its receipt at most 25 functions of the package are called in memory."""
    with fresh_tracker() as tracker:
        one = tracker.create("agent", user_id="ada", thread_id="t")
        fence = tracker.fire(one.id, "start").fence
        tracker.fire(one.id, "think", fence=fence)
        for event in ("run_tools", "process_results", "finish"):
            calls = calls_of(tracker.fire, one.id, event, fence=fence)
            assert len(calls) <= MOST + 2 * calls.count("core/decide.py: ask"), "\n".join([event, *calls])
