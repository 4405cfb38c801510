"""Simulated workers over one store, in virtual time, with every fault that a seed can think of.

A scenario is asyncio code as it would run in production: agents that use ``worker.tracker.aio`` (or `get_tracker()`,
which gives them their worker's tracker). The simulation runs several workers over one store, lets the way to the
store be slow, break and hang, kills and stops workers, moves their wall clocks, and holds the journal to the
library's guarantees all the while. A run is decided by its seed alone: what fails once fails again.

    async def scenario(sim: Simulation) -> None:
        execution = await sim.tracker.aio.create("a", user_id="u", thread_id="t")
        ...

    Simulation(seed=7, workers=3, clock_skew_s=30.0, chaos=STORM).run(scenario)

(Deterministic simulation, one seed, faults of the network, the processes and the clocks: after FoundationDB and
TigerBeetle. A checker that stands outside and believes only the log: after Jepsen. The code is our own.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import Context, copy_context
from functools import partial
from hashlib import blake2b
from random import Random
from typing import Any, NamedTuple, TypeVar, cast

from fsm import tracker as tracker_module
from fsm.committer import MAX_BATCH, Command, Committer, _Round, _tell
from fsm.errors import FsmError, LeaseLost
from fsm.ids import IdMaker
from fsm.lifecycles import EXECUTION
from fsm.machine import Machine
from fsm.records import Receipt, Step
from fsm.registry import Registry
from fsm.stores.base import Store
from fsm.stores.memory import MemoryStore
from fsm.sweeper import BATCH, Sweeper
from fsm.testing.checker import Broken, Checker
from fsm.testing.faults import CALM, Chaos, Fault, FaultyStore
from fsm.testing.loop import PROCESS, NotSimulated, Process, SteppedLoop
from fsm.tracker import Tracker
from fsm.worker import RENEWALS_PER_LEASE, Worker

T = TypeVar("T")
Scenario = Callable[["Simulation"], Awaitable[object]]
Program = Callable[["SimulatedWorker"], Awaitable[object]]

EPOCH_S = 1_700_000_000.0
"""The wall clock of a worker without skew when a simulation begins, in seconds since the epoch."""
_LAST_EVENTS = 25


class SimulationFailed(AssertionError):  # noqa: N818 - it reads as what happened, as the other errors here
    """A guarantee was broken, the scenario raised, or the loop could not go on; the cause says which.

    Attributes:
        simulation: The `Simulation(...)` that replays it, as Python text.
        report: What had happened by then.
    """

    def __init__(self, what: BaseException, simulation: str, report: Report) -> None:
        self.simulation = simulation
        self.report = report
        last = "".join(f"\n  {event}" for event in report.events[-_LAST_EVENTS:])
        super().__init__(
            f"{type(what).__name__}: {what}\n"
            f"after {report.steps} steps, {report.virtual_s:.6g} virtual seconds and {report.commits} commits; "
            f"trace {report.trace_hash}\nreplay it with: {simulation}.run(scenario)\nlast events:{last or ' none'}"
        )


class Event(NamedTuple):
    """Something that the trace tells, beside the commits.

    Attributes:
        at_s: When, in virtual seconds.
        step: At which step of the loop.
        who: The process.
        what: A fault's kind, or ``boot``, ``resume``, ``sweep``, ``lost``.
        detail: What else there is to say.
    """

    at_s: float
    step: int
    who: str
    what: str
    detail: object

    def __str__(self) -> str:
        return f"{self.at_s:12.6f} s  step {self.step:>8}  {self.who:<10} {self.what} {self.detail}".rstrip()


class Report(NamedTuple):
    """What a run came to.

    Attributes:
        seed: Its seed.
        steps: How many callbacks the loop ran.
        virtual_s: How long it took in virtual seconds.
        commits: How many transitions were committed.
        receipts: How many receipts callers got.
        checks: How often the guarantees were checked.
        faults: How often each kind of fault happened.
        events: Faults and what else the trace tells beside the commits.
        trace_hash: Of every choice, every event and every commit: equal for equal runs.
    """

    seed: int
    steps: int
    virtual_s: float
    commits: int
    receipts: int
    checks: int
    faults: dict[str, int]
    events: tuple[Event, ...]
    trace_hash: str


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
        _tell(batch)
        self._next()

    def commit(self, command: Command) -> None:
        """Carry a command out at once: whoever calls this blocks, and nobody can block here."""
        self._run((command,))

    def commit_all(self, commands: Sequence[Command]) -> None:
        """Carry commands out at once."""
        self._run(commands)

    def _run(self, batch: Sequence[Command]) -> None:
        for this in self._rounds(batch):
            self._way.carry_now(this)


class _SimulatedRegistry(Registry):
    """A registry of one simulated process."""

    def __init__(self, simulation: Simulation, process: Process, way: FaultyStore, clock: SimulatedClock) -> None:
        super().__init__(cast("Store", way), clock, ())
        self._acknowledged = partial(simulation.checker.acknowledged, process)
        self.committer = _SimulatedCommitter(way, self.law_of, simulation.loop)
        rng = Random(f"ids {simulation.seed} {process.name}")  # noqa: S311
        self.ids = IdMaker(lambda: int(clock.wall() * 1e9), rng.randbytes)
        self.rng = rng
        for machine in (EXECUTION, *simulation.machines):
            self.add(machine)

    def receipt(self, command: Command) -> Receipt:
        """Return what a command came to, and let the checker know that somebody was told."""
        receipt = super().receipt(command)
        self._acknowledged(command, receipt)
        return receipt


class SimulatedWorker:
    """A worker process: its tracker, its clock, its lease, and a program that begins anew whenever it boots.

    Attributes:
        simulation: What it is a part of.
        index: Its number, from 0.
        clock: Its clocks; `skew_s` can be set at any time.
        boots: How often it began.
        process: The process as it runs now.
        tracker: The process's tracker.
    """

    process: Process
    tracker: Tracker

    def __init__(self, simulation: Simulation, index: int, skew_s: float) -> None:
        self.simulation = simulation
        self._program: Program | None = None
        self._context: Context
        self.index = index
        self.clock = SimulatedClock(simulation.loop, skew_s)
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

    def spawn(self, awaitable: Awaitable[T]) -> asyncio.Task[T]:
        """Run a coroutine in this process, once; it dies with it.

        Args:
            awaitable: A coroutine.

        Returns:
            Its task. An exception that it lets out ends the simulation.
        """
        context = self._context.copy()
        task = self.simulation.loop.create_task(_as_coroutine(awaitable), context=context)
        task.add_done_callback(self.simulation._ended, context=context)
        return task

    def crash(self, down_s: float | None = None) -> None:
        """Kill the process: nothing of it runs any more, no ``finally`` either. What is on its way arrives.

        Args:
            down_s: After so many virtual seconds it begins anew; ``None`` for never, unless `restart` is called.
        """
        if self.process.state == "dead":
            return
        self.simulation.note(self.process.name, "crash", down_s)
        self.simulation.loop.kill(self.process)
        if down_s is not None:
            self.simulation.later(down_s, self.restart)

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
        self.simulation.note(process.name, "pause", for_s)
        self.simulation.loop.pause(process)
        if for_s is not None:
            self.simulation.later(for_s, partial(self._resume, process))

    def resume(self) -> None:
        """Let the process go on, as SIGCONT does."""
        self._resume(self.process)

    def jump(self, seconds: float) -> None:
        """Set its wall clock forth or back, as an administrator would."""
        self.simulation.note(self.process.name, "jump", seconds)
        self.clock.skew_s += seconds

    def arm(self, fault: Fault) -> None:
        """Let a fault of the store meet this worker's next write (or read)."""
        self.way.armed.append(fault)

    # --- what it does by itself -------------------------------------------------------------------------------

    def _resume(self, process: Process) -> None:
        if process.state == "paused":
            self.simulation.note(process.name, "resume")
            self.simulation.loop.resume(process)

    def _boot(self) -> None:
        simulation = self.simulation
        self.boots += 1
        self.process = Process(f"w{self.index}.{self.boots}")
        rng = Random(f"way {simulation.seed} {self.process.name}")  # noqa: S311 - a schedule, not a secret
        self.way = FaultyStore(
            simulation.store, simulation.loop, self.process, simulation.network, rng, simulation.chaos, simulation
        )
        registry = _SimulatedRegistry(simulation, self.process, self.way, self.clock)
        self.tracker = Tracker._of(registry)
        self._context = simulation.context(self.process, self.tracker)
        simulation.note(self.process.name, "boot")
        simulation.delays[self.process] = self.way.latency_s
        if simulation.lease_s is not None:
            self.lease = Worker(registry, simulation.lease_s, self.process.name)
            registry.worker = self.lease
            simulation.checker.registered(self.lease.id, self.process, simulation.lease_s)
            self.spawn(self._renew(self.lease))
        if simulation.sweep_every_s is not None:
            self.spawn(self._sweep(registry, simulation.sweep_every_s))

    async def _renew(self, lease: Worker) -> None:
        """Do as the lease's thread does; a process that lost its lease ends and is started anew."""
        while True:
            await asyncio.sleep(lease.ttl_s / RENEWALS_PER_LEASE)
            try:
                await asyncio.to_thread(lease.renew)
            except LeaseLost:
                self.simulation.note(self.process.name, "lost", lease.id)
                self.crash(1.0)
                return
            except FsmError:
                continue

    async def _sweep(self, registry: Registry, every_s: float) -> None:
        """Do as the sweeper's thread does: look, and act on what was seen when it was looked."""
        sweeper = Sweeper(registry, every_s)
        rng = Random(f"sweep {self.simulation.seed} {self.process.name}")  # noqa: S311
        await asyncio.sleep(rng.random() * every_s)
        while True:
            begun = self.simulation.checker.sweep_begins(registry.now())
            try:
                await asyncio.to_thread(self._look, registry)
                await asyncio.sleep(self.way.latency_s())
                await asyncio.to_thread(sweeper.sweep)
            except FsmError as error:
                self.simulation.note(self.process.name, "sweep", f"failed: {error}")
            else:
                self.simulation.checker.sweep_ends(begun)
            self.way.seen.clear()
            await asyncio.sleep(every_s)

    def _look(self, registry: Registry) -> None:
        """Read what a sweep reads, to be handed to it later: between looking and acting the world goes on."""
        store, seen = registry.store, self.way.seen
        seen.clear()
        looked = {("due",): store.due(registry.now(), BATCH), ("lose",): store.lose(registry.now())}
        for worker_id in looked["lose",]:
            looked["owned", worker_id] = store.owned(worker_id, BATCH)
        seen.update(looked)


