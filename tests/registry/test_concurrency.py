"""Many callers at once: threads, tasks and processes; and what becomes of them when the committer is hurt."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections import deque
from collections.abc import Callable

import pytest

from fsm import Refused, StoreUnavailable
from fsm.core.journal import fold
from fsm.lifecycles import EXECUTION
from fsm.testing import fresh_tracker
from fsm.tracker.tracker import Tracker
from tests.support.inside import registry_of, store_of
from tests.support.sqlite_tools import python, sound


@pytest.fixture(params=["memory://", "sqlite"])
def either(request, url):
    """A fresh tracker on each kind of store."""
    with fresh_tracker(url if request.param == "sqlite" else request.param) as fresh:
        yield fresh


def begun(tracker: Tracker) -> str:
    made = tracker.create("a", user_id="u", thread_id="t")
    tracker.fire(made.id, "start")
    return made.id


def at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """Let so many threads begin together, and return what each came to, errors included."""
    together = threading.Barrier(count, timeout=60)
    out: list[object] = [None] * count

    def run(number: int) -> None:
        together.wait()
        try:
            out[number] = work(number)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            out[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "somebody waits for ever"
    return out


def assert_whole(tracker: Tracker, one: str) -> None:
    history = tracker.history(one)
    assert [receipt.version for receipt in history] == list(range(len(history)))
    assert fold(history, EXECUTION) == tracker.get(one).state


def assert_one_end(tracker: Tracker, one: str, answers: list[tuple[str, str, str]]) -> None:
    """Each answer is (event, "won" or the reason, the state that the answer names)."""
    ended = tracker.get(one).state
    won = [answer for answer in answers if answer[1] == "won"]
    assert len(won) == 1
    assert won[0][2] == ended
    assert {answer[1:] for answer in answers if answer not in won} == {("terminal", ended)}
    assert tracker.get(one).version == 2
    assert_whole(tracker, one)


def end(tracker: Tracker, one: str, event: str) -> tuple[str, str, str]:
    try:
        return event, "won", tracker.fire(one, event, fence=tracker.get(one).fence).target
    except Refused as error:
        return event, error.reason if "an end is final" in str(error) else str(error), error.state


# --- contradictory ends -----------------------------------------------------------------------------------------------


def test_of_two_threads_ends_one_wins(either):
    """Of two contradictory ends by two threads exactly one is taken, and the other is refused as terminal."""
    winners = set()
    for _ in range(40):
        one = begun(either)
        answers = at_once(2, lambda number, one=one: end(either, one, ("fail", "time_out")[number]))
        assert_one_end(either, one, answers)
        winners.add(either.get(one).state)
    assert winners <= {"failed", "timed_out"}


def test_of_many_tasks_ends_one_wins(either):
    """Of contradictory ends by many asyncio tasks exactly one is taken, and all others are refused as terminal."""

    async def finish(one: str, event: str) -> tuple[str, str, str]:
        try:
            return event, "won", (await either.aio.fire(one, event, fence=either.get(one).fence)).target
        except Refused as error:
            return event, error.reason, error.state

    async def scenario(one: str) -> list[tuple[str, str, str]]:
        return await asyncio.gather(*(finish(one, event) for event in ("fail", "time_out") * 8))

    for _ in range(10):
        one = begun(either)
        assert_one_end(either, one, asyncio.run(scenario(one)))


FIRING = """
    import json, sys
    from fsm import Refused
    from fsm.testing import fresh_tracker

    with fresh_tracker(sys.argv[1]) as tracker:
        print("ready", flush=True)
        for line in sys.stdin:
            ids, events = json.loads(line)
            answers = []
            for one in ids:
                for event in events:
                    try:
                        receipt = tracker.fire(one, event, fence=tracker.get(one).fence)
                        answers.append((one, event, "won", receipt.target))
                    except Refused as error:
                        answers.append((one, event, error.reason, error.state))
            print(json.dumps(answers), flush=True)
