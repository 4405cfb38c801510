"""Agents that are plain functions, and code without an event loop: the same runs, for ``with`` and without ``await``.

A plain function runs in a thread of its own. Each of its steps is a coroutine of `Run`, handed to the event loop on
which the run lives, so that nothing is implemented twice; `Portal` is such a loop for code that has none.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextvars
import functools
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from fsm.breakers import Backoff
from fsm.concurrency.supervised import Health, keep_going
from fsm.engine.calls import ModelPhase, ToolPhase
from fsm.engine.errors import RunOver
from fsm.engine.run import Run
from fsm.errors import ConfigurationError, LimitReached

logger = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")
Call = TypeVar("Call", bound="ModelPhase | ToolPhase")

MAX_TRIES = 32
"""Maximum number of threads in which one run's tries of model calls go on, although their time is up for most."""
EXIT_S = 10.0
"""How long an interrupt and the end of the process wait for what runs in the portal, in seconds."""
JOIN_S = 2.0
"""How long the end of the process waits for the portal's thread after that, in seconds."""
CANCEL_ROUNDS = 10
"""Maximum number of times that tasks are looked for which began while others were being cancelled."""


def thread_of_its_own(function: Callable[[], T], name: str) -> tuple[asyncio.Future[T], threading.Thread]:
    """Call a function in a new thread, in the caller's context; return what it comes to, and the thread.

    How many there are is bounded by the callers: an agent has a slot, and waits for each of its calls. The thread is a
    daemon: it does not keep the process alive.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # from here on no cancellation reaches it

    def work() -> None:
        try:
            future.set_result(function())
        except StopIteration:
            future.set_exception(RuntimeError("the function raised StopIteration"))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the caller
            future.set_exception(error)

    run = contextvars.copy_context().run
    thread = threading.Thread(target=run, args=(work,), name=f"fsm-{name}"[:60], daemon=True)
    thread.start()
    return asyncio.wrap_future(future), thread


# --- a run for threads --------------------------------------------------------------------------------------------


class Phase(Generic[Call]):
    """A phase for ``with``; what it yields is the phase itself, to note a result or a usage."""

    def __init__(self, run: SyncRun, call: Call) -> None:
        self._run = run
        self._call = call

    def __enter__(self) -> Call:
        self._run.wait(self._call.__aenter__())
        return self._call

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run.wait(self._call.__aexit__(kind, error, trace), leaving=True)


class _Same(Generic[T]):
    """A property that is the run's own."""

    def __init__(self, name: str, ask: Callable[[Run], T]) -> None:
        self._ask = ask
        self.__doc__ = getattr(Run, name).__doc__

    def __get__(self, run: SyncRun | None, _: object = None) -> T:
        return self if run is None else self._ask(run.run)  # type: ignore[return-value]


