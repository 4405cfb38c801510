"""Up to where the journal is settled: no transaction under way can still put a row before that position.

Positions are taken from a sequence and do not ascend in the order of the commits, so a reader that goes on after the
highest position it has seen would lose rows. A writer that takes a position holds a lock on the table that it writes
to, from before that until its commit can be seen. So all positions that were given out by some moment are settled
once every transaction that held such a lock at that moment is over (``fsm.sample`` in 0003_functions.sql).

The transaction ids of snapshots would not do: a snapshot's `xmax` is one more than the last id that is over, so that a
writer under way may have a greater one, and any transaction of any database on the server holds `xmin` back
(`tests/postgres/test_postgres_shared.py` has both).
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
MAX_SAMPLES = 100
"""Maximum number of samples that are remembered until they are settled."""


class Sample(NamedTuple):
    """One look: the last position that was given out, and the transactions that write executions."""

    last: int
    writers: frozenset[str]


class Settled:
    """Follows how far the journal is settled.

    Attributes:
        known: The position up to which it is, as far as was found out.
    """

    def __init__(self, look: Callable[[], Sample], pause: Callable[[float], object] = time.sleep) -> None:
        """Begin with nothing known.

        Args:
            look: Takes a sample.
            pause: Waits for some seconds.
        """
        self.known = 0
        self._look = look
        self._pause = pause
        self._samples: deque[Sample] = deque()
        self._noting = Lock("what is known of the journal's end")

    def reach(self, position: int | None = None) -> int:
        """Return the position up to which the journal is settled.

        Args:
            position: Wait for this one, for a few moments; defaults to the last one that was given out.
        """
        for number in range(MAX_LOOKS):
            if number:
                self._pause(LOOK_S)
            sample = self._look()
            self._noting.run(self._note, sample)
            if position is None:
                position = sample.last
            if self.known >= position:
                break
        return self.known

    def _note(self, sample: Sample) -> None:
        if sample.last < self.known:  # the server was restored, or a standby took over that had not followed
            self.known = 0
            self._samples.clear()
        if len(self._samples) >= MAX_SAMPLES:
            self._samples.pop()
        self._samples.append(sample)
        open_ = [one for one in self._samples if one.writers & sample.writers]
        self.known = max([self.known, *(one.last for one in self._samples if one not in open_)])
        self._samples = deque(open_)
