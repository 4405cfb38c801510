"""Several processes, one file, and everything that goes wrong at once: nothing is lost, nothing is left, nothing grows.

    python tests/bench/soak_hostile.py [--seconds 600] [--processes 4] [--seed 1] [--json]

Worker processes create, claim, drive, fail, retry, cancel and abandon executions with children, from several threads.
Meanwhile, at random: SIGKILL, SIGSTOP and SIGCONT, Ctrl-C, another process that holds the write lock, wall clocks that
jump, files that may not grow (a full disk), storms of garbage collection, and forks. Each process appends what was
acknowledged to a file of its own. In the end:

- every acknowledged receipt is in the journal, with its position, execution, version and event
- every execution has ended, after a few more sweeps
- every journal folds on the table, without a gap, to the state that its record has
- no error came up but those that the library names
- the process that is never killed takes as much memory, as many descriptors and threads as in its first third
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import resource
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path

from fsm import EXECUTION
from fsm.clock import SystemClock
from fsm.core.journal import fold
from fsm.errors import FsmError, StoreUnavailable
from fsm.tracker.process import configure
from fsm.tracker.tracker import Tracker

THREADS = 3
LEASE_S = 3.0
TOTAL_S = 20.0
SETTLE_S = 90.0
"""How long the rest may take to end when nothing goes wrong any more, in seconds."""
TIMEOUTS = {"queue_s": 6.0, "phase_s": 3.0, "grace_s": 2.0, "idle_s": 3.0, "total_s": TOTAL_S}
FAULTS = {
    "kill": 4, "stop": 3, "ctrl-c": 2, "busy": 1, "jump": 3, "disk full": 1, "gc": 2, "fork": 2,
}  # fmt: skip
GROWS = {"resident MB": (1.5, 40.0), "descriptors": (1.3, 8.0), "threads": (1.2, 3.0)}
"""The last third may be larger than the first by this factor, or by this much."""


# --- a worker process -----------------------------------------------------------------------------------------


class JumpyClock(SystemClock):
    """The system's clocks, with a wall clock that is wrong by as much as somebody likes."""

    wrong_s = 0.0

    def wall(self) -> float:
        return super().wall() + self.wrong_s


