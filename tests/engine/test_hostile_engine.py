"""Callers that hang up at every await, stores that fail at every call, agents that do not stop: nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from fsm import Engine
from fsm.breakers import Backoff, Consecutive, Policy
from fsm.concurrency.threads import STORE_THREADS, Threads
from fsm.errors import BadPayload, InvalidArgument, LimitReached, StoreUnavailable
from fsm.testing import fresh_tracker
from tests.support.engine_tools import WHO, in_memory, on_disk, simulated
from tests.support.hostile_engine_tools import HOW, Failing, at_every_call, at_every_step, at_every_wait

# --- callers that hang up ---------------------------------------------------------------------------------------


async def busy(run, *_):
    """Do a bit of everything."""
    async with run.model("m"):
        await run.annotate(tokens=1)
    async with run.tool("t") as call:
        call.result = 1
    await run.progress("on")
    return 7


async def sleeps(run, *_):
    await asyncio.sleep(0.3)
    return 7


async def yields(run, *_):
    for item in range(3):
        yield item
        await asyncio.sleep(0.01)


async def _run(engine, tracker, victim):
    await victim(engine.run(busy, 1, **WHO))


async def _run_that_lasts(engine, tracker, victim):
    await victim(engine.run(sleeps, 1, **WHO))


async def _checked(engine, tracker, victim):
    async def slow(run):
        await run.log("looked at")

    await victim(engine.run(busy, 1, before=[slow], after=[lambda run, result: None], **WHO))


async def _submit(engine, tracker, victim):
    handle = await victim(engine.submit(sleeps, 1, **WHO))
    await handle.outcome()


async def _result(engine, tracker, victim):
    handle = await engine.submit(sleeps, 1, **WHO)
    with contextlib.suppress(asyncio.CancelledError):
        await victim(handle.result())
    await handle.outcome()


async def _cancel(engine, tracker, victim):
    handle = await engine.submit(sleeps, 1, **WHO)
    await asyncio.sleep(0.05)
    with contextlib.suppress(asyncio.CancelledError):
        await victim(handle.cancel("no need"))
    await handle.outcome()


async def _give_up(engine, tracker, victim):
    handle = await engine.submit(sleeps, 1, **WHO)
    await asyncio.sleep(0.05)
    await victim(handle.give_up("no need"))


async def _map(engine, tracker, victim):
    await victim(engine.map(busy, range(2), at_once=1, **WHO))


async def _stream(engine, tracker, victim):
    async def reads():
        async with contextlib.aclosing(engine.stream(yields, **WHO)) as items:
            async for _ in items:
                await asyncio.sleep(0)

    await victim(reads())


async def _execution(engine, tracker, victim):
    async def body():
        async with engine.execution("by-hand", **WHO) as run, run.tool("t"):
            await asyncio.sleep(0.01)

    await victim(body())


async def _execution_that_fails(engine, tracker, victim):
    async def body():
        async with engine.execution("by-hand", before=[busy], **WHO):
            raise OSError("no")

    with contextlib.suppress(OSError):
        await victim(body())


async def _execution_that_waits(engine, tracker, victim):
    """Its caller waits for a slot: another one has the only one."""
    async with engine.execution("first", **WHO):
        task = asyncio.ensure_future(_execution(engine, tracker, victim))
        await asyncio.sleep(0.05)
    await asyncio.wait({task})


async def _agent(engine, tracker, victim):
    async def agent(run):
        await victim(busy(run))

    await engine.run(agent, **WHO)


async def _asks(engine, tracker, victim):
    async def agent(run):
        await victim(run.ask("May I?"))

    handle = await engine.submit(agent, **WHO)
    for _ in range(100):
        await asyncio.sleep(0.01)
        if handle.done:
            break
        if handle.state == "awaiting_input":
            with contextlib.suppress(Exception):  # the person's own trouble; another answer follows
                await tracker.aio.fire(handle.id, "receive_input", text="yes", by="bo")
    await handle.outcome()


async def _calls_model(engine, tracker, victim):
    async def call():
        await asyncio.sleep(0.01)
        raise LimitReached("tokens")

    async def agent(run):
        await victim(run.call_model("m", call, backoff=Backoff(attempts=3, initial_s=0.5)))

    await engine.run(agent, **WHO)


async def _child(engine, tracker, victim):
    async def agent(run):
        await victim(run.child(busy))

    await engine.run(agent, **WHO)


async def _close(engine, tracker, victim):
    handle = await engine.submit(sleeps, 1, **WHO)
    await asyncio.sleep(0.05)
    with contextlib.suppress(asyncio.CancelledError):
        await victim(engine.close())
    await handle.outcome()


async def _adopt(engine, tracker, victim):
    one = await tracker.aio.create("kept", metadata={"called_with": {"args": [], "kwargs": {}}}, **WHO)
    await tracker.aio.fire(one.id, "enqueue")
    with contextlib.suppress(asyncio.CancelledError):
        await victim(engine.adopt())
    for handle in await engine.adopt():
        await handle.outcome()


async def _serve(engine, tracker, victim):
    one = await tracker.aio.create("kept", metadata={"called_with": {"args": [], "kwargs": {}}}, **WHO)
    await tracker.aio.fire(one.id, "enqueue")

    async def serves():
        async with asyncio.timeout(2.0):
            await engine.serve(every_s=0.5)

    with contextlib.suppress(asyncio.CancelledError, TimeoutError):
        await victim(serves())
    for handle in await engine.adopt():
        await handle.outcome()


async def _registered(engine, tracker, victim):
    await victim(engine._agents["kept"].registered(**WHO))


VICTIMS = [
    _run, _run_that_lasts, _checked, _submit, _result, _cancel, _give_up, _map, _stream, _execution,
    _execution_that_fails, _execution_that_waits, _agent, _asks, _calls_model, _child, _close, _adopt, _serve,
    _registered,
]  # fmt: skip
POLICY = Policy(trip=Consecutive(failures=2), cooldown_s=0.2, cooldown_max_s=0.4, jitter=0.0)


def _hung_up(victim: Any, how: str, points: list[int]) -> Any:
    async def scenario(engine, tracker):
        tracker.breakers.declare("*", POLICY)
        kept = engine.agent(sleeps, name="kept", resumable=True)
        engine._agents["kept"].registered = kept
        points.append(
            await at_every_wait(engine, tracker, HOW[how], lambda make: victim(engine, tracker, make))
        )

    return scenario


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("victim", VICTIMS, ids=lambda one: one.__name__[1:])
def test_a_caller_that_is_cancelled_leaves_nothing(victim, how):
    """A cancel at every await, once or again and again, leaves no slot, link, watcher, task, permit or execution."""
    points: list[int] = []
    simulated(_hung_up(victim, how, points), seed=3, slots={"total": 1}, sweep_every_s=1.0)
    in_memory(_hung_up(victim, how, points), slots={"total": 1})
    assert points[0] > 0


@pytest.mark.parametrize("victim", [_run, _execution, _child, _close], ids=lambda one: one.__name__[1:])
def test_a_caller_that_is_cancelled_leaves_nothing_on_disk(tmp_path, victim):
    """The same on SQLite, in real time, where the reads are done by threads."""
    points: list[int] = []
    on_disk(tmp_path, _hung_up(victim, "for ever", points), slots={"total": 1})
    assert points[0] > 0


ALL = "FSM_RANDOM_TIMES" in os.environ
"""Whether every victim is struck at every point. That takes six minutes, so it is done where more is drawn as well."""


def some(*now: Any) -> list[Any]:
    """Return the victims that are struck in every run of the tests; all of them where more is asked for."""
    return [pytest.param(one, id=one.__name__[1:]) for one in (VICTIMS if ALL else now)]


def _caller(_: asyncio.Task[Any], victim: asyncio.Task[Any]) -> None:
    victim.cancel()


@pytest.mark.parametrize("times", [1, 50])
@pytest.mark.parametrize("victim", some(_run, _execution, _execution_that_waits, _child, _stream))
def test_a_caller_that_is_cancelled_at_any_moment_leaves_nothing(victim, times):
    """A cancel at every step of the event loop while a caller waits leaves nothing either."""

    async def scenario(engine, tracker):
        tracker.breakers.declare("*", POLICY)
        kept = engine.agent(sleeps, name="kept", resumable=True)
        engine._agents["kept"].registered = kept
        assert await at_every_step(
            engine, tracker, lambda make: victim(engine, tracker, make), _caller, times=times
        )

    simulated(scenario, seed=5, slots={"total": 1}, sweep_every_s=1.0)


def _drives(engine: Any) -> Any:
    def strike(*_: object) -> None:
        for _, task in list(engine._drives.values()):
            task.cancel()

    return strike


def _closes(engine: Any) -> Any:
    left: set[Any] = set()

    def strike(*_: object) -> None:
        left.add(asyncio.ensure_future(engine.close()))

    return strike


def _tears_down(engine: Any) -> Any:
    def strike(task: asyncio.Task[Any], victim: asyncio.Task[Any]) -> None:
        home = engine._runtime
        for one in {
            task,
            victim,
            *(home.tasks if home else ()),
            *(task for _, task in engine._drives.values()),
        }:
            one.cancel()

    return strike


@pytest.mark.parametrize("times", [1, 50])
@pytest.mark.parametrize("strike", [_drives, _closes, _tears_down], ids=["drives", "close", "the loop ends"])
@pytest.mark.parametrize("victim", some(_execution, _asks))
def test_an_engine_that_is_stopped_at_any_moment_leaves_nothing(victim, strike, times):
    """Drives that are cancelled, an engine that is closed, a loop that ends: at every step, nothing is left."""

    async def scenario(engine, tracker):
        tracker.breakers.declare("*", POLICY)
        kept = engine.agent(sleeps, name="kept", resumable=True)
        engine._agents["kept"].registered = kept
        assert await at_every_step(
            engine,
            tracker,
            lambda make: victim(engine, tracker, make),
            strike(engine),
            times=times,
            may_be_open=True,
        )

    simulated(scenario, seed=7, slots={"total": 1}, sweep_every_s=1.0)


# --- stores that fail -------------------------------------------------------------------------------------------

ERRORS = {
    "unavailable": lambda: StoreUnavailable("drawn: not for a moment"),
    "nobody can tell": lambda: StoreUnavailable("drawn: the connection broke", committed=None),
    "unexpected": lambda: RuntimeError("drawn: a defect of the store"),
}


async def _handed_over(engine, tracker, victim):
    """A worker that is lost has claimed it; another one goes on with it."""
    one = await tracker.aio.create(
        "kept",
        metadata={"called_with": {"args": [], "kwargs": {}}},
        retry={"attempts_max": 2, "backoff_s": 0.0},
        **WHO,
    )
    await tracker.aio.fire(one.id, "start")
    await tracker.aio.fire(one.id, "lapse")
    for handle in await victim(engine.adopt()):
        await handle.result()


FAILURES: dict[str, dict[str, Any]] = {
    "once": {},
    **(
        {"after it is done": {"after": True}, "4 times": {"times": 4}, "60 times": {"times": 60}}
        if ALL
        else {}
    ),
}


@pytest.mark.parametrize("more", FAILURES)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("victim", [*some(_run, _execution, _asks, _child, _stream, _adopt), _handed_over])
def test_a_store_that_fails_at_any_call_leaves_nothing(victim, error, more):
    """A store that fails once, at whichever call, leaves no slot, link, watcher or task; its error is a typed one."""

    async def scenario(engine, tracker):
        tracker.breakers.declare("*", POLICY)
        kept = engine.agent(sleeps, name="kept", resumable=True)
        engine._agents["kept"].registered = kept
        failing = Failing(tracker)
        assert await at_every_call(
            engine,
            tracker,
            failing,
            ERRORS[error],
            lambda make: victim(engine, tracker, make),
            **FAILURES[more],
        )

    simulated(scenario, seed=11, slots={"total": 1}, sweep_every_s=1.0)
    in_memory(scenario, slots={"total": 1}, sweep_every_s=1.0)


# --- engines that serve -----------------------------------------------------------------------------------------

ODD = [
    {"args": 5}, {"kwargs": [1]}, {"args": "text"}, 7, "text", [1], True, {"args": {"a": 1}}, {"kwargs": {"no": 1}},
]  # fmt: skip


async def _served(engine, tracker, poisoned):
    """Serve until the good one is done; return the ids of the poisoned ones."""
    if "kept" not in engine._agents:
        engine.agent(sleeps, name="kept", resumable=True)
    bad = []
    for called_with in poisoned:
        one = await tracker.aio.create("kept", metadata={"called_with": called_with}, **WHO)
        await tracker.aio.fire(one.id, "enqueue")
        bad.append(one.id)
    good = await tracker.aio.create("kept", metadata={"called_with": {"args": [1]}}, **WHO)
    await tracker.aio.fire(good.id, "enqueue")
    serving = asyncio.ensure_future(engine.serve(every_s=0.05))
    while not (await tracker.aio.get(good.id)).ended:
        assert not serving.done(), serving
        await asyncio.sleep(0.01)
    await engine.close()
    await serving
    return bad


def test_what_cannot_be_gone_on_with_is_set_aside(play):
    """Odd metadata neither ends serve() nor starves what is behind it: each is set aside, with its reason."""

    async def scenario(engine, tracker):
        bad = await _served(engine, tracker, ODD)
        aside = {one.execution_id: one for one in tracker._registry.health.aside()}
        states = [tracker.get(one).state for one in bad]
        # The last one is a call, of a function that has no such argument: it fails as any agent does.
        assert states == ["queued"] * (len(ODD) - 1) + ["failed"]
        assert set(aside) == set(bad[:-1])
        assert all("called_with" in one.reason for one in aside.values())
        assert await engine.adopt() == []
        for one in bad[:-1]:
            tracker.fire(one, "cancel")

    play(scenario)


def test_a_hundred_that_cannot_be_gone_on_with_starve_nobody():
    """A page full of them, and more, at the head of the queue does not keep the good one from being done."""

    async def scenario(engine, tracker):
        for one in await _served(engine, tracker, [{"args": 5}] * 150):
            tracker.fire(one, "cancel")

    in_memory(scenario)


@pytest.mark.parametrize("error", ERRORS)
def test_a_store_that_fails_does_not_end_serve(play, error):
    """serve() goes on after any error of the store, and its loop's report says which it was."""

    async def scenario(engine, tracker):
        engine.agent(sleeps, name="kept", resumable=True)
        failing = Failing(tracker)
        failing.arm(10_000, ERRORS[error])
        serving = asyncio.ensure_future(engine.serve(every_s=0.05))
        await asyncio.sleep(0.2)
        failing.arm(1, ERRORS[error], times=6)
        await asyncio.sleep(60)
        assert failing._left == 0
        assert not serving.done()
        (report,) = (one for one in tracker._registry.health.loops() if one.name == "serve")
        assert report.failures > 0
        assert report.failing == 0
        assert "drawn" in report.last_error
        await engine.close()
        await serving
        await _served(engine, tracker, [])

    play(scenario)


