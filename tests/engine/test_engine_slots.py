"""Slots, seen from an engine in virtual time: who runs, who waits in which state, and for how long."""

from __future__ import annotations

import asyncio
import random

import pytest

from fsm import BadPayload, BreakerOpen, Engine, EngineFull, ExecutionTimedOut
from fsm.breakers import Backoff
from tests.support.engine_tools import in_memory, simulated

PLAYS = pytest.mark.parametrize("play", [in_memory, simulated])


def now() -> float:
    return asyncio.get_running_loop().time()


async def settle(steps: int = 50) -> None:
    """Let everything have its turn that needs no time; a commit needs a little."""
    await asyncio.sleep(0.5)


def worker(seconds: float, began: list[str] | None = None):
    async def work(run, name=""):
        if began is not None:
            began.append(name)
        await asyncio.sleep(seconds)
        return now()

    return work


# --- the queue ----------------------------------------------------------------------------------------------------


@PLAYS
def test_who_waits_is_queued_and_holds_no_slot(play):
    """An execution that gets no slot is `queued`, counted as such, and begins when one is given back."""

    async def scenario(engine, tracker):
        first = await engine.submit(worker(10.0), user_id="ada", thread_id="t")
        second = await engine.submit(worker(10.0), user_id="ada", thread_id="t")
        await settle()
        assert (engine.running, engine.queued) == (1, 1)
        assert (first.state, second.state) == ("starting", "queued")
        assert tracker.get(second.id).owner is None
        assert await second - await first == pytest.approx(10.0, abs=1.0)
        assert (engine.running, engine.queued) == (0, 0)

    play(scenario, slots={"total": 1})


@PLAYS
def test_a_queue_times_out_with_its_kind(play):
    """Who waits longer than queue_s ends timed_out of the kind queue, leaves the queue, and delays nobody."""

    async def scenario(engine, tracker):
        first = await engine.submit(worker(100.0), user_id="ada", thread_id="t")
        second = await engine.submit(worker(1.0), user_id="ada", thread_id="t", timeouts={"queue_s": 20.0})
        third = await engine.submit(worker(1.0), user_id="ada", thread_id="t")
        with pytest.raises(ExecutionTimedOut) as caught:
            await second
        assert now() == pytest.approx(20.0, abs=1.0)
        assert caught.value.kind == "queue"
        assert tracker.get(second.id).attempt == 0
        assert engine.queued == 1
        assert await third - await first == pytest.approx(1.0, abs=0.5)

    play(scenario, slots={"total": 1})


@PLAYS
def test_one_that_is_called_off_in_the_queue_leaves_it(play):
    """A queued execution that is cancelled ends at once, was never begun, and leaves its place."""

    async def scenario(engine, tracker):
        first = await engine.submit(worker(10.0), user_id="ada", thread_id="t")
        second = await engine.submit(worker(10.0), user_id="ada", thread_id="t")
        await settle()
        await second.cancel("enough")
        assert (await second.outcome()).state == "cancelled"
        assert (engine.queued, tracker.get(second.id).attempt) == (0, 0)
        await first

    play(scenario, slots={"total": 1})


@PLAYS
@pytest.mark.parametrize("seed", range(3))
def test_a_users_executions_begin_in_the_order_in_which_they_were_handed_in(play, seed):
    """First come, first served: whatever order the event loop runs its tasks in."""

    async def scenario(engine, tracker):
        began: list[str] = []
        handles = [
            await engine.submit(worker(1.0, began), f"{number}", user_id="ada", thread_id="t")
            for number in range(12)
        ]
        for handle in handles:
            await handle
        assert began == [f"{number}" for number in range(12)]

    play(scenario, seed=seed, slots={"total": 1})


@PLAYS
def test_a_full_queue_creates_nothing(play):
    """Beyond queued_max `EngineFull` is raised at once and nothing is created; who gets a slot is not asked."""

    async def scenario(engine, tracker):
        async def hand_in(user="ada"):
            return await engine.submit(worker(5.0), user_id=user, thread_id="t")

        taken = await asyncio.gather(*(hand_in() for _ in range(8)), return_exceptions=True)
        full = [one for one in taken if isinstance(one, EngineFull)]
        handles = [one for one in taken if not isinstance(one, EngineFull)]
        assert (len(full), len(handles), full[0].queued) == (4, 4, 3)
        assert len(tracker.find()) == 4
        handles.append(await hand_in("bob"))  # a slot is free, though the queue is full
        with pytest.raises(EngineFull):
            await hand_in("bob")
        for handle in handles:
            await handle

    play(scenario, slots={"total": 2, "per_user": 1, "queued_max": 3})


