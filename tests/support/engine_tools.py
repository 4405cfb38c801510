"""What the tests of the engine begin and end with: an engine in virtual time, and a look at what it left behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fsm import Engine, Tracker
from fsm.simulation.loop import SteppedLoop
from fsm.simulation.simulation import Simulation
from fsm.simulation.workers import SimulatedClock
from fsm.testing import fresh_tracker

Scenario = Callable[[Engine, Tracker], Awaitable[Any]]
WHO = {"user_id": "ada", "thread_id": "t"}
ENDS = {"completed", "failed", "timed_out", "cancelled", "dead"}


def in_memory(scenario: Scenario, *, seed: int = 0, **options: Any) -> Any:
    """Run a scenario on a store in memory, in virtual time: every commit happens at once."""
    loop = SteppedLoop(seed, max_time_s=1e7, max_steps=1_000_000)
    with (
        fresh_tracker(clock=SimulatedClock(loop, 0.0)) as tracker,
        asyncio.Runner(loop_factory=lambda: loop) as runner,
    ):
        return runner.run(_play(scenario, tracker, options))


def simulated(scenario: Scenario, *, seed: int = 0, chaos: Any = None, **options: Any) -> Any:
    """Run a scenario on a simulated store, in virtual time: commits take their time, and the journal is checked."""
    results: list[Any] = []
    more = {} if chaos is None else {"chaos": chaos}
    sim = Simulation(seed=seed, workers=1, lease_s=None, sweep_every_s=None, **more)

    async def outside(sim: Simulation) -> None:
        worker = sim.workers[0]
        results.append(await worker.spawn(_play(scenario, worker.tracker, options)))

    sim.run(outside)
    return results[0]


def on_disk(path: Path, scenario: Scenario, **options: Any) -> Any:
    """Run a scenario on SQLite, in real time."""
    with fresh_tracker(f"sqlite:///{path}/fsm.db") as tracker:
        return asyncio.run(_play(scenario, tracker, options))


async def _play(scenario: Scenario, tracker: Tracker, options: dict[str, Any]) -> Any:
    engine = Engine(tracker, **{"patience_s": 1.0, "sweep_every_s": None, "lease_s": None, **options})
    result = await scenario(engine, tracker)
    await nothing_left(engine, tracker)
    return result


async def nothing_left(engine: Engine, tracker: Tracker, *, stragglers: int = 0) -> None:
    """Hold the engine to its promise: nothing is left of what has ended."""
    me = asyncio.current_task()
    for _ in range(20):
        await asyncio.sleep(0)
    for _ in range(50):  # what was cancelled has its turn, what a thread is reading comes to its end
        if not [one for one in asyncio.all_tasks() if one is not me and _ours(one)]:
            break
        await asyncio.sleep(0.02)
    assert open_ones(tracker) == []
    assert (engine.running, engine.queued) == (0, 0)
    assert tracker._registry.committer.watchers == {}
    assert engine._connections() == []
    assert engine._drives == {}
    assert len(engine.stragglers) == stragglers
    left = [one for one in asyncio.all_tasks() if one is not me and _ours(one)]
    assert len(left) == stragglers, left
    for one in tracker.find(limit=1000):
        legal(tracker, one.id)


def _ours(task: asyncio.Task[Any]) -> bool:
    """Whether a task is one of the scenario's or the engine's: a simulation has tasks besides."""
    return not getattr(task.get_coro(), "__qualname__", "").startswith(
        ("Simulat", "simulated.", "SimulatedWorker")
    )


def open_ones(tracker: Tracker) -> list[str]:
    return [f"{one.agent} {one.state}" for one in tracker.find(limit=1000) if one.state not in ENDS]


def legal(tracker: Tracker, execution_id: str) -> None:
    """Check that a journal hangs together: every row begins where the one before it ended, and there is one end."""
    machine = tracker.machine_of(execution_id)
    rows = tracker.history(execution_id)
    before = None
    for row in rows:
        assert row.source == before, (row, before)
        if row.source is not None:
            assert any(arrow.target == row.target for arrow in machine.by_source[row.source][row.event]), row
        before = row.target
    assert [row.version for row in rows] == list(range(len(rows)))
    assert sum(row.target in machine.terminal for row in rows) <= 1


def states(tracker: Tracker, execution_id: str) -> list[str]:
    """Return the states that an execution went through, each stay once."""
    out: list[str] = []
    for row in tracker.history(execution_id):
        if not out or out[-1] != row.target:
            out.append(row.target)
    return out


def events(tracker: Tracker, execution_id: str) -> list[str]:
    return [row.event for row in tracker.history(execution_id)]


def last(tracker: Tracker, execution_id: str) -> dict[str, Any]:
    """Return the payload of the last event."""
    return json.loads(tracker.history(execution_id)[-1].payload_json or "{}")


async def until(handle: Any, state: str) -> None:
    """Wait until an execution is in a state; one that ends before is an error."""
    while handle.state != state:
        assert not handle.done, await handle.outcome()
        await asyncio.sleep(0.005)


def only(tracker: Tracker, **which: Any) -> Any:
    """Return the one execution that there is."""
    (one,) = tracker.find(**which)
    return one
