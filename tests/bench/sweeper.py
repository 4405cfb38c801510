"""What time costs: a sweep among few and among many, a heartbeat, and how late a timeout is seen.

    python tests/bench/sweeper.py [--json] [--many 1000000] [--sqlite]

Each figure is a ratio of two measurements of one run: the same work among 10,000 open executions and among many.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

from fsm.clock import ManualClock
from fsm.registry.committer import MAX_BATCH
from fsm.tracker.process import configure, fresh_tracker
from fsm.tracker.tracker import Tracker
from fsm.tracker.worker import Worker

DUE = 1_000
FEW = 10_000


def fill(tracker: Tracker, count: int, queue_s: float) -> None:
    registry = tracker._registry
    batch = []
    for number in range(count):
        batch.append(
            registry.birth(
                "bench", user_id=f"u{number % 100}", thread_id=f"t{number}", timeouts={"queue_s": queue_s},
                retry=None, parent_id=None, retry_of=None, metadata=None, machine=None,
            )
        )  # fmt: skip
        if len(batch) == MAX_BATCH:
            registry.committer.commit_all(batch)
            batch = []
    registry.committer.commit_all(batch)


def sweep_among(url: str, count: int, rounds: int) -> float:
    """Return the median seconds of a sweep that finds `DUE` passed deadlines among `count` open executions."""
    clock = ManualClock()
    with fresh_tracker(url, clock=clock) as tracker:
        fill(tracker, count, 80_000.0)
        took = []
        for _ in range(rounds):
            fill(tracker, DUE, 1.0)
            clock.advance(2.0)
            started = time.perf_counter()
            swept = tracker.sweep()
            took.append(time.perf_counter() - started)
            assert swept.timed_out == DUE
        idle = time.perf_counter()
        assert tracker.sweep().timed_out == 0
        print(f"  among {count:,}: {statistics.median(took) * 1e3:.1f} ms; nothing due: "
              f"{(time.perf_counter() - idle) * 1e6:.0f} us")  # fmt: skip
        return statistics.median(took)


def heartbeat(owned: int, rounds: int = 200) -> float:
    """Return the median seconds of renewing the lease of a worker that owns so many executions."""
    with fresh_tracker(clock=ManualClock()) as tracker:
        worker = Worker(tracker._registry, 10.0)
        tracker._registry.worker = worker
        for number in range(owned):
            tracker.fire(tracker.create("bench", user_id="u", thread_id=f"t{number}").id, "start")
        took = []
        for _ in range(rounds):
            started = time.perf_counter()
            worker.renew()
            took.append(time.perf_counter() - started)
        tracker._registry.worker = None
        return statistics.median(took)


def lateness(url: str, rounds: int = 10) -> list[float]:
    """Return by how many seconds a timeout of 0.5 s was noticed late by the process that set it."""
    tracker = configure(url, sweep_every_s=60.0)
    late = []
    try:
        for _ in range(rounds):
            run = tracker.create("bench", user_id="u", thread_id="t", timeouts={"phase_s": 0.5})
            tracker.fire(run.id, "start")
            ended = threading.Event()
            for receipt in tracker.subscribe(after=0, execution_id=run.id):
                last = receipt
            ended.set()
            late.append(last.payload["late_s"])
    finally:
        tracker.close()
    return late


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sqlite", action="store_true", help="also on a SQLite file (takes a few minutes)")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        urls = {"memory": "memory://"} | ({"sqlite": "sqlite:///{}.db"} if options.sqlite else {})
        for name, url in urls.items():
            print(name)
            few = sweep_among(url.format(Path(folder, "few")), FEW, options.rounds)
            many = sweep_among(url.format(Path(folder, "many")), options.many, options.rounds)
            figures[f"{name}: sweep of {DUE} among {options.many:,} / among {FEW:,}"] = many / few
        figures["heartbeat of a worker with 100,000 executions / with 10"] = heartbeat(100_000) / heartbeat(
            10
        )
        late = lateness(f"sqlite:///{folder}/late.db")
        figures["a 0.5 s timeout on SQLite is seen late by, median ms"] = statistics.median(late) * 1e3
        figures["the same, worst ms"] = max(late) * 1e3
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for what, value in figures.items():
            print(f"{value:10.2f}  {what}")


if __name__ == "__main__":
    main()
