"""The process ends, in every way that processes end: nothing that ran in it stays open."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fsm import Engine
from fsm.errors import ConfigurationError, StoreUnavailable
from fsm.testing import fresh_tracker
from tests.support.engine_tools import ENDS, WHO, events, in_memory, last, legal, on_disk, only

HEAD = """
    import asyncio, os, signal, sys, threading, time
    from fsm import Engine
    from fsm.tracker.process import configure

    tracker = configure(sys.argv[1])
    engine = Engine(tracker, lease_s=0.6, sweep_every_s=None, patience_s=0.3)

    async def sleeps(run):
        async with run.tool("open all the while"):
            await asyncio.sleep(60)

    async def asks(run):
        await run.ask("?")

    def blocks(run):
        time.sleep(60)

    async def begin():
        for agent, attempts in ((sleeps, 1), (sleeps, 2), (asks, 1), (blocks, 1)):
            handle = await engine.submit(agent, user_id="ada", thread_id="t", retry={"attempts_max": attempts})
            while handle.state in ("created", "starting", "thinking") and agent is not blocks:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        print("ready", flush=True)
"""
RETURNS = "asyncio.run(begin())"
STAYS = """
    async def main():
        await begin()
        await asyncio.sleep(60)

    asyncio.run(main())
"""
LISTENS = """
    async def main():
        waiting = asyncio.ensure_future(engine.run_until_signal())
        await begin()
        await waiting

    asyncio.run(main())
"""
OWN_HANDLER = """
    async def main():
        told = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
        await begin()
        await told.wait()
        print("mine", flush=True)

    asyncio.run(main())
"""
STANDS_STILL = """
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
"""


def _run(tmp_path: Path, body: str, end: signal.Signals | None = None) -> tuple[int, str]:
    """Run a program to its end; return its exit status and what it printed after it was ready."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(HEAD) + textwrap.dedent(body))
    command = [sys.executable, str(script), f"sqlite:///{tmp_path}/fsm.db"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "ready\n", child.stderr.read()
        if end is not None:
            child.send_signal(end)
        begun = time.monotonic()
        said, _ = child.communicate(timeout=30)
        assert time.monotonic() - begun < 10
        return child.returncode, said


def _ends(tmp_path: Path) -> list[str]:
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as tracker:
        found = tracker.find()
        for one in found:
            legal(tracker, one.id)
            assert one.owner is None or one.state in {"cancelled", "failed"}, one
        return [one.state for one in found]


HANDED_BACK = ["cancelled", "queued", "awaiting_input", "cancelled"]
"""What becomes of: one with its last attempt, one with another, one that waits for a person, a blocked thread."""


@pytest.mark.parametrize(
    ("body", "end", "status"),
    [
        (RETURNS, None, 0),
        (STAYS, signal.SIGINT, 130),
        (LISTENS, signal.SIGTERM, -signal.SIGTERM),
        (LISTENS, signal.SIGINT, 130),
        (OWN_HANDLER, signal.SIGTERM, 0),
        (STANDS_STILL, None, 0),
    ],
    ids=[
        "the loop ends",
        "Ctrl-C",
        "SIGTERM",
        "Ctrl-C that it waits for",
        "SIGTERM with a handler",
        "a loop stands still",
    ],
)
def test_a_process_that_ends_leaves_nothing_open(tmp_path, body, end, status):
    """However a process ends that can still speak, its executions are ended or handed back at once."""
    code, said = _run(tmp_path, body, end)
    assert code == status or (end is signal.SIGINT and code == -signal.SIGINT)
    assert said == ("mine\n" if body is OWN_HANDLER else "")
    assert _ends(tmp_path) == HANDED_BACK


def test_no_signal_is_handled_unless_asked(tmp_path):
    """An engine that runs and serves leaves every signal's handler as it was; one that is asked for is given back."""
    handled = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]

    async def agent(run):
        return [signal.getsignal(one) for one in handled]

    async def scenario(engine, tracker):
        before = [signal.getsignal(one) for one in handled]
        engine.agent(agent, name="kept", resumable=True)
        serving = asyncio.ensure_future(engine.serve(every_s=0.01))
        assert await engine.run(agent, **WHO) == before
        waiting = asyncio.ensure_future(engine.run_until_signal(signal.SIGTERM))
        await asyncio.sleep(0.01)
        assert signal.getsignal(signal.SIGTERM) != before[0]
        waiting.cancel()
        serving.cancel()
        await asyncio.wait({waiting, serving})
        assert [signal.getsignal(one) for one in handled] == before

    on_disk(tmp_path, scenario)


