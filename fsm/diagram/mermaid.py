"""The drawing as Mermaid text, for a README.

The text is kept flat: composite states were tried, and their arrows collide. Names get a prefix, because Mermaid
reads words such as ``end`` and ``state`` as its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fsm.diagram.marks import Look, Mark, Marks, marks_of
from fsm.diagram.palette import CAPSULE, FADED, FADED_INK, INK, LINE, MISSING, PAINTS, SOFT_INK
from fsm.diagram.path import Path, duration
from fsm.diagram.plan import Label, Plan, plan_of
from fsm.machine.grammar import Category
from fsm.machine.machine import Machine

BREAK = "<br/>"

WRAP = 22
"""A row's text longer than this, in characters, gets a line for its guard where it stands on an arrow."""


def to_mermaid(
    machine: Machine,
    *,
    highlight: str | None = None,
    path: Path | None = None,
    missing: Collection[Mark] = frozenset(),
) -> str:
    """Draw a machine as Mermaid text (``stateDiagram-v2``).

    Args:
        machine: Any machine; nothing but its declaration is used.
        highlight: The state to draw as the current one; without it, the one that the path ends in.
        path: The way that one execution took: counts and times are written to it, the other states fade.
        missing: Rows, by index, and single arrows (source, event, target) to mark as missing.

    Returns:
        The text; equal machines and marks give equal bytes.

    Raises:
        NotInMachine: A state, a row or an arrow is not the machine's.
    """
    marks = marks_of(machine, highlight=highlight, path=path, missing=missing)
    return _Text(plan_of(machine, marks.single), marks).text()


class _Text:
    """One drawing while it is written."""

    def __init__(self, plan: Plan, marks: Marks) -> None:
        self.plan, self.marks, self.machine = plan, marks, plan.machine
        self.looks: dict[str, list[str]] = {}
        self.ids = {state.name: f"s_{state.name}" for state in self.machine.states}
        self.ids |= {box.key: f"any_{index}" for index, box in enumerate(plan.boxes, 1)}
        self.ids |= {knot.key: f"on_{index}" for index, knot in enumerate(plan.knots, 1)}

    def text(self) -> str:
        """Write the drawing."""
        out = ["stateDiagram-v2", "    direction TB", *(f"    {line}" for line in self._classes())]
        out += [f"    {line}" for line in (*self._nodes(), *self._arrows())]
        out += [f"    class {','.join(ids)} {look}" for look, ids in self.looks.items()]
        return "\n".join([*out, ""])

    def _classes(self) -> list[str]:
        """Write the looks of the nodes."""
        used = [category for category in Category if self.machine.of(category)]
        out = [
            f"classDef {category} fill:{PAINTS[category].fill},stroke:{PAINTS[category].line},color:{INK}"
            for category in used
        ]
        if self.plan.boxes:
            out.append(f"classDef any fill:#FCFCFD,stroke:{LINE},color:{INK},stroke-dasharray:5 3")
        if self.plan.knots:
            out.append(f"classDef on fill:#FFFFFF,stroke:{CAPSULE},color:{SOFT_INK}")
        if self.marks.follows:
            out.append(f"classDef faded fill:{FADED.fill},stroke:{FADED.line},color:{FADED_INK}")
        if self.marks.missing:
            out.append(f"classDef missing fill:#FFFFFF,stroke:{MISSING},color:{MISSING}")
        if self.marks.highlight is not None:
            line = PAINTS[self.machine.by_name[self.marks.highlight].category].line
            out.append(f"classDef current fill:{line},stroke:{INK},color:#FFFFFF,stroke-width:3px")
        return out

    def _nodes(self) -> list[str]:
        """Write every node with what stands in it."""
        out: list[str] = []
        for state in self.machine.states:
            lines = [state.name]
            if visit := self.marks.visits.get(state.name):
                spent = "" if state.name in self.machine.terminal else f", {duration(visit.seconds)}"
                lines.append(f"{visit.count}x{spent}")
            lines += self._rows(self.plan.inside[state.name])
            look = "faded" if self.marks.state(state.name) is Look.FADED else str(state.category)
            if state.name == self.marks.highlight:
                look = "current"
            out.append(self._node(state.name, lines, look))
        faded = "faded" if self.marks.follows else None
        out += [
            self._node(box.key, [box.title, *self._rows(box.inside)], faded or "any")
            for box in self.plan.boxes
        ]
        for knot in self.plan.knots:
            missing = "missing" if self.marks.line(knot.labels) is Look.MISSING else None
            out.append(self._node(knot.key, self._rows(knot.labels), missing or faded or "on"))
        return out

    def _arrows(self) -> list[str]:
        """Write every arrow; a knot carries its own text."""
        ids = self.ids
        out = [f"[*] --> {ids[self.machine.initial]}"]
        for knot in self.plan.knots:
            out += [f"{ids[source]} --> {ids[knot.key]}" for source in knot.sources]
            out.append(f"{ids[knot.key]} --> {ids[knot.head]}")
        for link in self.plan.links:
            rows = (
                row.replace(" [", f"{BREAK}[", 1) if len(row) > WRAP else row
                for row in self._rows(link.labels)
            )
            out.append(f"{ids[link.tail]} --> {ids[link.head]} : {BREAK.join(rows)}")
        ends = self.machine.terminal
        return out + [f"{ids[state.name]} --> [*]" for state in self.machine.states if state.name in ends]

    def _rows(self, labels: Iterable[Label]) -> list[str]:
        return [
            self.marks.text(label) + (" (missing)" if self.marks.label(label) is Look.MISSING else "")
            for label in labels
        ]

    def _node(self, key: str, lines: list[str], look: str) -> str:
        self.looks.setdefault(look, []).append(self.ids[key])
        return f'state "{BREAK.join(lines)}" as {self.ids[key]}'
