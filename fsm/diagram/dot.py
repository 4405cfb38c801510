"""The drawing as DOT text, for Graphviz.

Every row stands in a capsule on its arrow, so that no label can be taken for its neighbour's (the look is that of
the xstate visualiser). The capsules are nodes: `dot` then keeps them apart, which it does not do for labels.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Sequence

from fsm.diagram.levels import flat, levels_of
from fsm.diagram.marks import Look, Mark, Marks, marks_of
from fsm.diagram.palette import (
    CAPSULE,
    FADED,
    FADED_INK,
    FADED_LINE,
    INK,
    LINE,
    MISSING,
    ON_DARK,
    PAINTS,
    SOFT_INK,
    Paint,
)
from fsm.diagram.path import Path, duration
from fsm.diagram.plan import Box, Label, Plan, plan_of, says_who
from fsm.machine.grammar import Category, State
from fsm.machine.machine import Machine

WRAP = 16
"""A row's text longer than this, in characters, gets a line for its guard where it stands on an arrow."""

WRAP_INSIDE = 28
"""The same where it stands in a state or a box."""

CLUSTER = 3
"""From so many running states on, a frame is drawn around them."""

LONG = 2
"""A drawing with more than so many lines for each state of its widest line is laid from left to right."""

FONT = "Helvetica"  # its metrics are known to Graphviz, and every system has a font of the same widths
SMALL = 10

_INKS = {Look.PLAIN: SOFT_INK, Look.STRONG: INK, Look.FADED: FADED_INK, Look.MISSING: MISSING}
_LINES = {Look.PLAIN: LINE, Look.STRONG: INK, Look.FADED: FADED_LINE, Look.MISSING: MISSING}
_WIDTHS = {Look.PLAIN: 1.0, Look.STRONG: 1.8, Look.FADED: 0.8, Look.MISSING: 1.8}


def to_dot(
    machine: Machine,
    *,
    highlight: str | None = None,
    path: Path | None = None,
    missing: Collection[Mark] = frozenset(),
) -> str:
    """Draw a machine as DOT text.

    Args:
        machine: Any machine; nothing but its declaration is used.
        highlight: The state to draw as the current one; without it, the one that the path ends in.
        path: The way that one execution took: it is drawn strong, with counts and times, the rest fades.
        missing: Rows, by index, and single arrows (source, event, target) to draw in red.

    Returns:
        The text; equal machines and marks give equal bytes.

    Raises:
        NotInMachine: A state, a row or an arrow is not the machine's.
    """
    marks = marks_of(machine, highlight=highlight, path=path, missing=missing)
    return _Drawing(plan_of(machine, marks.single), marks).text()


