"""Recorded runs, played again by agents on the engine: with concurrency, latencies, people and sub-agents.

`fsm.replay.events` fires the events that a recording tells of. Here an agent does what its recording tells of, and the
engine, which knows nothing of recordings, must bring each execution to the end that was recorded.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from fsm.breakers import Classifier
from fsm.engine import Engine, Outcome, Run
from fsm.engine.calls import ToolPhase
from fsm.errors import LimitReached, Refused
from fsm.replay.trajectory import Event, Trajectory

MAX_AT_ONCE = 10_000
"""So many recordings at most are played side by side."""
MAX_GAP_S = 600.0
"""A recorded silence counts for so many seconds at most: somebody went to lunch."""
LIMITS = {"total_s": 30 * 86_400.0, "phase_s": 86_400.0, "queue_s": 30 * 86_400.0, "input_s": 86_400.0}
"""A recording keeps no limits; these only end what hangs."""
LATENCIES_S = {"model": (0.4, 4.0), "tool_end": (0.05, 1.5), "user": (1.0, 20.0)}
"""What a model, a tool and a person take, in seconds, where the recording has no times: drawn between these."""
BREAKERS = "recorded:"
"""The breakers of recorded models have keys of their own: what failed then says nothing of the provider today."""


class RecordedError(Exception):
    """An error that the recording tells of."""


class Pace(NamedTuple):
    """How fast a recording is played.

    Attributes:
        speed: So many recorded seconds pass in one second.
        seed: Decides the latencies that the recording does not tell.
    """

    speed: float = 1.0
    seed: int = 7


@dataclass
class Played:
    """What became of all recordings.

    Attributes:
        executions: How many were played.
        by_state: How many ended in each state.
        strays: Those that ended otherwise than recorded: (execution, recorded, found).
        children: How many sub-agents they started.
        most_at_once: How many slots were taken at most.
    """

    executions: int = 0
    by_state: Counter[str] = field(default_factory=Counter)
    strays: list[tuple[str, str, str]] = field(default_factory=list)
    children: int = 0
    most_at_once: int = 0


ENDS = {
    "completed": "completed",
    "handoff": "completed",
    "failed": "failed",
    "limit": "timed_out",
    "cancelled": "cancelled",
}
"""The state in which an execution ends, by the outcome that was recorded."""


def recorded_end(trajectory: Trajectory) -> str:
    """Return the state in which a recording's execution ends; one that stops in the middle has failed."""
    for event in trajectory.events:
        if event.kind == "end":
            return ENDS[_outcome(event, _failures(trajectory))]
    return "failed"


def _outcome(end: Event, failures: list[str]) -> str:
    return end.outcome or ("failed" if failures else "completed")


def _failures(trajectory: Trajectory) -> list[str]:
    return [
        event.message or event.name or "something failed"
        for event in trajectory.events
        if event.kind == "error" or (event.kind == "model" and event.ok is False)
    ]


async def play(
    engine: Engine,
    trajectories: Iterable[Trajectory],
    *,
    user_id: str = "replay",
    at_once: int = 100,
    pace: Pace | None = None,
    on_done: Callable[[Outcome], object] | None = None,
) -> Played:
    """Play recordings side by side.

    Args:
        engine: The engine; its slots decide how many run, `at_once` how many are begun.
        trajectories: The recordings; read as they are needed.
        user_id: Whose executions they become.
        at_once: How many are under way at once, `MAX_AT_ONCE` at most.
        pace: How fast.
        on_done: Called with each outcome as it comes.

    Returns:
        The sums. What the recording calls the end is compared with the end that the engine came to.
    """
    played, pace = Played(), pace or Pace()
    engine.tracker.breakers.declare(f"{BREAKERS}*", classifier=Classifier(ignored=(RecordedError,)))
    ends: list[str] = []

    def items() -> Iterator[Trajectory]:
        for one in trajectories:
            ends.append(recorded_end(one))
            yield one

    async def agent(run: Run, trajectory: Trajectory) -> str:
        played.most_at_once = max(played.most_at_once, engine.running)
        return await _Player(engine, run, trajectory, pace, played).play()

    def done(outcome: Outcome) -> None:
        played.executions += 1
        played.by_state[outcome.state] += 1
        if on_done is not None:
            on_done(outcome)

    outcomes = await engine.map(
        agent, items(), user_id=user_id, thread_id=lambda one: one.id, agent_name=lambda one: one.agent,
        at_once=min(at_once, MAX_AT_ONCE), on_done=done, timeouts=LIMITS,
    )  # fmt: skip
    for outcome, end in zip(outcomes, ends, strict=True):
        if outcome.state != end:
            played.strays.append((outcome.execution_id, end, outcome.state))
    return played


