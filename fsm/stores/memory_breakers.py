"""The breakers' rows in memory; see `fsm.stores.base.BreakerStore`."""

from __future__ import annotations

from fsm.locks import Lock
from fsm.stores.base import BreakerEntry, BreakerRow


class MemoryBreakers:
    """The part of the memory store that keeps breakers."""

    def __init__(self) -> None:
        """Begin with no row."""
        self._breakers: dict[str, BreakerRow] = {}
        self._breaker_journal: list[BreakerEntry] = []

    def _check_open(self) -> None:
        raise NotImplementedError

    @property
    def _lock(self) -> Lock:
        raise NotImplementedError

    def breaker_load(self, key: str) -> BreakerRow | None:
        """Return a breaker's row."""
        self._check_open()
        return self._breakers.get(key)

    def breaker_swap(
        self, machine: str, expected_version: int, row: BreakerRow, entry: BreakerEntry | None
    ) -> bool:
        """Write a row if nobody was faster."""
        del machine  # one process, one table: the runtime took the row from it
        with self._lock:
            self._check_open()
            before = self._breakers.get(row.key)
            if (0 if before is None else before.version) != expected_version:
                return False
            self._swap_back()
            if entry is not None:
                # The line first, the row last: without the row the line is taken back, and nothing has happened.
                self._breaker_journal.append(entry._replace(position=len(self._breaker_journal) + 1))
            self._breakers[row.key] = row
            return True

    def _swap_back(self) -> None:
        """Take back the line of a swap that was interrupted before its row was written."""
        if self._breaker_journal:
            last = self._breaker_journal[-1]
            row = self._breakers.get(last.key)
            if row is None or row.version < last.version:
                self._breaker_journal.pop()

    def breaker_list(self) -> list[BreakerRow]:
        """Return every row, by key."""
        with self._lock:
            self._check_open()
            return [self._breakers[key] for key in sorted(self._breakers)]

    def breaker_changes(self, after: int, limit: int, key: str | None = None) -> list[BreakerEntry]:
        """Return the journal after a position."""
        with self._lock:
            self._check_open()
            self._swap_back()
            fits = (one for one in self._breaker_journal[max(0, after) :] if key is None or one.key == key)
            return [one for one, _ in zip(fits, range(limit), strict=False)]

    def breaker_position(self) -> int:
        """Return the journal's last position."""
        with self._lock:
            self._swap_back()
            return len(self._breaker_journal)
