"""Deadlines, the sweeper, and clocks that jump."""

from __future__ import annotations

import threading

import pytest

from fsm.clock import ManualClock
from fsm.core.records import Retry
from fsm.errors import InvalidArgument, InvalidMachine, Refused, StoreUnavailable
from fsm.machine.grammar import Fact, row, state
from fsm.machine.machine import Machine
from fsm.machine.timeouts import Timeouts
from fsm.tracker import sweeper as sweeping
from fsm.tracker.process import configure, fresh_tracker
from fsm.tracker.retention import Retention
from fsm.tracker.sweeper import Sweeper


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


def begin(tracker, *events, **options):
    execution = tracker.create("a", user_id="u", thread_id="t", **options)
    for event in events:
        tracker.fire(execution.id, event, fence=tracker.get(execution.id).fence)
    return execution.id


def last(tracker, execution_id):
    return tracker.history(execution_id)[-1]


@pytest.mark.parametrize(
    ("kind", "timeouts", "events", "after_s", "end"),
    [
        ("queue", {"queue_s": 5.0}, [], 5.0, "timed_out"),
        ("queue", {"queue_s": 5.0}, ["enqueue"], 5.0, "timed_out"),
        ("phase", {"phase_s": 0.5}, ["start", "think"], 0.5, "timed_out"),
        ("phase", {"phase_s": 50.0, "phases": {"thinking": 0.5}}, ["start", "think"], 0.5, "timed_out"),
        ("idle", {"idle_s": 3.0}, ["start", "think"], 3.0, "timed_out"),
        ("input", {"input_s": 7.0}, ["start", "think", "await_input"], 7.0, "timed_out"),
        ("total", {"total_s": 2.0}, ["start", "think"], 2.0, "timed_out"),
        ("grace", {"grace_s": 1.5}, ["start", "cancel"], 1.5, "cancelled"),
    ],
)
def test_each_kind_of_deadline_fires(tracker, clock, kind, timeouts, events, after_s, end):
    """Each kind of deadline ends the execution once it has passed, not before, and says how late it was noticed."""
    execution_id = begin(tracker, *events, timeouts=timeouts)
    clock.advance(after_s - 0.001)
    assert tracker.sweep().timed_out == 0
    clock.advance(0.251)
    assert tracker.sweep().timed_out == 1
    assert tracker.get(execution_id).state == end
    payload = last(tracker, execution_id).payload
    assert payload["kind"] == kind
    assert payload["late_s"] == pytest.approx(0.25)


def test_progress_keeps_an_idle_execution_alive(tracker, clock):
    """An execution that shows progress in time is not idle, however long it runs."""
    execution_id = begin(tracker, "start", "think", timeouts={"idle_s": 3.0, "phase_s": 1000.0})
    for _ in range(10):
        clock.advance(2.9)
        assert tracker.sweep().timed_out == 0
        tracker.fire(execution_id, "progress", fence=tracker.get(execution_id).fence)
        assert tracker.sweep().timed_out == 0
    clock.advance(3.1)
    assert tracker.sweep().timed_out == 1


def test_a_stale_deadline_is_harmless(tracker, clock):
    """A deadline that was found before the execution moved on does nothing to it."""
    execution_id = begin(tracker, "start", timeouts={"phase_s": 1.0})
    clock.advance(2.0)
    registry = tracker._registry
    (due,) = registry.store.due(registry.now(), 10)
    tracker.fire(execution_id, "think", fence=tracker.get(execution_id).fence)
    order = registry.order(due.execution_id, "time_out", {"kind": due.kind}, version=due.version)
    assert registry.carry_all([order]) == 0
    assert tracker.get(execution_id).state == "thinking"
    assert order.outcome.reason == "stale"


def test_a_deadline_that_moves_while_it_is_swept_is_left_alone(tracker, clock, monkeypatch):
    """An execution that moves on between the sweeper's look and its event is not timed out."""
    execution_id = begin(tracker, "start", timeouts={"phase_s": 1.0})
    clock.advance(2.0)
    store = tracker._registry.store
    real = store.due

    def due(now, limit):
        found = real(now, limit)
        if found and tracker.get(execution_id).state == "starting":
            tracker.fire(execution_id, "think", fence=tracker.get(execution_id).fence)
        return found

    monkeypatch.setattr(store, "due", due)
    assert tracker.sweep().timed_out == 0
    assert tracker.get(execution_id).state == "thinking"


