"""The simulation: every fault does what it says, every guarantee holds over many seeds, and a run replays exactly.

FSM_SIMULATION_SEEDS=2000 tries more seeds than the 200 of a normal run.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from hypothesis import Phase, given, settings

from fsm import get_tracker
from fsm.errors import Refused, StoreUnavailable
from fsm.machine.grammar import row, state
from fsm.machine.machine import Machine
from fsm.machine.timeouts import Timeouts
from fsm.simulation.faults import CALM, STORM, Chaos, Fault
from fsm.simulation.loop import Deadlock, StepLimit
from fsm.simulation.observed import Broken
from fsm.simulation.plans import simulation_plans
from fsm.simulation.scenarios import fleet
from fsm.simulation.simulation import Simulation, SimulationFailed
from fsm.tracker.retention import Retention
from tests.support.inside import registry_of

SEEDS = int(os.environ.get("FSM_SIMULATION_SEEDS", "200"))
CHUNK = 25
STILL = Chaos(latency_s=0.0)


@pytest.fixture(autouse=True)
def nothing_real(monkeypatch):
    """Nothing here may sleep for real or start a thread."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("this would be real")

    monkeypatch.setattr(time, "sleep", refuse)
    monkeypatch.setattr(threading.Thread, "start", refuse)


async def born(sim, **options):
    return (await sim.tracker.aio.create("a", user_id="u", thread_id="t", **options)).id


def events_of(sim, execution_id):
    return [receipt.event for receipt in sim.tracker.history(execution_id)]


# --- the guarantees ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_the_guarantees_hold_in_a_storm(first):
    """Whatever fails, stops, hangs or jumps, no guarantee is broken and every execution ends."""
    seen = set()
    children = pruned = 0
    for seed in range(first, min(first + CHUNK, SEEDS)):
        retention = Retention(max_age_s=20.0, max_count=8) if seed % 2 else None
        sim = Simulation(seed=seed, clock_skew_s=300.0, chaos=STORM, retention=retention)
        report = sim.run(fleet(12, children=0.2))
        assert report.commits >= 12 * 2
        assert report.receipts > 0
        assert report.checks > 3
        seen |= set(report.faults)
        left = _all(sim)
        assert all(one.ended for one in left)
        children += sum(one.parent_id is not None for one in left)
        pruned += len(sim.checker.known()) - len(left)
    assert children > 5
    assert pruned > 20
    assert {"crash", "pause", "fail_before", "fail_after", "unknown", "hang", "slow", "read_fails"} <= seen


def _all(sim):
    kept = [snapshot for one in sim.checker.known() if (snapshot := sim.store.load(one)) is not None]
    return [registry_of(sim.tracker).show(snapshot) for snapshot in kept]


@settings(max_examples=40)
@given(simulation_plans(max_step=3_000))
def test_the_guarantees_hold_under_any_plan(plan):
    """Faults that are laid where they hurt most break no guarantee either."""
    plan.simulation(clock_skew_s=60.0).run(fleet(6, cancels=0.3))


@pytest.mark.parametrize("seed", range(10))
def test_a_lost_execution_is_found_within_lease_and_sweep(seed):
    """After a crash, its work is back in the queue no later than a lease and a sweep after the last renewal."""

    async def scenario(sim):
        victim, _ = sim.workers
        execution_id = await born(sim, retry={"attempts_max": 2})
        await victim.spawn(victim.tracker.aio.fire(execution_id, "start"))
        await asyncio.sleep(sim.rng.uniform(0.0, 20.0))
        victim.crash()
        lost_at = sim.loop.time()
        while (await sim.tracker.aio.get(execution_id)).state != "queued":
            await asyncio.sleep(0.01)
        return sim.loop.time() - lost_at

    took = []

    async def timed(sim):
        took.append(await scenario(sim))

    Simulation(seed=seed, workers=2, lease_s=12.0, sweep_every_s=1.0, clock_skew_s=1000.0).run(timed)
    # A third of the lease may have gone by since the last renewal; latency adds some hundredths.
    assert 12.0 * 2 / 3 - 0.1 < took[0] < 12.0 + 1.0 + 0.5


