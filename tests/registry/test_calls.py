"""How many Python calls an event takes: what a caller pays for on every event."""

from __future__ import annotations

from fsm.testing import fresh_tracker
from tests.support.calls import calls_inside

MOST = 25
"""Maximum number of calls inside the package from the call of `fire` to its receipt, in memory."""


def test_an_event_in_memory_takes_few_calls():
    """From the call of `fire` to its receipt at most 25 functions of the package are called in memory."""
    with fresh_tracker() as tracker:
        one = tracker.create("agent", user_id="ada", thread_id="t")
        fence = tracker.fire(one.id, "start").fence
        tracker.fire(one.id, "think", fence=fence)
        for event in ("run_tools", "process_results", "finish"):
            with calls_inside() as calls:
                tracker.fire(one.id, event, fence=fence)
            asked = calls.count("core/decide.py:_Question.ask")
            assert len(calls) <= MOST + 2 * asked, "\n".join([event, *calls])
