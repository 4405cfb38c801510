"""Children of parents that end while the process that ends them dies: nobody is left running for nobody."""

from __future__ import annotations

import threading

import pytest

from fsm.clock import ManualClock
from fsm.core.payloads import PAYLOADS
from fsm.errors import Refused, StoreUnavailable
from fsm.lifecycles import EXECUTION
from fsm.machine.grammar import row, state
from fsm.machine.machine import Machine
from fsm.registry import registry as registry_module
from fsm.registry.registry import Registry
from fsm.stores.base import Order
from fsm.tracker import sweeper
from fsm.tracker.process import fresh_tracker
from tests.support.tracker_tools import begun, finish


class Killed(BaseException):
    """What a process feels of its end."""


def child_of(tracker, parent_id):
    return tracker.create("a", user_id="ada", thread_id="t", parent_id=parent_id).id


def die_after_commit(tracker, parent_id, event, monkeypatch):
    """Fire, and die between the parent's commit and its children's."""

    def die(_registry, _command):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "carry_out", die)
        with pytest.raises(Killed):
            tracker.fire(parent_id, event, fence=tracker.get(parent_id).fence)


def states(tracker, ids):
    return [tracker.get(one).state for one in ids]


@pytest.mark.parametrize("event", ["cancel", "fail", "time_out", "lapse"])
def test_what_a_dead_process_left_undone_is_repeated(either, event, monkeypatch):
    """A process that dies between a parent's end and its children's cancel is made up for by the next sweep."""
    parent = begun(either)
    owned, waiting, done = (
        begun(either, parent_id=parent),
        child_of(either, parent),
        begun(either, parent_id=parent),
    )
    grandchild = child_of(either, owned)
    finish(either, done)
    die_after_commit(either, parent, event, monkeypatch)
    assert states(either, [owned, waiting, grandchild]) == ["starting", "created", "created"]
    assert either.sweep().orphans == 2
    assert states(either, [owned, waiting, grandchild, done]) == [
        "cancelling", "cancelled", "cancelled", "completed",
    ]  # fmt: skip
    assert either.history(waiting)[-1].payload == {
        "reason": f"its parent was ended by {event!r}",
        "by": parent,
    }
    before = either.position()
    assert either.sweep().orphans == 0
    assert either.position() == before


def test_another_process_repeats_it(url, monkeypatch):
    """The order is in the store: a sweeper of another process carries it out."""
    with fresh_tracker(url) as tracker:
        parent = begun(tracker)
        children = [child_of(tracker, parent) for _ in range(3)]
        die_after_commit(tracker, parent, "fail", monkeypatch)
    with fresh_tracker(url) as another:
        assert another.sweep().orphans == 3
        assert set(states(another, children)) == {"cancelled"}


def test_an_end_that_nobody_heard_of_reaches_the_children(either, monkeypatch):
    """When nobody can tell whether the parent's end was committed, and it was, its children end with the next sweep."""
    parent = begun(either)
    child = child_of(either, parent)
    store = either._registry.store
    append = store.append

    def breaks_on_the_way_back(steps):
        append(steps)
        raise StoreUnavailable("the answer was lost", committed=None)

    with monkeypatch.context() as patch:
        patch.setattr(store, "append", breaks_on_the_way_back)
        with pytest.raises(StoreUnavailable):
            either.fire(parent, "fail", fence=either.get(parent).fence)
    assert states(either, [parent, child]) == ["failed", "created"]
    assert either.sweep().orphans == 1
    assert either.get(child).state == "cancelled"


def test_a_sweep_that_fails_halfway_is_followed_by_the_next(either, monkeypatch):
    """An order is done when the last child is: a store that fails in between leaves it to the next sweep."""
    parent = begun(either)
    children = [child_of(either, parent) for _ in range(250)]
    die_after_commit(either, parent, "fail", monkeypatch)
    store = either._registry.store
    find = store.find

    def fails_at_the_second(query):
        if query.after is not None:
            raise StoreUnavailable("gone")
        return find(query)

    with monkeypatch.context() as patch:
        patch.setattr(store, "find", fails_at_the_second)
        with pytest.raises(StoreUnavailable):
            either.sweep()
    left = states(either, children).count("created")
    assert 0 < left < 250
    assert either.sweep().orphans == left
    assert set(states(either, children)) == {"cancelled"}
    assert store.orders("", 10) == []


