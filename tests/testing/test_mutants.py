"""Planted bugs: each is a small patch that breaks one guarantee, and the suite must fail on it.

A mutant is a copy of the package with one text replaced, and a small part of the suite that is run against the copy
in a process of its own. A patch whose old text is not there exactly once fails too, so that no mutant goes stale.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
DRAWN = "testing/test_machines.py::TestExecution::test_guarantees"
CLAIMER = "simulation/test_guarantees.py::test_exactly_one_claimer"
FRESH = "simulation/test_guarantees.py::test_a_refusal_is_given_on_what_is_there_now"
LATE = "simulation/test_guarantees.py::test_a_late_step_is_not_committed"
ROGUE = "simulation/test_guarantees.py::test_an_end_is_final_for_a_rogue_script"
BACKWARDS = "simulation/test_guarantees.py::test_a_journal_does_not_run_backwards"
OLDEST = "simulation/test_guarantees.py::test_the_oldest_tool_is_closed"
CHILDREN = "simulation/test_guarantees.py::test_a_cancel_reaches_children_and_theirs"
TRUE = "simulation/test_guarantees.py::test_only_true_is_true"


class Mutant(NamedTuple):
    """A bug: what it breaks, the patch, and the part of the suite that must notice."""

    name: str
    guarantee: str
    module: str
    old: str
    new: str
    tests: str = DRAWN


MUTANTS = (
    Mutant(
        "the fence is not checked",
        "a zombie cannot write",
        "core/decide.py",
        "if fence is not None and fence != snapshot.fence:",
        "if fence is not None and fence > snapshot.fence:",
    ),
    Mutant(
        "a claim does not raise the fence",
        "a zombie cannot write",
        "core/decide.py",
        "attempt=snapshot.attempt if snapshot.suspended else snapshot.attempt + 1,\n        fence=snapshot.fence + 1,",
        "attempt=snapshot.attempt if snapshot.suspended else snapshot.attempt + 1,\n        fence=snapshot.fence,",
    ),
    Mutant(
        "a release does not raise the fence",
        "a zombie cannot write",
        "core/decide.py",
        "change.update(owner=None, fence=snapshot.fence + 1,",
        "change.update(owner=None, fence=snapshot.fence,",
    ),
    Mutant(
        "a version is skipped",
        "versions have no gap",
        "core/decide.py",
        "identity, state, snapshot.version + 1,",
        "identity, state, snapshot.version + 2,",
    ),
    Mutant(
        "a deadline has the wrong kind",
        "a deadline fires as what it is",
        "machine/machine.py",
        '(state.deadline or "phase", seconds)',
        '("phase", seconds)',
    ),
    Mutant(
        "an execution's own limits are ignored",
        "every open execution has a deadline or a lease",
        "machine/machine.py",
        "merged = timeouts.over(self.timeouts) if timeouts is not None else self.timeouts",
        "merged = self.timeouts",
    ),
    Mutant(
        "one attempt too many",
        "a lost execution is tried as often as was said, then dead",
        "core/decide.py",
        "snapshot.attempt < snapshot.identity.attempts_max",
        "snapshot.attempt <= snapshot.identity.attempts_max",
    ),
    Mutant(
        "the database lets an ended execution go on",
        "a terminal state is final",
        "stores/sqlite/0002_law.sql",
        "THEN RAISE (ABORT, 'fsm: a terminal state is final')",
        "THEN NULL",
        ROGUE,
    ),
    Mutant(
        "the memory store takes a late step on an ended execution",
        "a terminal state is final",
        "stores/memory/store.py",
        "if before.version != after.version - 1 or",
        "if before.version < after.version - 1 or",
        LATE,
    ),
    Mutant(
        "the SQLite store updates without compare-and-set",
        "exactly one claimer",
        "stores/sqlite/store.py",
        "WHERE id = ? AND version = ?",
        "WHERE id = ? AND version >= ?",
        LATE,
    ),
    Mutant(
        "a conflict is decided again on the same stale record",
        "exactly one claimer",
        "registry/committer.py",
        "for execution_id in lost:\n            self._known.pop(execution_id, None)",
        "for execution_id in lost:\n            self._known.get(execution_id, None)",
        CLAIMER,
    ),
    Mutant(
        "a refusal is given on a stale record",
        "journal and state agree",
        "registry/committer.py",
        "if isinstance(decided, Refusal) and not fresh and ahead is None:",
        "if isinstance(decided, Refusal) and fresh and ahead is None:",
        FRESH,
    ),
    Mutant(
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
    Mutant(
        "the key is ignored",
        "an ambiguous commit is safe with a key",
        "registry/committer.py",
        "if request.key is not None and self._seen(",
        'if request.key == "" and self._seen(',
    ),
    Mutant(
        "an internal transition is not written down",
        "no acknowledged transition is lost",
        "stores/memory/store.py",
        "            rows[0] = after\n            rows.append(receipt)\n",
        "            if before.state != after.state:\n                rows.append(receipt)\n",
    ),
    Mutant(
        "the registry's journal leaves a row out",
        "journal and state agree",
        "stores/memory/store.py",
        "        self._journal.append(receipt)\n",
        '        if step.event != "receive_input":\n            self._journal.append(receipt)\n',
    ),
    Mutant(
        "a wall clock that goes back makes the journal run backwards",
        "a journal does not run backwards",
        "core/decide.py",
        "if facts.at < snapshot.updated_at:",
        "if facts.at < 0:",
        BACKWARDS,
    ),
    Mutant(
        "the youngest tool is closed instead of the oldest",
        "the record is what the table makes of it",
        "core/decide.py",
        "for index, (open_name, open_id) in enumerate(snapshot.tools):",
        "for index, (open_name, open_id) in reversed(list(enumerate(snapshot.tools))):",
        OLDEST,
    ),
    Mutant(
        "a guard is asked for truthiness",
        "the table is the law",
        "core/decide.py",
        "self.defaults[fact] if answer is None else answer is True",
        "self.defaults[fact] if answer is None else bool(answer)",
        TRUE,
    ),
    Mutant(
        "what a guard on the record forbids is listed as allowed",
        "a refusal says what is allowed",
        "core/decide.py",
        "all(wanted in _answers(snapshot, fact) for",
        "all(wanted in (True, False) for",
    ),
    Mutant(
        "a parent's cancel stops at the parent",
        "a cancel ends cancelled or is reported",
        "registry/registry.py",
        "                self.call_off(\n"
        "                    Order(command.request.execution_id, command.outcome.version, command.request.event)\n"
        "                )\n",
        "                self._claims.clear()\n",
        CHILDREN,
    ),
    Mutant(
        "another user may fire",
        "another user's execution is as unknown as none",
        "registry/committer.py",
        "if request.user_id is not None and snapshot.identity.user_id != request.user_id:",
        "if request.user_id is not None and not snapshot.identity.user_id:",
    ),
    Mutant(
        "a sweep without compare-and-set",
        "a stale timer is harmless",
        "tracker/sweeper.py",
        "version=one.version,",
        "version=None,",
        "registry/test_time.py::test_a_deadline_that_moves_while_it_is_swept_is_left_alone",
    ),
    Mutant(
        "a timeout names the wrong kind",
        "a deadline fires as what it is",
        "tracker/sweeper.py",
        '{"kind": one.kind,',
        '{"kind": "phase",',
        "registry/test_time.py::test_each_kind_of_deadline_fires",
    ),
    Mutant(
        "a deadline fires early",
        "a healthy execution is never declared dead",
        "stores/memory/store.py",
        "while self._due and self._due[0][0] <= now and",
        "while self._due and self._due[0][0] <= now + 5.0 and",
        "registry/test_time.py::test_progress_keeps_an_idle_execution_alive",
    ),
    Mutant(
        "a lease runs out early",
        "a healthy execution is never declared dead",
        "stores/memory/workers.py",
        "worker.renewed_at + worker.ttl_s < now",
        "worker.renewed_at + worker.ttl_s / 2 < now",
        "tracker/test_worker.py::test_a_worker_that_renews_is_never_lost",
    ),
    Mutant(
        "a lost worker renews",
        "a zombie cannot write",
        "stores/memory/workers.py",
        "if worker is None or worker.lost:",
        "if worker is None:",
        "tracker/test_worker.py::test_a_lost_worker_stays_lost",
    ),
    Mutant(
        "a lapse takes work from whoever owns it now",
        "a healthy execution is never declared dead",
        "tracker/worker.py",
        "holder=worker_id",
        "holder=None",
        "tracker/test_worker.py::test_work_that_was_claimed_anew_is_not_taken",
    ),
    Mutant(
        "deadlines are laid on the wall clock",
        "a wall clock that jumps neither kills nor blocks",
        "registry/steady.py",
        "return monotonic + self._era.offset_s",
        "return self._clock.wall()",
        "registry/test_time.py::test_a_wall_clock_that_jumps_neither_kills_nor_blocks",
    ),
)


def copy_of_the_package(to: Path) -> Path:
    """Copy with the compiled files: they are still good for all that is not patched."""
    shutil.copytree(ROOT / "fsm", to / "fsm")
    return to


def run(copy: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Run a part of the suite against a copy of the package, in a process of its own."""
    code = (
        "import sys, pytest; code = pytest.main(sys.argv[2:]); "
        "import fsm; assert fsm.__file__.startswith(sys.argv[1]), fsm.__file__; "
        "sys.exit(code)"
    )
    options = "-x -q -p no:cacheprovider -p no:xdist --hypothesis-profile=mutants".split()
    where = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    nodes = [str(ROOT / "tests" / test) for test in tests]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "FSM"))
    }
    return subprocess.run(
        [sys.executable, "-c", code, str(copy), *options, *where, *nodes],
        cwd=copy,
        env=environment | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_copy_passes(tmp_path):
    """An unpatched copy passes all that the mutants are held against: what fails below, fails by its patch."""
    done = run(copy_of_the_package(tmp_path), *sorted({mutant.tests for mutant in MUTANTS}))
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr


@pytest.mark.parametrize("mutant", [pytest.param(mutant, id=mutant.name) for mutant in MUTANTS])
def test_a_planted_bug_is_caught(mutant, tmp_path):
    """The suite fails on every planted bug; it fails in a test, not by an import or a usage error."""
    patched = copy_of_the_package(tmp_path) / "fsm" / mutant.module
    text = patched.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"the patch does not fit {mutant.module} any more: {mutant.old!r}"
    patched.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    done = run(tmp_path, mutant.tests)
    survived = f"{mutant.guarantee!r} is broken, and nothing noticed"
    assert (done.returncode, "1 failed" in done.stdout) == (pytest.ExitCode.TESTS_FAILED, True), (
        survived + "\n" + done.stdout + done.stderr
    )
