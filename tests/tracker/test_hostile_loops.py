"""Loops that others rely on: whatever one record, one callback or one turn does, the others have their turn."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import subprocess
import sys
import textwrap
import threading

import pytest
from pydantic import model_validator

from fsm import EXECUTION, Engine
from fsm.clock import ManualClock
from fsm.concurrency import supervised
from fsm.concurrency.supervised import UNREADABLE, Health, Loop, keep_going, keep_going_async
from fsm.core.payloads import PAYLOADS, Cancel, Lapse, Payload, TimeOut
from fsm.core.records import Retry
from fsm.errors import ConfigurationError, InvalidArgument, LeaseLost, StoreUnavailable
from fsm.machine.grammar import row, state
from fsm.machine.machine import Machine
from fsm.machine.timeouts import MAX_SECONDS, Timeouts
from fsm.registry import pulse as pulses
from fsm.registry import registry as registries
from fsm.stores.base import Order
from fsm.tracker import sweeper
from fsm.tracker import worker as workers
from fsm.tracker.process import configure, fresh_tracker
from fsm.tracker.sweeper import SWEEPER, Sweeper
from fsm.tracker.worker import LEASE, Worker
from tests.support.tracker_tools import begun

POISONS = {
    "KeyError": lambda: {}["total"],
    "JSONDecodeError": lambda: json.loads("["),
    "OverflowError": lambda: 2.0**5000,
    "RecursionError": lambda: (_ for _ in ()).throw(RecursionError("too deep")),
    "MemoryError": lambda: (_ for _ in ()).throw(MemoryError()),
    "SystemExit": lambda: sys.exit(3),
    "CancelledError": lambda: (_ for _ in ()).throw(asyncio.CancelledError()),
}


def poisoned(monkeypatch, event, base, poison):
    """A machine whose payload of one event cannot be validated, by the fault of its user."""

    class Poisoned(base):
        @model_validator(mode="after")
        def judge(self):
            if poison in POISONS:
                POISONS[poison]()
            return self

    monkeypatch.setitem(PAYLOADS, "poisoned", Poisoned)
    return EXECUTION.extend(name="mine", payloads={event: "poisoned"})


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture(params=["memory", "sqlite"])
def store(request, url):
    return "memory://" if request.param == "memory" else f"{url}?synchronous=NORMAL"


def overdue(tracker, machine=None, count=1, **more):
    options = {"user_id": "u", "thread_id": "t", "timeouts": {"queue_s": 1.0}, **more}
    return [tracker.create("a", machine=machine, **options).id for _ in range(count)]


# --- one record is one record ---------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", POISONS)
def test_a_poisoned_deadline_keeps_no_other_one(store, clock, monkeypatch, poison):
    """Whatever a user's validator raises for one execution, the others of its page are timed out, and it is named."""
    machine = poisoned(monkeypatch, "time_out", TimeOut, "")
    with fresh_tracker(store, clock=clock, machines=[machine]) as tracker:
        before, bad, after = (overdue(tracker)[0], overdue(tracker, machine)[0], overdue(tracker)[0])
        bad_model = tracker._registry.law_of(machine.content_hash).codec._models["time_out"]
        monkeypatch.setattr(
            bad_model,
            "__pydantic_validator__",
            type("Bad", (), {"validate_python": lambda _s, _p: POISONS[poison]()})(),
        )
        clock.advance(2.0)
        assert tracker.sweep().timed_out == 2
        assert [tracker.get(one).state for one in (before, bad, after)] == [
            "timed_out",
            "created",
            "timed_out",
        ]
        (aside,) = tracker.health().aside
        assert (aside.execution_id, aside.event, aside.version) == (bad, "time_out", 0)
        assert poison in aside.reason or (poison == "RecursionError" and "BadPayload" in aside.reason)