class _Drawing:
    """One drawing while it is written."""

    def __init__(self, plan: Plan, marks: Marks) -> None:
        self.plan, self.marks, self.machine = plan, marks, plan.machine
        self.running = self.machine.of(Category.RUNNING)
        # Between two lines of states lies one of capsules: states stand on the even lines.
        self.lines = {name: 2 * line for name, line in levels_of(plan).items()}
        self.flat = flat(plan)
        self.capsules: list[str] = []
        self.framed: list[str] = []
        self.edges: list[str] = []

    def text(self) -> str:
        """Write the drawing."""
        self._knots()
        self._links()
        states = {state.name: self._state(state) for state in self.machine.states}
        framed = self.running if len(self.running) >= CLUSTER else frozenset[str]()
        inside = [*(text for name, text in states.items() if name in framed), *self.framed]
        outside = [text for name, text in states.items() if name not in framed]
        outside += [*map(self._box, self.plan.boxes), *self.capsules, *self.edges]
        out = [f"digraph {_quote(self.machine.name)} {{", *self._defaults(), self._start()]
        out += _frame(inside) if framed else [f"  {line}" for line in inside]
        out += [f"  {line}" for line in outside]
        return "\n".join([*out, *self._ranks(), "}", ""])

    def _defaults(self) -> list[str]:
        """Return what holds for the whole drawing."""
        widest = max(list(self.lines.values()).count(line) for line in self.lines.values())
        direction = "LR" if max(self.lines.values()) // 2 + 1 > LONG * widest else "TB"
        return [
            f"  graph [rankdir={direction}, newrank=true, nodesep=0.13, ranksep=0.15, mclimit=8, pad=0.15,",
            f'    bgcolor="white", fontname="{FONT}", fontsize=11, fontcolor="{SOFT_INK}", labelloc=b, labeljust=l,',
            f"    label={self._legend()}, tooltip={_quote(self.machine.doc or self.machine.name)}];",
            f'  node [shape=box, style="rounded,filled", fontname="{FONT}", fontsize=13, fontcolor="{INK}",',
            '    height=0.36, margin="0.14,0.07"];',
            f'  edge [color="{LINE}", arrowsize=0.6, fontname="{FONT}"];',
        ]

    def _legend(self) -> str:
        """Write the line below: what is drawn, and the colours of the categories."""
        about = f"<b>{self.machine.name}</b>" + (f": {_text(self.machine.doc)}" if self.machine.doc else "")
        if self.marks.follows:
            seconds = sum(visit.seconds for visit in self.marks.visits.values())
            about += f" - {sum(self.marks.taken.values())} steps in {duration(seconds)}"
        elif says_who(self.machine):
            about += " - a row with no (word) is its owner's"
        used = [category for category in Category if self.machine.of(category)]
        cells = "".join(
            f'<td width="10"></td><td width="12" height="12" fixedsize="true" border="1" '
            f'bgcolor="{PAINTS[category].fill}" color="{PAINTS[category].line}"></td><td>{category}</td>'
            for category in used
        )
        return f'<<table border="0" cellspacing="4" cellpadding="0"><tr><td>{about}</td>{cells}</tr></table>>'

    def _start(self) -> str:
        look = Look.STRONG if self.marks.follows else Look.PLAIN
        line = f'color="{_LINES[look]}", penwidth={_WIDTHS[look]}'
        return (
            f'  "the start" [shape=circle, label="", width=0.15, height=0.15, fixedsize=true, style=filled, '
            f'fillcolor="{INK}", color="{INK}", tooltip="start"];\n'
            f'  "the start" -> {_quote(self.machine.initial)} [{line}];'
        )

    def _state(self, state: State) -> str:
        """Write a state with what stays inside it."""
        look, paint = self.marks.state(state.name), PAINTS[state.category]
        ink, width = INK, 1.0
        if look is Look.FADED:
            paint, ink = FADED, FADED_INK
        elif look is Look.STRONG:
            width = 1.8
        if state.name == self.marks.highlight:
            line = PAINTS[state.category].line
            paint, ink, width = Paint(line, line), ON_DARK, 2.5
        title = f"<b>{state.name}</b>" if look is Look.STRONG or ink == ON_DARK else state.name
        lines = [title]
        if visit := self.marks.visits.get(state.name):
            spent = "" if state.name in self.machine.terminal else f", {duration(visit.seconds)}"
            lines.append(_font(f"{visit.count}x{spent}", ink))
        only = ink if ink == ON_DARK else None
        lines += [self._row(label, WRAP_INSIDE, only) for label in self.plan.inside[state.name]]
        deadline = f" (deadline: {state.deadline})" if state.deadline else ""
        rings = ", peripheries=2" if state.name in self.machine.terminal else ""
        return (
            f'{_quote(state.name)} [label=<{"<br/>".join(lines)}>, fillcolor="{paint.fill}", '
            f'color="{paint.line}", fontcolor="{ink}", penwidth={width}{rings}, '
            f"tooltip={_quote((state.doc or state.name) + deadline)}];"
        )

    def _box(self, box: Box) -> str:
        """Write a box that stands for categories."""
        ink = FADED_INK if self.marks.follows else INK
        lines = [_text(box.title), *(self._row(label, WRAP_INSIDE) for label in box.inside)]
        return (
            f'{_quote(box.key)} [label=<{"<br/>".join(lines)}>, style="rounded,filled,dashed", '
            f'fillcolor="#FCFCFD", color="{FADED_LINE if self.marks.follows else LINE}", fontcolor="{ink}", '
            f"fontsize=11, tooltip={_quote(_notes(box.inside) or box.title)}];"
        )

    def _row(self, label: Label, wrap: int = WRAP, ink: str | None = None) -> str:
        """Write the text of a row, on two lines if it is long."""
        text = _text(self.marks.text(label))
        if len(label.text) > wrap:
            text = text.replace(" [", "<br/>[", 1).replace(" and ", "<br/>and ")
        return _font(text, ink or _INKS[self.marks.label(label)])

    def _knots(self) -> None:
        """Write the knots: arrows without a head lead into them, one leaves for the first target."""
        for knot in self.plan.knots:
            inside = knot.head in self.running
            self._capsule(knot.key, knot.labels, self.lines[knot.head] - 1, inside=inside)
            for source in knot.sources:
                self._edge(source, knot.key, self.marks.line(knot.labels), arrow=False)
            self._edge(knot.key, knot.head, self.marks.line(knot.labels), arrow=True)

    def _links(self) -> None:
        """Write all other arrows, each broken by the capsule that says what takes it."""
        for index, link in enumerate(self.plan.links):
            key = f"row {index}"
            top, bottom = self.lines[link.tail], self.lines[link.head]
            line = top + 1 if top == bottom else bottom - 1 if top < bottom else bottom + 1
            if link.tail != link.head and {link.tail, link.head} <= self.flat:
                line = top
            look = self.marks.line(link.labels)
            self._capsule(key, link.labels, line, inside={link.tail, link.head} <= self.running)
            self._edge(link.tail, key, look, arrow=False)
            self._edge(key, link.head, look, arrow=True)

    def _capsule(self, key: str, labels: Sequence[Label], line: int, *, inside: bool) -> None:
        self.lines[key] = line
        look = self.marks.line(labels)
        border = CAPSULE if look is Look.PLAIN else _LINES[look]
        text = "<br/>".join(self._row(label) for label in labels)
        (self.framed if inside else self.capsules).append(
            f'{_quote(key)} [label=<{text}>, fillcolor="white", color="{border}", penwidth=0.7, '
            f'fontsize={SMALL}, height=0.2, width=0.2, margin="0.06,0.02", tooltip={_quote(_notes(labels))}];'
        )

    def _edge(self, tail: str, head: str, look: Look, *, arrow: bool) -> None:
        """Write a line, always from the upper end to the lower one: dot shall not move what it points at."""
        up = self.lines[tail] > self.lines[head]
        ends = ["dir=back"] if up else []
        if not arrow:
            ends.append("arrowtail=none" if up else "arrowhead=none")
        if look is not Look.PLAIN:
            ends += [f'color="{_LINES[look]}"', f"penwidth={_WIDTHS[look]}"]
        first, second = (head, tail) if up else (tail, head)
        options = f" [{', '.join(ends)}]" if ends else ""
        self.edges.append(f"{_quote(first)} -> {_quote(second)}{options};")

    def _ranks(self) -> list[str]:
        """Tie every node to its line, with an invisible chain as the ruler."""
        by_line: dict[int, list[str]] = {}
        for name, line in self.lines.items():
            by_line.setdefault(line, []).append(name)
        by_line[self.lines[self.machine.initial]].insert(0, "the start")
        ruler = {line: _quote(f"line {line}") for line in sorted(by_line)}
        return [
            "  node [shape=point, style=invis, width=0.01, height=0.01, margin=0];",
            f"  {' -> '.join(ruler.values())}{' [style=invis, weight=100]' if len(ruler) > 1 else ''};",
            *(
                f"  {{ rank=same; {'; '.join([ruler[line], *map(_quote, by_line[line])])}; }}"
                for line in sorted(by_line)
            ),
        ]


def _frame(inside: Iterable[str]) -> list[str]:
    """Draw a frame around the running states and what happens among them."""
    line = PAINTS[Category.RUNNING].line
    return [
        "  subgraph cluster_running {",
        f'    graph [label="running", labelloc=t, labeljust=l, fontsize=11, fontcolor="{line}",',
        '      style="rounded,filled", color="#BCD3F0", fillcolor="#F6FAFF", margin=10, tooltip="running"];',
        *(f"    {text}" for text in inside),
        "  }",
    ]


def _font(text: str, ink: str) -> str:
    return f'<font point-size="{SMALL}" color="{ink}">{text}</font>'


def _notes(labels: Iterable[Label]) -> str:
    return "\n".join(label.note for label in labels)


def _plain(text: str) -> str:
    """Take out what XML cannot hold."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)


def _text(text: str) -> str:
    """Escape for a label that is written like HTML."""
    return html.escape(_plain(text))


def _quote(text: str) -> str:
    """Quote for DOT, which reads escapes and entities in quoted texts."""
    escaped = (
        _plain(text).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    )
    return f'"{escaped}"'
