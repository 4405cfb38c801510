"""The indexes of the store in memory: ids by value, and receipts by position."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

from fsm.core.records import Receipt

CHUNK = 1024
"""The journal is kept in pieces of so many positions, so that old ones can be let go of."""


class Index:
    """Ids by one value, in the order of the births. Most values have one id, which is kept without a list."""

    __slots__ = ("_ids",)

    def __init__(self) -> None:
        self._ids: dict[str, str | list[str]] = {}

    def add(self, value: str, execution_id: str) -> None:
        """Note an id under a value."""
        have = self._ids.get(value)
        if have is None:
            self._ids[value] = execution_id
        elif isinstance(have, list):
            have.append(execution_id)
        else:
            self._ids[value] = [have, execution_id]

    def get(self, value: str) -> list[str]:
        """Return the ids of a value, in the order of the births; not to be changed."""
        have = self._ids.get(value)
        if have is None:
            return []
        return have if isinstance(have, list) else [have]

    def discard(self, value: str, execution_id: str, born: Callable[[str], int]) -> None:
        """Forget an id under a value; `born` returns the position of an id's birth."""
        have = self._ids.get(value)
        if isinstance(have, list):
            index = bisect_left(have, born(execution_id), key=born)
            if index < len(have) and have[index] == execution_id:
                del have[index]
            if not have:
                del self._ids[value]
        elif have == execution_id:
            del self._ids[value]


_position = attrgetter("position")


class Journal:
    """Receipts by position, in pieces; a piece whose receipts were all forgotten is let go of."""

    __slots__ = ("_pieces", "last")

    def __init__(self) -> None:
        self._pieces: dict[int, list[Receipt]] = {}
        self.last = 0

    def append(self, receipt: Receipt) -> None:
        """Add the receipt of the next position."""
        self.last = position = receipt.position
        piece = self._pieces.get(position // CHUNK)
        if piece is None:
            piece = self._pieces[position // CHUNK] = []
        piece.append(receipt)

    def after(self, position: int) -> Iterator[Receipt]:
        """Yield the receipts after a position, ascending."""
        first = (position + 1) // CHUNK
        for number, piece in self._pieces.items():  # in the order in which they were begun: ascending
            if number > first:
                yield from piece
            elif number == first:
                yield from piece[bisect_right(piece, position, key=_position) :]

    def forget(self, receipts: Sequence[Receipt]) -> None:
        """Let go of receipts; their positions are not given out again."""
        touched: dict[int, set[int]] = {}
        for receipt in receipts:
            touched.setdefault(receipt.position // CHUNK, set()).add(receipt.position)
        for number, positions in touched.items():
            kept = [receipt for receipt in self._pieces[number] if receipt.position not in positions]
            if kept or number == self.last // CHUNK:
                self._pieces[number] = kept
            else:
                del self._pieces[number]
