"""The table in the words of two other worlds: SCXML for the standard's tools, JSON for xstate.

Both keep every row, its order, its guard and what it notes and orders. Neither carries behaviour of ours: guards are
facts that the host answers, the record's changes and the effects are names.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

from fsm.machine.grammar import Arrow, Literals, State
from fsm.machine.machine import Machine

SCXML = "http://www.w3.org/2005/07/scxml"
"""The namespace of the standard (W3C State Chart XML, 2015)."""

OURS = "urn:agent-fsm:machine:1"
"""The namespace of what the standard has no word for: category, deadline, assign, effects, otherwise."""

_RESERVED = frozenset(
    "await break case catch class const continue debugger default delete do else enum export extends false finally "
    "for function if implements import in instanceof interface let new null package private protected public return "
    "static super switch this throw true try typeof var void while with yield".split()
)


def to_scxml(machine: Machine) -> str:
    """Write a machine as an SCXML document with the ECMAScript data model.

    Facts are data with their defaults, guards are conditions over them; internal transitions have no target. A fact
    that is called like a word of ECMAScript gets an underscore at its end. What the standard has no word for stands
    in attributes of the namespace `OURS`.

    Args:
        machine: Any machine.

    Returns:
        The document; equal machines give equal bytes.
    """
    root = ET.Element(
        "scxml",
        {
            "xmlns": SCXML,
            "xmlns:fsm": OURS,
            "version": "1.0",
            "name": machine.name,
            "initial": machine.initial,
            "datamodel": "ecmascript",
            **_ours(doc=machine.doc, content_hash=machine.content_hash),
        },
    )
    if machine.facts:
        data = ET.SubElement(root, "datamodel")
        for fact in machine.facts:
            ET.SubElement(
                data,
                "data",
                {"id": _variable(fact.name), "expr": json.dumps(fact.default), **_ours(doc=fact.doc)},
            )
    for state in machine.states:
        final = state.name in machine.terminal
        about = _ours(category=str(state.category), deadline=state.deadline or "", doc=state.doc)
        element = ET.SubElement(root, "final" if final else "state", {"id": state.name, **about})
        for arrow in _arrows(machine, state):
            ET.SubElement(element, "transition", _scxml_transition(arrow))
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _scxml_transition(arrow: Arrow) -> dict[str, str]:
    out = {"event": arrow.event}
    if arrow.literals:
        out["cond"] = " && ".join(
            # Readers that are no ECMAScript know a comparison, and not what an exclamation mark says.
            _variable(name) + ("" if wanted else " === false")
            for name, wanted in arrow.literals
        )
    if not arrow.internal:
        out["target"] = arrow.target  # without a target the state stays: no reader needs a type for that
    return out | _ours(
        assign=" ".join(arrow.assign), effects=" ".join(arrow.effects), otherwise=arrow.otherwise or ""
    )


def _variable(fact: str) -> str:
    return f"{fact}_" if fact in _RESERVED else fact


def _ours(**values: str) -> dict[str, str]:
    return {f"fsm:{name}": _plain(value) for name, value in values.items() if value}


def _plain(text: str) -> str:
    """Take out what XML cannot hold, even escaped."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)


def to_xstate(machine: Machine) -> str:
    """Write a machine as JSON for xstate 5: ``createMachine(JSON.parse(text))``.

    Facts are the context with their defaults. A guard of one fact is its name. Any other guard is an object,
    ``{"type": "and", "params": {"guards": [...]}}`` or ``{"type": "not", "params": {"guard": ...}}``: xstate's own
    combinators are functions and cannot stand in JSON, so the host provides these two beside its facts. Actions are
    the record's changes (``params.kind`` is ``assign``) and then the effects. Category, deadline and declared
    refusal are ``meta``; the category is a tag as well, so that ``state.hasTag("running")`` works.

    Args:
        machine: Any machine.

    Returns:
        The document; equal machines give equal bytes.
    """
    out: dict[str, Any] = {"id": machine.name, "initial": machine.initial}
    if machine.doc:
        out["description"] = machine.doc
    out["context"] = dict(machine.fact_defaults)
    out["meta"] = {"content_hash": machine.content_hash}
    out["states"] = {state.name: _xstate_state(machine, state) for state in machine.states}
    return json.dumps(out, indent=2, ensure_ascii=False) + "\n"


def _xstate_state(machine: Machine, state: State) -> dict[str, Any]:
    out: dict[str, Any] = {"type": "final"} if state.name in machine.terminal else {}
    if state.doc:
        out["description"] = state.doc
    out["tags"] = [str(state.category)]
    out["meta"] = {"category": str(state.category), "deadline": state.deadline}
    events: dict[str, list[dict[str, Any]]] = {}
    for arrow in _arrows(machine, state):
        events.setdefault(arrow.event, []).append(_xstate_transition(arrow))
    if events:
        out["on"] = events
    return out


def _xstate_transition(arrow: Arrow) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if not arrow.internal:
        out["target"] = arrow.target
        if arrow.target == arrow.source:
            out["reenter"] = True  # a row with a target leaves its state, even back to itself
    if arrow.literals:
        out["guard"] = _xstate_guard(arrow.literals)
    actions = [("assign", name) for name in arrow.assign] + [("effect", name) for name in arrow.effects]
    if actions:
        out["actions"] = [{"type": name, "params": {"kind": kind}} for kind, name in actions]
    if arrow.otherwise:
        out["meta"] = {"otherwise": arrow.otherwise}
    return out


def _xstate_guard(literals: Literals) -> str | dict[str, Any]:
    parts: list[str | dict[str, Any]] = [
        name if wanted else {"type": "not", "params": {"guard": name}} for name, wanted in literals
    ]
    return parts[0] if len(parts) == 1 else {"type": "and", "params": {"guards": parts}}


def _arrows(machine: Machine, state: State) -> list[Arrow]:
    """Return what leaves a state, in the order in which it is tried."""
    return [arrow for arrows in machine.by_source[state.name].values() for arrow in arrows]