@PLAYS
def test_one_user_need_not_fill_the_queue_for_all(play):
    """With queued_per_user a flood is refused although the queue has room, and another user still gets in."""

    async def scenario(engine, tracker):
        handles = [await engine.submit(worker(1.0), user_id="ada", thread_id="t") for _ in range(3)]
        with pytest.raises(EngineFull):
            await engine.submit(worker(1.0), user_id="ada", thread_id="t")
        handles.append(await engine.submit(worker(1.0), user_id="bob", thread_id="t"))
        for handle in handles:
            await handle

    play(scenario, slots={"total": 1, "queued_max": 10, "queued_per_user": 2})


@PLAYS
def test_a_birth_that_fails_gives_its_slot_back(play):
    """An execution that cannot be created leaves neither a slot nor a place in the queue behind."""

    async def scenario(engine, tracker):
        for wrong in (
            {"metadata": {"a": object()}},
            {"thread_id": ""},
            {"retry_of": "exec_x"},
            {"timeouts": {"x": 1}},
        ):
            with pytest.raises(Exception):  # noqa: B017, PT011 - each its own
                await engine.submit(worker(1.0), **{"user_id": "ada", "thread_id": "t", **wrong})
            assert (engine.running, engine.queued, engine._connections()) == (0, 0, [])

    play(scenario)


@PLAYS
def test_each_agent_has_its_own_limit(play):
    """A limit per agent holds for that agent alone, by a number for all of them or by its name."""

    async def scenario(engine, tracker):
        began = []

        async def peak(name):
            handles = [
                await engine.submit(
                    worker(1.0, began), user_id=f"user {number}", thread_id="t", agent_name=name
                )
                for number in range(6)
            ]
            await settle()
            most = engine.running
            for handle in handles:
                await handle
            return most

        return [await peak("slow"), await peak("other")]

    assert play(scenario, slots={"total": 4, "per_agent": {"slow": 2}}) == [2, 4]
    assert play(scenario, slots={"total": 4, "per_agent": 3}) == [3, 3]


# --- without a slot -----------------------------------------------------------------------------------------------


async def other_runs_meanwhile(engine, tracker, agent, state):
    """Start an agent that will wait in a state, and see that its slot is another's until it goes on."""
    handle = await engine.submit(agent, user_id="ada", thread_id="t")
    await settle()
    assert (handle.state, engine.running) == (state, 0)
    assert await engine.run(worker(1.0), user_id="bob", thread_id="t") == pytest.approx(now(), abs=0.5)
    blocker = await engine.submit(worker(100.0), user_id="bob", thread_id="t")
    waiting = await engine.submit(worker(1.0), user_id="bob", thread_id="t")
    await settle()
    return handle, blocker, waiting


def in_turn(went_on, blocked, after):
    """It went on when the slot was given back, and before the one that had not begun."""
    assert blocked <= went_on <= blocked + 1.0
    assert after >= went_on + 1.0


@PLAYS
def test_one_that_awaits_input_has_no_slot(play):
    """While a person is asked the slot is free; with the answer the run waits for one, before those not begun."""

    async def scenario(engine, tracker):
        async def agent(run):
            await run.ask("Go on?")
            went_on = now()
            await asyncio.sleep(1.0)
            return went_on

        handle, blocker, waiting = await other_runs_meanwhile(engine, tracker, agent, "awaiting_input")
        await tracker.aio.fire(handle.id, "receive_input", verdict="approved", by="eve")
        in_turn(await handle, await blocker, await waiting)

    play(scenario, slots={"total": 1})


@PLAYS
def test_one_that_backs_off_has_no_slot(play, monkeypatch):
    """Between two tries of a model call the slot is free, and the next try waits for one."""
    monkeypatch.setattr(random, "uniform", lambda low, high: high)  # each wait is as long as it may be

    async def scenario(engine, tracker):
        tries = []

        async def model():
            tries.append(now())
            if len(tries) == 1:
                raise ConnectionError
            await asyncio.sleep(1.0)
            return tries[-1]

        async def agent(run):
            return await run.call_model("m", model, backoff=Backoff(initial_s=30.0))

        handle, blocker, waiting = await other_runs_meanwhile(engine, tracker, agent, "backing_off")
        in_turn(await handle, await blocker, await waiting)
        assert len(tries) == 2

    play(scenario, slots={"total": 1})


