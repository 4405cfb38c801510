"""What all executions of an engine share while they run: the loop, the slots, the way to the store."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, ParamSpec, TypeVar

from fsm.concurrency.supervised import keep_going_async, one_line
from fsm.core.records import Snapshot
from fsm.engine.admission import Admission, Slots, Ticket
from fsm.engine.connection import Link, RunOver, unknown_failure
from fsm.engine.tasks import Undisturbed, on_loop
from fsm.errors import EngineFull, FsmError, StoreUnavailable
from fsm.machine.machine import Machine
from fsm.machine.paths import Ways
from fsm.tracker.tracker import Tracker

logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

POLL_S = 0.1
"""So often, in seconds, other processes' commits are looked for in the journal."""
PAGE = 2_000
"""So many of the journal's rows are read at a time."""
MAX_LATE = 1_000
"""Maximum number of late ends, and of executions that were let go of, that are remembered; older ones are in the
log."""


class Late(NamedTuple):
    """What an agent came to after its execution had ended without it.

    Attributes:
        execution_id: The execution.
        agent: The agent's name.
        late_s: So many seconds after the end.
        result: What it returned, as JSON-ready data.
        error: What it raised, on one line; ``None`` if it returned.
    """

    execution_id: str
    agent: str
    late_s: float
    result: Any
    error: str | None


