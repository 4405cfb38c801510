"""Agents that hypothesis draws: programs of steps, and what plays them on a run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import strategies as st

from fsm.breakers import Backoff
from fsm.engine import Run, SyncRun
from fsm.errors import LimitReached

Program = list[tuple[Any, ...]]
SHORT = st.sampled_from([0.0, 0.0, 0.01, 0.5, 1.0, 3.0])
NAMES = st.sampled_from(["a", "b"])
RAISES: dict[str, Callable[[], BaseException]] = {
    "connection": lambda: ConnectionError("reset"),
    "value": lambda: ValueError("no"),
    "limit": lambda: LimitReached("turns"),
    "cancelled": lambda: asyncio.CancelledError("by itself"),
}

LEAVES = st.one_of(
    st.tuples(st.just("sleep"), SHORT),
    st.tuples(st.just("progress")),
    st.tuples(st.just("forget_tool"), NAMES),
    st.tuples(st.just("ask"), st.sampled_from(["q1?", "q2?"]), st.sampled_from([None, 2.0, 50.0])),
    st.tuples(st.just("call_model"), NAMES, st.integers(0, 3)),
    st.tuples(st.just("phase"), st.sampled_from(["thinking", "preparing_tools", "completing", "validating"])),
    st.tuples(st.just("raise"), st.sampled_from(sorted(RAISES))),
    st.tuples(st.just("end"), st.just(None)),
)


def _deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    body = st.lists(inner, max_size=3)
    bodies = st.lists(body, min_size=1, max_size=3)
    return st.one_of(
        st.tuples(st.just("model"), NAMES, st.booleans(), body),
        st.tuples(st.just("tool"), NAMES, body),
        st.tuples(st.just("parallel"), bodies),
        st.tuples(st.just("group"), bodies),
        st.tuples(st.just("forget"), body),
        st.tuples(st.just("within"), SHORT, body),
        st.tuples(st.just("swallow"), st.integers(1, 3), body),
        st.tuples(st.just("catch"), body),
        st.tuples(st.just("clean_up"), SHORT, body),
        st.tuples(st.just("child"), st.sampled_from([None, 1.0]), body),
    )


PROGRAMS = st.lists(st.recursive(LEAVES, _deeper, max_leaves=6), max_size=4)
_SHORT_ONES = st.lists(st.recursive(LEAVES, _deeper, max_leaves=3), max_size=2)
_CHILDREN = st.lists(
    st.tuples(st.just("child"), st.sampled_from([None, 1.0]), _SHORT_ONES), min_size=1, max_size=2
)
LEFT_BEHIND = st.lists(
    st.one_of(st.tuples(st.just("forget"), st.one_of(_CHILDREN, _SHORT_ONES)), LEAVES), min_size=1, max_size=4
)
"""Programs that leave tasks and children running: drawn from all steps, they are too rare to be met."""


MOMENTS = st.sampled_from([0.0, 0.001, 0.005, 0.02])
"""Spans of real time, in seconds: a thread knows no virtual one."""
_OF_THREADS = st.one_of(
    st.tuples(st.sampled_from(["sleep", "block"]), MOMENTS),
    st.tuples(st.just("progress")),
    st.tuples(st.just("forget_tool"), NAMES),
    st.tuples(st.just("ask"), st.sampled_from(["q1?", "q2?"]), st.sampled_from([None, 0.05])),
    st.tuples(st.just("call_model"), NAMES, st.integers(0, 2)),
    st.tuples(st.just("phase"), st.sampled_from(["thinking", "preparing_tools", "validating"])),
    st.tuples(st.just("raise"), st.sampled_from(sorted(RAISES))),
)


def _deeper_in_threads(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    body = st.lists(inner, max_size=3)
    return st.one_of(
        st.tuples(st.just("model"), NAMES, st.booleans(), body),
        st.tuples(st.just("tool"), NAMES, body),
        st.tuples(st.just("catch"), body),
        st.tuples(st.just("swallow"), body),
        st.tuples(st.just("child"), st.booleans(), body),
    )


THREAD_PROGRAMS = st.lists(st.recursive(_OF_THREADS, _deeper_in_threads, max_leaves=5), max_size=3)
"""What plain functions do, each in its thread."""


class Threaded:
    """Plays programs on a run for threads; a child is a thread or a coroutine."""

    def __init__(self, player: Player) -> None:
        self._player = player

    def agent(self, run: SyncRun, program: Program) -> int:
        self.play(run, program)
        return run.attempt

    def items(self, run: SyncRun, program: Program) -> Any:
        for step in program:
            yield step[0]
            self.play(run, [step])

    def play(self, run: SyncRun, program: Program) -> None:
        for what, *rest in program:
            getattr(self, f"_{what}")(run, *rest)

    def _sleep(self, run: SyncRun, seconds: float) -> None:
        run.sleep(seconds)

    def _block(self, _: SyncRun, seconds: float) -> None:
        time.sleep(seconds)

    def _progress(self, run: SyncRun) -> None:
        run.progress("on", data={"n": 1})

    def _forget_tool(self, run: SyncRun, name: str) -> None:
        run.tool(name).__enter__()

    def _ask(self, run: SyncRun, question: str, expires_s: float | None) -> None:
        run.ask(question, expires_s=expires_s)

    def _call_model(self, run: SyncRun, name: str, failures: int) -> None:
        left = [ConnectionError("reset")] * failures

        def call() -> int:
            if left:
                raise left.pop()
            return 1

        run.call_model(name, call, backoff=Backoff(attempts=2, initial_s=0.005))

    def _phase(self, run: SyncRun, state: str) -> None:
        run.phase(state)

    def _raise(self, _: SyncRun, what: str) -> None:
        error = RAISES[what]()
        raise error

    def _model(self, run: SyncRun, name: str, behind: bool, body: Program) -> None:
        with run.model(name, breaker=None if behind else False) as call:
            call.usage(tokens=1)
            self.play(run, body)

    def _tool(self, run: SyncRun, name: str, body: Program) -> None:
        with run.tool(name, arguments={"n": 1}) as call:
            self.play(run, body)
            call.result = 1

    def _catch(self, run: SyncRun, body: Program) -> None:
        with contextlib.suppress(Exception):
            self.play(run, body)

    def _swallow(self, run: SyncRun, body: Program) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self.play(run, [*body, ("sleep", 0.005)])

    def _child(self, run: SyncRun, threaded: bool, body: Program) -> None:
        if threaded:
            run.child(self.agent, body)
        else:
            run.child(self._player.agent, [("progress",), ("sleep", 0.001)])


class Player:
    """Plays programs; remembers what they left running."""

    def __init__(self) -> None:
        self.left: set[asyncio.Task[Any]] = set()
        self.ended = 0

    async def agent(self, run: Run, program: Program) -> int:
        try:
            await self.play(run, program)
        except _End:
            pass
        finally:
            self.ended += 1
        return run.attempt

    async def items(self, run: Run, program: Program) -> Any:
        for step in program:
            yield step[0]
            await self.play(run, [step])

    async def play(self, run: Run, program: Program) -> None:
        for what, *rest in program:
            step: Callable[..., Coroutine[Any, Any, None]] = getattr(self, f"_{what}")
            await step(run, *rest)

    def _spawn(self, run: Run, program: Program) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(self.play(run, program))
        self.left.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.left.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, so that nobody complains

    # --- steps ------------------------------------------------------------------------------------------------

    async def _sleep(self, _: Run, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _progress(self, run: Run) -> None:
        await run.progress("on", data={"n": 1})

    async def _forget_tool(self, run: Run, name: str) -> None:
        await run.tool(name).__aenter__()

    async def _ask(self, run: Run, question: str, expires_s: float | None) -> None:
        await run.ask(question, expires_s=expires_s)

    async def _call_model(self, run: Run, name: str, failures: int) -> None:
        left = failures

        async def call() -> int:
            nonlocal left
            await asyncio.sleep(0.1)
            left -= 1
            if left >= 0:
                raise ConnectionError("reset")
            return 1

        await run.call_model(name, call, backoff=Backoff(attempts=3, initial_s=0.5))

    async def _phase(self, run: Run, state: str) -> None:
        await run.phase(state)

    async def _raise(self, _: Run, what: str) -> None:
        error = RAISES[what]()
        raise error

    async def _end(self, _: Run, __: None) -> None:
        raise _End

    async def _model(self, run: Run, name: str, behind: bool, body: Program) -> None:
        async with run.model(name, breaker=None if behind else False) as call:
            call.usage(tokens=1)
            await self.play(run, body)

    async def _tool(self, run: Run, name: str, body: Program) -> None:
        async with run.tool(name, arguments={"n": 1}) as call:
            await self.play(run, body)
            call.result = 1

    async def _parallel(self, run: Run, bodies: list[Program]) -> None:
        await asyncio.gather(*(self._spawn(run, body) for body in bodies))

    async def _group(self, run: Run, bodies: list[Program]) -> None:
        async with asyncio.TaskGroup() as group:
            for body in bodies:
                group.create_task(self.play(run, body))

    async def _forget(self, run: Run, body: Program) -> None:
        self._spawn(run, body)

    async def _within(self, run: Run, seconds: float, body: Program) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.play(run, body)

    async def _swallow(self, run: Run, times: int, body: Program) -> None:
        for _ in range(times):
            with contextlib.suppress(asyncio.CancelledError):
                await self.play(run, [*body, ("sleep", 1.0)])

    async def _catch(self, run: Run, body: Program) -> None:
        with contextlib.suppress(Exception):
            await self.play(run, body)

    async def _clean_up(self, run: Run, seconds: float, body: Program) -> None:
        try:
            await self.play(run, body)
        finally:
            await asyncio.sleep(seconds)

    async def _child(self, run: Run, total_s: float | None, body: Program) -> None:
        await run.child(self.agent, body, timeouts={"total_s": total_s} if total_s else None)


class _End(Exception):
    """Return from wherever the agent is."""