def test_children_that_end_by_themselves_meanwhile_are_left_alone(either, monkeypatch):
    """A child that ends, or is told to stop, between the look and the cancel is refused quietly and not counted."""
    parent = begun(either)
    ends, stops = begun(either, parent_id=parent), begun(either, parent_id=parent)
    die_after_commit(either, parent, "fail", monkeypatch)
    store = either._registry.store
    find = store.find

    def late(query):
        page = find(query)
        monkeypatch.setattr(store, "find", find)
        finish(either, ends)
        either.fire(stops, "cancel", by="ada")
        return page

    monkeypatch.setattr(store, "find", late)
    assert either.sweep().orphans == 0
    assert states(either, [ends, stops]) == ["completed", "cancelling"]
    assert either.history(stops)[-1].payload == {"by": "ada"}
    assert store.orders("", 10) == []


def test_children_of_a_completed_parent_go_on(either):
    """A parent that completes orders nothing: the table says so, and no sweep says otherwise."""
    parent = begun(either)
    child = begun(either, parent_id=parent)
    finish(either, parent)
    assert either.sweep() == (0, 0, 0, 0, 0)
    assert either.get(child).state == "starting"


def test_orders_are_carried_out_page_by_page(either, monkeypatch):
    """One sweep carries out every order, however many pages of them there are."""
    monkeypatch.setattr(sweeper, "BATCH", 2)
    children = []
    for _ in range(5):
        parent = begun(either)
        children.append(child_of(either, parent))
        die_after_commit(either, parent, "fail", monkeypatch)
    assert either.sweep().orphans == 5
    assert set(states(either, children)) == {"cancelled"}


def test_each_order_is_tried_once_in_a_sweep(either, monkeypatch):
    """Orders that cannot be carried out now are left to the next sweep: none is tried twice, none is passed over."""
    monkeypatch.setattr(sweeper, "BATCH", 3)
    parents = []
    for _ in range(7):
        parents.append(begun(either))
        child_of(either, parents[-1])
        die_after_commit(either, parents[-1], "fail", monkeypatch)
    tried = []
    monkeypatch.setattr(either._registry, "call_off", lambda order: tried.append(order.execution_id) or 0)
    assert either.sweep().orphans == 0
    assert tried == parents


