"""What a new table changes, what it breaks, and what a store would lose by it."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from fsm import EXECUTION, Machine, Refused, State, Timeouts
from fsm.core.decide import EXECUTIONS
from fsm.machine.grammar import row, state
from fsm.proof.diff import changes, drawing
from fsm.proof.recorded import Judge
from fsm.proof.simulates import simulates
from fsm.testing import fresh_tracker

pytest.importorskip("z3")
from fsm.proof.replayed import carried

OLD = Machine(
    name="job",
    initial="waiting_room",
    states=(
        state("waiting_room", "pending", "queue"),
        state("working", "running", "phase"),
        state("checking", "running", "phase"),
        state("done", "terminal", outcome="success"),
        state("late", "terminal", outcome="timeout"),
    ),
    transitions=(
        row("waiting_room", "start", "working", assign="claim"),
        row("working", "check", "checking", "not tools_open", otherwise="close the tools first"),
        row("working", "open_tool", None, assign="open_tool"),
        row("working", "close_tool", None, "tool_known", assign="close_tool", otherwise="none is open"),
        row("checking", "back", "working"),
        row("checking", "complete", "done"),
        row("@pending @running", "time_out", "late"),
    ),
    facts=EXECUTION.facts,
    timeouts=Timeouts(total_s=100.0, phase_s=50.0, queue_s=50.0),
)


def changed(**fields) -> Machine:
    return OLD.model_copy(update=fields)


def rows(*, drop=(), add=()) -> Machine:
    return changed(transitions=(*add, *(one for one in OLD.transitions if one.event not in drop)))


def test_equal_machines_differ_in_nothing():
    """A machine compared with itself, or with texts that decide nothing, has no changes and allows all."""
    spoken = changed(
        doc="other words", states=tuple(one.model_copy(update={"doc": "x"}) for one in OLD.states)
    )
    for new in (OLD, spoken):
        assert changes(OLD, new) == []
        assert simulates(OLD, new, EXECUTIONS).holds


def test_every_kind_of_change_is_named():
    """States, events, rows, guards, facts and limits that differ are listed, rows of several states on one line."""
    new = changed(
        states=(*OLD.states, State(name="asking", category="waiting", deadline="input")),
        transitions=(
            *(one for one in OLD.transitions if one.event != "back"),
            row("checking", "back", "working", "owned", otherwise="no one is there"),
            row("checking", "ask", "asking"),
            row("asking", "cancel time_out".split(maxsplit=1)[0], "late"),
            row("asking", "time_out", "late"),
        ),
        timeouts=Timeouts(total_s=200.0, phase_s=50.0),
    )
    found = {(one.what, one.how, one.name) for one in changes(OLD, new)}
    assert found == {
        ("state", "added", "asking"), ("event", "added", "ask"), ("event", "added", "cancel"),
        ("row", "changed", "checking --back-->"), ("row", "added", "checking --ask-->"),
        ("row", "added", "asking --cancel-->"), ("row", "added", "asking --time_out-->"),
        ("limit", "changed", "total_s"), ("limit", "removed", "queue_s"),
    }  # fmt: skip
    text = drawing(OLD, new)
    assert '"asking" [fillcolor="#DDF4E4"' in text
    assert text.count("->") >= len({(one.source, one.target) for one in OLD.arrows})


@pytest.mark.parametrize(
    ("new", "holds", "way"),
    [
        (rows(add=[row("working", "skip", "done")]), True, []),
        (rows(drop=["back"]), False, ["start", "check", "back"]),
        (rows(drop=["check"], add=[row("working", "check", "checking")]), True, []),
        (
            rows(drop=["check"], add=[row("working", "check", "checking", "tools_open", otherwise="open one")]),
            False,
            ["start", "check"],
        ),
        (rows(drop=["start"], add=[row("waiting_room", "start", "working")]), False, ["start"]),
        # A guard that holds wherever the row can be reached breaks nothing: what works is owned.
        (rows(drop=["back"], add=[row("checking", "back", "working", "not tools_open", otherwise="no")]), True, []),
    ],
    ids=["a row more", "a row less", "a guard less", "another guard", "another assignment", "a guard that holds"],
)  # fmt: skip
def test_whether_all_journals_stay_legal_is_proved(new, holds, way):
    """A new table that follows each step of the old one says so; any other one is shown the shortest journal."""
    old = OLD
    if way == [] and new.transitions[0].event == "back":
        from fsm.machine.grammar import invariant  # noqa: PLC0415 - the lemma of one case

        old = changed(
            invariants=(
                invariant("closed", "It checks with no tool open", "checking implies not tools_open"),
            )
        )
    proof = simulates(old, new, EXECUTIONS)
    assert proof.holds is holds, proof.row
    assert [leg.event for leg in proof.breaks.legs] == way if way else proof.breaks is None
    if proof.breaks:
        assert carried(OLD, proof.breaks) is not None, "the old machine goes this way"
        new_way = carried(new, proof.breaks)
        assert new_way is None or new_way != carried(OLD, proof.breaks)


def fsm(words):
    command = [sys.executable, "-c", "from fsm.cli import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def fill(tracker, machine, count, seed=1):
    """Fill a store with executions that were driven at random."""
    draw = random.Random(seed)
    for number in range(count):
        one = tracker.create("a", user_id="u", thread_id=f"t{number}", machine=machine)
        for _ in range(draw.randrange(7)):
            now = tracker.get(one.id)
            if not (open_to := tracker.allowed(one.id)):
                break
            given = {"name": "x"} if (event := draw.choice(open_to)) == "open_tool" else {}
            try:
                tracker.fire(one.id, event, fence=now.fence, **given)
            except Refused:
                continue


def test_a_store_is_judged_by_the_new_table(tmp_path):
    """With a store the command counts illegal journals, stranded executions, lost moves; a loss is exit code 1."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    with fresh_tracker(url) as tracker:
        fill(tracker, OLD, 40)
    kept = [one for one in OLD.transitions if one.event not in {"check", "back", "complete"}]
    without = changed(
        states=tuple(one for one in OLD.states if one.name != "checking"),
        transitions=(*kept, row("working", "complete", "done")),
    )
    new = tmp_path / "new.json"
    new.write_text(without.to_json())
    found = fsm(["diff", OLD.content_hash, str(new), "--store", url, "--json"])
    assert found.returncode == 1, found.stderr
    said = json.loads(found.stdout)
    assert said["executions"] == 40
    assert said["losses"]["illegal"] > 0
    assert said["losses"]["stranded"] > 0
    with fresh_tracker(url) as tracker:
        records = [tracker._registry.store.load(one.id) for one in tracker.find(limit=100)]
        judge = Judge(OLD, without)
        expected = [
            one.identity.id
            for one in records
            if any(row.event == "check" for row in tracker._registry.store.history(one.identity.id))
        ]
        assert said["losses"]["illegal"] == len(expected)
        store = tracker._registry.store
        assert all(
            judge.broken(one, store.history(one.identity.id))
            for one in records
            if one.identity.id in expected
        )
    new.write_text(OLD.to_json())
    same = fsm(["diff", OLD.content_hash, str(new), "--store", url])
    assert same.returncode == 0, same.stderr
    text = fsm(["diff", "job", str(new), "--store", url, "--draw", str(tmp_path / "d.svg")])
    assert text.returncode == 0
    assert b"<svg" in (tmp_path / "d.svg").read_bytes()


def test_other_deadlines_are_told_and_are_no_loss(tmp_path):
    """A limit that changes the deadlines of open executions is counted, and does not fail the gate."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    with fresh_tracker(url) as tracker:
        fill(tracker, OLD, 5)
        tracker.create("a", user_id="u", thread_id="t", machine=OLD)
    new = tmp_path / "new.json"
    new.write_text(changed(timeouts=Timeouts(total_s=10.0)).to_json())
    found = fsm(["diff", OLD.content_hash, str(new), "--store", url, "--json"])
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["losses"]["deadline"] > 0


@pytest.mark.parametrize("wrong", ["nowhere", "no.json", "0" * 32])
def test_what_is_no_machine_is_said(wrong):
    """A name, file or hash that leads to no machine ends the command with the reason."""
    found = fsm(["diff", "execution", wrong])
    assert found.returncode == 2