def test_serve_ends_with_its_caller():
    """A cancelled serve() ends; what it has taken over is driven to its end all the same."""

    async def scenario(engine, tracker):
        engine.agent(sleeps, name="kept", resumable=True)
        one = await tracker.aio.create("kept", metadata={"called_with": {"args": [1]}}, **WHO)
        await tracker.aio.fire(one.id, "enqueue")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await engine.serve()
        await asyncio.sleep(1.0)
        assert tracker.get(one.id).state == "completed"
        for odd in (0, -1, True, float("nan"), float("inf"), "soon", None):
            with pytest.raises(InvalidArgument, match="every_s"):
                await engine.serve(every_s=odd)

    in_memory(scenario)


# --- threads ----------------------------------------------------------------------------------------------------


def test_blocking_calls_of_agents_do_not_stand_before_the_store(tmp_path):
    """An agent's blocking calls that fill asyncio's default executor keep neither a run nor a cancel waiting."""

    async def scenario(engine, tracker):
        go_on = threading.Event()
        executor = ThreadPoolExecutor(max_workers=1)
        asyncio.get_running_loop().set_default_executor(executor)

        async def tool(run):
            async with run.tool("blocking"):
                await asyncio.to_thread(go_on.wait)

        def model(run):
            return run.call_model("slow", go_on.wait)

        blocked = [await engine.submit(one, **WHO) for one in (tool, tool, model, model)]
        assert await engine.run(busy, user_id="bob", thread_id="t") == 7
        handle = await engine.submit(sleeps, user_id="bob", thread_id="t")
        await handle.cancel()
        assert (await handle.outcome()).state in {"cancelled", "completed"}
        assert not any(one.done for one in blocked)
        go_on.set()
        for one in blocked:
            await one
        names = {thread.name.rsplit("_", 1)[0] for thread in threading.enumerate()}
        assert "fsm-store" in names

    on_disk(tmp_path, scenario)


