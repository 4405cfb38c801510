"""An event loop in virtual time: real asyncio code runs on it, step by step, in an order that a seed decides.

Tasks, sleeps, timeouts, locks, queues, gather and task groups are asyncio's own and run unchanged. What differs is
time, which stands still while anything is ready and then goes straight to the next timer; and order: which of the
ready callbacks comes next is drawn from a seeded generator, so that a seed is a schedule and the same seed is the
same schedule. (Virtual time is after trio's `MockClock` with autojump; one thread, one seed and simulated processes
that can be stopped are after FoundationDB's simulator and TigerBeetle's VOPR; this is neither's code.)

Callbacks belong to a `Process`, as tasks belong to a process of an operating system: it can be paused, and nothing
of it runs while time goes on, or killed, and nothing of it ever runs again, no ``finally`` included.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import random
import threading
from array import array
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from hashlib import blake2b
from typing import Any, TypeVar, TypeVarTuple

from fsm.errors import FsmError
from fsm.simulation.handles import PROCESS, Handle, OrderedWeakSet, Process, SteppedTask, Timer, where

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_STEPS = 10_000_000
"""A loop gives up after so many steps unless it is told otherwise: something spins."""
COLLECT_EVERY = 500_000
"""Garbage is collected at every so-manieth step, and never in between: a finalizer must not depend on the weather."""
_new: Callable[[type[Handle]], Handle] = object.__new__
_FIRST = 64
_TRACE_CHUNK = 65_536


class Stuck(FsmError):
    """The loop cannot go on; the message holds every task's stack. See `Deadlock` and `StepLimit`."""


class Deadlock(Stuck):
    """Nothing is ready, no timer is set, and the main task has not ended: it would wait for ever."""


class StepLimit(Stuck):
    """The number of steps, or the virtual time, that the loop was given is used up."""


class NotSimulated(FsmError):
    """There is no network, no subprocess and no signal in a simulation."""


