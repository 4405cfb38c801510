"""The engine: runs agents, and owns nothing. What it knows of an execution is what the tracker has committed.

engine = Engine()
answer = await engine.run(research, "state machines", user_id="ada", thread_id="t-1")
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import NoneType
from typing import Any, Self

from fsm.core.arguments import seconds, text
from fsm.core.records import Retry
from fsm.engine import shutdown
from fsm.engine.admission import Seat, Slots
from fsm.engine.block import Block
from fsm.engine.connection import Connection
from fsm.engine.driver import Driver
from fsm.engine.functions import Agent, Emit
from fsm.engine.handle import Handle
from fsm.engine.launch import check_machine, create
from fsm.engine.mapping import Fleet
from fsm.engine.outcome import Late, Outcome
from fsm.engine.policy import Hook, RunPolicy, Value
from fsm.engine.resume import Registration, called_with, waiting_for
from fsm.engine.run import Answer, Run
from fsm.engine.runtime import POLL_S, Runtime
from fsm.engine.threads import Portal
from fsm.errors import BadPayload, ConfigurationError, StoreUnavailable
from fsm.machine.machine import Machine
from fsm.machine.timeouts import Timeouts
from fsm.registry.command import own
from fsm.tracker.process import get_tracker
from fsm.tracker.tracker import Tracker

STREAM_AHEAD = 64
"""Number of items by which an agent that is streamed from may be ahead of its reader; then it waits."""
LEASE_S = 15.0
"""The lease of an engine's process, in seconds, on a store that other processes share."""
UNSET: Any = object()
"""No fallback was given; ``None`` is a fallback like any other."""
_WAKE: Any = object()
_inherited: list[object] = []
"""In a forked child: what its parent drives. It is kept, unused: collected, it would run `finally`."""


class Registered:
    """What ``@engine.agent`` makes of a function: call it to run it, tracked.

    Attributes:
        agent: The function and its options.
    """

    def __init__(self, engine: Engine, agent: Agent) -> None:
        self._engine = engine
        self.agent = agent
        self.__name__ = agent.name
        self.__doc__ = agent.function.__doc__
        self.__wrapped__: Callable[..., Any] = agent.function

    def __repr__(self) -> str:
        return f"<agent {self.agent.name!r}>"

    async def __call__(self, *args: Any, user_id: str, thread_id: str, **kwargs: Any) -> Any:
        """Run it to its end with its own arguments, without its run; see `Engine.run`."""
        return await self._engine.run(self, *args, user_id=user_id, thread_id=thread_id, kwargs=kwargs)

    async def submit(self, *args: Any, **options: Any) -> Handle:
        """Begin it and return its handle; see `Engine.submit`."""
        return await self._engine.submit(self, *args, **options)

    async def map(self, items: Any, **options: Any) -> list[Outcome]:
        """Run it for many items; see `Engine.map`."""
        return await self._engine.map(self, items, **options)


