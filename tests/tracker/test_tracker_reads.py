"""What the tracker tells: pages, counts, allowed events, times; and what a parent's end does to its children."""

from __future__ import annotations

import asyncio
import threading
from random import Random

import pytest

from fsm import EXECUTION, Execution, InvalidArgument, Refused, StoreUnavailable, UnknownExecution
from fsm.clock import ManualClock
from fsm.testing import fresh_tracker
from tests.support.tracker_tools import ERRAND, begun, finish

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


@pytest.mark.parametrize("store", ["memory://", "sqlite"])
def test_a_pager_sees_what_others_create_under_earlier_ids(store, url):
    """Whoever pages to the end while others create sees each execution once, however late its commit is."""
    with fresh_tracker(url if store == "sqlite" else store) as tracker:
        born = [
            tracker._registry.birth(
                "a", user_id="u", thread_id="t", timeouts=None, retry=None, parent_id=None, retry_of=None,
                metadata=None, machine=None,
            )
            for _ in range(30)
        ]  # fmt: skip
        Random(7).shuffle(born)
        seen: list[str] = []
        for begin in range(0, 30, 5):
            tracker._registry.committer.commit_all(born[begin : begin + 5])
            while page := tracker.find(limit=2, after=seen[-1] if seen else None):
                seen += [one.id for one in page]
            if begin == 10:
                tracker.fire(seen[-1], "cancel")
                tracker.prune(older_than_s=0)  # the page's last one is gone
        assert seen == [command.request.execution_id for command in born]


@pytest.mark.parametrize(
    "filters",
    [{}, {"user_id": "u"}, {"thread_id": "t"}, {"agent": "a"}, {"parent_id": "p"}, {"state": "created"}],
)
def test_a_page_is_read_from_an_index_in_its_order(url, filters):
    """A page of a SQLite file costs what it holds: nothing is scanned or sorted, however many others there are."""
    with fresh_tracker(url) as tracker:
        one = tracker.create("a", user_id="u", thread_id="t")
        store = tracker._registry.store
        plans, real = [], store._rows

        def explained(sql, values=()):
            if "FROM executions" in sql and "ORDER BY born, id" in sql:
                plans.extend(row[3] for row in real(f"EXPLAIN QUERY PLAN {sql}", values))
            return real(sql, values)

        store._rows = store._pages._rows = explained
        assert tracker.find(after=one.id, **filters) == []
        assert plans
        assert all(plan.startswith("SEARCH executions USING INDEX executions_") for plan in plans), plans
        assert all("(born,id)>" in plan for plan in plans), plans


# --- keys of creations --------------------------------------------------------------------------------------------


def test_a_creation_with_a_key_is_safe_to_repeat(either):
    """The same key and arguments return the execution that was created first, as it is now."""
    options = {
        "user_id": "u",
        "thread_id": "t",
        "metadata": {"a": 1},
        "timeouts": {"queue_s": 5.0},
        "key": "k",
    }
    first = either.create("pay", **options)
    either.fire(first.id, "start", key="k")  # a key of its own
    assert either.create("pay", **options) == either.get(first.id)
    assert either.create("pay", **{**options, "user_id": "v"}).id != first.id
    assert either.create("pay", **{**options, "key": "l"}).id != first.id
    assert len(either.find()) == 3
    assert either.history(first.id)[0].key is None


@pytest.mark.parametrize(
    "other", [{"thread_id": "x"}, {"metadata": {"a": 2}}, {"timeouts": None}, {"retry": {"attempts_max": 2}}]
)
def test_a_key_that_created_something_else_is_refused(either, other):
    """The same key with other arguments is a typed conflict that names them, and creates nothing."""
    options = {
        "user_id": "u",
        "thread_id": "t",
        "metadata": {"a": 1},
        "timeouts": {"queue_s": 5.0},
        "key": "k",
    }
    first = either.create("pay", **options)
    with pytest.raises(Refused, match="take a new key") as refused:
        either.create("pay", **{**options, **other})
    assert (refused.value.reason, refused.value.refusal.execution_id) == ("duplicate", first.id)
    assert [one.id for one in either.find()] == [first.id]
    with pytest.raises(InvalidArgument, match="key"):
        either.create("pay", user_id="u", thread_id="t", key="")


def test_an_ambiguous_creation_can_be_repeated(either, monkeypatch):
    """When the answer to a creation is lost, the same call with the same key returns what was created."""
    store = either._registry.store
    real, lost = store.append, []

    def append(steps):
        outcomes = real(steps)
        if not lost:
            lost.append(outcomes)
            raise StoreUnavailable("the answer was lost", committed=None)
        return outcomes

    monkeypatch.setattr(store, "append", append)
    with pytest.raises(StoreUnavailable):
        either.create("pay", user_id="u", thread_id="t", key="k")
    [[receipt]] = lost
    assert either.create("pay", user_id="u", thread_id="t", key="k").id == receipt.execution_id
    assert len(either.find()) == 1


def test_a_child_can_be_created_again_after_its_parents_end(either):
    """A repeated creation returns the child although its parent has ended since."""
    parent = begun(either)
    options = {"user_id": "ada", "thread_id": "t", "parent_id": parent, "key": "k"}
    child = either.create("a", **options)
    either.fire(parent, "fail", fence=either.get(parent).fence)
    assert either.create("a", **options).id == child.id
    with pytest.raises(Refused, match="parent"):
        either.create("a", **{**options, "key": "l"})


def test_callers_of_one_key_at_once_create_one_execution(either):
    """Of many callers with one key at the same time all are given the same execution; asyncio callers too."""
    made = []
    threads = [
        threading.Thread(
            target=lambda: made.append(either.create("a", user_id="u", thread_id="t", key="k").id)
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def again():
        calls = [either.aio.create("a", user_id="u", thread_id="t", key="k") for _ in range(8)]
        return [one.id for one in await asyncio.gather(*calls)]

    assert len({*made, *asyncio.run(again())}) == 1
    assert len(either.find()) == 1
    assert either.for_user("u").create("a", thread_id="t", key="k").id == made[0]


# --- limits -------------------------------------------------------------------------------------------------------


def test_the_limits_that_apply_are_shown(either):
    """`timeouts` are the limits that hold, the machine's included; which ones were brought can be told."""
    plain = either.create("a", user_id="u", thread_id="t")
    assert plain.timeouts == EXECUTION.timeouts
    assert plain.timeouts.model_fields_set == set()
    own = either.create("a", user_id="u", thread_id="t", timeouts={"phase_s": 5.0, "queue_s": None})
    assert (own.timeouts.total_s, own.timeouts.phase_s, own.timeouts.queue_s) == (86_400.0, 5.0, None)
    assert own.timeouts.model_dump(exclude_unset=True) == {"phase_s": 5.0, "queue_s": None}
    assert Execution.model_validate_json(own.model_dump_json()).timeouts == own.timeouts


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
