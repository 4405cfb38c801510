"""Recordings played by agents on the engine come to the ends that were recorded."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest

from fsm import Engine, Tracker
from fsm.engine import Slots
from fsm.replay.agents import BREAKERS, Pace, Played, RecordedError, play, recorded_end
from fsm.replay.trajectory import Trajectory, read_line
from fsm.simulation.loop import SteppedLoop
from fsm.simulation.workers import SimulatedClock
from fsm.testing import fresh_tracker
from tests.conftest import SAMPLE


def read(*paths) -> list[Trajectory]:
    lines = (line for path in paths for line in path.read_bytes().splitlines())
    return [one for one in map(read_line, lines) if one is not None]


def played(trajectories, *, slots: Slots | None = None, at_once: int = 1_000, seed: int = 7):
    """Play recordings in virtual time; return the sums, and hold the engine to leaving nothing behind."""
    loop = SteppedLoop(seed, max_steps=100_000_000)
    with (
        fresh_tracker(clock=SimulatedClock(loop, 0.0)) as tracker,
        asyncio.Runner(loop_factory=lambda: loop) as runner,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")  # a coroutine that was never awaited, a task that was forgotten
        engine = Engine(tracker, slots=slots or Slots(total=at_once))

        async def main() -> Played:
            sums = await play(engine, trajectories, at_once=at_once, pace=Pace(1.0, seed))
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return sums

        sums = runner.run(main())
        gc.collect()
        nothing_left(engine, tracker)
        return sums, {one.thread_id: one for one in every(tracker) if one.parent_id is None}, loop.time()


def every(tracker: Tracker):
    after = None
    while page := tracker.find(limit=500, after=after):
        yield from page
        after = page[-1].id


def nothing_left(engine: Engine, tracker: Tracker) -> None:
    assert (engine.running, engine.queued, engine._connections(), engine.late, engine.stragglers) == (
        0,
        0,
        [],
        (),
        {},
    )
    assert tracker._registry.committer.watchers == {}
    assert all(one.category == "terminal" for one in every(tracker))
    for status in tracker.breakers.status().breakers:
        assert status.key.startswith(BREAKERS)
        assert (status.state, status.probes) == ("closed", 0)


def test_each_recording_ends_as_it_was_recorded():
    """Every kind of recorded run comes to the end that its recording tells, sub-agents and people included."""
    trajectories = read(SAMPLE)
    sums, found, _ = played(trajectories)
    assert sums.strays == []
    assert sums.executions == len(trajectories) == 12
    assert sums.children == 2
    for one in trajectories:
        assert found[one.id].state == recorded_end(one), one.id
        assert found[one.id].agent == one.agent


def test_a_thousand_recordings_at_once(traces):
    """A thousand recorded runs side by side in one process end as recorded, and leave no slot, permit or task."""
    trajectories = read(*traces)
    trajectories += [one.model_copy(update={"id": f"again-{one.id}"}) for one in trajectories]
    trajectories = trajectories[:1_000]
    sums, found, _ = played(trajectories)
    assert sums.strays == []
    assert sums.executions == len(found) == len(trajectories)
    assert sums.most_at_once >= 900
    assert all(found[one.id].state == recorded_end(one) for one in trajectories)


def test_few_slots_make_it_longer_and_nothing_else():
    """With two slots the same recordings queue, take longer, and come to the same ends."""
    trajectories = read(SAMPLE)
    wide, at_first, short_s = played(trajectories)
    narrow, at_last, long_s = played(trajectories, slots=Slots(total=2))
    assert narrow.most_at_once == 2 < wide.most_at_once
    assert long_s > short_s
    assert {name: one.state for name, one in at_first.items()} == {
        name: one.state for name, one in at_last.items()
    }


def test_a_recording_that_stops_in_the_middle_has_failed():
    """A recording without an end fails, for that reason: an execution is never left open."""
    one = read_line(
        '{"id": "half", "events": [{"kind": "start"}, {"kind": "model", "name": "m", "ok": true}]}'
    )
    assert one is not None
    sums, found, _ = played([one])
    assert (sums.strays, found["half"].state) == ([], "failed")
    assert "stops here" in (found["half"].error or "")


def test_an_end_that_strays_is_told():
    """An execution that ends otherwise than recorded is counted as a stray, with both ends."""
    one = read_line('{"id": "x", "events": [{"kind": "start"}, {"kind": "end", "outcome": "completed"}]}')
    assert one is not None
    loop = SteppedLoop(1)
    with (
        fresh_tracker(clock=SimulatedClock(loop, 0.0)) as tracker,
        asyncio.Runner(loop_factory=lambda: loop) as runner,
    ):

        def refuse(run):
            raise RecordedError("no")

        sums = runner.run(play(Engine(tracker, before=[refuse]), [one]))
    ((_, recorded, state),) = sums.strays
    assert (recorded, state) == ("completed", "failed")


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_seed_takes_the_same_time(seed):
    """The latencies that a recording lacks are decided by the seed alone."""
    trajectories = read(SAMPLE)
    assert played(trajectories, seed=seed)[2] == played(trajectories, seed=seed)[2]
