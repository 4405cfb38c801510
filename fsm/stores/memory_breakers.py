"""The breakers' rows in memory; see `fsm.stores.base.BreakerStore`."""

from __future__ import annotations

from collections import deque

from fsm.concurrency.locks import Lock
from fsm.stores.breakers import BREAKER_LINES, BreakerEntry, BreakerRow


class MemoryBreakers:
    """The part of the memory store that keeps breakers."""

    def __init__(self) -> None:
        """Begin with no row."""
        self._breakers: dict[str, BreakerRow] = {}
        self._breaker_journal: dict[int, BreakerEntry] = {}  # by position, in order
        self._breaker_lines: dict[str, deque[int]] = {}  # the positions of each key, the oldest first
        self._breaker_position = 0

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
                self._breaker_position += 1
                position = self._breaker_position
                # The line first, the row last: without the row the line is taken back, and nothing has happened.
                self._breaker_journal[position] = entry._replace(position=position)
                lines = self._breaker_lines.setdefault(row.key, deque())
                lines.append(position)
                while len(lines) > BREAKER_LINES:
                    self._breaker_journal.pop(lines.popleft(), None)
            self._breakers[row.key] = row
            return True

    def _swap_back(self) -> None:
        """Take back the line of a swap that was interrupted before its row was written."""
        if self._breaker_journal:
            position = next(reversed(self._breaker_journal))
            last = self._breaker_journal[position]
            row = self._breakers.get(last.key)
            if row is None or row.version < last.version:
                lines = self._breaker_lines.get(last.key)
                if lines and lines[-1] == position:
                    lines.pop()
                self._breaker_journal.pop(position, None)

    def breaker_list(self) -> list[BreakerRow]:
        """Return every row, by key."""
        with self._lock:
            self._check_open()
            return [self._breakers[key] for key in sorted(self._breakers)]

    def breaker_changes(
        self, after: int, limit: int, key: str | None = None, before: int | None = None
    ) -> list[BreakerEntry]:
        """Return lines of the journal between two positions: the first of them, or the last before `before`."""
        with self._lock:
            self._check_open()
            self._swap_back()
            positions = self._breaker_journal if key is None else self._breaker_lines.get(key, ())
            found = [at for at in positions if at > after and (before is None or at < before)]
            chosen = found[:limit] if before is None else found[max(0, len(found) - limit) :]
            return [self._breaker_journal[at] for at in chosen]

    def breaker_position(self) -> int:
        """Return the journal's last position."""
        with self._lock:
            self._check_open()
            self._swap_back()
            return self._breaker_position