class Simulation:
    """One run of a scenario, decided by a seed.

    Attributes:
        seed: The seed.
        chaos: How often things go wrong by themselves.
        lease_s: How long a worker's lease is.
        sweep_every_s: The pause between two sweeps of each worker.
        machines: Further machines.
        rng: A generator for the scenario's own choices.
        loop: The loop; there is a new one for each `run`.
        store: The store that all workers share, without any faults in between.
        checker: What watches it.
        workers: The workers.
        tracker: A tracker that never fails, for whoever looks on from outside.
    """

    loop: SteppedLoop
    store: Store
    checker: Checker
    workers: list[SimulatedWorker]
    tracker: Tracker
    rng: Random
    network: Context

    def __init__(  # noqa: PLR0913 - every surrounding of a run
        self,
        *,
        seed: int = 0,
        workers: int = 3,
        clock_skew_s: float = 0.0,
        chaos: Chaos = CALM,
        faults: Sequence[Fault] = (),
        lease_s: float | None = 15.0,
        sweep_every_s: float | None = 1.0,
        store: Callable[[], Store] = MemoryStore,
        machines: Iterable[Machine] = (),
        check_every: int = 2_000,
        max_steps: int = 1_000_000,
        max_time_s: float = 1_000_000.0,
    ) -> None:
        """Describe a run.

        Args:
            seed: Decides the order of everything, and what chaos does.
            workers: How many worker processes there are.
            clock_skew_s: Each worker's wall clock is wrong by up to so many seconds, either way.
            chaos: How often things go wrong by themselves; `CALM`, `STORM`, or your own.
            faults: What goes wrong at set steps besides.
            lease_s: The workers' leases in seconds; ``None`` if they are not to be registered.
            sweep_every_s: How often each worker sweeps, in seconds; ``None`` if nobody does.
            store: Makes the store that all share; it must not wait for anything.
            machines: Machines beside the execution machine.
            check_every: The guarantees are checked after every so many steps, and at the end.
            max_steps: The run fails after so many steps.
            max_time_s: The run fails after so many virtual seconds.
        """
        self.seed = seed
        self.chaos = chaos
        self.lease_s = lease_s
        self.sweep_every_s = sweep_every_s
        self.machines = tuple(machines)
        self._count = workers
        self._clock_skew_s = clock_skew_s
        self._faults = tuple(faults)
        self._make_store = store
        self._check_every = check_every
        self._max_steps = max_steps
        self._max_time_s = max_time_s

    def __repr__(self) -> str:
        parts = [f"seed={self.seed}", f"workers={self._count}"]
        named = {
            "clock_skew_s": (self._clock_skew_s, 0.0),
            "chaos": (self.chaos, CALM),
            "faults": (self._faults, ()),
            "lease_s": (self.lease_s, 15.0),
            "sweep_every_s": (self.sweep_every_s, 1.0),
            "check_every": (self._check_every, 2_000),
            "max_steps": (self._max_steps, 1_000_000),
            "max_time_s": (self._max_time_s, 1_000_000.0),
        }
        parts += [f"{name}={value!r}" for name, (value, default) in named.items() if value != default]
        if self._make_store is not MemoryStore:
            parts.append(f"store={getattr(self._make_store, '__name__', self._make_store)}")
        if self.machines:
            parts.append(f"machines=[{', '.join(machine.name for machine in self.machines)}]")
        return f"Simulation({', '.join(parts)})"

    # --- run --------------------------------------------------------------------------------------------------

    def run(self, scenario: Scenario) -> Report:
        """Run a scenario from the beginning to its end, and check the guarantees.

        The run ends when the scenario returns; whatever still runs on the workers is dropped, as if the power
        failed. Every call begins anew, with the same seed and hence the same history.

        Args:
            scenario: A coroutine function that is called with this simulation; it stands outside the workers, and
                never fails or stops.

        Returns:
            What happened.

        Raises:
            SimulationFailed: A guarantee was broken, the scenario or a program raised, or the loop could not go on.
        """
        self._build()
        loop = self.loop
        try:
            with loop.undisturbed():
                context = self.context(Process("scenario"), self.tracker)
                task = loop.create_task(_as_coroutine(scenario(self)), name="scenario", context=context)
                self._begin()
                try:
                    loop.run_until_complete(task)
                except BaseException as error:
                    if self._failure is None:
                        self._failure = error
                if self._failure is None:
                    self.checker.check_all()
        except Exception as error:  # noqa: BLE001 - a broken guarantee, at the end
            self._failure = error
        report = self._report()
        self._power_off()
        failure = self._failure
        if failure is None:
            return report
        if not isinstance(failure, Exception):
            raise failure
        raise SimulationFailed(failure, repr(self), report) from failure

    def _build(self) -> None:
        self.loop = loop = SteppedLoop(self.seed, max_steps=self._max_steps, max_time_s=self._max_time_s)
        self.rng = Random(f"scenario {self.seed}")  # noqa: S311 - a schedule, not a secret
        self.store = self._make_store()
        self.checker = Checker(self.store, loop)
        self.delays: dict[Process, Callable[[], float]] = {}
        self._events: list[Event] = []
        self._failure: BaseException | None = None
        self.network = copy_context()
        self.network.run(PROCESS.set, None)
        loop.io_delay = self._io_delay
        loop.set_exception_handler(self._complain)
        outside = Process("outside")
        way = FaultyStore(
            self.store, loop, outside, self.network, Random(0), Chaos(latency_s=0.0), self  # noqa: S311
        )
        self._outside = way
        clock = SimulatedClock(loop, 0.0)
        self.tracker = Tracker._of(_SimulatedRegistry(self, outside, way, clock))
        skew = Random(f"skew {self.seed}")  # noqa: S311
        bound_s = self._clock_skew_s
        self.workers = []
        for index in range(self._count):
            self.workers.append(SimulatedWorker(self, index, skew.uniform(-bound_s, bound_s)))

    def _begin(self) -> None:
        for fault in self._faults:
            self.loop.at_step(fault.step, partial(self._inflict, fault))
        self.loop.at_step(self._check_every, self._check)
        chaos = self.chaos
        if self.workers:
            for every_s, strike in (
                (chaos.crash_every_s, self._crash), (chaos.pause_every_s, self._pause), (chaos.jump_every_s, self._jump),
            ):  # fmt: skip
                if every_s > 0:
                    rng = Random(f"{strike.__name__} {self.seed}")  # noqa: S311
                    self.later(rng.expovariate(1.0 / every_s), partial(self._strike, rng, every_s, strike))

    def _check(self) -> None:
        self.checker.check()
        self.loop.at_step(self.loop.steps + self._check_every, self._check)

    def _report(self) -> Report:
        faults: dict[str, int] = {}
        for event in self._events:
            if event.what not in {"boot", "resume", "sweep", "lost"}:
                faults[event.what] = faults.get(event.what, 0) + 1
        digest = blake2b(self.loop.trace_hash().encode(), digest_size=16)
        for event in self._events:
            digest.update(str(event).encode())
        for commit in self.checker.commits:
            row = commit.receipt
            digest.update(
                f"{commit.who} {row.execution_id} {row.version} {row.event} {row.target} {row.at!r} {row.key}".encode()
            )
        return Report(
            self.seed,
            self.loop.steps,
            self.loop.time(),
            len(self.checker.commits),
            len(self.checker.receipts),
            self.checker.checks,
            faults,
            tuple(self._events),
            digest.hexdigest(),
        )

    def _power_off(self) -> None:
        for worker in self.workers:
            worker.way.cut = True
        self._outside.cut = True
        self.loop.drop()

    # --- what goes wrong --------------------------------------------------------------------------------------

    def _strike(self, rng: Random, every_s: float, strike: Callable[[Random, SimulatedWorker], None]) -> None:
        strike(rng, rng.choice(self.workers))
        self.later(rng.expovariate(1.0 / every_s), partial(self._strike, rng, every_s, strike))

    def _crash(self, rng: Random, worker: SimulatedWorker) -> None:
        worker.crash(rng.expovariate(1.0 / self.chaos.down_s))

    def _pause(self, rng: Random, worker: SimulatedWorker) -> None:
        worker.pause(rng.expovariate(1.0 / self.chaos.pause_s))

    def _jump(self, rng: Random, worker: SimulatedWorker) -> None:
        worker.jump(rng.uniform(-self.chaos.jump_s, self.chaos.jump_s))

    def _inflict(self, fault: Fault) -> None:
        if not self.workers:
            return
        worker = self.workers[fault.worker % len(self.workers)]
        if fault.kind == "crash":
            worker.crash(abs(fault.for_s))
        elif fault.kind == "pause":
            worker.pause(abs(fault.for_s))
        elif fault.kind == "jump":
            worker.jump(fault.for_s)
        else:
            worker.arm(fault)

    # --- for scenarios ----------------------------------------------------------------------------------------

    async def settled(self, within_s: float = 3600.0, every_s: float = 1.0) -> None:
        """Wait until every execution has ended.

        Args:
            within_s: In so many virtual seconds at the most.
            every_s: How often to look, in virtual seconds.

        Raises:
            Broken: One is still open then.
        """
        until_s = self.loop.time() + within_s
        while True:
            self.checker.check()
            left = self.checker.open_ids()
            if not left:
                return
            if self.loop.time() >= until_s:
                one = self.checker.rows(left[0])[-1]
                raise Broken("nothing stays open for ever", f"{len(left)} are open after {within_s} s, as {one}")
            await asyncio.sleep(every_s)

    def note(self, who: str, what: str, detail: object = "") -> None:
        """Put something into the trace.

        Args:
            who: The process that it is about.
            what: One word.
            detail: What else there is to say; its text must be the same in every run.
        """
        self._events.append(Event(self.loop.time(), self.loop.steps, who, what, detail))

    def committed(self, process: Process, command: Command, step: Step, receipt: Receipt) -> None:
        """Take note of a commit; the store's ways call this."""
        self.checker.committed(process, command, step, receipt)

    def renewed(self, worker_id: str) -> None:
        """Take note of a renewed lease; the store's ways call this."""
        self.checker.renewed(worker_id)

    def later(self, after_s: float, action: Callable[[], None]) -> None:
        """Do something from outside after so many virtual seconds; no process has to live for it."""
        self.loop.call_later(after_s, action, context=self.network)

    def context(self, process: Process, tracker: Tracker) -> Context:
        """Return a context in which `get_tracker` gives `tracker`, and whose tasks belong to `process`."""
        context = copy_context()
        context.run(PROCESS.set, process)
        context.run(tracker_module._mine.set, tracker)
        return context

    # --- inside -----------------------------------------------------------------------------------------------

    def _io_delay(self) -> float:
        process = PROCESS.get()
        delay = self.delays.get(process) if process is not None else None
        return delay() if delay is not None else 0.0

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._fail(cast("BaseException", task.exception()))

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self.loop.stop()

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if "handle" in context and error is not None:
            self._fail(error)
        else:
            loop.default_exception_handler(context)


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable
