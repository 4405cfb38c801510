"""Up to where the journal is settled: no transaction under way can still put a row before that position.

Positions are taken from a sequence and do not ascend in the order of the commits, so a reader that goes on after the
highest position it has seen would lose rows. How far it may read follows from the ids of transactions: a position that
the sequence has given out belongs to a transaction whose id was below the snapshot's `xmax` at that moment, and all
those are over once a later snapshot's `xmin` has reached it (see ``fsm.sample`` in 0003_functions.sql).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from fsm.concurrency.locks import Lock

MAX_LOOKS = 20
"""How often one call looks again while transactions are under way."""
LOOK_S = 0.002
"""The pause between two looks, in seconds."""
ASIDE = 3
"""After so many looks it is asked whether those transactions write executions at all: another database's do not."""
MAX_SAMPLES = 100
"""Maximum number of samples that are remembered until they are settled."""


class Sample(NamedTuple):
    """One look: the last position given out, and the range of the transactions under way."""

    last: int
    xmin: int
    xmax: int


class Settled:
    """Follows how far the journal is settled.

    Attributes:
        known: The position up to which it is, as far as was found out.
    """

    def __init__(
        self,
        look: Callable[[], Sample],
        is_written: Callable[[], bool],
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        """Begin with nothing known.

        Args:
            look: Takes a sample.
            is_written: Whether any other session is writing executions.
            pause: Waits for some seconds.
        """
        self.known = 0
        self._look = look
        self._is_written = is_written
        self._pause = pause
        self._samples: deque[Sample] = deque()
        self._noting = Lock("what is known of the journal's end")

    def reach(self, position: int | None = None) -> int:
        """Return the position up to which the journal is settled.

        Args:
            position: Wait for this one, for a few moments; the last one that was given out if nothing is said.
        """
        wanted = position
        for number in range(1, MAX_LOOKS + 1):
            sample = self._look()
            self._noting.run(self._note, sample)
            if wanted is None:
                wanted = sample.last
            if self.known >= wanted:
                break
            if number % ASIDE == 0 and not self._is_written():
                self._noting.run(self._note, sample._replace(xmin=sample.xmax))
                break
            self._pause(LOOK_S)
        return self.known

    def _note(self, sample: Sample) -> None:
        if sample.last < self.known:  # the server was restored, or a standby took over that had not followed
            self.known = 0
            self._samples.clear()
        if len(self._samples) >= MAX_SAMPLES:
            self._samples.pop()
        self._samples.append(sample)
        while self._samples and self._samples[0].xmax <= sample.xmin:
            self.known = max(self.known, self._samples.popleft().last)