def test_a_zombie_cannot_write():
    """A worker that was stopped beyond its lease finds its fence stale, or is ended by its lost lease before."""
    met = []

    async def agent(worker, execution_id):
        fence = (await worker.tracker.aio.fire(execution_id, "start")).fence
        await asyncio.sleep(1.0)
        try:
            await worker.tracker.aio.fire(execution_id, "think", fence=fence)
        except Refused as error:
            met.append(error.reason)

    async def scenario(sim):
        zombie, heir = sim.workers
        execution_id = await born(sim, retry={"attempts_max": 2})
        zombie.spawn(agent(zombie, execution_id))
        await asyncio.sleep(0.5)
        zombie.pause(40.0)
        await asyncio.sleep(30.0)
        await heir.spawn(heir.tracker.aio.fire(execution_id, "start"))
        await asyncio.sleep(30.0)
        assert events_of(sim, execution_id) == ["create", "start", "lapse", "start"]
        assert zombie.boots == 2

    for seed in range(20):
        Simulation(seed=seed, workers=2).run(scenario)
    assert set(met) == {"fenced"}
    assert 0 < len(met) < 20


@pytest.mark.parametrize("seed", range(20))
def test_exactly_one_of_many_claims(seed):
    """When all workers claim one execution at once, one gets it and the others are refused."""

    async def claim(worker, execution_id):
        try:
            return (await worker.tracker.aio.fire(execution_id, "start")).owner
        except Refused as error:
            return error.reason

    async def scenario(sim):
        execution_id = await born(sim)
        got = await asyncio.gather(*(worker.spawn(claim(worker, execution_id)) for worker in sim.workers))
        assert sorted(got)[:4] == ["not_allowed"] * 4
        assert sorted(got)[4].startswith("worker_")

    Simulation(seed=seed, workers=5).run(scenario)


def test_a_cancel_ends_cancelled():
    """Whatever a called-off agent does, it ends cancelled: by itself, by its grace, or with its worker."""
    ends = set()

    async def agent(worker, execution_id, stubborn):
        fence = (await worker.tracker.aio.fire(execution_id, "start")).fence
        try:
            while True:
                await asyncio.sleep(1.0)
                await worker.tracker.aio.fire(execution_id, "progress", fence=fence)
        except Refused:
            if not stubborn:
                await worker.tracker.aio.fire(execution_id, "stopped", fence=fence)

    async def scenario(sim):
        for number, worker in enumerate(sim.workers):
            execution_id = await born(sim, timeouts={"grace_s": 20.0})
            worker.spawn(agent(worker, execution_id, stubborn=number == 1))
            await asyncio.sleep(3.0)
            await sim.tracker.aio.fire(execution_id, "cancel")
            if number == 2:
                worker.crash()
        await sim.settled(within_s=100.0)
        for rows in (sim.checker.rows(one) for one in sim.checker.known()):
            assert rows[-1].target == "cancelled"
            ends.add(rows[-1].event)

    Simulation(seed=4, workers=4, chaos=STILL).run(scenario)
    assert ends == {"stopped", "time_out", "lapse"}


# --- each fault -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "told", "rows_at_once"),
    [("fail_before", False, 0), ("unknown", None, 0), ("fail_after", None, 1)],
)
def test_a_write_that_fails(kind, told, rows_at_once):
    """The caller hears what is known, the journal has what was committed, and the key makes a repetition safe."""

    async def scenario(sim):
        (worker,) = sim.workers
        execution_id = await born(sim)
        await worker.tracker.aio.fire(execution_id, "start", key="1")
        worker.arm(Fault(1, kind))
        with pytest.raises(StoreUnavailable) as error:
            await worker.tracker.aio.fire(
                execution_id, "progress", fence=worker.tracker.get(execution_id).fence, key="2"
            )
        assert error.value.committed is told
        assert events_of(sim, execution_id).count("progress") == rows_at_once
        receipt = await worker.tracker.aio.fire(
            execution_id, "progress", fence=worker.tracker.get(execution_id).fence, key="2"
        )
        assert sim.tracker.history(execution_id)[-1] == receipt
        assert events_of(sim, execution_id).count("progress") == 1

    assert Simulation(workers=1, chaos=STILL).run(scenario).faults == {kind: 1}


