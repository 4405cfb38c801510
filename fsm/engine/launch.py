"""From a function and its options to what drives its execution: the part of the engine that sets up."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any

from fsm.concurrency.supervised import Health
from fsm.core.arguments import text
from fsm.engine.admission import Slots
from fsm.engine.answers import Answer, answer_of
from fsm.engine.connection import Link
from fsm.engine.driver import Drive
from fsm.engine.ending import FEW_TRIES, few_tries
from fsm.engine.functions import Agent
from fsm.engine.outcome import Handle, Outcome
from fsm.engine.policy import Conduct, Hook, Value
from fsm.engine.resume import Registered, Registration, called_with
from fsm.engine.run import ChildStarter, Run
from fsm.engine.runtime import Home, Seat
from fsm.engine.shutdown import watch_exit
from fsm.errors import BadPayload, ConfigurationError, StoreUnavailable
from fsm.machine.machine import Machine
from fsm.registry.command import Command, own
from fsm.tracker.process import get_tracker
from fsm.tracker.tracker import Tracker

if TYPE_CHECKING:
    from fsm.core.records import Snapshot

logger = logging.getLogger(__name__)

_inherited: list[object] = []
"""In a forked child: what its parent drives."""
UNSET: Any = object()
"""Nothing was said; ``None`` is a fallback like any other."""


class Launcher:
    """Sets executions up; see `Engine`, whose arguments these are."""

    def __init__(
        self,
        tracker: Tracker | None,
        slots: Slots | Mapping[str, Any] | None,
        conduct: Conduct,
        *,
        lease_s: float | None,
        sweep_every_s: float | None,
        poll_s: float,
    ) -> None:
        """Note it all; nothing is opened before the first execution."""
        if tracker is not None and tracker._user_id is not None:
            raise ConfigurationError(
                "an engine drives everybody's executions: give it the process's tracker and not one from for_user(), "
                "and say whose each execution is"
            )
        self._tracker = tracker
        try:
            self.slots = slots if isinstance(slots, Slots) else Slots(**(slots or {}))
        except (ValueError, TypeError) as error:
            raise BadPayload(f"slots do not fit: {error}") from None
        self._conduct = conduct
        self._lease_s = lease_s
        self._sweep_every_s = sweep_every_s
        self._poll_s = poll_s
        self._home: Home | None = None
        self._agents: dict[str, Agent] = {}
        self._drives: dict[str, tuple[Drive, asyncio.Task[Outcome]]] = {}
        self._closing: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._starting = threading.Lock()

    @property
    def tracker(self) -> Tracker:
        """The tracker that knows everything."""
        return self._tracker or get_tracker()

    @property
    def _health(self) -> Health:
        return self.tracker._registry.health

    async def _prepare(  # noqa: PLR0913 - as submit
        self,
        agent: Agent,
        answers: deque[tuple[str, Answer]],
        /,
        *args: Any,
        user_id: str,
        thread_id: str,
        kwargs: Mapping[str, Any] | None = None,
        fallback: Any = UNSET,
        before: Sequence[Hook] = (),
        after: Sequence[Hook] = (),
        parent_id: str | None = None,
        retry_of: str | None = None,
        emit: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> Drive:
        """Register an execution, and return what drives it; for `submit` and `Session`."""
        for name in ("timeouts", "retry", "metadata", "machine"):
            if options.get(name) is None:
                options[name] = agent.options.get(name)
        conduct = self._conduct_of(agent, fallback, before, after)
        home = self._open()
        seat = Seat(home, text("user_id", user_id), agent.name, free=parent_id is not None)
        if agent.resumable:
            options["metadata"] = called_with(options["metadata"], args, kwargs)
        registry = home.registry
        _check_machine(registry.machine_for(options["machine"]))
        # Before anything is awaited: a later caller has to find the queue as long as it is.
        seat.queue_up(bounded=True)
        bear = self._bear(
            home, seat, agent.name, user_id=user_id, thread_id=thread_id, parent_id=parent_id, retry_of=retry_of,
            **{name: own(option) for name, option in options.items()},
        )  # fmt: skip
        if registry.store.instant:
            link = await bear  # nothing is waited for, so no cancel can arrive
        else:
            link = await home.through(bear, "fsm-birth", undo=lambda link: self._unwanted(home, seat, link))
        run = Run(link, seat, self._child_of(link), answers)
        return Drive(home, link, seat, run, agent, args, kwargs or {}, conduct, emit)

    async def _bear(self, home: Home, seat: Seat, name: str, **options: Any) -> Link:
        """Commit a birth, and return the wire to the execution."""
        registry = home.registry
        link: Link | None = None
        try:
            birth: Command = await home.read(registry.birth, name, **options)
            assert birth.born is not None  # noqa: S101 - a birth has a step
            snapshot = birth.born.after
            link = Link(home, snapshot, registry.law_of(snapshot.identity.machine).machine)
            committed = registry.committer.submit(birth)
            if committed is not None:
                await committed
            await self._born(home, birth)
        except Exception as error:
            seat.close()
            if link is not None:
                link.close()
                if isinstance(error, StoreUnavailable) and error.committed is None:
                    # Its caller is told that the outcome is unknown; if it was born, nothing drives it.
                    home.see_to(self._call_off(home, link.id), "fsm-call-off")
            raise
        return link

    @staticmethod
    async def _born(home: Home, birth: Command) -> None:
        try:
            await home.read(home.registry.created, birth)
        except StoreUnavailable as error:
            # Nobody can tell whether it was born? The store can; nobody else would drive it.
            known = home.registry.store.load
            if error.committed is not None or await home.read(known, birth.request.execution_id) is None:
                raise

    async def _unwanted(self, home: Home, seat: Seat, link: Link) -> None:
        """Call off an execution whose caller was cancelled while it was being born: nothing would drive it."""
        try:
            await self._call_off(home, link.id)
        finally:
            seat.close()
            link.close()

    @staticmethod
    async def _call_off(home: Home, execution_id: str) -> None:
        for tried, wait_s in few_tries():
            order = home.registry.order(execution_id, "cancel", {"reason": "its caller was cancelled"})
            try:
                await home.read(home.registry.carry_all, [order])
            except StoreUnavailable as error:
                logger.warning("%s: not called off (%d of %d): %s", execution_id, tried, FEW_TRIES, error)
                await asyncio.sleep(wait_s)
            else:
                return

    def _begin(self, drive: Drive) -> Handle:
        """Let it drive, and return its handle."""
        task = drive.home.spawn(drive.life(), f"fsm-drive-{drive.agent.name}")
        self._drives[drive.link.id] = (drive, task)

        def done(_: object) -> None:
            self._drives.pop(drive.link.id, None)
            drive.never_begun()

        task.add_done_callback(done)
        return Handle(drive, task)

    def _child_of(self, link: Link) -> ChildStarter:
        async def start(agent: Callable[..., Any] | str, *args: Any, **options: Any) -> Handle:
            identity = link.snapshot.identity
            options.setdefault("thread_id", identity.thread_id)
            return await self.submit(agent, *args, user_id=identity.user_id, parent_id=link.id, **options)

        return start

    def _conduct_of(
        self, agent: Agent, fallback: Any, before: Sequence[Hook], after: Sequence[Hook]
    ) -> Conduct:
        own, given = self._conduct, agent.options
        if fallback is UNSET:
            fallback = given.get("fallback", UNSET)
        chosen: Agent | Value | None = None
        if isinstance(fallback, Registered):
            chosen = fallback.agent
        elif callable(fallback):
            chosen = Agent(fallback)
        elif fallback is not UNSET:
            chosen = Value(fallback)
        return Conduct(
            (*own.before, *given.get("before", ()), *before),
            (*own.after, *given.get("after", ()), *after),
            chosen,
            given.get("retry_on", own.retry_on),
            own.patience_s,
            own.record,
        )

    def _agent_of(self, agent: Callable[..., Any] | str, name: str | None) -> Agent:
        """Return the agent that somebody means.

        Raises:
            BadPayload: No agent is registered under this name.
        """
        if isinstance(agent, str):
            if agent not in self._agents:
                known = ", ".join(sorted(self._agents)) or "none"
                raise BadPayload(
                    f"no agent is registered as {agent!r}; known: {known}. Register it with @engine.agent(name=…)"
                )
            return self._agents[agent]
        if isinstance(agent, Registered):
            return agent.agent
        return Agent(agent, name)

    def _resumable(self) -> dict[str, Agent]:
        """Return the registered agents whose executions can be taken over, by name."""
        return {name: agent for name, agent in self._agents.items() if agent.resumable}

    def _take_over(self, home: Home, registration: Registration) -> Handle:
        """Drive an execution that another process has left in the queue."""
        snapshot: Snapshot = registration.snapshot
        agent = self._agents[snapshot.identity.agent]
        machine = home.registry.law_of(snapshot.identity.machine).machine
        _check_machine(machine)
        answers = deque((question, answer_of(payload)) for question, payload in registration.answers)
        args, kwargs = registration.called_with
        conduct = self._conduct_of(agent, UNSET, (), ())
        seat = Seat(home, snapshot.identity.user_id, agent.name, free=snapshot.identity.parent_id is not None)
        link = Link(home, snapshot, machine)  # from here on nothing raises: what listens has to be driven
        link.look()
        drive = Drive(
            home, link, seat, Run(link, seat, self._child_of(link), answers), agent, args, kwargs, conduct
        )
        handle = self._begin(drive)

        def over() -> None:
            # One that could not be begun is in the queue as before; taken over again at once, it would spin.
            if link.snapshot.version == snapshot.version and not isinstance(
                drive.error, (StoreUnavailable, NoneType)
            ):
                home.set_aside(snapshot, drive.error)
            else:
                home.registry.health.take_back(link.id)

        handle.add_done_callback(over)
        return handle

    async def submit(self, agent: Callable[..., Any] | str, /, *args: Any, **options: Any) -> Handle:
        """Register an execution and begin to drive it; see `Engine.submit`."""
        raise NotImplementedError

    # --- the loop -----------------------------------------------------------------------------------------------

    def _open(self) -> Home:
        """Return the engine's home on the running loop; set it up at the first use."""
        loop = asyncio.get_running_loop()
        home = self._home
        tracker = self.tracker
        if home is not None and home.loop is loop and home.tracker is tracker:
            if self._closing is not None and not self._closing.done():
                raise ConfigurationError("the engine is being closed: nothing new can begin")
            return home
        if home is not None and home.loop is not loop and home.links and not home.loop.is_closed():
            raise ConfigurationError(
                "this engine runs executions on another event loop: make one engine per event loop"
            )
        instant = tracker._registry.store.instant
        self._closing = None
        self._home = Home(
            tracker,
            self.slots,
            poll_s=self._poll_s,
            lease_s=None if instant else self._lease_s,
            sweep_every_s=self._sweep_every_s,
        )
        watch_exit(self)
        return self._home

    def _links(self) -> list[Link]:
        """Return the wires to the executions that are open here."""
        return list(self._home.links.values()) if self._home is not None else []

    def _after_fork(self) -> None:
        """Begin anew in a forked child. What the parent drives is kept, unused: collected, it would run `finally`."""
        if self._home is not None:
            self._home.elsewhere = True
            _inherited.append((self._home, self._drives))
        self._home, self._drives, self._closing = None, {}, None
        self._starting = threading.Lock()

    def _lives_on(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether this is the loop on which the engine runs."""
        return self._home is not None and self._home.loop is loop

    async def close(self) -> None:
        """Stop everything that runs here: agents are cancelled, their executions handed back or cancelled.

        A caller that is cancelled during it leaves; the engine goes on closing. An agent that does not stop keeps it
        for no longer than `patience_s`; `stragglers` says which.
        """
        home = self._home
        if home is None or home.loop is not asyncio.get_running_loop():
            return
        if self._closing is None or self._closing.done():
            self._closing = home.see_to(self._close(home), "fsm-close")
        await asyncio.wait({self._closing})
        if not self._closing.cancelled():
            self._closing.result()

    async def _close(self, home: Home) -> None:
        for serving in self._serving:
            serving.cancel()
        tasks = [task for _, task in self._drives.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        # What a with block drives is called off, and its body is cancelled; it says the end itself.
        if home.links and not home.registry.closed:
            said = {"reason": "the engine was closed", "by": "engine"}
            orders = [home.registry.order(link.id, "cancel", said) for link in self._links()]
            await home.read(home.registry.carry_all, orders)


SPOKEN = frozenset("start complete fail cancel stopped time_out lapse progress".split())
"""The events without which an engine cannot drive an execution to its end."""


def _check_machine(machine: Machine) -> None:
    """Raise `ConfigurationError` if a machine lacks what an engine says."""
    lacks = sorted(SPOKEN - set(machine.events))
    if lacks:
        raise ConfigurationError(
            f"the engine cannot drive machine {machine.name!r}, which has no {', '.join(lacks)}: derive yours with "
            "EXECUTION.extend(…), or drive its executions with tracker.fire"
        )