"""


def test_of_four_processes_ends_one_wins(url):
    """Of contradictory ends by four processes exactly one is taken for each execution, and the others are refused."""
    with fresh_tracker(url) as tracker:
        ids = [begun(tracker) for _ in range(30)]
        children = [python(FIRING, url) for _ in range(4)]
        assert [child.stdout.readline() for child in children] == ["ready\n"] * 4
        for child, event in zip(children, ("fail", "time_out") * 2, strict=True):
            child.stdin.write(json.dumps([ids, [event]]) + "\n")
            child.stdin.flush()
        answers = [answer for child in children for answer in json.loads(child.communicate()[0])]
        for one in ids:
            assert_one_end(tracker, one, [tuple(answer[1:]) for answer in answers if answer[0] == one])


def test_four_processes_leave_no_gap(url, tmp_path):
    """Four processes that fire at the same executions all get through: no version and no position is missing."""
    with fresh_tracker(url) as tracker:
        ids = [begun(tracker) for _ in range(5)]
        children = [python(FIRING, url) for _ in range(4)]
        assert [child.stdout.readline() for child in children] == ["ready\n"] * 4
        for child in children:
            child.stdin.write(json.dumps([ids * 5, ["progress", "open_tool", "close_tool"]]) + "\n")
            child.stdin.flush()
        answers = [answer for child in children for answer in json.loads(child.communicate()[0])]
        assert {answer[2] for answer in answers} <= {"won", "guard"}
        for one in ids:
            won = [answer for answer in answers if answer[0] == one and answer[2] == "won"]
            assert tracker.get(one).version == 1 + len(won)
        positions = [receipt.position for receipt in tracker.subscribe(after=0, follow=False)]
        assert positions == list(range(1, len(positions) + 1))
    sound(tmp_path / "fsm.db")


# --- many threads -----------------------------------------------------------------------------------------------------


def test_thirty_two_threads_over_many_executions(either):
    """Thirty-two threads that create, fire, read and find at once get what they were told."""

    def work(number: int) -> list[str]:
        mine = [begun(either) for _ in range(4)]
        for one in mine:
            for event in ("think", "call_model", "think", "progress"):
                either.fire(one, event, fence=either.get(one).fence)
            assert either.get(one).version == 5
        assert len(either.find(agent="a", limit=4)) == 4
        return mine

    made = at_once(32, work)
    assert not [one for one in made if isinstance(one, Exception)], made
    ids = [one for mine in made for one in mine]
    assert len(set(ids)) == 128
    assert either.counts() == {"thinking": 128}
    for one in ids:
        assert_whole(either, one)
    receipts = list(either.subscribe(after=0, follow=False))
    assert [receipt.position for receipt in receipts] == list(range(1, 128 * 6 + 1))


def test_thirty_two_threads_at_one_execution(either):
    """Thirty-two threads at one execution are served one after another: every version is made once."""
    one = begun(either)
    versions = at_once(
        32, lambda _: [either.fire(one, "progress", fence=either.get(one).fence).version for _ in range(5)]
    )
    assert sorted(version for each in versions for version in each) == list(range(2, 162))
    assert_whole(either, one)


# --- the committer, hurt ----------------------------------------------------------------------------------------------


class Hurt:
    """Stands before a store's append: holds it, counts it, and lets it fail before or after the commit."""

    def __init__(self, tracker: Tracker) -> None:
        self.store = store_of(tracker)
        self.real = self.store.append
        self.batches: list[int] = []
        self.hold = False
        self.began, self.go = threading.Event(), threading.Event()
        self.before: BaseException | None = None
        self.after: BaseException | None = None
        self.store.append = self.append

    def append(self, steps):
        self.batches.append(len(steps))
        if self.hold:
            self.hold = False
            self.began.set()
            assert self.go.wait(60)
        before, self.before = self.before, None
        if before is not None:
            raise before
        out = self.real(steps)
        after, self.after = self.after, None
        if after is not None:
            raise after
        return out


