"""The proof of a machine: every rule finds what it is for, says where, and says what to do."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsm import BREAKER, EXECUTION, Fact, InvalidMachine, Machine, State, Timeouts, Transition
from fsm.machine import validation as proof_module
from fsm.machine.grammar import invariant, row, state
from fsm.machine.validation import MAX_FACTS, prove
from tests.support.strategies import FACT_NAMES, Literals, cases, guard_text, holds, machines

A = state("a", "running")
B = state("b", "terminal")
GO = row("a", "go", "b")
WAIT = state("w", "waiting", "input")
CANCEL = row("w", "cancel", "b")
TIME_OUT = row("w", "time_out", "b")
YES = Fact(name="yes")
SURE = Fact(name="sure")


def build(
    states: Sequence[State] = (A, B), transitions: Sequence[Transition] = (GO,), **others: Any
) -> Machine:
    return Machine(
        **{
            "name": "m",
            "initial": "a",
            "states": tuple(states),
            "transitions": tuple(transitions),
            **others,
        }
    )


def many_facts(count: int) -> dict[str, Any]:
    names = [f"f{n}" for n in range(count)]
    return {
        "facts": tuple(Fact(name=name) for name in names),
        "transitions": tuple(row("a", "go", "b", name) for name in names),
    }


# Each code with the smallest declarations that break exactly this rule, and the row or state that it must name.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("unknown_state", "initial=nowhere", {"initial": "nowhere"}),
    ("unknown_state", "timeouts.phases[c]", {"timeouts": Timeouts(phases={"c": 1.0})}),
    ("unknown_state", "c --go--> b", {"transitions": (GO, row("c", "go", "b"))}),
    ("unknown_state", "a --stay--> c", {"transitions": (GO, row("a", "stay", "c"))}),
    ("unknown_event", "payloads[come]", {"payloads": (("come", "start"),)}),
    ("unknown_category", "@run --stay--> (stays)", {"transitions": (GO, row("@run", "stay"))}),
    ("empty_source", "@waiting --stay--> (stays)", {"transitions": (GO, row("@waiting", "stay"))}),
    (
        "unknown_fact",
        "a --stay [yes]--> (stays)",
        {"transitions": (GO, row("a", "stay", guard="yes", otherwise="no"))},
    ),
    ("reserved_event", "a --create--> b", {"transitions": (GO, row("a", "create", "b"))}),
    (
        "outcome_without_end",
        "a",
        {"states": (state("a", "running", outcome="success"), state("b", "terminal"))},
    ),
    ("reserved_fact", "copy", {"facts": (Fact(name="copy"),)}),
    ("reserved_fact", "not", {"facts": (Fact(name="not"),)}),
    ("duplicate_state", "b", {"states": (A, B, B)}),
    ("duplicate_fact", "yes", {"facts": (YES, YES)}),
    ("duplicate_payload", "go", {"payloads": (("go", "start"), ("go", "cancel"))}),
    (
        "impossible_guard",
        "row 2 of 3 (a --stay [yes and not yes]--> a)",
        {"facts": (YES,), "transitions": (GO, row("a", "stay", guard="yes and not yes"), row("a", "stay"))},
    ),
    (
        "impossible_guard",
        "row 3 of 4 (a --stay [sure and not sure and yes]--> a)",
        {
            "facts": (YES, SURE),
            "transitions": (
                GO,
                row("a", "stay", guard="yes"),
                row("a", "stay", guard="sure and not sure and yes"),
                row("a", "stay"),
            ),
        },
    ),
    ("duplicate_row", "row 2 of 2 (a --go--> b)", {"transitions": (GO, GO)}),
    (
        "duplicate_row",
        "row 2 of 3 (a --go [sure and yes]--> b)",
        {
            "facts": (YES, SURE),
            "transitions": (row("a", "go", "b", "yes and sure"), row("a", "go", "b", "sure and yes"), GO),
        },
    ),
    (
        "shadowed_row",
        "row 2 of 2 (a --go [yes]--> b)",
        {"facts": (YES,), "transitions": (GO, row("a", "go", "b", "yes"))},
    ),
    (
        "shadowed_row",
        "row 2 of 3 (a --go [yes and sure]--> b)",
        {
            "facts": (YES, SURE),
            "transitions": (row("a", "go", "b", "yes"), row("a", "go", "b", "yes and sure"), GO),
        },
    ),
    (
        "shadowed_row",
        "row 3 of 3 (a --go--> b)",
        {
            "facts": (YES,),
            "transitions": (row("a", "go", "b", "yes"), row("a", "go", "b", "not yes"), GO),
        },
    ),
    ("too_many_facts", f"row {MAX_FACTS + 1} of", many_facts(MAX_FACTS + 1)),
    (
        "guard_without_else",
        "row 1 of 1 (a --go [yes]--> b)",
        {"facts": (YES,), "transitions": (row("a", "go", "b", "yes"),)},
    ),
    (
        "guard_without_else",
        "row 2 of 2 (a --go [not yes and sure]--> b)",
        {
            "facts": (YES, SURE),
            "transitions": (row("a", "go", "b", "yes"), row("a", "go", "b", "not yes and sure")),
        },
    ),
    ("guard_without_else", f"row {MAX_FACTS} of {MAX_FACTS}", many_facts(MAX_FACTS)),
    ("leaves_terminal", "row 2 of 2 (b --back--> a)", {"transitions": (GO, row("b", "back", "a"))}),
    ("leaves_terminal", "row 2 of 2 (b --stay--> b)", {"transitions": (GO, row("@terminal", "stay"))}),
    ("perpetual_with_end", "b", {"perpetual": True, "transitions": (GO, row("a", "stay"))}),
    ("no_end", "m", {"states": (A, state("b", "running")), "transitions": (GO, row("b", "back", "a"))}),
    ("ends_at_start", "initial=a", {"states": (state("a", "terminal"),), "transitions": ()}),
    ("unreachable_state", "c", {"states": (A, B, state("c", "terminal"))}),
    (
        "unreachable_state",
        "c",
        {"states": (A, B, state("c", "running")), "transitions": (GO, row("c", "go", "b"))},
    ),
    (
        "trap",
        "c",
        {
            "states": (A, B, state("c", "running")),
            "transitions": (GO, row("a", "sink", "c"), row("c", "stay")),
        },
    ),
    (
        "trap",
        "b",
        {"states": (A, state("b", "running")), "perpetual": True},
    ),
    (
        "wait_without_deadline",
        "w",
        {
            "states": (A, B, state("w", "waiting")),
            "transitions": (GO, row("a", "ask", "w"), CANCEL, TIME_OUT),
        },
    ),
    (
        "wait_without_cancel",
        "w",
        {"states": (A, B, WAIT), "transitions": (GO, row("a", "ask", "w"), TIME_OUT)},
    ),
    (
        "wait_without_cancel",
        "w",
        {
            "states": (A, B, WAIT),
            "transitions": (GO, row("a", "ask", "w"), TIME_OUT, row("w", "cancel")),
        },
    ),
    (
        "deadline_without_row",
        "w",
        {"states": (A, B, WAIT), "transitions": (GO, row("a", "ask", "w"), CANCEL)},
    ),
    ("deadline_without_row", "a", {"states": (state("a", "pending", "queue"), B)}),
    ("deadline_without_row", "a", {"timeouts": Timeouts(total_s=5.0)}),
    ("deadline_without_row", "a", {"timeouts": Timeouts(idle_s=5.0)}),
    ("deadline_without_row", "a", {"timeouts": Timeouts(phases={"a": 5.0})}),
    ("duplicate_invariant", "twice", {"invariants": (invariant("twice", "It is said twice", "true"),) * 2}),
    ("bad_invariant", "half", {"invariants": (invariant("half", "It is not said", "attempt <"),)}),
    ("unknown_category", "where", {"invariants": (invariant("where", "It is nowhere", "not @runing"),)}),
]


@pytest.mark.parametrize(("code", "where", "broken"), CASES)
def test_each_rule_finds_its_defect_and_nothing_else(code: str, where: str, broken: dict[str, Any]) -> None:
    """A declaration with one defect has exactly one finding, which names the row and says what to do."""
    with pytest.raises(InvalidMachine) as caught:
        build(**broken)
    (finding,) = caught.value.findings
    assert finding.code == code
    assert where in finding.row
    assert finding.message
    assert finding.fix
    for part in finding:
        assert part in str(caught.value)


def _codes_in_source() -> Iterable[str]:
    for node in ast.walk(ast.parse(inspect.getsource(proof_module))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
            first = node.args[0]
            if isinstance(first, ast.Constant):
                yield first.value
            else:
                assert isinstance(first, ast.JoinedStr)
                prefix = first.values[0]
                assert isinstance(prefix, ast.Constant)
                words = {
                    "unknown_": ("state", "category"),
                    "duplicate_": ("state", "fact", "payload", "invariant"),
                }
                yield from (prefix.value + word for word in words[prefix.value])


def test_every_code_of_the_proof_has_a_case_here() -> None:
    """No rule of the proof is without a declaration that breaks it."""
    assert set(_codes_in_source()) == {code for code, _, _ in CASES}


def test_all_defects_are_listed_at_once() -> None:
    """A declaration with many defects is refused once, with all of them in one error."""
    with pytest.raises(InvalidMachine) as caught:
        Machine(
            name="mess",
            initial="begin",
            states=(A, A, B, state("w", "waiting"), state("lost", "running")),
            facts=(YES, YES, Fact(name="json")),
            payloads=(("come", "start"), ("go", "start"), ("go", "start")),
            timeouts=Timeouts(phases={"c": 1.0}),
            transitions=(
                GO,
                GO,
                row("a", "go", "b", "yes"),
                row("a", "halt", "b", "yes and not yes"),
                row("a", "ask", "w", "maybe", otherwise="no"),
                row("@resting", "stay"),
                row("@stopping", "stay"),
                row("z", "create", "q"),
                row("b", "back", "a"),
            ),
        )
    found = [finding.code for finding in caught.value.findings]
    assert {
        "unknown_state",
        "unknown_event",
        "unknown_category",
        "unknown_fact",
        "empty_source",
        "reserved_event",
        "reserved_fact",
        "duplicate_state",
        "duplicate_fact",
        "duplicate_payload",
        "duplicate_row",
        "shadowed_row",
        "impossible_guard",
        "guard_without_else",
        "leaves_terminal",
        "wait_without_deadline",
        "wait_without_cancel",
    } == set(found)
    assert found.count("unknown_state") == 4, "initial, timeouts.phases, a source and a target"
    assert str(caught.value).count("\n") == len(found), "one line each"
    assert f"{len(found)} finding(s)" in str(caught.value)


def test_the_case_that_is_left_out_is_named() -> None:
    """A guard without an else is reported with the very answers that nothing is said for."""
    with pytest.raises(InvalidMachine, match="nothing is said for the case: sure and not yes"):
        build(
            facts=(YES, SURE),
            transitions=(row("a", "go", "b", "yes"), row("a", "go", "b", "not sure and not yes")),
        )


@pytest.mark.parametrize(
    ("broken", "hint"),
    [
        ({"initial": "aa"}, "Did you mean 'a'"),
        ({"initial": "zzz"}, "Known: a, b"),
        ({"transitions": (GO, row("@runing", "stay"))}, "Did you mean 'running'"),
        (
            {"facts": (Fact(name="ready"),), "transitions": (GO, row("a", "go", "b", "redy"))},
            "Did you mean 'ready'",
        ),
        ({"payloads": (("gone", "start"),)}, "Did you mean 'go'"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_right_one(broken: dict[str, Any], hint: str) -> None:
    """An unknown name is met with the nearest known one, or with all of them."""
    with pytest.raises(InvalidMachine) as caught:
        build(**broken)
    assert hint in caught.value.findings[0].fix


@pytest.mark.parametrize(
    "sound",
    [
        {"facts": (YES,), "transitions": (row("a", "go", "b", "yes"), row("a", "go", "b", "not yes"))},
        {"facts": (YES,), "transitions": (row("a", "go", "b", "yes", otherwise="say yes first"),)},
        {"facts": (YES,), "transitions": (row("a", "go", "b", "yes"), GO)},
        {"facts": (YES, SURE), "transitions": (row("a", "go", "b", "yes"), row("a", "go", "b", "sure"), GO)},
        {**many_facts(MAX_FACTS + 1), "transitions": (*many_facts(MAX_FACTS + 1)["transitions"], GO)},
        {"transitions": (GO, row("a", "stay")), "timeouts": Timeouts(queue_s=1.0)},
        {
            "states": (A, B, WAIT),
            "transitions": (GO, row("a", "ask", "w"), CANCEL, TIME_OUT, row("a", "time_out", "b")),
            "timeouts": Timeouts(total_s=9.0, idle_s=1.0, phases={"w": 2.0}),
        },
        {"states": (A, state("b", "waiting", "cooldown")), "transitions": (GO, row("b", "back", "a"))}
        | {"perpetual": True},
    ],
)
def test_a_sound_declaration_is_accepted(sound: dict[str, Any]) -> None:
    """What holds together becomes a machine, and proves again without a finding."""
    assert prove(build(**sound).table) == []


def test_both_shipped_machines_prove() -> None:
    """Neither shipped table has a finding."""
    assert prove(EXECUTION.table) == []
    assert prove(BREAKER.table) == []


@settings(max_examples=60)
@given(machines())
def test_drawn_machines_prove(machine: Machine) -> None:
    """Machines that are valid by construction have no finding."""
    assert prove(machine.table) == []


LITERALS = st.dictionaries(st.sampled_from(FACT_NAMES), st.booleans(), max_size=3).map(
    lambda literals: tuple(literals.items())
)


@settings(max_examples=200)
@given(st.lists(LITERALS, min_size=1, max_size=6))
def test_guards_are_judged_as_their_truth_table_says(guards: list[Literals]) -> None:
    """A row is reported exactly if no case is left for it, and the ladder exactly if a case is left out."""
    left = list(cases(FACT_NAMES))
    never = []
    for index, literals in enumerate(guards):
        taken = [known for known in left if holds(literals, known)]
        if not taken:
            never.append(index + 1)
        left = [known for known in left if known not in taken]
    findings: Sequence[Any] = ()
    try:
        build(
            facts=tuple(Fact(name=name) for name in FACT_NAMES),
            transitions=[row("a", "go", "b", guard_text(literals)) for literals in guards],
        )
    except InvalidMachine as error:
        findings = error.findings
    reported = [one.row.split()[1] for one in findings if one.code in {"duplicate_row", "shadowed_row"}]
    assert reported == [str(number) for number in never]
    assert any(one.code == "guard_without_else" for one in findings) == bool(left)
