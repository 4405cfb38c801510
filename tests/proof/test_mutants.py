"""Planted faults in the table: each is refuted by the invariant, the check or the rule that is named beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from fsm import EXECUTION, InvalidMachine, Machine
from fsm.core import decide
from fsm.core.decide import CHANGES
from fsm.machine.grammar import Transition
from fsm.machine.timeouts import Timeouts

pytest.importorskip("z3")
from fsm.proof.liveness import find_stalls
from fsm.proof.prover import Prover, prove_invariants

EXECUTIONS = decide.EXECUTIONS._replace(python={})
"""The meaning of the words, with any limit of open tools: a path to a thousand is too long to be found."""
Mutant = Callable[[], tuple[Machine, Any]]


def rows(event: str, guard: str | None = None, /, at: str | None = None, **changed: Any) -> Mutant:
    """Change the rows of one event, with that guard and of that state if these are given."""

    def meant(one: Transition) -> bool:
        sources = EXECUTION.sources_of(one)
        return one.event == event and guard in {None, one.guard} and (at is None or at in sources)

    def made() -> tuple[Machine, Any]:
        assert any(meant(one) for one in EXECUTION.transitions)
        table = tuple(one.model_copy(update=changed) if meant(one) else one for one in EXECUTION.transitions)
        fields = {name: getattr(EXECUTION, name) for name in Machine.model_fields}
        return Machine(**fields | {"transitions": table, "name": "mutant"}), EXECUTIONS

    return made


def gone(event: str, source: str | None = None) -> Mutant:
    """Leave the rows of one event out."""

    def made() -> tuple[Machine, Any]:
        table = tuple(
            one
            for one in EXECUTION.transitions
            if one.event != event or (source is not None and source not in EXECUTION.sources_of(one))
        )
        fields = {name: getattr(EXECUTION, name) for name in Machine.model_fields}
        kept = tuple(pair for pair in EXECUTION.payloads if pair[0] in {one.event for one in table})
        return Machine(**fields | {"transitions": table, "payloads": kept, "name": "mutant"}), EXECUTIONS

    return made


def assigns(name: str, **changed: str) -> Mutant:
    """Change what an assignment does; ``None`` takes the word out."""

    def made() -> tuple[Machine, Any]:
        change = {word: text for word, text in (dict(CHANGES[name]) | changed).items() if text != "(gone)"}
        changes: dict[str, Mapping[str, str]] = {**CHANGES, name: change}
        return EXECUTION, EXECUTIONS._replace(changes=changes)

    return made


def frame(when: str, **changed: str) -> Mutant:
    """Change what every row does that moves, or ends."""
    return lambda: (
        EXECUTION,
        EXECUTIONS._replace(frame={**EXECUTIONS.frame, when: {**EXECUTIONS.frame[when], **changed}}),
    )


def _without_last() -> tuple[Machine, Any]:
    table = [one for one in EXECUTION.transitions if (one.event, one.guard) != ("receive_input", None)]
    fields = {name: getattr(EXECUTION, name) for name in Machine.model_fields}
    return Machine(**fields | {"transitions": tuple(table)}), EXECUTIONS


MUTANTS: list[tuple[str, Mutant, str]] = [
    # A guard is dropped.
    ("retry without an attempt left",
     rows("fail", "retryable and attempts_left", guard="retryable"), "attempts_bounded"),
    ("lapse without an attempt left", rows("lapse", "owned and attempts_left", guard="owned and retryable"),
     "attempts_bounded"),
    ("back off without a call left", rows("back_off", guard="retryable"), "call_free"),
    ("a call through a breaker is not counted out", rows("call_model", "permit and model_attempts_left",
     guard="permit"), "calls_bounded"),
    ("a tool without an owner", rows("open_tool", guard="tools_left"), "tools_have_owner"),
    ("tools without end", rows("open_tool", guard="owned"), "tools_bounded"),
    ("finish with tools open", rows("finish", guard="owned"), "tools_closed_first"),
    ("an answer goes on without an owner", rows("receive_input", "owned", guard="not retryable"), "driven"),
    ("cancel stops what no worker drives", rows("cancel", "owned", guard="not retryable"), "driven"),
    ("fall back without an owner", rows("fall_back", guard="not retryable"), "driven"),
    # The fence is not raised.
    ("claim keeps the fence", assigns("claim", fence="fence"), "fence_tells_owners_apart"),
    ("release keeps the fence", assigns("release", fence="fence"), "fence_tells_owners_apart"),
    ("suspend keeps the fence", assigns("suspend", fence="fence"), "fence_tells_owners_apart"),
    ("release takes the fence back", assigns("release", fence="fence - 1"), "fence_only_grows"),
    # A count is wrong.
    ("claim counts no attempt", assigns("claim", attempt="attempt"), "owner_has_claimed"),
    ("claim counts a suspended attempt again", assigns("claim", attempt="attempt + 1"), "attempts_bounded"),
    ("release gives the attempt back", assigns("release", attempt="attempt - 1"), "attempts_only_grow"),
    ("the first call is none", assigns("first_call", model_attempt="0"), "call_counted"),
    ("the next call counts twice", assigns("next_call", model_attempt="model_attempt + 2"), "calls_bounded"),
    ("a step makes no version", lambda: (EXECUTION, EXECUTIONS._replace(frame={**EXECUTIONS.frame, "always": {}})),
     "every_step_counts"),
    # An assignment is left out.
    ("claim names no owner", assigns("claim", owner="(gone)"), "driven"),
    ("claim stays suspended", assigns("claim", suspended="suspended"), "suspended_free"),
    ("suspend is no suspension", assigns("suspend", suspended="false"), "asked_without_owner"),
    ("release keeps the owner", assigns("release", owner="owner"), "free"),
    ("release keeps the tools", assigns("release", tools="tools"), "tools_have_owner"),
    ("an end keeps the tools", frame("ended", tools="tools"), "no_tools_after_the_end"),
    ("a wait outlives its state", frame("moved", not_before="not_before"), "waits_where"),
    ("an expiry outlives its question", frame("moved", limit_s="limit_s"), "expiry_where"),
    ("start claims nothing", rows("start", at="created", assign=()), "driven"),
    ("retry releases nothing", rows("fail", "retryable and attempts_left", assign=("retry_later",)), "free"),
    # A target is swapped.
    ("retry runs at once", rows("fail", "retryable and attempts_left", target="thinking"), "driven"),
    ("an answer without an owner thinks", rows("receive_input", at="awaiting_input", target="thinking"),
     "driven"),
    ("a deadline leads back", rows("time_out", at="thinking", target="queued"), "validation: deadline_without_row"),
    ("what was told to stop goes on", rows("stopped", target="queued"), "stop_is_obeyed"),
    ("what was told to stop is a success", rows("stopped", target="completed"), "stop_is_obeyed"),
    ("a success without a result", rows("fall_back", target="completed"), "success_is_written_down"),
    # A row is missing.
    ("no deadline", gone("time_out"), "validation: deadline_without_row"),
    ("no cancel", gone("cancel"), "validation: wait_without_cancel"),
    ("no way to an end", gone("complete"), "validation: unreachable_state"),
    ("no else", _without_last, "validation: guard_without_else"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("mutant", "found"), [one[1:] for one in MUTANTS], ids=[one[0] for one in MUTANTS])
def test_a_planted_fault_is_refuted(mutant: Mutant, found: str) -> None:
    """A table with a fault is refuted: by an invariant, by the proof that it ends, or when it is built."""
    try:
        machine, vocabulary = mutant()
    except InvalidMachine as error:
        codes = {finding.code for finding in error.findings}
        assert found.startswith("validation: "), codes
        assert any(code.startswith(found.removeprefix("validation: ")) for code in codes), codes
        return
    prover = Prover(machine, vocabulary)
    kept, _ = prover.inductive(machine.invariants)
    suspects = [one for one in machine.invariants if one not in kept]
    stalls = {finding.code for finding in find_stalls(prover, kept)}
    if found in {one.name for one in suspects}:
        assert found in prover.refute([one for one in suspects if one.name == found]), "no path breaks it"
    else:
        assert found in stalls, ([one.name for one in suspects], stalls)


def test_there_are_thirty() -> None:
    """At least thirty faults are planted, no two of them the same."""
    assert len({name for name, _, _ in MUTANTS}) >= 30


def test_the_table_itself_is_no_mutant() -> None:
    """Without a fault nothing is found: what refutes the mutants is the fault."""
    assert all(verdict.proved for verdict in prove_invariants(EXECUTION, EXECUTIONS))
    assert EXECUTION.timeouts != Timeouts()
