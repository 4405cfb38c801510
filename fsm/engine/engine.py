"""The engine: runs agents, and owns nothing. What it knows of an execution is what the tracker has committed.

engine = Engine()
answer = await engine.run(research, "state machines", user_id="ada", thread_id="t-1")
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from fsm.concurrency.supervised import keep_going_async
from fsm.core.arguments import seconds
from fsm.core.records import Retry
from fsm.engine.admission import Slots
from fsm.engine.block import Session
from fsm.engine.functions import Agent
from fsm.engine.launch import UNSET, Launcher
from fsm.engine.mapping import map_over
from fsm.engine.outcome import Handle, Outcome
from fsm.engine.policy import Conduct, Hook
from fsm.engine.resume import Registered, waiting_for
from fsm.engine.runtime import POLL_S, Home, Late
from fsm.errors import BadPayload, ConfigurationError, StoreUnavailable
from fsm.machine.machine import Machine
from fsm.machine.timeouts import Timeouts
from fsm.tracker.tracker import Tracker

if TYPE_CHECKING:
    from fsm.engine.portal import Portal

STREAM_AHEAD = 64
"""An agent that is streamed from may be so many items ahead of its reader; then it waits."""
_WAKE: Any = object()
LEASE_S = 15.0
"""How long, in seconds, the lease of an engine's process is, on a store that other processes share."""


def _wake(queue: asyncio.Queue[Any]) -> None:
    """Let a reader look whether that was all; one that has items to read does not wait."""
    if queue.empty():
        queue.put_nowait(_WAKE)


