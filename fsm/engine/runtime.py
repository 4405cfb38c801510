"""What all executions of an engine share while they run on one event loop: tasks, slots, and the way to the store."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from fsm.concurrency.supervised import keep_going_async, one_line
from fsm.core.records import Snapshot
from fsm.engine.admission import Admission, Slots
from fsm.engine.errors import unknown_failure
from fsm.engine.feed import Feed, Listener
from fsm.engine.outcome import Late
from fsm.engine.tasks import Undisturbed, on_loop
from fsm.errors import FsmError, StoreUnavailable
from fsm.machine.machine import Machine
from fsm.machine.paths import Ways
from fsm.tracker.tracker import Tracker

logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

POLL_S = 0.1
"""How often other processes' commits are looked for in the journal, in seconds."""
MAX_LATE = 1_000
"""Maximum number of late ends, and of executions left open, that are remembered; older ones are in the log."""


class Runtime:
    """One engine on one event loop.

    Attributes:
        tasks: Every task of the engine that is not done.
        late: Results and errors of agents whose execution had ended without them.
        stragglers: Agents that go on although their execution has ended: their names by the execution's id.
        open: What was released and has not ended: the state in which it was left, by the execution's id.
        threads: Threads of agents that no caller waits for any more, with the agent's name, by the execution's id.
        elsewhere: Whether this is a forked child's copy of what its parent drives.
    """

    def __init__(
        self,
        tracker: Tracker,
        slots: Slots,
        *,
        poll_s: float = POLL_S,
        lease_s: float | None = None,
        sweep_every_s: float | None = None,
    ) -> None:
        self.tracker = tracker
        self.registry = tracker._registry
        self.loop = asyncio.get_running_loop()
        self.admission = Admission(slots)
        self.feed = Feed(self.registry)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.late: deque[Late] = deque(maxlen=MAX_LATE)
        self.stragglers: dict[str, str] = {}
        self.open: dict[str, str] = {}
        self.threads: dict[str, tuple[str, threading.Thread]] = {}
        self.elsewhere = False
        self.thread_id = threading.get_ident()
        self._ways: dict[str, Ways] = {}
        self._poll_s = poll_s
        self._lease_s = lease_s
        self._sweep_every_s = sweep_every_s
        self._helpers: list[asyncio.Task[None]] = []
        self.register()

    # --- the lease ----------------------------------------------------------------------------------------------

    def register(self) -> None:
        """Be a worker, unless this process is one: what it claims lives by its lease."""
        if self._lease_s is not None and self.registry.worker is None:
            worker = self.tracker.worker(ttl_s=self._lease_s)
            self.registry.closing.append(worker.close)

    def register_again(self) -> None:
        """Register again after the lease was lost; what it owned belongs to others."""
        worker = self.registry.worker
        if self._lease_s is not None and worker is not None and worker.lost:
            self.registry.worker = None
            self.register()

    # --- threads and tasks --------------------------------------------------------------------------------------

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function on the loop soon, from any thread; a closed loop has nothing left to tell."""
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            logger.debug("the event loop of an engine was closed while a commit was under way")

    async def read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call at once what never waits, and let a thread of the registry's wait for a disk.

        Raises:
            StoreUnavailable: Also for an error that the store itself does not know.
        """
        try:
            return await self.registry.off_loop(function, *args, **kwargs)
        except FsmError:
            raise
        except Exception as error:
            raise unknown_failure(error) from error

    def spawn(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start a task that is not forgotten, and whose error is logged."""
        task = self._start(coroutine, name)
        task.add_done_callback(_log_failure)
        return task

    def _start(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = self.loop.create_task(coroutine, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def see_to(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Carry out what has a limit of its own, to its end, in a task that no caller's cancellation reaches."""
        return self.spawn(Undisturbed(coroutine), name)

    async def through(
        self,
        coroutine: Coroutine[Any, Any, T],
        name: str,
        *,
        undo: Callable[[T], Awaitable[object]] | None = None,
        stop: bool = False,
    ) -> T:
        """Carry something out in a task of the engine's own, and wait for it; it has a limit of its own.

        A caller that is cancelled during it waits once more, until the task is done and its result undone; cancelled
        again, it leaves, and the engine goes on with that alone
        (`tests/engine/test_hostile_engine.py::test_a_caller_that_is_cancelled_leaves_nothing`). With `stop` the
        task is told of the first cancellation.
        """
        task = self._start(coroutine if stop else Undisturbed(coroutine), name)
        try:
            await asyncio.wait({task})
        except BaseException as error:
            if on_loop(self.loop):  # otherwise the loop is gone; what is left is ended at exit
                if stop:
                    task.cancel()
                after = self.see_to(_undo(task, undo), f"{name}-undo")
                if isinstance(error, asyncio.CancelledError):
                    await asyncio.wait({after})
            raise
        return task.result()

    # --- what is remembered -------------------------------------------------------------------------------------

    def set_aside(self, snapshot: Snapshot, error: BaseException) -> None:
        """Skip an execution that cannot be driven here, for a while; the log says why."""
        self.registry.health.set_aside(snapshot.identity.id, snapshot.version, error, self.registry.now())

    def left_open(self, snapshot: Snapshot) -> None:
        """Remember an execution that was released and has not ended; more than `MAX_LATE` are in the log alone."""
        logger.info("%s is released, and is %s", snapshot.identity.id, snapshot.state)
        while len(self.open) >= MAX_LATE:
            del self.open[next(iter(self.open))]
        self.open[snapshot.identity.id] = snapshot.state

    def goes_on(self, execution_id: str, agent: str, thread: threading.Thread) -> None:
        """Remember a thread that goes on although its execution has ended and no caller waits for it."""
        self.threads = {one: known for one, known in self.threads.items() if known[1].is_alive()}
        self.threads[execution_id] = (agent, thread)

    def straggling(self) -> dict[str, str]:
        """Return the agents that go on although their execution has ended: their names by the execution's id."""
        threads = {one: name for one, (name, thread) in self.threads.items() if thread.is_alive()}
        return {**self.stragglers, **threads}

    def ways_of(self, machine: Machine) -> Ways:
        """Return the ways through a machine."""
        ways = self._ways.get(machine.content_hash)
        if ways is None:
            ways = self._ways[machine.content_hash] = Ways(machine)
        return ways

    # --- while there is an execution ----------------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        """Tell it of its execution's commits; while anybody listens, follow the journal and sweep."""
        self.feed.listen(listener)
        if not self._helpers:
            if not self.registry.store.instant:
                self._help("engine follower", self._poll_s, self._follow())
            if self._sweep_every_s is not None:
                self._help("engine sweep", self._sweep_every_s, self.sweep)

    def forget(self, listener: Listener) -> None:
        """Tell it no more."""
        self.feed.forget(listener)
        if not self.feed.listeners:
            while self._helpers:
                self._helpers.pop().cancel()

    def _help(self, name: str, every_s: float, step: Callable[[], Awaitable[object]]) -> None:
        self._helpers.append(self.repeat(name, every_s, step, delay_s=every_s))

    def repeat(
        self, name: str, every_s: float, step: Callable[[], Awaitable[object]], *, delay_s: float = 0.0
    ) -> asyncio.Task[None]:
        """Take a step again and again, in a task, until the registry is closed; an error is reported and passed."""

        async def turn() -> float:
            if not self.registry.closed:
                await step()
            return every_s

        async def turns() -> None:
            await asyncio.sleep(delay_s)
            loop = self.registry.health.loop(name, expected=(StoreUnavailable,))
            await keep_going_async(loop, turn, over=lambda: self.registry.closed)

        return self.loop.create_task(turns(), name=f"fsm-{name.replace(' ', '-')}")

    async def sweep(self) -> None:
        """Find what other processes left behind."""
        await self.read(self.tracker.sweep)

    def _follow(self) -> Callable[[], Awaitable[object]]:
        """Return what hears of other processes' commits; of this one's the committer tells."""
        read_to: int | None = None

        async def step() -> None:
            nonlocal read_to
            read_to = await self.read(self.feed.read_on, read_to)

        return step


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a task of the engine failed", exc_info=error)


async def _undo(task: asyncio.Task[T], undo: Callable[[T], Awaitable[object]] | None) -> None:
    await asyncio.wait({task})
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    if error is not None:
        logger.debug("%s failed after its caller had been cancelled: %s", task.get_name(), one_line(error))
    elif undo is not None:
        await undo(task.result())