@pytest.mark.parametrize(("kind", "rows_at_once"), [("hang", 0), ("slow", 1)])
def test_a_write_that_is_late(kind, rows_at_once):
    """A write that hangs arrives late, a slow one is there at once and answered late; a caller may give up."""

    async def scenario(sim):
        (worker,) = sim.workers
        execution_id = await born(sim)
        await worker.tracker.aio.fire(execution_id, "start", key="1")
        worker.arm(Fault(1, kind, for_s=60.0))
        begun = sim.loop.time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10.0):
                await worker.tracker.aio.fire(
                    execution_id, "progress", fence=worker.tracker.get(execution_id).fence, key="2"
                )
        assert events_of(sim, execution_id).count("progress") == rows_at_once
        receipt = await worker.tracker.aio.fire(
            execution_id, "progress", fence=worker.tracker.get(execution_id).fence, key="2"
        )
        assert sim.loop.time() - begun == pytest.approx(60.0)
        assert sim.tracker.history(execution_id)[-1] == receipt
        assert events_of(sim, execution_id).count("progress") == 1

    Simulation(workers=1, chaos=STILL, lease_s=None).run(scenario)


def test_a_read_that_fails():
    """A read that fails raises, says that nothing was written, and changes nothing."""

    async def scenario(sim):
        (worker,) = sim.workers
        execution_id = await born(sim)
        worker.arm(Fault(1, "read_fails"))
        with pytest.raises(StoreUnavailable) as error:
            await worker.tracker.aio.get(execution_id)
        assert error.value.committed is False
        assert (await worker.tracker.aio.get(execution_id)).state == "created"

    Simulation(workers=1, chaos=STILL, lease_s=None, sweep_every_s=None).run(scenario)


def test_a_write_under_way_outlives_its_worker():
    """What a worker had sent when it was killed is committed, and nobody hears of it."""
    heard = []

    async def program(worker, execution_id):
        heard.append(await worker.tracker.aio.fire(execution_id, "start"))

    async def scenario(sim):
        (worker,) = sim.workers
        execution_id = await born(sim)
        worker.arm(Fault(1, "hang", for_s=5.0))
        worker.spawn(program(worker, execution_id))
        await asyncio.sleep(1.0)
        worker.crash()
        assert events_of(sim, execution_id) == ["create"]
        await asyncio.sleep(10.0)
        assert events_of(sim, execution_id) == ["create", "start"]

    Simulation(workers=1, chaos=STILL, sweep_every_s=None).run(scenario)
    assert heard == []


def test_a_crash_is_no_cancellation():
    """A killed worker runs no finally and no except; it comes back as another worker, its program from the start."""
    log = []

    async def program(worker):
        log.append(f"begin {worker.boots}")
        try:
            await asyncio.sleep(1000.0)
        finally:
            log.append("finally")

    async def scenario(sim):
        (worker,) = sim.workers
        worker.start(program)
        first = worker.tracker.worker_id
        await asyncio.sleep(1.0)
        worker.crash(down_s=5.0)
        assert not worker.up
        await asyncio.sleep(10.0)
        assert worker.up
        assert worker.tracker.worker_id != first
        assert log == ["begin 1", "begin 2"]

    Simulation(workers=1).run(scenario)


def test_a_dead_worker_begins_nothing():
    """What is started on a dead worker never begins; a program that is given to it runs when it is back."""
    log = []

    async def program(worker):
        log.append(worker.boots)

    async def scenario(sim):
        (worker,) = sim.workers
        worker.crash()
        worker.spawn(program(worker))
        worker.start(program)
        await asyncio.sleep(5.0)
        assert log == []
        worker.restart()
        await asyncio.sleep(5.0)
        assert log == [2]

    Simulation(workers=1).run(scenario)


def test_a_pause_shorter_than_the_lease_harms_nothing():
    """A worker that stops for less than its lease goes on as if nothing had been."""

    async def agent(worker, execution_id):
        fence = (await worker.tracker.aio.fire(execution_id, "start")).fence
        for _ in range(20):
            await asyncio.sleep(1.0)
            await worker.tracker.aio.fire(execution_id, "progress", fence=fence)

    async def scenario(sim):
        worker, _ = sim.workers
        execution_id = await born(sim)
        task = worker.spawn(agent(worker, execution_id))
        await asyncio.sleep(6.0)
        worker.pause(8.0)
        await task
        assert "lapse" not in events_of(sim, execution_id)
        assert sim.loop.time() > 25.0

    Simulation(workers=2, lease_s=15.0, chaos=STILL).run(scenario)


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
def test_a_wall_clock_that_jumps_kills_nothing(seconds):
    """A jump of the wall clock by an hour, either way, ends and delays no execution."""

    async def scenario(sim):
        worker, other = sim.workers
        execution_id = await born(sim, timeouts={"phase_s": 10.0, "queue_s": 10.0})
        await worker.spawn(worker.tracker.aio.fire(execution_id, "start"))
        worker.jump(seconds)
        other.jump(-seconds)
        await asyncio.sleep(9.0)
        assert (await sim.tracker.aio.get(execution_id)).state == "starting"
        await asyncio.sleep(3.0)
        assert (await sim.tracker.aio.get(execution_id)).state == "timed_out"

    Simulation(workers=2, clock_skew_s=500.0).run(scenario)