def test_sweepers_at_the_same_time_cancel_each_child_once(url, monkeypatch):
    """Any number of sweepers may find the same order: each child is cancelled once, by one of them."""
    with fresh_tracker(url) as tracker:
        parent = begun(tracker)
        children = [child_of(tracker, parent) for _ in range(120)]
        die_after_commit(tracker, parent, "fail", monkeypatch)
        done = []
        threads = [threading.Thread(target=lambda: done.append(tracker.sweep().orphans)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(done) == 120
        assert all(
            [one.event for one in tracker.history(child)] == ["create", "cancel"] for child in children
        )


@pytest.mark.parametrize("store", ["memory://", "sqlite"])
def test_a_sweep_does_not_look_at_healthy_families(store, url, monkeypatch):
    """Open children of open parents, and what has no parent, cost a sweep nothing."""
    with fresh_tracker(url if store == "sqlite" else store, clock=ManualClock()) as tracker:
        for _ in range(5):
            parent = begun(tracker)
            child_of(tracker, parent)

        def looks(_self, *_arguments):
            raise AssertionError("a sweep looked at executions without a reason")

        kind = type(tracker._registry.store)
        for name in ("find", "load"):
            monkeypatch.setattr(kind, name, looks)
        assert tracker.sweep() == (0, 0, 0, 0, 0)


def test_the_search_for_orders_is_a_search_by_key(url):
    """On SQLite a page of orders is a stretch of their primary key: no scan, no sorting."""
    with fresh_tracker(url) as tracker:
        plan = tracker._registry.store.database.rows(
            "EXPLAIN QUERY PLAN SELECT execution_id, version, event FROM orders "
            "WHERE execution_id > ? ORDER BY execution_id LIMIT ?", ("", 500),
        )  # fmt: skip
        assert [row[-1] for row in plan] == ["SEARCH orders USING PRIMARY KEY (execution_id>?)"]


def test_a_child_that_this_process_cannot_cancel_is_left_to_one_that_can(url, monkeypatch, caplog):
    """A sweeper without the payload of a child's machine leaves the order there, and goes on with the others."""
    payload = PAYLOADS["cancel"]
    monkeypatch.setitem(PAYLOADS, "farewell", payload)
    machine = Machine(
        name="errand",
        initial="open",
        states=(state("open", "running"), state("gone", "terminal")),
        transitions=(row("open", "cancel", "gone"),),
        payloads=(("cancel", "farewell"),),
    )
    with fresh_tracker(url, machines=[EXECUTION, machine]) as tracker:
        first, second = begun(tracker), begun(tracker)
        strange = tracker.create("a", user_id="ada", thread_id="t", parent_id=first, machine="errand").id
        child = child_of(tracker, second)
        for parent in (first, second):
            die_after_commit(tracker, parent, "fail", monkeypatch)
    with monkeypatch.context() as patch:
        patch.delitem(PAYLOADS, "farewell")
        with fresh_tracker(url) as stranger:
            assert stranger.sweep().orphans == 1
            assert states(stranger, [strange, child]) == ["open", "cancelled"]
            assert stranger._registry.store.orders("", 10) == [Order(first, 2, "fail")]
    assert "could not be carried out" in caplog.text
    with fresh_tracker(url, machines=[EXECUTION, machine]) as tracker:
        assert tracker.sweep().orphans == 1
        assert tracker.get(strange).state == "gone"


def test_an_end_without_children_writes_once(url, monkeypatch):
    """Where there are no children, an end is one transaction, as without the order."""
    with fresh_tracker(url) as tracker:
        alone = begun(tracker)
        store = tracker._registry.store
        write = store.database.write
        begun_ = []

        def counted(work):
            begun_.append(1)
            return write(work)

        monkeypatch.setattr(store.database, "write", counted)
        tracker.fire(alone, "fail", fence=tracker.get(alone).fence)
        assert len(begun_) == 1


# --- deep and wide ------------------------------------------------------------------------------------------------


def chain(tracker, length, monkeypatch):
    """A parent, its child, the child's child …; longer than `create` allows, as it was allowed once."""
    with monkeypatch.context() as patch:
        patch.setattr(registry_module, "MAX_DEPTH", length)
        ids = [begun(tracker)]
        while len(ids) < length:
            ids.append(child_of(tracker, ids[-1]))
    return ids


def told_the_same(tracker, ids):
    """The record and the journal of each say the same."""
    rows = {(row.execution_id, row.version) for row in tracker.subscribe(after=0, follow=False)}
    for one in ids:
        history = tracker.history(one)
        assert tracker.get(one).version == history[-1].version
        assert {(one, receipt.version) for receipt in history} <= rows


@pytest.mark.parametrize("length", [1_200, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("store", ["memory://", "sqlite"])
def test_a_chain_of_any_length_is_cancelled_at_once(store, url, length, monkeypatch):
    """However deep a family is, the end of its root reaches the last one, and state and journal agree."""
    where = f"{url}?synchronous=NORMAL" if store == "sqlite" else store
    with fresh_tracker(where, clock=ManualClock()) as tracker:
        ids = chain(tracker, length, monkeypatch)
        tracker.fire(ids[0], "fail", fence=tracker.get(ids[0]).fence)
        assert tracker.counts() == {"failed": 1, "cancelled": length - 1}
        assert tracker._registry.store.orders("", 10) == []
        told_the_same(tracker, ids[:: length // 50])


def test_a_chain_is_cancelled_from_any_depth_of_the_stack(either, monkeypatch):
    """A caller that is itself deep in calls cancels a deep family all the same."""
    ids = chain(either, 150, monkeypatch)

    def deep(left):
        return either.fire(ids[0], "fail", fence=either.get(ids[0]).fence) if not left else deep(left - 1)

    deep(500)
    assert either.counts() == {"failed": 1, "cancelled": 149}


@pytest.mark.parametrize("many", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("store", ["memory://", "sqlite"])
def test_a_parent_of_many_is_cancelled_page_by_page(store, url, many):
    """However many children an execution has, its end reaches all of them, and theirs."""
    where = f"{url}?synchronous=NORMAL" if store == "sqlite" else store
    with fresh_tracker(where, clock=ManualClock()) as tracker:
        root = begun(tracker)
        registry = tracker._registry
        births = [
            registry.birth(
                "a", user_id="ada", thread_id="t", timeouts=None, retry=None, parent_id=root, retry_of=None,
                metadata=None, machine=None,
            )
            for _ in range(many)
        ]  # fmt: skip
        registry.committer.commit_all(births)
        grandchild = child_of(tracker, births[many // 2].request.execution_id)
        tracker.fire(root, "fail", fence=tracker.get(root).fence)
        assert tracker.counts() == {"failed": 1, "cancelled": many + 1}
        assert tracker.get(grandchild).state == "cancelled"


def test_a_sweeper_cancels_a_chain_that_a_dead_process_has_left(either, monkeypatch):
    """The order that a dead process has left reaches the last of a deep family in one sweep."""
    ids = chain(either, 120, monkeypatch)
    die_after_commit(either, ids[0], "fail", monkeypatch)
    assert either.sweep().orphans == 1
    assert either.counts() == {"failed": 1, "cancelled": 119}


def test_what_one_order_brings_along_has_a_limit(either, monkeypatch):
    """A family that is larger than the limit of one call is cancelled by the sweeps that follow."""
    monkeypatch.setattr(registry_module, "MAX_ORDERS", 10)
    ids = chain(either, 60, monkeypatch)
    either.fire(ids[0], "fail", fence=either.get(ids[0]).fence)
    assert either.counts()["cancelled"] < 59
    for _ in range(6):
        either.sweep()
    assert either.counts() == {"failed": 1, "cancelled": 59}


def test_a_store_that_fails_below_is_made_up_for(either, monkeypatch):
    """A store that fails while the children's children are cancelled leaves the rest to the next sweep."""
    ids = chain(either, 20, monkeypatch)
    store = either._registry.store
    find, asked = store.find, []

    def fails_later(query):
        asked.append(query.parent_id)
        if len(asked) > 7:
            raise StoreUnavailable("gone")
        return find(query)

    with monkeypatch.context() as patch:
        patch.setattr(store, "find", fails_later)
        either.fire(ids[0], "fail", fence=either.get(ids[0]).fence)
    assert either.get(ids[6]).state == "cancelled"
    assert either.get(ids[-1]).state == "created"
    either.sweep()
    assert either.counts() == {"failed": 1, "cancelled": 19}


def test_a_family_has_a_limit_of_depth(either, monkeypatch):
    """A child that is too deep is refused with its reason, nothing is created, and a sibling higher up still is."""
    monkeypatch.setattr(registry_module, "MAX_DEPTH", 3)
    ids = [begun(either)]
    for _ in range(3):
        ids.append(child_of(either, ids[-1]))
    with pytest.raises(Refused, match="3 parents above it") as caught:
        child_of(either, ids[-1])
    assert (caught.value.reason, caught.value.execution_id, caught.value.event) == (
        "limit",
        ids[-1],
        "create",
    )
    assert len(either.find()) == 4
    child_of(either, ids[2])


def test_the_limit_of_depth_holds_over_processes(url, monkeypatch):
    """The depth is kept with the execution: another process counts on from there, without looking at the parents."""
    monkeypatch.setattr(registry_module, "MAX_DEPTH", 2)
    with fresh_tracker(url) as tracker:
        child = child_of(tracker, child_of(tracker, begun(tracker)))
    with fresh_tracker(url) as another:
        store = another._registry.store
        loads = []
        load = store.load
        monkeypatch.setattr(store, "load", lambda one: loads.append(one) or load(one))
        with pytest.raises(Refused, match="parents above it"):
            child_of(another, child)
        assert loads == [child]
