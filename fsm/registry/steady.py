"""The steady clock of one process: the timeline's calculation (`fsm.core.timeline`) joined to a clock and a store."""

from __future__ import annotations

import logging

from fsm.clock import ALONE, APART, MANUAL, Clock
from fsm.core.timeline import Era, Mark, Reading, begin, met_until, observe
from fsm.errors import StoreUnavailable
from fsm.stores.base import Store
from fsm.stores.shared import SharedClock

logger = logging.getLogger(__name__)

FOLLOW_S = 1.0
"""While an era is unsettled each process looks at it this often, in seconds."""
MARK_EVERY_S = 60.0
"""Each process that sweeps raises the mark this often, in seconds; a crash can lose that much of the timeline."""


MEASURE_EVERY_S = 60.0
"""Each process that sweeps or renews a lease compares its clock with the store's this often, in seconds."""


class SteadyClock:
    """Tells the instant on the timeline that all processes of a store share.

    Where the store has a clock of its own (`fsm.stores.shared.SharedClock`) the timeline is that clock's: each process
    measures by how much its monotonic clock differs, whatever its wall clock says.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        """Join the era of the clock, or begin it.

        Args:
            store: Where eras are kept.
            clock: The process's clocks.

        Raises:
            StoreUnavailable: The store did not answer.
        """
        self._store = store
        self._clock = clock
        self._name = clock.era()
        self._alone = self._name.startswith(ALONE)
        self._apart = self._name.startswith(APART)
        self._marked_s = float("-inf")
        self._shared = store if isinstance(store, SharedClock) and not self._by_hand else None
        self._era = self._join()
        self._looked_s = clock.monotonic()

    @property
    def _by_hand(self) -> bool:
        return self._apart or self._name == MANUAL

    def measure(self) -> None:
        """Compare this process's clock with the store's, if it is time and the store has one.

        An answer says no more than that the store's clock showed it at some moment while it was waited for. So the
        offset stays unless it contradicts the answer.

        Raises:
            StoreUnavailable: The store did not answer.
        """
        if self._shared is None or self._clock.monotonic() < self._marked_s + MEASURE_EVERY_S:
            return
        least_s, most_s = self._bounds(self._shared)
        self._era = Era(min(max(self._era.offset_s, least_s), most_s))

    def _bounds(self, shared: SharedClock) -> tuple[float, float]:
        asked_s = self._clock.monotonic()
        at = shared.clock()
        self._marked_s = self._clock.monotonic()
        return at - self._marked_s, at - asked_s

    def _join(self) -> Era:
        if self._shared is not None:
            return Era(sum(self._bounds(self._shared)) / 2)
        if self._apart:
            now = self._read()
            return Era(now.wall - now.monotonic)
        known = self._store.timeline("" if self._alone else self._name)
        if known.era is not None:
            return known.era
        now = self._read()  # after the store has answered: it may have been busy
        era = begin(known, now, alone=self._alone)
        if not self._alone:
            return self._store.timeline_set(self._name, None, era)
        if known.mark is None:
            self._store.timeline_mark(Mark(now.monotonic + era.offset_s, *now))
        return era

    def _read(self) -> Reading:
        return Reading(self._clock.wall(), self._clock.monotonic())

    def now(self) -> float:
        """Return the instant on the timeline, in seconds since the epoch, near enough."""
        monotonic = self._clock.monotonic()
        if self._era.held_at is not None and monotonic >= self._looked_s + FOLLOW_S:
            self._follow(monotonic)
        return monotonic + self._era.offset_s

    def met_until(self) -> float:
        """Return the instant up to which deadlines are met: now, or an earlier one while the era is unsettled."""
        now = self.now()
        return met_until(self._era, now)

    @property
    def settled(self) -> bool:
        """Whether the era's offset can no longer change."""
        return self._era.held_at is None

    def _follow(self, monotonic: float) -> None:
        """Take over what another process has found out; a store that does not answer is asked again."""
        self._looked_s = monotonic
        try:
            self._era = self._store.timeline(self._name).era or self._era
        except StoreUnavailable as error:
            logger.debug("the era could not be read: %s", error)

    def keep(self) -> None:
        """Settle the era when it is time, and raise the mark; called by those who write anyway.

        Raises:
            StoreUnavailable: The store did not answer; the next call makes up for it.
        """
        if self._apart or self._shared is not None:
            self.measure()
            return
        now = self._read()
        if self._era.held_at is not None:
            after = observe(self._era, now)
            if after is not self._era:
                self._era = self._store.timeline_set(self._name, self._era, after)
                logger.info("the timeline of this boot: %s", self._era)
        if self._era.held_at is None and now.monotonic >= self._marked_s + MARK_EVERY_S:
            self._store.timeline_mark(Mark(now.monotonic + self._era.offset_s, *now))
            self._marked_s = now.monotonic