def test_what_is_set_aside_is_tried_when_it_changes_or_its_pause_has_passed(store, clock, monkeypatch):
    """A record that was set aside is skipped for a while, is tried at once at another version, and then forgotten."""
    tries = []

    class Counted(Payload):
        kind: str | None = None
        late_s: float | None = None

        @model_validator(mode="after")
        def judge(self):
            tries.append(1)
            if len(tries) < 4:
                raise KeyError("not yet")
            return self

    monkeypatch.setitem(PAYLOADS, "poisoned", Counted)
    machine = EXECUTION.extend(name="mine", payloads={"time_out": "poisoned"})
    with fresh_tracker(store, clock=clock, machines=[machine]) as tracker:
        (bad,) = overdue(tracker, machine, timeouts={"total_s": 1.0})
        tries.clear()  # building the machine's codec made one
        clock.advance(2.0)
        for _ in range(3):
            tracker.sweep()
        first = len(tries)
        assert first <= 2  # once in the batch, once alone
        tracker.fire(bad, "start")
        tracker.sweep()
        assert len(tries) > first
        tries.extend([1] * 4)
        tracker.sweep()
        assert tracker.get(bad).state == "starting"
        clock.advance(supervised.ASIDE_S + 1.0)
        assert tracker.sweep().timed_out == 1
        assert tracker.health().aside == ()


def test_more_than_a_page_of_poison_hides_nothing(store, clock, monkeypatch):
    """However many overdue executions cannot be moved, one sweep reaches what lies behind them."""
    monkeypatch.setattr(sweeper, "BATCH", 5)
    machine = poisoned(monkeypatch, "time_out", TimeOut, "KeyError")
    with fresh_tracker(store, clock=clock, machines=[machine]) as tracker:
        overdue(tracker, machine, 23)
        (plain,) = overdue(tracker)
        clock.advance(2.0)
        assert tracker.sweep().timed_out == 1
        assert tracker.get(plain).state == "timed_out"
        assert len(tracker.health().aside) == 23


def test_a_sweep_that_reaches_its_limit_is_gone_on_with(store, clock, monkeypatch):
    """A sweep has a limit of pages; the next one begins behind them, and after the last page at the beginning."""
    monkeypatch.setattr(sweeper, "BATCH", 2)
    monkeypatch.setattr(sweeper, "MAX_BATCHES", 2)
    machine = poisoned(monkeypatch, "time_out", TimeOut, "KeyError")
    with fresh_tracker(store, clock=clock, machines=[machine]) as tracker:
        overdue(tracker, machine, 9)
        overdue(tracker)
        clock.advance(2.0)
        assert [tracker.sweep().timed_out for _ in range(4)] == [0, 0, 1, 0]
        late = overdue(tracker)
        clock.advance(2.0)
        assert sum(tracker.sweep().timed_out for _ in range(4)) == 1
        assert tracker.get(late[0]).state == "timed_out"


def test_more_is_set_aside_than_can_be_remembered(clock, monkeypatch):
    """Beyond the limit of what is set aside records are tried at each sweep, and hide nothing all the same."""
    monkeypatch.setattr(supervised, "MAX_ASIDE", 3)
    machine = poisoned(monkeypatch, "time_out", TimeOut, "KeyError")
    with fresh_tracker(clock=clock, machines=[machine]) as tracker:
        overdue(tracker, machine, 6)
        overdue(tracker)
        clock.advance(2.0)
        assert tracker.sweep().timed_out == 1
        assert len(tracker.health().aside) == 3
        clock.advance(supervised.ASIDE_S * 10)
        tracker.sweep()
        assert len(tracker.health().aside) == 3


def test_the_log_is_not_flooded(clock, monkeypatch, caplog):
    """Each record's reason is logged once, and from a number on in one line for all."""
    machine = poisoned(monkeypatch, "time_out", TimeOut, "KeyError")
    with fresh_tracker(clock=clock, machines=[machine]) as tracker:
        overdue(tracker, machine, 3 * supervised.MAX_ASIDE_LOGGED)
        clock.advance(2.0)
        for _ in range(5):
            tracker.sweep()
            clock.advance(1.0)
    assert (
        len([one for one in caplog.records if one.levelno >= logging.WARNING])
        <= supervised.MAX_ASIDE_LOGGED + 1
    )


def test_what_cannot_be_moved_shortens_no_pause(store, clock, monkeypatch):
    """An overdue execution that cannot be moved makes no sweeper spin, and a deadline behind it is met on time."""
    machine = poisoned(monkeypatch, "time_out", TimeOut, "KeyError")
    with fresh_tracker(store, clock=clock, machines=[machine]) as tracker:
        overdue(tracker, machine, 3)
        clock.advance(2.0)
        one = Sweeper(tracker._registry, every_s=10.0)
        assert one._turn() == 10.0
        overdue(tracker, timeouts={"queue_s": 4.0})
        assert one._turn() == pytest.approx(4.0)
        clock.advance(20.0)
        assert one._turn() == 10.0


