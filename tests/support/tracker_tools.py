"""What the tests of the tracker begin and end with."""

from __future__ import annotations

from typing import Any

from fsm import Machine, Receipt, Tracker
from fsm.machine.grammar import row, state

ERRAND = Machine(
    name="errand",
    initial="created",
    states=(state("created", "running"), state("out", "waiting", "phase"), state("back", "terminal")),
    transitions=(
        row("created", "leave", "out"),
        row("out created", "time_out", "back"),
        row("out created", "cancel", "back"),
    ),
)
"""A machine of a user's own; it puts the state `created` into another category than the execution machine does."""


def drive(tracker: Tracker, one: str, event: str, **given: Any) -> Receipt:
    """Fire an event as the owner does, with the fence that the execution has."""
    return tracker.fire(one, event, **{"fence": tracker.get(one).fence, **given})


def begun(tracker: Tracker, **more: Any) -> str:
    made = tracker.create("agent", **{"user_id": "ada", "thread_id": "t", **more})
    tracker.fire(made.id, "start")
    return made.id


def finish(tracker: Tracker, one: str, **payload: Any) -> None:
    for event in ("think", "process_results", "finish"):
        drive(tracker, one, event)
    drive(tracker, one, "complete", **payload)
