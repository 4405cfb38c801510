"""What a successful call costs on top of itself while the breaker is closed, beside the Python breakers people use.

Run it by itself: ``python tests/bench/breakers.py``. All are measured in one run, interleaved, round by round, so that
a busy machine slows all of them alike; the median of the rounds counts, and ratios mean more than nanoseconds.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

warnings.simplefilter("ignore")

import aiobreaker  # noqa: E402
import circuitbreaker  # noqa: E402
import purgatory  # noqa: E402
import pybreaker  # noqa: E402

from fsm.tracker.process import fresh_tracker  # noqa: E402

CALLS = 20_000
ROUNDS = 25


def work() -> int:
    return 1


async def awork() -> int:
    return 1


def sync_ones(breakers) -> dict[str, Callable[[], float]]:
    py = pybreaker.CircuitBreaker()
    cb = circuitbreaker.circuit(failure_threshold=5, name="cb")(work)
    pg = purgatory.SyncCircuitBreakerFactory()
    held_pg = pg.get_breaker("held")
    pg_decorated = pg("decorated")(work)
    py_decorated = py(work)
    ours = breakers.guard("decorated")(work)

    def timed(function: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            begun = time.perf_counter()
            for _ in range(CALLS):
                function()
            return (time.perf_counter() - begun) / CALLS * 1e9

        return run

    def ours_with() -> float:
        permit = breakers.permit
        begun = time.perf_counter()
        for _ in range(CALLS):
            with permit("with"):
                work()
        return (time.perf_counter() - begun) / CALLS * 1e9

    def ours_held() -> float:
        permit = breakers.get("with").permit
        begun = time.perf_counter()
        for _ in range(CALLS):
            with permit():
                work()
        return (time.perf_counter() - begun) / CALLS * 1e9

    def purgatory_with() -> float:
        begun = time.perf_counter()
        for _ in range(CALLS):
            with held_pg:
                work()
        return (time.perf_counter() - begun) / CALLS * 1e9

    return {
        "bare": timed(work),
        "fsm decorator": timed(ours),
        "fsm with, by key": ours_with,
        "fsm with, held": ours_held,
        "circuitbreaker decorator": timed(cb),
        "pybreaker decorator": timed(py_decorated),
        "purgatory decorator": timed(pg_decorated),
        "purgatory with, held": purgatory_with,
    }


async def async_ones(breakers) -> dict[str, Callable]:
    ai = aiobreaker.CircuitBreaker()
    cb = circuitbreaker.circuit(failure_threshold=5, name="acb")(awork)
    pg = purgatory.AsyncCircuitBreakerFactory()
    held_pg = await pg.get_breaker("held")
    pg_decorated = pg("decorated")(awork)
    ours = breakers.guard("adecorated")(awork)

    def timed(function: Callable) -> Callable:
        async def run() -> float:
            begun = time.perf_counter()
            for _ in range(CALLS):
                await function()
            return (time.perf_counter() - begun) / CALLS * 1e9

        return run

    async def ours_with() -> float:
        permit = breakers.permit
        begun = time.perf_counter()
        for _ in range(CALLS):
            async with permit("awith"):
                await awork()
        return (time.perf_counter() - begun) / CALLS * 1e9

    async def ours_held() -> float:
        permit = breakers.get("awith").permit
        begun = time.perf_counter()
        for _ in range(CALLS):
            async with permit():
                await awork()
        return (time.perf_counter() - begun) / CALLS * 1e9

    async def purgatory_with() -> float:
        begun = time.perf_counter()
        for _ in range(CALLS):
            async with held_pg:
                await awork()
        return (time.perf_counter() - begun) / CALLS * 1e9

    return {
        "bare": timed(awork),
        "fsm decorator": timed(ours),
        "fsm with, by key": ours_with,
        "fsm with, held": ours_held,
        "circuitbreaker decorator": timed(cb),
        "aiobreaker decorator": timed(ai(awork)),
        "purgatory decorator": timed(pg_decorated),
        "purgatory with, held": purgatory_with,
    }


def overheads(rounds: dict[str, list[float]]) -> dict[str, float]:
    """Each one's time on top of the bare call of the same round, in nanoseconds."""
    return {
        name: statistics.median(took - bare for took, bare in zip(times, rounds["bare"], strict=True))
        for name, times in rounds.items()
        if name != "bare"
    }


def measure() -> dict[str, dict[str, float]]:
    gc.disable()
    with tempfile.TemporaryDirectory() as folder, fresh_tracker(f"sqlite:///{folder}/bench.db") as tracker:
        ones = sync_ones(tracker.breakers)
        sync: dict[str, list[float]] = {name: [] for name in ones}
        for _ in range(ROUNDS):
            for name, run in ones.items():
                sync[name].append(run())

        async def scenario() -> dict[str, list[float]]:
            aones = await async_ones(tracker.breakers)
            rounds: dict[str, list[float]] = {name: [] for name in aones}
            for _ in range(ROUNDS):
                for name, run in aones.items():
                    rounds[name].append(await run())
            return rounds

        return {"sync": overheads(sync), "async": overheads(asyncio.run(scenario()))}


def main() -> int:
    result = measure()
    if "--json" in sys.argv:
        print(json.dumps(result, indent=2))
    for face, ones in result.items():
        print(f"{face}: overhead of a successful call, ns (ratio to the fsm of the same form)")
        for name, ns in ones.items():
            ours = ones["fsm with, held" if "with" in name else "fsm decorator"]
            print(f"  {name:26s} {ns:8.0f}   {ns / ours:5.2f}x")
    sync, both = result["sync"], result["async"]
    wanted = (
        ("sync decorator <= circuitbreaker's", sync["fsm decorator"] <= sync["circuitbreaker decorator"]),
        ("sync with, held <= purgatory's, held", sync["fsm with, held"] <= sync["purgatory with, held"]),
        ("async decorator <= purgatory's", both["fsm decorator"] <= both["purgatory decorator"]),
        ("async with, held <= purgatory's, held", both["fsm with, held"] <= both["purgatory with, held"]),
    )
    for what, held in wanted:
        print(f"{'held' if held else 'MISSED'}: {what}")
    return 0 if all(held for _, held in wanted) else 1


if __name__ == "__main__":
    raise SystemExit(main())