class Home:
    """One engine on one event loop."""

    def __init__(
        self,
        tracker: Tracker,
        slots: Slots,
        *,
        poll_s: float = POLL_S,
        lease_s: float | None = None,
        sweep_every_s: float | None = None,
    ) -> None:
        """Set up on the running loop.

        Args:
            tracker: The tracker.
            slots: How many executions may run at once.
            poll_s: How often, in seconds, to look for other processes' commits.
            lease_s: The lease of this process, in seconds; ``None`` for none.
            sweep_every_s: How often, in seconds, to sweep while there is an execution; ``None`` for never.
        """
        self.tracker = tracker
        self.registry = tracker._registry
        self.loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self.admission = Admission(slots)
        self.links: dict[str, Link] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        self.late: deque[Late] = deque(maxlen=MAX_LATE)
        self.stragglers: dict[str, str] = {}
        """Agents that go on although their execution has ended: the agent's name by the execution's id."""
        self.open: dict[str, str] = {}
        """What was let go of and has not ended: the state in which it was left by the execution's id."""
        self.threads: dict[str, tuple[str, threading.Thread]] = {}
        """Threads of agents that no caller waits for any more, with the agent's name, by the execution's id."""
        self.elsewhere = False
        """Whether this is a forked child's copy of what its parent drives."""
        self._ways: dict[str, Ways] = {}
        self._poll_s = poll_s
        self._lease_s = lease_s
        self._sweep_every_s = sweep_every_s
        self._helpers: list[asyncio.Task[None]] = []
        self.register()

    # --- the lease ----------------------------------------------------------------------------------------------

    def register(self) -> None:
        """Be a worker, unless this process is one: what it claims lives by its lease."""
        if self._lease_s is None or self.registry.worker is not None:
            return
        worker = self.tracker.worker(ttl_s=self._lease_s)
        self.registry.closing.append(worker.close)

    def register_anew(self) -> None:
        """Register again after the lease was lost; what it owned belongs to others."""
        worker = self.registry.worker
        if self._lease_s is not None and worker is not None and worker.lost:
            self.registry.worker = None
            self.register()

    async def hand_back(self, link: Link) -> None:
        """Let go of an execution, so that another worker can go on with it."""
        order = link.lapse_order()
        if order is not None:
            await self.read(self.registry.carry_all, [order])

    # --- threads and tasks --------------------------------------------------------------------------------------

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function on the loop, from any thread; if the loop is closed there is nobody left to tell."""
        try:
            if threading.get_ident() == self._thread_id:
                self.loop.call_soon(function, *args)  # nobody has to be woken up
            else:
                self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            logger.debug("the event loop of an engine was closed while a commit was under way")

    async def read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what never waits at once, and let a thread of the registry's wait for a disk.

        Raises:
            StoreUnavailable: Also for an error that the store itself does not know.
        """
        try:
            return await self.registry.off_loop(function, *args, **kwargs)
        except FsmError:
            raise
        except Exception as error:
            raise unknown_failure(error) from error

    def spawn(self, coroutine: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Start a task that is not forgotten."""
        task = self._start(coroutine, name)
        task.add_done_callback(self._done)
        return task

    def _start(self, coroutine: Coroutine[Any, Any, T], name: str | None) -> asyncio.Task[T]:
        task = self.loop.create_task(coroutine, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    @staticmethod
    def _done(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the engine failed", exc_info=error)

    def see_to(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Carry something out in a task of the engine's own, to its end, whichever caller is cancelled.

        Args:
            coroutine: What to do; it has a limit of its own.
            name: The task's name.
        """
        return self.spawn(Undisturbed(coroutine), name)

    async def through(
        self,
        coroutine: Coroutine[Any, Any, T],
        name: str,
        undo: Callable[[T], Awaitable[object]] | None = None,
    ) -> T:
        """Carry something out in a task of the engine's own, and wait for it.

        A caller that is cancelled during it waits once more, until what was done is undone; cancelled again, it
        leaves, and the engine goes on with that alone
        (`tests/engine/test_hostile_engine.py::test_a_caller_that_is_cancelled_leaves_nothing`).

        Args:
            coroutine: What to do; it has a limit of its own.
            name: The task's name.
            undo: Takes its result if its caller was cancelled.
        """
        task = self._start(Undisturbed(coroutine), name)
        try:
            await asyncio.wait({task})
        except BaseException as error:
            if not on_loop(self.loop):
                raise  # its loop is gone; who speaks at exit speaks for what is left
            after = self.see_to(self._undo(task, undo), f"{name}-undo")
            if isinstance(error, asyncio.CancelledError):
                await asyncio.wait({after})
            raise
        return task.result()

    @staticmethod
    async def _undo(task: asyncio.Task[T], undo: Callable[[T], Awaitable[object]] | None) -> None:
        await asyncio.wait({task})
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            logger.debug(
                "%s failed after its caller had been cancelled: %s", task.get_name(), one_line(error)
            )
        elif undo is not None:
            await undo(task.result())

    def set_aside(self, snapshot: Snapshot, error: BaseException) -> None:
        """Skip an execution that cannot be gone on with here, for a while; the log says why."""
        registry = self.registry
        registry.health.set_aside(snapshot.identity.id, snapshot.version, error, registry.now())

    def left_open(self, link: Link) -> None:
        """Remember an execution that was let go of and has not ended; more than `MAX_LATE` are in the log alone."""
        logger.info("%s is let go of, and is %s", link.id, link.snapshot.state)
        while len(self.open) >= MAX_LATE:
            del self.open[next(iter(self.open))]
        self.open[link.id] = link.snapshot.state

    def goes_on(self, execution_id: str, agent: str, thread: threading.Thread) -> None:
        """Remember a thread that goes on although its execution has ended and no caller waits for it."""
        self.threads = {one: known for one, known in self.threads.items() if known[1].is_alive()}
        self.threads[execution_id] = (agent, thread)

    def straggling(self) -> dict[str, str]:
        """Return the agents that go on although their execution has ended: their names by the execution's id."""
        threads = {one: name for one, (name, thread) in self.threads.items() if thread.is_alive()}
        return {**self.stragglers, **threads}

    async def stoppable(self, coroutine: Coroutine[Any, Any, T], name: str) -> T:
        """Run something in a task of the engine's own, and wait for it; a caller that is cancelled stops it.

        The task is cancelled once, and deals with it in peace; the caller waits for that, and leaves if it is
        cancelled again.

        Args:
            coroutine: What to do; cancelled, it comes to an end in bounded time.
            name: The task's name.
        """
        task = self._start(coroutine, name)
        try:
            await asyncio.wait({task})
        except BaseException as error:
            if not on_loop(self.loop):
                raise  # as above
            task.add_done_callback(self._done)
            task.cancel()
            if isinstance(error, asyncio.CancelledError):
                await asyncio.wait({task})
            raise
        return task.result()

    # --- executions ---------------------------------------------------------------------------------------------

    def ways_of(self, machine: Machine) -> Ways:
        """Return the ways through a machine."""
        ways = self._ways.get(machine.content_hash)
        if ways is None:
            ways = self._ways[machine.content_hash] = Ways(machine)
        return ways

    def listen(self, link: Link) -> None:
        """Let a link hear of the commits of its execution. No store is asked here: what is noted has to be noted."""
        self.links[link.id] = link
        self.registry.committer.watchers[link.id] = link.committed
        if not self._helpers:
            if not self.registry.store.instant:
                self._helpers.append(self.loop.create_task(self._follow(), name="fsm-follow"))
            if self._sweep_every_s is not None:
                self._helpers.append(
                    self.loop.create_task(self._sweep(self._sweep_every_s), name="fsm-sweep")
                )

    def forget(self, link: Link) -> None:
        """Let it hear no more."""
        if self.links.get(link.id) is link:
            del self.links[link.id]
            self.registry.committer.watchers.pop(link.id, None)
        if not self.links:
            while self._helpers:
                self._helpers.pop().cancel()

    def _over(self) -> bool:
        return self.registry.closed

    async def _sweep(self, every_s: float) -> None:
        """Find what other processes left behind, for as long as there is an execution here."""

        async def turn() -> float:
            if not self.registry.closed:
                await self.read(self.tracker.sweep)
            return every_s

        await asyncio.sleep(every_s)
        loop = self.registry.health.loop("engine sweep", expected=(StoreUnavailable,))
        await keep_going_async(loop, turn, over=self._over)

    async def _follow(self) -> None:
        """Hear of other processes' commits for as long as there is an execution; of our own the committer tells."""
        read_to: int | None = None

        async def turn() -> float:
            nonlocal read_to
            if not self.registry.closed:
                read_to = await self.read(self._read_on, read_to)
            return self._poll_s

        await asyncio.sleep(self._poll_s)
        loop = self.registry.health.loop("engine follower", expected=(StoreUnavailable,))
        await keep_going_async(loop, turn, over=self._over)

    def _read_on(self, after: int | None) -> int:
        """Read what is new in the journal, page by page up to its end, and pass on what is not ours.

        Args:
            after: Up to where it was read; ``None`` at first: then each record is read as it is now, which is as good
                as every row before.
        """
        store = self.registry.store
        if after is None:
            after = store.position()
            for link in list(self.links.values()):
                self._refresh(link)
        while True:
            rows = store.journal(after, PAGE)
            for row in rows:
                known = self.links.get(row.execution_id)
                if known is None:
                    continue
                known.heard(row.target, row.payload_json)
                if row.version > known.snapshot.version:
                    self._refresh(known)
            if rows:
                after = rows[-1].position
            if len(rows) < PAGE:
                return after

    def _refresh(self, link: Link) -> None:
        snapshot = self.registry.store.load(link.id)
        if snapshot is not None:
            link.news(snapshot)


class Seat:
    """An execution's slot. A child has none of its own: it runs in its parent's."""

    def __init__(self, home: Home, user: str, agent: str, *, free: bool = False) -> None:
        """Describe it.

        Args:
            home: Whose slots these are.
            user: The user.
            agent: The agent's name.
            free: It takes no slot.
        """
        self._home = home
        self._user = user
        self._agent = agent
        self._free = free
        self._closed = False
        self._ticket: Ticket | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self.held = free

    def give(self) -> None:
        """Give the slot back, if it is held."""
        if self.held and not self._free:
            self.held = False
            self._home.admission.give_back(self._user, self._agent)

    def close(self) -> None:
        """Give the slot back for good: whoever still waits for one learns that it is over."""
        self._closed = True
        self.give()
        self._leave()
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def take_now(self) -> bool:
        """Take a slot if there is one, without waiting."""
        if not self.held and not self._closed and self._ticket is None:
            self.held = self._home.admission.take(self._user, self._agent)
        return self.held

    def queue_up(self, *, resumes: bool = False, bounded: bool = False) -> None:
        """Take a slot if there is one, else a place in the queue.

        Args:
            resumes: It ran before, and goes before those that have not begun.
            bounded: The queue may be too long for it.

        Raises:
            EngineFull: Too many wait already.
        """
        if self.take_now() or self._ticket is not None:
            return
        admission = self._home.admission
        if bounded and admission.full(self._user):
            raise EngineFull(admission.waiting)
        self._ticket = admission.wait(self._user, self._agent, self._granted, resumes=resumes)
        if self.held:
            self._ticket = None

    async def take(self, *, resumes: bool = False) -> None:
        """Wait for a slot; a wait that the last waiter gives up leaves nothing behind.

        However many branches of an agent wait, it is one slot that they wait for.

        Args:
            resumes: As for `queue_up`.

        Raises:
            RunOver: It was closed meanwhile.
        """
        if self._closed:
            raise RunOver("the execution is over: it gets no slot any more")
        self.queue_up(resumes=resumes)
        if self.held:
            return
        future: asyncio.Future[None] = self._home.loop.create_future()
        self._waiting.append(future)
        try:
            await future
        finally:
            self._waiting.remove(future)
            if not self._waiting:
                self._leave()
        if self._closed:
            raise RunOver("the execution is over: it gets no slot any more")

    def _granted(self) -> None:
        self._ticket, self.held = None, True
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def _leave(self) -> None:
        if self._ticket is not None:
            self._home.admission.leave(self._ticket)
            self._ticket = None