class _Player:
    """Does what one recording tells of."""

    def __init__(self, engine: Engine, run: Run, trajectory: Trajectory, pace: Pace, played: Played) -> None:
        self._engine = engine
        self._run = run
        self._events = trajectory.events
        self._failures = _failures(trajectory)
        self._pace = pace
        self._played = played
        self._rng = Random(f"{pace.seed} {trajectory.id}")  # noqa: S311 - latencies are no secret
        self._before: float | None = None
        self._tools: list[tuple[str, ToolPhase]] = []
        self._asked = False

    async def play(self) -> str:
        """Play it to its end."""
        for event in self._events:
            if event.kind == "end":
                return await self._end(event)
            await getattr(self, f"_on_{event.kind}")(event)
            if event.t is not None:
                self._before = event.t
        raise RecordedError("the recording stops here")

    async def _wait(self, event: Event) -> None:
        """Let as much time pass as the recording says it took."""
        if event.t is not None and self._before is not None:
            seconds = min(max(0.0, event.t - self._before), MAX_GAP_S)
        else:
            low, high = LATENCIES_S.get(event.kind, (0.0, 0.0))
            seconds = self._rng.uniform(low, high)
        await asyncio.sleep(seconds / self._pace.speed)

    # --- one method per kind of event -------------------------------------------------------------------------

    async def _on_start(self, _: Event) -> None:
        return

    async def _on_user(self, event: Event) -> None:
        if not self._asked:
            await self._run.progress("the user's prompt")
            return
        answer = asyncio.create_task(self._answer(event))
        try:
            await self._run.ask("what now?")
        finally:
            answer.cancel()
            await asyncio.wait({answer})

    async def _answer(self, event: Event) -> None:
        """Be the person who answers."""
        await self._wait(event)
        tracker = self._engine.tracker.aio
        while True:
            try:
                await tracker.fire(self._run.id, "receive_input", verdict="text", by="user")
            except Refused as refused:
                if refused.reason == "terminal":
                    return
                await asyncio.sleep(0.01)  # it has not asked yet; the ask cancels this when it is over
            else:
                return

    async def _on_model(self, event: Event) -> None:
        self._asked = True
        name = event.name or "model"
        try:
            async with self._run.model(name, breaker=f"{BREAKERS}{name}"):
                await self._wait(event)
                if event.ok is False:
                    raise RecordedError(event.message or "the model call failed")  # noqa: TRY301 - to be caught here
        except RecordedError:
            return  # the recording goes on, and so does its agent

    async def _on_tool_start(self, event: Event) -> None:
        phase = self._run.tool(event.name or "tool")
        await phase.__aenter__()
        self._tools.append((event.name or "tool", phase))

    async def _on_tool_end(self, event: Event) -> None:
        await self._wait(event)
        found = next((one for one in self._tools if one[0] == (event.name or one[0])), None)
        found = found or (self._tools[0] if self._tools else None)
        if found is None:
            await self._run.progress(f"the end of {event.name}, whose beginning is not recorded")
            return
        self._tools.remove(found)
        error = RecordedError(event.message or "the tool failed") if event.ok is False else None
        await found[1].__aexit__(type(error) if error else None, error, None)

    async def _on_subagent(self, event: Event) -> None:
        self._played.children += 1

        async def child(run: Run) -> None:
            await run.progress("its own steps are not recorded")

        await self._run.child(child, agent_name=event.name or "subagent", timeouts=LIMITS)

    async def _on_error(self, event: Event) -> None:
        await self._run.progress(
            event.message or event.name or "the provider or the harness failed", ok=False
        )

    async def _on_cancel(self, _: Event) -> None:
        interrupted = RecordedError("interrupted by the user")
        while self._tools:
            await self._tools.pop(0)[1].__aexit__(RecordedError, interrupted, None)
        self._asked = True  # what the user says next is an answer

    async def _end(self, event: Event) -> str:
        outcome = _outcome(event, self._failures)
        if outcome == "failed":
            raise RecordedError(self._failures[-1] if self._failures else "the recording gives no reason")
        if outcome == "limit":
            raise LimitReached("the recording ran into a limit")
        if outcome == "cancelled":
            await self._engine.tracker.aio.fire(self._run.id, "cancel", by="user")
            await asyncio.Event().wait()  # the engine hears of it and cancels this
        return outcome
