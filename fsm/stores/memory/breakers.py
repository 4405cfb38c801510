"""The breakers' rows in memory. The store holds its lock during each call."""

from __future__ import annotations

from collections import deque

from fsm.stores.breakers import BREAKER_LINES, BreakerEntry, BreakerRow


class Breakers:
    """A row per breaker, and the newest lines of each breaker's journal."""

    def __init__(self) -> None:
        self.rows: dict[str, BreakerRow] = {}
        self._journal: dict[int, BreakerEntry] = {}  # by position, in order
        self._lines: dict[str, deque[int]] = {}  # the positions of each key, the oldest first
        self._position = 0

    def swap(self, expected_version: int, row: BreakerRow, entry: BreakerEntry | None) -> bool:
        """Write a row if its version is as expected."""
        before = self.rows.get(row.key)
        if (0 if before is None else before.version) != expected_version:
            return False
        self._swap_back()
        if entry is not None:
            self._position += 1
            position = self._position
            # The line first, the row last: without the row the line is taken back, and nothing has happened.
            self._journal[position] = entry._replace(position=position)
            lines = self._lines.setdefault(row.key, deque())
            lines.append(position)
            while len(lines) > BREAKER_LINES:
                self._journal.pop(lines.popleft(), None)
        self.rows[row.key] = row
        return True

    def _swap_back(self) -> None:
        """Take back the line of a swap that was interrupted before its row was written."""
        if self._journal:
            position = next(reversed(self._journal))
            last = self._journal[position]
            row = self.rows.get(last.key)
            if row is None or row.version < last.version:
                lines = self._lines.get(last.key)
                if lines and lines[-1] == position:
                    lines.pop()
                self._journal.pop(position, None)

    def all(self) -> list[BreakerRow]:
        """Return every row, by key."""
        return [self.rows[key] for key in sorted(self.rows)]

    def changes(self, after: int, limit: int, key: str | None, before: int | None) -> list[BreakerEntry]:
        """Return lines of the journal between two positions: the first of them, or the last before `before`."""
        self._swap_back()
        positions = self._journal if key is None else self._lines.get(key, ())
        found = [at for at in positions if at > after and (before is None or at < before)]
        chosen = found[:limit] if before is None else found[max(0, len(found) - limit) :]
        return [self._journal[at] for at in chosen]

    def position(self) -> int:
        """Return the journal's last position."""
        self._swap_back()
        return self._position
