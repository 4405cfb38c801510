"""The grammar: declarations are immutable data that can be compared, hashed, derived, written and read back."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fsm import BREAKER, EXECUTION, Category, Fact, InvalidMachine, Machine, State, Timeouts, Transition
from fsm.core.decide import CHANGES, decide
from fsm.errors import FsmError
from fsm.machine.grammar import row, state
from tests.support.strategies import machines

SHIPPED = [EXECUTION, BREAKER]
BAD_NAMES = ["", "A", "aB", "1a", "_a", "a-b", "a b", " a", "a\n", "ä", "a.b", "x" * 65]

SMALL = Machine(
    name="small",
    initial="a",
    states=(state("a", "running", "phase", "Begins"), state("b", "terminal", doc="Ends")),
    facts=(Fact(name="yes", doc="A question"),),
    transitions=(
        row("a", "go", "b", "yes", assign="end", effects="tell", otherwise="say yes"),
        row("a", "time_out", "b"),
        row("a", "stay"),
    ),
    payloads=(("go", "complete"),),
    timeouts=Timeouts(phase_s=0.5),
    doc="A small one",
)


def other(**changes: Any) -> Machine:
    """Return SMALL with some fields replaced."""
    return Machine(**(fields_of(SMALL) | changes))


def fields_of(machine: Machine) -> dict[str, Any]:
    return {name: getattr(machine, name) for name in Machine.model_fields}


# --- the grammar ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", BAD_NAMES)
def test_names_are_lower_case_words(bad: str) -> None:
    """A name that is no lower-case word is refused, wherever it stands."""
    for make in (
        lambda: state(bad, "running"),
        lambda: Fact(name=bad),
        lambda: Transition(source=("a",), event=bad),
        lambda: Transition(source=("a",), event="go", target=bad),
        lambda: Transition(source=(f"@{bad}",), event="go"),
        lambda: Transition(source=("a",), event="go", assign=(bad,)),
        lambda: Transition(source=("a",), event="go", effects=(bad,)),
        lambda: other(name=bad),
        lambda: other(initial=bad),
        lambda: other(payloads=((bad, "complete"),)),
    ):
        with pytest.raises(ValidationError):
            make()


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "and",
        "yes and",
        "and yes",
        "not",
        "not not yes",
        "yes  and no",
        "yes or no",
        "Yes",
        "(yes)",
        "!yes",
    ],
)
def test_a_guard_that_is_no_guard_is_refused(bad: str) -> None:
    """A guard outside of the little grammar never becomes a machine."""
    with pytest.raises((ValidationError, InvalidMachine)):
        other(transitions=(row("a", "go", "b", bad, otherwise="no"), *SMALL.transitions[1:]))


def test_a_guard_reads_as_literals() -> None:
    """A guard is the facts that it joins, each with the answer that it wants."""
    assert row("a", "go", guard="yes and not sure and notable").literals == (
        ("yes", True),
        ("sure", False),
        ("notable", True),
    )
    assert row("a", "go").literals == ()


def test_a_category_is_one_of_five() -> None:
    """A category outside of the closed set is refused."""
    with pytest.raises(ValueError, match="resting"):
        state("a", "resting")
    with pytest.raises(ValidationError):
        State.model_validate({"name": "a", "category": "resting"})
    assert [*Category] == ["pending", "running", "waiting", "stopping", "terminal"]


def test_unknown_fields_are_refused() -> None:
    """A misspelt field of a declaration is refused, not ignored."""
    for kind, fields in (
        (State, {"name": "a", "category": "running", "deadlin": "phase"}),
        (Fact, {"name": "a", "defualt": True}),
        (Transition, {"source": "a", "event": "go", "gaurd": "yes"}),
        (Machine, fields_of(SMALL) | {"perpetuum": True}),
    ):
        with pytest.raises(ValidationError):
            kind.model_validate(fields)


def test_lists_may_be_written_as_words() -> None:
    """Words with spaces between them are the same as a tuple, in a table and in JSON."""
    wordy = Transition.model_validate(
        {"source": "a @running", "event": "go", "assign": "x y", "effects": "z"}
    )
    assert wordy == row("a @running", "go", assign="x y", effects="z")
    with pytest.raises(ValidationError):
        Transition.model_validate({"source": "", "event": "go"})


def test_rows_and_arrows_read_like_the_table() -> None:
    """A row and an arrow print as a reader of the table expects them."""
    assert str(row("a @running", "go", "b", "yes")) == "a @running --go [yes]--> b"
    assert str(row("a", "stay")) == "a --stay--> (stays)"
    assert [str(arrow) for arrow in SMALL.arrows] == [
        "a --go [yes]--> b",
        "a --time_out--> b",
        "a --stay--> a",
    ]


# --- what the table says -------------------------------------------------------------------------------------


def test_selectors_resolve_in_the_order_of_declaration() -> None:
    """A row with categories and names leaves each of their states once, in the order in which they are declared."""
    table = EXECUTION.extend(name="x", transitions=[row("thinking @waiting @running", "nod")])
    nod = [arrow.source for arrow in table.arrows if arrow.event == "nod"]
    wanted = ["thinking"]
    wanted += [one.name for one in EXECUTION.states if one.category == "waiting"]
    wanted += [one.name for one in EXECUTION.states if one.category == "running" and one.name != "thinking"]
    assert nod == wanted


@settings(max_examples=60)
@given(machines())
def test_every_arrow_is_a_row_and_every_row_an_arrow(machine: Machine) -> None:
    """The resolved table says exactly what the rows say, no more and no less, in their order."""
    expected = [
        (name, one.event, one.target or name, one.guard or "", index)
        for index, one in enumerate(machine.transitions)
        for name in dict.fromkeys(
            name
            for selector in one.source
            for name in (
                [s.name for s in machine.states if f"@{s.category}" == selector]
                if selector.startswith("@")
                else [selector]
            )
        )
    ]
    assert [(a.source, a.event, a.target, a.guard, a.row) for a in machine.arrows] == expected
    flat = [a for events in machine.by_source.values() for arrows in events.values() for a in arrows]
    assert sorted(flat, key=str) == sorted(machine.arrows, key=str)
    for events in machine.by_source.values():
        for arrows in events.values():
            assert [a.row for a in arrows] == sorted(a.row for a in arrows)
    assert set(machine.events) == {one.event for one in machine.transitions}
    assert machine.terminal == {s.name for s in machine.states if s.category == "terminal"}


# --- immutable, comparable -----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [SMALL, SMALL.states[0], SMALL.transitions[0], SMALL.facts[0]])
def test_a_declaration_is_frozen(part: Any) -> None:
    """No field of a declaration can be set or deleted."""
    for name in type(part).model_fields:
        with pytest.raises(ValidationError):
            setattr(part, name, getattr(part, name))
        with pytest.raises(ValidationError):
            delattr(part, name)


def test_what_a_machine_was_made_from_can_change_without_it() -> None:
    """Changing the lists that a machine was built from changes nothing in the machine."""
    states, rows = list(SMALL.states), list(SMALL.transitions)
    machine = other(states=states, transitions=rows)
    before = machine.content_hash
    states.clear()
    rows.clear()
    assert machine == SMALL
    assert machine.content_hash == before == SMALL.content_hash


@pytest.mark.parametrize("name", ["by_name", "by_source", "fact_defaults", "payload_names"])
def test_what_a_machine_shows_cannot_change_it(name: str) -> None:
    """The resolved tables that a machine shows are read-only."""
    shown = getattr(SMALL, name)
    with pytest.raises(TypeError):
        shown["a"] = None
    if name == "by_source":
        with pytest.raises(TypeError):
            shown["a"]["go"] = ()


@pytest.mark.parametrize("machine", SHIPPED)
def test_machines_are_hashable_values(machine: Machine) -> None:
    """Equal declarations are one key of a dict, different ones are two."""
    twin = Machine(**fields_of(machine))
    assert twin == machine
    assert twin is not machine
    assert hash(twin) == hash(machine)
    assert len({machine, twin, SMALL}) == 2
    assert machine != SMALL


@pytest.mark.parametrize("machine", SHIPPED)
def test_a_machine_survives_copy_and_pickle(machine: Machine) -> None:
    """A machine that was already used can be copied and sent to another process, and still runs there."""
    machine.executor  # noqa: B018 - built, so that it would have to come along
    for again in (pickle.loads(pickle.dumps(machine)), copy.copy(machine), copy.deepcopy(machine)):
        assert again == machine
        assert again.content_hash == machine.content_hash
        assert again.executor.triggers.keys() == machine.executor.triggers.keys()


def test_a_changed_copy_is_a_machine_of_its_own_and_proved() -> None:
    """model_copy with changes proves again and takes over nothing that was resolved for the original."""
    assert SMALL.events == ("go", "time_out", "stay")
    changed = SMALL.model_copy(update={"transitions": SMALL.transitions[:2]})
    assert changed.events == ("go", "time_out")
    assert changed.content_hash != SMALL.content_hash
    with pytest.raises(InvalidMachine, match="nowhere"):
        SMALL.model_copy(update={"initial": "nowhere"})


# --- JSON ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", SHIPPED)
@pytest.mark.parametrize("indent", [None, 2])
def test_shipped_machines_survive_json(machine: Machine, indent: int | None) -> None:
    """A shipped machine comes back from JSON as it was."""
    again = Machine.from_json(machine.to_json(indent=indent))
    assert again == machine
    assert again.model_dump() == machine.model_dump(), "down to every text and default"
    assert again.content_hash == machine.content_hash
    assert again.arrows == machine.arrows


@settings(max_examples=60)
@given(machines())
def test_drawn_machines_survive_json(machine: Machine) -> None:
    """Any machine comes back from JSON as it was, and so does its hash."""
    again = Machine.from_json(machine.to_json())
    assert again.model_dump() == machine.model_dump()
    assert again.content_hash == machine.content_hash
    assert Machine.from_json(machine.to_json().encode()) == machine


def test_json_by_hand_is_proved() -> None:
    """A document that does not hold together, is no JSON or not of the grammar never becomes a machine."""
    document = json.loads(SMALL.to_json())
    assert Machine.from_json(json.dumps(document)) == SMALL
    with pytest.raises(InvalidMachine, match="nowhere"):
        Machine.from_json(json.dumps(document | {"initial": "nowhere"}))
    for bad in ("", "no json", "[]", json.dumps(document | {"states": 5}), json.dumps({"name": "m"})):
        with pytest.raises(ValidationError):
            Machine.from_json(bad)


# --- the content hash ----------------------------------------------------------------------------------------


def test_the_hash_is_the_same_in_every_process() -> None:
    """Another process with another hash seed computes the same content hashes, for shipped and own machines."""
    code = (
        "import sys; from fsm import *;"
        "print(EXECUTION.content_hash, BREAKER.content_hash, Machine.from_json(sys.stdin.read()).content_hash)"
    )
    for seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=SMALL.to_json(),
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == [EXECUTION.content_hash, BREAKER.content_hash, SMALL.content_hash]


def test_the_hash_is_short_text() -> None:
    """A content hash is thirty-two hex digits."""
    for machine in (*SHIPPED, SMALL):
        assert len(machine.content_hash) == 32
        assert int(machine.content_hash, 16)


def test_texts_for_the_reader_do_not_change_the_hash() -> None:
    """Rewording any doc or refusal text leaves the content hash as it is."""
    reworded = other(
        doc="Another text",
        states=tuple(one.model_copy(update={"doc": "New"}) for one in SMALL.states),
        facts=tuple(one.model_copy(update={"doc": "New"}) for one in SMALL.facts),
        transitions=(SMALL.transitions[0].model_copy(update={"otherwise": "New"}), *SMALL.transitions[1:]),
    )
    assert reworded != SMALL
    assert reworded.content_hash == SMALL.content_hash
    assert hash(reworded) == hash(SMALL)


A, B = SMALL.states
GO, TIME_OUT, STAY = SMALL.transitions
C = state("c", "terminal")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "tall"},
        {"states": (A, B, C), "transitions": (GO, TIME_OUT, STAY, row("a", "leap", "c"))},
        {"states": (State(name="a", category=Category.PENDING, deadline="phase"), B)},
        {"states": (State(name="a", category=Category.RUNNING, deadline="queue"), B)},
        {"states": (State(name="a", category=Category.RUNNING), B)},
        {"transitions": (GO, TIME_OUT)},
        {"transitions": (TIME_OUT, GO, STAY)},
        {"transitions": (GO, TIME_OUT, row("a", "stop"))},
        {"transitions": (GO, TIME_OUT, row("a", "stay", "a"))},
        {"transitions": (GO, TIME_OUT, row("@running", "stay"))},
        {"transitions": (GO, TIME_OUT, row("a", "stay", assign="progress"))},
        {"transitions": (GO, TIME_OUT, row("a", "stay", effects="tell"))},
        {"transitions": (GO.model_copy(update={"guard": "not yes"}), TIME_OUT, STAY)},
        {"transitions": (GO.model_copy(update={"guard": None}), TIME_OUT, STAY)},
        {"transitions": (GO.model_copy(update={"assign": ()}), TIME_OUT, STAY)},
        {
            "transitions": (
                GO.model_copy(update={"otherwise": None}),
                row("a", "go", "b"),
                TIME_OUT,
                STAY,
            )
        },
        {"facts": (Fact(name="yes", default=True),)},
        {"facts": (*SMALL.facts, Fact(name="sure"))},
        {"payloads": ()},
        {"payloads": (("go", "cancel"),)},
        {"timeouts": Timeouts(phase_s=0.25)},
        {"timeouts": Timeouts()},
        {"timeouts": Timeouts(phase_s=0.5, phases={"a": 1.0})},
    ],
)
def test_every_change_of_behaviour_changes_the_hash(changes: dict[str, Any]) -> None:
    """Whatever decides behaviour is in the content hash."""
    assert other(**changes).content_hash != SMALL.content_hash


def test_whether_an_event_is_refused_by_declaration_is_in_the_hash() -> None:
    """A declared refusal is behaviour, although its wording is not."""
    covered = (row("a", "go", "b", "yes"), row("a", "go", "b", "not yes"), TIME_OUT)
    refusing = (row("a", "go", "b", "yes"), row("a", "go", "b", "not yes", otherwise="never"), TIME_OUT)
    assert other(transitions=covered).content_hash != other(transitions=refusing).content_hash


@settings(max_examples=60)
@given(machines(), machines())
def test_equal_hashes_mean_equal_tables(first: Machine, second: Machine) -> None:
    """Two machines have the same hash exactly if they differ in nothing but texts."""

    def bare(machine: Machine) -> Any:
        data = machine.model_dump(exclude={"doc": True, "states": {"__all__": {"doc"}}})
        for one in data["transitions"]:
            one["otherwise"] = one["otherwise"] is not None
        return data

    assert (first.content_hash == second.content_hash) == (bare(first) == bare(second))


# --- extend --------------------------------------------------------------------------------------------------


def test_a_derived_machine_has_more_phases() -> None:
    """A new running phase is reached by its own rows and left by the inherited ones for all running states."""
    derived = EXECUTION.extend(
        name="reviewed",
        states=[state("reviewing", "running", "phase", "A second model reads it")],
        transitions=[row("processing_results", "review", "reviewing"), row("reviewing", "think", "thinking")],
        timeouts=Timeouts(phases={"reviewing": 60.0}, idle_s=10.0),
        doc="With a review",
    )
    assert derived.doc == "With a review"
    assert [arrow.target for arrow in derived.by_source["processing_results"]["review"]] == ["reviewing"]
    inherited = {"fail", "time_out", "lapse", "cancel", "open_tool", "close_tool", "progress", "fall_back"}
    assert inherited | {"think"} == derived.by_source["reviewing"].keys()
    assert derived.limits().by_state["reviewing"] == ("phase", 60.0)
    assert derived.limits().idle_s == 10.0
    assert derived.limits().by_state["thinking"] == ("phase", 1800.0), "other limits are inherited"
    assert derived.content_hash != EXECUTION.content_hash
    assert "reviewing" not in EXECUTION.by_name, "the original is unchanged"


def test_a_state_is_taken_out_of_its_category() -> None:
    """A selector with an ! leaves a state out, wherever it stands, and a state that does not exist is named."""
    lapses = [one for one in EXECUTION.transitions if one.event == "lapse"]
    waiting = EXECUTION.of("running", "waiting")
    assert set(EXECUTION.sources_of(lapses[0])) == waiting - {"awaiting_input"}
    first = lapses[0].model_copy(update={"source": tuple(reversed(lapses[0].source))})
    assert set(EXECUTION.sources_of(first)) == waiting - {"awaiting_input"}
    assert EXECUTION.sources_of(lapses[-2]) == ("awaiting_input",)
    with pytest.raises(InvalidMachine, match=r"no such source '!thinkin'.*Did you mean 'thinking'"):
        EXECUTION.extend(name="odd", transitions=[row("@running !thinkin", "nod")])


def test_a_guarded_new_row_goes_before_the_inherited_ones() -> None:
    """A guarded row refines an inherited one: it is tried first, and the inherited one takes the other cases."""
    derived = EXECUTION.extend(
        name="careful",
        states=[state("checking", "waiting", "input", "A person looks first")],
        facts=[Fact(name="risky")],
        transitions=[
            row("completing", "complete", "checking", "risky"),
            row("checking", "complete", "completed", assign="end"),
        ],
    )
    arrows = derived.by_source["completing"]["complete"]
    assert [arrow.target for arrow in arrows] == ["checking", "completed"]
    assert derived.fact_defaults["risky"] is False


def test_an_unguarded_new_row_is_found_to_shadow_the_inherited_one() -> None:
    """A new row that would silently replace an inherited one is refused."""
    with pytest.raises(InvalidMachine, match="shadowed_row"):
        EXECUTION.extend(name="rash", transitions=[row("completing", "complete", "failed")])


def test_a_derived_machine_is_proved_again() -> None:
    """A derived machine that does not hold together is refused with all findings."""
    with pytest.raises(InvalidMachine) as caught:
        EXECUTION.extend(
            name="broken",
            states=[state("limbo", "waiting"), state("thinking", "running")],
            transitions=[row("thinking", "drift", "nowhere")],
            facts=[Fact(name="permit")],
        )
    found = {finding.code for finding in caught.value.findings}
    assert found == {
        "unreachable_state",
        "wait_without_deadline",
        "duplicate_state",
        "unknown_state",
        "duplicate_fact",
    }
    assert caught.value.machine == "broken"


def test_a_derived_machine_may_name_other_payloads() -> None:
    """Payload models are added by event, and a new one takes the place of the inherited one."""
    derived = EXECUTION.extend(
        name="p", transitions=[row("thinking", "nod")], payloads={"nod": "progress", "fail": "complete"}
    )
    assert derived.payload_names["nod"] == "progress"
    assert derived.payload_names["fail"] == "complete"
    assert derived.payload_names["start"] == "start"


def test_extending_by_nothing_changes_the_name_only() -> None:
    """A machine derived without any change is the same table under another name."""
    for machine in SHIPPED:
        derived = machine.extend(name="twin")
        assert derived.model_dump(exclude={"name"}) == machine.model_dump(exclude={"name"})


@settings(max_examples=40)
@given(machines(), st.sampled_from(["running", "pending", "stopping"]))
def test_any_machine_can_be_derived(machine: Machine, category: str) -> None:
    """A state that is reached and left by new rows can be added to any machine, whose own arrows all stay."""
    home = machine.initial if machine.perpetual else min(machine.terminal)
    covered = any(one.event == "time_out" and f"@{category}" in one.source for one in machine.transitions)
    own_end = [] if covered or machine.perpetual else [row("annex", "time_out", home)]
    derived = machine.extend(
        name="derived",
        states=[state("annex", category)],
        transitions=[row(machine.initial, "visit", "annex"), row("annex", "leave", home), *own_end],
    )
    now = {(a.source, a.event, a.target, a.literals) for a in derived.arrows}
    assert {(a.source, a.event, a.target, a.literals) for a in machine.arrows} <= now
    assert derived.states[: len(machine.states)] == machine.states


def test_the_shipped_machines_note_what_decide_knows() -> None:
    """Every change that the execution machine notes is one that decide can make."""
    assert {name for one in EXECUTION.transitions for name in one.assign} <= CHANGES.keys()
    assert callable(decide)


def test_an_invalid_machine_is_one_of_the_librarys_errors() -> None:
    """One except clause for the library's errors catches an invalid machine."""
    with pytest.raises(FsmError):
        other(initial="nowhere")


