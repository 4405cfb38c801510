"""What is proved, what is refuted and by which path, and what is said where the answer is unknown."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

import pytest

from fsm import BREAKER, EXECUTION, Machine, Timeouts
from fsm.breakers.core import BREAKERS
from fsm.core.decide import EXECUTIONS
from fsm.machine.grammar import invariant, row, state

pytest.importorskip("z3")
from fsm.proof.liveness import find_stalls
from fsm.proof.prover import Prover, prove_invariants
from fsm.proof.replayed import as_test, broken, carried, events_of, replay
from fsm.proof.symbolic import UnknownWord

LIMITS = Timeouts(total_s=60.0)
SHIPPED = [(EXECUTION, EXECUTIONS), (BREAKER, BREAKERS)]


def without(machine: Machine, event: str, guard: str, *, then: str | None) -> Machine:
    """Return a machine with another guard on one kind of row."""
    rows = [
        one.model_copy(update={"guard": then}) if (one.event, one.guard) == (event, guard) else one
        for one in machine.transitions
    ]
    assert rows != list(machine.transitions)
    return machine.model_copy(update={"transitions": tuple(rows), "name": "mutant"})


ENDLESS = without(EXECUTION, "fail", "retryable and attempts_left", then="retryable")


@pytest.mark.parametrize(("machine", "vocabulary"), SHIPPED, ids=["execution", "breaker"])
def test_the_shipped_machines_hold_what_they_state(machine, vocabulary):
    """Each shipped machine states twelve invariants or more; all are proved, and every instance reaches its end."""
    verdicts = prove_invariants(machine, vocabulary)
    assert len(verdicts) >= 12
    assert [verdict.invariant.name for verdict in verdicts if not verdict.proved] == []
    assert find_stalls(Prover(machine, vocabulary), machine.invariants) == []


@pytest.mark.parametrize(("machine", "vocabulary"), SHIPPED, ids=["execution", "breaker"])
def test_no_proof_is_empty(machine, vocabulary):
    """Every move can be taken on a record of which the invariants hold: no assumption contradicts another."""
    prover = Prover(machine, vocabulary)
    for move in prover.world.moves:
        record, known = prover.world.record()
        solver = prover.solver()
        taken = prover.world.take(move, record)
        solver.add(*known, *prover.assumed(machine.invariants, record), taken.when)
        assert solver.check() == prover.z3.sat, str(move)


def test_a_refuted_invariant_comes_with_a_shortest_path():
    """The path is one of the table's: `decide` goes it as well, and its records break the invariant."""
    refuted = [verdict for verdict in prove_invariants(ENDLESS, EXECUTIONS) if not verdict.proved]
    assert {verdict.invariant.name for verdict in refuted} == {"attempts_bounded", "attempt_free"}
    for verdict in refuted:
        records = carried(ENDLESS, verdict.breaks)
        assert verdict.invariant.name in broken(ENDLESS, records)
        assert [leg.source for leg in verdict.breaks.legs[1:]] == [
            leg.target for leg in verdict.breaks.legs[:-1]
        ]
        shorter = verdict.breaks._replace(legs=verdict.breaks.legs[:-1])
        assert verdict.invariant.name not in broken(ENDLESS, carried(ENDLESS, shorter))
    lengths = {verdict.invariant.name: len(verdict.breaks.legs) for verdict in refuted}
    assert lengths == {"attempts_bounded": 3, "attempt_free": 2}


def test_a_path_is_replayed_through_the_tracker(tracker):
    """The tracker carries the path out and comes to a record that breaks the invariant."""
    verdict = next(
        one for one in prove_invariants(ENDLESS, EXECUTIONS) if one.invariant.name == "attempts_bounded"
    )
    retry = {name: verdict.breaks.constants[name] for name in ("attempts_max", "model_attempts_max")}
    records = replay(tracker, ENDLESS, events_of(ENDLESS, verdict.breaks), retry=retry)
    assert "attempts_bounded" in broken(ENDLESS, records)
    assert [after.version - before.version for before, after in pairwise(records)] == [1, 1, 1]


def test_the_command_writes_a_test_that_fails(tmp_path):
    """`fsm verify --prove --write-test` writes a test of the path, which fails until the table refuses it."""
    (tmp_path / "holed.py").write_text(
        "from fsm import EXECUTION\n"
        "rows = [r.model_copy(update={'guard': 'retryable'}) if r.guard == 'retryable and attempts_left' else r\n"
        "        for r in EXECUTION.transitions]\n"
        "HOLED = EXECUTION.model_copy(update={'transitions': tuple(rows), 'name': 'holed'})\n"
    )

    def run(*words):
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=100
        )

    command = ("-c", "from fsm.cli import main; main()", "verify", "holed:HOLED", "--prove", "--json")
    found = run(*command, "--write-test", "test_hole.py", "--draw", "hole.svg")
    assert found.returncode == 1
    said = json.loads(found.stdout)
    assert not said["ok"]
    assert {one["name"] for one in said["invariants"] if not one["proved"]} == {
        "attempts_bounded",
        "attempt_free",
    }
    assert "<svg" in (tmp_path / "hole.svg").read_text()
    failed = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_hole.py")
    assert failed.returncode == 1, failed.stdout
    assert "AssertionError: assert 'attempt_free' not in" in failed.stdout
    (tmp_path / "holed.py").write_text("from fsm import EXECUTION as HOLED\n")
    mended = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_hole.py")
    assert mended.returncode == 0, mended.stdout