def test_a_signal_can_be_waited_for_on_the_main_thread_alone():
    """A loop that handles no signals says so, and says what to do instead."""

    async def waits():
        with fresh_tracker() as tracker:
            await Engine(tracker).run_until_signal()

    def thread():
        with pytest.raises(ConfigurationError, match="main thread"):
            asyncio.run(waits())
        met.append(1)

    met = []
    other = threading.Thread(target=thread)
    other.start()
    other.join(60)
    assert met == [1]


def test_an_engine_that_serves_until_a_signal_closes_then(tmp_path):
    """What a serving process has taken over is released when the signal comes, and the signal ends the process."""
    code, said = _run(tmp_path, SERVES, signal.SIGTERM)
    assert (code, said) == (-signal.SIGTERM, "")
    assert _ends(tmp_path) == ["queued"]


def test_a_child_of_a_process_that_waits_for_a_signal_can_be_terminated(tmp_path):
    """A forked child does not inherit the handler: a SIGTERM for it ends it, and its parent's engine goes on."""
    code, said = _run(tmp_path, FORKS, signal.SIGTERM)
    assert (code, said) == (-signal.SIGTERM, "")
    assert _ends(tmp_path) == HANDED_BACK


FORKS = """
    import multiprocessing, warnings

    warnings.filterwarnings("ignore", message=".*multi-threaded.*")

    async def main():
        waiting = asyncio.ensure_future(engine.run_until_signal())
        await asyncio.sleep(0)
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        await asyncio.to_thread(child.join)
        assert child.exitcode == -signal.SIGTERM, child.exitcode
        await begin()
        await waiting

    asyncio.run(main())
"""
SERVES = """
    @engine.agent(name="kept", resumable=True, retry={"attempts_max": 2})
    async def kept(run):
        print("ready", flush=True)
        await asyncio.sleep(60)

    one = tracker.create("kept", user_id="ada", thread_id="t", retry={"attempts_max": 2},
                         metadata={"called_with": {"args": [], "kwargs": {}}})
    tracker.fire(one.id, "enqueue")
    asyncio.run(engine.run_until_signal(serve=True, every_s=0.05))
"""
STUBBORN = """
    async def stubborn(run):
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                print("told", flush=True)

    engine = Engine(tracker, lease_s=30.0, sweep_every_s=None, patience_s=60.0)

    async def main():
        handle = await engine.submit(stubborn, user_id="ada", thread_id="t", timeouts={"grace_s": 50.0})
        while handle.state == "created":
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        print("ready", flush=True)
        await asyncio.sleep(60)

    asyncio.run(main())
"""


