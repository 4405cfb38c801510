"""Small machines to draw, and a reader that makes a machine's arrows again from a drawing's text."""

import html
import re

from hypothesis import strategies as st

from fsm.machine.grammar import Fact, row, state
from fsm.machine.machine import Machine


def made(states, rows=(), doc="", facts="f0 f1"):
    """Build a machine whose states all lead on, can be cancelled, and end in `done`."""
    names = [name for name, _ in states]
    chain = [
        row(name, f"go_{index}", following)
        for index, (name, following) in enumerate(zip(names, [*names[1:], "done"], strict=True))
    ]
    everywhere = "@pending @running @waiting"
    return Machine(
        name="small",
        doc=doc,
        initial=names[0],
        states=(
            *(state(name, category, "input" if category == "waiting" else None) for name, category in states),
            state("done", "terminal"),
        ),
        transitions=(*chain, *rows, row(everywhere, "time_out", "done"), row(everywhere, "cancel", "done")),
        facts=tuple(Fact(name=name) for name in facts.split()),
    )


@st.composite
def machines(draw):
    """Draw a small machine: two to six states, and up to six more rows of every kind."""
    count = draw(st.integers(1, 5))
    some = st.sampled_from(["pending", "running", "waiting"])
    categories = ["pending", "running", *draw(st.lists(some, min_size=count - 1, max_size=count - 1))]
    states = [(f"s{index}", category) for index, category in enumerate(categories)]
    selectors = [name for name, _ in states] + [f"@{category}" for category in sorted(set(categories))]
    targets = st.sampled_from([None, "done", *(name for name, _ in states)])
    rows = [
        row("s0 s1", "asks", draw(targets), "f0 and f1", otherwise="f0 and f1 have to hold"),
        row("s0", "turns", draw(targets), "not f0"),
        row("s0", "turns", draw(targets)),
    ]
    for index in range(draw(st.integers(0, 6))):
        chosen = draw(st.lists(st.sampled_from(selectors), min_size=1, max_size=5, unique=True))
        if "@running" in chosen[1:] and "s1" not in chosen and draw(st.booleans()):
            chosen.append("!s1")  # what stands before @running is left to come from
        source = " ".join(chosen)
        guard = draw(st.sampled_from([None, "f0", "not f1", "f0 and not f1"]))
        by = draw(st.sampled_from(["anyone", "owner", "system"]))
        if guard is not None:
            rows.append(row(source, f"event_{index}", draw(targets), guard, by=by))
        rows.append(row(source, f"event_{index}", draw(targets)))
    return made(states, rows)


def arrows_of(machine):
    """Return every arrow of the table as (source, event, guard and who may fire it, target)."""
    return {(arrow.source, arrow.event, (arrow.guard, arrow.by), arrow.target) for arrow in machine.arrows}


def from_mermaid(machine, text):
    """Read the arrows back from Mermaid text."""
    nodes = {key: label for label, key in re.findall(r'state "(.*)" as (\w+)$', text, re.MULTILINE)}
    lines = []
    for index, (tail, head, label) in enumerate(
        re.findall(r"^ +(\w+) --> (\w+)(?: : (.*))?$", text, re.MULTILINE)
    ):
        if label:
            nodes[f"row_{index}"] = label
            lines += [(tail, f"row_{index}"), (f"row_{index}", head)]
        else:
            lines.append((tail, head))
    states = {key: key.removeprefix("s_") for key in nodes if key.startswith("s_")}
    return _read(machine, nodes, lines, states, {key for key in nodes if key.startswith("any_")})


def from_dot(machine, text):
    """Read the arrows back from DOT text."""
    nodes = {
        key: html.unescape(re.sub(r"</?(font|b)\b[^>]*>", "", label))
        for key, label in re.findall(
            r'^ +"([^"]+)" \[label=<(.*?)>, (?:style|fillcolor)=', text, re.MULTILINE
        )
    }
    lines = []
    for first, second, options in re.findall(
        r'^ +"([^"]+)" -> "([^"]+)"(?: \[(.*)\])?;$', text, re.MULTILINE
    ):
        if first in nodes:
            lines.append((second, first) if "dir=back" in options else (first, second))
    states = {key: key for key in nodes if " " not in key}
    return _read(machine, nodes, lines, states, {key for key in nodes if key.startswith("any ")})


def _read(machine, nodes, lines, states, boxes):
    """Follow every line from the states that it starts at, through what is written on its way, to a state."""
    starts = {key: [name] for key, name in states.items()}
    starts |= {key: _stands_for(machine, nodes[key].split("<br/>")[0]) for key in boxes}
    out = {
        (name, event, guard, name)
        for key, names in starts.items()
        for event, guard in _rows(machine, nodes[key].partition("<br/>")[2])
        for name in names
    }
    before = {}
    for tail, head in lines:
        before.setdefault(head, []).append(tail)

    def sources(key):
        return starts[key] if key in starts else [name for tail in before[key] for name in sources(tail)]

    for tail, head in lines:
        if head in states:
            for event, guard in _rows(machine, nodes[tail]):
                out |= {(name, event, guard, states[head]) for name in sources(tail)}
    return out


def _rows(machine, text):
    """Read the rows in the text of a node; a guard that has a line of its own is joined to its event."""
    unsaid = "owner" if any(arrow.by != "anyone" for arrow in machine.arrows) else "anyone"
    for line in re.sub(r"<br/>(\[|and |\()", r" \1", text).split("<br/>") if text else ():
        event, guard, by = re.fullmatch(r"(\w+)(?: \[(.*)\])?(?: \((\w+)\))?", line).groups()
        yield event, ("" if guard in {None, "else"} else guard, by or unsaid)


def _stands_for(machine, title):
    """Resolve the title of a box into the states that it stands for."""
    listed, _, but = title.removeprefix("any ").partition(" state")
    names, gone = listed.replace(" or ", ", ").split(", "), but.removeprefix(" but ").split(", ")
    found = [one.name for one in machine.states if one.category in names or one.name in names]
    return [name for name in found if name not in gone]
