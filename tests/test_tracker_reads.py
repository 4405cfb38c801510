"""What the tracker tells: pages, counts, allowed events, times; and what a parent's end does to its children."""

from __future__ import annotations

import pytest
from tracker_tools import ERRAND, begun, finish

from fsm import (
    Refused,
    StoreUnavailable,
    UnknownExecution,
)
from fsm.clock import ManualClock
from fsm.testing import fresh_tracker

# --- find and count -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory://", "sqlite"])
def test_categories_are_those_of_each_machine(store, url):
    """A category means what each machine says it means, and pages stay full and stable across machines."""
    with fresh_tracker(url if store == "sqlite" else store, machines=[ERRAND]) as tracker:
        pairs = [
            (
                tracker.create("a", user_id="u", thread_id="t").id,
                tracker.create("a", user_id="u", thread_id="t", machine=which).id,
            )
            for which in (ERRAND, "errand", ERRAND)
        ]
        executions, errands = zip(*pairs, strict=True)
        assert [one.id for one in tracker.find(category="pending")] == list(executions)
        assert [one.id for one in tracker.find(category="running")] == list(errands)
        assert [one.id for one in tracker.find(category="running", limit=2)] == list(errands[:2])
        assert [one.id for one in tracker.find(category="running", limit=2, after=errands[0])] == list(
            errands[1:]
        )
        tracker.fire(errands[0], "leave")
        assert [one.id for one in tracker.find(state="out", category="waiting")] == [errands[0]]
        assert tracker.find(state="out", category="running") == []
        assert tracker.counts() == {"created": 5, "out": 1}
        assert tracker.machine_of(errands[0]) == ERRAND
        assert tracker.allowed(errands[0]) == ("time_out", "cancel")


def test_pages_follow_each_other(either):
    """Pages joined together are all executions, once each, in the order of their creation."""
    made = [either.create("a", user_id="u", thread_id="t").id for _ in range(25)]
    pages = []
    while page := either.find(limit=4, after=pages[-1] if pages else None):
        pages += [one.id for one in page]
    assert pages == made


def test_allowed_is_what_the_table_allows_now(either):
    """`allowed` lists the events of the state, less those that the record itself rules out."""
    made = either.create("a", user_id="u", thread_id="t")
    assert either.allowed(made.id) == (
        "enqueue",
        "connect",
        "validate",
        "start",
        "fail",
        "time_out",
        "cancel",
    )
    either.fire(made.id, "start")
    assert "close_tool" not in either.allowed(made.id)
    either.fire(made.id, "open_tool", fence=either.get(made.id).fence, name="s")
    assert "close_tool" in either.allowed(made.id)
    either.fire(made.id, "fail", fence=either.get(made.id).fence)
    assert either.allowed(made.id) == ()


# --- time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory://", "sqlite"])
def test_time_is_booked_to_where_it_was_spent_and_stops_at_the_end(store, url):
    """Each phase's time is the time that was spent in it; several visits add up, and an end stops the clock."""
    clock = ManualClock()
    with fresh_tracker(url if store == "sqlite" else store, clock=clock) as tracker:
        one = tracker.create("a", user_id="u", thread_id="t").id
        for event, seconds in (
            (None, 1.0), ("start", 2.0), ("think", 4.0), ("call_model", 8.0), ("progress", 16.0), ("think", 0.5),
            ("await_input", 32.0), ("receive_input", 0.25), ("process_results", 64.0), ("finish", 128.0),
        ):  # fmt: skip
            if event:
                tracker.fire(one, event, fence=tracker.get(one).fence)
            clock.advance(seconds)
        spent = {
            "created": 1.0, "starting": 2.0, "thinking": 4.75, "calling_model": 24.0, "awaiting_input": 32.0,
            "processing_results": 64.0, "completing": 128.0,
        }  # fmt: skip
        assert tracker.durations(one) == spent
        clock.advance(1.0)
        assert tracker.durations(one)["completing"] == 129.0
        tracker.fire(one, "complete", fence=tracker.get(one).fence)
        clock.advance(3600.0)
        assert tracker.durations(one) == spent | {"completing": 129.0}
        assert tracker.get(one).ended_at == clock.wall() - 3600.0


