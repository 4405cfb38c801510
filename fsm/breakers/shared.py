"""Sharing over a store: every change of a row is one compare-and-set, and changes of other processes are polled.

A store that does not answer stops no call: the breaker goes on with what it knows, keeps its changes, says so once in
the log and in `Breakers.status`, and brings the store up to date when it answers again. If another process wrote in
between, the store's row wins. A change that the store refuses for good (a mistake, not an outage) is logged and
dropped, so that it does not hold up the changes of other breakers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from fsm.breakers.core import unseen
from fsm.breakers.foreign import DROPPED, read, say, storable, text_of
from fsm.clock import Clock
from fsm.concurrency.locks import Lock
from fsm.core.journal import record_of
from fsm.errors import FsmError, StoreUnavailable
from fsm.lifecycles.breaker import BREAKER
from fsm.stores.base import Store
from fsm.stores.breakers import LAST, BreakerEntry, BreakerRow, BreakerStore

if TYPE_CHECKING:
    from fsm.breakers.core import BreakerStep

logger = logging.getLogger(__name__)

ASK_AGAIN_S = 1.0
"""How long, in seconds, callers leave a store alone that did not answer."""
MAX_PENDING = 200
"""Maximum number of changes of one breaker that are kept for a store that is down; beyond, the store's row wins."""
PAGE = 500
"""Number of lines of the journal that are read at a time."""
MAX_PAGES = 1_000
"""Maximum number of pages of the journal that one poll reads; the next poll goes on from there."""
MAX_COMPLAINTS = 100
"""Maximum number of different errors of foreign code (classifiers, hooks, stores) that are logged; all are counted."""


class Mirrored(Protocol):
    """What sharing needs of a breaker; its caller holds the breaker's lock for changes."""

    key: str
    row: BreakerRow
    pending: list[object]

    def adopt(self, row: BreakerRow) -> None:
        """Take over a row."""


class _Missed(NamedTuple):
    """A change that the store has not seen."""

    expected: int
    row: BreakerRow
    entry: BreakerEntry | None