def test_faults_come_at_their_steps():
    """A planned fault begins at its step, not before."""

    async def scenario(sim):
        await asyncio.sleep(30.0)

    faults = (Fault(200, "pause", 0, 3.0), Fault(300, "crash", 1, 2.0), Fault(350, "jump", 0, -5.0))
    report = Simulation(workers=2, faults=faults).run(scenario)
    struck = [(event.what, event.step) for event in report.events if event.what in {"pause", "crash", "jump"}]
    assert struck == [("pause", 199), ("crash", 299), ("jump", 349)]


# --- the same again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_seed_replays_exactly(seed):
    """The same seed gives the same events, commits and choices, to the last one; another seed gives others."""
    sim = Simulation(seed=seed, chaos=STORM, clock_skew_s=30.0)
    first = sim.run(fleet(10))
    journal = list(sim.checker.journal())
    again = sim.run(fleet(10))
    assert again == first
    assert list(sim.checker.journal()) == journal
    other = Simulation(seed=seed + 1000, chaos=STORM, clock_skew_s=30.0).run(fleet(10))
    assert other.trace_hash != first.trace_hash
    assert other.events != first.events


def test_a_seed_replays_in_another_process():
    """A trace does not depend on the interpreter's hash seed, nor on what ran before."""
    program = (
        "from fsm.simulation.simulation import Simulation\n"
        "from fsm.simulation.faults import STORM\n"
        "from fsm.simulation.scenarios import fleet\n"
        "print(Simulation(seed=5, chaos=STORM).run(fleet(10)).trace_hash)"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    hashes.add(Simulation(seed=5, chaos=STORM).run(fleet(10)).trace_hash)
    assert len(hashes) == 1


async def careless(sim):
    """An agent with a bug: it repeats without a key what may have been committed."""
    (worker,) = sim.workers
    execution_id = await born(sim)

    async def progress():
        for _ in range(3):
            try:
                return await worker.tracker.aio.fire(
                    execution_id, "progress", fence=worker.tracker.get(execution_id).fence
                )
            except StoreUnavailable:
                await asyncio.sleep(1.0)
        return None

    await worker.tracker.aio.fire(execution_id, "start")
    await worker.spawn(progress())
    if events_of(sim, execution_id).count("progress") != 1:
        raise ValueError("told twice")


def test_a_failure_prints_what_replays_it():
    """The error of a failing run shows the Simulation(...) that fails in the same way, with the same trace."""
    error = _first_failure(
        Simulation(seed=seed, workers=1, chaos=Chaos(fail_after=0.2)) for seed in range(500)
    )
    assert f"replay it with: {error.simulation}.run(scenario)" in str(error)
    assert "fail_after" in str(error)
    again = eval(error.simulation, {"Simulation": Simulation, "Chaos": Chaos})  # what a person would paste
    with pytest.raises(SimulationFailed) as second:
        again.run(_tolerant)
    assert second.value.report.trace_hash == error.report.trace_hash
    assert str(second.value) == str(error)


def _first_failure(simulations, scenario=None):
    for simulation in simulations:
        try:
            simulation.run(scenario or _tolerant)
        except SimulationFailed as error:
            return error
    return None


async def _tolerant(sim):
    with suppress(StoreUnavailable):  # the claim itself failed: nothing to see
        await careless(sim)


def test_a_failing_plan_shrinks_to_the_fault_that_matters():
    """Hypothesis boils a plan that breaks a careless agent down to one fault."""
    found = []

    @settings(max_examples=200, database=None, derandomize=True, phases=[Phase.generate, Phase.shrink])
    @given(
        simulation_plans(workers=1, max_faults=5, max_step=60, kinds=("slow", "fail_before", "fail_after"))
    )
    def broken(plan):
        try:
            plan.simulation(chaos=STILL, lease_s=None, sweep_every_s=None).run(_tolerant)
        except SimulationFailed:
            found.append(plan)
            raise

    with pytest.raises(SimulationFailed, match="told twice"):
        broken()
    assert [fault.kind for fault in found[-1].faults] == ["fail_after"]


# --- the surroundings -------------------------------------------------------------------------------------------


def test_code_finds_its_workers_tracker():
    """get_tracker() gives each worker's code its own worker's tracker, and the scenario one that never fails."""

    async def who():
        return get_tracker()

    async def scenario(sim):
        found = await asyncio.gather(*(worker.spawn(who()) for worker in sim.workers))
        assert found == [worker.tracker for worker in sim.workers]
        assert get_tracker() is sim.tracker

    Simulation(workers=3).run(scenario)


def test_a_program_that_raises_ends_the_run():
    """An exception that a worker's program lets out is the run's failure, with its cause."""

    async def program(_worker):
        await asyncio.sleep(1.0)
        raise ValueError("mine")

    async def scenario(sim):
        sim.workers[0].start(program)
        await asyncio.sleep(100.0)

    with pytest.raises(SimulationFailed, match="ValueError: mine") as failed:
        Simulation().run(scenario)
    assert isinstance(failed.value.__cause__, ValueError)
    assert failed.value.report.virtual_s == pytest.approx(1.0)


def test_what_cannot_go_on_is_a_failure():
    """A deadlock and a run without end are failures that say so."""

    async def waits(_sim):
        await asyncio.Event().wait()

    async def spins(_sim):
        while True:
            await asyncio.sleep(1.0)

    with pytest.raises(SimulationFailed) as stuck:
        Simulation(workers=0).run(waits)
    assert isinstance(stuck.value.__cause__, Deadlock)
    with pytest.raises(SimulationFailed) as endless:
        Simulation(max_time_s=50.0).run(spins)
    assert isinstance(endless.value.__cause__, StepLimit)


def test_what_stays_open_is_a_failure():
    """settled() fails with the execution that is still open, not with a silence."""

    async def scenario(sim):
        await born(sim)
        await sim.settled(within_s=100.0)

    with pytest.raises(SimulationFailed, match=r"1 are open after 100\.0 s") as failed:
        Simulation().run(scenario)
    assert isinstance(failed.value.__cause__, Broken)


def test_a_subscriber_sees_the_whole_journal():
    """A subscription on a worker hands out every commit of all workers, in the journal's order, and once."""
    seen = []

    async def reader(worker):
        async for receipt in worker.tracker.aio.subscribe(after=0):
            seen.append(receipt)  # noqa: PERF401 - it never ends

    async def scenario(sim):
        sim.workers[0].spawn(reader(sim.workers[0]))
        await fleet(8)(sim)
        await asyncio.sleep(5.0)

    sim = Simulation(seed=3, clock_skew_s=50.0)
    sim.run(scenario)
    assert seen == list(sim.checker.journal())


def test_another_machine_is_simulated_as_well():
    """A machine of one's own runs under the same faults and the same guarantees."""
    door = Machine(
        name="door",
        initial="shut",
        states=(
            state("shut", "pending", "queue"),
            state("open", "running", "phase"),
            state("gone", "terminal"),
        ),
        transitions=(
            row("shut", "open", "open", assign="claim"),
            row("open", "shut", "shut", assign="release"),
            row("shut open", "time_out", "gone"),
            row("shut open", "lapse", "gone"),
            row("shut open", "cancel", "gone"),
        ),
        payloads=(("time_out", "time_out"), ("lapse", "lapse")),
        timeouts=Timeouts(phase_s=20.0, queue_s=20.0),
    )

    async def scenario(sim):
        for _ in range(5):
            execution = await sim.tracker.aio.create("d", user_id="u", thread_id="t", machine="door")
            for event in ("open", "shut", "open"):
                for worker in sim.workers:
                    try:
                        await worker.tracker.aio.fire(execution.id, event)
                    except (Refused, StoreUnavailable):
                        continue
        await sim.settled(within_s=300.0)

    for seed in range(10):
        report = Simulation(seed=seed, machines=[door], chaos=Chaos(fail_after=0.1, unknown=0.1)).run(
            scenario
        )
        assert report.commits > 10


def test_calm_is_calm():
    """Without chaos no fault happens, and all but the cancelled executions end by themselves."""
    report = Simulation(seed=1, chaos=CALM).run(fleet(10, cancels=0.0))
    assert report.faults == {}
