"""One file, several processes: opening together, waiting for each other, and forks."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing
from pathlib import Path

import pytest

from fsm import StoreUnavailable
from fsm.core.records import Receipt
from fsm.stores.sqlite import connect as connecting
from fsm.testing import fresh_tracker
from tests.support.sqlite_tools import python, rogue, sound


@pytest.fixture
def file(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


# --- other processes --------------------------------------------------------------------------------------------------


def test_processes_that_open_a_new_file_together_all_succeed(file, url):
    """Several processes that open a brand-new file at the same time all get a working registry."""
    code = """
        import sys
        from fsm.testing import fresh_tracker
        print("ready", flush=True)
        sys.stdin.readline()
        with fresh_tracker(sys.argv[1]) as tracker:
            for number in range(5):
                one = tracker.create("a", user_id="u", thread_id=str(number))
                tracker.fire(one.id, "start")
        print("done", flush=True)
    """
    children = [python(code, url) for _ in range(4)]
    assert [child.stdout.readline() for child in children] == ["ready\n"] * 4
    for child in children:
        child.stdin.write("go\n")
    answers = [child.communicate()[0] for child in children]
    assert answers == ["done\n"] * 4
    with fresh_tracker(url) as tracker:
        assert tracker.counts() == {"starting": 20}
        assert [one.position for one in tracker.subscribe(after=0, follow=False)] == list(range(1, 41))
    sound(file)


def test_a_busy_file_is_waited_for_with_jitter(url, file, monkeypatch):
    """While another process holds the file a write waits, in pauses drawn at random, and then succeeds."""
    code = """
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        print("held", flush=True)
        sys.stdin.readline()
        connection.execute("ROLLBACK")
        print("free", flush=True)
    """
    with fresh_tracker(url) as tracker:
        made = tracker.create("a", user_id="u", thread_id="t")
        child = python(code, file)
        assert child.stdout.readline() == "held\n"
        pauses: list[float] = []
        enough = threading.Event()

        never = threading.Event()

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 12:
                enough.set()
            never.wait(seconds)

        monkeypatch.setattr(connecting.time, "sleep", sleep)
        done: list[Receipt] = []
        thread = threading.Thread(target=lambda: done.append(tracker.fire(made.id, "start")))
        thread.start()
        assert enough.wait(60)
        assert not done
        assert tracker.get(made.id).version == 0  # readers wait for nobody
        assert child.communicate("go\n")[0] == "free\n"
        thread.join(60)
        assert done[0].version == 1
    assert len(set(pauses)) > 6
    assert max(pauses) <= connecting._LONGEST_WAIT_S


def test_a_file_that_stays_busy_is_given_up_with_a_typed_error(url, file, monkeypatch):
    """After the limit a busy file is a typed error that says that nothing was written."""
    with fresh_tracker(url) as tracker, closing(rogue(file)) as other:
        made = tracker.create("a", user_id="u", thread_id="t")
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(connecting.patiently, "__defaults__", (0.0,))
        with pytest.raises(StoreUnavailable, match="busy") as caught:
            tracker.fire(made.id, "start")
        assert caught.value.committed is False
        other.execute("ROLLBACK")
        assert tracker.fire(made.id, "start").version == 1


def fork(child_does) -> tuple[int, int]:
    """Fork for real; the child gets the writing end of a pipe and never comes back to pytest."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        signal.alarm(60)  # a child that hangs must not outlive the test
        try:
            os.close(read_end)
            child_does(write_end)
            code = 0
        finally:
            os._exit(code)
    os.close(write_end)
    return pid, read_end


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_and_its_parent_keep_working_on_one_file(url, file):
    """After a fork parent and child both write, and what either was told is there, whoever closes first."""
    with fresh_tracker(url) as tracker:
        mine = tracker.create("parent", user_id="u", thread_id="t")
        tracker.fire(mine.id, "start")
        tracker.find()  # an open reader, too
        go_read, go_write = os.pipe()

        def child(out: int) -> None:
            theirs = tracker.create("child", user_id="u", thread_id="t")
            tracker.fire(theirs.id, "start")
            os.write(out, b"1")
            os.read(go_read, 1)  # the parent has closed by now
            for _ in range(50):
                event = "think" if tracker.get(theirs.id).state != "thinking" else "call_model"
                tracker.fire(theirs.id, event, fence=1)
            os.write(out, b"2")
            tracker.close()

        pid, answers = fork(child)
        assert os.read(answers, 1) == b"1"
        tracker.fire(mine.id, "think", fence=tracker.get(mine.id).fence)
        assert {one.agent: one.version for one in tracker.find()} == {"parent": 2, "child": 1}
    os.write(go_write, b"x")
    assert os.read(answers, 1) == b"2"
    assert os.waitpid(pid, 0)[1] == 0
    for end in (go_read, go_write, answers):
        os.close(end)
    sound(file)
    with fresh_tracker(url) as tracker:
        assert {one.agent: one.version for one in tracker.find()} == {"parent": 2, "child": 51}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_in_the_middle_of_commits_hangs_nobody(url, file):
    """Forks while other threads commit and read neither hang nor harm: all go on, in the parent and in the children."""
    with fresh_tracker(url) as tracker:
        stop = threading.Event()
        made = [tracker.create("parent", user_id="u", thread_id="t").id for _ in range(4)]

        def work(execution_id: str) -> None:
            tracker.fire(execution_id, "start")
            while not stop.is_set():
                tracker.fire(execution_id, "think", fence=tracker.get(execution_id).fence)
                tracker.fire(execution_id, "call_model", fence=tracker.get(execution_id).fence)
                tracker.get(execution_id)

        threads = [threading.Thread(target=work, args=(one,)) for one in made]
        for thread in threads:
            thread.start()

        def child(out: int) -> None:
            one = tracker.create("child", user_id="u", thread_id="t")
            tracker.fire(one.id, "start")
            tracker.close()
            os.write(out, b"1")

        try:
            for _ in range(6):
                pid, answers = fork(child)
                assert os.read(answers, 1) == b"1"
                assert os.waitpid(pid, 0)[1] == 0
                os.close(answers)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        assert tracker.find(agent="child", state="starting", limit=10) == tracker.find(agent="child")
        assert len(tracker.find(agent="child")) == 6
    sound(file)