def test_two_sweepers_time_out_once(tracker, clock):
    """However many sweepers find a deadline, it fires once."""
    ids = [begin(tracker, "start", timeouts={"phase_s": 1.0}) for _ in range(50)]
    clock.advance(2.0)
    sweepers = [Sweeper(tracker._registry) for _ in range(4)]
    done = []
    threads = [
        threading.Thread(target=lambda one=one: done.append(one.sweep().timed_out)) for one in sweepers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done) == 50
    assert all(len(tracker.history(one)) == 3 for one in ids)


def test_waiting_for_a_retry_is_not_silence(tracker, clock):
    """The queue's limit counts from the moment when a retry may begin."""
    execution_id = begin(tracker, "start", timeouts={"queue_s": 10.0}, retry=Retry(attempts_max=2))
    tracker.fire(
        execution_id,
        "fail",
        fence=tracker.get(execution_id).fence,
        error="x",
        retryable=True,
        retry_in_s=100.0,
    )
    clock.advance(105.0)
    assert tracker.sweep().timed_out == 0
    clock.advance(6.0)
    assert tracker.sweep().timed_out == 1


def test_a_retry_waits_longer_every_time(tracker):
    """The wait before an attempt doubles with each one, up to the cap, and is shortened by half at most."""
    retry = Retry(attempts_max=20, backoff_s=1.0, backoff_cap_s=8.0)
    execution_id = begin(tracker, retry=retry)
    waits = []
    for _ in range(6):
        tracker.fire(execution_id, "start")
        tracker.fire(execution_id, "fail", fence=tracker.get(execution_id).fence, error="x", retryable=True)
        execution = tracker.get(execution_id)
        waits.append(execution.not_before - tracker._registry.now())
    for wait, full in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert full / 2 <= wait <= full


def test_a_person_may_have_a_limit_of_their_own(tracker, clock):
    """A question's own expiry takes the place of the general limit for input, and of that wait only."""
    execution_id = begin(tracker, "start", "think", timeouts={"input_s": 5.0})
    tracker.fire(execution_id, "await_input", fence=tracker.get(execution_id).fence, expires_s=50.0)
    clock.advance(40.0)
    assert tracker.sweep().timed_out == 0
    tracker.fire(execution_id, "receive_input", text="hello")
    tracker.fire(execution_id, "await_input", fence=tracker.get(execution_id).fence)
    clock.advance(6.0)
    assert tracker.sweep().timed_out == 1


def test_an_answer_may_take_as_long_as_the_question_allows(tracker, clock):
    """An answer within a question's own expiry is in time, and the run has what was left of its total_s before."""
    execution_id = begin(tracker, "start", "think")
    clock.advance(1200.0)
    assert (
        "undercut"
        not in tracker.fire(
            execution_id, "await_input", fence=tracker.get(execution_id).fence, expires_s=7 * 86_400.0
        ).payload
    )
    assert tracker.get(execution_id).due_at == tracker._registry.now() + 7 * 86_400.0
    tracker._registry.carry_all([tracker._registry.order(execution_id, "lapse", {})])
    clock.advance(6 * 86_400.0)
    tracker.sweep()
    assert tracker.get(execution_id).state == "awaiting_input"
    tracker.fire(execution_id, "receive_input", text="yes")
    clock.advance(3000.0)
    tracker.sweep()
    assert tracker.get(execution_id).state == "queued"
    tracker.fire(execution_id, "start")
    for _ in range(47):
        clock.advance(1700.0)
        tracker.fire(execution_id, "think", fence=tracker.get(execution_id).fence)
        tracker.sweep()
        assert tracker.get(execution_id).state == "thinking"
        tracker.fire(execution_id, "call_model", fence=tracker.get(execution_id).fence)
    clock.advance(1000.0)
    tracker.fire(execution_id, "think", fence=tracker.get(execution_id).fence)
    assert tracker.get(execution_id).due_kind == "total"
    clock.advance(1300.5)
    tracker.sweep()
    assert last(tracker, execution_id).payload["kind"] == "total"


