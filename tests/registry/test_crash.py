"""kill -9 at any moment: what was acknowledged is there, and the file is whole.

A child writes and acknowledges: for every receipt that it was given, one line of JSON with execution_id, version,
event and target. Any program that prints such lines can be killed here; `Child.command` starts it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from fsm.testing import fresh_tracker
from tests.support.places import SAMPLE
from tests.support.sqlite_tools import sound

WRITER = """
    import random, sys, threading
    from fsm import Refused
    from fsm.tracker.process import configure

    url, seed, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    tracker = configure(url)
    printing = threading.Lock()

    def acknowledge(one, version, event, target):
        line = f'{{"execution_id":"{one}","version":{version},"event":"{event}","target":"{target}"}}\\n'
        with printing:
            sys.stdout.write(line)
            sys.stdout.flush()

    def write(rng):
        mine = []
        while True:
            if not mine or rng.random() < 0.1:
                made = tracker.create("a", user_id="u", thread_id="t", metadata={"filler": "x" * rng.randrange(2000)})
                mine.append(made.id)
                acknowledge(made.id, 0, "create", "created")
            one = rng.choice(mine)
            event = rng.choice(tracker.allowed(one) or ["progress"])
            try:
                key = rng.choice([None, str(rng.random())])
                receipt = tracker.fire(one, event, key=key, note="n" * rng.randrange(500))
            except Refused:
                mine.remove(one)
            else:
                acknowledge(one, receipt.version, event, receipt.target)

    for number in range(1, threads):
        threading.Thread(target=write, args=(random.Random(seed + number),), daemon=True).start()
    write(random.Random(seed))
"""


REPLAYER = """
    import json, sys, threading
    from pathlib import Path
    from fsm.replay.events import ReplayClock, replay
    from fsm.tracker.process import configure
    from fsm.replay.trajectory import read_line

    url, sample = sys.argv[1:3]
    clock = ReplayClock()
    tracker = configure(url, clock=clock)
    printing = threading.Lock()

    def acknowledge(receipt):
        names = ("execution_id", "version", "event", "target")
        with printing:
            print(json.dumps({name: getattr(receipt, name) for name in names}), flush=True)

    def recordings():
        lines = Path(sample).read_bytes().splitlines()
        while True:  # until it is killed
            yield from map(read_line, lines)

    replay(tracker, recordings(), jobs=8, clock=clock, on_receipt=acknowledge)
"""


class Child(NamedTuple):
    """A program that writes to a store and acknowledges.

    Attributes:
        command: Returns what to start, for a store's URL and a number that makes each run another one.
        most: It is killed after a random number of acknowledgements up to this.
    """

    command: Callable[[str, int], list[str]]
    most: int


def writer(threads: int) -> Child:
    code = textwrap.dedent(WRITER)
    return Child(lambda url, seed: [sys.executable, "-c", code, url, str(seed), str(threads)], 200)


def replayer() -> Child:
    code = textwrap.dedent(REPLAYER)
    return Child(lambda url, _: [sys.executable, "-c", code, url, str(SAMPLE)], 300)


def kill_after(child: Child, url: str, seed: int) -> list[dict[str, object]]:
    """Start a child, kill it when it has acknowledged enough, and return all that it acknowledged."""
    enough = random.Random(seed).randrange(1, child.most)
    process = subprocess.Popen(child.command(url, seed), stdout=subprocess.PIPE)
    try:
        lines = [process.stdout.readline() for _ in range(enough)]
    finally:
        os.kill(process.pid, signal.SIGKILL)
    rest, _ = process.communicate()
    lines += rest.splitlines(keepends=True)
    assert process.returncode == -signal.SIGKILL, lines
    return [json.loads(line) for line in lines if line.endswith(b"\n")]  # the last one may be cut off


def assert_kept(url: str, acknowledged: list[dict[str, object]]) -> None:
    """Assert that every acknowledged receipt is in the journal, as it was acknowledged."""
    with fresh_tracker(url) as tracker:
        kept = {
            (receipt.execution_id, receipt.version): (receipt.event, receipt.target)
            for receipt in tracker.subscribe(after=0, follow=False)
        }
        positions = [receipt.position for receipt in tracker.subscribe(after=0, follow=False)]
    assert positions == list(range(1, len(positions) + 1))
    for one in acknowledged:
        assert kept[one["execution_id"], one["version"]] == (one["event"], one["target"])


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("part", range(5))
def test_a_killed_writer_loses_nothing_that_was_acknowledged(part, threads, tmp_path):
    """After kill -9 at a random moment every acknowledged receipt is there, journal and state agree."""
    child = writer(threads)
    url = f"sqlite:///{tmp_path}/fsm.db"
    acknowledged: list[dict[str, object]] = []
    for number in range(5):  # the same file again and again: each run begins with what the last one left
        acknowledged += kill_after(child, url, 1000 * part + 10 * number + threads)
        assert_kept(url, acknowledged)
        sound(Path(tmp_path / "fsm.db"))
    assert len(acknowledged) > 5


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_a_killed_replay_loses_nothing_that_was_acknowledged(part, tmp_path):
    """After kill -9 of a replay at a random moment every acknowledged receipt is there, journal and state agree."""
    child = replayer()
    url = f"sqlite:///{tmp_path}/fsm.db"
    acknowledged: list[dict[str, object]] = []
    for number in range(10):
        acknowledged += kill_after(child, url, 1000 * part + number)
    assert_kept(url, acknowledged)
    sound(Path(tmp_path / "fsm.db"))
    assert len(acknowledged) > 10