def test_a_deadline_that_a_time_out_leaves_where_it_is_does_not_spin(clock):
    """An execution whose deadline has still passed after its time_out is timed out once in a sweep."""
    stubborn = Machine(
        name="stubborn",
        initial="open",
        states=(
            state("open", "running", "phase"), state("held", "stopping", "grace"), state("shut", "terminal"),
        ),
        transitions=(row("open", "time_out", "held"), row("held", "time_out", "shut")),
        timeouts=Timeouts(total_s=1.0, phase_s=50.0, grace_s=50.0),
    )  # fmt: skip
    with fresh_tracker(clock=clock, machines=[stubborn]) as tracker:
        one = tracker.create("a", user_id="u", thread_id="t", machine="stubborn")
        clock.advance(2.0)
        assert tracker.sweep().timed_out == 1
        assert tracker.get(one.id).version == 1
        assert tracker.sweep().timed_out == 1
        assert tracker.get(one.id).state == "shut"


def test_a_lost_worker_with_a_poisoned_execution_loses_the_others(store, clock, monkeypatch):
    """One execution that cannot be taken away keeps no other one, nor another worker's, and its worker stays listed."""
    monkeypatch.setattr(workers, "PAGE", 2)
    machine = poisoned(monkeypatch, "lapse", Lapse, "KeyError")
    with fresh_tracker(store, clock=clock, machines=[machine]) as tracker:
        registry = tracker._registry
        registry.worker = one = Worker(registry, 5.0)
        patient = {"phase_s": 1e6, "total_s": 1e6, "idle_s": None}
        bad = [begun(tracker, machine="mine", timeouts=patient) for _ in range(5)]
        good = [begun(tracker) for _ in range(3)]
        registry.worker = Worker(registry, 5.0)
        others = begun(tracker)
        clock.advance(6.0)
        assert tracker.sweep().lapsed == 4
        assert {tracker.get(each).state for each in (*good, others)} == {"dead"}
        assert {tracker.get(each).state for each in bad} == {"starting"}
        clock.advance(sweeper.REMEMBER_S + 10.0)
        tracker.sweep()
        assert one.id in {each.id for each in tracker.health().workers}
        registry.worker = None


def test_a_poisoned_child_and_a_poisoned_order_keep_no_other_one(store, clock, monkeypatch):
    """A child that cannot be cancelled keeps neither its siblings nor another parent's children; its order stays."""
    machine = poisoned(monkeypatch, "cancel", Cancel, "KeyError")
    with fresh_tracker(store, clock=clock, machines=[machine]) as tracker:
        first, second = begun(tracker), begun(tracker)
        bad = begun(tracker, machine="mine", parent_id=first)
        sibling, cousin = begun(tracker, parent_id=first), begun(tracker, parent_id=second)
        tracker.fire(first, "fail", fence=1)
        tracker.fire(second, "fail", fence=1)
        assert [tracker.get(one).state for one in (bad, sibling, cousin)] == [
            "starting",
            "cancelling",
            "cancelling",
        ]
        assert tracker.health().orders == 1
        assert {one.event for one in tracker.health().aside} == {"cancel", "cancel_children"}


def test_an_order_whose_children_cannot_be_read_keeps_no_other_one(store, clock, monkeypatch):
    """One order that fails, whatever of, is set aside, and the sweep goes on with the others and the other parts."""
    with fresh_tracker(store, clock=clock) as tracker:
        registry = tracker._registry
        families = []
        with monkeypatch.context() as patch:
            patch.setattr(registries.Registry, "carry_out", lambda _registry, _command: None)
            for _ in range(3):
                parent = begun(tracker)
                families.append(
                    (parent, tracker.create("a", user_id="ada", thread_id="t", parent_id=parent).id)
                )
                tracker.fire(parent, "fail", fence=1)
        real, bad = registry.call_off, families[1][0]

        def call_off(order: Order) -> int:
            if order.execution_id == bad:
                raise RecursionError("a damaged family")
            return real(order)

        monkeypatch.setattr(registry, "call_off", call_off)
        (late,) = overdue(tracker)
        clock.advance(2.0)
        assert tracker.sweep()[::4] == (1, 2)
        assert [tracker.get(child).state for _, child in families] == ["cancelled", "created", "cancelled"]
        assert tracker.get(late).state == "timed_out"