class Receipts:
    """A file of what was acknowledged, one line each; it is written without a buffer and without a flush."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(self, *what: object) -> None:
        with suppress(
            OSError
        ):  # a disk that is full is a fault of this test: what was not noted is not asked for
            os.write(self._file, (" ".join(map(str, what)) + "\n").encode())


class Load:
    """What a worker process does all the time, from several threads."""

    def __init__(self, tracker: Tracker, folder: Path, name: str, seed: int) -> None:
        self.tracker = tracker
        self.folder = folder
        self.receipts = Receipts(folder / f"{name}.receipts")
        self.odd = Receipts(folder / f"{name}.errors")
        self.over = threading.Event()
        self.seed = seed

    def fire(self, execution_id: str, event: str, **payload: object):
        receipt = self.tracker.fire(execution_id, event, **payload)
        self.receipts.note(receipt.position, receipt.execution_id, receipt.version, receipt.event)
        return receipt

    def run(self, number: int) -> None:
        rng = random.Random(f"{self.seed} {number}")
        while not self.over.is_set():
            try:
                if self.tracker.worker_id and rng.random() < 0.25:
                    self.adopt(rng)
                else:
                    self.live(rng, None, 0)
            except FsmError as error:
                if isinstance(error, StoreUnavailable):
                    self.over.wait(0.05)
            except BaseException:  # noqa: BLE001 - whatever comes up that has no name is a finding
                self.odd.note(json.dumps(traceback.format_exc()))

    def live(self, rng: random.Random, parent_id: str | None, depth: int) -> None:
        made = self.tracker.create(
            "soak", user_id=f"u{rng.randrange(20)}", thread_id="t", timeouts=TIMEOUTS,
            retry={"attempts_max": rng.randint(1, 3), "backoff_s": 0.1}, parent_id=parent_id,
        )  # fmt: skip
        self.receipts.note(0, made.id, 0, "create")
        if rng.random() < 0.1:
            return  # left in the queue
        self.drive(rng, made.id, depth)

    def adopt(self, rng: random.Random) -> None:
        found = self.tracker.find(state="queued", limit=5)
        if not found:
            self.over.wait(0.01)
            return
        self.drive(rng, rng.choice(found).id, 1)

    def drive(self, rng: random.Random, execution_id: str, depth: int) -> None:
        fence = self.fire(execution_id, "start", key=f"start {rng.random()}").fence
        for _ in range(rng.randint(1, 4)):
            self.fire(execution_id, "think", fence=fence)
            self.fire(execution_id, "progress", fence=fence, note="on it", data={"share": rng.random()})
            self.fire(execution_id, "call_model", fence=fence)
            if depth < 3 and rng.random() < 0.15:
                self.live(rng, execution_id, depth + 1)
            if self.over.wait(rng.random() * 0.01):
                break
        end = rng.random()
        if end < 0.5:
            for event in ("process_results", "finish"):
                self.fire(execution_id, event, fence=fence)
            self.fire(execution_id, "complete", fence=fence, result={"n": rng.random()})
        elif end < 0.8:
            self.fire(execution_id, "fail", fence=fence, error="over", retryable=True)
        elif end < 0.9:
            self.fire(execution_id, "cancel", reason="enough")
        # else abandoned: a deadline or the lease ends it


def work(url: str, folder: Path, name: str, seed: int) -> None:
    clock = JumpyClock()
    logging.basicConfig(filename=folder / f"{name}.log", level=logging.WARNING)
    asked: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGWINCH, signal.SIGURG):
        signal.signal(number, lambda got, _frame: asked.append(got))
    tracker = begin(url, clock)
    load = Load(tracker, folder, name, seed)
    threads = [threading.Thread(target=load.run, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    with suppress(KeyboardInterrupt):
        serve(load, name, asked, clock, url)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
    load.over.set()
    for thread in threads:
        thread.join(timeout=60.0)
    tracker.close()


def begin(url: str, clock: JumpyClock) -> Tracker:
    while True:
        try:
            return configure(url, clock=clock, sweep_every_s=0.3)
        except StoreUnavailable:
            time.sleep(0.2)


def serve(load: Load, name: str, asked: list[int], clock: JumpyClock, url: str) -> None:
    """Be a worker, say how much this process takes, and do what the signals ask for, until one asks for the end."""
    samples = Receipts(load.folder / f"{name}.samples")
    rng = random.Random(name)
    sampled = 0.0
    while signal.SIGTERM not in asked:
        with suppress(FsmError):
            if load.tracker._registry.worker is None or load.tracker._registry.worker.lost:
                load.tracker.worker(ttl_s=LEASE_S, name=name)
        if time.monotonic() - sampled > 1.0:
            sampled = time.monotonic()
            samples.note(*sample())
        while asked and asked[0] != signal.SIGTERM:
            fault(asked.pop(0), load, clock, rng, url)
        time.sleep(0.05)


def fault(number: int, load: Load, clock: JumpyClock, rng: random.Random, url: str) -> None:
    if number == signal.SIGUSR1:
        clock.wrong_s = rng.uniform(-7200.0, 7200.0)
    elif number == signal.SIGUSR2:
        size = Path(url.removeprefix("sqlite:///").partition("?")[0]).stat().st_size
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 8192, hard))
        time.sleep(rng.uniform(0.2, 1.5))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    elif number == signal.SIGWINCH:
        before, until = gc.get_threshold(), time.monotonic() + rng.uniform(0.1, 1.0)
        gc.set_threshold(1, 1, 1)
        while time.monotonic() < until:
            gc.collect()
        gc.set_threshold(*before)
    elif number == signal.SIGURG:
        pid = os.fork()
        if pid:
            until = time.monotonic() + 60.0
            while os.waitpid(pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > until:
                    load.odd.note('"a forked child hangs"')
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    break
                time.sleep(0.01)
            return
        try:
            with suppress(FsmError):
                load.live(rng, None, 3)
        except BaseException:  # noqa: BLE001 - as in a thread
            load.odd.note(json.dumps(traceback.format_exc()))
        finally:
            os._exit(0)


def sample() -> tuple[float, int, int]:
    status = Path("/proc/self/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024
    return round(resident, 1), len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


# --- the one that breaks things -----------------------------------------------------------------------------------


class Fleet:
    """The worker processes, and what befalls them. The first one is never killed."""

    def __init__(self, url: str, folder: Path, processes: int, seed: int) -> None:
        self.url = url
        self.folder = folder
        self.rng = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.boots = 0
        self.stopped: dict[int, float] = {}
        self.holders: list[subprocess.Popen[bytes]] = []
        self.names: dict[int, str] = {}
        self.workers = [self._boot(number) for number in range(processes)]

    def _boot(self, number: int) -> subprocess.Popen[bytes]:
        self.boots += 1
        name = self.names[number] = f"w{number}.{self.boots}"
        command = [
            sys.executable,
            __file__,
            "--work",
            self.url,
            str(self.folder),
            name,
            str(self.rng.random()),
        ]
        with (self.folder / f"{name}.out").open("wb") as output:
            return subprocess.Popen(command, stdout=output, stderr=output)

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        time.sleep(min(3.0, seconds / 5))
        while time.monotonic() < until:
            (kind,) = self.rng.choices(list(FAULTS), list(FAULTS.values()))
            self.done[kind] += 1
            self._fault(kind)
            self._care()
            time.sleep(self.rng.uniform(0.05, 0.8))

    def _fault(self, kind: str) -> None:
        number = self.rng.randrange(len(self.workers))
        if kind in {"kill", "ctrl-c"}:
            number = max(1, number)
        one = self.workers[number]
        if not (self.folder / f"{self.names[number]}.samples").exists():
            self.done["too early"] += 1  # it has no handlers yet, and would only fail to begin
            return
        if kind == "busy":
            self.holders.append(
                subprocess.Popen(
                    [sys.executable, __file__, "--hold", self.url, str(self.rng.uniform(0.5, 3.5))]
                )
            )
        elif kind == "stop":
            one.send_signal(signal.SIGSTOP)
            self.stopped[number] = time.monotonic() + self.rng.uniform(0.2, 6.0)
        else:
            one.send_signal(
                {
                    "kill": signal.SIGKILL, "ctrl-c": signal.SIGINT, "jump": signal.SIGUSR1,
                    "disk full": signal.SIGUSR2, "gc": signal.SIGWINCH, "fork": signal.SIGURG,
                }[kind]
            )  # fmt: skip

    def _care(self, *, all_: bool = False) -> None:
        for number, until in list(self.stopped.items()):
            if all_ or time.monotonic() > until:
                self.workers[number].send_signal(signal.SIGCONT)
                del self.stopped[number]
        for number, one in enumerate(self.workers):
            if one.poll() is not None and not all_:
                self.stopped.pop(number, None)
                self.workers[number] = self._boot(number)
        self.holders = [one for one in self.holders if one.poll() is None]

    def end(self) -> list[str]:
        """Let everybody finish; return who did not."""
        self._care(all_=True)
        for one in self.holders:
            one.wait(timeout=60.0)
        for one in self.workers:
            if one.poll() is None:
                one.send_signal(signal.SIGTERM)
        hung = []
        for number, one in enumerate(self.workers):
            try:
                one.wait(timeout=120.0)
            except subprocess.TimeoutExpired:
                hung.append(f"worker {number} did not end")
                one.kill()
                one.wait()
        return hung


def hold(url: str, seconds: float) -> None:
    raw = sqlite3.connect(
        url.removeprefix("sqlite:///").partition("?")[0], isolation_level=None, timeout=20.0
    )
    with suppress(sqlite3.OperationalError):
        raw.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        raw.execute("ROLLBACK")
    raw.close()


# --- what must hold -----------------------------------------------------------------------------------------------


def examine(url: str, folder: Path, findings: list[str]) -> dict[str, object]:
    figures: dict[str, object] = {}
    tracker = configure(url)
    try:
        settle(tracker, findings, figures)
        acknowledged(tracker, folder, findings, figures)
        folded(tracker, findings, figures)
        report = tracker.health()
        figures["orders left"] = report.orders
        if report.orders:
            findings.append(f"{report.orders} orders are not carried out")
    finally:
        tracker.close()
    for path in sorted(folder.glob("*.errors")):
        findings += [f"{path.stem}: {json.loads(line)}" for line in path.read_text().splitlines()]
    for path in sorted(folder.glob("*.out")):
        said = path.read_text(errors="replace")
        if "Traceback" in said:
            findings.append(f"{path.stem} said: {said[-1500:]}")
    return figures


def settle(tracker: Tracker, findings: list[str], figures: dict[str, object]) -> None:
    """Sweep until everything has ended."""
    started = time.monotonic()
    terminal = EXECUTION.terminal
    while True:
        tracker.sweep()
        left = {state: count for state, count in tracker.counts().items() if state not in terminal}
        if not left or time.monotonic() - started > SETTLE_S:
            break
        time.sleep(0.25)
    figures["settled after s"] = round(time.monotonic() - started, 1)
    figures["executions"] = sum(tracker.counts().values())
    figures["ends"] = tracker.counts()
    if left:
        findings.append(f"left open: {left}")


def acknowledged(tracker: Tracker, folder: Path, findings: list[str], figures: dict[str, object]) -> None:
    """Look for every acknowledged receipt in the journal."""
    told: dict[tuple[str, int], tuple[int, str, str]] = {}
    for path in folder.glob("*.receipts"):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                position, execution_id, version, event = line.split()
                told[execution_id, int(version)] = int(position), event, path.stem
    figures["receipts acknowledged"] = len(told)
    last, rows = 0, 0
    for receipt in tracker.subscribe(after=0, follow=False):
        rows += 1
        if receipt.position != last + 1:
            findings.append(f"the journal jumps from {last} to {receipt.position}")
        last = receipt.position
        heard = told.pop((receipt.execution_id, receipt.version), None)
        if heard is not None and (heard[0] not in {0, receipt.position} or heard[1] != receipt.event):
            findings.append(f"{heard} was acknowledged for {receipt}")
    figures["receipts in the journal"] = rows
    figures["receipts lost"] = len(told)
    findings += [f"lost: {key} {value}" for key, value in list(told.items())[:20]]


def folded(tracker: Tracker, findings: list[str], figures: dict[str, object]) -> None:
    """Fold every journal on the table, and compare where it leads to with the record."""
    count, after = 0, None
    while page := tracker.find(limit=1000, after=after):
        for one in page:
            count += 1
            history = tracker.history(one.id)
            try:
                state = fold(history, EXECUTION)
            except ValueError as error:
                findings.append(f"{one.id}: {error}")
                continue
            if (state, history[-1].version) != (one.state, one.version):
                findings.append(f"{one.id}: the journal leads to {state}, the record is {one.state}")
        after = page[-1].id
    figures["journals folded"] = count


def flat(folder: Path, findings: list[str]) -> dict[str, object]:
    """Compare the first third with the last third of what the process took that was never killed."""
    (path,) = folder.glob("w0.*.samples")
    rows = [tuple(map(float, line.split())) for line in path.read_text().splitlines()]
    third = max(1, len(rows) // 3)
    figures: dict[str, object] = {}
    for column, (name, (factor, more)) in enumerate(GROWS.items()):
        first = statistics.median(row[column] for row in rows[:third])
        last = statistics.median(row[column] for row in rows[-third:])
        figures[f"{name}, first third → last third"] = [first, last]
        if last > max(first * factor, first + more):
            findings.append(f"{name} grew from {first} to {last}")
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, help="a folder for the files, which are kept")
    options = parser.parse_args()
    findings: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder = options.keep or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{folder}/soak.db"
        configure(url).close()
        fleet = Fleet(url, folder, options.processes, options.seed)
        fleet.run(options.seconds)
        findings += fleet.end()
        figures: dict[str, object] = {"faults": dict(fleet.done), "processes started": fleet.boots}
        figures |= examine(url, folder, findings)
        figures |= flat(folder, findings)
    figures["findings"] = findings
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            if name != "findings":
                print(f"{name:<40} {value}")
        for finding in findings:
            print(f"FOUND: {finding}")
        print(f"{len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], Path(sys.argv[3]), sys.argv[4], hash(sys.argv[5]))
    elif sys.argv[1:2] == ["--hold"]:
        hold(sys.argv[2], float(sys.argv[3]))
    else:
        sys.exit(main())
