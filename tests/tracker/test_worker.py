"""Workers, their one lease, and what becomes of their work when they are lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from fsm.clock import ManualClock
from fsm.core.records import Retry
from fsm.errors import ConfigurationError, InvalidArgument, LeaseLost, Refused
from fsm.stores.base import DEPARTED, WorkerRow
from fsm.stores.sqlite import SqliteStore
from fsm.tracker.process import fresh_tracker
from fsm.tracker.sweeper import REMEMBER_S
from fsm.tracker.worker import Worker


@pytest.fixture(params=["memory", "sqlite"])
def store(request, url):
    return "memory://" if request.param == "memory" else url


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def tracker(store, clock):
    with fresh_tracker(store, clock=clock) as one:
        yield one


def claimed(tracker, **options):
    execution = tracker.create("a", user_id="u", thread_id="t", **options)
    return execution.id, tracker.fire(execution.id, "start").fence


def lone_worker(tracker, ttl_s=10.0):
    """A worker whose thread does not run: the test renews by hand."""
    worker = Worker(tracker._registry, ttl_s)
    tracker._registry.worker = worker
    return worker


def test_what_a_process_claims_belongs_to_its_worker(tracker):
    """While a worker is registered, what this process claims is owned by it."""
    with tracker.worker(ttl_s=10.0) as worker:
        execution_id, _ = claimed(tracker)
        assert tracker.get(execution_id).owner == worker.id == tracker.worker_id
    assert tracker.worker_id != worker.id


def test_lost_work_gets_another_attempt(tracker, clock):
    """The work of a lost worker goes back to the queue while an attempt is left, and is dead after the last."""
    lone_worker(tracker)
    execution_id, _ = claimed(tracker, retry=Retry(attempts_max=2))
    clock.advance(10.1)
    assert tracker.sweep()[1:3] == (1, 1)
    execution = tracker.get(execution_id)
    assert (execution.state, execution.attempt, execution.owner) == ("queued", 1, None)
    lone_worker(tracker)
    tracker.fire(execution_id, "start")
    assert tracker.get(execution_id).attempt == 2
    clock.advance(10.1)
    assert tracker.sweep().lapsed == 1
    assert tracker.get(execution_id).state == "dead"


def test_attempts_are_counted_exactly(tracker, clock):
    """An execution with n attempts is tried n times, not one more and not one less."""
    execution = tracker.create("a", user_id="u", thread_id="t", retry=Retry(attempts_max=3))
    tried = 0
    while tracker.get(execution.id).state != "dead":
        lone_worker(tracker)
        tracker.fire(execution.id, "start")
        tried += 1
        clock.advance(10.1)
        assert tracker.sweep().lapsed == 1
    assert tried == 3


def test_a_worker_that_renews_is_never_lost(tracker, clock):
    """A worker that renews in time keeps what it owns, however long it takes."""
    worker = lone_worker(tracker)
    execution_id, _ = claimed(tracker)
    for _ in range(20):
        clock.advance(9.9)
        assert tracker.sweep() == (0, 0, 0, 0, 0)
        worker.renew()
        assert tracker.sweep() == (0, 0, 0, 0, 0)
    assert tracker.get(execution_id).state == "starting"


def test_a_lost_worker_stays_lost(tracker, clock):
    """A worker that was found lost cannot renew any more, even before anything was taken from it."""
    worker = lone_worker(tracker)
    execution_id, _ = claimed(tracker)
    clock.advance(10.1)
    assert tracker._registry.store.lose(tracker._registry.now()) == [worker.id]
    with pytest.raises(LeaseLost, match=r"tracker\.worker\(\)"):
        worker.renew()
    with pytest.raises(LeaseLost):
        claimed(tracker)
    assert tracker.sweep().lapsed == 1
    assert tracker.get(execution_id).state == "dead"


def test_a_late_write_from_a_lost_lease_is_refused(tracker, clock):
    """A worker that comes back after its work was taken away is refused as fenced, whatever it tries."""
    lone_worker(tracker)
    execution_id, fence = claimed(tracker, retry=Retry(attempts_max=2))
    clock.advance(10.1)
    tracker.sweep()
    lone_worker(tracker)  # the zombie does not know; its replacement is another worker
    for event in ("think", "progress", "fail", "cancel", "time_out", "start"):
        with pytest.raises(Refused) as refused:
            tracker.fire(execution_id, event, fence=fence)
        assert refused.value.reason == "fenced"
    again = tracker.fire(execution_id, "start").fence
    with pytest.raises(Refused, match="fenced"):
        tracker.fire(execution_id, "think", fence=fence)
    tracker.fire(execution_id, "think", fence=again)


def test_a_sweeper_that_dies_halfway_is_followed_by_the_next(tracker, clock):
    """Work of a lost worker that a sweeper did not get to is taken away by the next sweep."""
    worker = lone_worker(tracker)
    ids = [claimed(tracker)[0] for _ in range(5)]
    clock.advance(10.1)
    tracker._registry.store.lose(tracker._registry.now())  # marked, and then the sweeper died
    assert tracker.sweep().lapsed == 5
    assert {tracker.get(one).state for one in ids} == {"dead"}
    assert [row.lost for row in tracker._registry.store.workers() if row.id == worker.id] == [True]


def test_a_zombie_claims_nothing(tracker, clock):
    """A worker that claims before it finds out that it is lost is told so, and the execution stays as it is."""
    zombie = lone_worker(tracker)
    clock.advance(10.1)
    assert tracker.sweep().workers == 1
    execution = tracker.create("a", user_id="u", thread_id="t", timeouts={"queue_s": 50_000.0})
    assert zombie.lost is False
    for after_s in (0.0, REMEMBER_S + 1.0):  # while it is listed as lost, and once it is not listed any more
        clock.advance(after_s)
        tracker.sweep()
        with pytest.raises(LeaseLost, match=zombie.id):
            tracker.fire(execution.id, "start")
    assert tracker._registry.store.workers() == []
    assert (tracker.get(execution.id).owner, tracker.get(execution.id).attempt) == (None, 0)
    tracker.fire(execution.id, "start", owner="somebody who never registered")


def test_who_comes_after_a_zombie_in_one_batch_gets_the_execution(tracker, clock):
    """A refusal that leaned on a zombie's claim is decided anew: the next claimer of the same batch gets it."""
    zombie = lone_worker(tracker)
    clock.advance(10.1)
    tracker.sweep()
    execution = tracker.create("a", user_id="u", thread_id="t")
    registry = tracker._registry
    claims = [
        registry.order(execution.id, "start", {"owner": owner})
        for owner in (zombie.id, "another", "too late")
    ]
    registry.committer.commit_all(claims)
    assert [type(one.error) for one in claims] == [LeaseLost, type(None), type(None)]
    assert tracker.get(execution.id).owner == "another"
    assert claims[2].outcome.reason == "not_allowed"


