"""How fast the registry is, always against something that everybody can check, in the same run.

    python tests/bench/registry.py [--json] [--only memory|sqlite|size|import] [--million]

Both sides of a ratio take turns (A B A B …) and the medians are compared: absolute figures belong to the machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import transitions

from fsm.lifecycles.execution import EXECUTION
from fsm.testing import fresh_tracker
from fsm.tracker.tracker import Tracker

CYCLE = ("call_model", "think")
"""What every measured execution does, over and over: two transitions between two phases."""


class Row(NamedTuple):
    """One line of the table."""

    what: str
    value: float
    unit: str
    target: str
    met: bool | None


def rate(work: Callable[[int], None], count: int) -> float:
    started = time.perf_counter()
    work(count)
    return count / (time.perf_counter() - started)


def versus(
    ours: Callable[[int], None], theirs: Callable[[int], None], count: int, rounds: int
) -> tuple[float, float]:
    """Return the median rates of both sides, measured in turns after a round to warm up."""
    ours(count // 4)
    theirs(count // 4)
    pairs = [(rate(ours, count), rate(theirs, count)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def begun(tracker: Tracker, number: int = 0) -> str:
    execution_id = tracker.create("bench", user_id=f"user {number % 100}", thread_id=f"thread {number}").id
    fence = tracker.fire(execution_id, "start").fence
    tracker.fire(execution_id, "think", fence=fence)
    return execution_id


# --- (a) in memory ----------------------------------------------------------------------------------------------


def memory(rounds: int) -> list[Row]:
    class Model:
        state = "thinking"

    model = Model()
    stock = transitions.Machine(
        model, states=["thinking", "calling_model"], initial="thinking", auto_transitions=False
    )
    stock.add_transition("call_model", "thinking", "calling_model")
    stock.add_transition("think", "calling_model", "thinking")

    def trigger(count: int) -> None:
        for _ in range(count // 2):
            model.call_model()
            model.think()

    with fresh_tracker() as tracker:
        execution_id = begun(tracker)

        def fire(count: int) -> None:
            for _ in range(count // 2):
                tracker.fire(execution_id, "call_model", fence=1)
                tracker.fire(execution_id, "think", fence=1)

        ours, theirs = versus(fire, trigger, 20_000, rounds)
    return [
        Row("stock transitions trigger", 1e6 / theirs, "µs", "", None),
        Row("tracked event in memory", 1e6 / ours, "µs", "", None),
        Row("tracked event / stock trigger", theirs / ours, "x", "<= 2 (goal 1)", theirs / ours <= 2),
    ]


# --- (b) SQLite ---------------------------------------------------------------------------------------------------

RAW_SCHEMA = """
    CREATE TABLE executions (id TEXT PRIMARY KEY, state TEXT, version INTEGER, updated_at REAL, payload TEXT);
    CREATE TABLE journal (position INTEGER PRIMARY KEY, execution_id TEXT, version INTEGER, event TEXT, source TEXT,
                          target TEXT, at REAL, payload TEXT);
"""
RAW_UPDATE = "UPDATE executions SET state = ?, version = ?, updated_at = ? WHERE id = ? AND version = ?"
RAW_INSERT = """
    INSERT INTO journal (execution_id, version, event, source, target, at, payload) VALUES (?, ?, ?, ?, ?, ?, ?)