def test_a_question_that_nobody_answers_expires(tracker, clock):
    """A question ends when its expiry says so, also one that outlives the machine's total_s."""
    execution_id = begin(tracker, "start", "think")
    tracker.fire(execution_id, "await_input", fence=tracker.get(execution_id).fence, expires_s=7 * 86_400.0)
    clock.advance(7 * 86_400.0 + 1.0)
    assert tracker.sweep().timed_out == 1
    assert last(tracker, execution_id).payload["kind"] == "input"


def logged(tracker):
    """Wait until what the committer leaves to another thread is done."""
    done = threading.Event()
    tracker._registry.aftermath.later(done.set)
    assert done.wait(60)


def test_a_total_of_ones_own_is_a_limit_on_everything_and_says_so(tracker, clock, caplog):
    """A total_s that the execution brought ends its questions too: log and journal say so when one is asked."""
    execution_id = begin(tracker, "start", "think", timeouts={"total_s": 3600.0})
    receipt = tracker.fire(
        execution_id,
        "await_input",
        fence=tracker.get(execution_id).fence,
        question="ok?",
        expires_s=7 * 86_400.0,
    )
    assert receipt.payload["question"] == "ok?"
    assert "total_s ends in 3600 s" in receipt.payload["undercut"]
    assert last(tracker, execution_id) == receipt
    logged(tracker)
    assert caplog.text.count("before the question expires") == 1
    tracker.fire(execution_id, "progress", fence=tracker.get(execution_id).fence)
    logged(tracker)
    assert caplog.text.count("before the question expires") == 1
    clock.advance(3601.0)
    assert tracker.sweep().timed_out == 1
    assert last(tracker, execution_id).payload["kind"] == "total"
    short = begin(tracker, "start", "think", timeouts={"total_s": 3600.0})
    assert (
        "undercut"
        not in tracker.fire(short, "await_input", fence=tracker.get(short).fence, expires_s=60.0).payload
    )
    assert (
        "undercut"
        not in tracker.fire(
            begin(tracker, "start", "think"),
            "await_input",
            fence=tracker.get(begin(tracker, "start", "think")).fence,
        ).payload
    )


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_wall_clock_that_jumps_neither_kills_nor_blocks(tracker, clock, jump_s):
    """The wall clock jumping an hour either way kills nothing that is healthy and saves nothing that is overdue."""
    with tracker.worker(ttl_s=10.0) as worker:
        execution_id = begin(tracker, "start", "think", timeouts={"phase_s": 60.0})
        clock.jump(jump_s)
        assert tracker.sweep() == (0, 0, 0, 0, 0)
        clock.advance(9.0)
        worker.renew()
        clock.jump(-jump_s / 2)
        clock.advance(9.0)
        assert tracker.sweep() == (0, 0, 0, 0, 0)
        tracker.fire(execution_id, "call_model", fence=tracker.get(execution_id).fence)
        clock.advance(61.0)
        worker.renew()
        assert tracker.sweep().timed_out == 1
        instants = [receipt.at for receipt in tracker.history(execution_id)]
        assert instants == sorted(instants)


@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan"), float("inf"), "5", True])
@pytest.mark.parametrize("name", ["total_s", "queue_s", "phase_s", "idle_s", "input_s", "grace_s"])
def test_a_limit_that_is_no_duration_is_refused(tracker, name, value):
    """Zero, negative, endless and wordy limits are refused; nothing is created and nothing truncated."""
    with pytest.raises(InvalidArgument, match=name):
        tracker.create("a", user_id="u", thread_id="t", timeouts={name: value})
    with pytest.raises(InvalidArgument):
        tracker.create("a", user_id="u", thread_id="t", timeouts={"phases": {"thinking": value}})
    assert tracker.counts() == {}


def test_no_execution_is_left_without_any_limit(tracker):
    """Limits that would leave an execution open for ever are refused when it is created."""
    with pytest.raises(InvalidArgument, match="total_s"):
        tracker.create("a", user_id="u", thread_id="t", timeouts=Timeouts(total_s=None, queue_s=None))
    execution = tracker.create("a", user_id="u", thread_id="t", timeouts=Timeouts(queue_s=None))
    assert execution.due_kind == "total"