def test_a_claim_that_arrives_after_its_worker_left_is_refused(tracker, monkeypatch):
    """A claim that was on its way while its worker handed everything back does not stay behind with nobody."""
    execution = tracker.create("a", user_id="u", thread_id="t")
    commit = tracker._registry.committer.commit
    with tracker.worker(ttl_s=10.0) as worker:

        def late(command):
            monkeypatch.undo()
            worker.close()
            commit(command)

        monkeypatch.setattr(tracker._registry.committer, "commit", late)
        with pytest.raises(LeaseLost):
            tracker.fire(execution.id, "start")
    assert tracker.get(execution.id).state == "created"


def test_only_so_many_departed_workers_are_remembered(tracker):
    """What is remembered of workers that left does not grow for ever, on either store."""
    store = tracker._registry.store
    rows = [(f"worker_{number}", "w", 1.0, 0.0, 0.0, False) for number in range(DEPARTED + 5)]
    if isinstance(store, SqliteStore):

        def write(writer):
            writer.executemany("INSERT INTO workers VALUES (?, ?, ?, ?, ?, ?)", rows)
            writer.execute("DELETE FROM workers")

        store.database.write(write)
        kept = {row[0] for row in store.database.rows("SELECT id FROM departed")}
    else:
        for row in rows:
            store.worker_add(WorkerRow(*row))
            store.worker_remove(row[0])
        kept = set(store._workers.departed)
    assert kept == {row[0] for row in rows[5:]}


def test_a_lost_worker_is_forgotten_in_the_end(tracker, clock):
    """The list of workers does not grow for ever: one that was lost long ago and owns nothing is dropped."""
    zombie = lone_worker(tracker)
    clock.advance(10.1)
    tracker.sweep()
    clock.advance(REMEMBER_S - 1.0)
    tracker.sweep()
    assert zombie.id in {row.id for row in tracker._registry.store.workers()}
    clock.advance(2.0)
    tracker.sweep()
    assert zombie.id not in {row.id for row in tracker._registry.store.workers()}


def test_only_the_lost_workers_work_is_taken(tracker, clock):
    """What another worker has claimed meanwhile is none of the lapse's business."""
    first = lone_worker(tracker)
    execution_id, _ = claimed(tracker, retry=Retry(attempts_max=3))
    registry = tracker._registry
    stale = registry.order(execution_id, "lapse", {"worker": first.id}, holder=first.id)
    tracker.fire(execution_id, "fail", fence=tracker.get(execution_id).fence, error="x", retryable=True)
    lone_worker(tracker)
    tracker.fire(execution_id, "start")
    assert registry.carry_all([stale]) == 0
    assert tracker.get(execution_id).state == "starting"


