"""Loops that must go on: an unexpected error is logged once, counted, and followed by another turn.

Every thread and task of the library that others rely on takes its turns through a `Loop`, which decides what is
logged and how long to wait after a failure. `keep_going` drives one in a thread and `keep_going_async` in a task; what
a loop has been through is data (`Loop.report`), which `tracker.health()` and ``fsm doctor`` show.

What is set aside is one record that cannot be worked on in this process (its payload model is not registered here,
its row is damaged): it is skipped until it changes or its pause has passed, so that it neither starves nor spins the
loop that met it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

logger = logging.getLogger(__name__)

BACKOFF_S = 0.5
"""The wait after the first failure in a row, in seconds; it doubles with each further one."""
BACKOFF_CAP_S = 30.0
"""The longest wait after a failure, in seconds."""
ASIDE_S = 60.0
"""How long a record is set aside before it is tried again, in seconds; it doubles with each further failure."""
ASIDE_CAP_S = 3_600.0
"""The longest time for which a record is set aside, in seconds."""
MAX_ASIDE = 10_000
"""Maximum number of records that are set aside at once; further ones are tried at every turn until there is room."""
MAX_ASIDE_LOGGED = 20
"""Number of records that are set aside with a line of the log each; `Health.aside` lists them all."""

UNREADABLE = -1
"""The version of a record whose version cannot be read: it stays set aside until its pause has passed."""


class LoopReport(NamedTuple):
    """What a loop has been through.

    Attributes:
        name: The loop's name.
        running: Whether it is being driven.
        turns: Number of turns that ended without an error.
        failures: Number of turns that failed.
        failing: Number of failures since the last turn that succeeded.
        last_error: The last error, on one line; ``None`` if there was none.
        failed_at: When the last turn failed, in seconds since the epoch.
        succeeded_at: When the last turn succeeded, in seconds since the epoch.
        alive_at: The same instant on the steady timeline, which no wall clock moves.
    """

    name: str
    running: bool
    turns: int
    failures: int
    failing: int
    last_error: str | None
    failed_at: float | None
    succeeded_at: float | None
    alive_at: float | None = None


class Aside(NamedTuple):
    """A record that is not worked on for the time being.

    Attributes:
        execution_id: The record.
        version: Its version when it failed; a later one is tried at once.
        reason: Why, on one line.
        since_at: When it was first set aside, in seconds since the epoch.
        failures: Number of failures in a row.
        retry_at: When it is tried again, on the steady timeline.
        event: What could not be carried out; empty for whatever there is to do with the record.
    """

    execution_id: str
    version: int
    reason: str
    since_at: float
    failures: int
    retry_at: float
    event: str = ""


class Loop:
    """One loop that must go on."""

    def __init__(
        self,
        name: str,
        wall: Callable[[], float],
        *,
        expected: tuple[type[BaseException], ...] = (),
        stirred: Callable[[bool], None] | None = None,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe it.

        Args:
            name: Its name, for the log and the report.
            wall: Returns the instant, in seconds since the epoch.
            expected: Errors that are logged without a traceback, such as a store that does not answer.
            stirred: Called with False when the loop is started, and with True at the first failure in a row.
            steady: Returns the instant on a timeline that never goes back.
        """
        self.name = name
        self.running = False
        self._wall = wall
        self._stirred = stirred
        self._steady = steady
        self._expected = expected
        self._turns = self._failures = self._failing = 0
        self._last_error: str | None = None
        self._failed_at: float | None = None
        self._succeeded_at: float | None = None
        self._alive_at: float | None = None

    def started(self) -> None:
        """Note that it is being driven."""
        self.running = True
        self._stir(urgent=False)

    def ended(self) -> None:
        """Note that it is driven no longer."""
        self.running = False

    def _stir(self, *, urgent: bool) -> None:
        if self._stirred is None:
            return
        try:
            self._stirred(urgent)
        except Exception:
            logger.exception("%s could not be reported; it goes on", self.name)

    def succeeded(self) -> None:
        """Note a turn that ended without an error."""
        if self._failing:
            logger.info("%s goes on after %d failed turns", self.name, self._failing)
        self._turns += 1
        self._failing = 0
        self._succeeded_at, self._alive_at = self._wall(), self._steady()

    def failed(self, error: BaseException) -> float:
        """Note a turn that failed; one error is logged once, however many turns in a row it ends.

        Returns:
            How long to wait before the next turn, in seconds.
        """
        said = one_line(error)
        news = not self._failing or said != self._last_error
        self._failures += 1
        self._failing += 1
        self._last_error, self._failed_at = said, self._wall()
        wait_s = min(BACKOFF_CAP_S, BACKOFF_S * 2.0 ** min(self._failing - 1, 16))
        if not news:
            logger.debug("%s failed again (%d in a row): %s", self.name, self._failing, said)
        elif isinstance(error, self._expected):
            logger.warning("%s failed and goes on in %g s: %s", self.name, wait_s, said)
        else:
            logger.error("%s failed and goes on in %g s", self.name, wait_s, exc_info=error)
        if self._failing == 1:
            self._stir(urgent=True)
        return wait_s

    def report(self) -> LoopReport:
        """Return what it has been through."""
        return LoopReport(
            self.name, self.running, self._turns, self._failures, self._failing, self._last_error,
            self._failed_at, self._succeeded_at, self._alive_at,
        )  # fmt: skip


