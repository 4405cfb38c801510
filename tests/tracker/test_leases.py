"""Leases while nobody can write: a worker that could not renew is not lost, and one that is dead is found."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from fsm.clock import ManualClock
from fsm.errors import LeaseLost
from fsm.stores import WorkerRow, open_store
from fsm.stores.base import SPARED_MAX
from fsm.stores.sqlite import connect, workers
from fsm.testing import fresh_tracker
from fsm.tracker.sweeper import STOPPED_S, Sweeper
from tests.support.sqlite_tools import python, rogue


@pytest.fixture
def file(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


class Held:
    """The file's write lock in the hands of another program, until it is released."""

    def __init__(self, file: Path) -> None:
        self._connection = rogue(file)
        self._connection.execute("BEGIN IMMEDIATE")

    def release(self) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()


def waits_for(lock: threading.Event, call: object) -> threading.Thread:
    def run() -> None:
        lock.set()
        call()  # type: ignore[operator]

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def lone(tracker):
    """Register a worker that renews only when it is told to."""
    worker = tracker.worker(ttl_s=10.0)
    worker._stop.set()
    return worker


def test_a_renewal_that_waited_is_worth_a_whole_lease(url, file):
    """The time of a renewal is that at which the lock was had, not that at which it was asked for."""
    clock = ManualClock()
    with fresh_tracker(url, clock=clock) as tracker:
        worker = lone(tracker)
        held, asked = Held(file), threading.Event()
        thread = waits_for(asked, worker.renew)
        assert asked.wait(20)
        clock.advance(30.0)
        now = tracker._registry.now()
        held.release()
        thread.join(60)
        [row] = tracker._registry.store.workers()
        assert row.renewed_at == now


def test_a_sweeper_that_waited_for_the_lock_itself_takes_nothing_away(url, file, monkeypatch):
    """A sweeper that was kept waiting knows that the workers were too: they get another term from now on."""
    monkeypatch.setattr(workers, "STALL_S", 0.05)
    with closing(open_store(url)) as store:
        store.worker_add(WorkerRow("worker_1", "one", 10.0, 0.0, 100.0, lost=False))
        held, lost, waiting = Held(file), [], threading.Event()
        drawn = connect.random.uniform
        monkeypatch.setattr(connect.random, "uniform", lambda *span: waiting.set() or drawn(*span))
        thread = threading.Thread(target=lambda: lost.append(store.lose(150.0)))
        thread.start()
        assert waiting.wait(60)
        time.sleep(0.1)  # more than STALL_S since it began to wait
        held.release()
        thread.join(60)
        assert lost == [[]]
        [row] = store.workers()
        assert 150.0 < row.renewed_at < 210.0
        monkeypatch.setattr(workers, "STALL_S", 1e9)
        assert store.lose(row.renewed_at + 9.0) == []
        assert store.lose(row.renewed_at + 11.0) == ["worker_1"]


def test_a_sweeper_that_comes_first_lets_the_others_go_before_it(url, monkeypatch):
    """A sweeper that gets the lock before the workers that wait for it looks again when they had their turn."""
    with closing(open_store(url)) as store, closing(open_store(url)) as another:
        for number in range(3):
            store.worker_add(WorkerRow(f"worker_{number}", "w", 10.0, 0.0, 100.0, lost=False))
        coming = ["worker_0", "worker_1"]

        def others_have_their_turn(_seconds: float) -> None:
            if coming:  # one after the other, each within the pause that the last one bought
                assert another.worker_renew(coming.pop(0), lambda: 150.0)

        monkeypatch.setattr(workers.time, "sleep", others_have_their_turn)
        assert store.lose(150.0) == ["worker_2"]
        assert not coming


def test_a_store_that_is_always_busy_hides_no_dead_worker(url, monkeypatch):
    """However long the sweeper waits each time, a dead worker is found after a few terms."""
    monkeypatch.setattr(workers, "STALL_S", 0.0)
    with closing(open_store(url)) as store:
        store.worker_add(WorkerRow("worker_1", "one", 10.0, 0.0, 100.0, lost=False))
        now, rounds = 100.0, 0
        while not store.lose(now):
            now, rounds = now + 11.0, rounds + 1
            assert rounds < 20
        assert now <= 100.0 + (SPARED_MAX + 2) * 11.0


@pytest.mark.parametrize("store", ["memory://", "sqlite"])
def test_a_machine_that_stood_still_loses_nobody(store, url):
    """A sweeper that slept far longer than it meant to was stopped, and takes the workers to have been stopped too."""
    clock = ManualClock()
    with fresh_tracker(url if store == "sqlite" else store, clock=clock) as tracker:
        worker = lone(tracker)
        sweeper = Sweeper(tracker._registry)
        sweeper.sweep()
        pause_s = sweeper._pause_s()
        clock.advance(pause_s + 3600.0)  # everything was stopped, the monotonic clock was not
        assert sweeper.sweep().workers == 0
        worker.renew()
        clock.advance(sweeper._pause_s())
        assert sweeper.sweep().workers == 0
        for _ in range(15):  # and now it is dead
            clock.advance(sweeper._pause_s() + STOPPED_S / 2)
            sweeper.sweep()
        with pytest.raises(LeaseLost):
            worker.renew()


WORKER = """
    import sys
    from fsm import configure
    tracker = configure(sys.argv[1])
    worker = tracker.worker(ttl_s=2.0)
    execution = tracker.create("a", user_id="u", thread_id="t")
    tracker.fire(execution.id, "start")
    print("up", flush=True)
    sys.stdin.readline()
    print(worker.lost, tracker.get(execution.id).state, flush=True)
"""
SWEEPER = """
    import sys, threading
    from fsm import configure
    tracker = configure(sys.argv[1])
    print("up", flush=True)
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    while not stop.is_set():
        tracker.sweep()
        stop.wait(0.2)
"""


@pytest.mark.slow
def test_a_file_that_is_held_for_longer_than_the_leases_loses_nobody(url, file):
    """Another program holds the file for longer than every lease, and all workers are alive: none is lost."""
    with fresh_tracker(url) as tracker:
        tracker.create("first", user_id="u", thread_id="t")
    workers = [python(WORKER, url) for _ in range(3)]
    sweeper = python(SWEEPER, url)
    for process in (*workers, sweeper):
        assert process.stdout.readline() == "up\n"
    connection = sqlite3.connect(file, isolation_level=None, timeout=30)
    connection.execute("BEGIN IMMEDIATE")
    time.sleep(3.5)
    connection.execute("ROLLBACK")
    connection.close()
    time.sleep(1.0)
    told = [process.communicate("\n", timeout=60)[0].split() for process in workers]
    sweeper.communicate("\n", timeout=60)
    assert told == [["False", "starting"]] * 3