def test_work_that_was_claimed_anew_is_not_taken(tracker, clock, monkeypatch):
    """Work that another worker claims between the sweeper's look and its lapse stays with that worker."""
    lone_worker(tracker)
    execution_id, _ = claimed(tracker, retry=Retry(attempts_max=3, backoff_s=0.0))
    clock.advance(10.1)
    store = tracker._registry.store
    real = store.owned
    looked = []

    def owned(worker_id, limit):
        found = real(worker_id, limit)
        if found and not looked:
            looked.append(worker_id)
            tracker.fire(
                execution_id, "fail", fence=tracker.get(execution_id).fence, error="x", retryable=True
            )
            second = lone_worker(tracker)
            assert tracker.fire(execution_id, "start").owner == second.id
        return found

    monkeypatch.setattr(store, "owned", owned)
    assert tracker.sweep().lapsed == 0
    assert tracker.get(execution_id).state == "starting"


def test_a_worker_that_leaves_hands_its_work_back(tracker):
    """A worker that is closed gives back at once what it still owns."""
    with tracker.worker(ttl_s=10.0):
        one, _ = claimed(tracker, retry=Retry(attempts_max=2))
        two, _ = claimed(tracker)
    assert tracker.get(one).state == "queued"
    assert tracker.get(two).state == "dead"
    assert tracker._registry.store.workers() == []


def test_one_process_is_one_worker(tracker):
    """A second worker in one process is refused: one lease is enough."""
    with tracker.worker(), pytest.raises(ConfigurationError, match="one lease"):
        tracker.worker()


@pytest.mark.parametrize("ttl_s", [0, -1.0, float("inf"), float("nan"), "5", True])
def test_a_lease_needs_a_duration(tracker, ttl_s):
    """A lease of no, negative or endless length is refused."""
    with pytest.raises(InvalidArgument):
        tracker.worker(ttl_s=ttl_s)


def test_a_heartbeat_is_one_write(tracker):
    """Renewing a lease touches the worker's row and nothing of what the worker owns."""
    worker = lone_worker(tracker)
    ids = [claimed(tracker)[0] for _ in range(20)]
    before = ([tracker.get(one) for one in ids], tracker.position())
    worker.renew()
    assert ([tracker.get(one) for one in ids], tracker.position()) == before


def test_a_blocked_main_thread_is_not_a_dead_worker(url):
    """A worker whose main thread is busy goes on renewing: the lease has a thread of its own."""
    with fresh_tracker(url) as tracker:
        renewed = threading.Event()
        count = 0
        store = tracker._registry.store
        real = store.worker_renew

        def renew(worker_id, now):
            nonlocal count
            count += 1
            if count >= 3:
                renewed.set()
            return real(worker_id, now)

        store.worker_renew = renew
        with tracker.worker(ttl_s=0.3):
            execution_id, _ = claimed(tracker)
            assert renewed.wait(20)  # this thread does nothing for the lease
            assert tracker.sweep().lapsed == 0
            assert tracker.get(execution_id).state == "starting"


CHILD = """
    import sys
    from fsm import Refused, configure
    tracker = configure(sys.argv[1])
    worker = tracker.worker(ttl_s=0.4)
    execution = tracker.create("a", user_id="u", thread_id="t", retry={"attempts_max": 2, "backoff_s": 0.0})
    fence = tracker.fire(execution.id, "start").fence
    print(execution.id, flush=True)
    sys.stdin.readline()
    try:
        tracker.fire(execution.id, "think", fence=fence)
        print("written", flush=True)
    except Refused as error:
        print(error.reason, flush=True)
"""


@pytest.mark.slow
def test_a_stopped_process_is_lost_and_its_writes_are_refused(url):
    """A process that is stopped loses its work within lease and sweep; when it goes on, its writes are fenced."""
    with fresh_tracker(url) as tracker:
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CHILD), url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            execution_id = child.stdout.readline().strip()
            assert tracker.sweep().lapsed == 0
            os.kill(child.pid, signal.SIGSTOP)
            pause = threading.Event()
            for _ in range(400):
                if tracker.sweep().lapsed:
                    break
                pause.wait(0.05)
            assert tracker.get(execution_id).state == "queued"
            fence = tracker.fire(execution_id, "start").fence
            os.kill(child.pid, signal.SIGCONT)
            out, _ = child.communicate("go on\n", timeout=30)
            assert out.strip() == "fenced"
            tracker.fire(execution_id, "think", fence=fence)
        finally:
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()