class Engine:
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
        """Set up; nothing is opened or started before the first execution, and no signal handler is installed.

        Args:
            tracker: The tracker, the process's own by default.
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
            InvalidArgument: An argument has a wrong type or value.
        """
        for name, value in (("lease_s", lease_s), ("sweep_every_s", sweep_every_s), ("poll_s", poll_s)):
            if value is not None:
                seconds(name, value)
        if patience_s != 0:
            seconds("patience_s", patience_s)
        if tracker is not None and tracker._user_id is not None:
            raise ConfigurationError(
                "an engine drives everybody's executions: give it the process's tracker and not one from for_user(), "
                "and name the user of each execution"
            )
        try:
            self.slots = slots if isinstance(slots, Slots) else Slots(**(slots or {}))
        except (ValueError, TypeError) as error:
            raise BadPayload(f"slots do not fit: {error}") from None
        self._tracker = tracker
        self._policy = RunPolicy(tuple(before), tuple(after), None, retry_on, patience_s, record_results)
        self._paces = (poll_s, lease_s, sweep_every_s)
        self._agents: dict[str, Agent] = {}
        self._runtime: Runtime | None = None
        self._drives: dict[str, tuple[Driver, asyncio.Task[Outcome]]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._portal: Portal | None = None
        self._starting = threading.Lock()

    # --- what people ask ----------------------------------------------------------------------------------------

    @property
    def tracker(self) -> Tracker:
        """The tracker that knows everything."""
        return self._tracker or get_tracker()

    @property
    def running(self) -> int:
        """How many slots are taken."""
        return self._runtime.admission.running if self._runtime is not None else 0

    @property
    def queued(self) -> int:
        """How many executions wait for a slot here."""
        return self._runtime.admission.waiting if self._runtime is not None else 0

    @property
    def stragglers(self) -> dict[str, str]:
        """Agents that go on although their execution has ended: the agent's name by the execution's id."""
        return self._runtime.straggling() if self._runtime is not None else {}

    @property
    def left_open(self) -> dict[str, str]:
        """What the engine released without ending it, when it was closed or its loop ended: its state, by its id.

        It waits for a person, or has an attempt left for another worker; or the store did not take its end, and its
        deadline ends it. What is not in here and was open has ended.
        """
        return dict(self._runtime.open) if self._runtime is not None else {}

    @property
    def late(self) -> tuple[Late, ...]:
        """What agents came to after their execution had ended without them, the latest last."""
        return tuple(self._runtime.late) if self._runtime is not None else ()

    # --- run ----------------------------------------------------------------------------------------------------

    async def run(self, agent: Callable[..., Any] | str, /, *args: Any, **options: Any) -> Any:
        """Run an agent to its end and return its result, of a generator the list of what it yielded.

        A caller that is cancelled during it cancels the execution.

        Args:
            agent: A function of any kind, or the name of a registered agent. Its first argument is the `Run`, if
                it is called ``run``.
            *args: The agent's other arguments.
            **options: As for `submit`.

        Raises:
            Exception: What the agent raised, if it failed.
            ExecutionTimedOut: A deadline passed.
            ExecutionCancelled: It was cancelled.
            ExecutionLost: It is not this process's any more.
            EngineFull: Too many wait for a slot already.
        """
        return await (await self.submit(agent, *args, **options)).attended()

    async def submit(
        self, agent: Callable[..., Any] | str, /, *args: Any, agent_name: str | None = None, **options: Any
    ) -> Handle:
        """Register an execution and begin to drive it; return as soon as it has an id.

        Args:
            agent: A function of any kind, or the name of a registered agent.
            *args: What the agent is called with, after its run.
            agent_name: The agent's name, the function's own by default.
            **options: ``user_id`` and ``thread_id``; ``kwargs`` (what the agent is called with by name);
                ``timeouts`` (limits that take the place of the machine's own), ``retry``, ``metadata``, ``machine``;
                ``fallback`` (a function or a result that takes the agent's place when it has failed for good);
                ``before`` and ``after`` (checks beside the engine's own); ``parent_id``, ``retry_of``; ``emit`` (a
                coroutine function that takes each item of a generator).

        Raises:
            InvalidArgument: An argument has a wrong type or value.
            EngineFull: Too many wait for a slot already; nothing was created.
            Refused: The parent has ended.
            StoreUnavailable: The store did not take it.
        """
        return await self._submit(self._agent_of(agent, agent_name), *args, **options)

    async def _submit(  # noqa: PLR0913 - an execution with all its options
        self,
        agent: Agent,
        /,
        *args: Any,
        user_id: str,
        thread_id: str,
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
        emit: Emit | None = None,
    ) -> Handle:
        default, policy = agent.options.get, self._policy_of(agent, fallback, before, after)
        metadata = default("metadata") if metadata is None else metadata
        machine = default("machine") if machine is None else machine
        runtime = self._open()
        seat = Seat(runtime.admission, text("user_id", user_id), agent.name, free=parent_id is not None)
        if agent.resumable:
            metadata = called_with(metadata, args, kwargs)
        check_machine(runtime.registry.machine_for(machine))
        # Before anything is awaited: a later caller has to find the queue as long as it is.
        seat.queue_up(bounded=True)
        connection = await create(
            runtime, seat, agent.name, user_id=user_id, thread_id=thread_id, parent_id=parent_id, retry_of=retry_of,
            metadata=own(metadata), machine=machine, retry=own(default("retry") if retry is None else retry),
            timeouts=own(default("timeouts") if timeouts is None else timeouts),
        )  # fmt: skip
        return self._begin(connection, seat, deque(), agent, args, kwargs or {}, policy, emit)

    def _begin(
        self, connection: Connection, seat: Seat, answers: deque[tuple[str, Answer]], *what: Any
    ) -> Handle:
        """Let it be driven, and return its handle."""
        run = Run(connection, seat, partial(self._child, connection), answers)
        driver = Driver(connection, run, *what)
        task = driver.begin()
        drives = self._drives
        drives[connection.id] = (driver, task)
        task.add_done_callback(lambda _: drives.pop(connection.id, None))
        return Handle(driver, task)

    async def _child(
        self, parent: Connection, agent: Callable[..., Any] | str, *args: Any, **options: Any
    ) -> Handle:
        """Begin a child execution of the same user, in the same conversation by default."""
        identity = parent.snapshot.identity
        options.setdefault("thread_id", identity.thread_id)
        return await self.submit(agent, *args, user_id=identity.user_id, parent_id=parent.id, **options)

    def _policy_of(
        self, agent: Agent, fallback: Any, before: Sequence[Hook], after: Sequence[Hook]
    ) -> RunPolicy:
        engine, given = self._policy, agent.options
        if fallback is UNSET:
            fallback = given.get("fallback", UNSET)
        chosen: Agent | Value | None = None
        if isinstance(fallback, Registered):
            chosen = fallback.agent
        elif callable(fallback):
            chosen = Agent(fallback)
        elif fallback is not UNSET:
            chosen = Value(fallback)
        return RunPolicy(
            (*engine.before, *given.get("before", ()), *before),
            () if agent.once else (*engine.after, *given.get("after", ()), *after),
            None if agent.once else chosen,
            given.get("retry_on", engine.retry_on),
            engine.patience_s,
            engine.record,
        )

    def _agent_of(self, agent: Callable[..., Any] | str, name: str | None) -> Agent:
        if isinstance(agent, Registered):
            return agent.agent
        if not isinstance(agent, str):
            return Agent(agent, name)
        if agent not in self._agents:
            known = ", ".join(sorted(self._agents)) or "none"
            raise BadPayload(
                f"no agent is registered as {agent!r}; known: {known}. Register it with @engine.agent(name=…)"
            )
        return self._agents[agent]

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
        """Run an agent for each of many items, several at a time; return the outcomes in the order of the items.

        However one ends, the others go on; one that the store, or a queue full of others' executions, did not take
        has no id and an error.

        Args:
            agent: The agent; it is called with one item.
            items: The items; they are taken as they are needed.
            user_id: The user, or a function of the item.
            thread_id: The conversation, or a function of the item.
            agent_name: The agent's name, or a function of the item; the function's own by default.
            at_once: How many are handed to the engine at once; its slots decide how many run.
            on_done: Called with each outcome as it comes: for a progress bar, say; what it raises is logged.
            **options: As for `submit`.
        """
        fleet = Fleet(partial(self.submit, agent, **options), at_once, on_done)
        named = {"user_id": user_id, "thread_id": thread_id, "agent_name": agent_name}
        return await self._open().through(fleet.run(items, named), "fsm-map", stop=True)

    async def stream(
        self, agent: Callable[..., Any] | str, /, *args: Any, **options: Any
    ) -> AsyncIterator[Any]:
        """Run a generator and yield what it yields, as it comes; raise as `run` does, after the last item.

        A reader that stops (``aclose``, or an exception in the loop's body) cancels the execution. The arguments are
        those of `submit`.
        """
        queue: asyncio.Queue[Any] = asyncio.Queue(STREAM_AHEAD)
        handle = await self.submit(agent, *args, emit=queue.put, **options)
        # A reader that has items to read does not wait.
        handle.add_done_callback(lambda: queue.put_nowait(_WAKE) if queue.empty() else None)
        try:
            while not (queue.empty() and handle.done):
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
            name: The agent's name, the function's own by default.
            resumable: Note with each execution what it is called with (as JSON), so that `serve` in another process
                can go on with it. There the agent begins again; questions that were answered are not asked again.
            **options: Defaults for `submit`: timeouts, retry, fallback, before, after, metadata, machine, retry_on.

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

    def execution(self, agent_name: str, /, **options: Any) -> Block:
        """Return an execution to drive by hand: ``async with`` yields its `Run`, ``with`` its `SyncRun`.

        The body is the agent: its end is the execution's, its exception the reason of a failure. Set ``result`` to
        its result. The options are those of `submit` without ``retry``, since a body cannot be run twice.
        """
        return Block(agent_name, options, self._submit, self.portal)

    def run_sync(self, agent: Callable[..., Any] | str, /, *args: Any, **options: Any) -> Any:
        """Do the same as `run` from code that has no event loop; blocks.

        Raises:
            ConfigurationError: There is an event loop in this thread: use ``await engine.run(…)``.
        """
        return self.portal().call(self.run(agent, *args, **options))

    def portal(self) -> Portal:
        """Return the thread with an event loop on which the engine runs for code that has none."""
        with self._starting:  # several threads may need it at once; with two, each has the other's loop
            if self._portal is None or self._portal.closed:
                self._portal = Portal(self.tracker._registry.health)
            return self._portal

    # --- other processes' work ----------------------------------------------------------------------------------

    async def adopt(self, *, limit: int = 100) -> list[Handle]:
        """Take over queued executions of registered, resumable agents that this engine does not drive yet.

        Another process may have died, or released them; a person may have answered. Exactly one engine claims each:
        the table sees to it. What this process cannot drive (its metadata is no call of an agent, its machine is
        unknown here) is set aside for a while: the log says why, and `tracker.health()` lists it.
        """
        runtime = self._open()
        registry = runtime.registry
        agents = {name for name, agent in self._agents.items() if agent.resumable}
        found = await runtime.read(waiting_for, registry, agents, set(registry.committer.watchers), limit)
        handles: list[Handle] = []
        for one in found:
            try:
                handles.append(self._take_over(runtime, one))
            except Exception as error:  # noqa: BLE001 - those behind it are taken over all the same
                runtime.set_aside(one.snapshot, error)
        return handles

    def _take_over(self, runtime: Runtime, one: Registration) -> Handle:
        """Drive an execution that another process has left in the queue."""
        snapshot, registry = one.snapshot, runtime.registry
        identity = snapshot.identity
        agent = self._agents[identity.agent]
        machine = registry.law_of(identity.machine).machine
        check_machine(machine)
        policy = self._policy_of(agent, UNSET, (), ())
        seat = Seat(runtime.admission, identity.user_id, agent.name, free=identity.parent_id is not None)
        connection = Connection(
            runtime, snapshot, machine
        )  # from here on nothing raises: it has to be driven
        connection.look()
        handle = self._begin(connection, seat, deque(one.answers), agent, one.args, one.kwargs, policy)
        driver, _ = self._drives[connection.id]

        def over() -> None:
            # One that could not be begun is in the queue as before; taken over again at once, it would spin.
            error = driver.error
            if connection.snapshot.version == snapshot.version and not isinstance(
                error, (StoreUnavailable, NoneType)
            ):
                runtime.set_aside(snapshot, error)
            else:
                registry.health.take_back(connection.id)

        handle.add_done_callback(over)
        return handle

    async def serve(self, *, every_s: float = 1.0) -> None:
        """Adopt what comes, until this is cancelled or the engine is closed: a worker is an engine that serves.

        It looks every `every_s` seconds. An error does not end it: it is logged, counted (`tracker.health()`), and
        another turn follows.

        Raises:
            InvalidArgument: `every_s` is not a positive number.
        """
        seconds("every_s", every_s)
        runtime = self._open()
        both = {
            runtime.repeat("serve", every_s, self.adopt),
            runtime.repeat("serve sweep", every_s, runtime.sweep),
        }
        self._serving |= both
        try:
            await asyncio.wait(both)
        finally:
            self._serving -= both
            for task in both:
                task.cancel()

    async def run_until_signal(
        self, *signals: signal.Signals, serve: bool = False, every_s: float = 1.0
    ) -> None:
        """Wait for a signal (SIGTERM or SIGINT by default), close the engine, and let the signal do what it does.

        Until then the engine adopts what comes, if it is to `serve`. Agents have `fsm.engine.shutdown.EXIT_S` to
        stop; a second signal waits for nothing. This is the only place in the library that handles a signal.

        Raises:
            ConfigurationError: This is not the main thread's event loop.
        """
        handled = signals or (signal.SIGTERM, signal.SIGINT)
        async with shutdown.listening(handled) as first:
            serving = asyncio.ensure_future(self.serve(every_s=every_s)) if serve else None
            try:
                both: set[asyncio.Future[Any]] = {first, serving} if serving is not None else {first}
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if serving is not None:
                    serving.cancel()
        if serving is not None and serving.done() and not first.done():
            serving.result()  # the engine was closed, or could not serve
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(shutdown.EXIT_S):
                await self.close()
        shutdown.end_all(self._connections())
        if not self.tracker.closed:
            self.tracker.close()
        os.kill(os.getpid(), first.result())
        await asyncio.sleep(0)

    # --- begin and end ------------------------------------------------------------------------------------------

    def _open(self) -> Runtime:
        """Return the engine's part on the running loop; set it up at the first use."""
        loop, runtime, tracker = asyncio.get_running_loop(), self._runtime, self.tracker
        if runtime is not None and runtime.loop is loop and runtime.tracker is tracker:
            if self._closing is not None and not self._closing.done():
                raise ConfigurationError("the engine is being closed: nothing new can begin")
            return runtime
        if (
            runtime is not None
            and runtime.loop is not loop
            and self._connections()
            and not runtime.loop.is_closed()
        ):
            raise ConfigurationError(
                "this engine runs executions on another event loop: make one engine per event loop"
            )
        poll_s, lease_s, sweep_every_s = self._paces
        if tracker._registry.store.instant:
            lease_s = None  # no other process shares it
        self._closing = None
        self._runtime = Runtime(
            tracker, self.slots, poll_s=poll_s, lease_s=lease_s, sweep_every_s=sweep_every_s
        )
        shutdown.watch(self)
        return self._runtime

    def _connections(self) -> list[Connection]:
        """Return the connections to the executions that are open here."""
        listeners = self._runtime.feed.listeners if self._runtime is not None else {}
        return [one for one in listeners.values() if isinstance(one, Connection)]

    def _after_fork(self) -> None:
        """Begin again in a forked child, which drives nothing of its parent's."""
        if self._runtime is not None:
            self._runtime.elsewhere = True
            _inherited.append((self._runtime, self._drives))
        self._runtime, self._drives, self._closing = None, {}, None
        self._starting = threading.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop everything that runs here: agents are told to stop, their executions released or cancelled.

        A caller that is cancelled during it leaves; the engine goes on closing. An agent that does not stop keeps it
        for no longer than `patience_s`; `stragglers` says which.
        """
        runtime = self._runtime
        if runtime is None or runtime.loop is not asyncio.get_running_loop():
            return
        if self._closing is None or self._closing.done():
            self._closing = runtime.see_to(self._close(), "fsm-close")
        await asyncio.wait({self._closing})
        if not self._closing.cancelled():
            self._closing.result()

    async def _close(self) -> None:
        for serving in self._serving:
            serving.cancel()
        drives = list(self._drives.values())
        for driver, _ in drives:
            driver.leave()
        if drives:
            await asyncio.wait([task for _, task in drives])