def test_a_wall_clock_that_jumps_back_does_not_turn_a_journal_round(tracker, clock):
    """A journal's instants never go back, whatever an administrator does to the clock."""
    one = begun(tracker)
    clock.jump(-7200.0)
    tracker.fire(one, "think", fence=tracker.get(one).fence)
    instants = [receipt.at for receipt in tracker.history(one)]
    assert instants == sorted(instants)
    assert min(tracker.durations(one).values()) >= 0


# --- parents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "state_"), [("cancel", "cancelling"), ("fail", "failed"), ("time_out", "timed_out")]
)
def test_a_parents_end_reaches_its_children_and_theirs(event, state_, either):
    """When a parent is called off or ends badly its children are called off, and their children too, over all pages."""
    parent = begun(either)
    child = begun(either, parent_id=parent)
    grandchild = either.create("a", user_id="ada", thread_id="t", parent_id=child).id
    done = begun(either, parent_id=parent)
    finish(either, done)
    many = [either.create("a", user_id="ada", thread_id="t", parent_id=parent).id for _ in range(105)]
    stranger = begun(either)
    either.fire(parent, event, fence=either.get(parent).fence)
    assert either.get(parent).state == state_
    assert either.get(child).state == "cancelling"
    assert either.get(grandchild).state == "cancelled"
    assert {either.get(one).state for one in many} == {"cancelled"}
    assert either.get(done).state == "completed"
    assert either.get(stranger).state == "starting"
    assert either.history(grandchild)[-1].payload["by"] == child


def test_children_of_another_machine_are_called_off_too(url):
    """A child on a machine of its own is called off by that machine's cancel, if it has one."""
    with fresh_tracker(url, machines=[ERRAND]) as tracker:
        parent = begun(tracker)
        errand = tracker.create("a", user_id="ada", thread_id="t", machine="errand", parent_id=parent).id
        tracker.fire(parent, "fail", fence=tracker.get(parent).fence)
        assert tracker.get(errand).state == "back"
        assert tracker.history(errand)[-1].payload["by"] == parent


@pytest.mark.parametrize("event", ["cancel", "fail"])
def test_an_ended_parent_starts_no_children(event, either):
    """A parent that has ended, or was told to stop, cannot start children any more."""
    parent = begun(either)
    either.fire(parent, event, fence=either.get(parent).fence)
    with pytest.raises(Refused, match="cannot start children") as caught:
        either.create("a", user_id="ada", thread_id="t", parent_id=parent)
    assert caught.value.reason == "terminal"
    assert len(either.find()) == 1


def test_a_child_is_not_born_while_its_parent_ends(either, monkeypatch):
    """A child whose parent ends between the check and the commit is never there, and its creator learns why."""
    parent = begun(either)
    registry = either._registry
    commit = registry.committer.commit

    def late(command):
        if command.born is not None:
            monkeypatch.undo()
            either.fire(parent, "fail", fence=either.get(parent).fence)
        commit(command)

    monkeypatch.setattr(registry.committer, "commit", late)
    with pytest.raises(Refused, match="cannot start children") as caught:
        either.create("a", user_id="ada", thread_id="t", parent_id=parent)
    assert (caught.value.state, caught.value.version) == ("failed", 2)
    assert [one.state for one in either.find()] == ["failed"]


def test_a_child_is_not_born_while_its_parent_is_pruned(either, monkeypatch):
    """A child whose parent is deleted between the check and the commit is never there either."""
    parent = begun(either)
    registry = either._registry
    commit = registry.committer.commit

    def late(command):
        if command.born is not None:
            monkeypatch.undo()
            either.fire(parent, "fail", fence=either.get(parent).fence)
            assert either.prune(keep=0) == 1
        commit(command)

    monkeypatch.setattr(registry.committer, "commit", late)
    with pytest.raises(UnknownExecution):
        either.create("a", user_id="ada", thread_id="t", parent_id=parent)
    assert either.find() == []


def test_an_effect_that_fails_does_not_deny_the_transition(either, monkeypatch, caplog):
    """When the children cannot be reached the parent's transition stands, its receipt is returned, and it is logged."""
    parent = begun(either)
    begun(either, parent_id=parent)

    def broken(_query):
        raise StoreUnavailable("gone")

    monkeypatch.setattr(either._registry.store, "find", broken)
    assert either.fire(parent, "fail", fence=either.get(parent).fence).target == "failed"
    assert "could not carry out" in caplog.text