class Shared:
    """The way to the rows that all processes of a store share.

    Attributes:
        clock: Where time comes from.
        rows: The row of every key that ever changed its state, as far as this process knows, so that the first call of
            a key, and the next call of one that was dropped, need no store.
        error: Why the store does not answer, ``None`` while it does.
        mistakes: Number of errors of foreign code that is called here (a classifier, the random numbers, a store).
    """

    def __init__(
        self, store: Store, clock: Clock, draw: Callable[[], float], worker: Callable[[], str]
    ) -> None:
        """Read what there is; a store that keeps no breakers is left alone.

        Args:
            store: The registry's store.
            clock: Where time comes from.
            draw: Returns the random numbers of the jitter, from 0 to 1.
            worker: Returns this process's id, for the journal.
        """
        self.clock = clock
        self.rows: dict[str, BreakerRow] = {}
        self.error: str | None = None
        self.mistakes = 0
        self._complaints: set[tuple[str, str]] = set()
        self._draw = draw
        self._worker = worker
        self._whole = store
        self._store: BreakerStore | None = store if isinstance(store, BreakerStore) else None
        self._registered = False
        self._ask_again_at = 0.0
        self._cursor = 0
        self._begun = False
        self._polling = Lock("a poll of the breakers")
        if self._store is None:
            self.error = f"the store {store.url} keeps no breakers: each process has its own"
            say(logger, logging.WARNING, "breakers: %s", self.error)
        else:
            self.poll()

    def remember(self, row: BreakerRow) -> None:
        """Keep a row for the time when its breaker is asked for again."""
        if row.version:
            self.rows[row.key] = row

    def draw(self) -> float:
        """Return a random number from 0 to 1 for the jitter; 0 if `draw` raises or returns no such number."""
        try:
            drawn = float(self._draw())
        except DROPPED as error:
            self.complain("*", "drawing the jitter", error)
            return 0.0
        return min(1.0, max(0.0, drawn)) if isfinite(drawn) else 0.0

    def complain(self, key: str, doing: str, error: BaseException) -> None:
        """Count an error of foreign code, and log the first one of its kind with its traceback."""
        self.mistakes += 1
        kind = (doing, text_of(read(type(error), "__name__")) or "")
        if kind in self._complaints or len(self._complaints) >= MAX_COMPLAINTS:
            return
        self._complaints.add(kind)
        say(
            logger, logging.ERROR, "breaker %s: %s went wrong; the call is not disturbed, and this is logged once",
            key, doing, error=error,
        )  # fmt: skip

    @property
    def instant(self) -> bool:
        """Whether nothing here ever waits."""
        return self._store is None or self._whole.instant

    @property
    def down(self) -> bool:
        """Whether there is a store and it does not answer."""
        return self._store is not None and self.error is not None

    # --- one row ----------------------------------------------------------------------------------------------

    def write(
        self, breaker: Mirrored, row: BreakerRow, step: BreakerStep, by: str | None, why: str | None
    ) -> bool:
        """Commit a step that was decided on `row`.

        Returns:
            Whether it holds from now on: written, or kept here because the store is down. ``False`` if another
            process was faster.
        """
        if self._store is None:
            return True
        entry = None
        if step.event is not None:
            after = step.after
            entry = BreakerEntry(
                0, row.key, after.version, step.event, step.source, after.state, after.generation, step.at,
                by or self._who(), why,
            )  # fmt: skip
        if breaker.pending and not self.mend(breaker) and not breaker.pending:
            return False  # the store's row won: decide again
        if not breaker.pending and not self._resting():
            try:
                return self._swap(row.version, step.after, entry)
            except Exception as error:  # noqa: BLE001 - callers go on
                self._lost(error)
        if len(breaker.pending) < MAX_PENDING:
            breaker.pending.append(_Missed(row.version, step.after, entry))
        return True

    def read(self, breaker: Mirrored) -> BreakerRow | None:
        """Return the store's row of a breaker, an unseen one if it has none; ``None`` if the store is down."""
        if self._store is None or self._resting() or (breaker.pending and not self.mend(breaker)):
            return None
        try:
            row = self._load(breaker.key)
        except Exception as error:  # noqa: BLE001 - callers go on
            self._lost(error)
            return None
        self._answered()
        return row

    def _load(self, key: str) -> BreakerRow | None:
        """Return the store's row, an unseen one if there is none, ``None`` if nothing can be made of it."""
        assert self._store is not None  # noqa: S101 - asked before
        row = self._store.breaker_load(key)
        return unseen(key) if row is None else self._usable(row)

    def mend(self, breaker: Mirrored) -> bool:
        """Write what the store missed of a breaker.

        Returns:
            Whether the two agree now. If not, either the store is still down, or (nothing is pending then) another
            process wrote in between and the store's row was taken over.
        """
        if not breaker.pending:
            return True
        if self._store is None or self._resting():
            return False
        try:
            while breaker.pending:
                missed = cast("_Missed", breaker.pending[0])
                if not self._swap(*missed):
                    row = self._load(breaker.key)
                    if row != missed.row:
                        breaker.pending.clear()
                        if row is not None:
                            breaker.adopt(row)
                        return False
                    # It was written after all: the store had only not said so.
                breaker.pending.pop(0)
        except FsmError as error:
            self._lost(error)
            return False
        except Exception as error:  # noqa: BLE001 - callers go on
            breaker.pending.clear()
            self.complain(breaker.key, "writing what the store missed", error)
            return False
        return True

    def _who(self) -> str | None:
        try:
            who = self._worker()
            return storable(who) if who else None
        except DROPPED:
            return None  # a worker that lost its lease still sees what its calls come to

    def _swap(self, expected: int, row: BreakerRow, entry: BreakerEntry | None) -> bool:
        assert self._store is not None  # noqa: S101 - asked before
        if not self._registered:
            self._whole.register(record_of(BREAKER))
            self._registered = True
        done = self._store.breaker_swap(BREAKER.content_hash, expected, row, entry)
        self._answered()
        return done

    # --- the store's health -----------------------------------------------------------------------------------

    def _resting(self) -> bool:
        return self.error is not None and self.clock.monotonic() < self._ask_again_at

    def _lost(self, error: Exception) -> None:
        self._ask_again_at = self.clock.monotonic() + ASK_AGAIN_S
        known = isinstance(error, FsmError)
        if self.error is None:
            say(
                logger, logging.WARNING if known else logging.ERROR,
                "breakers go on without the store, each process by itself: %s", storable(error),
                error=None if known else error,
            )  # fmt: skip
        self.error = storable(error)

    def _answered(self) -> None:
        if self.error is not None:
            self.error = None
            say(logger, logging.WARNING, "breakers: the store answers again")

    def beaten(self, key: str) -> StoreUnavailable:
        """Return the error for an order that lost against other processes each time."""
        return StoreUnavailable(f"breaker {key}: other processes were faster again and again; try once more")

    # --- all rows ---------------------------------------------------------------------------------------------

    def poll(self) -> list[BreakerRow]:
        """Return the rows that other processes wrote since the last poll."""
        store = self._store
        return [] if store is None else self._polling.run_nested(self._poll, store)

    def _poll(self, store: BreakerStore) -> list[BreakerRow]:
        try:
            position = store.breaker_position()
            if self._begun and position >= self._cursor:
                cursor, found = self._news(store)
            else:  # for the first time, or the file is an older one than before
                cursor, found = position, store.breaker_list()
            self._cursor, self._begun = cursor, True
            self._answered()
        except Exception as error:  # noqa: BLE001 - it is tried again
            self._lost(error)
            return []
        fresh = [row for row in found if self._usable(row) is not None]
        for row in fresh:
            self.rows[row.key] = row
        return fresh

    def _news(self, store: BreakerStore) -> tuple[int, list[BreakerRow]]:
        """Return the new cursor and the rows that changed; the cursor moves on once all of them are read."""
        cursor = self._cursor
        keys: dict[str, None] = {}
        for _ in range(MAX_PAGES):
            entries = store.breaker_changes(cursor, PAGE)
            keys.update((entry.key, None) for entry in entries)
            if entries:
                cursor = entries[-1].position
            if len(entries) < PAGE:
                break
        rows = [store.breaker_load(key) for key in keys]
        return cursor, [row for row in rows if row is not None]

    def _usable(self, row: BreakerRow) -> BreakerRow | None:
        """Return a row unless nothing can be made of it (another version's state, a damaged file)."""
        numbers = (row.version, row.generation, row.changed_at, row.openings, row.successes, row.abandoned)
        instants = [one for one in (row.since, row.until) if one is not None] + [
            ends for _, ends in row.probes
        ]
        if row.state in BREAKER.by_name and all(
            isinstance(one, (int, float)) and isfinite(one) for one in (*numbers, *instants)
        ):
            return row
        self.complain(row.key, "reading its row", ValueError(f"a row that is none: {row}"))
        return None

    def history(self, key: str, limit: int, before: int | None) -> list[BreakerEntry]:
        """Return the newest lines of a breaker's journal, oldest first.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        if self._store is None:
            return []
        return self._store.breaker_changes(0, limit, key, LAST if before is None else before)