@pytest.mark.parametrize("part", ["due", "workers", "orders"])
def test_a_part_of_a_sweep_that_fails_keeps_no_other_part(store, clock, monkeypatch, part):
    """Whatever a read of one part raises, the other parts of the sweep have their turn; then it is raised."""
    with fresh_tracker(store, clock=clock) as tracker:
        registry = tracker._registry
        (late,) = overdue(tracker)
        registry.worker = Worker(registry, 1.0)
        held = begun(tracker)
        registry.worker = None
        clock.advance(2.0)

        def broken(*_arguments):
            raise TypeError("a bug")

        monkeypatch.setattr(registry.store, part, broken)
        with pytest.raises(TypeError):
            tracker.sweep()
        assert (tracker.get(late).state == "timed_out") is (part != "due")
        assert (tracker.get(held).state == "dead") is (part != "workers")


def test_a_step_that_the_file_refuses_keeps_no_other_one(url, clock):
    """A record that somebody moved past the library fails its own step: the batch that it is in is committed."""
    with fresh_tracker(url, clock=clock) as tracker:
        before, bad, after = (overdue(tracker)[0] for _ in range(3))
        raw = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        names = ("execution_moves", "execution_moved")
        laws = [
            raw.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()[0]
            for name in names
        ]
        for name in names:
            raw.execute(f"DROP TRIGGER {name}")
        raw.execute("UPDATE executions SET updated_at = 1e11 WHERE id = ?", (bad,))
        for law in laws:
            raw.execute(law)
        raw.close()
        clock.advance(2.0)
        assert tracker.sweep().timed_out == 2
        assert [tracker.get(one).state for one in (before, after)] == ["timed_out", "timed_out"]
        assert (
            "runs backwards" in tracker.health().aside[0].reason
            or "run backwards" in tracker.health().aside[0].reason
        )


# --- threads ----------------------------------------------------------------------------------------------------


def test_the_sweepers_thread_outlives_every_error(clock, monkeypatch):
    """Errors of any kind in a turn are counted and followed by another turn; the thread ends when it is stopped."""
    errors = [KeyError("a"), StoreUnavailable("b"), SystemExit(1), RecursionError(), asyncio.CancelledError()]
    with fresh_tracker(clock=clock) as tracker:
        one = Sweeper(tracker._registry, every_s=0.001)
        monkeypatch.setattr(sweeper, "BACKOFF_S", 0.001)
        done = threading.Event()

        def sweep():
            if errors:
                raise errors.pop()
            done.set()

        monkeypatch.setattr(one, "sweep", sweep)
        one.start()
        assert done.wait(60)
        assert one._thread.is_alive()
        one.stop()
        assert not one._thread.is_alive()
        (loop,) = [loop for loop in tracker.health().loops if loop.name == SWEEPER]
        assert (loop.failures, loop.running) == (5, False)
        assert loop.last_error.startswith("KeyError")


def test_a_lease_outlives_every_error_but_its_loss(clock, monkeypatch):
    """Whatever a renewal raises, another one follows; the loss of the lease ends the loop, and is what it says last."""
    with fresh_tracker(clock=clock) as tracker:
        registry = tracker._registry
        answers = [RuntimeError("odd"), SystemExit(), StoreUnavailable("gone"), None, False]
        over = threading.Event()

        def renew(*_arguments):
            answer = answers.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            if answer is False:
                over.set()
            return answer is None

        monkeypatch.setattr(registry.store, "worker_renew", renew)
        with Worker(registry, 0.003).start() as worker:
            assert over.wait(60)
            worker._thread.join(60)
            assert worker.lost
            (loop,) = [loop for loop in tracker.health().loops if loop.name == LEASE]
            assert (loop.turns, loop.failures, loop.running) == (1, 4, False)
            assert loop.last_error.startswith("LeaseLost")


