"""What changed between two machines: states, events, rows with their guards, facts and limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from fsm.machine.grammar import Arrow
from fsm.machine.machine import Machine

How = Literal["added", "removed", "changed"]


class Change(NamedTuple):
    """One difference.

    Attributes:
        what: ``initial``, ``state``, ``event``, ``row``, ``fact``, ``payload`` or ``limit``.
        how: Whether the new machine has it too, has it only, or has it otherwise.
        name: What it is called; of rows the sources and the event.
        old: What the old machine says, empty if it says nothing.
        new: What the new machine says.
    """

    what: str
    how: How
    name: str
    old: str
    new: str


def changes(old: Machine, new: Machine) -> list[Change]:
    """Return every difference that decides something; texts for the reader do not count."""
    found = list(_compared("initial", {"state": old.initial}, {"state": new.initial}))
    found += _compared("state", *(_states(one) for one in (old, new)))
    found += _compared("event", *(dict.fromkeys(one.events, "") for one in (old, new)))
    found += _rows(old, new)
    found += _compared(
        "fact", *({name: f"default {said}" for name, said in one.fact_defaults.items()} for one in (old, new))
    )
    found += _compared("payload", *(dict(one.payload_names) for one in (old, new)))
    found += _compared("limit", *(_limits(one) for one in (old, new)))
    return found


def _states(machine: Machine) -> dict[str, str]:
    return {
        state.name: " ".join(
            part
            for part in (
                str(state.category),
                f"deadline={state.deadline}" if state.deadline else "",
                f"outcome={machine.outcomes[state.name]}" if state.name in machine.terminal else "",
            )
            if part
        )
        for state in machine.states
    }


def _limits(machine: Machine) -> dict[str, str]:
    limits = {name: value for name, value in machine.timeouts if name != "phases" and value is not None}
    limits |= {f"phases[{state}]": seconds for state, seconds in machine.timeouts.phases}
    return {name: f"{seconds:g} s" for name, seconds in limits.items()}


def _compared(what: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Change]:
    for name in dict.fromkeys((*old, *new)):
        how = _how(name in old, name in new)
        if how != "changed" or old[name] != new[name]:
            yield Change(what, how, name, old.get(name, ""), new.get(name, ""))


def _how(was: bool, is_: bool) -> How:  # noqa: FBT001 - was it, is it
    return "changed" if was and is_ else "removed" if was else "added"


def said(arrow: Arrow) -> str:
    """Return all that a row says beside where it begins."""
    parts = [
        f"[{arrow.guard}]" if arrow.literals else "",
        f"-> {'(stays)' if arrow.internal else arrow.target}",
    ]
    parts += [
        f"{name}={' '.join(words)}"
        for name, words in (("assign", arrow.assign), ("effects", arrow.effects))
        if words
    ]
    parts += [f"by={arrow.by}" if arrow.by != "anyone" else "", "implicit" if arrow.implicit else ""]
    return " ".join(part for part in parts if part)


def ladders(machine: Machine) -> dict[tuple[str, str], str]:
    """Return, for each state and event, all rows as text in the order in which they are tried."""
    return {
        (source, event): "; ".join(said(arrow) for arrow in arrows)
        for source, events in machine.by_source.items()
        for event, arrows in events.items()
    }


def _rows(old: Machine, new: Machine) -> Iterator[Change]:
    """Yield the rows that differ, with the sources between which they differ alike on one line."""
    was, is_ = ladders(old), ladders(new)
    alike: dict[tuple[str, How, str, str], list[str]] = {}
    for key in dict.fromkeys((*was, *is_)):
        if was.get(key) != is_.get(key):
            source, event = key
            how = _how(key in was, key in is_)
            alike.setdefault((event, how, was.get(key, ""), is_.get(key, "")), []).append(source)
    for (event, how, before, after), sources in alike.items():
        yield Change("row", how, f"{' '.join(sources)} --{event}-->", before, after)


def drawing(old: Machine, new: Machine) -> str:
    """Draw both machines over each other, as DOT text: added rows green, removed ones red, changed ones orange."""
    was, is_ = ladders(old), ladders(new)
    edges: dict[tuple[str, str, str], list[str]] = {}
    for machine, own, other in ((new, is_, was), (old, was, is_)):
        for arrow in machine.arrows:
            key = (arrow.source, arrow.event)
            if machine is old and was[key] == is_.get(key):
                continue  # it stands there already
            colour = "same" if own[key] == other.get(key) else "changed"
            if colour == "changed":
                theirs = (old if machine is new else new).by_source.get(arrow.source, {}).get(arrow.event, ())
                if not any(one.target == arrow.target for one in theirs):
                    colour = "added" if machine is new else "removed"
            text = f"{arrow.event} [{arrow.guard}]" if arrow.literals else arrow.event
            texts = edges.setdefault((arrow.source, arrow.target, colour), [])
            if text not in texts:
                texts.append(text)
    out = [
        "digraph diff {",
        '  graph [rankdir=TB, fontname="Helvetica"];',
        '  node [shape=box, style="rounded,filled", fontname="Helvetica"];',
    ]
    for name in dict.fromkeys([*new.by_name, *old.by_name]):
        how = _how(name in old.by_name, name in new.by_name)
        same = how == "changed" and _states(old)[name] == _states(new)[name]
        fill, line = _PAINTS["same" if same else how]
        out.append(f'  {_quoted(name)} [fillcolor="{fill}", color="{line}"];')
    for (source, target, colour), texts in edges.items():
        line = _PAINTS[colour][1]
        style = "dashed" if colour == "removed" else "solid"
        looks = f'color="{line}", fontcolor="{line}", fontsize=9, style="{style}"'
        label = _quoted("\\n".join(texts))
        out.append(f"  {_quoted(source)} -> {_quoted(target)} [label={label}, {looks}];")
    return "\n".join([*out, "}", ""])


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "'") + '"'


_PAINTS = {
    "same": ("#F4F6F8", "#A7B0B9"),
    "added": ("#DDF4E4", "#1B7F3B"),
    "removed": ("#FBE3E3", "#C81E1E"),
    "changed": ("#FFF0D6", "#C77700"),
}
