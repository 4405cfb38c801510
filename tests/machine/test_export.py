"""The exports: what another tool reads is the table, whole and in its order."""

import itertools
import json
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings

from fsm.lifecycles import BREAKER, EXECUTION
from fsm.machine.export import OURS, SCXML, to_scxml, to_xstate
from fsm.machine.grammar import row
from fsm.machine.machine import Machine
from tests.support.drawn import machines, made

SHIPPED = pytest.mark.parametrize("machine", [EXECUTION, BREAKER], ids=lambda machine: machine.name)
S, F = f"{{{SCXML}}}", f"{{{OURS}}}"


def table(machine):
    """Return for each state its arrows, in the order in which they are tried."""
    return {
        state.name: [
            (a.event, a.literals, None if a.internal else a.target, a.assign, a.effects, a.otherwise)
            for arrows in machine.by_source[state.name].values()
            for a in arrows
        ]
        for state in machine.states
    }


def from_scxml(text):
    """Read the arrows of each state back from SCXML."""
    out = {}
    for state in ET.fromstring(text):
        if state.tag in (f"{S}state", f"{S}final"):
            out[state.get("id")] = [_scxml_arrow(transition) for transition in state.iter(f"{S}transition")]
    return out


def _scxml_arrow(transition):
    assert transition.get("type") is None, "a reader may refuse a type on what has no target"
    parts = transition.get("cond").split(" && ") if transition.get("cond") else []
    return (
        transition.get("event"),
        tuple((part.removesuffix(" === false"), not part.endswith(" === false")) for part in parts),
        transition.get("target"),
        tuple((transition.get(f"{F}assign") or "").split()),
        tuple((transition.get(f"{F}effects") or "").split()),
        transition.get(f"{F}otherwise"),
    )


def from_xstate(text):
    """Read the arrows of each state back from xstate's JSON."""
    return {
        name: [_xstate_arrow(event, one) for event, rows in state.get("on", {}).items() for one in rows]
        for name, state in json.loads(text)["states"].items()
    }


def _xstate_arrow(event, one):
    guard = one.get("guard")
    parts = [] if guard is None else [guard]
    if isinstance(guard, dict) and guard["type"] == "and":
        parts = guard["params"]["guards"]
    actions = one.get("actions", [])
    return (
        event,
        tuple((part, True) if isinstance(part, str) else (part["params"]["guard"], False) for part in parts),
        one.get("target"),
        tuple(action["type"] for action in actions if action["params"]["kind"] == "assign"),
        tuple(action["type"] for action in actions if action["params"]["kind"] == "effect"),
        one.get("meta", {}).get("otherwise"),
    )


@SHIPPED
def test_shipped_exports_say_the_whole_table(machine):
    """Read back from either export, every state has its rows: event, guard, target, changes, orders, refusal."""
    assert from_scxml(to_scxml(machine)) == table(machine)
    assert from_xstate(to_xstate(machine)) == table(machine)


@given(machine=machines())
@settings(max_examples=100, deadline=None)
def test_any_machine_is_exported_whole(machine):
    """Any machine's exports say its whole table, in the order in which guards are tried."""
    assert from_scxml(to_scxml(machine)) == table(machine)
    assert from_xstate(to_xstate(machine)) == table(machine)


@SHIPPED
def test_states_keep_what_they_are(machine):
    """Both exports name the initial state, the ends, and each state's category, deadline and doc."""
    root, data = ET.fromstring(to_scxml(machine)), json.loads(to_xstate(machine))
    assert root.tag == f"{S}scxml"
    assert (root.get("version"), root.get("datamodel")) == ("1.0", "ecmascript")
    assert root.get("initial") == data["initial"] == machine.initial
    assert root.get("name") == data["id"] == machine.name
    assert root.get(f"{F}content_hash") == data["meta"]["content_hash"] == machine.content_hash
    assert {one.get("id") for one in root.iter(f"{S}final")} == machine.terminal
    assert {name for name, one in data["states"].items() if one.get("type") == "final"} == machine.terminal
    assert list(data["states"]) == [one.name for one in machine.states]
    for state in machine.states:
        (element,) = [one for one in root if one.get("id") == state.name]
        found = data["states"][state.name]
        assert element.get(f"{F}category") == found["meta"]["category"] == found["tags"][0] == state.category
        assert element.get(f"{F}deadline") == found["meta"]["deadline"] == state.deadline
        assert element.get(f"{F}doc") == found["description"] == state.doc