def test_the_threads_of_a_registry_are_bounded_and_end_with_it(tmp_path):
    """A thousand reads at once use no more threads than `STORE_THREADS`; closing the tracker ends them."""

    async def scenario(engine, tracker):
        threads = tracker._registry.threads
        assert threads._pool is None
        await asyncio.gather(*(threads.run(threading.get_ident) for _ in range(1_000)))
        mine = [one for one in threading.enumerate() if one.name.startswith("fsm-store")]
        assert 0 < len(mine) <= STORE_THREADS
        return mine, threads

    mine, threads = on_disk(tmp_path, scenario)
    for thread in mine:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert (
        asyncio.run(threads.run(threading.get_ident)) == threading.get_ident()
    )  # closed: on the caller's thread


def test_where_no_thread_can_be_had_a_read_is_done_on_the_spot(monkeypatch):
    """A read of a process that gets no thread any more is done by its caller, once."""
    threads, calls = Threads("fsm-test"), []

    def start(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    asyncio.run(threads.run(calls.append, 1))
    assert calls == [1]


# --- agents that do not stop ------------------------------------------------------------------------------------


async def stubborn(run):
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1e6)


async def more_stubborn(run):
    while True:
        with contextlib.suppress(BaseException):
            await asyncio.sleep(1e6)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["return", "close", "deadline"])