class Counting(deque):
    """A queue that says when so many wait in it."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.full = count, threading.Event()

    def append(self, command) -> None:
        super().append(command)
        if len(self) == self.count:
            self.full.set()


def crowd(tracker: Tracker, hurt: Hurt, ids: list[str], key: str | None = None) -> list[object]:
    """Let one caller be held in the store while all others queue up, then let them go; return their outcomes."""
    hurt.hold = True
    first = threading.Thread(target=lambda: tracker.create("first", user_id="u", thread_id="t"))
    first.start()
    assert hurt.began.wait(60)
    out: list[object] = [None] * len(ids)

    def run(number: int) -> None:
        try:
            out[number] = tracker.fire(ids[number], "think", fence=tracker.get(ids[number]).fence, key=key)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test looks at it
            out[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(ids))]
    for thread in threads:
        thread.start()
    committer = registry_of(tracker).committer
    queued = threading.Event()
    while len(committer._queue) + 1 < len(
        ids
    ):  # the committer's thread may hold nothing yet: it waits for the first
        queued.wait(0.001)
    hurt.go.set()
    first.join(60)
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "somebody waits for ever"
    return out


@pytest.fixture
def durable(url):
    with fresh_tracker(url) as fresh:
        yield fresh


def test_callers_that_wait_share_one_transaction(durable):
    """Callers that come while a commit is under way are committed together, in one transaction."""
    ids = [begun(durable) for _ in range(32)]
    hurt = Hurt(durable)
    out = crowd(durable, hurt, ids)
    assert [one.version for one in out] == [2] * 32
    assert hurt.batches[0] == 1
    assert sum(hurt.batches) == 33
    assert len(hurt.batches) <= 3
    assert max(hurt.batches) >= 31


def test_a_lone_caller_commits_on_its_own_thread(durable):
    """A caller that is alone pays no thread hop: its commit happens on its own thread."""
    one = begun(durable)
    seen = []
    real = store_of(durable).append
    store_of(durable).append = lambda steps: (seen.append(threading.current_thread()), real(steps))[1]
    durable.fire(one, "think", fence=durable.get(one).fence)
    assert seen == [threading.current_thread()]
    assert registry_of(durable).committer._thread is None


@pytest.mark.parametrize("committed", [False, None])
def test_an_error_of_a_batch_reaches_every_caller_of_it(committed, durable):
    """When a batch fails every one of its callers gets a typed error of its own, and the next call succeeds."""
    ids = [begun(durable) for _ in range(16)]
    hurt = Hurt(durable)
    original = hurt.append

    def fail_the_crowd(steps):
        if len(steps) > 1:
            hurt.before = StoreUnavailable("the disk is gone", committed=committed)
        return original(steps)

    hurt.store.append = fail_the_crowd
    out = crowd(durable, hurt, ids)
    failed = [one for one in out if isinstance(one, StoreUnavailable)]
    assert len(failed) >= 15
    assert len({id(one) for one in failed}) == len(failed)
    assert {one.committed for one in failed} == {committed}
    hurt.store.append = hurt.real
    for one, answer in zip(ids, out, strict=True):
        if isinstance(answer, StoreUnavailable):
            assert durable.fire(one, "think", fence=durable.get(one).fence).version == 2


def test_an_error_before_the_commit_changed_nothing(either):
    """After an error before the commit nothing was written, and the same call succeeds."""
    one = begun(either)
    hurt = Hurt(either)
    hurt.before = StoreUnavailable("gone")
    with pytest.raises(StoreUnavailable) as caught:
        either.fire(one, "think", fence=either.get(one).fence, key="k")
    assert caught.value.committed is False
    assert either.get(one).version == 1
    assert either.fire(one, "think", fence=either.get(one).fence, key="k").version == 2


def test_an_ambiguous_commit_is_cleared_up_by_its_key(either):
    """When nobody can tell whether it was committed, the same key gives the first receipt and no second transition."""
    one = begun(either)
    hurt = Hurt(either)
    hurt.after = StoreUnavailable("the line broke", committed=None)
    with pytest.raises(StoreUnavailable) as caught:
        either.fire(one, "think", fence=either.get(one).fence, key="k")
    assert caught.value.committed is None
    receipt = either.fire(one, "think", fence=either.get(one).fence, key="k")
    assert receipt.version == 2
    assert receipt == either.history(one)[-1]
    assert either.fire(one, "progress", fence=either.get(one).fence).version == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError, MemoryError])
def test_an_interrupt_in_the_committers_thread_leaves_nobody_waiting(error, durable, caplog):
    """Whatever is raised while a batch is committed, each of its callers is told, and the committer goes on."""
    ids = [begun(durable) for _ in range(8)]
    hurt = Hurt(durable)
    original = hurt.append

    def interrupt_the_crowd(steps):
        if len(steps) > 1:
            hurt.before = error("now")
        return original(steps)

    hurt.store.append = interrupt_the_crowd
    out = crowd(durable, hurt, ids)
    assert sum(isinstance(one, error) for one in out) >= 7
    hurt.store.append = hurt.real
    again = crowd(durable, Hurt(durable), [begun(durable) for _ in range(8)])
    assert [one.version for one in again] == [2] * 8


def test_an_interrupt_of_a_lone_caller_leaves_the_way_free(either):
    """A caller that is interrupted in the middle of its commit gets its interrupt, and the next one gets through."""
    one = begun(either)
    hurt = Hurt(either)
    for when in ("before", "after"):
        setattr(hurt, when, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            either.fire(one, "progress", fence=either.get(one).fence)
        [version] = at_once(1, lambda _: either.fire(one, "progress", fence=either.get(one).fence).version)
        assert version == either.get(one).version
    assert_whole(either, one)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals")
def test_a_ctrl_c_while_waiting_costs_only_the_one_who_waits(durable):
    """Whoever presses Ctrl-C while a caller waits for the disk interrupts that caller; the others are served."""
    one = begun(durable)
    hurt = Hurt(durable)
    hurt.hold = True

    heard = threading.Event()

    def interrupt(*_: object) -> None:
        if not heard.is_set():
            heard.set()
            raise KeyboardInterrupt

    def press() -> None:
        assert hurt.began.wait(60)
        while not heard.wait(0.02):  # one that comes just before the wait begins does not end it: press again
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    presser = threading.Thread(target=press)
    before = signal.signal(signal.SIGINT, interrupt)
    presser.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            durable.fire(
                one, "think", fence=durable.get(one).fence
            )  # nobody lets it go on: only the interrupt ends the wait
    finally:
        presser.join(60)
        signal.signal(signal.SIGINT, before)
        hurt.go.set()
    assert (
        at_once(4, lambda _: durable.fire(one, "progress", fence=durable.get(one).fence).state)
        == [durable.get(one).state] * 4
    )
    assert_whole(durable, one)


def test_one_callers_failure_is_not_its_batchs(durable, monkeypatch):
    """An error that only one command of a batch meets is that caller's alone; the others are committed."""
    ids = [begun(durable) for _ in range(6)]
    hurt = Hurt(durable)
    real = hurt.store.keyed

    def keyed(execution_id, key):
        if execution_id == ids[3]:
            raise ZeroDivisionError("only here")
        return real(execution_id, key)

    monkeypatch.setattr(hurt.store, "keyed", keyed)
    out = crowd(durable, hurt, ids, key="k")
    assert isinstance(out.pop(3), ZeroDivisionError)
    assert [one.version for one in out] == [2] * 5


