"""Sharing over a store: every change of a row is one compare-and-set, and others' changes are looked for in time.

A store that does not answer stops nobody: the breaker goes on with what it knows, notes what it did, says so once
in the log and in `Breakers.status`, and brings the store up to date when it answers again. If another process wrote
meanwhile, the store's row goes first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from fsm.clock import Clock
from fsm.errors import FsmError, StoreUnavailable
from fsm.laws import record_of
from fsm.lifecycles.breaker import BREAKER
from fsm.locks import Lock
from fsm.stores.base import BreakerEntry, BreakerRow, BreakerStore, Store

if TYPE_CHECKING:
    from fsm.breakers.core import BreakerStep

logger = logging.getLogger(__name__)

ASK_AGAIN_S = 1.0
"""So long, in seconds, a store that did not answer is left alone by those who have calls to make."""
MAX_PENDING = 200
"""So many changes of one breaker are kept for a store that is down; beyond, the store's own row goes first later."""
PAGE = 500
"""So many lines of the journal are read at a time."""


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
        draw: The dice of the jitter, from 0 to 1.
        rows: Every row that was read, by key, so that a key's first call needs no store.
        error: Why the store does not answer, ``None`` while it does.
    """

    def __init__(
        self, store: Store, clock: Clock, draw: Callable[[], float], worker: Callable[[], str]
    ) -> None:
        """Read what there is.

        Args:
            store: The registry's store; one that keeps no breakers is left alone.
            clock: Where time comes from.
            draw: The dice of the jitter, from 0 to 1.
            worker: Returns this process's id, for the journal.
        """
        self.clock = clock
        self.draw = draw
        self.rows: dict[str, BreakerRow] = {}
        self.error: str | None = None
        self._worker = worker
        self._whole = store
        self._store: BreakerStore | None = store if isinstance(store, BreakerStore) else None
        self._registered = False
        self._ask_again_at = 0.0
        self._cursor = 0
        self._begun = False
        self.renew_locks()
        if self._store is None:
            self.error = f"the store {store.url} keeps no breakers: each process has its own"
            logger.warning("breakers: %s", self.error)
        else:
            self.poll()

    def renew_locks(self) -> None:
        """Begin anew in a forked child."""
        self._polling = Lock("the breakers of other processes")

    @property
    def instant(self) -> bool:
        """Whether nothing here ever waits."""
        return self._store is None or self._whole.instant

    # --- one row ----------------------------------------------------------------------------------------------

    def write(
        self, breaker: Mirrored, row: BreakerRow, step: BreakerStep, by: str | None, why: str | None
    ) -> bool:
        """Commit a step.

        Args:
            breaker: Whose it is.
            row: The row that it was decided on.
            step: The step.
            by: Who did it; this process's worker if nothing is said.
            why: What for.

        Returns:
            Whether it holds from now on: written, or noted here because the store is down. ``False`` if somebody
            was faster.
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
            return False  # the store's row went first: decide again
        if not breaker.pending and not self._resting():
            try:
                return self._swap(row.version, step.after, entry)
            except Exception as error:  # noqa: BLE001 - whatever it is, callers go on
                self._lost(error)
        if len(breaker.pending) < MAX_PENDING:
            breaker.pending.append(_Missed(row.version, step.after, entry))
        return True

    def read(self, breaker: Mirrored) -> BreakerRow | None:
        """Return the store's row of a breaker; ``None`` if there is none, or the store is down."""
        if self._store is None or self._resting() or (breaker.pending and not self.mend(breaker)):
            return None
        try:
            row = self._store.breaker_load(breaker.key)
        except Exception as error:  # noqa: BLE001 - whatever it is, callers go on
            self._lost(error)
            return None
        self._answered()
        return row

    def mend(self, breaker: Mirrored) -> bool:
        """Write what the store missed of a breaker.

        Returns:
            Whether the two agree now. If not, either the store is still down, or (nothing is pending then) somebody
            else wrote meanwhile and the store's row was taken over.
        """
        if not breaker.pending:
            return True
        if self._store is None or self._resting():
            return False
        try:
            while breaker.pending:
                missed = cast("_Missed", breaker.pending[0])
                if not self._swap(*missed):
                    breaker.pending.clear()
                    row = self._store.breaker_load(breaker.key)
                    if row is not None:
                        breaker.adopt(row)
                    return False
                breaker.pending.pop(0)
        except Exception as error:  # noqa: BLE001 - whatever it is, callers go on
            self._lost(error)
            return False
        return True

    def _who(self) -> str | None:
        try:
            return self._worker()
        except FsmError:
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
        if self.error is None:
            level = logging.WARNING if isinstance(error, FsmError) else logging.ERROR
            logger.log(
                level, "breakers go on without the store, each process by itself: %s", error,
                exc_info=None if isinstance(error, FsmError) else error,
            )  # fmt: skip
        self.error = str(error)

    def _answered(self) -> None:
        if self.error is not None:
            self.error = None
            logger.warning("breakers: the store answers again")

    def beaten(self, key: str) -> StoreUnavailable:
        """Return the error for an order that others were always faster than."""
        return StoreUnavailable(f"breaker {key}: other processes were faster again and again; try once more")

    # --- all rows ---------------------------------------------------------------------------------------------

    def poll(self) -> list[BreakerRow]:
        """Look for what other processes wrote.

        Returns:
            The rows that are new or newer.
        """
        store = self._store
        if store is None or self._polling.mine():
            return []
        try:
            if not self._polling.acquire(0):
                return []
            if not self._begun:
                self._cursor = store.breaker_position()
                fresh = store.breaker_list()
                self._begun = True
            else:
                fresh = self._news(store)
            self._answered()
        except Exception as error:  # noqa: BLE001 - it is tried again
            self._lost(error)
            return []
        finally:
            self._polling.free()
        for row in fresh:
            self.rows[row.key] = row
        return fresh

    def _news(self, store: BreakerStore) -> list[BreakerRow]:
        keys: dict[str, None] = {}
        while True:
            entries = store.breaker_changes(self._cursor, PAGE)
            keys.update((entry.key, None) for entry in entries)
            if entries:
                self._cursor = entries[-1].position
            if len(entries) < PAGE:
                rows = [store.breaker_load(key) for key in keys]
                return [row for row in rows if row is not None]

    def history(self, key: str, limit: int) -> list[BreakerEntry]:
        """Return a breaker's journal from the beginning.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        return [] if self._store is None else self._store.breaker_changes(0, limit, key)