@pytest.mark.parametrize("agent", [stubborn, more_stubborn])
def test_an_agent_that_swallows_every_cancellation_does_not_keep_the_loop(agent, how, caplog):
    """asyncio.run returns although an agent swallows every cancellation, and the log and the engine say which."""
    engines = []

    async def main(tracker):
        engine = Engine(tracker, patience_s=0.05, sweep_every_s=None)
        engines.append(engine)
        handle = await engine.submit(agent, timeouts={"total_s": 0.05} if how == "deadline" else None, **WHO)
        await asyncio.sleep(0.01)
        if how == "close":
            await engine.close()
        elif how == "deadline":
            await handle.outcome()
        if how != "return":
            assert engine.stragglers == {handle.id: agent.__name__}
        return handle.id

    with fresh_tracker() as tracker:
        execution_id = asyncio.run(main(tracker))
        (engine,) = engines
        assert tracker.get(execution_id).ended
        assert "went on after every cancellation" in caplog.text
        assert [one.execution_id for one in engine.late] == [execution_id]
        # One that ignores even its closing is suspended for good, and stays in the list.
        assert list(engine.stragglers) == ([execution_id] if agent is more_stubborn else [])


def test_what_an_abandoned_agent_takes_back_itself_does_not_close_it(play):
    """A straggler whose own asyncio.timeout fires goes on: only a cancellation that it swallows closes it."""

    async def scenario(engine, tracker):
        async def agent(run):
            for _ in range(3):
                try:
                    async with asyncio.timeout(5.0):
                        await asyncio.sleep(1e6)
                except (TimeoutError, asyncio.CancelledError):
                    continue
            return "at last"

        handle = await engine.submit(agent, timeouts={"phase_s": 1.0}, **WHO)
        await handle.outcome()
        await asyncio.sleep(60)
        assert engine.stragglers == {}
        assert [one.result for one in engine.late] == ["at last"]

    play(scenario)