class Engine(Launcher):
    """Runs agents of every kind, each as an execution of the one table. Make one per process, where it starts."""

    def __init__(  # noqa: PLR0913 - what an engine is set up with
        self,
        tracker: Tracker | None = None,
        *,
        slots: Slots | Mapping[str, Any] | None = None,
        before: Sequence[Hook] = (),
        after: Sequence[Hook] = (),
        retry_on: tuple[type[BaseException], ...] = (Exception,),
        patience_s: float = 1.0,
        lease_s: float | None = LEASE_S,
        sweep_every_s: float | None = 5.0,
        poll_s: float = POLL_S,
        record_results: bool = True,
    ) -> None:
        """Set up; nothing is opened or started before the first execution.

        Args:
            tracker: The tracker; the process's own if nothing is said.
            slots: How many executions may run at once, in all, of a user, of an agent.
            before: Checks before each agent, called with the run; one that returns a text refuses for that reason,
                one that returns None or True lets it pass.
            after: Checks of each result, called with the run and the result, which answer in the same way.
            retry_on: The errors after which another attempt may help, if an execution has one left.
            patience_s: How long, in seconds, an agent may clean up after its execution has ended. One that goes on
                longer is reported and left to itself.
            lease_s: The lease of this process, in seconds, over a store that others share; ``None`` for none.
            sweep_every_s: How often, in seconds, to look for what dead processes left behind while an execution
                runs here; ``None`` for never.
            poll_s: How often, in seconds, to look for what other processes say about executions that run here.
            record_results: Whether the journal keeps what agents return.

        Raises:
            BadPayload: An argument has a wrong type or value.
        """
        for name, value in (("lease_s", lease_s), ("sweep_every_s", sweep_every_s), ("poll_s", poll_s)):
            if value is not None:
                seconds(name, value)
        if patience_s != 0:
            seconds("patience_s", patience_s)
        conduct = Conduct(tuple(before), tuple(after), None, retry_on, patience_s, record_results)
        super().__init__(tracker, slots, conduct, lease_s=lease_s, sweep_every_s=sweep_every_s, poll_s=poll_s)
        self._portal: Portal | None = None

    # --- what people ask ----------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """How many slots are taken."""
        return self._home.admission.running if self._home is not None else 0

    @property
    def queued(self) -> int:
        """How many executions wait for a slot here."""
        return self._home.admission.waiting if self._home is not None else 0

    @property
    def stragglers(self) -> dict[str, str]:
        """Agents that go on although their execution has ended: the agent's name by the execution's id."""
        return self._home.straggling() if self._home is not None else {}

    @property
    def left_open(self) -> dict[str, str]:
        """What the engine let go of without ending it, when it was closed or its loop ended: its state, by its id.

        It waits for a person, or has an attempt left for another worker; or the store did not take its end, and its
        deadline ends it. What is not in here and was open has ended.
        """
        return dict(self._home.open) if self._home is not None else {}

    @property
    def late(self) -> tuple[Late, ...]:
        """What agents came to after their execution had ended without them, the latest last."""
        return tuple(self._home.late) if self._home is not None else ()

    # --- run ----------------------------------------------------------------------------------------------------

    async def run(self, agent: Callable[..., Any] | str, /, *args: Any, **options: Any) -> Any:
        """Run an agent to its end and return its result.

        Whoever cancels this calls the execution off.

        Args:
            agent: A function of any kind, or the name of a registered agent. Its first argument is the `Run`, if
                it is called ``run``.
            *args: What the agent is called with besides.
            **options: As for `submit`.

        Returns:
            What the agent returned; of a generator, the list of what it yielded.

        Raises:
            Exception: What the agent raised, if it failed.
            ExecutionTimedOut: A deadline passed.
            ExecutionCancelled: It was called off.
            ExecutionLost: It is not this process's any more.
            EngineFull: Too many wait for a slot already.
        """
        return await (await self.submit(agent, *args, **options)).attended()

    async def submit(  # noqa: PLR0913 - an execution with all its options
        self,
        agent: Callable[..., Any] | str,
        /,
        *args: Any,
        user_id: str,
        thread_id: str,
        agent_name: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        timeouts: Timeouts | Mapping[str, Any] | None = None,
        retry: Retry | Mapping[str, Any] | None = None,
        fallback: Any = UNSET,
        before: Sequence[Hook] = (),
        after: Sequence[Hook] = (),
        metadata: Mapping[str, Any] | None = None,
        machine: Machine | str | None = None,
        parent_id: str | None = None,
        retry_of: str | None = None,
        emit: Callable[[Any], Any] | None = None,
    ) -> Handle:
        """Register an execution and begin to drive it; return as soon as it has an id.

        Args:
            agent: A function of any kind, or the name of a registered agent.
            *args: What the agent is called with, after its run.
            user_id: Whose execution it is.
            thread_id: The conversation that it belongs to.
            agent_name: The agent's name; the function's own if nothing is said.
            kwargs: What the agent is called with by name.
            timeouts: Limits that take the place of the machine's own, in seconds.
            retry: How often it may be tried.
            fallback: What takes the agent's place when it has failed for good: a function, or a result.
            before: Checks beside the engine's own.
            after: Checks of the result beside the engine's own.
            metadata: JSON to note with it.
            machine: The machine, or its name.
            parent_id: The execution that starts it, of the same user; `Run.child` does it for you.
            retry_of: The execution that it is a rerun of.
            emit: Takes each item of a generator, a coroutine function.

        Returns:
            The handle: id, result, outcome, cancel.

        Raises:
            BadPayload: An argument has a wrong type or value.
            EngineFull: Too many wait for a slot already; nothing was created.
            Refused: The parent has ended.
            StoreUnavailable: The store did not take it.
        """
        drive = await self._prepare(
            self._agent_of(agent, agent_name), deque(), *args, user_id=user_id, thread_id=thread_id, kwargs=kwargs,
            timeouts=timeouts, retry=retry, fallback=fallback, before=before, after=after, metadata=metadata,
            machine=machine, parent_id=parent_id, retry_of=retry_of, emit=emit,
        )  # fmt: skip
        return self._begin(drive)

    # --- fleets and streams -------------------------------------------------------------------------------------

    async def map(
        self,
        agent: Callable[..., Any] | str,
        items: Iterable[Any],
        /,
        *,
        user_id: str | Callable[[Any], str],
        thread_id: str | Callable[[Any], str],
        agent_name: str | Callable[[Any], str] | None = None,
        at_once: int = 100,
        on_done: Callable[[Outcome], object] | None = None,
        **options: Any,
    ) -> list[Outcome]:
        """Run an agent for each of many items, several at a time.

        Args:
            agent: The agent; it is called with one item.
            items: The items; they are taken as they are needed.
            user_id: Whose executions they are, or a function that says so for an item.
            thread_id: The conversation, or a function of the item.
            agent_name: The agent's name, or a function of the item; the function's own if nothing is said.
            at_once: So many are handed to the engine at once; its slots decide how many run.
            on_done: Called with each outcome as it comes: for a progress bar, say; what it raises is logged.
            **options: As for `submit`.

        Returns:
            The outcomes, in the order of the items. However one ends, the others go on; one that the store or a
            queue full of others' executions did not take has no id and an error.
        """
        each = map_over(
            self, agent, items, user_id=user_id, thread_id=thread_id, agent_name=agent_name, at_once=at_once,
            on_done=on_done, **options,
        )  # fmt: skip
        return await self._open().stoppable(each, "fsm-map")

    async def stream(
        self, agent: Callable[..., Any] | str, /, *args: Any, **options: Any
    ) -> AsyncIterator[Any]:
        """Run a generator and yield what it yields, as it comes.

        Whoever stops reading (``aclose``, or an exception in the loop's body) calls the execution off.

        Args:
            agent: A generator or an asynchronous generator.
            *args: What the agent is called with besides.
            **options: As for `submit`.

        Raises:
            Exception: As for `run`, after the last item.
        """
        queue: asyncio.Queue[Any] = asyncio.Queue(STREAM_AHEAD)
        handle = await self.submit(agent, *args, emit=queue.put, **options)
        handle.add_done_callback(lambda: _wake(queue))
        try:
            while True:
                if queue.empty() and handle.done:
                    break
                item = await queue.get()
                if item is not _WAKE:
                    yield item
            (await handle.outcome()).value()
        finally:
            if not handle.done:
                await handle.give_up("its reader went away")

    # --- plain code ---------------------------------------------------------------------------------------------

    def agent(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        resumable: bool = False,
        **options: Any,
    ) -> Any:
        """Register a function as an agent: a decorator.

            @engine.agent(name="researcher", retry={"attempts_max": 3})
            async def research(run, topic): ...

            await research("state machines", user_id="ada", thread_id="t-1")

        Args:
            function: The function, if the decorator stands without parentheses.
            name: The agent's name; the function's own if nothing is said.
            resumable: Note with each execution what it is called with (as JSON), so that `serve` in another process
                can go on with it. The agent begins anew there; questions that were answered are not asked again.
            **options: Defaults for `submit`: timeouts, retry, fallback, before, after, metadata, machine, retry_on.

        Returns:
            What to call: with the agent's own arguments, and ``user_id`` and ``thread_id`` besides.

        Raises:
            ConfigurationError: The name is taken.
        """

        def register(wrapped: Callable[..., Any]) -> Registered:
            one = Agent(wrapped, name, options=options, resumable=resumable)
            if one.name in self._agents:
                raise ConfigurationError(
                    f"an agent is registered as {one.name!r} already: give it another name"
                )
            self._agents[one.name] = one
            return Registered(self, one)

        return register if function is None else register(function)

    def execution(self, agent_name: str, /, **options: Any) -> Session:
        """Return an execution for whoever drives it by hand: ``async with`` yields its `Run`, ``with`` its `SyncRun`.

        The body is the agent: its end is the execution's, its exception the reason of a failure. Set
        ``session.result`` to what it came to.

        Args:
            agent_name: The agent's name.
            **options: As for `submit`; without ``retry``, since a body cannot be run twice.
        """
        return Session(self, agent_name, options)

    # --- other processes' work ----------------------------------------------------------------------------------

    async def adopt(self, *, limit: int = 100) -> list[Handle]:
        """Take over queued executions of registered, resumable agents that nobody drives here.

        Another process may have died, or handed them back; a person may have answered. Exactly one engine claims
        each: the table sees to it. What cannot be gone on with (its metadata is no call of an agent, its machine is
        unknown here) is set aside for a while: the log says why, and `tracker.health()` lists it.

        Args:
            limit: How many at the most.

        Returns:
            Their handles.
        """
        home = self._open()
        found = await home.read(
            waiting_for, home.registry, self._resumable(), set(home.registry.committer.watchers), limit
        )
        handles: list[Handle] = []
        for one in found:
            try:
                handles.append(self._take_over(home, one))
            except Exception as error:  # noqa: BLE001 - those behind it are taken over all the same
                home.set_aside(one.snapshot, error)
        return handles

    async def serve(self, *, every_s: float = 1.0) -> None:
        """Adopt what comes, until this is cancelled or the engine is closed: a worker is an engine that serves.

        An error does not end it: it is logged, counted (`tracker.health()`), and another turn follows.

        Args:
            every_s: How often to look, in seconds.

        Raises:
            BadPayload: `every_s` is not a positive number.
        """
        if not isinstance(every_s, (int, float)) or isinstance(every_s, bool) or not 0 < every_s < math.inf:
            raise BadPayload(f"every_s is a positive number of seconds, not {every_s!r}")
        home = self._open()

        async def sweep() -> object:
            return await home.read(self.tracker.sweep)

        both = {
            self._goes_on(home, name, step, every_s)
            for name, step in (("serve", self.adopt), ("serve sweep", sweep))
        }
        self._serving |= both
        try:
            await asyncio.wait(both)
        finally:
            self._serving -= both
            for task in both:
                task.cancel()

    @staticmethod
    def _goes_on(
        home: Home, name: str, step: Callable[[], Awaitable[object]], every_s: float
    ) -> asyncio.Task[None]:
        async def turn() -> float:
            if not home.registry.closed:
                await step()
            return every_s

        loop = home.registry.health.loop(name, expected=(StoreUnavailable,))
        return home.spawn(
            keep_going_async(loop, turn, over=lambda: home.registry.closed), f"fsm-{name.replace(' ', '-')}"
        )

    # --- without an event loop ----------------------------------------------------------------------------------

    def run_sync(self, agent: Callable[..., Any] | str, /, *args: Any, **options: Any) -> Any:
        """Do the same as `run` from code that has no event loop; blocks.

        Raises:
            ConfigurationError: There is an event loop in this thread: use ``await engine.run(…)``.
        """
        return self.portal().call(self.run(agent, *args, **options))

    def portal(self) -> Portal:
        """Return the thread with an event loop on which the engine runs for code that has none."""
        from fsm.engine.portal import Portal  # noqa: PLC0415 - for those who need it

        with (
            self._starting
        ):  # several threads may need it at the same time; with two, each has the other's loop
            if self._portal is None or self._portal.closed:
                self._portal = Portal(self._health)
            return self._portal

    # --- begin and end ------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
