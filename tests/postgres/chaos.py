"""Four worker processes on one database while they are killed and stopped and the server is restarted.

Each worker claims what is queued and fires a script of events; what it was told that is committed it writes to a log of
its own, with the moments between which it waited. In the end the journal is held against these logs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fsm.core.journal import fold
from fsm.core.records import Receipt
from fsm.errors import FsmError, LeaseLost, Refused, StoreUnavailable
from fsm.lifecycles.execution import EXECUTION
from fsm.stores import Query
from fsm.testing import fresh_tracker
from fsm.tracker.sweeper import Sweeper
from fsm.tracker.tracker import Tracker
from tests.support.postgres import Server, own_server

WORKERS = 4
TTL_S = 1.0
RETRY = {"attempts_max": 100, "backoff_s": 0.0}
PACE_S = 0.06
"""An agent takes up to this long between two events, in seconds."""
SCRIPT = (
    ("think", {}), ("call_model", {}), ("open_tool", {"name": "search"}), ("process_results", {}), ("progress", {}),
    ("close_tool", {"name": "search"}), ("finish", {}), ("complete", {"result": 1}),
)  # fmt: skip
MAX_S = 1_800.0


# --- a worker -----------------------------------------------------------------------------------------------------


def work(url: str, log_name: str, seed: int) -> None:
    """Claim and drive executions until nothing is open; every acknowledged commit goes to the log."""
    rng = random.Random(seed)
    with fresh_tracker(url) as tracker, Path(log_name).open("a", encoding="utf-8") as log:
        sweeper = Sweeper(tracker._registry, 0.2)
        sweeper.start()
        while True:
            with suppress(FsmError):
                if not serve(tracker, log, rng):
                    break
            time.sleep(0.05)
        sweeper.stop()


def serve(tracker: Tracker, log: Any, rng: random.Random) -> bool:
    """Be a worker until the lease is lost; return whether anything is left."""
    with tracker.worker(ttl_s=TTL_S) as worker:
        while not worker.lost:
            queued = tracker.find(state="queued", limit=50)
            if not queued:
                return bool(
                    tracker.find(category="running", limit=1) or tracker.find(state="queued", limit=1)
                )
            drive(tracker, log, rng.choice(queued).id, rng)
    return True


def drive(tracker: Tracker, log: Any, execution_id: str, rng: random.Random) -> None:
    fence = None
    for event, payload in (("start", {}), *SCRIPT):
        time.sleep(rng.uniform(0, PACE_S))
        receipt = fire(tracker, log, execution_id, event, payload, fence)
        if receipt is None:
            return
        fence = receipt.fence if fence is None else fence


def fire(
    tracker: Tracker, log: Any, execution_id: str, event: str, payload: dict[str, Any], fence: int | None
) -> Receipt | None:
    """Fire until it is known what became of it; with its key a repetition is safe."""
    key = os.urandom(8).hex()
    began = time.monotonic()
    while True:
        try:
            receipt = tracker.fire(execution_id, event, fence=fence, key=key, **payload)
        except StoreUnavailable:
            continue
        except (Refused, LeaseLost) as error:
            log.write(json.dumps({"refused": getattr(error, "reason", "lease")}) + "\n")
            log.flush()
            return None
        line = {
            "id": execution_id,
            "began": began,
            "ended": time.monotonic(),
            "fence": fence,
            "row": list(receipt),
        }
        log.write(json.dumps(line) + "\n")
        log.flush()
        return receipt


# --- the disturbance ----------------------------------------------------------------------------------------------


class Crowd:
    """The worker processes, and who disturbs them."""

    def __init__(self, server: Server, url: str, folder: Path, seed: int) -> None:
        self.server, self.url, self.folder = server, url, folder
        self.rng = random.Random(seed)
        self.started = 0
        self.processes = [self._start() for _ in range(WORKERS)]
        self.done: Counter[str] = Counter()

    def _start(self) -> subprocess.Popen[bytes]:
        self.started += 1
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); from tests.postgres.chaos import work; "
            "work(sys.argv[2], sys.argv[3], int(sys.argv[4]))"
        )
        root, log = Path(__file__).resolve().parents[2], self.folder / f"worker-{self.started}.log"
        return subprocess.Popen(
            [sys.executable, "-c", code, root, self.url, log, str(self.rng.random()).removeprefix("0.")]
        )

    def disturb(self, restart: bool) -> None:
        at = self.rng.randrange(WORKERS)
        process = self.processes[at]
        what = "restart" if restart else self.rng.choice(["kill", "stop", "nap"])
        self.done[what] += 1
        if what == "restart":
            self.server.restart(self.rng.choice([signal.SIGINT, signal.SIGQUIT]))
        elif what == "kill":
            process.kill()
            process.wait()
            self.processes[at] = self._start()
        else:  # longer than its lease, or shorter
            process.send_signal(signal.SIGSTOP)
            time.sleep(2.0 * TTL_S if what == "stop" else 0.3 * TTL_S)
            process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


def play(
    *, executions: int, restarts: int, seed: int = 1, log: Callable[[str], None] = lambda _: None
) -> dict[str, int]:
    """Play it, and return what happened; raises AssertionError if anything does not hold."""
    server = own_server()
    url = server.url("chaos", wait_s="5")
    with tempfile.TemporaryDirectory(prefix="fsm-chaos-") as folder:
        try:
            with fresh_tracker(url) as tracker:
                ids = [
                    tracker.create("a", user_id=f"u{n % 7}", thread_id="t", retry=RETRY).id
                    for n in range(executions)
                ]  # fmt: skip
                for one in ids:
                    tracker.fire(one, "enqueue")
                crowd = Crowd(server, url, Path(folder), seed)
                try:
                    _disturb(tracker, crowd, executions, restarts, log)
                finally:
                    crowd.end()
                tracker.sweep()
                return dict(crowd.done) | check(tracker, ids, Path(folder))
        finally:
            server.close()


def _disturb(
    tracker: Tracker, crowd: Crowd, executions: int, restarts: int, log: Callable[[str], None]
) -> None:
    until = time.monotonic() + MAX_S
    marks = [executions * (number + 1) // (restarts + 1) for number in range(restarts)]
    while True:
        counts = _counts(tracker)
        ended = sum(count for state, count in counts.items() if state in EXECUTION.terminal)
        if ended == executions:
            return
        assert time.monotonic() < until, counts
        restart = bool(marks) and ended >= marks[0]
        if restart:
            marks.pop(0)
        # The last ones are left alone, or it would never end.
        if restart or 0 < ended < 0.9 * executions:
            crowd.disturb(restart)
            log(f"{ended} of {executions} have ended; {dict(crowd.done)}")
        time.sleep(0.3)


def _counts(tracker: Tracker) -> dict[str, int]:
    while True:
        with suppress(StoreUnavailable):
            return tracker.counts()


# --- what must hold -----------------------------------------------------------------------------------------------


def check(tracker: Tracker, ids: list[str], folder: Path) -> dict[str, int]:
    """Hold the journal against what the workers were told."""
    store = tracker._registry.store
    assert store.inspect() == []
    records = {one.identity.id: one for one in store.find(Query(limit=len(ids) + 1))}
    assert set(records) == set(ids)
    histories = {one: store.history(one) for one in ids}
    for one, history in histories.items():
        assert [receipt.version for receipt in history] == list(range(len(history))), "versions have no gap"
        assert fold(history, EXECUTION) == records[one].state, "every row is one of the table"
        assert records[one].state in EXECUTION.terminal | {"queued"}
        assert [receipt.position for receipt in history] == sorted(receipt.position for receipt in history)
    told, refused = _told(folder)
    for line in told:
        row = Receipt._make(line["row"])
        assert histories[line["id"]][row.version] == row, "what was acknowledged is there, as it was told"
        if line["fence"] is not None:
            before = histories[line["id"]][: row.version]
            assert before[-1].fence == line["fence"], "no stale fence has written"
            assert before[-1].owner == row.owner or row.owner is None
    _check_order(told)
    stream = store.journal(0, sum(map(len, histories.values())) + 1)
    assert sorted(stream) == sorted(receipt for history in histories.values() for receipt in history)
    return {"rows": len(stream), "told": len(told), "refused": refused}


def _told(folder: Path) -> tuple[list[dict[str, Any]], int]:
    lines: list[dict[str, Any]] = []
    refused = 0
    for file in folder.glob("*.log"):
        for text in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # the last line of one that was killed
                line = json.loads(text)
                if "refused" in line:
                    refused += 1
                else:
                    lines.append(line)
    return lines, refused


def _check_order(told: list[dict[str, Any]]) -> None:
    """An operation that had ended before another one began is before it in the journal: the history is linearizable."""
    by_id: dict[str, list[dict[str, Any]]] = {}
    for line in told:
        by_id.setdefault(line["id"], []).append(line)
    for lines in by_id.values():
        latest_began = float("-inf")
        for line in sorted(lines, key=lambda one: one["row"][2]):
            assert line["ended"] >= latest_began, (
                "a later version was acknowledged before an earlier one was asked for"
            )
            latest_began = max(latest_began, line["began"])