def test_a_thread_that_goes_on_is_reported_until_it_ends():
    """A plain function that runs on after the engine was closed is a straggler for as long as its thread lives."""
    go_on, engines = threading.Event(), []

    def blocks(run):
        go_on.wait(60)

    async def main(tracker):
        engine = Engine(tracker, patience_s=0.05, sweep_every_s=None)
        engines.append(engine)
        handle = await engine.submit(blocks, **WHO)
        await asyncio.sleep(0.02)
        await engine.close()
        return handle.id

    with fresh_tracker() as tracker:
        execution_id = asyncio.run(main(tracker))
        assert tracker.get(execution_id).ended
        assert engines[0].stragglers == {execution_id: "blocks"}
        thread = engines[0]._runtime.threads[execution_id][1]
        go_on.set()
        thread.join(60)
        assert engines[0].stragglers == {}


@pytest.mark.parametrize("attempts", [1, 2])
def test_what_backs_off_is_called_off_with_its_engine(play, attempts):
    """An engine that is closed calls off what backs off with its last attempt, and hands back what has another."""

    async def scenario(engine, tracker):
        async def fails():
            raise ConnectionError("reset")

        async def agent(run):
            await run.call_model("m", fails, backoff=Backoff(attempts=3, initial_s=60.0, max_s=60.0))

        handle = await engine.submit(agent, retry={"attempts_max": attempts}, **WHO)
        while handle.state != "backing_off":
            await asyncio.sleep(0.01)
        await engine.close()
        state = tracker.get(handle.id).state
        assert state == ("cancelled" if attempts == 1 else "queued")
        assert engine.left_open == ({} if attempts == 1 else {handle.id: "queued"})
        if attempts > 1:
            tracker.fire(handle.id, "cancel")

    play(scenario)


