"""A process that runs for months: a million executions come and go, and its memory stays as it is.

    python tests/bench/soak.py [--json] [--executions 1000000]

Months pass on a simulated clock. Executions are created, worked on, ended, timed out and pruned by a policy; a few stay
open all the time. The resident memory is read at every tenth of the way; after the first tenth it must not grow.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
from pathlib import Path

from fsm.clock import ManualClock
from fsm.tracker.process import fresh_tracker
from fsm.tracker.retention import Retention
from fsm.tracker.sweeper import Sweeper
from fsm.tracker.tracker import Tracker

KEPT = 2_000
MONTHS_S = 90 * 86_400.0


def resident_kb() -> int:
    gc.collect()
    status = Path("/proc/self/status")
    if status.exists():
        return next(
            int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def one(tracker: Tracker, number: int) -> None:
    run = tracker.create("soak", user_id=f"user {number % 50}", thread_id=f"thread {number}")
    if number % 5 == 0:
        return  # nobody takes it: its deadline ends it
    fence = tracker.fire(run.id, "start", key=f"start {number}").fence
    tracker.fire(run.id, "think", fence=fence)
    tracker.fire(run.id, "fail", fence=fence, error="over")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--executions", type=int, default=1_000_000)
    options = parser.parse_args()
    clock = ManualClock()
    resident: list[int] = []
    tenth = options.executions // 10
    with fresh_tracker(clock=clock) as tracker:
        sweeper = Sweeper(tracker._registry, retention=Retention(max_count=KEPT))
        lasting = [
            tracker.create(
                "soak", user_id="u", thread_id="t", timeouts={"queue_s": MONTHS_S * 2, "total_s": None}
            ).id
            for _ in range(10)
        ]
        for number in range(1, options.executions + 1):
            one(tracker, number)
            if number % 1_000 == 0:
                clock.advance(MONTHS_S * 1_000 / options.executions)
                sweeper.sweep()
            if number % tenth == 0:
                resident.append(resident_kb())
                if not options.json:
                    print(f"{number:>10,} executions  {resident[-1] / 1024:7.1f} MB resident")
        assert all(tracker.get(execution_id).state == "created" for execution_id in lasting)
    growth = resident[-1] / resident[0]
    if options.json:
        print(
            json.dumps(
                {"executions": options.executions, "resident_kb": resident, "last / first tenth": growth}
            )
        )
    else:
        print(f"the last tenth / the first tenth: {growth:.3f}")


if __name__ == "__main__":
    main()