def _blocks(
    method: Callable[Concatenate[Run, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncRun, P], T]:
    """Make of a coroutine method of `Run` a method that blocks until it is done."""

    @functools.wraps(method)
    def step(run: SyncRun, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run.wait(method(run.run, *args, **kwargs))

    return step


def _phase(method: Callable[Concatenate[Run, P], Call]) -> Callable[Concatenate[SyncRun, P], Phase[Call]]:
    """Make of a method of `Run` that returns a phase for ``async with`` one for ``with``."""

    @functools.wraps(method)
    def begin(run: SyncRun, /, *args: P.args, **kwargs: P.kwargs) -> Phase[Call]:
        return Phase(run, method(run.run, *args, **kwargs))

    return begin


class SyncRun:
    """The run of an agent in a thread; see `Run`, whose methods these are. Each blocks until it is committed.

    Attributes:
        run: The run on its event loop.
    """

    id = _Same("id", lambda run: run.id)
    agent_name = _Same("agent_name", lambda run: run.agent_name)
    user_id = _Same("user_id", lambda run: run.user_id)
    thread_id = _Same("thread_id", lambda run: run.thread_id)
    metadata = _Same("metadata", lambda run: run.metadata)
    resumed = _Same("resumed", lambda run: run.resumed)
    attempt = _Same("attempt", lambda run: run.attempt)
    state = _Same("state", lambda run: run.state)
    model = _phase(Run.model)
    tool = _phase(Run.tool)
    ask = _blocks(Run.ask)
    progress = _blocks(Run.progress)
    alive = _blocks(Run.alive)
    log = _blocks(Run.log)
    annotate = _blocks(Run.annotate)
    phase = _blocks(Run.phase)
    child = _blocks(Run.child)

    def __init__(self, run: Run) -> None:
        self.run = run
        self._stopped = False
        self._tries: list[threading.Thread] = []
        self._steps: set[concurrent.futures.Future[Any]] = set()

    @property
    def over(self) -> bool:
        """Whether this run is over. A thread cannot be cancelled: look at this in long loops."""
        return self._stopped or self.run.over

    def call_model(
        self,
        name: str,
        function: Callable[[], T],
        *,
        breaker: str | None = None,
        backoff: Backoff | None = None,
        timeout_s: float | None = None,
    ) -> T:
        """Call a model, and again if it may help; each try runs in a thread. See `Run.call_model`."""

        async def once() -> T:
            tries = self._tries = [one for one in self._tries if one.is_alive()]
            if len(tries) >= MAX_TRIES:
                raise LimitReached(
                    f"{MAX_TRIES} tries of model calls that ran out of time go on in their threads"
                )
            future, thread = thread_of_its_own(function, f"{self.agent_name}-model")
            tries.append(thread)
            return await future

        return self.wait(
            self.run.call_model(name, once, breaker=breaker, backoff=backoff, timeout_s=timeout_s)
        )

    def sleep(self, seconds: float) -> None:
        """Sleep, and wake up with `RunOver` at once when the run is over."""

        async def nap() -> None:
            await asyncio.wait({self.run.connection.stop}, timeout=seconds)
            self.run.inflight.check()

        self.wait(nap())

    def stop(self) -> None:
        """Let the step in which the agent waits raise `RunOver`, and every further one."""
        self._stopped = True
        for step in tuple(self._steps):
            step.cancel()

    def wait(self, awaitable: Awaitable[T], *, leaving: bool = False) -> T:
        """Wait for something that happens on the run's event loop.

        What is `leaving` is the end of something that was begun: it happens even if the run is over, so that a
        breaker's permit is given back.

        Raises:
            RunOver: The run is over.
        """

        async def do() -> T:
            return await awaitable

        step = do()
        try:
            if self._stopped and not leaving:
                raise self._over()  # noqa: TRY301 - the coroutines are closed below
            future = asyncio.run_coroutine_threadsafe(step, self.run.loop)
        except BaseException as error:
            step.close()
            if asyncio.iscoroutine(awaitable):
                awaitable.close()
            if isinstance(error, RuntimeError):  # the loop was closed
                raise self._over() from None
            raise
        if not leaving:
            self._steps.add(future)
        try:
            if self._stopped and not leaving:
                future.cancel()  # stopped just before it could be found among the steps
            return future.result()
        except concurrent.futures.CancelledError:
            raise self._over() from None
        finally:
            self._steps.discard(future)

    def _over(self) -> RunOver:
        return RunOver(f"{self.run.id} is {self.run.state}: this run of the agent is over")


# --- a loop for code that has none --------------------------------------------------------------------------------


class Portal:
    """Runs coroutines for threads that have no event loop. Its thread is a daemon, and is stopped at exit."""

    def __init__(self, health: Health) -> None:
        """Start the thread; failures of the loop itself are counted in `health`."""
        self._loop = asyncio.new_event_loop()
        self._stop = threading.Event()
        self._pid = os.getpid()
        self._thread = threading.Thread(
            target=keep_going, args=(health.loop("portal"), self._turn, self._stop.wait), name="fsm-portal",
            daemon=True,
        )  # fmt: skip
        self._thread.start()
        atexit.register(self.close)

    def _turn(self) -> float:
        """Run the loop until it stops. SystemExit in an agent ends a loop; here it is for its caller alone."""
        try:
            self._loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:
            logger.info("an agent raised %s; its caller does too", type(error).__name__)
        return 0.0

    @property
    def closed(self) -> bool:
        """Whether it was closed, or this is a forked child, in which the thread is not."""
        return self._stop.is_set() or self._loop.is_closed() or os.getpid() != self._pid

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result; blocks.

        An interrupt cancels it, and waits until it has stopped, for `EXIT_S` at the most; a second one waits for
        nothing.

        Raises:
            ConfigurationError: This thread has an event loop: await instead. Or the portal was closed.
        """
        result: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            tasks.append(self._loop.create_task(coroutine))
            tasks[0].add_done_callback(functools.partial(_hand_over, result))

        if _has_loop():
            coroutine.close()
            raise ConfigurationError(
                "this thread has an event loop, which must not be blocked: await instead"
            )
        try:  # the interrupt may come before anything is waited for
            self._loop.call_soon_threadsafe(begin)
            return result.result()
        except KeyboardInterrupt:
            if not result.done():  # the interrupt is this thread's, not the agent's
                self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
                concurrent.futures.wait({result}, timeout=EXIT_S)
            raise
        except RuntimeError:
            if not self._loop.is_closed() or tasks:
                raise  # it is the coroutine's
            coroutine.close()
            raise ConfigurationError("the engine's event loop is closed: the process ends") from None

    def close(self) -> None:
        """Cancel what runs, wait for it, and stop the thread, within `EXIT_S` and `JOIN_S`; what is left is logged."""
        if self.closed or threading.current_thread() is self._thread:
            return
        atexit.unregister(self.close)
        cancelling = asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop)
        try:
            left = cancelling.result(timeout=EXIT_S + JOIN_S)
        except TimeoutError:
            left = ["the loop itself, which something blocks"]
        if left:
            said = ", ".join(left[:20])
            logger.error("at the end of the portal %d did not stop in time: %s", len(left), said)
        self._stop.set()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=JOIN_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _cancel_all(self) -> list[str]:
        """Cancel every task, and return the names of those that do not stop."""
        loop, me = asyncio.get_running_loop(), asyncio.current_task()
        until, told = loop.time() + EXIT_S, {me}
        for _ in range(CANCEL_ROUNDS):
            tasks = asyncio.all_tasks() - {me}
            for task in tasks - told:
                task.cancel()
            told |= tasks
            if not tasks or loop.time() >= until:
                break
            await asyncio.wait(tasks, timeout=max(0.0, until - loop.time()))
        return sorted(task.get_name() for task in asyncio.all_tasks() - {me})


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _hand_over(result: concurrent.futures.Future[T], task: asyncio.Task[T]) -> None:
    if task.cancelled():
        result.cancel()
        result.set_running_or_notify_cancel()
    elif (error := task.exception()) is not None:
        result.set_exception(error)
    else:
        result.set_result(task.result())