def test_a_machine_of_ones_own_is_swept(tracker, clock):
    """A user's machine with deadlines is timed out by the same sweeper, without declaring any payload."""
    machine = Machine(
        name="door",
        initial="open",
        states=(state("open", "waiting", "phase"), state("shut", "terminal"), state("gone", "terminal")),
        transitions=(
            row("open", "shut", "shut", "windless", otherwise="it would slam"),
            row("open", "cancel", "gone"),
            row("open", "time_out", "gone"),
        ),
        facts=(Fact(name="windless"),),
        timeouts=Timeouts(phase_s=3.0),
    )
    execution = tracker.create("a", user_id="u", thread_id="t", machine=machine)
    with pytest.raises(Refused, match="slam"):
        tracker.fire(execution.id, "shut", windless=False)
    clock.advance(4.0)
    assert tracker.sweep().timed_out == 1
    assert tracker.get(execution.id).state == "gone"
    assert tracker.get(execution.id).outcome == "phase"


def test_a_limit_without_a_row_is_a_finding():
    """A machine that sets a limit which no row can carry out is refused when it is declared."""
    with pytest.raises(InvalidMachine, match="total deadline has no transition"):
        Machine(
            name="m",
            initial="a",
            states=(state("a", "running"), state("b", "terminal")),
            transitions=(row("a", "go", "b"),),
            timeouts=Timeouts(total_s=1.0),
        )


def test_the_background_sweeper_meets_a_deadline(store, monkeypatch):
    """A process with a sweeper of its own sees a timeout when it is due, not at the next round of the sweep."""
    monkeypatch.delenv("FSM_STORE", raising=False)
    tracker = configure(store, sweep_every_s=3600.0)
    try:
        execution_id = begin(tracker, "start", "think", timeouts={"phase_s": 0.05})
        for receipt in tracker.subscribe(after=0, execution_id=execution_id):
            final = receipt
        assert (final.event, final.target) == ("time_out", "timed_out")
    finally:
        tracker.close()


def test_the_sweeper_survives_a_store_that_is_down(clock, monkeypatch):
    """A sweep that fails is said and tried again; the thread does not die of it."""
    with fresh_tracker(clock=clock) as tracker:
        registry = tracker._registry
        sweeper = Sweeper(registry, every_s=0.001)
        failed, swept = threading.Event(), threading.Event()
        real = registry.store.due

        def due(now, limit):
            if not failed.is_set():
                failed.set()
                raise StoreUnavailable("down")
            swept.set()
            return real(now, limit)

        monkeypatch.setattr(registry.store, "due", due)
        sweeper.start()
        assert swept.wait(20)
        sweeper.stop()


def test_what_is_due_is_found_again_until_it_has_moved_on(tracker, clock):
    """A sweeper that dies between finding and firing costs nothing: the next one finds the same deadline."""
    begin(tracker, "start", timeouts={"phase_s": 1.0})
    clock.advance(2.0)
    store, now = tracker._registry.store, tracker._registry.now()
    assert store.due(now, 10) == store.due(now, 10) != []


# --- retention ------------------------------------------------------------------------------------------------


def finish(tracker, execution_id):
    tracker.fire(execution_id, "cancel")
    return execution_id


def test_only_what_has_ended_is_pruned(tracker, clock):
    """Pruning deletes ended executions with their journals by age, and never an open one."""
    old = finish(tracker, begin(tracker))
    still_open = begin(tracker)
    clock.advance(100.0)
    young = finish(tracker, begin(tracker))
    assert tracker.prune(older_than_s=50.0) == 1
    assert [one.id for one in tracker.find()] == sorted([still_open, young])
    positions = {receipt.execution_id for receipt in tracker.subscribe(after=0, follow=False)}
    assert positions == {still_open, young}
    assert tracker.prune(older_than_s=0.0, keep=0) <= 1
    assert tracker.get(still_open).state == "created"
    assert old not in tracker.counts()


def test_pruning_by_count_keeps_the_youngest(tracker, clock):
    """Keeping n ended executions keeps the n that ended last."""
    ids = []
    for _ in range(7):
        ids.append(finish(tracker, begin(tracker)))
        clock.advance(1.0)
    assert tracker.prune(keep=3) == 4
    assert [one.id for one in tracker.find()] == sorted(ids[-3:])
    assert tracker.counts() == {"cancelled": 3}


