"""A simulated worker process: its tracker, its clock, its lease, its sweeper, and what can befall it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextvars import Context
from functools import partial
from random import Random
from typing import Any, TypeVar, cast

from fsm.core.records import Receipt
from fsm.errors import FsmError, LeaseLost
from fsm.ids import IdMaker
from fsm.lifecycles import EXECUTION
from fsm.registry.command import Command, tell
from fsm.registry.committer import MAX_BATCH, Committer, _Round
from fsm.registry.registry import Registry
from fsm.simulation.faults import Fault, FaultyStore
from fsm.simulation.handles import Process
from fsm.simulation.loop import NotSimulated, SteppedLoop
from fsm.simulation.observed import EPOCH_S
from fsm.simulation.world import World
from fsm.stores.base import Store
from fsm.tracker.sweeper import BATCH, Sweeper
from fsm.tracker.tracker import Tracker
from fsm.tracker.worker import RENEWALS_PER_LEASE, Worker

T = TypeVar("T")
Program = Callable[["SimulatedWorker"], Coroutine[Any, Any, object]]


class SimulatedClock:
    """The loop's time, on a wall clock that is wrong by so much."""

    def __init__(self, loop: SteppedLoop, skew_s: float) -> None:
        """Show a loop's time.

        Args:
            loop: The loop.
            skew_s: By how many seconds the wall clock is fast.
        """
        self._time = loop.time
        self.skew_s = skew_s

    def wall(self) -> float:
        """Return this worker's idea of the time, in seconds since the epoch."""
        return EPOCH_S + self._time() + self.skew_s

    def monotonic(self) -> float:
        """Return virtual seconds; all workers count from the same beginning."""
        return self._time()

    def era(self) -> str:
        """Return the one era of a simulation: all workers run on one host."""
        return "simulated"

    def sleep(self, seconds: float) -> None:
        """Refuse: a thread cannot block in a simulation."""
        raise NotSimulated(f"nothing can block for {seconds} s here: await asyncio.sleep({seconds}) instead")


class _SimulatedCommitter(Committer):
    """The committer, whose thread is a chain of callbacks: between decision, commit and answer others have a turn."""

    def __init__(self, way: FaultyStore, law_of: Callable[[str], Any], loop: SteppedLoop) -> None:
        super().__init__(cast("Store", way), law_of)
        self._way = way
        self._loop = loop
        self._serving = False

    def _start(self) -> None:
        if not self._serving:
            self._serving = True
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        queue = self._queue
        if not queue:
            self._serving = False
            return
        batch = [queue.popleft() for _ in range(min(len(queue), MAX_BATCH))]
        self._go_on(batch, self._rounds(batch))

    def _go_on(self, batch: list[Command], rounds: Iterable[_Round]) -> None:
        this = next(iter(rounds), None)
        if this is not None:
            self._way.carry(this, partial(self._go_on, batch, rounds))
            return
        tell(batch)
        self._next()

    def commit(self, command: Command) -> None:
        """Carry a command out at once: whoever calls this blocks, and nobody can block here."""
        self._run((command,))

    def commit_all(self, commands: Sequence[Command]) -> None:
        """Carry commands out at once."""
        self._run(commands)

    def _run(self, batch: Sequence[Command], tried: int = 0) -> None:
        for this in self._rounds(batch, tried):
            self._way.carry_now(this)


class SimulatedRegistry(Registry):
    """A registry of one simulated process."""

    def __init__(self, world: World, process: Process, way: FaultyStore, clock: SimulatedClock) -> None:
        super().__init__(cast("Store", way), clock, ())
        self._loop = world.loop
        self._laws = world.laws  # every worker runs the same program: made ready once, not at every boot
        self._acknowledged = partial(world.checker.acknowledged, process)
        self.committer = _SimulatedCommitter(way, self.law_of, world.loop)
        self.committer.misheard = self.health.failed
        self.health.stirred = None  # a thread of the system's own has no place in a simulation
        rng = Random(f"ids {world.seed} {process.name}")
        self.ids = IdMaker(lambda: int(clock.wall() * 1e9), rng.randbytes)
        self.rng = rng
        for machine in (EXECUTION, *world.machines):
            self.add(machine)

    def _unheard(self, command: Command) -> None:
        self._loop.run_in_executor(None, self._make_up, command)

    def receipt(self, command: Command) -> Receipt:
        """Return what a command came to, and let the checker know that somebody was told."""
        receipt = super().receipt(command)
        self._acknowledged(command, receipt)
        return receipt


