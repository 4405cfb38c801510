"""``fsm replay --as-agents``: recordings played by agents on the engine."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from typing import Any, cast

from fsm.cli.terminated import ended_by_sigterm
from fsm.clock import Clock, SystemClock
from fsm.engine import Engine, Slots
from fsm.replay.agents import MAX_AT_ONCE, Pace, Played, play
from fsm.replay.trajectory import Trajectory
from fsm.simulation.loop import SteppedLoop
from fsm.simulation.observed import EPOCH_S
from fsm.simulation.workers import SimulatedClock
from fsm.stores.base import Store
from fsm.stores.opening import open_store
from fsm.tracker.tracker import Tracker

BACK_S = 86_400.0
"""A virtual replay begins so many seconds ago, so that its journal does not lie in the future."""
MAX_STEPS = 10**12


class VirtualClock(SimulatedClock):
    """The time of a stepped loop from a day ago on, in an era of its own: no other run's can be compared with it."""

    def __init__(self, loop: SteppedLoop) -> None:
        """Show a loop's time."""
        super().__init__(loop, time.time() - BACK_S - EPOCH_S)
        self._era = f"virtual-{os.getpid()}-{time.time_ns()}"

    def era(self) -> str:
        """Return the name of this one run."""
        return self._era


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
        self.loop: asyncio.AbstractEventLoop
        self.clock: Clock
        if virtual:
            stepped = SteppedLoop(shuffle=False, max_steps=MAX_STEPS)
            self.loop, self.clock = stepped, VirtualClock(stepped)
        else:
            self.loop, self.clock = asyncio.new_event_loop(), SystemClock()
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
        """Play recordings; see `fsm.replay.agents.play`. An interrupt ends what is open through the table."""
        at_once = min(at_once, MAX_AT_ONCE)
        engine = Engine(
            tracker,
            slots=Slots(total=at_once),
            lease_s=None if self._virtual else 15.0,
            sweep_every_s=None,
        )
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            work = play(engine, trajectories, at_once=at_once, pace=pace, **options)
            return runner.run(ended_by_sigterm(engine, work))