EXITS = """
import asyncio, sys, threading, time
from fsm import Engine
from fsm.tracker.process import configure

tracker = configure(sys.argv[1])
engine = Engine(tracker, lease_s=None, sweep_every_s=None, patience_s=0.1)

async def sleeps(run):
    async with run.tool("open"):
        await asyncio.sleep(600)

async def stubborn(run):
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

def blocks(run):
    time.sleep(600)

def run(agent):
    try:
        engine.run_sync(agent, user_id="u", thread_id="t")
    except BaseException:
        pass

for agent in (sleeps, stubborn, blocks):
    threading.Thread(target=run, args=(agent,), daemon=True).start()
while len(tracker.find(category="running")) < 3:
    time.sleep(0.01)
"""


def test_a_process_ends_although_daemon_threads_run_agents(tmp_path):
    """The end of the interpreter ends what runs in the portal through the table, in bounded time, without an error."""
    script = tmp_path / "program.py"
    script.write_text(EXITS)
    url = f"sqlite:///{tmp_path}/fsm.db"
    done = subprocess.run(
        [sys.executable, str(script), url], capture_output=True, text=True, timeout=25, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "TimeoutError" not in done.stderr
    with fresh_tracker(url) as tracker:
        assert tracker.counts() == {"cancelled": 3}


def test_an_interrupt_of_run_sync_waits_until_the_execution_has_ended():
    """Ctrl-C in plain code calls the execution off, and it has ended when KeyboardInterrupt is raised."""
    with fresh_tracker() as tracker:
        engine = Engine(tracker, sweep_every_s=None)

        async def agent(run):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.05)

        with pytest.raises(KeyboardInterrupt):
            engine.run_sync(agent, **WHO)
        assert tracker.counts() == {"cancelled": 1}
        engine.portal().close()
        engine.portal().close()


# --- what agents and checks may be ------------------------------------------------------------------------------


def _wrapped(run, *args):
    return busy(run, *args)


class Calls:
    def __call__(self, run):
        return busy(run)


