"""What a drawing points out: one state, one execution's path, and what a test run never took."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from fsm.diagram.path import Path, Triple, Visit
from fsm.diagram.plan import Label
from fsm.errors import FsmError
from fsm.machine.machine import Machine

Mark = int | Triple
"""What was never taken: the index of a row of the table, or one arrow as (source, event, target)."""


class NotInMachine(FsmError, ValueError):
    """A drawing was asked to point out a state, a row or an arrow that the machine does not have."""


class Look(Enum):
    """How a thing is drawn."""

    PLAIN = "plain"
    STRONG = "strong"
    FADED = "faded"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Marks:
    """What a drawing points out, resolved for one machine.

    Attributes:
        highlight: The state that is drawn as the current one, or ``None``.
        visits: The states of the path; empty without one.
        taken: How often each arrow was taken.
        missing: The arrows that are drawn as missing.
        single: The arrows that must be drawn from state to state, so that they can be told from their row.
        follows: Whether a path is drawn, and all that is not on it fades.
    """

    highlight: str | None
    visits: Mapping[str, Visit]
    taken: Mapping[Triple, int]
    missing: frozenset[Triple]
    single: frozenset[Triple]
    follows: bool

    def state(self, name: str) -> Look:
        """Return how a state is drawn."""
        if not self.follows:
            return Look.PLAIN
        return Look.STRONG if name in self.visits else Look.FADED

    def label(self, label: Label) -> Look:
        """Return how the text of a row is drawn."""
        if label.arrows and self.missing.issuperset(label.arrows):
            return Look.MISSING
        if not self.follows:
            return Look.PLAIN
        return Look.STRONG if self.count(label) else Look.FADED

    def line(self, labels: Iterable[Label]) -> Look:
        """Return how an arrow is drawn that carries these rows."""
        looks = [self.label(label) for label in labels]
        return next((look for look in (Look.MISSING, Look.STRONG, Look.PLAIN) if look in looks), Look.FADED)

    def count(self, label: Label) -> int:
        """Return how often the arrows of a label were taken."""
        return sum(self.taken.get(arrow, 0) for arrow in label.arrows)

    def text(self, label: Label) -> str:
        """Return the text of a row, with how often it was taken."""
        count = self.count(label)
        return f"{label.text} {count}x" if count else label.text


def marks_of(
    machine: Machine,
    *,
    highlight: str | None = None,
    path: Path | None = None,
    missing: Collection[Mark] = frozenset(),
) -> Marks:
    """Resolve what a drawing points out.

    Args:
        machine: The machine that is drawn.
        highlight: The state to draw as the current one; without it, the one that the path ends in.
        path: The way that one execution took.
        missing: Rows, by index, and single arrows that were never taken.

    Returns:
        The marks.

    Raises:
        NotInMachine: A state, a row or an arrow is not the machine's; the text says what is known.
    """
    visits: Mapping[str, Visit] = path.visits if path else {}
    taken: Mapping[Triple, int] = path.taken if path else {}
    current = highlight if highlight is not None else (path.current if path else None)
    for name in (*visits, *(() if current is None else (current,))):
        if name not in machine.by_name:
            raise NotInMachine(f"{machine.name} has no state {name!r}; it has: {', '.join(machine.by_name)}")
    rows: dict[int, set[Triple]] = {}
    for arrow in machine.arrows:
        rows.setdefault(arrow.row, set()).add((arrow.source, arrow.event, arrow.target))
    known = frozenset[Triple]().union(*rows.values())
    resolved: set[Triple] = set()
    for mark in (*taken, *missing):
        found = rows.get(mark, set()) if isinstance(mark, int) else {mark} & known
        if not found:
            raise NotInMachine(
                f"{machine.name} has no row or arrow {mark!r}: a row is 0 to {len(machine.transitions) - 1}, "
                "an arrow is (source, event, target) as in the table"
            )
        if mark in missing:
            resolved |= found
    whole = frozenset[Triple]().union(*(row for row in rows.values() if row <= resolved))
    return Marks(
        current, visits, taken, frozenset(resolved), frozenset(taken) | (resolved - whole), path is not None
    )
