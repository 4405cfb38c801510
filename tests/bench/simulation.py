"""How many steps a second a simulation makes on one core; a step is one callback that its loop runs.

Run `python tests/bench/simulation.py [--rounds 5] [--json]`. Seconds are of this process's CPU, and the best of the
rounds counts. "loop" rows are bare asyncio code; "fleet" rows are whole runs, set-up, faults, the checks of every
guarantee and the trace included. asyncio's own loop stands beside as the measure of the machine. The goal is
100,000 steps a second for every row.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fsm.simulation.faults import CALM, STORM, Chaos
from fsm.simulation.loop import SteppedLoop
from fsm.simulation.scenarios import fleet
from fsm.simulation.simulation import Simulation

GOAL = 100_000
TASKS = 100
TURNS = 2_000


async def yielding() -> None:
    async def one() -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)

    await asyncio.gather(*(one() for _ in range(TASKS)))


async def sleeping() -> None:
    async def one(number: int) -> None:
        for turn in range(TURNS // 4):
            await asyncio.sleep(0.001 * (1 + (number + turn) % 7))

    await asyncio.gather(*(one(number) for number in range(TASKS)))


async def timing_out() -> None:
    async def one() -> None:
        for _ in range(TURNS // 4):
            async with asyncio.timeout(30):
                await asyncio.sleep(0.001)

    await asyncio.gather(*(one() for _ in range(TASKS)))


def on_loop(main: Callable[[], Coroutine[Any, Any, None]]) -> int:
    loop = SteppedLoop(1)
    with loop.undisturbed():
        loop.run_until_complete(main())
    steps = loop.steps
    loop.drop()
    return steps


def on_asyncio() -> int:
    asyncio.run(yielding())
    return TASKS * TURNS


def many(chaos: Chaos, executions: int, seeds: int, workers: int) -> int:
    steps = 0
    for seed in range(seeds):
        simulation = Simulation(seed=seed, workers=workers, chaos=chaos, clock_skew_s=60.0)
        steps += simulation.run(fleet(executions)).steps
    return steps


ROWS: dict[str, Callable[[], int]] = {
    "asyncio's own loop, sleep(0)": on_asyncio,
    "loop, sleep(0)": lambda: on_loop(yielding),
    "loop, sleep(0.001..0.007)": lambda: on_loop(sleeping),
    "loop, timeout(30) around sleep(0.001)": lambda: on_loop(timing_out),
    "fleet of 20, calm, 30 seeds, 3 workers": lambda: many(CALM, 20, 30, 3),
    "fleet of 20, storm, 30 seeds, 3 workers": lambda: many(STORM, 20, 30, 3),
    "fleet of 200, storm, 3 seeds, 5 workers": lambda: many(STORM, 200, 3, 5),
    "fleet of 1000, calm, 1 seed, 10 workers": lambda: many(CALM, 1000, 1, 10),
}


def measure(rounds: int) -> list[dict[str, Any]]:
    table = []
    for name, row in ROWS.items():
        best, steps = float("inf"), 0
        for _ in range(rounds):
            begun = time.process_time()
            steps = row()
            best = min(best, time.process_time() - begun)
        table.append(
            {"what": name, "steps": steps, "cpu_s": round(best, 4), "steps_per_s": round(steps / best)}
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="the best of so many counts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    table = measure(given.rounds)
    if given.json:
        print(json.dumps({"goal": GOAL, "rows": table}, indent=2))
        return
    print(f"{'what':42} {'steps':>10} {'cpu s':>9} {'steps/s':>10}")
    for line in table:
        print(f"{line['what']:42} {line['steps']:>10,} {line['cpu_s']:>9.3f} {line['steps_per_s']:>10,}")


if __name__ == "__main__":
    main()
