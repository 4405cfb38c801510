"""A process forks while it works: the child has no part in what its parent runs, and works for itself if it likes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fsm.testing import fresh_tracker
from tests.support.engine_tools import legal

pytestmark = pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there are no forks here")

HEAD = """
    import asyncio, atexit, multiprocessing, os, signal, sys, threading, time, warnings
    import fsm.errors
    from fsm import Engine
    from fsm.tracker.process import configure

    warnings.filterwarnings("ignore", message=".*multi-threaded.*")
    tracker = configure(sys.argv[1])
    mine = {"user_id": "ada", "thread_id": "t"}
"""
WORKER = """
    worker = tracker.worker(ttl_s=30.0)
    one = tracker.create("agent", retry={"attempts_max": 2}, **mine)
    receipt = tracker.fire(one.id, "start")
    child = os.fork()
    if child == 0:
        CHILD
        sys.exit(0)  # and all that atexit does
    os.waitpid(child, 0)
    worker.renew()
    assert tracker.get(one.id).state == "starting", tracker.get(one.id)
    for event in ("think", "process_results", "finish", "complete"):
        tracker.fire(one.id, event, fence=receipt.fence)
    print("done", flush=True)
"""
ENGINE = """
    engine = Engine(tracker, lease_s=30.0, sweep_every_s=None)

    async def waits(run, gate):
        await gate.wait()
        return "done"

    async def main():
        gate = asyncio.Event()
        handle = await engine.submit(waits, gate, **mine)
        while handle.state != "starting" and handle.state != "thinking":
            await asyncio.sleep(0.005)
        CHILD
        gate.set()
        print(await handle, flush=True)

    asyncio.run(main())
"""
SYNC = """
    engine = Engine(tracker, lease_s=30.0, sweep_every_s=None)
    assert engine.run_sync(lambda: 1, **mine) == 1
    child = os.fork()
    if child == 0:
        assert engine.run_sync(lambda: 2, **mine) == 2
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert engine.run_sync(lambda: 3, **mine) == 3
    print("done", flush=True)
"""
EXITS = """
        child = os.fork()
        if child == 0:
            atexit._run_exitfuncs()  # what sys.exit does, without taking the copy of the loop down first
            os._exit(0)
        await asyncio.to_thread(os.waitpid, child, 0)
"""
WORKS = """
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        await asyncio.to_thread(child.join)
        assert child.exitcode == 0, child.exitcode
"""
WORK = """
    async def works(run):
        async with run.tool("search"):
            return run.id

    def work():
        assert tracker._registry.worker is None
        assert engine._connections() == []
        one = asyncio.run(engine.run(works, **mine))
        assert tracker.get(one).state == "completed"
        assert tracker.get(one).owner == tracker.worker_id
        tracker.close()
"""
TERMINATED = """
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        await asyncio.to_thread(child.join)
        assert child.exitcode == -signal.SIGTERM, child.exitcode
        await asyncio.sleep(0.2)
"""


def _run(tmp_path: Path, body: str, child: str = "") -> str:
    script = tmp_path / "program.py"
    lines = textwrap.dedent(body).splitlines()
    put = textwrap.dedent(child)
    whole = [
        textwrap.indent(put, line[: -len("CHILD")]) if line.strip() == "CHILD" else line for line in lines
    ]
    script.write_text(textwrap.dedent(HEAD) + "\n".join(whole) + "\n")
    command = [sys.executable, str(script), f"sqlite:///{tmp_path}/fsm.db"]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert time.monotonic() - begun < 20
    return done.stdout


def _states(tmp_path: Path) -> list[str]:
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as tracker:
        found = tracker.find()
        for one in found:
            legal(tracker, one.id)
        return [one.state for one in found]


@pytest.mark.parametrize(
    "child", ["pass", "tracker.close()", "worker.close()", "worker.__exit__(None, None, None)"]
)
def test_a_forked_child_takes_nothing_from_its_parents_worker(tmp_path, child):
    """A child that ends, or closes what it has inherited, neither hands its parent's work back nor unregisters it."""
    assert _run(tmp_path, WORKER, child) == "done\n"
    assert _states(tmp_path) == ["completed"]


def test_a_forked_child_cannot_renew_its_parents_lease(tmp_path):
    """A child's renewal is refused: its parent's lease says nothing of its parent if the child keeps it alive."""
    child = "try:\n    worker.renew()\nexcept fsm.errors.LeaseLost:\n    print('lost', flush=True)"
    assert _run(tmp_path, WORKER, child) == "lost\ndone\n"


def test_a_forked_child_is_a_worker_of_its_own(tmp_path):
    """What a child claims is its own: its worker has another id, and it may register with a lease of its own."""
    child = "assert tracker.worker_id != worker.id\nother = tracker.worker(ttl_s=30.0)\nassert other.id != worker.id"
    assert _run(tmp_path, WORKER, child) == "done\n"


@pytest.mark.parametrize("child", [EXITS, WORKS, TERMINATED], ids=["exits", "works", "terminated"])
def test_a_fork_of_a_process_whose_engine_runs(tmp_path, child):
    """A child that ends, works for itself, or is terminated, leaves what its parent's engine drives alone."""
    body = ENGINE.replace(
        "    async def main", textwrap.indent(textwrap.dedent(WORK), "    ") + "\n    async def main"
    )
    assert _run(tmp_path, body, child) == "done\n"
    assert set(_states(tmp_path)) == {"completed"}


def test_a_forked_child_runs_agents_of_its_own_without_an_event_loop(tmp_path):
    """Code without an event loop runs agents before a fork, in the child, and afterwards in the parent."""
    assert _run(tmp_path, SYNC) == "done\n"
    assert _states(tmp_path) == ["completed"] * 3
