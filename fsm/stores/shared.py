"""What a store of many hosts can do beside the protocol: tell one time to all, and wake who waits for commits."""

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
