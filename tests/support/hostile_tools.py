"""Tools of the hostile tests: exceptions and calls injected at every line, locks held elsewhere, forks that may hang.

`points` runs a call again and again and does something at its first, second, third … traced line. A line is where
Python looks for signals at the earliest, and a tracer may raise there even where a signal cannot come: just before a
``with`` block lets go of its lock.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

from tests.support.places import PACKAGE

MAX_POINTS = 20_000
"""Maximum number of points of one call; a scenario that has more is not small."""
FORK_S = 60.0
"""How long a forked child may take, in seconds."""

injected: Counter[str] = Counter()
"""How many points were met, by scenario; `-s` prints the sum, and the README cites it."""


class Point(NamedTuple):
    """One run of a call that was disturbed.

    Attributes:
        number: The how manieth line it was, from 1.
        where: The line, as ``file:line function``.
        result: What the call returned, ``None`` if it raised.
        raised: What it raised.
    """

    number: int
    where: str
    result: Any
    raised: BaseException | None


class Disturbance:
    """Does something at one traced line of a set of files."""

    def __init__(self, files: Iterable[str], act: Callable[[], object], *, opcodes: bool = False) -> None:
        """Prepare it.

        Args:
            files: Names of files below the package, as ``stores/memory.py``; a folder ends with a slash.
            act: What happens there; an exception that it raises is raised there.
            opcodes: Count every bytecode instead of every line.
        """
        self._files = tuple(str(PACKAGE / name) for name in files)
        self._act = act
        self._opcodes = opcodes
        self._event = "opcode" if opcodes else "line"
        self.left = 0
        self.where = ""

    def trace(self, frame: FrameType, event: str, arg: object) -> Any:
        """Trace a frame; for `sys.settrace` and `threading.settrace`."""
        del arg
        if not frame.f_code.co_filename.startswith(self._files):
            return None
        if event == "call" and self._opcodes:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == self._event and self.left > 0:
            self.left -= 1
            if not self.left:
                name = frame.f_code.co_filename.removeprefix(f"{PACKAGE.parent}{os.sep}")
                self.where = f"{name}:{frame.f_lineno} {frame.f_code.co_name}"
                self._act()
        return self.trace

    def at(self, number: int) -> None:
        """Do it at the line of that number."""
        self.left, self.where = number, ""


def points(
    scenario: str,
    call: Callable[[], object],
    files: Iterable[str],
    act: Callable[[], object],
    *,
    opcodes: bool = False,
) -> Iterator[Point]:
    """Run a call until its last line was disturbed, at one line more each time.

    Args:
        scenario: Its name, for the count.
        call: What is disturbed; it may do something else each time, as the next event of an execution is.
        files: The files whose lines count; see `Disturbance`.
        act: What happens at the line.
        opcodes: At every bytecode instead.

    Yields:
        What became of each run.
    """
    disturbance = Disturbance(files, act, opcodes=opcodes)
    before = sys.gettrace()
    for number in range(1, MAX_POINTS):
        disturbance.at(number)
        result: object = None
        raised: BaseException | None = None
        sys.settrace(disturbance.trace)
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - it is looked at by the test
            raised = error
        finally:
            sys.settrace(before)
        if not disturbance.where:
            return
        injected[scenario] += 1
        yield Point(number, disturbance.where, result, raised)
    raise AssertionError(f"{scenario} has more than {MAX_POINTS} lines")


def raising(error: type[BaseException]) -> Callable[[], object]:
    """Return an act that raises."""

    def act() -> None:
        raise error("injected")

    return act


def elsewhere(call: Callable[[], Any]) -> Any:
    """Return what a call returns on another thread; a lock that was left locked makes it time out."""
    out: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            out.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it waits for ever"
    if failed:
        raise failed[0]
    return out[0]


@contextmanager
def held(lock: Any, until: Callable[[], object] = lambda: False) -> Iterator[None]:
    """Hold a lock on another thread for the length of a block, or until something is so."""
    taken, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            while not let_go.wait(0.001) and not until():
                pass

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(60)
    try:
        yield
    finally:
        let_go.set()
        thread.join(60)


def forked(work: Callable[[], object]) -> str:
    """Do something in a forked child; return what was wrong, an empty text for nothing."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        said = b""
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is told to the parent
            said = repr(error).encode()
        finally:
            os.write(writer, said)
            os._exit(0)
    os.close(writer)
    end = time.monotonic() + FORK_S
    try:
        while not os.waitpid(pid, os.WNOHANG)[0]:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return "it hangs"
            time.sleep(0.002)
        return os.read(reader, 10_000).decode()
    finally:
        os.close(reader)