@pytest.mark.parametrize("jump_s", [40 * 86_400.0, -40 * 86_400.0])
def test_a_wall_clock_that_jumps_prunes_nothing_and_keeps_nothing(tracker, clock, jump_s):
    """What has ended ages with the steady timeline: a wall clock that jumps deletes and saves nothing."""
    sweeper = Sweeper(tracker._registry, 1.0, Retention(max_age_s=30 * 86_400.0))
    young = finish(tracker, begin(tracker))
    clock.jump(jump_s)
    during = finish(tracker, begin(tracker))
    assert sweeper.sweep().pruned == 0
    clock.jump(-jump_s)
    clock.advance(29 * 86_400.0)
    assert sweeper.sweep().pruned == 0
    assert {one.id for one in tracker.find()} == {young, during}
    clock.advance(2 * 86_400.0)
    assert sweeper.sweep().pruned == 2


def test_everything_that_has_ended_is_pruned_at_age_zero(tracker, clock):
    """An age of 0 means everything that has ended, also at this very instant."""
    finish(tracker, begin(tracker))
    still_open = begin(tracker)
    clock.jump(-3600.0)
    assert tracker.prune(older_than_s=0) == 1
    assert [one.id for one in tracker.find()] == [still_open]


def test_several_pruners_keep_what_the_policy_keeps(tracker, monkeypatch):
    """A pruner that counted before another one deleted deletes nothing that is to be kept."""
    for _ in range(20):
        finish(tracker, begin(tracker))
    store = tracker._registry.store
    real = store.ended_count
    turns = [20, 20]  # both counted before either deleted
    monkeypatch.setattr(store, "ended_count", lambda: turns.pop() if turns else real())
    assert tracker.prune(keep=15) == 5
    assert tracker.prune(keep=15) == 0
    assert real() == 15


def test_an_archive_has_what_is_deleted(tracker):
    """What is pruned is handed to the archive first; an archive that fails keeps everything."""
    execution_id = finish(tracker, begin(tracker, metadata={"a": [1]}))
    history = [receipt.as_dict() for receipt in tracker.history(execution_id)]

    def broken(_record):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        tracker.prune(keep=0, archive=broken)
    assert tracker.get(execution_id).state == "cancelled"
    kept = []
    assert tracker.prune(keep=0, archive=kept.append) == 1
    assert kept[0]["execution"]["metadata"] == {"a": [1]}
    assert kept[0]["history"] == history


def test_positions_are_never_given_out_twice(tracker):
    """A position that was pruned is not used again: a subscriber's cursor would pass over what is new."""
    finish(tracker, begin(tracker))
    top = tracker.position()
    tracker.prune(keep=0)
    begin(tracker)
    assert tracker.position() == top + 1
    assert [receipt.position for receipt in tracker.subscribe(after=top, follow=False)] == [top + 1]


def test_the_sweeper_prunes_by_policy(clock):
    """A sweeper with a retention policy keeps the registry at its size."""
    with fresh_tracker(clock=clock) as tracker:
        sweeper = Sweeper(tracker._registry, retention=Retention(max_count=10))
        for _ in range(5):
            for _ in range(20):
                finish(tracker, begin(tracker))
            assert sweeper.sweep().pruned > 0
            assert tracker.counts() == {"cancelled": 10}


def test_memory_holds_nothing_of_what_was_pruned(clock):
    """After pruning, no index of the store in memory grows with the executions that there have been."""
    with fresh_tracker(clock=clock) as tracker:
        store = tracker._registry.store
        lasting = begin(tracker, "start")

        def sizes():
            return {
                name: len(value)
                for name, value in vars(store).items()
                if isinstance(value, (dict, list, set))
            } | {f"journal.{len(piece)}": 1 for piece in store._journal._pieces.values() if False}

        def generation():
            for number in range(300):
                execution_id = begin(tracker, "start", "think")
                tracker.fire(
                    execution_id, "progress", fence=tracker.get(execution_id).fence, key=f"k{number}"
                )
                tracker.fire(execution_id, "fail", fence=tracker.get(execution_id).fence, error="x")
            clock.advance(10.0)
            tracker.sweep()
            tracker.prune(keep=5)

        for _ in range(5):
            generation()
        before = sizes()
        for _ in range(15):
            generation()
        after = sizes()
        assert after["_rows"] == before["_rows"] == 6
        assert {name: size for name, size in after.items() if size > 2 * before[name] + 100} == {}
        assert len(store._journal._pieces) <= 3
        tracker.fire(lasting, "think", fence=tracker.get(lasting).fence)


