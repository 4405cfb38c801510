"""The guarantees that one tracker alone cannot show: two of them on one store, stores by themselves, rogue scripts."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack
from typing import Any

import pytest

from fsm import EXECUTION, Machine, Refused, ids
from fsm.clock import ManualClock
from fsm.core.decide import DERIVED, create, decide
from fsm.core.journal import record_of
from fsm.core.payloads import Codec
from fsm.core.records import Identity, Snapshot, Step
from fsm.core.request import Request
from fsm.errors import Refusal
from fsm.machine.grammar import row, state
from fsm.stores.base import Conflict
from fsm.stores.opening import open_store
from fsm.tracker.process import fresh_tracker
from fsm.tracker.tracker import Tracker

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
    decided = decide(
        EXECUTION,
        snapshot,
        Request(event, 1001.0, fields, text, fence=snapshot.fence, key=None, worker="worker_1"),
    )
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
    one = claimed_behind(ours, theirs)
    assert ours.fire(one, "think", fence=1).target == "thinking"


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
    decided = decide(EXECUTION, running, Request("fail", 1001.0, {"retryable": answer}, fence=running.fence))
    assert not isinstance(decided, Refusal)
    assert decided.after.state == "failed"


def test_the_oldest_tool_is_closed():
    """A close that names nothing closes the oldest call, one that names a tool the oldest of that name."""
    snapshot = step(born().after, "start").after
    for name, call_id in (("search", "1"), ("fetch", "2"), ("search", "3")):
        snapshot = step(snapshot, "open_tool", name=name, call_id=call_id).after
    assert step(snapshot, "close_tool").after.tools == (("fetch", "2"), ("search", "3"))
    assert step(snapshot, "close_tool", name="fetch").after.tools == (("search", "1"), ("search", "3"))
    assert step(snapshot, "close_tool", name="search").after.tools == (("fetch", "2"), ("search", "3"))


def test_a_cancel_reaches_children_and_theirs():
    """When an execution is called off, its children are, and theirs; whose worker must stop first is cancelling."""
    with fresh_tracker() as tracker:
        top = tracker.create("top", user_id="ada", thread_id="t")
        middle = tracker.create("middle", user_id="ada", thread_id="t", parent_id=top.id)
        low = tracker.create("low", user_id="ada", thread_id="t", parent_id=middle.id)
        tracker.fire(middle.id, "start")
        tracker.fire(top.id, "cancel")
        assert [tracker.get(one.id).state for one in (top, middle, low)] == [
            "cancelled",
            "cancelling",
            "cancelled",
        ]


@pytest.mark.parametrize(
    ("payloads", "fields"),
    [((), ["by", "reason"]), ((("cancel", "progress"),), ["note"])],
    ids=["ours", "its own"],
)
def test_a_cancel_reaches_children_of_a_machine_of_your_own(payloads, fields):
    """A child is called off whatever payload its machine gives to cancel, and its journal says why."""
    machine = Machine(
        name="errand",
        initial="open",
        states=(state("open", "running"), state("gone", "terminal")),
        transitions=(row("open", "cancel", "gone", effects="cancel_children"),),
        payloads=payloads,
    )
    with fresh_tracker(machines=[machine]) as tracker:
        top = tracker.create("top", user_id="ada", thread_id="t", machine=machine)
        child = tracker.create("child", user_id="ada", thread_id="t", machine=machine, parent_id=top.id)
        tracker.fire(top.id, "cancel")
        assert tracker.get(child.id).state == "gone"
        said = tracker.history(child.id)[-1].payload
        assert sorted(said) == fields
        assert "was ended by 'cancel'" in said[fields[-1]]


def test_a_journal_does_not_run_backwards():
    """A wall clock that is set back an hour makes no receipt older than the one before, and no duration negative."""
    clock = ManualClock()
    with fresh_tracker(clock=clock) as tracker:
        execution = tracker.create("agent", user_id="ada", thread_id="t")
        clock.advance(10.0)
        tracker.fire(execution.id, "start")
        clock.jump(-3600.0)
        tracker.fire(execution.id, "think", fence=tracker.get(execution.id).fence)
        instants = [receipt.at - execution.created_at for receipt in tracker.history(execution.id)]
        assert instants == [0.0, 10.0, 10.0]
        assert tracker.durations(execution.id) == {"created": 10.0, "starting": 0.0, "thinking": 0.0}
