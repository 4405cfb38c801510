"""A run for agents that are plain functions: the same names, for ``with`` and without ``await``.

The function runs in a thread; each step is handed to the event loop on which the run lives, so that there is one
implementation of everything.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from fsm.engine.blocking import thread_of_its_own
from fsm.engine.connection import RunOver
from fsm.errors import LimitReached

if TYPE_CHECKING:
    from fsm.breakers import Backoff
    from fsm.engine.answers import Answer
    from fsm.engine.calls import ModelPhase, ToolPhase
    from fsm.engine.run import Run

T = TypeVar("T")
P = TypeVar("P", bound="ModelPhase | ToolPhase")

MAX_TRIES = 32
"""Maximum number of threads in which one run's tries of model calls go on, although their time is up for most."""


class Phase(Generic[P]):
    """A phase for ``with``; what it yields is the phase itself, to note a result or a usage."""

    def __init__(self, run: SyncRun, phase: P) -> None:
        self._run = run
        self._phase = phase

    def __enter__(self) -> P:
        self._run.wait(self._phase.__aenter__())
        return self._phase

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run.wait(self._phase.__aexit__(kind, error, trace), leaving=True)


class SyncRun:
    """The run of an agent in a thread; see `Run`, whose names these are. Each call blocks until it is committed."""

    def __init__(self, run: Run) -> None:
        """Wrap a run."""
        self.run = run
        self._loop = run.link.home.loop
        self._stopped = False
        self._tries: list[threading.Thread] = []
        self._steps: set[concurrent.futures.Future[Any]] = set()

    def stop(self) -> None:
        """Let the step in which the agent waits raise `RunOver`, and every further one."""
        self._stopped = True
        for step in tuple(self._steps):
            step.cancel()

    def wait(self, awaitable: Awaitable[T], *, leaving: bool = False) -> T:
        """Wait for something that happens on the run's event loop.

        Args:
            awaitable: What happens.
            leaving: It is the end of something that was begun: it happens even if the run is over, so that a
                breaker's permit is given back.

        Raises:
            RunOver: The run is over.
        """

        async def do() -> T:
            return await awaitable

        step: Coroutine[Any, Any, T] = do()
        try:
            if self._stopped and not leaving:
                raise self._over()  # noqa: TRY301 - the coroutines are closed below
            future = asyncio.run_coroutine_threadsafe(step, self._loop)
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

    @property
    def id(self) -> str:
        """The execution's id."""
        return self.run.id

    @property
    def agent_name(self) -> str:
        """The agent's name."""
        return self.run.agent_name

    @property
    def user_id(self) -> str:
        """Whose execution it is."""
        return self.run.user_id

    @property
    def thread_id(self) -> str:
        """The conversation that it belongs to."""
        return self.run.thread_id

    @property
    def metadata(self) -> dict[str, Any]:
        """What was noted with the execution."""
        return self.run.metadata

    @property
    def resumed(self) -> bool:
        """Whether the execution was begun before."""
        return self.run.resumed

    @property
    def attempt(self) -> int:
        """Which try this is."""
        return self.run.attempt

    @property
    def state(self) -> str:
        """The state of the last commit."""
        return self.run.state

    @property
    def over(self) -> bool:
        """Whether this run is over. A thread cannot be cancelled: look at this in long loops."""
        return self.run.over or self._stopped

    def model(self, name: str, *, breaker: str | Literal[False] | None = None) -> Phase[ModelPhase]:
        """Return a model call, for ``with``; see `Run.model`."""
        return Phase(self, self.run.model(name, breaker=breaker))

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

    def tool(self, name: str, *, call_id: str | None = None, arguments: Any = None) -> Phase[ToolPhase]:
        """Return a tool call, for ``with``; see `Run.tool`."""
        return Phase(self, self.run.tool(name, call_id=call_id, arguments=arguments))

    def ask(self, question: str, *, expires_s: float | None = None, data: Any = None) -> Answer:
        """Ask a person, and block until the answer is here; see `Run.ask`."""
        return self.wait(self.run.ask(question, expires_s=expires_s, data=data))

    def progress(self, note: str | None = None, *, data: Any = None, ok: bool = True) -> None:
        """Say that it is alive; see `Run.progress`."""
        self.wait(self.run.progress(note, data=data, ok=ok))

    def log(self, text: str) -> None:
        """Write a line into the journal."""
        self.wait(self.run.log(text))

    def annotate(self, **data: Any) -> None:
        """Write data into the journal."""
        self.wait(self.run.annotate(**data))

    def phase(self, state: str) -> None:
        """Go to a phase; see `Run.phase`."""
        self.wait(self.run.phase(state))

    def child(
        self, agent: Callable[..., Any] | str, *args: Any, agent_name: str | None = None, **options: Any
    ) -> Any:
        """Run another agent as a child execution; see `Run.child`."""
        return self.wait(self.run.child(agent, *args, agent_name=agent_name, **options))

    def sleep(self, seconds: float) -> None:
        """Sleep, and wake up with `RunOver` at once when the run is over.

        Args:
            seconds: How long.
        """

        async def nap() -> None:
            await asyncio.wait({self.run.link.stop}, timeout=seconds)
            self.run.link.check()

        self.wait(nap())
