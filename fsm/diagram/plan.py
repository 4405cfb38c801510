"""What a drawing shows, decided once for every format: few arrows, and no row of the table lost.

A machine's arrows, drawn one by one, are a hairball: the rows whose source is a category make most of them. So the
plan draws what the table *says*. A row from a category leaves one small box that names the category. A row from
three states or more is gathered in one knot, where its text stands once. All else is an arrow from state to state,
with everything that leads the same way on one label; what stays inside a state is listed in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fsm.diagram.path import Triple
from fsm.machine.grammar import Arrow, Transition
from fsm.machine.machine import Machine

GATHER = 3
"""From so many source states on, a row is drawn through one box or knot instead of one arrow for each."""


class Label(NamedTuple):
    """One row of the table as a drawing writes it.

    Attributes:
        row: The index of the row in the machine's table.
        event: Its event.
        guard: Its guard, ``"else"`` where every source has tried a row of that event before it, or empty.
        note: All that the row declares, for the reader who points at it.
        arrows: The resolved arrows that the label stands for.
        by: Who may fire it, where that is worth a word: in a machine that says so, unless it is the owner.
    """

    row: int
    event: str
    guard: str
    note: str
    arrows: tuple[Triple, ...]
    by: str = ""

    @property
    def text(self) -> str:
        """The event with its guard in brackets, and who may fire it."""
        text = f"{self.event} [{self.guard}]" if self.guard else self.event
        return f"{text} ({self.by})" if self.by else text

    def keep(self, arrows: Iterable[Triple]) -> Label:
        """Return the label for these of its arrows only."""
        return self._replace(arrows=tuple(arrows))


class Link(NamedTuple):
    """An arrow of the drawing.

    Attributes:
        tail: The node that it leaves: a state, a box or a knot.
        head: The node that it leads to: a state.
        labels: What is written on it.
    """

    tail: str
    head: str
    labels: tuple[Label, ...]


class Box(NamedTuple):
    """A node that stands for all states of some categories at once.

    Attributes:
        key: Its name in the drawing; it holds a blank, so no state is called like it.
        title: What stands in it: ``any running or waiting state``.
        inside: The rows that leave the state as it is.
    """

    key: str
    title: str
    inside: tuple[Label, ...]


class Knot(NamedTuple):
    """A node in which the arrows of rows with the same event and the same sources meet.

    Attributes:
        key: Its name in the drawing; it holds a blank, so no state is called like it.
        sources: The states whose arrows meet here.
        head: The state that the first of its rows leads to.
        labels: What is written on it: its rows to that state. The others leave it as links.
    """

    key: str
    sources: tuple[str, ...]
    head: str
    labels: tuple[Label, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a drawing of a machine shows.

    Attributes:
        machine: The machine.
        boxes: The nodes that stand for categories.
        knots: The nodes that gather rows with many sources.
        links: All other arrows, in the table's order.
        inside: For each state the rows of its own that leave it as it is.
    """

    machine: Machine
    boxes: tuple[Box, ...]
    knots: tuple[Knot, ...]
    links: tuple[Link, ...]
    inside: Mapping[str, tuple[Label, ...]]

    def steps(self) -> dict[str, list[str]]:
        """Return the states that each state leads to by an arrow of its own, in the order of the table."""
        heads: dict[str, list[str]] = {state.name: [] for state in self.machine.states}
        heads |= {box.key: [] for box in self.boxes} | {knot.key: [knot.head] for knot in self.knots}
        for link in self.links:
            heads[link.tail].append(link.head)
        for knot in self.knots:
            for source in knot.sources:
                heads[source].extend(heads[knot.key])
        return {state.name: heads[state.name] for state in self.machine.states}