def test_what_is_neither_proved_nor_refuted_says_where_it_may_break():
    """An invariant that holds but needs a lemma names the row that the proof cannot follow."""
    alone = next(one for one in EXECUTION.invariants if one.name == "attempts_bounded")
    bare = EXECUTION.model_copy(update={"invariants": (alone,)})
    (verdict,) = prove_invariants(bare, EXECUTIONS)
    assert not verdict.proved
    assert verdict.breaks is None
    assert "starting" in verdict.near or "connect" in verdict.near


def small(*rows, invariants=(), timeouts=LIMITS):
    return Machine(
        name="small",
        initial="a",
        states=(state("a", "running", "phase"), state("b", "running", "phase"), state("end", "terminal")),
        transitions=(*rows, row("a b", "stop", "end")),
        facts=EXECUTION.facts,
        timeouts=timeouts,
        invariants=invariants,
    )


def test_two_steps_prove_what_one_does_not():
    """An invariant that one step back does not imply is proved over two."""
    machine = small(
        row("a", "go", "b", assign="first_call"),
        row("b", "back", "a", assign="new_call"),
        row("a b", "time_out", "end"),
        invariants=(invariant("one", "It counts to one", "model_attempt <= 1"),),
    )
    assert [verdict.k for verdict in prove_invariants(machine, EXECUTIONS)] == [1]
    machine = small(
        row("a", "go", "b", assign="next_call"),
        row("b", "back", "a", assign="new_call"),
        row("a b", "time_out", "end"),
        invariants=(invariant("one", "It counts to one", "model_attempt <= 1"),),
    )
    (verdict,) = prove_invariants(machine, EXECUTIONS)
    assert (verdict.proved, verdict.k) == (True, 2)


@pytest.mark.parametrize(
    ("rows", "timeouts", "code"),
    [
        ((row("a", "time_out", "b"), row("b", "time_out", "a")), LIMITS, {"livelock", "endless_deadlines"}),
        ((row("a", "time_out", "b"), row("b", "time_out", "end"), row("b", "go", "a")), Timeouts(), {"endless_stay"}),
        ((row("a b", "time_out", "end", "owned", otherwise="not yet"),), LIMITS, {"deadline_refused"}),
        (
            (row("a", "time_out", "b", "retryable", assign="claim"), row("a", "time_out", "end"),
             row("b", "time_out", "a")), LIMITS, {"endless_deadlines"},
        ),
    ],
    ids=["circle", "no limit", "refused", "guarded by nothing that runs out"],
)  # fmt: skip
def test_what_never_ends_is_found(rows, timeouts, code):
    """A stay that nothing bounds, a deadline that is refused and deadlines that go round in a circle are findings."""
    machine = small(row("a", "go", "b"), *rows, timeouts=timeouts)
    assert {finding.code for finding in find_stalls(Prover(machine, EXECUTIONS), ())} == code


def test_a_circle_that_runs_out_is_none():
    """Deadlines may lead round in a circle if each round takes an attempt, and attempts run out."""
    machine = small(
        row("a", "go", "b"),
        row("a", "time_out", "b", "attempts_left", assign="claim"),
        row("a", "time_out", "end"),
        row("b", "time_out", "a"),
        invariants=(invariant("fresh", "It is never suspended", "not suspended"),),
    )
    assert find_stalls(Prover(machine, EXECUTIONS), machine.invariants) == []


@pytest.mark.parametrize("holds", ["atempt <= attempts_max", "@pending implies gone", "before.speed < 3"])
def test_a_word_that_nothing_has_is_an_error(holds):
    """A misspelt word is no invariant that holds by itself: the error names it and the words there are."""
    machine = EXECUTION.model_copy(update={"invariants": (invariant("typo", "It says nothing", holds),)})
    with pytest.raises(UnknownWord, match="no such word"):
        prove_invariants(machine, EXECUTIONS)


def test_invariants_decide_nothing():
    """A machine has the same hash with and without invariants, and a derived one inherits them."""
    bare = EXECUTION.model_copy(update={"invariants": ()})
    assert bare.content_hash == EXECUTION.content_hash
    assert Machine.from_json(EXECUTION.to_json()).invariants == EXECUTION.invariants
    assert EXECUTION.extend(name="more").invariants == EXECUTION.invariants


def test_a_test_is_written_of_a_refutation_only():
    """A proof that found nothing has nothing to write, and says so."""
    verdict = prove_invariants(EXECUTION, EXECUTIONS, EXECUTION.invariants[:2])[0]
    with pytest.raises(Exception, match="that a path refutes"):
        as_test("execution", EXECUTION, verdict)
