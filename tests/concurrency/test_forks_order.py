"""What a forked child does first."""

from __future__ import annotations

import os
import threading

import pytest

from fsm.concurrency.forks import anew_after_fork
from fsm.concurrency.locks import Lock


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_every_lock_is_usable_when_an_object_begins_anew():
    """An object that starts over in a forked child may take a lock that another thread of the parent held."""
    lock, inside, done = Lock("a test"), threading.Event(), threading.Event()

    class Object:
        taken = False

        def after_fork(self) -> None:
            self.taken = lock.acquire(timeout=5.0)

    def hold() -> None:
        inside.set()
        done.wait(30)

    one = Object()
    anew_after_fork(one)
    thread = threading.Thread(target=lock.run, args=(hold,))
    thread.start()
    assert inside.wait(20)
    child = os.fork()
    if child == 0:
        os._exit(0 if one.taken else 1)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join(20)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_lock_that_is_taken_nested():
    """A section that its own thread may enter again is entered, and other threads wait until it is left."""
    lock, order = Lock("a test"), []
    thread = threading.Thread(target=lambda: lock.run(order.append, "other"))

    def outer() -> None:
        thread.start()
        lock.run_nested(order.append, "inner")
        order.append("outer")

    lock.run_nested(outer)
    thread.join(20)
    assert order == ["inner", "outer", "other"]
    assert not lock.mine()