class _Sketch:
    """The plan while it grows."""

    def __init__(self, machine: Machine, single: frozenset[Triple]) -> None:
        self.machine = machine
        self.single = single
        self.labels = _labels(machine)
        self.boxes: dict[tuple[str, ...], list[Label]] = {}
        self.knots: dict[str, dict[str, None]] = {}
        self.links: dict[tuple[str, str], list[Label]] = {}
        self.inside: dict[str, list[Label]] = {state.name: [] for state in machine.states}

    def add(self, index: int, row: Transition) -> None:
        """Give a row its place."""
        label = self.labels[index]
        boxed = any(selector.startswith("@") for selector in row.source)
        gathers = len(label.arrows) >= GATHER and (boxed or row.target is not None)
        rest = label.keep(arrow for arrow in label.arrows if gathers and arrow not in self.single)
        for arrow in label.arrows:
            if arrow not in rest.arrows:
                self._single(row, label.keep([arrow]), arrow)
        if gathers and boxed:
            self._box(row, rest)
        elif rest.arrows and row.target is not None:
            self._knot(row, row.target, rest)

    def _single(self, row: Transition, label: Label, arrow: Triple) -> None:
        source, _, target = arrow
        if row.target is None:
            self.inside[source].append(label)
        else:
            self.links.setdefault((source, target), []).append(label)

    def _box(self, row: Transition, label: Label) -> None:
        inside = self.boxes.setdefault(row.source, [])
        if row.target is None:
            inside.append(label)
        else:
            self.links.setdefault((_box_key(row.source), row.target), []).append(label)

    def _knot(self, row: Transition, target: str, label: Label) -> None:
        # Rows of one event and the same sources share the knot: it is where their guards are tried.
        knot = f"knot {row.event} {' '.join(self.machine.sources_of(row))}"
        self.knots.setdefault(knot, {}).update((source, None) for source, _, _ in label.arrows)
        self.links.setdefault((knot, target), []).append(label)

    def finish(self) -> Plan:
        """Return the plan."""
        boxes = tuple(
            Box(_box_key(selectors), _title(selectors), tuple(inside))
            for selectors, inside in self.boxes.items()
        )
        links = [Link(tail, head, tuple(labels)) for (tail, head), labels in self.links.items()]
        knots: list[Knot] = []
        for key, sources in self.knots.items():
            first = next(link for link in links if link.tail == key)
            links.remove(first)
            knots.append(Knot(key, tuple(sources), first.head, first.labels))
        inside = {name: tuple(labels) for name, labels in self.inside.items()}
        return Plan(self.machine, boxes, tuple(knots), tuple(links), inside)


def plan_of(machine: Machine, single: frozenset[Triple] = frozenset()) -> Plan:
    """Decide what a drawing of a machine shows.

    Args:
        machine: Any machine; nothing but its declaration is used.
        single: Arrows that are drawn from state to state even if their row is gathered.

    Returns:
        The plan; every row of the table is on one of its links or knots, in a box or in a state.
    """
    sketch = _Sketch(machine, single)
    for index, row in enumerate(machine.transitions):
        sketch.add(index, row)
    return sketch.finish()


def _labels(machine: Machine) -> tuple[Label, ...]:
    """Write every row once; a row is an "else" when all its sources tried another one of the event before it."""
    arrows: dict[int, list[Arrow]] = {}
    for arrow in machine.arrows:
        arrows.setdefault(arrow.row, []).append(arrow)
    told = says_who(machine)
    return tuple(
        Label(
            index,
            row.event,
            row.guard or ("else" if all(_is_second(machine, arrow) for arrow in arrows[index]) else ""),
            _note(row),
            tuple((arrow.source, arrow.event, arrow.target) for arrow in arrows[index]),
            row.by if told and row.by != "owner" else "",
        )
        for index, row in enumerate(machine.transitions)
    )


def says_who(machine: Machine) -> bool:
    """Return whether a machine declares who may fire its rows."""
    return any(row.by != "anyone" for row in machine.transitions)


def _is_second(machine: Machine, arrow: Arrow) -> bool:
    return machine.by_source[arrow.source][arrow.event][0].row < arrow.row


def _note(row: Transition) -> str:
    parts = [f"{row.event} [{row.guard}]" if row.guard else row.event]
    if row.by != "anyone":
        parts.append(f"by the {row.by}")
    if row.assign:
        parts.append(f"notes {', '.join(row.assign)}")
    if row.effects:
        parts.append(f"then {', '.join(row.effects)}")
    if row.otherwise:
        parts.append(f"or is refused: {row.otherwise}")
    return "; ".join(parts)


def _title(selectors: tuple[str, ...]) -> str:
    names = [selector.removeprefix("@") for selector in selectors if not selector.startswith("!")]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    but = ", ".join(selector[1:] for selector in selectors if selector.startswith("!"))
    return f"any {listed} state{f' but {but}' if but else ''}"


def _box_key(selectors: tuple[str, ...]) -> str:
    return f"any {' '.join(selectors)}"
