"""The guarantees that one tracker alone cannot show: two of them on one store, stores by themselves, rogue scripts."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack
from typing import Any

import pytest

from fsm import EXECUTION, Refused, ids
from fsm.decide import DERIVED, Facts, create, decide
from fsm.errors import Refusal
from fsm.payloads import Codec
from fsm.records import Identity, Snapshot, Step
from fsm.registry import record_of
from fsm.stores.base import Conflict, open_store
from fsm.tracker import Tracker, fresh_tracker

CODEC = Codec(EXECUTION, frozenset(DERIVED))


@pytest.fixture
def two(url) -> Any:
    """Two trackers on one file, as two processes would have."""
    with ExitStack() as stack:
        yield tuple(stack.enter_context(fresh_tracker(url)) for _ in range(2))


def claimed_behind(ours: Tracker, theirs: Tracker) -> str:
    """Create an execution that `ours` remembers as new while `theirs` has claimed it."""
    execution = ours.create("agent", user_id="ada", thread_id="t")
    ours.fire(execution.id, "enqueue")
    theirs.fire(execution.id, "start")
    return execution.id


def born() -> Step:
    identity = Identity(
        id=ids.execution_id(), machine=EXECUTION.content_hash, agent="agent", user_id="ada", thread_id="t",
        parent_id=None, retry_of=None, created_at=1000.0, attempts_max=1, model_attempts_max=1, metadata_json=None,
        timeouts_json=None,
    )  # fmt: skip
    return create(EXECUTION, identity)


def step(snapshot: Snapshot, event: str, **payload: Any) -> Step:
    fields, text = CODEC.encode(event, payload)
    decided = decide(EXECUTION, snapshot, event, Facts(1001.0, fields, text))
    assert isinstance(decided, Step)
    return decided


def test_exactly_one_claimer(two):
    """Of two trackers that see the same queued execution one claims it, and the other is refused with the news."""
    ours, theirs = two
    execution_id = claimed_behind(ours, theirs)
    with pytest.raises(Refused) as refused:
        ours.fire(execution_id, "start")
    assert (refused.value.reason, refused.value.state, refused.value.version) == (
        "not_allowed",
        "starting",
        2,
    )
    assert [receipt.event for receipt in ours.history(execution_id)] == ["create", "enqueue", "start"]


def test_a_refusal_is_given_on_what_is_there_now(two):
    """An event that another tracker's step has made possible is done, not refused from memory."""
    ours, theirs = two
    assert ours.fire(claimed_behind(ours, theirs), "think").target == "thinking"


@pytest.mark.parametrize("store", ["memory://", "sqlite"])
@pytest.mark.parametrize("late", ["start", "complete"])
def test_a_late_step_is_not_committed(store, late, url):
    """A step decided on a record that has moved on is a conflict and changes nothing, an ended record included."""
    opened = open_store(url if store == "sqlite" else store)
    try:
        opened.register(record_of(EXECUTION))
        birth = born()
        first = step(birth.after, "start")
        opened.append([birth, first])
        stale = step(birth.after, "connect")
        if late == "complete":
            opened.append([step(first.after, "fail")])
        version = opened.load(birth.after.identity.id).version
        assert opened.append([stale]) == [Conflict(birth.after.identity.id, version)]
        assert [receipt.version for receipt in opened.history(birth.after.identity.id)] == list(
            range(version + 1)
        )
    finally:
        opened.close()


def test_an_end_is_final_for_a_rogue_script(url, tmp_path):
    """Raw SQL cannot move an execution that has ended."""
    with fresh_tracker(url) as tracker:
        execution = tracker.create("agent", user_id="ada", thread_id="t")
        tracker.fire(execution.id, "cancel")
        with sqlite3.connect(tmp_path / "fsm.db") as rogue:
            moved = "UPDATE executions SET state = ?, event = ?, version = version + 1 WHERE id = ?"
            # Even a pair that some row has: only the end forbids it.
            with pytest.raises(sqlite3.IntegrityError, match="terminal state is final"):
                rogue.execute(moved, ("cancelled", "cancel", execution.id))
        rogue.close()
        assert tracker.get(execution.id).version == 1


@pytest.mark.parametrize("answer", ["false", "true", 1, 0.5, [0], {"no": 1}])
def test_only_true_is_true(answer):
    """A guard holds for the answer True alone: text and numbers that count as true in Python do not."""
    running = step(born().after, "start").after._replace(attempt=0)
    decided = decide(EXECUTION, running, "fail", Facts(1001.0, {"retryable": answer}))
    assert not isinstance(decided, Refusal)
    assert decided.after.state == "failed"
