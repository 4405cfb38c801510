"""What interrupts the core anywhere leaves it whole: exceptions, handlers, forks, threads that cannot be had."""

from __future__ import annotations

import asyncio
import gc
import io
import itertools
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import fsm.concurrency.locks
import fsm.stores.sqlite.pool as pool_module
from fsm import BadPayload, FsmError, Reentered, StoreUnavailable, ids
from fsm.concurrency.locks import Bell, Lock
from fsm.registry.committer import Committer
from fsm.registry.reader import Reader
from fsm.stores.memory import MemoryStore
from fsm.testing import ManualClock, fresh_tracker
from fsm.tracker import process
from tests.support.hostile_tools import Disturbance, elsewhere, forked, held, injected, points, raising
from tests.support.inside import registry_of, store_of
from tests.support.places import PACKAGE
from tests.support.tracker_tools import begun

CORE = (
    "registry/committer.py",
    "registry/command.py",
    "registry/registry.py",
    "registry/steady.py",
    "ids.py",
    "concurrency/locks.py",
    "stores/memory",
    "stores/sqlite/pool.py",
    "stores/sqlite/database.py",
    "stores/sqlite/machines.py",
    "stores/sqlite/store.py",
    "stores/sqlite/workers.py",
    "stores/sqlite/connect.py",
)
USER = {"user_id": "ada", "thread_id": "t"}


@pytest.fixture(params=["memory://", "sqlite"])
def tracker(request, url):
    """A tracker of its own on each kind of store, as fast as it can be made."""
    where = f"{url}?synchronous=NORMAL" if request.param == "sqlite" else request.param
    with fresh_tracker(where, clock=ManualClock()) as fresh:
        yield fresh


@pytest.fixture
def elsewhere_made():
    """The locks that other tests have left, held on to so that no new one is taken for one of them."""
    gc.collect()
    return list(fsm.concurrency.locks._locks)


@pytest.fixture(scope="module", autouse=True)
def _summary():
    yield
    print(f"\npoints injected: {sum(injected.values())} in {len(injected)} scenarios")


# --- what must hold after anything ------------------------------------------------------------------------------


def parts(store: MemoryStore) -> dict[str, Any]:
    """Everything in a memory store that follows from its records."""
    indexes = {
        name: {value: list(getattr(store, name).get(value)) for value in getattr(store, name)._ids}
        for name in ("_by_agent", "_by_user", "_by_thread", "_by_parent")
    }
    return {
        **indexes,
        "ids": list(store._ids),
        "states": {state: set(ids) for state, ids in store._by_state.items() if ids},
        "owners": {owner: set(ids) for owner, ids in store._by_owner.items() if ids},
        "ended": sorted(store._ended),
        "keys": dict(store._keys),
        "journal": list(store._journal.after(0)),
        "last": store._journal.last,
        "armed": set(store._armed),
    }


def whole(tracker: Any, *ids: str) -> None:
    """Assert that the record, its journal, the registry's journal, the keys and the indexes say the same."""
    store = store_of(tracker)
    journal = store.journal(0, 1_000_000)
    assert [row.position for row in journal] == list(range(1, len(journal) + 1)), (
        "a position is lost or double"
    )
    assert store.position() == len(journal)
    for one in ids:
        record, history = tracker.get(one), tracker.history(one)
        assert [row.version for row in history] == list(range(len(history)))
        assert (record.version, record.state) == (history[-1].version, history[-1].target)
        assert [row for row in journal if row.execution_id == one] == history
        for row in history:
            if row.key is not None:
                assert store.keyed(one, row.key) == row
    if isinstance(store, MemoryStore):
        assert store._torn is None
        now = parts(store)
        for one, at in store._armed.items():
            assert at <= store._rows[one][0].due_at
            assert (at, one) in store._due
        store._index()
        assert parts(store) == now
    else:
        # A fork closes what is idle; a connection that is left must have been given back whole.
        assert all(reader.sound or reader.connection is None for reader in store.database.pool._idle)
        assert len(store.database.pool._readers) == len(store.database.pool._idle), (
            "a reader was not given back"
        )


def free(tracker: Any) -> None:
    """Assert that this thread holds no lock, and that another one can read and write."""
    assert not fsm.concurrency.locks.inside(), [
        lock.what for lock in fsm.concurrency.locks._locks if lock.mine()
    ]