def test_a_sweeper_of_a_forked_child_is_its_parents(clock):
    """A forked child begins with no loops and nothing set aside: what its parent drives does not run there."""
    with fresh_tracker(clock=clock) as tracker:
        registry = tracker._registry
        registry.health.loop("x").started()
        registry.health.set_aside("a", 1, "why", 0.0)
        before = registry.pulse.process
        registry.after_fork()
        assert not any(loop.running for loop in tracker.health().loops)
        assert tracker.health().aside == ()
        assert registry.pulse.process != before


def test_sweep_command_outlives_a_poisoned_store(url):
    """``fsm sweep`` goes on after a store that did not answer, and ends with an interrupt."""
    script = """
        import sys, threading, _thread
        from fsm.cli.app import app
        from fsm.errors import StoreUnavailable
        from fsm.tracker.sweeper import Sweeper
        real, calls = Sweeper.sweep, []
        def sweep(self):
            calls.append(1)
            if len(calls) == 1: raise StoreUnavailable("away")
            if len(calls) == 2: raise KeyError("a bug")
            if len(calls) == 4: _thread.interrupt_main()
            return real(self)
        Sweeper.sweep = sweep
        try: app(["sweep", "--every", "0.05", "--store", sys.argv[1]], standalone_mode=False)
        finally: print(len(calls))
    """
    with fresh_tracker(url):
        pass
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), url], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 4


# --- callbacks ----------------------------------------------------------------------------------------------------


def test_a_callback_that_raises_hurts_no_commit(store, clock, caplog):
    """Listeners, watchers and the alarm are called on the thread that commits; their errors are logged and counted."""

    def broken(*_arguments):
        raise ZeroDivisionError

    with fresh_tracker(store, clock=clock) as tracker:
        registry = tracker._registry
        heard = []
        registry.listeners[broken] = None
        registry.listeners[lambda: heard.append(1)] = None
        registry.committer.on_earlier, registry.committer.wake_at = broken, float("inf")
        made = tracker.create("a", user_id="u", thread_id="t", timeouts={"queue_s": 5.0})
        registry.committer.watchers[made.id] = broken
        receipts = [
            tracker.fire(made.id, event, fence=fence) for fence, event in enumerate(("start", "think"))
        ]
        assert [one.version for one in receipts] == [1, 2]
        assert tracker.get(made.id).state == "thinking"
        assert len(heard) == 3
        registry.aftermath.close()  # what was misheard is noted on a thread of its own
        assert {one.name: one.failures for one in registry.health.loops() if one.failures} == {
            "the alarm of the sweeper": 3, "a watcher of commits": 2, "a listener": 3,
        }  # fmt: skip
        del registry.listeners[broken]
    assert len([one for one in caplog.records if one.levelno >= logging.ERROR]) == 3


def test_an_end_that_fails_leaves_nothing_open(clock):
    """What is to be done at the end of a tracker and fails keeps nothing else from its end."""

    def broken():
        raise ZeroDivisionError

    with fresh_tracker(clock=clock) as tracker:
        tracker._registry.closing.append(broken)
    assert tracker.closed
    with pytest.raises(StoreUnavailable):
        tracker.find()


# --- the helper ---------------------------------------------------------------------------------------------------


def test_the_main_thread_can_be_ended():
    """In the main thread an exit or an interrupt is meant: it ends the loop."""
    loop = Loop("x", lambda: 0.0)

    def turn():
        raise SystemExit

    with pytest.raises(SystemExit):
        keep_going(loop, turn, lambda _pause_s: False)
    assert not loop.running


def test_a_task_ends_when_it_is_cancelled_and_no_sooner():
    """A loop in a task goes on after errors, and ends with its cancellation."""

    async def main():
        loop, seen = Loop("x", lambda: 0.0), []

        async def turn():
            seen.append(1)
            if len(seen) < 3:
                raise KeyError(len(seen))
            return 1000.0

        supervised_backoff, supervised.BACKOFF_S = supervised.BACKOFF_S, 0.0
        try:
            task = asyncio.ensure_future(keep_going_async(loop, turn, over=lambda: False))
            while len(seen) < 3:
                await asyncio.sleep(0)
            assert loop.running
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        finally:
            supervised.BACKOFF_S = supervised_backoff
        assert loop.report()[1:5] == (False, 1, 2, 0)

    asyncio.run(main())


