"""What the engine costs, against the same coroutine called bare and against raw group commits, in the same run.

    python tests/bench/engine.py [--json] [--only memory|sqlite|slots] [--rounds 5] [--quick]

A run is a number of model phases and as many tool phases. Both sides of a comparison take turns and the medians are
compared; the noise is half the distance between the fastest and the slowest turn. Absolute figures belong to the
machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from registry import Raw, in_threads

from fsm import Engine, Tracker
from fsm.engine.admission import Admission, Slots
from fsm.simulation.loop import SteppedLoop
from fsm.simulation.workers import SimulatedClock
from fsm.testing import fresh_tracker

PAIRS = 10
"""So many model phases and so many tool phases has a run."""
TOGETHER = 100
"""So many runs go on at once, where they do not go on one after another."""


class Row(NamedTuple):
    """One line of the table."""

    what: str
    value: float
    unit: str
    noise: float | None = None
    target: str = ""
    met: bool | None = None


class Figure(NamedTuple):
    """What was measured in several turns."""

    middle: float
    noise: float


def figure(turns: list[float]) -> Figure:
    return Figure(statistics.median(turns), (max(turns) - min(turns)) / 2)


# --- a run --------------------------------------------------------------------------------------------------------


class Bare:
    """A run that does nothing: what is left is the agent itself."""

    def model(self, _name: str, **_: Any) -> nullcontext[None]:
        return nullcontext()

    def tool(self, _name: str, **_: Any) -> nullcontext[None]:
        return nullcontext()


async def agent(run: Any, pairs: int = PAIRS, **options: Any) -> int:
    for _ in range(pairs):
        async with run.model("model", **options):
            await asyncio.sleep(0)
        async with run.tool("tool"):
            await asyncio.sleep(0)
    return pairs


async def bare(pairs: int) -> int:
    return await agent(Bare(), pairs)


def runs(engine: Engine, pairs: int, **options: Any) -> Callable[[int], Coroutine[Any, Any, Any]]:
    whole = partial(agent, **options)

    async def one(number: int) -> None:
        await engine.run(whole, pairs, agent_name="bench", user_id=f"user {number % 10}", thread_id="t")

    return one


async def one_after_another(one: Callable[[int], Coroutine[Any, Any, Any]], count: int) -> float:
    started = time.perf_counter()
    for number in range(count):
        await one(number)
    return time.perf_counter() - started


async def together(one: Callable[[int], Coroutine[Any, Any, Any]], count: int) -> float:
    """Run so many, `TOGETHER` at a time."""
    started = time.perf_counter()
    for begin in range(0, count, TOGETHER):
        await asyncio.gather(*(one(number) for number in range(begin, min(begin + TOGETHER, count))))
    return time.perf_counter() - started


async def by_hand(tracker: Tracker, engine: Engine) -> Callable[[int], Coroutine[Any, Any, Any]]:
    """Return a run without an engine: its events, with their payloads, fired at the tracker one by one."""
    handle = await engine.submit(agent, PAIRS, user_id="user", thread_id="t")
    await handle
    rows = tracker.history(handle.id)[1:]

    async def one(number: int) -> None:
        made = tracker.create("bench", user_id=f"user {number % 10}", thread_id="t")
        fence = 0
        for row in rows:
            fence = tracker.fire(made.id, row.event, fence=fence, **row.payload).fence

    return one


Way = Callable[[Callable[[int], Coroutine[Any, Any, Any]], int], Coroutine[Any, Any, float]]


async def compared(
    ways: dict[str, Callable[[int], Coroutine[Any, Any, Any]]], how: Way, count: int, rounds: int
) -> dict[str, Figure]:
    """Return the seconds for each run, of each of several ways, measured in turns after one to warm up."""
    turns: dict[str, list[float]] = {name: [] for name in ways}
    for this in range(rounds + 1):
        for name, one in ways.items():
            gc.collect()
            spent = await how(one, count)
            if this:
                turns[name].append(spent / count)
    return {name: figure(spent) for name, spent in turns.items()}


def told(title: str, found: dict[str, Figure], phases: int) -> list[Row]:
    """Return what a phase and a run cost, beside what the agent costs alone."""
    alone, whole, empty = found["bare"], found["tracked"], found["empty"]
    rows = [
        Row(f"{title}: the bare coroutine, a run", 1e6 * alone.middle, "µs", 1e6 * alone.noise),
        Row(f"{title}: the same tracked, a run", 1e6 * whole.middle, "µs", 1e6 * whole.noise),
        Row(f"{title}: an empty run, create..complete", 1e6 * empty.middle, "µs", 1e6 * empty.noise),
        Row(
            f"{title}: overhead per phase",
            1e6 * (whole.middle - alone.middle) / phases,
            "µs",
            1e6 * whole.noise / phases,
        ),
        Row(f"{title}: … less the run's own", 1e6 * (whole.middle - empty.middle) / phases, "µs"),
        Row(f"{title}: tracked / bare", whole.middle / alone.middle, "x"),
    ]
    if "by hand" in found:
        plain, hand = found["no breaker"], found["by hand"]
        rows.append(
            Row(
                f"{title}: overhead per phase, no breaker",
                1e6 * (plain.middle - alone.middle) / phases,
                "µs",
                1e6 * plain.noise / phases,
            )
        )
        own = (whole.middle - hand.middle) / phases
        rows += [
            Row(f"{title}: the same events by tracker.fire", 1e6 * hand.middle, "µs", 1e6 * hand.noise),
            Row(f"{title}: the engine's own share of a phase", 1e6 * own, "µs"),
            Row(
                f"{title}: tracked / the events alone",
                whole.middle / hand.middle,
                "x",
                None,
                "<= 2",
                whole.middle <= 2 * hand.middle,
            ),
        ]
    return rows


def memory(rounds: int, count: int) -> list[Row]:
    async def main(tracker: Tracker) -> list[Row]:
        rows: list[Row] = []
        engine = Engine(tracker)
        ways = {
            "bare": lambda _number: bare(PAIRS),
            "tracked": runs(engine, PAIRS),
            "empty": runs(engine, 0),
            "no breaker": runs(engine, PAIRS, breaker=False),
            "by hand": await by_hand(tracker, engine),
        }
        for title, how in (
            ("memory, one by one", one_after_another),
            (f"memory, {TOGETHER} at once", together),
        ):
            rows += told(title, await compared(ways, how, count, rounds), 2 * PAIRS)
        return rows

    with fresh_tracker() as tracker:
        return asyncio.run(main(tracker))


def sqlite(rounds: int, count: int) -> list[Row]:
    folder = Path(tempfile.mkdtemp(dir="."))
    try:
        raw = Raw(folder / "raw.db", TOGETHER)
        grouped = in_threads(raw.grouped, TOGETHER)

        async def main(tracker: Tracker) -> list[Row]:
            engine = Engine(tracker, sweep_every_s=None)
            tracked = runs(engine, PAIRS)
            await together(tracked, TOGETHER)
            before = tracker.position()
            await tracked(0)
            units = tracker.position() - before
            turns: list[float] = []

            async def raw_units(_one: Any, many: int) -> float:
                started = time.perf_counter()
                await asyncio.to_thread(grouped, many * units)
                return time.perf_counter() - started

            found: dict[str, list[float]] = {"bare": [], "tracked": [], "empty": []}
            for this in range(rounds + 1):
                for name, one in (
                    ("bare", lambda _number: bare(PAIRS)),
                    ("tracked", tracked),
                    ("empty", runs(engine, 0)),
                ):
                    gc.collect()
                    spent = await together(one, count)
                    if this:
                        found[name].append(spent / count)
                spent = await raw_units(None, count)
                if this:
                    turns.append(spent / count)
            figures = {name: figure(spent) for name, spent in found.items()}
            commits = figure(turns)
            title = f"SQLite FULL, {TOGETHER} at once"
            share = 100 * commits.middle / figures["tracked"].middle
            return [
                *told(title, figures, 2 * PAIRS),
                Row(f"{title}: journal rows of a run", units, "rows"),
                Row(
                    f"{title}: raw group commits of as many", 1e6 * commits.middle, "µs", 1e6 * commits.noise
                ),
                Row(f"{title}: transitions", units / figures["tracked"].middle, "rows/s"),
                Row(f"{title}: raw group commits", units / commits.middle, "rows/s"),
                Row(f"{title}: tracked / raw", share, "%"),
            ]

        with fresh_tracker(f"sqlite:///{folder}/fsm.db") as tracker:
            rows = asyncio.run(main(tracker))
        raw.close()
    finally:
        shutil.rmtree(folder)
    return rows


# --- slots ----------------------------------------------------------------------------------------------------------


def served(waiting: int, calls: int, **slots: Any) -> float:
    """Return the seconds for one release with a new ticket, among so many waiting tickets of a tenth as many users."""
    admission = Admission(Slots(queued_max=1_000_000, **slots))
    users = max(1, waiting // 10)
    granted: list[tuple[str, str]] = []
    number = 0

    def wait() -> None:
        nonlocal number
        who = (f"user {number * 7919 % users}", f"agent {number % 5}")
        admission.wait(*who, partial(granted.append, who))
        number += 1

    for _ in range(waiting + admission.slots.total):
        wait()
    gc.collect()
    gc.freeze()
    started = time.perf_counter()
    for index in range(calls):
        admission.give_back(*granted[index])
        wait()
    spent = (time.perf_counter() - started) / calls
    gc.unfreeze()
    return spent


def delay(flood: int, **slots: int) -> float:
    """Return the virtual seconds that bob's run of one second takes beside a flood of ada's, at the most."""
    loop = SteppedLoop()

    async def second(run: Any) -> None:
        await asyncio.sleep(1.0)

    async def main(tracker: Tracker) -> float:
        engine = Engine(tracker, slots=slots, sweep_every_s=None)
        handles = [await engine.submit(second, user_id="ada", thread_id="t") for _ in range(flood)]
        most = 0.0
        for _ in range(5):
            began = loop.time()
            await engine.run(second, user_id="bob", thread_id="t")
            most = max(most, loop.time() - began)
        for handle in handles:
            await handle.cancel()
        return most

    with (
        fresh_tracker(clock=SimulatedClock(loop, 0.0)) as tracker,
        asyncio.Runner(loop_factory=lambda: loop) as runner,
    ):
        return runner.run(main(tracker))


def slots(rounds: int, calls: int) -> list[Row]:
    rows: list[Row] = []
    for title, limits in (
        ("total 100", {"total": 100}),
        ("100, 1 a user", {"total": 100, "per_user": 1}),
        ("100, 1 a user, 20 an agent", {"total": 100, "per_user": 1, "per_agent": 20}),
    ):
        turns = [[served(waiting, calls, **limits) for waiting in (1_000, 100_000)] for _ in range(rounds)]
        few, many = (figure([turn[index] for turn in turns]) for index in range(2))
        ratio = many.middle / few.middle
        rows += [
            Row(f"release + wait, {title}, 1,000 wait", 1e6 * few.middle, "µs", 1e6 * few.noise),
            Row(f"release + wait, {title}, 100,000 wait", 1e6 * many.middle, "µs", 1e6 * many.noise),
            Row(f"release + wait, {title}: 100k / 1k", ratio, "x", None, "<= 4", ratio <= 4),
        ]
    alone = delay(0, total=4, per_user=2)
    limited, shared = delay(200, total=4, per_user=2), delay(200, total=1)
    rows += [
        Row("a run of 1 s, alone", alone, "s, virtual"),
        Row("… beside a flood, 2 a user", limited, "s, virtual", None, "as alone", limited == alone),
        Row("… beside a flood, one slot, no limit", shared, "s, virtual", None, "<= 3", shared <= 3 + 1e-6),
    ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="What the engine costs.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--only", choices=("memory", "sqlite", "slots"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds, to see that it runs: no figures to quote"
    )
    options = parser.parse_args()
    rounds, count = (1, TOGETHER) if options.quick else (options.rounds, 5 * TOGETHER)
    parts: dict[str, Callable[[], list[Row]]] = {
        "memory": lambda: memory(rounds, count),
        "sqlite": lambda: sqlite(rounds, count),
        "slots": lambda: slots(rounds, 200 if options.quick else 20_000),
    }
    rows = [row for name, part in parts.items() if options.only in {None, name} for row in part()]
    if options.json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
        return
    for row in rows:
        noise = "" if row.noise is None else f"± {row.noise:,.1f}"
        met = {None: "", True: "met", False: "MISSED"}[row.met]
        print(f"{row.what:<58} {row.value:>12,.2f} {row.unit:<11} {noise:>12} {row.target:<9} {met}")


if __name__ == "__main__":
    main()