@pytest.mark.parametrize("agent", [lambda run, *_: busy(run), lambda run, *_: yields(run), _wrapped, Calls()])
def test_a_plain_function_that_returns_a_coroutine_is_refused(agent):
    """A plain function gets a SyncRun: one that returns a coroutine for it is refused, with what to write instead."""

    async def scenario(engine, tracker):
        with pytest.raises(BadPayload, match=r"write it as 'async def'"):
            await engine.run(agent, **WHO)
        assert tracker.counts() == {"failed": 1}

    with fresh_tracker() as tracker:
        asyncio.run(scenario(Engine(tracker, sweep_every_s=None), tracker))


@pytest.mark.parametrize(
    ("agent", "result"),
    [
        (partial(busy), 7),
        (lambda *_: busy_without_run(), 8),
        (lambda: yields(None), [0, 1, 2]),
        (lambda: (one for one in range(2)), [0, 1]),
        (lambda run: (one for one in range(2)), [0, 1]),
    ],
)
def test_what_a_plain_function_hands_on_is_run(agent, result):
    """A coroutine or a generator that needs no run is awaited or drained, whatever function returned it."""

    async def scenario(engine):
        assert await engine.run(agent, **WHO) == result

    with fresh_tracker() as tracker:
        asyncio.run(scenario(Engine(tracker, sweep_every_s=None)))


async def busy_without_run():
    return 8


@pytest.mark.parametrize("said", [0, 1, 2.5, {}, {"result": 2}, [], b"no"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_check_that_says_neither_yes_nor_no_is_refused(when, said):
    """A value that a check returns and that means nothing is a typed error, and does not vanish."""

    async def scenario(engine, tracker):
        with pytest.raises(BadPayload, match=r"returned an? "):
            await engine.run(busy, **{when: [lambda *_: said]}, **WHO)
        assert tracker.counts() == {"failed": 1}

    in_memory(scenario)


class _Evil(Exception):
    def __str__(self):
        raise SystemExit(3)

    __repr__ = __str__


class _EvilKind(type):
    __name__ = property(lambda _: 1 / 0)  # type: ignore[assignment]


class _EvilType(Exception, metaclass=_EvilKind):
    pass


def _recursive():
    one: list[Any] = []
    one.append(one)
    return one


def _deep():
    one: list[Any] = []
    for _ in range(100_000):
        one = [one]
    return one


RESULTS = {
    "set": lambda: {1, 2},
    "nan": lambda: float("nan"),
    "huge": lambda: "x" * 5_000_000,
    "huge number": lambda: 10**5_000,
    "recursive": _recursive,
    "deep": _deep,
    "endless": lambda: iter(int, 1),
    "endless inside": lambda: {"a": [(one for one in iter(int, 1))]},
    "surrogate": lambda: "\ud800",
    "object": object,
    "odd keys": lambda: {(1, 2): 3, None: 4},
    "evil": _Evil,
    "bytes": lambda: b"\xff\xfe",
}


@pytest.mark.parametrize("result", RESULTS)
def test_any_result_ends_an_execution(play, result):
    """Whatever an agent returns, its execution is completed, and its caller gets the object itself."""

    async def scenario(engine, tracker):
        made = RESULTS[result]()

        async def agent(run):
            return made

        assert await engine.run(agent, **WHO) is made
        async with engine.execution("by-hand", **WHO) as run:
            await run.annotate(odd=made)
        assert tracker.counts() == {"completed": 2}

    play(scenario)


ODD_ERRORS = {
    "evil": _Evil,
    "evil type": lambda: _EvilType(),  # noqa: PLW0108 - pytest would ask the class for its name
    "long": lambda: ValueError("x" * 100_001),
}


@pytest.mark.parametrize("error", ODD_ERRORS)
def test_any_error_ends_an_execution(play, error):
    """Whatever an agent raises, its execution has failed, and its caller gets the error itself."""

    async def scenario(engine, tracker):
        made = ODD_ERRORS[error]()

        async def agent(run):
            raise made

        outcome = await (await engine.submit(agent, **WHO)).outcome()
        assert outcome.error is made
        assert tracker.counts() == {"failed": 1}

    play(scenario)
