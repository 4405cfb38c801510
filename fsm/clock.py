"""Time comes in from outside: the wall clock for records, the monotonic clock for waits.

The two are never mixed. A wall clock may jump by an hour; nothing that waits looks at it.
"""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import Protocol

from fsm.locks import Lock


class Clock(Protocol):
    """What the library asks of time. Inject another one in tests and replays."""

    def wall(self) -> float:
        """Return the instant as seconds since the epoch; it goes into records."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back; only differences mean anything."""
        ...

    def era(self) -> str:
        """Return a name for the origin of `monotonic`: two clocks of one era can be compared with each other."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait.

        Args:
            seconds: How long, in seconds.
        """
        ...


class SystemClock:
    """The machine's own clocks."""

    def wall(self) -> float:
        """Return the system's time in seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return the system's monotonic time in seconds."""
        return time.monotonic()

    def era(self) -> str:
        """Return the boot's id: the monotonic clock counts from the boot, for all processes alike."""
        return _boot_id()

    def sleep(self, seconds: float) -> None:
        """Sleep for real, for `seconds`."""
        time.sleep(seconds)


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        # No such file on this system. The process's own id is safe: its instants are compared with its own only.
        return f"process-{os.getpid()}"


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
        return "manual"

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