class Health:
    """The loops of one registry, and the records that they have set aside."""

    def __init__(self, wall: Callable[[], float], steady: Callable[[], float] = time.monotonic) -> None:
        """Begin with none.

        Args:
            wall: Returns the instant, in seconds since the epoch.
            steady: Returns the instant on a timeline that never goes back.
        """
        self._wall = wall
        self._steady = steady
        self._loops: dict[str, Loop] = {}
        self._aside: dict[tuple[str, str], Aside] = {}
        self.stirred: Callable[[bool], None] | None = None
        """Called with False when a loop is started, and with True when one fails for the first time in a row."""

    def loop(self, name: str, *, expected: tuple[type[BaseException], ...] = ()) -> Loop:
        """Return the loop of a name; one that is started again goes on counting."""
        loop = self._loops.get(name)
        if loop is None:
            # setdefault: two threads that ask at once get the same one.
            loop = self._loops.setdefault(
                name,
                Loop(name, self._wall, expected=expected, stirred=self._stir, steady=self._steady),
            )
        return loop

    def _stir(self, urgent: bool) -> None:  # noqa: FBT001 - the one thing that is said
        if self.stirred is not None:
            self.stirred(urgent)

    def loops(self) -> tuple[LoopReport, ...]:
        """Return the report of every loop, in the order of their first start."""
        return tuple(loop.report() for loop in list(self._loops.values()))

    def after_fork(self) -> None:
        """Begin again in a forked child: none of its parent's loops runs there."""
        for loop in self._loops.values():
            loop.ended()
        self._aside.clear()

    def call(self, name: str, function: Callable[..., object], *args: object) -> None:
        """Call a function that must not fail its caller; an error is logged once, counted under `name`, never raised.

        Several functions share a name, so that a success of one says nothing of another: none is counted.
        """
        try:
            function(*args)
        except Exception as error:  # noqa: BLE001 - the purpose of this method
            self.failed(name, error)

    def failed(self, name: str, error: BaseException) -> None:
        """Count and log the error of a function that is called in no loop."""
        self.loop(name).failed(error)

    def set_aside(
        self, execution_id: str, version: int, error: BaseException | str, now: float, *, event: str = ""
    ) -> None:
        """Skip a record for a while; the reason is logged the first time.

        Args:
            execution_id: The record.
            version: Its version.
            error: Why.
            now: The instant on the steady timeline.
            event: What could not be carried out; other events of the same record are not skipped.
        """
        reason = error if isinstance(error, str) else one_line(error)
        key = (execution_id, event)
        known = self._aside.pop(key, None)
        failures = known.failures + 1 if known is not None and known.version == version else 1
        if known is None and not self._room(now):
            logger.debug("%s is not remembered as set aside: %s", execution_id, reason)
            return
        if known is None or known.reason != reason:
            self._say(execution_id, event, reason, error)
        pause_s = min(ASIDE_CAP_S, ASIDE_S * 2.0 ** min(failures - 1, 16))
        since_at = known.since_at if known is not None else self._wall()
        self._aside[key] = Aside(execution_id, version, reason, since_at, failures, now + pause_s, event)

    def _room(self, now: float) -> bool:
        """Return whether one more can be set aside; what was not met again since its pause passed makes room."""
        if len(self._aside) >= MAX_ASIDE:
            for key, aside in list(self._aside.items()):
                if aside.retry_at <= now:
                    self._aside.pop(key, None)
        return len(self._aside) < MAX_ASIDE

    def _say(self, execution_id: str, event: str, reason: str, error: BaseException | str) -> None:
        count = len(self._aside)
        if count > MAX_ASIDE_LOGGED:
            return
        if count == MAX_ASIDE_LOGGED:
            logger.error(
                "more than %d records are set aside; further ones get no line here: see tracker.health()",
                count,
            )
            return
        what = f"{event!r} could not be carried out and " if event else ""
        trace = error if isinstance(error, BaseException) else None
        logger.error("%s: %sis set aside: %s", execution_id, what, reason, exc_info=trace)

    def skips(self, execution_id: str, version: int, now: float, *, event: str = "") -> bool:
        """Return whether a record is set aside at this version and its pause has not passed."""
        aside = self._aside.get((execution_id, event))
        return aside is not None and aside.version in {version, UNREADABLE} and now < aside.retry_at

    def take_back(self, execution_id: str, *, event: str = "") -> None:
        """Forget that a record was set aside: it was worked on."""
        self._aside.pop((execution_id, event), None)

    def aside(self) -> tuple[Aside, ...]:
        """Return every record that is set aside, the oldest first."""
        return tuple(self._aside.values())


