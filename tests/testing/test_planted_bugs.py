"""Planted bugs: each breaks one guarantee, and the checkers and the suite must find it.

A bug is planted in one of four ways: a text of a copy of the package is replaced and a small part of the suite runs
against the copy in a process of its own; a store or a part of the library is wrong while a simulation runs; a decision
is wrong while `machine_test` draws. A patch whose old text is not there exactly once fails too, so no bug goes stale.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import Phase, settings

from fsm import EXECUTION
from fsm.core import decide as decide_module
from fsm.core.records import Step, receipt_of
from fsm.errors import Refusal
from fsm.registry import committer as committer_module
from fsm.registry.registry import Registry
from fsm.registry.steady import SteadyClock
from fsm.simulation.faults import STORM
from fsm.simulation.observed import Broken
from fsm.simulation.scenarios import fleet
from fsm.simulation.simulation import Simulation, SimulationFailed
from fsm.stores.base import Conflict
from fsm.stores.memory import MemoryStore
from fsm.testing.machine.driver import GuaranteeBroken
from fsm.testing.machine.machines import machine_test
from fsm.tracker import sweeper as sweeper_module
from fsm.tracker.retention import Retention
from tests.support.places import PACKAGE, ROOT

DRAWN = "testing/test_machines.py::TestExecution::test_guarantees"
CLAIMER = "registry/test_two_trackers.py::test_exactly_one_claimer"
FRESH = "registry/test_two_trackers.py::test_a_refusal_is_given_on_what_is_there_now"
LATE = "registry/test_two_trackers.py::test_a_late_step_is_not_committed"
ROGUE = "registry/test_two_trackers.py::test_an_end_is_final_for_a_rogue_script"
BACKWARDS = "registry/test_two_trackers.py::test_a_journal_does_not_run_backwards"
OLDEST = "registry/test_two_trackers.py::test_the_oldest_tool_is_closed"
TREES = "registry/test_two_trackers.py::test_a_cancel_reaches_children_and_theirs"
TRUE = "registry/test_two_trackers.py::test_only_true_is_true"
SEEDS = 80
"""Within this number of seeds the simulation must find each bug."""
ROUGH = dataclasses.replace(STORM, fail_after=0.1, unknown=0.1, pause_every_s=20.0, crash_every_s=40.0)
QUICK = settings(max_examples=25, database=None, derandomize=True, phases=[Phase.generate])


class Bug(NamedTuple):
    """A planted bug: the guarantees that may be found broken, and what plants it and returns the one that was."""

    name: str
    guarantees: Collection[str]
    find: Callable[[pytest.MonkeyPatch, Path], str | None]
    tests: str = ""


# --- four ways to plant and to find -----------------------------------------------------------------------------


def copy_of_the_package(to: Path) -> Path:
    """Copy with the compiled files: they are still good for all that is not patched."""
    shutil.copytree(PACKAGE, to / "fsm")
    return to


def run(copy: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Run a part of the suite against a copy of the package, in a process of its own."""
    code = (
        "import sys, pytest; code = pytest.main(sys.argv[2:]); "
        "import fsm; assert fsm.__file__.startswith(sys.argv[1]), fsm.__file__; "
        "sys.exit(code)"
    )
    options = "-x -q -p no:cacheprovider -p no:xdist --hypothesis-profile=mutants".split()
    where = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-o", f"pythonpath={copy}"]
    nodes = [str(ROOT / "tests" / test) for test in tests]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "FSM"))
    }
    return subprocess.run(
        [sys.executable, "-c", code, str(copy), *options, *where, *nodes],
        cwd=copy,
        env=environment | {"PYTHONPATH": f"{copy}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def patch(name: str, guarantee: str, module: str, old: str, new: str, tests: str = DRAWN) -> Bug:
    """A text that is replaced in a copy; a part of the suite must fail in a test, not by an import or a usage error."""

    def find(_: pytest.MonkeyPatch, tmp_path: Path) -> str | None:
        patched = copy_of_the_package(tmp_path) / "fsm" / module
        text = patched.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"the patch does not fit {module} any more: {old!r}"
        patched.write_text(text.replace(old, new), encoding="utf-8")
        done = run(tmp_path, tests)
        failed = (done.returncode, "1 failed" in done.stdout) == (pytest.ExitCode.TESTS_FAILED, True)
        return guarantee if failed else done.stdout + done.stderr

    return Bug(name, {guarantee}, find, tests)


def simulated(
    store: Callable[[], MemoryStore] = MemoryStore, many: int = 12, children: float = 0.2
) -> str | None:
    """Return the first guarantee that the simulation finds broken."""
    for seed in range(SEEDS):
        retention = Retention(max_age_s=30.0) if seed % 2 else None
        simulation = Simulation(
            seed=seed, chaos=ROUGH, clock_skew_s=100.0, store=store, max_steps=200_000, retention=retention
        )
        try:
            simulation.run(fleet(many, children=children))
        except SimulationFailed as failure:
            if isinstance(failure.__cause__, Broken):
                return failure.__cause__.guarantee
            raise
    return None


def under_simulation(
    wrong: Callable[..., object], guarantees: Collection[str], *, many: int = 12, children: float = 0.2
) -> Bug:
    """A store, or a change of the library, that is wrong while a simulation runs."""

    def find(monkeypatch: pytest.MonkeyPatch, _: Path) -> str | None:
        if isinstance(wrong, type):
            return simulated(wrong, many, children)
        wrong(monkeypatch)
        try:
            return simulated()
        finally:
            decide_module.assigned.cache_clear()

    return Bug(wrong.__name__, guarantees, find)


def drawn(wrong: Callable[..., object], *guarantees: str) -> Bug:
    """A decision that is wrong while `machine_test` draws."""

    def find(monkeypatch: pytest.MonkeyPatch, _: Path) -> str | None:
        monkeypatch.setattr(committer_module, "decide", wrong)
        with pytest.raises(GuaranteeBroken) as caught:
            machine_test(EXECUTION, settings=QUICK).explore()
        return caught.value.guarantee

    return Bug(f"{wrong.__name__}, drawn", guarantees, find)


# --- a store that is wrong, under the simulation ------------------------------------------------------


class Loses(MemoryStore):
    """Now and then it says that a step is committed and keeps nothing of it."""

    def _one(self, step):
        if step.after.version and self._journal.last % 37 == 36:
            return receipt_of(step, self._journal.last + 1)
        return super()._one(step)


class LosesLater(MemoryStore):
    """It keeps everything, until it forgets the last row of one journal and sets the record back."""

    def _one(self, step):
        outcome = super()._one(step)
        if self._journal.last == 50 and not isinstance(outcome, Conflict):
            rows = self._rows[step.after.identity.id]
            rows[0] = step.after._replace(version=step.after.version - 1)
            del rows[-1]
            self._journal.forget([outcome])
            self._journal.last -= 1
        return outcome


class Duplicates(MemoryStore):
    """Now and then it writes a row of the journal twice."""

    def _one(self, step):
        outcome = super()._one(step)
        if self._journal.last == 40 and not isinstance(outcome, Conflict):
            self._journal.append(outcome._replace(position=41))
        return outcome


class TakesStale(MemoryStore):
    """It does not compare before it sets."""

    def _one(self, step):
        rows = self._rows.get(step.after.identity.id)
        if rows is not None and rows[0].version >= step.after.version:
            step = step._replace(after=step.after._replace(version=rows[0].version + 1))
        return super()._one(step)


class Reanimates(MemoryStore):
    """Something writes into ended records behind the journal's back."""

    def _one(self, step):
        outcome = super()._one(step)
        if step.after.state == "completed":
            rows = self._rows[step.after.identity.id]
            rows[0] = rows[0]._replace(state="thinking")
        return outcome


class ForgetsKeys(MemoryStore):
    """It keeps no idempotency keys."""

    def _one(self, step):
        outcome = super()._one(step)
        self._keys.clear()
        return outcome


class RenewsNothing(MemoryStore):
    """It says that a lease is renewed and leaves it as it was."""

    def worker_renew(self, worker_id, now):
        return any(one.id == worker_id and not one.lost for one in self.workers())


class LosesEarly(MemoryStore):
    """It holds workers for lost that have half of their lease left."""

    def lose(self, now, *, spare=False):
        return super().lose(now + 7.5, spare=spare)


class NeverDue(MemoryStore):
    """It finds no passed deadline."""

    def due(self, now, limit, after=None):
        return []


class DueEarly(MemoryStore):
    """It reports deadlines that are still to come."""

    def due(self, now, limit, after=None):
        return super().due(now + 20.0, limit, after)


class WrongKind(MemoryStore):
    """It mixes the kinds of deadlines up."""

    def due(self, now, limit, after=None):
        return [one._replace(kind="idle") for one in super().due(now, limit, after)]


class HalfAView(MemoryStore):
    """One of its two views of the journal leaves a row out."""

    def history(self, execution_id):
        return super().history(execution_id)[:-1]


class KeepsNoOrders(MemoryStore):
    """It does not keep what a dead process has left to be done."""

    def orders(self, after, limit):
        return []


class BearsOrphans(MemoryStore):
    """It takes children of parents that have ended."""

    def _goes_on(self, execution_id):
        return True


class PrunesWhatIsOpen(MemoryStore):
    """It finds open executions among the ended ones, and deletes them."""

    def ended(self, before_at, limit):
        return [*super().ended(before_at, limit), *(self._ids[-1:])]

    def forget(self, execution_ids, keep=0):
        terminal, self._terminal = self._terminal, {one: frozenset(self._by_state) for one in self._terminal}
        try:
            return super().forget(execution_ids, keep)
        finally:
            self._terminal = terminal


class PrunesTooMuch(MemoryStore):
    """With an execution that it prunes it deletes another ended one."""

    def forget(self, execution_ids, keep=0):
        others = [one for _, one in self._ended if one not in execution_ids][:1]
        return super().forget([*execution_ids, *others])


class PrunesHalf(MemoryStore):
    """It deletes the journal of what it prunes and leaves the record."""

    def forget(self, execution_ids, keep=0):
        kept = {one: self._rows[one][:2] for one in execution_ids if one in self._rows}
        gone = super().forget(execution_ids, keep)
        self._rows.update(kept)
        return gone


# --- a library that is wrong, under the simulation ---------------------------------------------------------------

decide = decide_module.decide


def no_fence_check(monkeypatch):
    monkeypatch.setattr(
        committer_module, "decide", lambda m, s, request: decide(m, s, request.but(fence=s.fence))
    )


def terminal_moves(monkeypatch):
    def moves(machine, snapshot, request):
        decided = decide(machine, snapshot, request)
        if isinstance(decided, Refusal) and decided.reason == "terminal" and request.event == "cancel":
            after = snapshot._replace(state="cancelled", version=snapshot.version + 1)
            return Step(after, snapshot.state, request.event, request.key, request.payload_json, ())
        return decided

    monkeypatch.setattr(committer_module, "decide", moves)


def no_such_row(monkeypatch):
    def jumps(machine, snapshot, request):
        decided = decide(machine, snapshot, request)
        if isinstance(decided, Step) and request.event == "finish":
            return decided._replace(after=decided.after._replace(state="completed", due_at=None))
        return decided

    monkeypatch.setattr(committer_module, "decide", jumps)


def assigns(monkeypatch, name, **otherwise):
    decide_module.assigned.cache_clear()  # what is compiled already follows the table as it was
    monkeypatch.setitem(decide_module.CHANGES, name, decide_module.CHANGES[name] | otherwise)


def claim_keeps_the_fence(monkeypatch):
    assigns(monkeypatch, "claim", fence="fence")


def claim_counts_no_attempt(monkeypatch):
    assigns(monkeypatch, "claim", attempt="attempt")


def release_keeps_the_fence(monkeypatch):
    assigns(monkeypatch, "release", fence="fence")


def sweep_without_compare_and_set(monkeypatch):
    original = Registry.order

    def order(self, execution_id, event, payload, *, version=None, holder=None):
        return original(self, execution_id, event, payload)

    monkeypatch.setattr(Registry, "order", order)


def lapse_forgets(monkeypatch):
    monkeypatch.setattr(sweeper_module, "lapse", lambda registry, worker_id: 0)


def lapse_takes_half(monkeypatch):
    original = Registry.carry_all
    monkeypatch.setattr(
        Registry,
        "carry_all",
        lambda self, commands: original(self, [one for one in commands if one.request.event != "lapse"][:1]),
    )


def sweeps_carry_out_no_orders(monkeypatch):
    monkeypatch.setattr(sweeper_module.Sweeper, "_orphans", lambda self, counts: None)


def orders_are_done_before_they_are_carried_out(monkeypatch):
    original = Registry.call_off

    def call_off(self, order):
        self.store.carried(order)
        return original(self, order)

    monkeypatch.setattr(Registry, "call_off", call_off)


def nobody_is_called_off(monkeypatch):
    monkeypatch.setattr(Registry, "_cancel", lambda self, child, order: None)


def a_receipt_for_what_failed(monkeypatch):
    original = committer_module.Committer._doubt

    def hopes(self, this):
        original(self, this)
        if getattr(this.error, "committed", False) is None:
            this.error = None
            for command, step in zip(this.commands, this.steps, strict=True):
                command.outcome = receipt_of(step, self._store.position() or 1)
            this.outcomes = [command.outcome for command in this.commands]

    rounds = committer_module.Committer._rounds

    def believing(self, batch, tried=0):
        for this in rounds(self, batch, tried):
            yield this
            if this.error is not None:
                hopes(self, this)

    monkeypatch.setattr(committer_module.Committer, "_rounds", believing)


def deadlines_live_on_the_wall_clock(monkeypatch):
    monkeypatch.setattr(SteadyClock, "now", lambda self: self._clock.wall())


# --- decisions that are wrong, drawn ----------------------------------------------------------------------------


def wrong_target(machine, snapshot, request):
    decided = decide(machine, snapshot, request)
    if isinstance(decided, Step) and decided.event == "think":
        return decided._replace(after=decided.after._replace(state="completing"))
    return decided


def no_fence(machine, snapshot, request):
    return decide(machine, snapshot, request.but(fence=snapshot.fence))


def taken_for_granted(machine, snapshot, request):
    decided = decide(machine, snapshot, request)
    if isinstance(decided, Refusal) and decided.reason == "guard":
        return decide(machine, snapshot, request.but(event="progress", fence=snapshot.fence))
    return decided


def back_from_the_dead(machine, snapshot, request):
    decided = decide(machine, snapshot, request)
    if isinstance(decided, Refusal) and decided.reason == "terminal":
        return Step(
            snapshot._replace(version=snapshot.version + 1),
            snapshot.state,
            request.event,
            request.key,
            None,
            (),
        )
    return decided


def nothing_allowed(machine, snapshot, request):
    decided = decide(machine, snapshot, request)
    return decided._replace(allowed=()) if isinstance(decided, Refusal) else decided


def no_deadline(machine, snapshot, request):
    decided = decide(machine, snapshot, request)
    if isinstance(decided, Step):
        return decided._replace(after=decided.after._replace(due_at=None))
    return decided


# --- the list ---------------------------------------------------------------------------------------------------

AGREE = "journal and state agree"
LOST = "no acknowledged transition is lost"
ONE = "exactly one claimer"
GAP = "versions have no gap"
FINAL = "a terminal state is final"
HEALTHY = "a healthy execution is never declared dead"
FOUND = "a lost execution is found within lease and sweep"
MET = "a deadline that passed is met by the next sweep"
CHILDREN = "children end with their parent"
STALE = "a stale timer is harmless"
PATCHES = (
    patch(
        "the fence is not checked",
        "a zombie cannot write",
        "core/decide.py",
        "if fence is not None and fence != snapshot.fence:",
        "if fence is not None and fence > snapshot.fence:",
    ),
    patch(
        "a claim does not raise the fence",
        "a zombie cannot write",
        "core/decide.py",
        '"attempt": "attempt if suspended else attempt + 1",\n        "fence": "fence + 1",',
        '"attempt": "attempt if suspended else attempt + 1",\n        "fence": "fence",',
    ),
    patch(
        "a release does not raise the fence",
        "a zombie cannot write",
        "core/decide.py",
        '"fence": "fence + 1", "tools": "()", "model_attempt": "0", "suspended": "false",',
        '"fence": "fence", "tools": "()", "model_attempt": "0", "suspended": "false",',
    ),
    patch(
        "a version is skipped",
        "versions have no gap",
        "core/decide.py",
        '"always": {"version": "version + 1"}',
        '"always": {"version": "version + 2"}',
    ),
    patch(
        "a deadline has the wrong kind",
        "a deadline fires as what it is",
        "machine/machine.py",
        '(state.deadline or "phase", seconds)',
        '("phase", seconds)',
    ),
    patch(
        "an execution's own limits are ignored",
        "every open execution has a deadline or a lease",
        "machine/machine.py",
        "merged = timeouts.over(self.timeouts) if timeouts is not None else self.timeouts",
        "merged = self.timeouts",
    ),
    patch(
        "one attempt too many",
        "a lost execution is tried as often as was said, then dead",
        "core/decide.py",
        '"attempts_left": "attempt < attempts_max"',
        '"attempts_left": "attempt <= attempts_max"',
    ),
    patch(
        "the database lets an ended execution go on",
        "a terminal state is final",
        "stores/sqlite/0002_law.sql",
        "THEN RAISE (ABORT, 'fsm: a terminal state is final')",
        "THEN NULL",
        ROGUE,
    ),
    patch(
        "the memory store takes a late step on an ended execution",
        "a terminal state is final",
        "stores/memory/store.py",
        "if before.version != after.version - 1 or",
        "if before.version < after.version - 1 or",
        LATE,
    ),
    patch(
        "the SQLite store updates without compare-and-set",
        "exactly one claimer",
        "stores/sqlite/store.py",
        "WHERE id = ? AND version = ?",
        "WHERE id = ? AND version >= ?",
        LATE,
    ),
    patch(
        "a conflict is decided again on the same stale record",
        "exactly one claimer",
        "registry/committer.py",
        "for execution_id in lost:\n            self._known.pop(execution_id, None)",
        "for execution_id in lost:\n            self._known.get(execution_id, None)",
        CLAIMER,
    ),
    patch(
        "a refusal is given on a stale record",
        "journal and state agree",
        "registry/committer.py",
        "if isinstance(decided, Refusal) and not fresh and ahead is None:",
        "if isinstance(decided, Refusal) and fresh and ahead is None:",
        FRESH,
    ),
    patch(
        "a refused event leaves something in the journal",
        "a refusal changes nothing",
        "registry/committer.py",
        "if isinstance(decided, Refusal):\n                    command.outcome = decided",
        "if isinstance(decided, Refusal):\n"
        "                    machine = self._law(snapshot).machine\n"
        '                    sign = decide(machine, snapshot, request.but(event="progress", fence=snapshot.fence))\n'
        "                    if isinstance(sign, Step):\n"
        "                        self._store.append([sign])\n"
        "                    command.outcome = decided",
    ),
    patch(
        "the key is ignored",
        "an ambiguous commit is safe with a key",
        "registry/committer.py",
        "if request.key is not None and self._seen(",
        'if request.key == "" and self._seen(',
    ),
    patch(
        "an internal transition is not written down",
        "no acknowledged transition is lost",
        "stores/memory/store.py",
        "            rows[0] = after\n            rows.append(receipt)\n",
        "            if before.state != after.state:\n                rows.append(receipt)\n",
    ),
    patch(
        "the registry's journal leaves a row out",
        "journal and state agree",
        "stores/memory/store.py",
        "        self._journal.append(receipt)\n",
        '        if step.event != "receive_input":\n            self._journal.append(receipt)\n',
    ),
    patch(
        "a wall clock that goes back makes the journal run backwards",
        "a journal does not run backwards",
        "core/decide.py",
        "if facts.at < snapshot.updated_at:",
        "if facts.at < 0:",
        BACKWARDS,
    ),
    patch(
        "the youngest tool is closed instead of the oldest",
        "the record is what the table makes of it",
        "core/decide.py",
        "for index, (open_name, open_id) in enumerate(snapshot.tools):",
        "for index, (open_name, open_id) in reversed(list(enumerate(snapshot.tools))):",
        OLDEST,
    ),
    patch(
        "a guard is asked for truthiness",
        "the table is law",
        "core/decide.py",
        "self.defaults[fact] if answer is None else answer is True",
        "self.defaults[fact] if answer is None else bool(answer)",
        TRUE,
    ),
    patch(
        "what a guard on the record forbids is listed as allowed",
        "a refusal says why, and what is allowed",
        "core/decide.py",
        "all(wanted in _answers(snapshot, fact) for",
        "all(wanted in (True, False) for",
    ),
    patch(
        "a parent's cancel stops at the parent",
        "a cancel ends cancelled",
        "registry/registry.py",
        "                self.call_off(\n"
        "                    Order(command.request.execution_id, command.outcome.version, command.request.event)\n"
        "                )\n",
        "                self._claims.clear()\n",
        TREES,
    ),
    patch(
        "another user may fire",
        "another user's execution is as unknown as none",
        "registry/committer.py",
        "if request.user_id is not None and snapshot.identity.user_id != request.user_id:",
        "if request.user_id is not None and not snapshot.identity.user_id:",
    ),
    patch(
        "a sweep without compare-and-set",
        "a stale timer is harmless",
        "tracker/sweeper.py",
        "version=one.version,",
        "version=None,",
        "registry/test_time.py::test_a_deadline_that_moves_while_it_is_swept_is_left_alone",
    ),
    patch(
        "a timeout names the wrong kind",
        "a deadline fires as what it is",
        "tracker/sweeper.py",
        '{"kind": one.kind,',
        '{"kind": "phase",',
        "registry/test_time.py::test_each_kind_of_deadline_fires",
    ),
    patch(
        "a deadline fires early",
        "a healthy execution is never declared dead",
        "stores/memory/store.py",
        "while self._due and self._due[0][0] <= now and",
        "while self._due and self._due[0][0] <= now + 5.0 and",
        "registry/test_time.py::test_progress_keeps_an_idle_execution_alive",
    ),
    patch(
        "a lease runs out early",
        "a healthy execution is never declared dead",
        "stores/memory/workers.py",
        "worker.renewed_at + worker.ttl_s < now",
        "worker.renewed_at + worker.ttl_s / 2 < now",
        "tracker/test_worker.py::test_a_worker_that_renews_is_never_lost",
    ),
    patch(
        "a lost worker renews",
        "a zombie cannot write",
        "stores/memory/workers.py",
        "if worker is None or worker.lost:",
        "if worker is None:",
        "tracker/test_worker.py::test_a_lost_worker_stays_lost",
    ),
    patch(
        "a lapse takes work from its present owner",
        "a healthy execution is never declared dead",
        "tracker/worker.py",
        "holder=worker_id",
        "holder=None",
        "tracker/test_worker.py::test_work_that_was_claimed_anew_is_not_taken",
    ),
    patch(
        "deadlines are laid on the wall clock",
        "a wall clock that jumps neither kills nor blocks",
        "registry/steady.py",
        "return monotonic + self._era.offset_s",
        "return self._clock.wall()",
        "registry/test_time.py::test_a_wall_clock_that_jumps_neither_kills_nor_blocks",
    ),
)
SIMULATED = (
    under_simulation(Loses, {LOST}),
    under_simulation(LosesLater, {LOST, AGREE, "journal positions have no gap"}),
    under_simulation(Duplicates, {GAP}),
    under_simulation(TakesStale, {LOST, AGREE, FINAL, ONE, "a zombie cannot write"}),
    under_simulation(Reanimates, {AGREE}),
    under_simulation(ForgetsKeys, {"a key is used once"}),
    under_simulation(RenewsNothing, {HEALTHY}),
    under_simulation(LosesEarly, {HEALTHY}),
    under_simulation(NeverDue, {MET}),
    under_simulation(DueEarly, {STALE}),
    under_simulation(WrongKind, {STALE}),
    under_simulation(KeepsNoOrders, {CHILDREN}),
    under_simulation(BearsOrphans, {"nothing starts under a parent that has ended"}, many=30, children=0.9),
    under_simulation(PrunesWhatIsOpen, {"what is open is never pruned"}),
    under_simulation(PrunesTooMuch, {AGREE, "a journal never changes"}),
    under_simulation(PrunesHalf, {"what was pruned is gone"}),
    under_simulation(HalfAView, {"both views of a journal agree"}),
    under_simulation(no_fence_check, {"a zombie cannot write"}),
    under_simulation(terminal_moves, {FINAL}),
    under_simulation(no_such_row, {"the table is law"}),
    under_simulation(claim_keeps_the_fence, {ONE}),
    under_simulation(claim_counts_no_attempt, {ONE}),
    under_simulation(release_keeps_the_fence, {ONE}),
    under_simulation(sweep_without_compare_and_set, {STALE, HEALTHY}),
    under_simulation(lapse_forgets, {FOUND}),
    under_simulation(lapse_takes_half, {FOUND, MET}),
    under_simulation(sweeps_carry_out_no_orders, {CHILDREN}),
    under_simulation(orders_are_done_before_they_are_carried_out, {CHILDREN}),
    under_simulation(nobody_is_called_off, {CHILDREN}),
    under_simulation(a_receipt_for_what_failed, {LOST}),
    under_simulation(deadlines_live_on_the_wall_clock, {STALE, HEALTHY, FOUND}),
)
DRAWN_BUGS = (
    drawn(wrong_target, "a receipt says what the table says"),
    drawn(
        no_fence,
        "a zombie cannot write",
        "a terminal state is final",
        "a refusal says why, and what is allowed",
    ),
    drawn(taken_for_granted, "what the table does not allow is refused"),
    drawn(back_from_the_dead, "a terminal state is final"),
    drawn(nothing_allowed, "a refusal says why, and what is allowed"),
    drawn(no_deadline, "a deadline is where the limits lay it"),
)
BUGS = (*PATCHES, *SIMULATED, *DRAWN_BUGS)


@pytest.fixture
def quiet():
    """A planted bug makes the library complain, which is not what is looked at here."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sound_library_passes_what_the_bugs_are_found_with(quiet, tmp_path):
    """Without a bug the simulation finds nothing with the same seeds, and the same parts of the suite pass."""
    assert simulated() is None
    done = run(copy_of_the_package(tmp_path), *sorted({bug.tests for bug in BUGS if bug.tests}))
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.fsm_no_cover
@pytest.mark.parametrize("bug", [pytest.param(bug, id=bug.name) for bug in BUGS])
def test_a_planted_bug_is_caught(bug, monkeypatch, tmp_path, quiet):
    """Every planted bug is found, by the guarantee that it breaks."""
    assert bug.find(monkeypatch, tmp_path) in bug.guarantees
