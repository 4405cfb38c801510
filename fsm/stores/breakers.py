"""What a store keeps of circuit breakers: a row per key, and the newest lines of its journal."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

BREAKER_LINES = 1_000
"""Maximum number of lines of each breaker's journal that are kept, the newest; each key keeps its row for ever."""
LAST = 2**63 - 1
"""A position that no line of a journal reaches."""


class BreakerRow(NamedTuple):
    """What is kept of a circuit breaker that ever changed its state. Instants are seconds since the epoch.

    Attributes:
        key: What it protects.
        state: Its state.
        version: How often the row was written; 0 stands for a breaker that has no row yet.
        generation: How often it changed its state, from 1 on.
        changed_at: When it last changed its state.
        since: When `until` was set; ``until - since`` is the most that anybody waits, whatever clocks say.
        until: When it may be probed again, while it is open.
        openings: How many probes have failed since it was last closed.
        probes: The probes in flight, each as (token, when its lease ends).
        successes: How many probes of this generation succeeded.
        abandoned: How many probes of this generation were cancelled.
    """

    key: str
    state: str
    version: int = 0
    generation: int = 1
    changed_at: float = 0.0
    since: float | None = None
    until: float | None = None
    openings: int = 0
    probes: tuple[tuple[str, float], ...] = ()
    successes: int = 0
    abandoned: int = 0


class BreakerEntry(NamedTuple):
    """A row of the breakers' journal.

    Attributes:
        position: Its place in the journal; the store sets it.
        key: Whose transition it is.
        version: The version that it made.
        event: The event.
        source: The state before.
        target: The state after.
        generation: The generation after it.
        at: When it happened, in seconds since the epoch.
        by: Who did it: a person, or the worker whose call it was.
        why: What for, in words.
    """

    position: int
    key: str
    version: int
    event: str
    source: str
    target: str
    generation: int
    at: float
    by: str | None
    why: str | None


@runtime_checkable
class BreakerStore(Protocol):
    """What a store does that breakers are shared over. Every method may raise `StoreUnavailable`."""

    def breaker_load(self, key: str) -> BreakerRow | None:
        """Return a breaker's row, or ``None`` if it never changed its state."""
        ...

    def breaker_swap(
        self, machine: str, expected_version: int, row: BreakerRow, entry: BreakerEntry | None
    ) -> bool:
        """Write a row if no other writer was faster, and its line of the journal with it: both or neither.

        Args:
            machine: The content hash of the breakers' machine, which was registered before.
            expected_version: The version that the row must have now; 0 for no row.
            row: The row after it, with the next version.
            entry: The journal's line; ``None`` for a note (a probe given back) that takes no row of the table.

        Returns:
            Whether it was written.
        """
        ...

    def breaker_list(self) -> list[BreakerRow]:
        """Return every row, by key."""
        ...

    def breaker_changes(
        self, after: int, limit: int, key: str | None = None, before: int | None = None
    ) -> list[BreakerEntry]:
        """Return lines of the breakers' journal, oldest first, of one key or all.

        Of each key the newest `BREAKER_LINES` are kept; no position is given out twice.

        Args:
            after: Only lines after this position.
            limit: Maximum number: the first of them, or the last ones if `before` is given.
            key: Only lines of this key.
            before: Only lines before this position; `LAST` for the end of the journal.
        """
        ...

    def breaker_position(self) -> int:
        """Return the position of the journal's last line; 0 if it is empty."""
        ...