def test_facts_keep_their_defaults():
    """The facts are the data of both exports, each with the answer that the table gives by default."""
    data = ET.fromstring(to_scxml(EXECUTION)).iter(f"{S}data")
    assert {one.get("id"): json.loads(one.get("expr")) for one in data} == EXECUTION.fact_defaults
    assert json.loads(to_xstate(EXECUTION))["context"] == EXECUTION.fact_defaults
    assert EXECUTION.fact_defaults["permit"] is True
    assert EXECUTION.fact_defaults["owned"] is False


def test_guards_take_the_shape_that_their_reader_knows():
    """A guard of one fact is a name, any other an object with its parts; in SCXML it is a condition."""
    machine = made(
        [("new", "pending")],
        [
            row("new", "one", None, "f0", otherwise="no"),
            row("new", "other", None, "not f1", otherwise="no"),
            row("new", "both", None, "f0 and not f1", otherwise="no"),
        ],
    )
    on = json.loads(to_xstate(machine))["states"]["new"]["on"]
    negated = {"type": "not", "params": {"guard": "f1"}}
    assert on["one"][0]["guard"] == "f0"
    assert on["other"][0]["guard"] == negated
    assert on["both"][0]["guard"] == {"type": "and", "params": {"guards": ["f0", negated]}}
    conditions = [one.get("cond") for one in ET.fromstring(to_scxml(machine)).iter(f"{S}transition")]
    assert [condition for condition in conditions if condition] == [
        "f0",
        "f1 === false",
        "f0 && f1 === false",
    ]


def test_a_row_back_to_its_state_leaves_it_and_a_stay_does_not():
    """A row with its own state as the target re-enters it; a row without one has no target in either export."""
    machine = made([("new", "pending")], [row("new", "again", "new"), row("new", "note")])
    on = json.loads(to_xstate(machine))["states"]["new"]["on"]
    assert on["again"] == [{"target": "new", "reenter": True}]
    assert on["note"] == [{}]
    found = {
        one.get("event"): dict(one.attrib) for one in ET.fromstring(to_scxml(machine)).iter(f"{S}transition")
    }
    assert found["again"] == {"event": "again", "target": "new"}
    assert found["note"] == {"event": "note"}


def test_facts_called_like_words_of_ecmascript_still_make_conditions():
    """A fact called `new` or `delete` is renamed in conditions and data alike, as neither could be a variable."""
    rows = [row("s", "go", None, "new and not delete", otherwise="no")]
    text = to_scxml(made([("s", "pending")], rows, facts="new delete fine"))
    root = ET.fromstring(text)
    assert [one.get("id") for one in root.iter(f"{S}data")] == ["new_", "delete_", "fine"]
    assert 'cond="new_ &amp;&amp; delete_ === false"' in text


def test_odd_texts_survive():
    """Docs with markup, quotes, newlines and other scripts come back as written, less what XML cannot hold."""
    doc = "a <b> & \"c\" 'd' \\ ü\nnext"
    machine = made([("new", "pending")], doc=doc)
    assert ET.fromstring(to_scxml(machine)).get(f"{F}doc") == doc
    assert json.loads(to_xstate(machine))["description"] == doc
    assert ET.fromstring(to_scxml(made([("new", "pending")], doc="bell\x07end"))).get(f"{F}doc") == "bell end"


@SHIPPED
def test_equal_machines_are_exported_in_equal_bytes(machine):
    """A machine that was written as JSON and read back is exported the same, byte for byte."""
    again = Machine.from_json(machine.to_json())
    assert to_scxml(again) == to_scxml(machine)
    assert to_xstate(again) == to_xstate(machine)


def test_the_namespaces_are_declared_once():
    """The document declares the standard's namespace as its own and ours beside it, and makes up no prefix."""
    text = to_scxml(BREAKER)
    assert re.findall(r'xmlns(?::\w+)?="[^"]+"', text) == [f'xmlns="{SCXML}"', f'xmlns:fsm="{OURS}"']
    assert not re.search(r"\bns\d:", text)


def test_conditions_hold_exactly_when_the_guards_do():
    """Over all answers of all facts, each SCXML condition holds exactly when the guard of its row does."""
    for arrow_condition, literals in {
        (one.get("cond"), arrow.literals)
        for state in ET.fromstring(to_scxml(EXECUTION)).iter(f"{S}state")
        for one, arrow in zip(
            state.iter(f"{S}transition"),
            itertools.chain.from_iterable(EXECUTION.by_source[state.get("id")].values()),
            strict=True,
        )
    }:
        python = (arrow_condition or "True").replace("&&", "and").replace("=== false", "is False")
        for answers in itertools.product([False, True], repeat=len(EXECUTION.facts)):
            facts = dict(zip(EXECUTION.fact_defaults, answers, strict=True))
            assert eval(python, {}, facts) == all(facts[name] == wanted for name, wanted in literals)