def test_one_error_is_logged_once_and_a_new_one_again(caplog):
    """The same error in a row is one line of the log; another one, or the same one after a success, is news."""
    loop = Loop("x", lambda: 0.0)
    waits = [loop.failed(KeyError("a")) for _ in range(12)]
    assert waits[:3] == [0.5, 1.0, 2.0]
    assert waits[-1] == supervised.BACKOFF_CAP_S
    loop.failed(KeyError("b"))
    loop.succeeded()
    loop.failed(KeyError("b"))
    assert len([one for one in caplog.records if one.levelno >= logging.ERROR]) == 3


def test_what_is_unreadable_stays_aside_for_its_pause():
    """A record whose version cannot be read is skipped at every version until its pause has passed."""
    health = Health(lambda: 0.0)
    health.set_aside("a", UNREADABLE, "damaged", 10.0, event="lapse")
    assert health.skips("a", 7, 20.0, event="lapse")
    assert not health.skips("a", 7, 20.0, event="time_out")
    assert not health.skips("a", 7, 10.0 + supervised.ASIDE_S, event="lapse")
    health.take_back("a", event="lapse")
    assert health.aside() == ()


def test_an_error_that_cannot_be_shown_is_logged_all_the_same(caplog):
    """An exception whose own text raises ends no loop."""

    class Evil(Exception):
        def __str__(self):
            raise ZeroDivisionError

    loop = Loop("x", lambda: 0.0)
    loop.failed(Evil())
    assert "cannot be read" in loop.report().last_error
    health = Health(lambda: 0.0)
    health.set_aside("a", 1, Evil(), 0.0)
    assert "cannot be read" in health.aside()[0].reason


# --- reports ------------------------------------------------------------------------------------------------------


def test_another_process_sees_the_loops(url, clock):
    """What a process reports of its loops is what another one reads, until it says that it has ended."""
    with fresh_tracker(url, clock=clock) as tracker:
        registry = tracker._registry
        registry.health.stirred = None  # no thread: this test writes the reports
        loop = registry.health.loop("a sweep of mine")
        loop.running = True
        loop.succeeded()
        loop.failed(KeyError("a"))
        registry.pulse.beat()
        clock.advance(3.0)
        clock.jump(-4000.0)  # a wall clock that jumps changes nothing
        with fresh_tracker(url, clock=clock) as other:
            (seen,) = [loop for loop in other.health().loops if loop.name == "a sweep of mine"]
            assert (seen.name, seen.here, seen.running, seen.turns, seen.failing) == (
                "a sweep of mine",
                False,
                True,
                1,
                1,
            )
            assert (seen.silent_s, seen.seen_s, seen.last_error) == (3.0, 3.0, "KeyError: 'a'")
            assert other.health().sweeping
            clock.advance(60.0)
            assert not other.health().sweeping
            registry.pulse.beat(last=True)
            assert not any(loop.running for loop in other.health().loops if not loop.here)
        assert all(loop.here for loop in tracker.health().loops)


def test_a_store_that_fails_hurts_no_loop(url, monkeypatch):
    """A report that cannot be written is tried again later; the loops that it is about do not notice."""
    monkeypatch.setattr(pulses, "BEAT_EVERY_S", 0.01)
    monkeypatch.setattr(pulses, "BEAT_PAUSE_S", 0.001)
    with fresh_tracker(url) as tracker:
        registry = tracker._registry
        real, failed, written = registry.store.beat, [], threading.Event()

        def beat(beats):
            if len(failed) < 1:
                failed.append(1)
                raise MemoryError
            real(beats)
            written.set()

        monkeypatch.setattr(registry.store, "beat", beat)
        registry.health.loop("x").started()
        assert written.wait(60)
        thread = registry.pulse._thread
    assert not thread.is_alive()
    with fresh_tracker(url) as tracker:
        left = {one.name: one.running for one in tracker.health().loops if not one.here}
        assert {"x", pulses.NAME} <= left.keys()
        assert not any(left.values())