"""


class Raw:
    """The same unit by hand: one guarded row update and one journal row, with no index, trigger or check."""

    def __init__(self, path: Path, executions: int) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=FULL")
        self.connection.executescript(RAW_SCHEMA)
        self.versions = [0] * executions
        self.ids = [f"exec_{number:026d}" for number in range(executions)]
        self.connection.executemany(
            "INSERT INTO executions VALUES (?, 'thinking', 0, 0, NULL)", [(one,) for one in self.ids]
        )
        self.queue: deque[tuple[int | None, threading.Lock]] = deque()
        self.wake = threading.Event()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def unit(self, number: int) -> None:
        version = self.versions[number]
        source, target = ("thinking", "calling_model") if version % 2 == 0 else ("calling_model", "thinking")
        at = time.time()
        values = (target, version + 1, at, self.ids[number], version)
        assert self.connection.execute(RAW_UPDATE, values).rowcount == 1
        row = (self.ids[number], version + 1, CYCLE[version % 2], source, target, at, None)
        self.connection.execute(RAW_INSERT, row)
        self.versions[number] = version + 1

    def one_by_one(self, count: int) -> None:
        for _ in range(count):
            self.connection.execute("BEGIN IMMEDIATE")
            self.unit(0)
            self.connection.execute("COMMIT")

    def serve(self) -> None:
        """Commit whatever waits, in one transaction after another, until a unit of nobody comes."""
        while True:
            if not self.queue:
                self.wake.clear()
                if not self.queue:
                    self.wake.wait()
            batch = [self.queue.popleft() for _ in range(len(self.queue))]
            self.connection.execute("BEGIN IMMEDIATE")
            for number, _ in batch:
                if number is not None:
                    self.unit(number)
            self.connection.execute("COMMIT")
            for _, gate in batch:
                gate.release()
            if batch[-1][0] is None:
                return

    def grouped(self, number: int | None, count: int) -> None:
        """Hand units to the one thread that commits, each when the one before is durable."""
        for _ in range(count):
            gate = threading.Lock()
            gate.acquire()
            self.queue.append((number, gate))
            if not self.wake.is_set():
                self.wake.set()
            gate.acquire()

    def close(self) -> None:
        """Stop the thread that commits."""
        self.grouped(None, 1)
        self.thread.join()
        self.connection.close()


def in_threads(work: Callable[[int, int], None], threads: int) -> Callable[[int], None]:
    def run(count: int) -> None:
        each = count // threads
        workers = [threading.Thread(target=work, args=(number, each)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return run


def sqlite(rounds: int, threads: int = 32) -> list[Row]:
    folder = Path(tempfile.mkdtemp(dir="."))
    rows: list[Row] = []
    try:
        raw = Raw(folder / "raw.db", threads)
        with fresh_tracker(f"sqlite:///{folder}/fsm.db") as tracker:
            ids = [begun(tracker, number) for number in range(threads)]

            def fire(number: int, count: int) -> None:
                for _ in range(count // 2):
                    tracker.fire(ids[number], "call_model", fence=1)
                    tracker.fire(ids[number], "think", fence=1)

            ours, theirs = versus(lambda count: fire(0, count), raw.one_by_one, 600, rounds)
            share = ours / theirs
            rows += [
                Row("raw sqlite3, one by one", theirs, "units/s", "", None),
                Row("durable events, 1 caller", ours, "events/s", "", None),
                Row("durable, 1 caller / raw", 100 * share, "%", ">= 50", share >= 0.5),
            ]
            ours, theirs = versus(
                in_threads(fire, threads), in_threads(raw.grouped, threads), threads * 250, rounds
            )
            share = ours / theirs
            rows += [
                Row(f"raw group commit, {threads} threads", theirs, "units/s", "", None),
                Row(f"durable events, {threads} threads", ours, "events/s", "", None),
                Row(f"durable, {threads} threads / raw", 100 * share, "%", ">= 60", share >= 0.6),
            ]
        raw.close()
    finally:
        shutil.rmtree(folder)
    return rows


# --- (c) size and growth --------------------------------------------------------------------------------------------


def filled(tracker: Tracker, count: int) -> list[str]:
    return [
        tracker.create("bench", user_id=f"user {number % 1000}", thread_id=f"thread {number}").id
        for number in range(count)
    ]


def weight() -> Row:
    """Return the bytes of one of 100,000 open executions: records, journal and every index."""
    count = 100_000
    with fresh_tracker() as tracker:
        begun(tracker)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        ids = filled(tracker, count)
        each = (tracemalloc.get_traced_memory()[0] - before) / count - 8  # less this script's own list
        tracemalloc.stop()
        assert len(ids) == count
    return Row("an open execution of 100,000", each, "bytes", "<= 1500", each <= 1500)


def growth(count: int) -> list[Row]:  # noqa: C901 - five small measurements
    """Return what creating, firing and finding cost among so many open executions."""
    with fresh_tracker() as tracker:
        ids = filled(tracker, count)
        sample = ids[:: max(1, count // 1000)][:1000]

        def create() -> None:
            for number in range(1000):
                tracker.create("bench", user_id=f"user {number}", thread_id="thread")

        def fire() -> None:
            for one in sample:
                tracker.fire(one, "start")

        def find_user() -> None:
            for one in sample:
                tracker.find(user_id="user 7", state="created", after=one, limit=10)

        def find_state() -> None:
            for one in sample:
                tracker.find(state="starting", after=one, limit=10)

        def page() -> None:
            for one in sample:
                tracker.find(after=one, limit=10)

        rows: list[Row] = []
        gc.collect()
        gc.freeze()  # a full collection over a million objects belongs to nobody's call
        for work in (create, fire, find_user, find_state, page):
            started = time.perf_counter()
            work()
            spent = (time.perf_counter() - started) / 1000
            rows.append(Row(f"{work.__name__} among {count:,}", spent * 1e6, "µs", "", None))
        gc.unfreeze()
    return rows


def size(counts: tuple[int, ...]) -> list[Row]:
    rows = [row for count in counts for row in growth(count)]
    return [weight(), *sorted(rows, key=lambda row: row.what.split()[0])]


# --- (d) the import ---------------------------------------------------------------------------------------------------


def imported(rounds: int) -> list[Row]:
    def seconds(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - started

    codes = ("pass", "from pydantic import BaseModel, TypeAdapter", "import fsm")
    turns = [[seconds(code) for code in codes] for _ in range(2 * rounds)]
    # The fastest turn of each: whatever else the machine does can only add to it.
    bare, pydantic, ours = (min(turn[index] for turn in turns) for index in range(3))
    return [
        Row("import pydantic", pydantic - bare, "s", "", None),
        Row("import fsm, pydantic included", ours - bare, "s", "<= 0.2", ours - bare <= 0.2),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast the registry is.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--only", choices=("memory", "sqlite", "size", "import"))
    parser.add_argument("--million", action="store_true", help="the curve up to a million executions")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    parts: dict[str, Callable[[], list[Row]]] = {
        "memory": lambda: memory(options.rounds),
        "sqlite": lambda: sqlite(options.rounds),
        "size": lambda: size((1_000, 10_000, 100_000, 1_000_000)[: 4 if options.million else 3]),
        "import": lambda: imported(options.rounds),
    }
    assert EXECUTION.executor
    rows: list[Row] = []
    for name, part in parts.items():
        if options.only in {None, name}:
            rows += part()
    if options.json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
        return
    for row in rows:
        met: Any = {None: "", True: "met", False: "MISSED"}[row.met]
        print(f"{row.what:<36} {row.value:>12,.2f} {row.unit:<9} {row.target:<14} {met}")


if __name__ == "__main__":
    main()