@PLAYS
def test_one_behind_an_open_breaker_has_no_slot(play):
    """An execution that meets an open breaker waits without a slot, and takes one before its next call."""

    async def scenario(engine, tracker):
        tracker.breakers.force_open("m", by="eve", why="maintenance")

        async def agent(run):
            with pytest.raises(BreakerOpen):
                await run.model("m").__aenter__()
            await asyncio.sleep(30.0)
            async with run.model("other"):
                went_on = now()
                await asyncio.sleep(1.0)
            return went_on

        handle, blocker, waiting = await other_runs_meanwhile(engine, tracker, agent, "circuit_open")
        in_turn(await handle, await blocker, await waiting)

    play(scenario, slots={"total": 1})


@PLAYS
def test_one_that_waits_for_its_next_attempt_has_no_slot(play):
    """Between two attempts the slot is free."""

    async def scenario(engine, tracker):
        async def agent(run):
            if run.attempt == 1:
                raise ConnectionError("try again")
            return run.attempt

        retry = {"attempts_max": 2, "backoff_s": 50.0, "backoff_cap_s": 50.0}
        handle = await engine.submit(agent, user_id="ada", thread_id="t", retry=retry)
        await settle()
        assert (handle.state, engine.running) == ("queued", 0)
        await engine.run(worker(0.1), user_id="bob", thread_id="t")
        assert await handle == 2

    play(scenario, slots={"total": 1})


@PLAYS
def test_children_run_in_their_parents_slot(play):
    """Children of children need no slot of their own: with one slot nothing is stuck."""

    async def scenario(engine, tracker):
        async def nested(run, depth):
            if not depth:
                return engine.running
            both = await asyncio.gather(*(run.child(nested, depth - 1) for _ in range(2)))
            return max(both)

        return await engine.run(nested, 4, user_id="ada", thread_id="t")

    assert play(scenario, slots={"total": 1, "per_user": 1, "per_agent": 1}) == 1


@PLAYS
def test_several_branches_take_one_slot(play):
    """However many branches of an agent pause and go on at once, the execution has one slot, and gives one back."""

    async def scenario(engine, tracker):
        async def agent(run):
            await asyncio.gather(run.ask("one?"), run.ask("two?"), run.ask("three?"))
            async with run.tool("a"), run.tool("b"):
                return engine.running

        handle = await engine.submit(agent, user_id="ada", thread_id="t")
        for _ in range(3):
            await settle()
            await tracker.aio.fire(handle.id, "receive_input", verdict="approved")
        assert await handle == 1

    play(scenario, slots={"total": 3})


# --- fairness, in virtual time ------------------------------------------------------------------------------------


def latencies(flood: int, **slots: int) -> list[float]:
    """Return how long each of bob's runs of one second took, while so many of ada's are handed in before each."""

    async def scenario(engine, tracker):
        found, handles = [], []
        for _ in range(10):
            handles += [await engine.submit(worker(1.0), user_id="ada", thread_id="t") for _ in range(flood)]
            began = now()
            await engine.run(worker(1.0), user_id="bob", thread_id="t")
            found.append(now() - began)
        for handle in handles:
            await handle.cancel()
            await handle.outcome()
        return found

    return in_memory(scenario, slots=slots)


def test_a_user_at_the_limit_never_slows_another():
    """With a limit per user bob's runs take as long beside a flood of ada's as they take alone."""
    alone = latencies(0, total=4, per_user=2)
    assert latencies(50, total=4, per_user=2) == pytest.approx(alone)
    assert alone == pytest.approx([1.0] * 10)


def test_without_a_limit_a_flood_delays_by_one_release_at_most():
    """Without one, bob waits for no more than one release, and two beside a run that was granted at the same time."""
    slow = latencies(50, total=1)
    assert max(slow) <= 3.0 + 1e-6  # one that runs, one of ada's that was first, and its own second
    assert max(latencies(50, total=10)) <= 3.0 + 1e-6


@pytest.mark.parametrize(
    "wrong",
    [
        {"total": 0},
        {"total": True},
        {"total": 1.5},
        {"per_user": 0},
        {"per_agent": {"a": 0}},
        {"queued_max": "5"},
        {"nonsense": 1},
        [1],
    ],
)
def test_slots_that_make_no_sense_are_refused(wrong):
    """Numbers of slots are whole and at least one, and a limit that does not exist is no limit."""
    with pytest.raises(BadPayload, match="slots"):
        Engine(slots=wrong)