# --- limits -------------------------------------------------------------------------------------------------------


def test_names_and_guards_have_a_longest():
    """A name of 64 letters, a category's name of 65 with its sign and a guard of 300 are the longest there are."""
    assert State(name="x" * 64, category="running").name == "x" * 64
    long = "x" * 64
    guard = " and ".join([*["yes"] * 36, "x" * 12])
    assert len(guard) == 300
    assert Transition(source="@" + long, event=long, target=long, guard=guard).guard == guard
    for wrong in ({"source": "@" + long + "x"}, {"guard": guard + "x"}, {"event": long + "x"}):
        with pytest.raises(ValidationError):
            Transition(**({"source": "a", "event": "go"} | wrong))


def test_resolved_limits_are_kept_but_not_without_end(monkeypatch):
    """The same text gives the same object, and however many texts there are, only so many are kept."""
    monkeypatch.setattr("fsm.machine.machine.MAX_LIMITS", 4)
    machine = other(name="limited")
    texts = [json.dumps({"total_s": float(number)}) for number in range(1, 5)]
    kept = [machine.limits_for(text) for text in texts]
    assert all(machine.limits_for(text) is one for text, one in zip(texts, kept, strict=True))
    for number in range(100, 150):
        machine.limits_for(json.dumps({"total_s": float(number)}))
        assert len(machine.limits_known) <= 4


def test_a_document_holds_what_was_declared():
    """A field that was not given is not written: one that is added to the grammar changes no machine's hash."""
    document = json.loads(SMALL.to_json())
    assert "perpetual" not in document
    assert "otherwise" not in document["transitions"][1]