def one_line(error: BaseException) -> str:
    """Return an error as one line of text, whatever its own `__str__` does."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - an exception's own method may raise anything
        text = "(its text cannot be read)"
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


def keep_going(
    loop: Loop,
    turn: Callable[[], float],
    wait: Callable[[float], bool],
    *,
    ends: tuple[type[BaseException], ...] = (),
) -> None:
    """Take turns in this thread until told to stop.

    In the main thread KeyboardInterrupt and SystemExit end it. In any other thread they are not meant for the thread: a
    validator of a user's that calls ``sys.exit`` fails one turn.

    Args:
        loop: What notes successes and failures.
        turn: One turn; returns how long to wait before the next one, in seconds.
        wait: Waits for that time; returns whether to stop.
        ends: Errors that are noted and end it: no further turn can succeed.
    """
    main = threading.current_thread() is threading.main_thread()
    loop.started()
    try:
        while True:
            try:
                pause_s = turn()
            except BaseException as error:
                if main and not isinstance(error, Exception):
                    raise
                pause_s = loop.failed(error)
                if isinstance(error, ends):
                    raise
            else:
                loop.succeeded()
            if wait(min(pause_s, threading.TIMEOUT_MAX)):
                return
    finally:
        loop.ended()


async def keep_going_async(
    loop: Loop, turn: Callable[[], Awaitable[float]], *, over: Callable[[], bool]
) -> None:
    """Take turns in this task until it is cancelled or `over` says so.

    Args:
        loop: What notes successes and failures.
        turn: One turn; returns how long to wait before the next one, in seconds.
        over: Returns whether to stop; asked before each wait.
    """
    import asyncio  # noqa: PLC0415 - loaded by those who use it

    loop.started()
    try:
        while True:
            try:
                pause_s = await turn()
            except Exception as error:  # noqa: BLE001 - the purpose of this function
                pause_s = loop.failed(error)
            else:
                loop.succeeded()
            if over():
                return
            await asyncio.sleep(pause_s)
    finally:
        loop.ended()