class SteppedLoop(asyncio.BaseEventLoop):
    """The loop. `asyncio.Runner` takes it as ``loop_factory=lambda: SteppedLoop(seed)``.

    Attributes:
        steps: How many callbacks it has run.
        rng: The generator that the order comes from; draw from it in code that belongs to the schedule only.
        io_delay: Asked for the virtual seconds that a call of `run_in_executor` takes.
    """

    def __init__(
        self,
        seed: int | str = 0,
        *,
        shuffle: bool = True,
        max_steps: int = MAX_STEPS,
        max_time_s: float = float("inf"),
    ) -> None:
        """Begin at virtual time 0.

        Args:
            seed: Decides the order of callbacks that are ready at the same time.
            shuffle: False keeps asyncio's own order, first come first served.
            max_steps: `StepLimit` is raised after so many steps.
            max_time_s: `StepLimit` is raised before virtual time passes this, in seconds.
        """
        super().__init__()
        self.set_debug(enabled=False)
        self.rng = random.Random(f"order {seed}")
        self.steps = 0
        self.io_delay: Callable[[], float] | None = None
        self._now = 0.0
        self._shuffle = shuffle
        self._max_steps = max_steps
        self._max_time_s = max_time_s
        self._numbers = 0
        self._task_numbers = 0
        self._runnable: list[Handle | Timer] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._cancelled_timers = 0
        self._at_steps: list[tuple[int, int, Callable[[], None]]] = []
        self._break = max_steps
        self._picked = array("Q")
        self._digest = blake2b(digest_size=16)
        self._asyncgens = OrderedWeakSet()
        self._graveyard: dict[int, SteppedTask[Any]] = {}

    # --- time and order ---------------------------------------------------------------------------------------

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Run a callback at the present instant, in an order that the seed decides."""
        self._numbers = number = self._numbers + 1
        handle: Handle = _new(Handle)  # its fields are set here: a call of __init__ would cost as much again
        handle._context = context = copy_context() if context is None else context
        handle.process = context.get(PROCESS)
        handle.number = number
        handle._callback = callback
        handle._args = args
        handle._cancelled = False
        self._runnable.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Do as `call_soon`; a real thread has no business here and is refused."""
        self._check_closed()  # type: ignore[attr-defined]
        if self._thread_id not in {None, threading.get_ident()}:  # type: ignore[attr-defined]
            raise NotSimulated(
                "a thread that the simulation knows nothing of calls into it: its moment is no seed's"
            )
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run a callback `delay` virtual seconds from now."""
        self._numbers = number = self._numbers + 1
        now = self._now
        handle = Timer(now + delay, number, callback, args, context, self)
        if handle._when > now:
            heapq.heappush(self._timers, (handle._when, number, handle))
        else:
            self._runnable.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Run a callback at a virtual time in seconds; one that has passed is now."""
        self._numbers = number = self._numbers + 1
        handle = Timer(when, number, callback, args, context, self)
        if when > self._now:
            heapq.heappush(self._timers, (when, number, handle))
        else:
            self._runnable.append(handle)
        return handle

    def timer_cancelled(self, timer: Timer) -> None:
        """Take note of a timer that nobody waits for; when they are many, they are thrown out."""
        if timer._when > self._now:
            self._cancelled_timers += 1
            if self._cancelled_timers > _FIRST and self._cancelled_timers * 2 > len(self._timers):
                self._timers = [one for one in self._timers if not one[2]._cancelled]
                heapq.heapify(self._timers)
                self._cancelled_timers = 0

    def at_step(self, step: int, action: Callable[[], None]) -> None:
        """Call `action` before step number `step`, between two callbacks; at once if it has passed.

        Args:
            step: Counted from 1.
            action: It may pause and kill processes, look at everything, and raise.
        """
        self._numbers += 1
        heapq.heappush(self._at_steps, (max(step, self.steps + 1), self._numbers, action))
        self._break = min(self._break, self._at_steps[0][0])

    def _run_once(self) -> None:  # noqa: C901 - a call per decision would cost as much as a step
        """Run callbacks until somebody stops the loop. `run_forever` of the base class calls this."""
        random_ = self.rng.random
        picked = self._picked.append
        shuffle = self._shuffle
        runnable = self._runnable
        while not self._stopping:  # type: ignore[attr-defined]
            count = len(runnable)
            if not count:
                self._advance()
                continue
            steps = self.steps + 1
            if steps >= self._break:
                self._pause_here()
                continue
            if count == 1:
                handle = runnable.pop()
            elif shuffle:
                index = int(random_() * count)
                handle = runnable[index]
                last = runnable.pop()
                if last is not handle:
                    runnable[index] = last
            else:
                handle = runnable.pop(0)
            if handle._cancelled:
                continue
            process = handle.process
            if process is not None and process.stopped:
                if process.state == "paused":
                    process.parked.append(handle)
                continue
            self.steps = steps
            picked(handle.number)
            try:
                handle._context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 - as asyncio does: the handler is told
                self.call_exception_handler(
                    {"message": f"a callback of {process} failed", "exception": error, "handle": handle}
                )

    def _pause_here(self) -> None:
        """Do what is due at this step, then set the next break."""
        next_step = self.steps + 1
        if len(self._picked) > _TRACE_CHUNK:
            self._fold()
        if next_step > self._max_steps:
            raise StepLimit(f"{self._max_steps} steps are done at {self._now:.6g} s{self._stacks()}")
        due: list[Callable[[], None]] = []
        while self._at_steps and self._at_steps[0][0] <= next_step:
            due.append(heapq.heappop(self._at_steps)[2])
        self._break = min(
            self._max_steps + 1, self._at_steps[0][0] if self._at_steps else self._max_steps + 1
        )
        for action in due:
            action()

    def _advance(self) -> None:
        """Go to the next timer: nothing is ready any more."""
        timers = self._timers
        pop = heapq.heappop
        while timers and timers[0][2]._cancelled:
            pop(timers)
            self._cancelled_timers -= 1
        if not timers:
            raise Deadlock(f"nothing is ready and no timer is set at {self._now:.6g} s{self._stacks()}")
        now = timers[0][0]
        if now > self._max_time_s:
            raise StepLimit(
                f"the next timer is at {now:.6g} s, the limit is {self._max_time_s:.6g} s{self._stacks()}"
            )
        self._now = now
        runnable = self._runnable
        while timers and timers[0][0] <= now:
            handle = pop(timers)[2]
            if handle._cancelled:
                self._cancelled_timers -= 1
            else:
                runnable.append(handle)

    # --- processes --------------------------------------------------------------------------------------------

    def pause(self, process: Process) -> None:
        """Stop a process as SIGSTOP does: time goes on, its callbacks do not."""
        if process.state == "running":
            process.state, process.stopped = "paused", True

    def resume(self, process: Process) -> None:
        """Let a paused process go on, as SIGCONT does: everything that became ready meanwhile is ready now."""
        if process.state == "paused":
            process.state, process.stopped = "running", False
            self._runnable += process.parked
            process.parked = []

    def kill(self, process: Process) -> None:
        """End a process as SIGKILL does: no callback of it runs again, no ``finally`` is carried out."""
        process.state, process.stopped = "dead", True
        # Somebody has to hold the tasks: a coroutine that nobody holds is closed, and closing runs `finally`. What
        # is parked may be all that holds one which has not begun, so it goes last.
        dead = [task for task in self.tasks() if task.process is process]
        self._graveyard.update((task.number, task) for task in dead)
        process.parked = []

    def tasks(self) -> list[SteppedTask[Any]]:
        """Return the tasks that have not ended, in the order of their creation."""
        alive = (task for task in asyncio.all_tasks(self) if isinstance(task, SteppedTask))
        return sorted(alive, key=lambda task: task.number)

    def _stacks(self) -> str:
        lines = []
        for task in self.tasks():
            if task.number not in self._graveyard:
                whose = f" of {task.process!r}" if task.process else ""
                lines.append(f"\n  {task.get_name()}{whose} waits in")
                lines += [f"\n    {line}" for line in where(task)]
        return ":" + "".join(lines) if lines else "; there is no task"

    # --- the trace --------------------------------------------------------------------------------------------

    def _fold(self) -> None:
        self._digest.update(self._picked.tobytes())
        del self._picked[:]

    def trace_hash(self) -> str:
        """Return a hash of every choice so far: equal hashes mean that the same callbacks ran in the same order."""
        self._fold()
        return self._digest.hexdigest()

    # --- what asyncio asks of a loop --------------------------------------------------------------------------

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **_: Any,
    ) -> asyncio.Task[T]:
        """Start a coroutine; its first step is drawn like any other."""
        self._check_closed()  # type: ignore[attr-defined]
        self._task_numbers = number = self._task_numbers + 1
        return SteppedTask(coro, number=number, loop=self, name=name or f"task-{number}", context=context)

    def run_in_executor(  # type: ignore[override]
        self, _executor: object, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Call a function at a later moment of virtual time, in one step and on this thread.

        Whatever a real thread would do in parallel happens here between two steps; a function that blocks for real
        blocks the simulation.
        """
        future: asyncio.Future[T] = self.create_future()
        delay = self.io_delay() if self.io_delay is not None else 0.0
        self.call_later(delay, _call, future, func, args)
        return future

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Collect garbage at fixed steps only, for the length of a ``with`` block: finalizers are part of the order."""

        def collect() -> None:
            gc.collect()
            self.at_step(self.steps + COLLECT_EVERY, collect)

        was_on = gc.isenabled()
        gc.disable()
        self.at_step(self.steps + COLLECT_EVERY, collect)
        try:
            yield
        finally:
            if was_on:
                gc.enable()

    def drop(self) -> None:
        """Drop whatever is left, as if the power failed, and close; what a ``finally`` does then reaches nobody."""
        left = {**self._graveyard, **{task.number: task for task in self.tasks()}}
        self._runnable.clear()
        self._timers.clear()
        for task in left.values():
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coro = task.get_coro()
            try:
                if coro is not None:
                    coro.close()
            except BaseException:  # noqa: BLE001, S110 - the dead may shout, nobody listens
                pass
        self._graveyard.clear()
        self._runnable.clear()
        self._timers.clear()
        self.close()

    async def create_connection(self, *_: Any, **__: Any) -> Any:
        """Refuse: there is no network."""
        raise NotSimulated("a simulation has no network: put a coroutine in the place of the connection")

    create_server = create_datagram_endpoint = create_unix_connection = create_unix_server = create_connection
    getaddrinfo = getnameinfo = create_connection

    async def subprocess_exec(self, *_: Any, **__: Any) -> Any:
        """Refuse: there are no subprocesses."""
        raise NotSimulated("a simulation has no subprocesses: put a coroutine in the place of the program")

    subprocess_shell = subprocess_exec


def _call(future: asyncio.Future[T], func: Callable[..., T], args: tuple[Any, ...]) -> None:
    if future.cancelled():
        return
    try:
        result = func(*args)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever awaits
        future.set_exception(error)
    else:
        future.set_result(result)