def test_whoever_does_not_want_to_wait_presses_ctrl_c_twice(tmp_path):
    """A second Ctrl-C ends a process whose agent does not stop, and its execution ends with it."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(HEAD) + textwrap.dedent(STUBBORN))
    command = [sys.executable, str(script), f"sqlite:///{tmp_path}/fsm.db"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "told\n"
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=20)
        assert child.returncode != 0
    # Where the second one meets the agent, it is the agent's failure.
    assert _ends(tmp_path) in (["cancelled"], ["failed"])


def test_a_process_that_is_killed_is_found_by_the_sweep(tmp_path):
    """Nobody speaks for a process that was killed; its lease runs out, and a sweep deals with what it owned."""
    code, _ = _run(tmp_path, STAYS, signal.SIGKILL)
    assert code == -signal.SIGKILL
    with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as tracker:
        time.sleep(0.7)  # a lease in real time
        tracker.sweep()
        assert [one.state for one in tracker.find()] == ["dead", "queued", "awaiting_input", "dead"]


# --- the store does not answer ----------------------------------------------------------------------------------


class Broken:
    """A way to a store on which appends of an event, or of any (*), fail a few times, before or after they are done."""

    def __init__(self, store: Any, event: str, times: int, *, after: bool) -> None:
        self._store, self._event, self._times, self._after = store, event, times, after
        self.append_ = store.append
        store.append = self.append

    def mend(self) -> None:
        self._times = 0

    def append(self, steps: Any) -> Any:
        if self._times and any(self._event in {step.event, "*"} for step in steps):
            self._times -= 1
            if self._after:
                self.append_(steps)
            raise StoreUnavailable("the connection broke", committed=None)
        return self.append_(steps)


async def _returns(run):
    return 7


async def _raises(run):
    raise OSError("no")


async def _asks_in_vain(run):
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await run.ask("Does anybody hear me?")
    return 7


async def _forgets(run):
    await run.tool("search").__aenter__()
    return 7


@pytest.mark.parametrize("after", [False, True], ids=["not committed", "committed"])
@pytest.mark.parametrize("event", ["start", "withdraw", "close_tool", "complete", "fail", "stopped"])
@pytest.mark.parametrize("where", ["memory", "sqlite"])
def test_a_store_that_breaks_when_something_is_said(tmp_path, where, event, after):
    """A claim or an end that is lost on its way is said again, and is in the journal exactly once."""

    async def scenario(engine, tracker):
        Broken(tracker._registry.store, event, 2 if not after else 1, after=after)
        agents = {"fail": _raises, "stopped": _sleeps, "withdraw": _asks_in_vain, "close_tool": _forgets}
        agent = agents.get(event, _returns)
        handle = await engine.submit(agent, **WHO)
        if event == "stopped":
            await asyncio.sleep(0.05)
            await handle.cancel()
        outcome = await handle.outcome()
        assert outcome.state == {"fail": "failed", "stopped": "cancelled"}.get(event, "completed")
        if outcome.completed:
            assert (await handle, outcome.error) == (7, None)
        seen = events(tracker, handle.id)
        assert seen.count(event) == 1
        assert seen.count("start") == 1

    async def _memory(tracker):
        await scenario(Engine(tracker, sweep_every_s=None, patience_s=1.0), tracker)

    if where == "sqlite":
        on_disk(tmp_path, scenario)
    else:
        with fresh_tracker() as tracker:
            asyncio.run(_memory(tracker))
            legal(tracker, only(tracker).id)


async def _sleeps(run):
    await asyncio.sleep(60)


@pytest.mark.parametrize("limits", [{}, {"total_s": 20.0}], ids=["no hurry", "beyond its deadline"])
@pytest.mark.parametrize("event", ["complete", "fail"])
def test_an_end_outlasts_a_store_that_is_away_for_minutes(event, limits):
    """What an agent came to in time is recorded as soon as the store is back, although its deadline has passed."""

    async def scenario(engine, tracker):
        Broken(tracker._registry.store, event, 20, after=False)
        began = asyncio.get_running_loop().time()
        handle = await engine.submit(_raises if event == "fail" else _returns, timeouts=limits, **WHO)
        outcome = await handle.outcome()
        assert asyncio.get_running_loop().time() - began > 120
        assert outcome.state == {"fail": "failed", "complete": "completed"}[event]
        assert outcome.result == (7 if event == "complete" else None)

    in_memory(scenario)


def test_an_engine_that_is_closed_while_the_store_is_away_does_not_wait_for_minutes():
    """Closing an engine gives up an end that the store does not take after a few tries: its deadline will end it."""

    async def scenario(engine, tracker):
        async def agent(run):
            await asyncio.sleep(1)

        handle = await engine.submit(agent, **WHO)
        await asyncio.sleep(0.5)
        broken = Broken(tracker._registry.store, "*", 1000, after=False)
        await asyncio.sleep(60)
        began = asyncio.get_running_loop().time()
        await engine.close()
        assert asyncio.get_running_loop().time() - began < 15
        assert handle.done
        assert tracker.get(handle.id).state not in ENDS
        broken.mend()
        tracker.fire(handle.id, "cancel")
        tracker.fire(handle.id, "stopped", fence=tracker.get(handle.id).fence)

    in_memory(scenario)


def test_a_deadline_that_the_store_does_not_take_is_tried_again(tmp_path):
    """A deadline is met late rather than never if the store is down when it passes."""

    async def scenario(engine, tracker):
        Broken(tracker._registry.store, "time_out", 1, after=False)
        handle = await engine.submit(_sleeps, timeouts={"phase_s": 0.1}, **WHO)
        outcome = await handle.outcome()
        assert outcome.state == "timed_out"
        assert last(tracker, handle.id)["late_s"] > 0.5

    on_disk(tmp_path, scenario)


def test_a_deadline_that_moved_elsewhere_is_not_handed_in_again_and_again(tmp_path):
    """Another process's sign of life moves a deadline: the engine looks, and does not spin until it hears of it."""

    async def scenario(engine, tracker):
        registry = tracker._registry
        orders = []
        make = registry.order

        def order(execution_id, event, *args, **more):
            orders.append(event)
            return make(execution_id, event, *args, **more)

        registry.order = order
        handle = await engine.submit(_sleeps, timeouts={"idle_s": 0.3}, **WHO)
        await asyncio.sleep(0.2)

        def from_outside():
            with fresh_tracker(f"sqlite:///{tmp_path}/fsm.db") as other:
                other.fire(handle.id, "progress", fence=other.get(handle.id).fence)

        await asyncio.to_thread(from_outside)
        await handle.outcome()
        assert orders.count("time_out") == 2

    on_disk(tmp_path, scenario, poll_s=30.0)