def test_a_conflict_decides_anew_on_what_is_there(url):
    """A step that lost to another process is decided again on the record as it is: taken if it is still legal."""
    with fresh_tracker(url) as tracker:
        one = begun(tracker)
        tracker.fire(one, "think", fence=tracker.get(one).fence)
        with fresh_tracker(url) as other:
            other.fire(one, "call_model", fence=other.get(one).fence)
            other.fire(one, "open_tool", fence=other.get(one).fence, name="theirs")
        assert tracker.fire(one, "open_tool", fence=tracker.get(one).fence, name="mine").version == 5
        assert tracker.get(one).open_tools == ("theirs", "mine")
        with fresh_tracker(url) as other:
            other.fire(one, "fail", fence=other.get(one).fence)
        with pytest.raises(Refused) as caught:
            tracker.fire(one, "think", fence=tracker.get(one).fence)
        assert (caught.value.reason, caught.value.version) == ("terminal", 6)


def batch(tracker: Tracker, *wanted: tuple[str, str]) -> list[object]:
    """Carry several events out in one batch, and return what each came to."""
    registry = registry_of(tracker)
    commands = [registry.event(one, event, {}, fence=1, key=None, user_id=None) for one, event in wanted]
    registry.committer.commit_all(commands)
    return [command.outcome or command.error for command in commands]