class SimulatedWorker:
    """A worker process: its tracker, its clock, its lease, and a program that begins anew whenever it boots.

    Attributes:
        world: What surrounds it.
        index: Its number, from 0.
        clock: Its clocks; `skew_s` can be set at any time.
        boots: How often it began.
        process: The process as it runs now.
        tracker: The process's tracker.
    """

    process: Process
    tracker: Tracker

    def __init__(self, world: World, index: int, skew_s: float) -> None:
        self.world = world
        self._program: Program | None = None
        self._context: Context
        self.index = index
        self.clock = SimulatedClock(world.loop, skew_s)
        self.boots = 0
        self.lease: Worker | None = None
        self._boot()

    # --- what a scenario does with it -------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Whether it runs: neither dead nor paused."""
        return self.process.state == "running"

    def start(self, program: Program) -> asyncio.Task[Any]:
        """Run a program here, and again from its beginning after every crash.

        Args:
            program: Called with this worker; a coroutine function.

        Returns:
            The task of this run. An exception that the program lets out ends the simulation.
        """
        self._program = program
        return self.spawn(program(self))

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine in this process, once; it dies with it. In a dead process it never begins.

        Args:
            coroutine: What to run.

        Returns:
            Its task. An exception that it lets out ends the simulation.
        """
        context = self._context.copy()
        task = self.world.loop.create_task(coroutine, context=context)
        task.add_done_callback(self.world.ended, context=context)
        if self.process.state == "dead":
            self.world.loop.kill(self.process)  # again, so that somebody holds the task
        return task

    def crash(self, down_s: float | None = None) -> None:
        """Kill the process: nothing of it runs any more, no ``finally`` either. What is on its way arrives.

        Args:
            down_s: After so many virtual seconds it begins anew; ``None`` for never, unless `restart` is called.
        """
        if self.process.state == "dead":
            return
        self.world.note(self.process.name, "crash", down_s)
        self.world.loop.kill(self.process)
        if down_s is not None:
            self.world.later(down_s, self.restart)

    def restart(self) -> None:
        """Begin anew if it is dead, with a new worker id, a fresh tracker, and the program from its beginning."""
        if self.process.state != "dead":
            return
        self._boot()
        if self._program is not None:
            self.start(self._program)

    def pause(self, for_s: float | None = None) -> None:
        """Stop the process as SIGSTOP does; time goes on without it.

        Args:
            for_s: For so many virtual seconds; ``None`` until `resume` is called.
        """
        if not self.up:
            return
        process = self.process
        self.world.note(process.name, "pause", for_s)
        self.world.loop.pause(process)
        if for_s is not None:
            self.world.later(for_s, partial(self._resume, process))

    def resume(self) -> None:
        """Let the process go on, as SIGCONT does."""
        self._resume(self.process)

    def jump(self, seconds: float) -> None:
        """Set its wall clock forth or back, as an administrator would."""
        self.world.note(self.process.name, "jump", seconds)
        self.clock.skew_s += seconds

    def arm(self, fault: Fault) -> None:
        """Let a fault of the store meet this worker's next write (or read)."""
        self.way.armed.append(fault)

    # --- what it does by itself -------------------------------------------------------------------------------

    def _resume(self, process: Process) -> None:
        if process.state == "paused":
            self.world.note(process.name, "resume")
            self.world.loop.resume(process)

    def _boot(self) -> None:
        world = self.world
        self.boots += 1
        self.process = Process(f"w{self.index}.{self.boots}")
        rng = Random(f"way {world.seed} {self.process.name}")
        self.way = FaultyStore(
            world.store,
            world.loop,
            self.process,
            world.network,
            rng,
            world.chaos,
            world,
        )
        registry = SimulatedRegistry(world, self.process, self.way, self.clock)
        self.tracker = Tracker._of(registry)
        self._context = world.context(self.process, self.tracker)
        world.note(self.process.name, "boot")
        world.delays[self.process] = self.way.latency_s
        if world.lease_s is not None:
            self.lease = Worker(registry, world.lease_s, self.process.name)
            registry.worker = self.lease
            world.checker.registered(self.lease.id, self.process, world.lease_s)
            self.spawn(self._renew(self.lease))
        if world.sweep_every_s is not None:
            self.spawn(self._sweep(registry, world.sweep_every_s))

    async def _renew(self, lease: Worker) -> None:
        """Do as the lease's thread does; a process that lost its lease ends and is started anew."""
        while True:
            await asyncio.sleep(lease.ttl_s / RENEWALS_PER_LEASE)
            try:
                await asyncio.to_thread(lease.renew)
            except LeaseLost:
                self.world.note(self.process.name, "lost", lease.id)
                self.crash(1.0)
                return
            except FsmError:
                continue

    async def _sweep(self, registry: Registry, every_s: float) -> None:
        """Do as the sweeper's thread does: look, and act on what was seen when it was looked."""
        sweeper = Sweeper(registry, every_s, self.world.retention)
        rng = Random(f"sweep {self.world.seed} {self.process.name}")
        chaos = self.world.chaos
        await asyncio.sleep(rng.random() * every_s)
        while True:
            begun = self.world.checker.sweep_begins(registry.now())
            try:
                await asyncio.to_thread(self._look, registry)
                await asyncio.sleep(self.way.latency_s())
                if rng.random() < 10 * chaos.slow:  # preempted between looking and acting
                    await asyncio.sleep(rng.expovariate(1.0 / chaos.late_s))
                await asyncio.to_thread(sweeper.sweep)
            except FsmError as error:
                self.world.note(self.process.name, "sweep", f"failed: {error}")
            else:
                self.world.checker.sweep_ends(begun)
            self.way.seen.clear()
            await asyncio.sleep(every_s)

    def _look(self, registry: Registry) -> None:
        """Read what a sweep reads, to be handed to it later: between looking and acting the world goes on."""
        store, seen = registry.store, self.way.seen
        seen.clear()
        due, lost = store.due(registry.now(), BATCH), store.lose(registry.now())
        for worker_id in lost:
            seen["owned", worker_id] = store.owned(worker_id, BATCH)
        seen["due",], seen["lose",], seen["orders", ""] = due, lost, store.orders("", BATCH)