def scenarios(tracker: Any) -> dict[str, Any]:
    """The calls that are disturbed; each is legal again and again."""
    one, keys = begun(tracker), itertools.count()
    parent = begun(tracker)
    calls = {
        "fire": lambda: tracker.fire(one, "progress", fence=1, note="n"),
        "fire with a key": lambda: tracker.fire(one, "progress", fence=1, key=f"k{next(keys)}"),
        "a refusal": lambda: tracker.fire(one, "complete", fence=1),
        "create": lambda: tracker.create("agent", metadata={"a": [1]}, **USER),
        "create a child": lambda: tracker.create("agent", parent_id=parent, **USER),
        "create and cancel": lambda: tracker.fire(tracker.create("agent", **USER).id, "cancel"),
        "get": lambda: tracker.get(one),
        "find": lambda: tracker.find(limit=5, state="starting"),
        "history": lambda: tracker.history(parent),  # the same length every time
        "sweep": tracker.sweep,
    }
    return {"one": one, "parent": parent, "calls": calls}


NAMES = (
    "fire", "fire with a key", "a refusal", "create", "create a child", "create and cancel", "get", "find", "history",
    "sweep",
)  # fmt: skip


# --- exceptions -------------------------------------------------------------------------------------------------


def interrupt(tracker: Any, name: str, error: type[BaseException], *, opcodes: bool = False) -> None:
    made = scenarios(tracker)
    one, call = made["one"], made["calls"][name]
    before = store_of(tracker).position()
    label = f"{name} {tracker.store_url[:6]} {error.__name__}{' opcodes' if opcodes else ''}"
    for point in points(label, call, CORE, raising(error), opcodes=opcodes):
        if not isinstance(point.raised, FsmError | None):
            assert isinstance(point.raised, error), (point.where, point.raised)
        position = store_of(tracker).position()
        assert position - before <= 2, point.where
        free(tracker)
        if point.number % 16 == 1 or position - before > 1:
            elsewhere(lambda: tracker.fire(one, "progress", fence=1))
        tracker.fire(one, "progress", fence=1)
        if point.number % 8 == 1:
            whole(tracker, one, made["parent"])
        before = store_of(tracker).position()
    whole(tracker, one, made["parent"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("name", NAMES)
def test_an_exception_at_any_line_leaves_everything_whole(tracker, name, error):
    """After an exception at any line of the core no lock is held, record and journals agree, the next call works."""
    interrupt(tracker, name, error)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fire with a key", "create a child", "find"])
def test_an_exception_at_any_bytecode_leaves_everything_whole(tracker, name):
    """The same holds after an exception at any bytecode."""
    interrupt(tracker, name, KeyboardInterrupt, opcodes=True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_interrupts_at_any_moment_leave_everything_whole(tracker):
    """Two thousand interrupts by a timer, at moments that nobody chose: nothing hangs, nothing is half written."""
    one = begun(tracker)
    armed = False

    def handler(_: int, frame: Any) -> None:
        nonlocal armed
        # A callback of the garbage collector (a test library has one) could only drop what is raised inside it.
        if armed and "hypothesis" not in frame.f_code.co_filename:
            armed = False
            raise KeyboardInterrupt

    was = signal.signal(signal.SIGALRM, handler)
    try:
        for number in range(2_000):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + number % 97 * 3e-6)
                tracker.get(one)
                tracker.fire(one, "progress", fence=1)
                armed = False
            except KeyboardInterrupt:
                injected[f"a timer {tracker.store_url[:6]}"] += 1
            armed = False
            free(tracker)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, was)
    whole(tracker, one)


class Late(MemoryStore):
    """A store in memory behind which callers queue up, as behind a disk."""

    instant = False


async def _several(tracker: Any, ids: list[str], where: Any = str) -> list[object]:
    calls = [asyncio.ensure_future(tracker.aio.fire(one, "progress", fence=1)) for one in ids]
    _, waiting = await asyncio.wait(calls, timeout=30)
    assert not waiting, f"a caller was never told: {where()}"
    return [call.exception() or call.result() for call in calls]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
def test_an_exception_at_any_line_of_the_committers_thread_is_told_and_counted(error, caplog, monkeypatch):
    """After an exception at any line of its thread every caller of the batch is told, and the thread goes on."""
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(fsm.registry.committer, "BACKOFF_S", 0.0)
    for number in itertools.count(1):
        if not committers_thread_disturbed(number, error):
            return
        injected[f"the committer's thread {error.__name__}"] += 1


def committers_thread_disturbed(number: int, error: type[BaseException]) -> str:
    """Raise at one line of the committer's thread; return where, an empty text if it has fewer lines."""
    disturbance = Disturbance(("committer.py", "command.py"), raising(error))
    with fresh_tracker(Late(), clock=ManualClock()) as tracker:
        ids = [begun(tracker) for _ in range(3)]
        threading.settrace(disturbance.trace)
        try:
            asyncio.run(_several(tracker, ids))
            while registry_of(tracker).committer._busy:  # until its thread waits for more
                threading.Event().wait(0.0005)
            disturbance.at(number)
            out = asyncio.run(_several(tracker, ids, lambda: disturbance.where))
            while registry_of(tracker).committer._busy:
                threading.Event().wait(0.0005)
            disturbance.left = 0
        finally:
            threading.settrace(None)  # type: ignore[arg-type]
        for one, said in zip(ids, out, strict=True):
            if isinstance(said, BaseException):
                assert isinstance(said, error | FsmError), (disturbance.where, said)
            else:
                assert tracker.history(one)[said.version] == said
        again = asyncio.run(_several(tracker, ids, lambda: disturbance.where))
        assert not any(isinstance(said, BaseException) for said in again)
        whole(tracker, *ids)
    return disturbance.where


def test_an_error_of_the_committers_thread_is_in_the_health_report(url, caplog):
    """An error that ends a turn of the committer's thread is counted, and logged once by another thread."""
    with fresh_tracker(url) as tracker:
        one = begun(tracker)
        mine, told = registry_of(tracker).committer, threading.Event()
        take = mine._take

        def once(batch):
            mine._take = take
            batch.append(mine._queue.popleft())
            raise SystemExit("now")

        mine._take = once
        failed = mine._turns.failed
        mine._turns.failed = lambda error: (failed(error), told.set())[0]
        with pytest.raises(StoreUnavailable, match="SystemExit") as caught:
            asyncio.run(tracker.aio.fire(one, "progress", fence=1))
        assert caught.value.committed is None
        assert told.wait(60)
        assert asyncio.run(tracker.aio.fire(one, "progress", fence=1)).version == 2
        [report] = [loop for loop in registry_of(tracker).health.loops() if loop.name == "committer"]
        assert report.running
        assert report.failures == 1
        assert report.last_error == "SystemExit: now"
        assert "committer failed" in caplog.text


# --- calls by handlers ------------------------------------------------------------------------------------------


PAIRS = [
    ("fire with a key", "fire"),
    ("create", "find"),
    ("find", "create"),
    ("history", "get"),
    ("get", "history"),
]
CALLS = ["fire with a key", "create and cancel", "find", "history", "get", "sweep"]


@pytest.mark.parametrize(
    ("outer", "inner"),
    PAIRS
    + [
        pytest.param(*pair, marks=pytest.mark.slow)
        for pair in itertools.product(CALLS, [*CALLS, "fire", "create"])
        if pair not in PAIRS
    ],
)
def test_a_handler_at_any_line_is_served_or_refused_at_once(tracker, outer, inner):
    """A handler's call at any line of another call works or is refused at once; the other one does not notice."""
    made = scenarios(tracker)
    other = scenarios(tracker)["calls"][inner]
    calls = served = refused = 0

    def handler() -> None:
        nonlocal calls, served, refused
        calls += 1
        try:
            other()
            served += 1
        except Reentered as error:
            refused += "set a flag" in str(error)

    for point in points(f"{inner} inside {outer}", made["calls"][outer], CORE, handler):
        assert point.raised is None, (point.where, point.raised)
        free(tracker)
    assert served
    assert served + refused == calls
    whole(tracker, made["one"], made["parent"])


def test_a_handler_fires_while_its_thread_waits_for_the_committers(url):
    """A handler that comes while its thread waits for its own commit is served by the committer's thread."""
    with fresh_tracker(url) as tracker:
        one, other = begun(tracker), begun(tracker)
        store, caller = store_of(tracker), threading.get_ident()
        append, versions = store.append, []
        inside, go = threading.Event(), threading.Event()

        def held_up(steps):
            store.append = append
            inside.set()
            assert go.wait(60)
            return append(steps)

        def handler(*_: object) -> None:
            go.set()
            versions.append(tracker.fire(other, "progress", fence=1).version)

        def knock() -> None:
            mine = registry_of(tracker).committer
            while not mine._queue or mine._thread is None:
                threading.Event().wait(0.001)
            with mine._starting:
                pass  # its thread is started: the caller waits for it, or is about to
            signal.pthread_kill(caller, signal.SIGUSR1)

        store.append = held_up
        was = signal.signal(signal.SIGUSR1, handler)
        try:
            first = threading.Thread(target=lambda: tracker.create("first", **USER))
            first.start()
            assert inside.wait(60)
            knocking = threading.Thread(target=knock)
            knocking.start()
            assert tracker.fire(one, "progress", fence=1).version == 2
            for thread in (first, knocking):
                thread.join(60)
        finally:
            signal.signal(signal.SIGUSR1, was)
        assert versions == [2]


def test_a_finaliser_on_the_committers_thread_does_not_wait_for_it(url):
    """A finaliser that fires on the committer's own thread is served there, and its thread goes on."""
    with fresh_tracker(url) as tracker:
        one, other = begun(tracker), begun(tracker)
        versions: list[int] = []
        mine = registry_of(tracker).committer
        succeeded = mine._turns.succeeded

        def finaliser() -> None:
            mine._turns.succeeded = succeeded
            versions.append(tracker.fire(other, "progress", fence=1).version)

        mine._turns.succeeded = finaliser
        assert asyncio.run(tracker.aio.fire(one, "progress", fence=1)).version == 2
        assert asyncio.run(tracker.aio.fire(one, "progress", fence=1)).version == 3
        assert versions == [2]


def test_the_committers_thread_never_logs(url):
    """A caller that holds a log handler's lock while it waits is served, even if the batch before its own failed."""
    with fresh_tracker(url) as tracker:
        one = begun(tracker)
        mine = registry_of(tracker).committer
        take = mine._take

        def once(batch):
            mine._take = take
            batch.append(mine._queue.popleft())
            raise RuntimeError("now")

        handler = logging.StreamHandler(io.StringIO())
        logging.getLogger().addHandler(handler)
        try:
            handler.acquire()  # as in the middle of a record
            mine._take = once
            with pytest.raises(RuntimeError):
                asyncio.run(tracker.aio.fire(one, "progress", fence=1))
            assert asyncio.run(asyncio.wait_for(tracker.aio.fire(one, "progress", fence=1), 30)).version == 2
        finally:
            handler.release()
            logging.getLogger().removeHandler(handler)


def test_a_bell_may_be_rung_while_it_is_rung():
    """A bell that a handler rings at any line of its own set, clear or wait is heard."""
    bell = Bell()

    def ring_and_wait() -> bool:
        bell.clear()
        bell.set()
        return bell.wait(30)

    for point in points("a bell", ring_and_wait, ("locks.py",), bell.set):
        assert point.result, point.where


# --- closing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", ["fire", "create", "find"])
def test_close_by_a_handler_at_any_line(url, outer):
    """A handler may close the tracker at any line of a call: nothing waits, and the close at exit completes it."""
    for where in ("memory://", f"{url}?synchronous=NORMAL"):
        number = 0
        while True:
            number += 1
            with fresh_tracker(where, clock=ManualClock()) as tracker:
                made = scenarios(tracker)
                disturbance = Disturbance(CORE, tracker.close)
                disturbance.at(number)
                sys.settrace(disturbance.trace)
                try:
                    made["calls"][outer]()
                except StoreUnavailable:
                    pass
                finally:
                    sys.settrace(None)
                if not disturbance.where:
                    break
                injected[f"close inside {outer}"] += 1
                assert tracker.closed
                with pytest.raises(StoreUnavailable):
                    tracker.fire(made["one"], "progress")
                tracker.close()
                if not where.startswith("memory"):
                    pool = store_of(tracker).database.pool
                    assert pool._writer is None
                    assert all(reader.connection is None for reader in pool._readers)
            number += 15  # every line would be the same again


def test_close_while_calls_are_under_way(tracker):
    """A tracker that two threads close while others fire: each caller gets its receipt or a typed error."""
    ids = [begun(tracker) for _ in range(8)]
    out: list[object] = []
    ready = threading.Barrier(10)

    def fire(one: str) -> None:
        ready.wait(60)
        for _ in range(200):
            try:
                out.append(tracker.fire(one, "progress", fence=1))
            except Exception as error:  # noqa: BLE001 - its type is looked at
                out.append(error)
                return

    def close() -> None:
        ready.wait(60)
        tracker.close()
        tracker.close()

    threads = [threading.Thread(target=fire, args=(one,)) for one in ids]
    threads += [threading.Thread(target=close) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "somebody waits for ever"
    assert [one for one in out if isinstance(one, Exception) and not isinstance(one, StoreUnavailable)] == []
    assert tracker.closed


# --- forks ------------------------------------------------------------------------------------------------------


def public_calls(tracker: Any, one: str, key: str) -> None:
    """Make every kind of public call once."""
    version = tracker.get(one).version
    assert tracker.fire(one, "progress", fence=1, key=key).version == version + 1
    made = tracker.create("agent", parent_id=one, **USER)
    tracker.fire(made.id, "cancel")
    assert tracker.history(one)
    assert tracker.find(limit=10, user_id="ada")
    assert tracker.counts()
    assert tracker.allowed(one)
    assert tracker.durations(one)
    assert tracker.machine_of(one) in tracker.machines()
    assert tracker.position()
    assert list(tracker.subscribe(after=0, follow=False))
    tracker.sweep()
    with tracker.breakers.permit("key"):
        pass
    tracker.breakers.force_open("key")
    tracker.breakers.reset("key")
    tracker.breakers.poll()
    assert tracker.breakers.status()
    with tracker.worker():
        pass
    tracker.clock.sleep(0.0)
    asyncio.run(tracker.aio.fire(one, "progress", fence=1))
    tracker.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_that_is_forked_under_any_lock_makes_every_call(elsewhere_made, tracker):
    """Whatever lock another thread holds while a process forks, the child makes every public call."""
    one = begun(tracker)
    asyncio.run(tracker.aio.fire(one, "progress", fence=1))
    tracker.breakers.force_open("key")
    tracker.breakers.reset("key")
    shared = {id(ids.MAKER._lock), id(process._lock)}  # of the process, made when it began
    others = set(map(id, elsewhere_made)) - shared
    locks = [lock for lock in list(fsm.concurrency.locks._locks) if id(lock) not in others]
    assert {"the memory store", "a transaction of the store"} & {lock.what for lock in locks}
    names = {lock.what for lock in locks}
    assert names >= {"a commit", "the next id", "the set-up of the tracker"}
    for number, lock in enumerate(locks):
        # A fork waits for whoever uses a connection; all others it does not know of.
        with held(lock, until=lambda: pool_module._stopped):
            assert forked(lambda: public_calls(tracker, one, f"child {number}")) == "", lock.what  # noqa: B023
        injected["forks"] += 1
    whole(tracker, one)


ALLOWED = {
    "fsm/concurrency/locks.py",  # what everything else uses
    "fsm/registry/committer.py",  # a gate, one for each command; a child has no commands of its parent
    "fsm/stores/sqlite/pool.py",  # held over a fork, and released in the child
    "fsm/concurrency/threads.py",  # a gate for each call, and a pool that a child begins again
    "fsm/registry/reader.py",  # begins again in a child
    "fsm/registry/pulse.py",  # begins again in a child
    "fsm/engine/engine.py",  # an engine in a child is over
    "fsm/simulation/linearizability.py",  # of a history that a test records
    "fsm/breakers/permit.py",  # of one handover; a child has none of its parent's
}


def test_every_lock_has_a_story_for_forks_and_handlers():
    """Nothing in the library owns a lock of another class than `Lock`, which starts unlocked in a child process."""
    found = {
        str(path.relative_to(PACKAGE.parent))
        for path in PACKAGE.rglob("*.py")
        if re.search(
            r"threading\.(R?Lock|Condition|Semaphore|BoundedSemaphore|Barrier)\(", path.read_text("utf-8")
        )
    }
    assert found <= ALLOWED


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_handler_forks_at_any_line(tracker):
    """A handler that forks in the middle of a call leaves a child that works, and a parent that goes on or is told."""
    made = scenarios(tracker)
    one = made["one"]
    runs = itertools.count()

    def fork() -> None:
        if next(runs) % 25 == 0:
            assert forked(lambda: store_of(tracker).url) == ""

    for name in ("fire", "find"):
        for point in points(f"fork inside {name}", made["calls"][name], CORE, fork):
            assert isinstance(point.raised, StoreUnavailable | None), (point.where, point.raised)
            free(tracker)
    whole(tracker, one)


# --- cancelled callers, threads that cannot be had --------------------------------------------------------------


def no_threads(monkeypatch, *names: str) -> None:
    """Let no thread start whose name begins with one of these."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name.startswith(names):
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_a_storm_of_cancels_needs_no_thread_each(url):
    """Of 200 callers half are cancelled: the others are told, and one thread carries out what the cancelled left."""
    with fresh_tracker(url) as tracker:
        parents = [begun(tracker) for _ in range(100)]
        children = [tracker.create("child", parent_id=one, **USER).id for one in parents[:20]]
        before = set(threading.enumerate())  # of other tests, which may have left some
        started: set[str] = set()

        async def main() -> None:
            victims = [asyncio.create_task(tracker.aio.fire(one, "cancel")) for one in parents[:50]]
            others = [asyncio.create_task(tracker.aio.fire(one, "progress", fence=1)) for one in parents[50:]]
            await asyncio.sleep(0)
            for victim in victims:
                victim.cancel()
            done, waiting = await asyncio.wait(others, timeout=60)
            assert not waiting
            assert all(one.result().version == 2 for one in done)
            started.update(thread.name for thread in set(threading.enumerate()) - before)

        asyncio.run(main())
        for one in children:
            while tracker.get(one).state not in {"cancelling", "cancelled"}:
                threading.Event().wait(0.002)
        assert (
            sum(
                name.startswith("fsm-") and not name.startswith(("fsm-reports", "fsm-read"))
                for name in started
            )
            <= 2
        )


def test_effects_without_a_thread_are_left_to_the_sweeper(url, monkeypatch):
    """Where no thread can be had for a cancelled caller's effects, all others are told and a sweep carries them out."""
    with fresh_tracker(url) as tracker:
        parent, other = begun(tracker), begun(tracker)
        child = tracker.create("child", parent_id=parent, **USER).id
        no_threads(monkeypatch, "fsm-aftermath")

        async def main() -> None:
            victim = asyncio.create_task(tracker.aio.fire(parent, "cancel"))
            await asyncio.sleep(0)
            victim.cancel()
            told = await asyncio.wait_for(tracker.aio.fire(other, "progress", fence=1), 60)
            assert told.version == 2

        asyncio.run(main())
        assert registry_of(tracker).aftermath.dropped == 1
        tracker.sweep()
        assert tracker.get(child).state in {"cancelling", "cancelled"}


def test_a_committer_without_a_thread_says_so_at_once(url, monkeypatch):
    """Where the committer's thread cannot be started a caller is told at once, and a later one succeeds."""
    with fresh_tracker(url) as tracker:
        one = begun(tracker)
        with monkeypatch.context() as patch:
            no_threads(patch, "fsm-committer")
            with pytest.raises(StoreUnavailable, match="no thread") as caught:
                asyncio.run(tracker.aio.fire(one, "progress", fence=1))
            assert caught.value.committed is False
            assert registry_of(tracker).committer._queue == Committer(MemoryStore(), lambda _: None)._queue
            assert tracker.fire(one, "progress", fence=1).version == 2
        assert asyncio.run(tracker.aio.fire(one, "progress", fence=1)).version == 3


def test_a_read_without_a_thread_says_so_at_once(url, monkeypatch):
    """Where the event loop's executor can start no thread a read is a typed error, and the next one succeeds."""
    with fresh_tracker(url) as tracker:
        one = begun(tracker)
        with monkeypatch.context() as patch:
            no_threads(patch, "fsm-read")
            with pytest.raises(StoreUnavailable, match="no thread"):
                asyncio.run(tracker.aio.get(one))
        assert asyncio.run(tracker.aio.get(one)).version == 1


# --- payloads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_a_payload_is_taken_when_it_is_handed_in(tracker, monkeypatch, late):
    """A caller's change after its call has begun is not in the record, however late a thread reads the call."""
    call = Reader.call

    async def waits(self: Reader, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for _ in range(5):
            await asyncio.sleep(0)
        return await call(self, function, *args, **kwargs)

    if late:
        monkeypatch.setattr(Reader, "call", waits)

    async def main() -> None:
        data: dict[str, Any] = {"n": [1]}
        limits = {"total_s": 5.0}
        fired = asyncio.ensure_future(tracker.aio.fire(begun(tracker), "progress", fence=1, data=data))
        made = asyncio.ensure_future(tracker.aio.create("a", metadata=data, timeouts=limits, **USER))
        await asyncio.sleep(0)
        data["n"].append(2)
        data["more"] = True
        limits["total_s"] = 7.0
        assert (await fired).payload == {"data": {"n": [1]}}
        one = await made
        assert one.metadata == {"n": [1]}
        assert one.timeouts.total_s == 5.0

    asyncio.run(main())


def test_what_json_cannot_say_is_refused_with_the_same_words(url):
    """An odd payload is refused by the asyncio face over a file exactly as by the face that blocks."""
    loop: list[object] = []
    loop.append(loop)
    deep: list[object] = []
    for _ in range(5_000):
        deep = [deep]
    odd = [{1, 2}, object(), b"x", loop, deep, {"a": threading.Lock()}, float("nan"), {1: 2}, iter(())]
    with fresh_tracker(url) as tracker:
        one = begun(tracker)
        for value in odd:
            said = []
            for fire in (tracker.fire, lambda *a, **k: asyncio.run(tracker.aio.fire(*a, **k))):
                with pytest.raises(BadPayload) as caught:
                    fire(one, "progress", fence=1, data=value)
                said.append(re.sub("0x[0-9a-f]+", "", str(caught.value)))
            assert said[0] == said[1]
        assert tracker.get(one).version == 1
        assert (
            asyncio.run(tracker.aio.fire(one, "progress", fence=1, data={"a": [1, "ü", None]})).version == 2
        )


def test_a_lock_refuses_its_own_thread_only():
    """The thread that holds a lock is refused at once; another one waits for it."""
    lock = Lock("a test")
    with lock:
        with pytest.raises(Reentered, match="a test"), lock:
            pass
        with pytest.raises(Reentered):
            lock.run(int)
        assert lock.mine()
        assert not elsewhere(lock.mine)
    assert elsewhere(lambda: lock.run(int)) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_an_interrupt_around_a_fork_is_delivered_after_it(url):
    """Ctrl-C at any line of what a fork does first and last drops nothing of it, and arrives when the fork is over."""
    with fresh_tracker(f"{url}?synchronous=NORMAL") as tracker:
        one = begun(tracker)
        pool = store_of(tracker).database.pool

        def fork() -> None:
            pool_module._before_fork()
            assert pool._writer is None
            assert all(reader.connection is None for reader in pool._readers)
            assert pool.writing.mine()
            assert pool._opening.mine()
            pool_module._after_fork_in_parent()

        delivered: list[int] = []
        whole_hooks = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pool_module, "interrupt_main", lambda: delivered.append(1))
            patch.setattr(pool_module, "LOOK_S", 0.0)
            for point in points("around a fork", fork, ["stores/sqlite/pool.py"], raising(KeyboardInterrupt)):
                if point.raised is not None:
                    # Only a line that comes before or after the work itself lets an interrupt out.
                    assert point.where.split()[-1] in {"_before_fork", "_through", "_after_fork_in_parent"}, (
                        point
                    )
                    while pool_module._stopped:
                        pool_module._after_fork_in_child()
                    pool_module._interrupts.clear()
                whole_hooks += point.raised is None
                free(tracker)
                assert tracker.get(one).version == 1  # opens what the next fork has to close
        assert whole_hooks > 20
        assert delivered
