"""What is damaged in a file: pages leave it out, say so once, and go on with the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fsm.errors import BadPayload, DamagedRecord, NotAStore
from fsm.stores.base import Damage

logger = logging.getLogger(__name__)

MAX_DAMAGED = 1000
"""Maximum number of damaged records that are listed; further ones are left out of pages without being listed."""
MAX_LEFT_OUT = 10_000
"""Maximum number of damaged rows that one page passes over; a file with more of them in a row is refused."""

T = TypeVar("T")
LIMIT = ":limit:"
"""What a question writes in the place of the limit, which is not the same each time."""
_MOST = 2**63 - 1


class Pages:
    """Reads pages of a file, and notes what it had to leave out."""

    def __init__(self, rows: Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]) -> None:
        """Begin with no damage.

        Args:
            rows: Answers a question to the file.
        """
        self._rows = rows
        self._damaged: dict[tuple[str, str], Damage] = {}

    def damaged(self) -> list[Damage]:
        """Return what pages have left out in this process."""
        return list(self._damaged.values())

    def all(self, sql: str, values: Sequence[Any], make: Callable[[tuple[Any, ...]], T]) -> list[T]:
        """Return what is made of every row that is whole."""
        return self._whole(self._rows(sql, values), make)

    def page(
        self, sql: str, values: Sequence[Any], limit: int, make: Callable[[tuple[Any, ...]], T]
    ) -> list[T]:
        """Return a page of what is made of rows that are whole, as full as if there were no others.

        Args:
            sql: The question, in its order. `LIMIT` in it stands for the limit, which is added at its end.
            values: What it is asked with.
            limit: How many at the most; any number below 0 for all.
            make: Makes something of a row, or raises `DamagedRecord`.

        Raises:
            NotAStore: More damaged rows than `MAX_LEFT_OUT` stand in the way.
        """
        if type(limit) is not int:
            raise BadPayload(f"a limit is a whole number, not a {type(limit).__name__}")
        wanted = _MOST if limit < 0 else min(limit, _MOST)
        asked = wanted
        while True:
            rows = self._rows(f"{sql.replace(LIMIT, str(asked))} LIMIT {asked}", values)
            made = self._whole(rows, make)
            left_out = len(rows) - len(made)
            if not left_out or len(rows) < asked or len(made) >= wanted:
                return made[:wanted]
            if left_out > MAX_LEFT_OUT:
                raise NotAStore(
                    f"more than {MAX_LEFT_OUT} damaged records in a row: restore the store from a backup"
                )
            asked = min(_MOST, wanted + 2 * left_out)

    def _whole(self, rows: Sequence[tuple[Any, ...]], make: Callable[[tuple[Any, ...]], T]) -> list[T]:
        try:
            return [make(row) for row in rows]
        except DamagedRecord:
            pass
        made: list[T] = []
        for row in rows:
            try:
                made.append(make(row))
            except DamagedRecord as damage:
                self._leave_out(damage)
        return made

    def _leave_out(self, damage: DamagedRecord) -> None:
        record = (damage.table, damage.key)
        if record not in self._damaged and len(self._damaged) < MAX_DAMAGED:
            self._damaged[record] = Damage(damage.table, damage.key, damage.column, damage.why)
            logger.error("left out of every page: %s", damage)