def test_a_first_failure_is_reported_at_once(url, monkeypatch):
    """The first failure of a loop wakes the reports up; a process in memory reports nothing."""
    with fresh_tracker(url) as tracker:
        pulse = tracker._registry.pulse
        pulse._thread = threading.Thread()  # it was begun, and waits
        tracker._registry.health.loop("x").started()
        assert not pulse._wake.is_set()
        tracker._registry.health.loop("x").failed(KeyError())
        assert pulse._wake.is_set()
        pulse._thread = None
    with fresh_tracker() as tracker:
        tracker._registry.health.loop("x").started()
        assert tracker._registry.pulse._thread is None


# --- durations ----------------------------------------------------------------------------------------------------

TOO_LONG = [1e10, 1e300, float("inf"), float("nan"), 10**400]


@pytest.mark.parametrize(
    "seconds", [*TOO_LONG, 10**5000], ids=["1e10", "1e300", "inf", "nan", "int", "huge int"]
)
def test_a_duration_without_measure_is_refused(clock, seconds):
    """Whatever takes a duration refuses one that no clock can wait for, with the maximum in the message."""
    with fresh_tracker(clock=clock) as tracker:
        (one,) = overdue(tracker)
        attempts = [
            lambda: Sweeper(tracker._registry, seconds),
            lambda: tracker.worker(ttl_s=seconds),
            *(
                lambda name=name: Engine(tracker, **{name: seconds})
                for name in ("lease_s", "sweep_every_s", "poll_s", "patience_s")
            ),
        ]
        for attempt in attempts:
            with pytest.raises(InvalidArgument, match="1000000000"):
                attempt()
        for attempt in (
            lambda: overdue(tracker, timeouts={"phases": {"thinking": seconds}}),
            lambda: overdue(tracker, timeouts={"total_s": seconds}),
            lambda: overdue(tracker, retry={"backoff_s": seconds}),
            lambda: overdue(tracker, retry={"backoff_cap_s": seconds}),
            lambda: tracker.fire(one, "call_model", retry_in_s=seconds),
            lambda: tracker.fire(one, "await_input", expires_s=seconds),
        ):
            with pytest.raises(InvalidArgument):
                attempt()
        assert tracker.get(one).state == "created"
        assert len(tracker.find()) == 1
        assert tracker.health().workers == ()


def test_the_longest_duration_is_taken_everywhere(store, clock):
    """The maximum itself is accepted, and every look at what came of it works."""
    with fresh_tracker(store, clock=clock) as tracker:
        longest = {"queue_s": MAX_SECONDS, "total_s": MAX_SECONDS, "phases": {"thinking": MAX_SECONDS}}
        retry = Retry(attempts_max=2, backoff_s=MAX_SECONDS, backoff_cap_s=MAX_SECONDS)
        one = tracker.create("a", user_id="u", thread_id="t", timeouts=longest, retry=retry)
        with tracker.worker(ttl_s=MAX_SECONDS):
            tracker.fire(one.id, "start")
        assert tracker.get(one.id).state == "queued"
        assert tracker.sweep().timed_out == 0
        assert Sweeper(tracker._registry, MAX_SECONDS)._turn() <= MAX_SECONDS
        Engine(tracker, lease_s=MAX_SECONDS, poll_s=MAX_SECONDS, sweep_every_s=MAX_SECONDS, patience_s=0)


def test_a_machine_with_a_limit_without_measure_is_refused(clock):
    """A machine's own limits are held to the maximum when the machine is made known."""
    machine = EXECUTION.extend(name="slow", timeouts=Timeouts(total_s=1e12))
    with (
        pytest.raises(ConfigurationError, match="total_s more than 1000000000"),
        fresh_tracker(machines=[machine]),
    ):
        pass


def test_configure_that_is_refused_leaves_no_tracker(url):
    """A tracker whose sweeper cannot be set up is closed, and another one can be configured."""
    for seconds in TOO_LONG:
        with pytest.raises(InvalidArgument):
            configure(url, sweep_every_s=seconds)
    tracker = configure(url, sweep_every_s=MAX_SECONDS)
    tracker.close()


def test_a_lost_lease_is_said_by_name(clock):
    """A worker that was found lost says so on its next renewal."""
    with fresh_tracker(clock=clock) as tracker:
        worker = Worker(tracker._registry, 1.0)
        clock.advance(5.0)
        tracker.sweep()
        with pytest.raises(LeaseLost):
            worker.renew()
