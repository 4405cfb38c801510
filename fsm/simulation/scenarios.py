"""Scenarios to begin with: a fleet of agents as production has it, for the library's own tests and as a pattern."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

from fsm.core.records import Execution, Receipt
from fsm.errors import LeaseLost, Refused, StoreUnavailable, UnknownExecution
from fsm.simulation.simulation import Simulation
from fsm.simulation.workers import SimulatedWorker
from fsm.tracker.tracker import AsyncTracker

Fire = Callable[..., Awaitable[Receipt]]


async def fire_for_sure(
    worker: SimulatedWorker, execution_id: str, event: str, /, *, key: str, tries: int = 50, **payload: Any
) -> Receipt:
    """Fire until the store says what came of it: the key makes the repetition safe.

    Args:
        worker: Who fires.
        execution_id: The execution.
        event: The event.
        key: The same for every repetition.
        tries: How often at the most.
        **payload: What comes with the event, and the fence.

    Returns:
        The one receipt.

    Raises:
        Refused: The table, a guard or a fence refused it.
        StoreUnavailable: The store did not answer `tries` times.
    """
    for attempt in range(tries):
        try:
            return await worker.tracker.aio.fire(execution_id, event, key=key, **payload)
        except StoreUnavailable:
            if attempt + 1 == tries:
                raise
            await asyncio.sleep(0.01 * 2 ** min(attempt, 8))
    raise AssertionError("not reached")


async def drive(
    worker: SimulatedWorker, execution: Execution, rng: Random, *, pace_s: float = 1.0, children: float = 0.0
) -> None:
    """Claim an execution and work on it to an end, as an agent would.

    Args:
        worker: Who works.
        execution: The execution.
        rng: Decides what the agent does.
        pace_s: The mean time between two events, in virtual seconds.
        children: The chance, at every turn, that a child is started. Nobody waits for it.
    """
    execution_id = execution.id
    tag = f"{worker.process.name}:{rng.getrandbits(64):x}"
    number = 0

    async def fire(event: str, **payload: Any) -> Receipt:
        nonlocal number
        number += 1
        await asyncio.sleep(rng.expovariate(1.0 / pace_s))
        return await fire_for_sure(worker, execution_id, event, key=f"{tag}:{number}", **payload)

    fence = (await fire("start")).fence
    await fire("think", fence=fence)
    for _ in range(rng.randrange(4)):
        if children and rng.random() < children:
            with suppress(
                StoreUnavailable
            ):  # then there is one child less, or one that its parent knows nothing of
                await _create(
                    worker.tracker.aio, execution.user_id, execution.thread_id, pace_s, parent_id=execution_id
                )
        await _turn(fire, fence, rng)
    dice = rng.random()
    if dice < 0.2:
        await fire("fail", fence=fence, error="simulated", retryable=dice < 0.15)
        return
    await fire("process_results", fence=fence)
    await fire("finish", fence=fence)
    await fire("complete", fence=fence, result={"dice": dice})


async def _turn(fire: Fire, fence: int, rng: Random) -> None:
    """Ask the model, perhaps twice; then use tools, or think on."""
    await fire("call_model", fence=fence, name="simulated")
    if rng.random() < 0.2:
        await fire("back_off", fence=fence, retry_in_s=rng.random())
        await fire("call_model", fence=fence, name="simulated")
    if rng.random() < 0.5:
        await fire("run_tools", fence=fence)
        calls = [str(index) for index in range(rng.randrange(1, 4))]
        await asyncio.gather(*(_tool(fire, fence, call_id) for call_id in calls))
    await fire("think", fence=fence)


async def _tool(fire: Fire, fence: int, call_id: str) -> None:
    await fire("open_tool", fence=fence, name="search", call_id=call_id)
    await fire("close_tool", fence=fence, call_id=call_id)


async def work(
    worker: SimulatedWorker, *, pace_s: float = 1.0, slots: int = 8, children: float = 0.0
) -> None:
    """Take what waits, as long as the process lives; several at a time. What others were faster at is theirs.

    Args:
        worker: Who works.
        pace_s: As for `drive`.
        slots: How many executions at the same time.
        children: As for `drive`.
    """
    rng = Random(f"work {worker.process.name} {worker.world.seed}")
    busy = asyncio.Semaphore(slots)

    async def one(execution: Execution) -> None:
        try:
            await drive(worker, execution, Random(rng.getrandbits(64)), pace_s=pace_s, children=children)
        except (Refused, LeaseLost, UnknownExecution, StoreUnavailable):
            pass  # taken away, called off, or timed out: whoever took it goes on with it
        finally:
            busy.release()

    while True:
        await asyncio.sleep(rng.expovariate(1.0 / pace_s))
        try:
            waiting = await worker.tracker.aio.find(category="pending", limit=slots)
        except StoreUnavailable:
            continue
        for execution in rng.sample(waiting, min(len(waiting), slots)):
            await busy.acquire()
            worker.spawn(one(execution))


async def _create(
    tracker: AsyncTracker, user_id: str, thread_id: str, pace_s: float, phase_s: float = 60.0, **more: Any
) -> Execution:
    return await tracker.create(
        "simulated",
        user_id=user_id,
        thread_id=thread_id,
        timeouts={"total_s": 600.0 * pace_s, "phase_s": phase_s * pace_s, "queue_s": 300.0 * pace_s},
        **more,
    )


def fleet(
    executions: int = 20,
    *,
    pace_s: float = 1.0,
    cancels: float = 0.1,
    attempts_max: int = 3,
    children: float = 0.1,
) -> Callable[[Simulation], Coroutine[Any, Any, None]]:
    """Return a scenario: executions come in, all workers work on them, some are called off, and all must end.

    Every fourth has so little time for a phase that its deadlines and its events come close together.

    Args:
        executions: How many.
        pace_s: As for `drive`.
        cancels: The share that somebody calls off.
        attempts_max: Attempts of each execution.
        children: As for `drive`: some have children, and these have children too.
    """

    async def scenario(sim: Simulation) -> None:
        for worker in sim.workers:
            worker.start(lambda worker: work(worker, pace_s=pace_s, children=children))
        tracker = sim.tracker.aio
        for number in range(executions):
            await asyncio.sleep(sim.rng.expovariate(4.0 / pace_s))
            execution = await _create(
                tracker,
                f"user-{number % 3}",
                f"thread-{number}",
                pace_s,
                3.0 if number % 4 == 0 else 60.0,
                retry={"attempts_max": attempts_max},
            )
            if sim.rng.random() < cancels:
                sim.later(sim.rng.expovariate(0.1 / pace_s), partial(_call_off, sim, execution.id))
        await sim.settled(within_s=2_000.0 * pace_s)

    return scenario


def _call_off(sim: Simulation, execution_id: str) -> None:
    with suppress(Refused, UnknownExecution):  # it has ended by itself, and perhaps was pruned
        sim.tracker.fire(execution_id, "cancel", reason="simulated")
