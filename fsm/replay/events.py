"""Drives recorded trajectories through the tracker, as their agents would have."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fsm.clock import Clock, SystemClock
from fsm.core.records import Receipt, Retry
from fsm.errors import Refusal, Refused
from fsm.replay.trajectory import Driver, Trajectory
from fsm.tracker.tracker import Tracker

MAX_JOBS = 256
"""So many trajectories at most are driven side by side."""
MAX_MODEL_ATTEMPTS = 1000
"""A recording may hold any number of failed model calls in a row; the limit is for live agents."""


class ReplayClock:
    """The system's clock, on which a thread can live in the time of the recording that it replays."""

    def __init__(self, clock: Clock | None = None) -> None:
        """Build on another clock, the system's if nothing is said."""
        self._clock = clock or SystemClock()
        self._recorded = threading.local()

    def wall(self) -> float:
        """Return the recording's instant in a thread that has set one, else the system's."""
        at: float | None = getattr(self._recorded, "at", None)
        return self._clock.wall() if at is None else at

    def monotonic(self) -> float:
        """Return the system's monotonic time in seconds."""
        return self._clock.monotonic()

    def era(self) -> str:
        """Return the system clock's era."""
        return self._clock.era()

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`."""
        self._clock.sleep(seconds)

    def at(self, instant: float | None) -> None:
        """Let this thread live at an instant, in seconds since the epoch; ``None`` for the present."""
        self._recorded.at = instant


class Replayed(NamedTuple):
    """What became of one trajectory."""

    execution_id: str
    state: str
    ended: bool
    transitions: int
    refusals: tuple[Refusal, ...]


@dataclass
class Summary:
    """What became of all trajectories.

    Attributes:
        executions: How many were driven.
        transitions: How many transitions were committed, creations not counted.
        refused: How many events the table refused.
        by_state: How many executions are in each state.
        still_open: The ids of those whose recording has no end.
        refusals: The first hundred refusals.
    """

    executions: int = 0
    transitions: int = 0
    refused: int = 0
    by_state: Counter[str] = field(default_factory=Counter)
    still_open: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def add(self, one: Replayed) -> None:
        """Count one trajectory in."""
        self.executions += 1
        self.transitions += one.transitions
        self.refused += len(one.refusals)
        self.by_state[one.state] += 1
        if not one.ended:
            self.still_open.append(one.execution_id)
        self.refusals += one.refusals[: 100 - len(self.refusals)]


def replay_one(
    tracker: Tracker,
    trajectory: Trajectory,
    *,
    user_id: str = "replay",
    clock: ReplayClock | None = None,
    on_receipt: Callable[[Receipt], None] | None = None,
) -> Replayed:
    """Drive one trajectory through the execution machine.

    Args:
        tracker: The tracker.
        trajectory: The recording.
        user_id: Whose execution it becomes.
        clock: The clock that the tracker was configured with; the journal then has the recording's own times,
            laid so that the run ends now.
        on_receipt: Called with each receipt once it is committed.

    Returns:
        What became of it. Refused events are counted and left out; the rest goes on.
    """
    length_s = trajectory.length_s
    begins_at = clock.wall() - length_s if clock is not None and length_s is not None else None

    def live_at(t: float | None) -> None:
        if clock is not None and begins_at is not None:
            clock.at(begins_at + (t or 0.0))

    driver = Driver(trajectory)
    refusals: list[Refusal] = []
    transitions = 0
    try:
        live_at(None)
        execution = tracker.create(
            trajectory.agent,
            user_id=user_id,
            thread_id=trajectory.id,
            retry=Retry(model_attempts_max=MAX_MODEL_ATTEMPTS),
            metadata={"trajectory": trajectory.id, "source": trajectory.source},
        )
        state, fence, last = execution.state, execution.fence, 0.0
        for step in driver.steps():
            for order in step:
                last = order.t if order.t is not None else last
                live_at(last)
                try:
                    receipt = tracker.fire(execution.id, order.event, fence=fence, **order.payload)
                except Refused as error:
                    refusals.append(error.refusal)
                    break  # what would have followed this order leans on it
                transitions += 1
                state, fence = receipt.target, receipt.fence
                driver.went(state)
                if on_receipt is not None:
                    on_receipt(receipt)
    finally:
        if clock is not None:
            clock.at(None)
    ended = state in tracker.machine_of(execution.id).terminal
    return Replayed(execution.id, state, ended, transitions, tuple(refusals))


def replay(
    tracker: Tracker,
    trajectories: Iterable[Trajectory],
    *,
    jobs: int = 8,
    on_done: Callable[[Replayed], None] | None = None,
    **options: Any,
) -> Summary:
    """Drive trajectories through the execution machine, several side by side.

    Args:
        tracker: The tracker.
        trajectories: The recordings; read as they are needed.
        jobs: How many to drive at once, `MAX_JOBS` at most; they share the store's commits.
        on_done: Called with each one when it is over, in this thread.
        **options: As for `replay_one`.

    Returns:
        The sums.

    Raises:
        StoreUnavailable: The store failed; what was acknowledged until then is kept.
    """
    summary = Summary()
    source: Iterator[Trajectory] = iter(trajectories)
    jobs = max(1, min(jobs, MAX_JOBS))
    with ThreadPoolExecutor(jobs, thread_name_prefix="fsm-replay") as pool:
        running: set[Future[Replayed]] = set()
        try:
            while True:
                for trajectory in itertools.islice(source, jobs * 2 - len(running)):
                    running.add(pool.submit(replay_one, tracker, trajectory, **options))
                if not running:
                    return summary
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    one = future.result()
                    summary.add(one)
                    if on_done is not None:
                        on_done(one)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
