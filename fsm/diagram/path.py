"""The way that one execution took through its machine: what it visited, how often, and for how long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

Triple = tuple[str, str, str]
"""One arrow of a machine: a source state, an event and a target state."""

Step = tuple[str | None, str, str, float]
"""One row of a journal: source state (``None`` for the first), event, target state, and when, in seconds."""


@dataclass(frozen=True, slots=True)
class Visit:
    """What an execution did in one state.

    Attributes:
        count: How often it entered the state.
        seconds: How long it was there in all.
    """

    count: int
    seconds: float


class Path(NamedTuple):
    """The way that one execution took.

    Attributes:
        visits: The states that it was in, in the order of its first visit.
        taken: How often it took each arrow, in the order of the first time.
        current: The state that it is in now, or ended in; ``None`` before its first step.
    """

    visits: Mapping[str, Visit]
    taken: Mapping[Triple, int]
    current: str | None

    @property
    def seconds(self) -> float:
        """How long the execution took until now or until its end, in seconds."""
        return sum(visit.seconds for visit in self.visits.values())


def path_of(steps: Iterable[Step], now: float | None = None, terminal: frozenset[str] = frozenset()) -> Path:
    """Fold a journal into the way that the execution took.

    Time is booked to the state in which it was spent, and none is booked to the state that ended the execution.
    A step that stays where it was is an arrow that was taken, not another visit.

    Args:
        steps: The journal, oldest row first; its first row has no source and leads to the initial state.
        now: The instant until which a stay that goes on is counted, in the seconds of the journal; ``None``
            counts it as nothing.
        terminal: The states that end an execution.

    Returns:
        The path; empty for an empty journal. A clock that was set back never makes a stay negative.
    """
    counts: dict[str, int] = {}
    seconds: dict[str, float] = {}
    taken: dict[Triple, int] = {}
    current: str | None = None
    since = 0.0
    for source, event, target, at in steps:
        if current is not None and current not in terminal:
            seconds[current] += max(0.0, at - since)
        if source is not None:
            taken[source, event, target] = taken.get((source, event, target), 0) + 1
        if target != current:
            counts[target] = counts.get(target, 0) + 1
            seconds.setdefault(target, 0.0)
        current, since = target, at
    if current is not None and current not in terminal and now is not None:
        seconds[current] += max(0.0, now - since)
    return Path({name: Visit(count, seconds[name]) for name, count in counts.items()}, taken, current)


def duration(seconds: float) -> str:
    """Write a duration for a person: ``35 ms``, ``1.2 s``, ``3 min 20 s``, ``2 h 5 min``.

    Args:
        seconds: The duration in seconds.
    """
    if seconds < 0.9995:  # noqa: PLR2004 - from here on it would read 1000 ms
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:  # noqa: PLR2004 - from here on it would read 60.0 s
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
