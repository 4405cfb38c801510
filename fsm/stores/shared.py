"""What a store of many machines does beside the protocol: it tells one time to all, and wakes those who wait."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class SharedClock(Protocol):
    """A store with a clock of its own. Deadlines and leases lie on it, whatever the machines' own clocks say."""

    def clock(self) -> float:
        """Return the instant now, in seconds since the epoch; raises `StoreUnavailable`."""
        ...


@runtime_checkable
class Announcing(Protocol):
    """A store that tells of other processes' commits. What is not heard is found by polling."""

    def heard(self, timeout_s: float) -> bool:
        """Wait until another process may have committed; return whether one said so.

        One thread calls this. Raises `StoreUnavailable`.
        """
        ...

    def hush(self) -> None:
        """Let `heard` return at once; raises `StoreUnavailable`."""
        ...
