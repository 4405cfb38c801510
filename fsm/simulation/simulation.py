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
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from random import Random
from typing import Any

from fsm.machine.machine import Machine
from fsm.simulation.checker import Checker
from fsm.simulation.faults import CALM, Chaos, Fault, FaultyStore
from fsm.simulation.handles import Process
from fsm.simulation.loop import SteppedLoop
from fsm.simulation.observed import Broken
from fsm.simulation.report import Event, Report, SimulationFailed, fingerprint
from fsm.simulation.workers import SimulatedClock, SimulatedRegistry, SimulatedWorker
from fsm.simulation.world import World
from fsm.stores.base import Store
from fsm.stores.memory import MemoryStore
from fsm.tracker.retention import Retention
from fsm.tracker.tracker import Tracker

__all__ = ["Event", "Report", "Scenario", "SimulatedWorker", "Simulation", "SimulationFailed"]

Scenario = Callable[["Simulation"], Coroutine[Any, Any, object]]


class Simulation:
    """One run of a scenario, decided by a seed.

    Attributes:
        seed: The seed.
        chaos: How often things go wrong by themselves.
        lease_s: How long a worker's lease is.
        sweep_every_s: The pause between two sweeps of each worker.
        retention: What the sweeps prune.
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
        retention: Retention | None = None,
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
            retention: What the sweeps prune; ``None`` for nothing.
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
        self.retention = retention
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
            "retention": (self.retention, None),
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
        world = self._build()
        loop = self.loop
        with (
            loop.undisturbed()
        ):  # up to the power's end: a task that nobody holds must not be found by chance
            try:
                context = world.context(Process("scenario"), self.tracker)
                task = loop.create_task(scenario(self), name="scenario", context=context)
                self._begin()
                try:
                    loop.run_until_complete(task)
                except BaseException as error:  # noqa: BLE001 - told below, with the seed
                    if world.failure is None:
                        world.failure = error
                if world.failure is None:
                    self.checker.check_all()
            except Exception as error:  # noqa: BLE001 - a broken guarantee, at the end
                world.failure = error
            report = self._report()
            self._power_off()
        failure = world.failure
        if failure is None:
            return report
        if not isinstance(failure, Exception):
            raise failure
        raise SimulationFailed(failure, repr(self), report) from failure

    def _build(self) -> World:
        self.loop = loop = SteppedLoop(self.seed, max_steps=self._max_steps, max_time_s=self._max_time_s)
        self.rng = Random(f"scenario {self.seed}")
        self.store = self._make_store()
        self._world = world = World(
            seed=self.seed,
            chaos=self.chaos,
            lease_s=self.lease_s,
            sweep_every_s=self.sweep_every_s,
            retention=self.retention,
            machines=self.machines,
            loop=loop,
            store=self.store,
        )
        self.checker = world.checker
        outside = Process("outside")
        way = FaultyStore(self.store, loop, outside, world.network, Random(0), Chaos(latency_s=0.0), world)
        self._outside = way
        clock = SimulatedClock(loop, 0.0)
        self.tracker = Tracker._of(SimulatedRegistry(world, outside, way, clock))
        skew = Random(f"skew {self.seed}")
        bound_s = self._clock_skew_s
        self.workers = []
        for index in range(self._count):
            self.workers.append(SimulatedWorker(world, index, skew.uniform(-bound_s, bound_s)))
        return world

    def _begin(self) -> None:
        for fault in self._faults:
            self.loop.at_step(fault.step, partial(self._inflict, fault))
        self.loop.at_step(self._check_every, self._check)
        chaos = self.chaos
        if self.workers:
            strikes = (
                (chaos.crash_every_s, self._crash),
                (chaos.pause_every_s, self._pause),
                (chaos.jump_every_s, self._jump),
            )
            for every_s, strike in strikes:
                if every_s > 0:
                    rng = Random(f"{strike.__name__} {self.seed}")
                    self.later(rng.expovariate(1.0 / every_s), partial(self._strike, rng, every_s, strike))

    def _check(self) -> None:
        self.checker.check()
        self.loop.at_step(self.loop.steps + self._check_every, self._check)

    def _report(self) -> Report:
        faults: dict[str, int] = {}
        world = self._world
        for event in world.events:
            if event.what not in {"boot", "resume", "sweep", "lost"}:
                faults[event.what] = faults.get(event.what, 0) + 1
        return Report(
            self.seed,
            self.loop.steps,
            self.loop.time(),
            len(self.checker.commits),
            len(self.checker.receipts),
            self.checker.checks,
            faults,
            tuple(world.events),
            fingerprint(self.loop.trace_hash(), world.events, self.checker.commits),
        )

    def _power_off(self) -> None:
        for worker in self.workers:
            worker.way.cut = True
        self._outside.cut = True
        self._world.over = True
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
                raise Broken(
                    "nothing stays open for ever", f"{len(left)} are open after {within_s} s, as {one}"
                )
            await asyncio.sleep(every_s)

    def later(self, after_s: float, action: Callable[[], None]) -> None:
        """Do something from outside after some virtual seconds; no process has to live for it."""
        self._world.later(after_s, action)
