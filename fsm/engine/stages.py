"""The states of one execution's driver, and the moves between them: the one place where they are declared.

They are not the execution's own states, which its machine declares and the store keeps. They say what this process
does with the execution, they end with this process, and no other module adds a flag to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Stage(StrEnum):
    """What a driver does with its execution."""

    QUEUED = "queued"
    """It waits for a slot, or for the time of the next attempt. No claim of this process exists."""
    CLAIMING = "claiming"
    """A claim is handed in, and its outcome is not known yet."""
    RUNNING = "running"
    """The claim is committed, and the agent runs."""
    STOPPING = "stopping"
    """The agent is told to stop: the execution was cancelled, has ended or belongs to another worker, or the engine
    closes."""
    CLOSING = "closing"
    """The agent has ended or is abandoned. The end is said, or the execution is released: from here on a fence that
    changes is this driver's own doing, and no deadline is handed in."""
    FOLLOWING = "following"
    """Another engine has claimed the execution; its callers here wait for its end."""
    OVER = "over"
    """No slot, no listener, no timer and no task is left."""


MOVES: Mapping[Stage, frozenset[Stage]] = {  # noqa: FSM004 - of a driver in memory, not of an execution
    Stage.QUEUED: frozenset({Stage.CLAIMING, Stage.FOLLOWING, Stage.CLOSING}),
    Stage.CLAIMING: frozenset({Stage.RUNNING, Stage.FOLLOWING, Stage.CLOSING}),
    Stage.RUNNING: frozenset({Stage.STOPPING, Stage.CLOSING}),
    Stage.STOPPING: frozenset({Stage.CLOSING}),
    Stage.CLOSING: frozenset({Stage.QUEUED}),
    Stage.FOLLOWING: frozenset(),
    Stage.OVER: frozenset(),
}
"""Where each stage leads; every one of them may also lead to `Stage.OVER`, once."""