def test_a_refusal_that_leans_on_a_failed_step_is_not_given(either):
    """A refusal because of a step of the same batch is not given when that step was not committed after all."""
    one = begun(either)
    Hurt(either).before = StoreUnavailable("gone")
    ended, refused = batch(either, (one, "fail"), (one, "think"))
    assert isinstance(ended, StoreUnavailable)
    assert isinstance(refused, StoreUnavailable)
    assert either.get(one).state == "starting"


def test_a_refusal_that_leans_on_a_lost_step_is_decided_anew(url):
    """A refusal because of a step that was lost to another process is decided again on what that process made."""
    with fresh_tracker(url) as tracker:
        one = begun(tracker)
        tracker.fire(one, "think", fence=tracker.get(one).fence)
        with fresh_tracker(url) as other:
            other.fire(one, "call_model", fence=other.get(one).fence)
        refused, taken = batch(tracker, (one, "prepare_tools"), (one, "back_off"))
        assert (refused.reason, refused.state, refused.version) == ("not_allowed", "calling_model", 3)
        assert (taken.version, taken.target) == (4, "backing_off")
        assert_whole(tracker, one)


# --- closing ----------------------------------------------------------------------------------------------------------


def test_a_closed_tracker_refuses_at_once(either):
    """Every call on a closed tracker is refused at once, from threads and tasks, and closing again is no error."""
    one = begun(either)
    either.close()
    either.close()
    for call in (
        lambda: either.fire(one, "think", fence=either.get(one).fence),
        lambda: either.create("a", user_id="u", thread_id="t"),
        lambda: either.get(one),
        either.find,
        lambda: asyncio.run(either.aio.fire(one, "think", fence=either.get(one).fence)),
        lambda: asyncio.run(either.aio.get(one)),
    ):
        with pytest.raises(StoreUnavailable, match="closed"):
            call()
    answers = at_once(8, lambda _: either.fire(one, "think", fence=either.get(one).fence))
    assert {type(answer) for answer in answers} == {StoreUnavailable}


def test_closing_commits_what_is_queued_and_turns_the_rest_away(url):
    """Callers at the moment of closing are committed or turned away, none is left waiting, and none is told wrongly."""
    for _ in range(5):
        with fresh_tracker(url) as tracker:
            ids = [begun(tracker) for _ in range(8)]

            def work(number: int, tracker: Tracker = tracker, ids: list[str] = ids) -> int:
                if number == 8:
                    tracker.close()
                    return 0
                done = 0
                try:
                    while True:
                        tracker.fire(ids[number], "progress", fence=tracker.get(ids[number]).fence)
                        done += 1
                except StoreUnavailable as error:
                    return done if error.committed is False else -1

            done = at_once(9, work)
        with fresh_tracker(url) as tracker:
            assert [tracker.get(one).version - 1 for one in ids] == done[:8]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_has_a_committer_of_its_own(url):
    """A forked child commits by itself: the parent's queue and thread are not its own, its worker id neither."""
    with fresh_tracker(url) as tracker:
        ids = [begun(tracker) for _ in range(8)]
        crowd(tracker, Hurt(tracker), ids)  # the committer's thread runs now
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            try:
                answers = at_once(
                    8,
                    lambda number: (
                        tracker.fire(ids[number], "call_model", fence=tracker.get(ids[number]).fence).version
                    ),
                )
                mine = tracker.create("child", user_id="u", thread_id="t")
                owner = tracker.fire(mine.id, "start").owner
                os.write(write_end, json.dumps([answers, owner]).encode())
                tracker.close()
            finally:
                os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as answers:
            versions, owner = json.loads(answers.read())
        os.waitpid(pid, 0)
        assert versions == [3] * 8
        assert owner != tracker.worker_id
        assert (
            at_once(
                8,
                lambda number: (
                    tracker.fire(ids[number], "think", fence=tracker.get(ids[number]).fence).version
                ),
            )
            == [4] * 8
        )
