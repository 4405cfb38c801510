"""The committer's own promises: nobody in a batch is forgotten, a lone caller pays no more than it must."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fsm import StoreUnavailable, UnknownExecution
from fsm.registry import committer
from fsm.stores import Conflict
from fsm.testing import fresh_tracker
from tests.support.inside import registry_of, store_of
from tests.support.tracker_tools import begun


class Watched:
    """Counts what is asked of a store, and on which thread it is asked."""

    def __init__(self, store, monkeypatch) -> None:
        self.loads: list[str] = []
        self.batches: list[int] = []
        self.threads: list[threading.Thread] = []
        load, append = store.load, store.append

        def loading(execution_id):
            self.loads.append(execution_id)
            return load(execution_id)

        def appending(steps):
            self.batches.append(len(steps))
            self.threads.append(threading.current_thread())
            return append(steps)

        monkeypatch.setattr(store, "load", loading)
        monkeypatch.setattr(store, "append", appending)


def orders(tracker, *pairs):
    return [registry_of(tracker).order(one, event, {}) for one, event in pairs]


def test_many_commands_take_as_many_transactions_as_they_must(either, monkeypatch):
    """However many commands there are, each is carried out, and so many share a transaction."""
    monkeypatch.setattr(committer, "MAX_BATCH", 2)
    ids = [begun(either) for _ in range(5)]
    watched = Watched(store_of(either), monkeypatch)
    commands = orders(either, *((one, "think") for one in ids))
    registry_of(either).committer.commit_all(commands)
    assert watched.batches == [2, 2, 1]
    assert {either.get(one).state for one in ids} == {"thinking"}
    assert all(command.outcome is not None for command in commands)


def test_what_another_process_moved_delays_nobody_else(url):
    """In a batch of which one step conflicts the others are committed, and that one is decided anew."""
    with fresh_tracker(url) as tracker:
        moved, other = begun(tracker), begun(tracker)
        with fresh_tracker(url) as process:
            process.fire(moved, "progress", fence=process.get(moved).fence)
        commands = orders(tracker, (moved, "think"), (other, "think"))
        registry_of(tracker).committer.commit_all(commands)
        assert [command.outcome.version for command in commands] == [3, 2]


def test_who_is_always_too_late_is_told(either, monkeypatch):
    """A step that conflicts again and again is given up with an error that says so: nothing was written."""
    one = begun(either)
    rounds = []

    def conflicts(steps):
        rounds.append(1)
        return [Conflict(step.after.identity.id, 1) for step in steps]

    monkeypatch.setattr(store_of(either), "append", conflicts)
    with pytest.raises(StoreUnavailable, match="other processes were faster") as caught:
        either.fire(one, "think", fence=either.get(one).fence)
    assert caught.value.committed is False
    assert len(rounds) == committer.MAX_ROUNDS


def test_events_of_one_execution_share_a_transaction(either, monkeypatch):
    """In a batch a step is decided on the record as the step before leaves it, not on the store's."""
    one = begun(either)
    watched = Watched(store_of(either), monkeypatch)
    commands = orders(either, (one, "think"), (one, "call_model"), (one, "think"), (one, "finish"))
    registry_of(either).committer.commit_all(commands)
    assert watched.batches == [3]
    assert commands[-1].outcome.reason == "not_allowed"
    assert either.get(one).state == "thinking"


def test_a_known_execution_is_not_read_again(url, monkeypatch):
    """A process that alone drives an execution on disk reads it once; a refusal is given on a fresh record."""
    with fresh_tracker(url) as tracker:
        one = begun(tracker)
        watched = Watched(store_of(tracker), monkeypatch)
        for event in ("think", "call_model", "think", "progress"):
            tracker.fire(one, event, fence=1)
        assert watched.loads == []
        commands = orders(tracker, (one, "finish"))
        registry_of(tracker).committer.commit_all(commands)
        assert commands[0].outcome.reason == "not_allowed"
        assert watched.loads == [one]


def test_a_lone_caller_commits_on_its_own_thread_again(url, monkeypatch):
    """After a burst of concurrent callers a lone one pays no hop to the committer's thread."""

    async def burst(tracker):
        await asyncio.gather(*(tracker.aio.create("a", user_id="u", thread_id="t") for _ in range(20)))

    with fresh_tracker(url) as tracker:
        one = begun(tracker)
        asyncio.run(burst(tracker))
        while registry_of(tracker).committer._busy:  # until its thread waits for more
            threading.Event().wait(0.001)
        watched = Watched(store_of(tracker), monkeypatch)
        tracker.fire(one, "think", fence=tracker.get(one).fence)
        assert watched.threads == [threading.current_thread()]


def test_closing_commits_what_is_queued(url):
    """What was queued when the registry is closed is committed, and its callers get their receipts."""
    with fresh_tracker(url) as tracker:
        ids = [begun(tracker) for _ in range(3)]
        store, mine = store_of(tracker), registry_of(tracker).committer
        append = store.append
        began, go = threading.Event(), threading.Event()

        def held(steps):
            began.set()
            assert go.wait(60)
            return append(steps)

        store.append = held
        receipts = []
        threads = [
            threading.Thread(
                target=lambda one=one: receipts.append(
                    tracker.fire(one, "think", fence=tracker.get(one).fence)
                )
            )
            for one in ids
        ]
        threads[0].start()
        assert began.wait(60)
        for thread in threads[1:]:
            thread.start()
        while len(mine._queue) < 2 or mine._thread is None:
            threading.Event().wait(0.001)
        closing = threading.Thread(target=mine.close)
        closing.start()
        go.set()
        for thread in (*threads, closing):
            thread.join(60)
        assert {receipt.target for receipt in receipts} == {"thinking"}
        assert len(receipts) == 3


def test_only_an_earlier_deadline_wakes_the_sweeper(either):
    """A commit that is due before the sweeper wakes up calls it; one that is due then or later does not."""
    mine = registry_of(either).committer
    one = begun(either, timeouts={"phase_s": 100.0, "phases": {"thinking": 50.0, "calling_model": 200.0}})
    calls = []
    mine.on_earlier = calls.append
    now = registry_of(either).now()
    mine.wake_at = now + 50.0
    either.fire(one, "think", fence=either.get(one).fence)  # due exactly then
    either.fire(one, "call_model", fence=either.get(one).fence)
    assert calls == []
    mine.wake_at = now + 50.5
    either.fire(one, "think", fence=either.get(one).fence)
    assert calls == [now + 50.0]


@pytest.mark.parametrize(("owner", "stranger"), [("ada", "bob"), ("bob", "ada")])
def test_users_are_told_apart_by_their_name(owner, stranger, url):
    """A user is whoever has the same name: neither the text's identity nor its order matters."""
    with fresh_tracker(url) as tracker:
        one = begun(tracker, user_id=owner)
        tracker.for_user("".join(list(owner))).fire(one, "think", fence=1)
        for _ in range(2):
            with pytest.raises(UnknownExecution):
                tracker.for_user(stranger).fire(one, "progress")
        assert tracker.get(one).version == 2
