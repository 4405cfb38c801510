"""``fsm replay --as-agents``: recordings played by agents on the engine."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from typing import Any, cast

from fsm.clock import Clock, SystemClock
from fsm.engine import Engine, Slots
from fsm.reenact import MAX_AT_ONCE, Pace, Played, play
from fsm.stores.base import Store, open_store
from fsm.testing.loop import SteppedLoop
from fsm.tracker import Tracker
from fsm.trajectory import Trajectory

BACK_S = 86_400.0
"""A virtual replay begins so many seconds ago, so that its journal does not lie in the future."""
MAX_STEPS = 10**12


class VirtualClock:
    """The time of a stepped loop, which goes from one event to the next without waiting."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Show a loop's time, from a day ago on."""
        self._loop = loop
        self._begin_at = time.time() - BACK_S
        self._era = f"virtual-{os.getpid()}-{time.time_ns()}"

    def wall(self) -> float:
        """Return virtual seconds since the epoch."""
        return self._begin_at + self._loop.time()

    def monotonic(self) -> float:
        """Return virtual seconds."""
        return self._loop.time()

    def era(self) -> str:
        """Return the name of this one run: its time can be compared with no other."""
        return self._era

    def sleep(self, seconds: float) -> None:
        """Refuse: whoever blocks here blocks the clock."""
        raise NotImplementedError(f"await asyncio.sleep({seconds}) instead")


class Inline:
    """A store whose answers are waited for where they are asked for: meanwhile virtual time stands still."""

    instant = True

    def __init__(self, store: Store) -> None:
        """Wrap a store."""
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Stage:
    """Where recordings are played: a loop, a clock, a store."""

    def __init__(self, *, virtual: bool) -> None:
        """Set up.

        Args:
            virtual: Whether time is virtual.
        """
        self.loop: asyncio.AbstractEventLoop = (
            SteppedLoop(shuffle=False, max_steps=MAX_STEPS) if virtual else asyncio.new_event_loop()
        )
        self.clock: Clock = VirtualClock(self.loop) if virtual else SystemClock()
        self._virtual = virtual

    def store(self, url: str) -> str | Store:
        """Return the store behind a URL, as this stage uses it."""
        if not self._virtual:
            return url
        if url.startswith("sqlite:") and "synchronous=" not in url:
            # Commits that nothing waits for cannot share a disk flush, and a replay need not survive a power cut.
            url += "&synchronous=NORMAL" if "?" in url else "?synchronous=NORMAL"
        return cast("Store", Inline(open_store(url)))

    def play(
        self,
        tracker: Tracker,
        trajectories: Iterable[Trajectory],
        *,
        at_once: int,
        pace: Pace,
        **options: Any,
    ) -> Played:
        """Play recordings; see `fsm.reenact.play`. An interrupt ends what is open through the table."""
        at_once = min(at_once, MAX_AT_ONCE)
        engine = Engine(
            tracker,
            slots=Slots(total=at_once),
            lease_s=None if self._virtual else 15.0,
            sweep_every_s=None,
        )
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            return runner.run(play(engine, trajectories, at_once=at_once, pace=pace, **options))