def test_an_ordered_wait_does_not_count_against_a_limit(tracker, clock):
    """A pause that is longer than the phase's limit is waited for; the limit counts from its end."""
    execution_id = begin(tracker, "start", "call_model", timeouts={"phase_s": 10.0})
    tracker.fire(execution_id, "back_off", fence=tracker.get(execution_id).fence, retry_in_s=100.0)
    clock.advance(105.0)
    assert tracker.sweep().timed_out == 0
    clock.advance(6.0)
    assert tracker.sweep().timed_out == 1


# --- the sweeper itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every_s", [0, -1.0, float("inf"), float("nan"), "5", None, True])
def test_a_sweeper_needs_a_pause(tracker, every_s):
    """A pause of no, negative or endless length, or of no number at all, is refused."""
    with pytest.raises(InvalidArgument, match="positive number of seconds"):
        Sweeper(tracker._registry, every_s)


@pytest.mark.parametrize(("due", "looks"), [(0, 1), (1, 1), (2, 2), (5, 3)])
def test_a_sweep_asks_again_only_after_a_full_page(tracker, clock, monkeypatch, due, looks):
    """Everything due is handled in one sweep, page by page; a page that is not full is the last."""
    monkeypatch.setattr(sweeping, "BATCH", 2)
    for _ in range(due):
        begin(tracker, timeouts={"queue_s": 5.0})
    clock.advance(6.0)
    store = tracker._registry.store
    find, asked = store.due, []

    def counted(now, limit):
        asked.append(limit)
        return find(now, limit)

    monkeypatch.setattr(store, "due", counted)
    assert tracker.sweep().timed_out == due
    assert asked == [2] * looks


def test_a_sweep_that_gets_nothing_done_ends(tracker, clock, monkeypatch):
    """A full page of which nothing can be carried out is passed over: each row is tried once in one sweep."""
    monkeypatch.setattr(sweeping, "BATCH", 2)
    for _ in range(4):
        begin(tracker, timeouts={"queue_s": 5.0})
    clock.advance(6.0)
    registry = tracker._registry
    tried = []
    monkeypatch.setattr(registry, "carry_all", lambda commands: tried.append(len(commands)) or 0)
    assert tracker.sweep().timed_out == 0
    assert tried == [2, 2, 0]


@pytest.mark.parametrize(
    ("queue_s", "pause_s", "wakes_in_s"), [(None, 10.0, 10.0), (3.0, 3.0, 3.0), (50.0, 10.0, 10.0)]
)
def test_a_sweeper_sleeps_to_the_nearest_deadline(tracker, clock, queue_s, pause_s, wakes_in_s):
    """Between two sweeps it sleeps its pause, or to the nearest deadline, and the committer knows till when."""
    sweeper = Sweeper(tracker._registry, every_s=10.0)
    if queue_s is not None:
        begin(tracker, timeouts={"queue_s": queue_s})
    now = tracker._registry.now()
    assert sweeper._pause_s() == pytest.approx(pause_s)
    assert tracker._registry.committer.wake_at - now == pytest.approx(wakes_in_s)
    clock.advance(100.0)
    assert sweeper._pause_s() == (10.0 if queue_s is None else 0.0)


def test_a_sweeper_that_is_stopped_has_ended(tracker):
    """The thread does not keep a process alive; stopping waits for it, except when it stops itself."""
    sweeper = Sweeper(tracker._registry, every_s=1000.0)
    sweeper.stop()  # it was never begun
    sweeper = Sweeper(tracker._registry, every_s=1000.0)
    sweeper.start()
    thread = sweeper._thread
    sweeper.stop()
    assert (thread.daemon, thread.is_alive()) == (True, False)
    itself = Sweeper(tracker._registry, every_s=1000.0)
    itself.sweep = itself.stop
    itself.start()
    itself._thread.join(60)
    assert not itself._thread.is_alive()
