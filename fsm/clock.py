"""Time comes in from outside: the wall clock for records, the monotonic clock for waits.

The two are never mixed. A wall clock may jump by an hour; nothing that waits looks at it. `fsm.core.timeline` makes
of the monotonic clock the timeline on which deadlines lie, and says what a boot, a suspended machine and a wrong
wall clock do to it.
"""

from __future__ import annotations

import os
import secrets
import time
from functools import cache
from pathlib import Path
from typing import Protocol

from fsm.concurrency.forks import at_fork
from fsm.concurrency.locks import Lock

ALONE = "process-"
"""How the name of an era begins that is one process: its monotonic clock is compared with no other's."""
APART = "virtual-"
"""How the name of an era begins whose time has nothing to do with that of others: its wall clock is all there is."""
MANUAL = "manual"
"""The name of the era whose time is set by hand; no other clock moves it."""
_FIRST_TIME_NAMESPACE = 0xEFFFFFFA  # PROC_TIME_INIT_INO of the Linux kernel


class Clock(Protocol):
    """What the library asks of time. Inject another one in tests and replays."""

    def wall(self) -> float:
        """Return the instant as seconds since the epoch; it goes into records."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back; only differences mean anything."""
        ...

    def era(self) -> str:
        """Return a name for the origin of `monotonic`: two clocks of one era can be compared with each other.

        A name that begins with `ALONE` or `APART` is that of one process, even if another process has the same name.
        """
        ...

    def sleep(self, seconds: float) -> None:
        """Wait.

        Args:
            seconds: How long, in seconds.
        """
        ...


class SystemClock:
    """The machine's own clocks."""

    wall = staticmethod(time.time)
    """Returns the system's time in seconds since the epoch; each event asks for it."""

    def monotonic(self) -> float:
        """Return the system's monotonic time in seconds; the shift of a time namespace is taken out of it."""
        return time.monotonic() - _time_namespace()[0]

    def era(self) -> str:
        """Return the boot's id: the monotonic clock counts from the boot, for all processes alike."""
        return _boot_id() + _time_namespace()[1]

    def sleep(self, seconds: float) -> None:
        """Sleep for real, for `seconds`."""
        time.sleep(seconds)


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        # No such file on this system. A process id alone is given out again: the random part makes it this process.
        return f"{ALONE}{os.getpid()}-{secrets.token_hex(8)}"


@cache
def _time_namespace() -> tuple[float, str]:
    """Return by how many seconds a Linux time namespace shifts the monotonic clock, and what to add to the era.

    The kernel tells the shift of the namespace that children are put into. Nearly always that is the process's own;
    otherwise its own is the first one, which is not shifted, or one of which nothing is known: an era of its own.
    """
    try:
        own = Path("/proc/self/ns/time").stat().st_ino
        children = Path("/proc/self/ns/time_for_children").stat().st_ino
        shifts = Path("/proc/self/timens_offsets").read_text(encoding="ascii")
        if own == children:
            [(seconds, nanoseconds)] = [
                fields[1:] for line in shifts.splitlines() if (fields := line.split())[0] == "monotonic"
            ]
            return int(seconds) + int(nanoseconds) / 1e9, ""
    except (OSError, ValueError, IndexError):
        return 0.0, ""
    return 0.0, "" if own == _FIRST_TIME_NAMESPACE else f"+time-{own}"


at_fork(_time_namespace.cache_clear)  # a child may be born into another namespace


class ManualClock:
    """A clock that goes on only when it is told to; a sleep moves it instead of waiting."""

    def __init__(self, start_at: float = 1_700_000_000.0) -> None:
        """Start at an instant.

        Args:
            start_at: Seconds since the epoch.
        """
        self._wall = start_at
        self._monotonic = 0.0
        self._lock = Lock("a clock that is set")

    def wall(self) -> float:
        """Return the set instant in seconds since the epoch."""
        return self._wall

    def monotonic(self) -> float:
        """Return the seconds by which the clock was advanced."""
        return self._monotonic

    def era(self) -> str:
        """Return the same name for all manual clocks: a test sets them as it wants them."""
        return MANUAL

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks, by `seconds` (not negative)."""
        if seconds < 0:
            raise ValueError("time does not go back; use jump() to set the wall clock alone")
        with self._lock:
            self._wall += seconds
            self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock alone forth or back by `seconds`, as an administrator or NTP would."""
        with self._lock:
            self._wall += seconds

    def sleep(self, seconds: float) -> None:
        """Advance by `seconds`, at once."""
        self.advance(max(0.0, seconds))
