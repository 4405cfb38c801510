"""What an agent does with its run: the journal is what a reader would expect, and every cancel arrives."""

from __future__ import annotations

import asyncio

import pytest

from fsm.errors import (
    EngineFull,
    ExecutionCancelled,
    ExecutionTimedOut,
    FsmError,
)
from tests.support.engine_tools import WHO, events, in_memory, last, only, states


async def sleeps(run):
    await asyncio.sleep(1e5)


# --- cancel ---------------------------------------------------------------------------------------------------


def test_cancel_by_handle_says_why_and_by_whom(play):
    """A handle's cancel reaches the agent, and whoever waits learns why and by whom."""

    async def scenario(engine, tracker):
        handle = await engine.submit(sleeps, **WHO)
        await asyncio.sleep(1)
        await handle.cancel("enough", by="ada")
        with pytest.raises(ExecutionCancelled) as caught:
            await handle
        assert (caught.value.reason, caught.value.by) == ("enough", "ada")
        await handle.cancel("again")  # nothing happens
        assert events(tracker, handle.id)[-2:] == ["cancel", "stopped"]

    play(scenario)


def test_cancel_by_whoever_knows_the_id(play):
    """A cancel that is fired past the engine reaches the agent all the same."""

    async def scenario(engine, tracker):
        handle = await engine.submit(sleeps, **WHO)
        await asyncio.sleep(1)
        await tracker.aio.fire(handle.id, "cancel", reason="by hand")
        with pytest.raises(ExecutionCancelled, match="by hand"):
            await handle

    play(scenario)


def test_a_late_result_is_kept(play):
    """What an agent returns although it was called off is in the record, and with the error."""

    async def scenario(engine, tracker):
        async def agent(run):
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(1e5)
            return "half of it"

        handle = await engine.submit(agent, **WHO)
        await asyncio.sleep(1)
        await handle.cancel()
        with pytest.raises(ExecutionCancelled) as caught:
            await handle
        assert caught.value.result == "half of it"
        assert last(tracker, handle.id) == {"result": "half of it", "outcome": "late"}

    play(scenario)


def test_cancel_of_a_queued_one(play):
    """An execution that waits for a slot is cancelled at once, and its place in the queue is free."""

    async def scenario(engine, tracker):
        first = await engine.submit(sleeps, **WHO)
        second = await engine.submit(sleeps, **WHO)
        await asyncio.sleep(1)
        assert (second.state, engine.queued) == ("queued", 1)
        await second.cancel()
        with pytest.raises(ExecutionCancelled):
            await second
        assert engine.queued == 0
        assert states(tracker, second.id) == ["created", "queued", "cancelled"]
        await first.cancel()
        await first.outcome()

    play(scenario, slots={"total": 1})


def test_cancel_of_one_that_backs_off(play):
    """An execution that waits for its next attempt is cancelled at once."""

    async def scenario(engine, tracker):
        async def agent(run):
            raise OSError("no network")

        loop = asyncio.get_running_loop()
        handle = await engine.submit(agent, retry={"attempts_max": 3, "backoff_s": 60.0}, **WHO)
        await asyncio.sleep(1)
        assert (handle.state, engine.running) == ("queued", 0)
        await handle.cancel()
        with pytest.raises(ExecutionCancelled):
            await handle
        assert loop.time() < 2

    play(scenario)


def test_cancel_of_one_that_awaits_input(play):
    """An execution that waits for a person is cancelled, and its agent with it."""

    async def scenario(engine, tracker):
        async def agent(run):
            await run.ask("may I?")

        handle = await engine.submit(agent, **WHO)
        await asyncio.sleep(1)
        assert (handle.state, engine.running) == ("awaiting_input", 0)
        await handle.cancel()
        with pytest.raises(ExecutionCancelled):
            await handle

    play(scenario)


@pytest.mark.parametrize("turns", range(12))
def test_cancel_while_it_begins(play, turns):
    """A cancel during creation and claim leaves nothing open, whenever it comes."""

    async def scenario(engine, tracker):
        caller = asyncio.ensure_future(engine.run(sleeps, **WHO))
        for _ in range(turns):
            await asyncio.sleep(0 if play is in_memory else 0.001)
        caller.cancel()
        await asyncio.wait({caller})
        assert caller.cancelled()
        for one in tracker.find():
            if one.state == "created":  # the caller was gone before it was anybody's
                tracker.fire(one.id, "cancel")

    play(scenario, seed=turns)


def test_a_cancelled_caller_calls_the_execution_off(play):
    """A timeout around `run` cancels the execution and is a timeout still."""

    async def scenario(engine, tracker):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await engine.run(sleeps, **WHO)
        one = only(tracker)
        assert one.state == "cancelled"
        cancel = next(row for row in tracker.history(one.id) if row.event == "cancel")
        assert cancel.payload["reason"] == "its caller was cancelled"

    play(scenario)


def test_a_cancelled_parent_cancels_its_children(play):
    """Whoever calls a parent off calls off its children, through all generations."""

    async def scenario(engine, tracker):
        stopped = []

        async def child(run):
            try:
                await sleeps(run)
            finally:
                stopped.append(run.agent_name)

        async def middle(run):
            await run.child(child)

        async def parent(run):
            await asyncio.gather(run.child(middle), run.child(child, agent_name="second"))

        handle = await engine.submit(parent, **WHO)
        await asyncio.sleep(1)
        assert engine.running == 1  # children run in their parent's slot
        await handle.cancel("all of it")
        await handle.outcome()
        assert sorted(stopped) == ["child", "second"]
        assert [one.state for one in tracker.find()] == ["cancelled"] * 4

    play(scenario, slots={"total": 1})


@pytest.mark.parametrize("limits", [{"total_s": 5.0}, {"phase_s": 5.0}])
def test_a_parent_that_times_out_takes_its_children_along(play, limits):
    """A parent's deadline cancels its children, which have not reached theirs."""

    async def scenario(engine, tracker):
        async def parent(run):
            await run.child(sleeps)

        with pytest.raises(ExecutionTimedOut):
            await engine.run(parent, timeouts=limits, **WHO)
        assert sorted(one.state for one in tracker.find()) == ["cancelled", "timed_out"]

    play(scenario)


@pytest.mark.parametrize("ends", ["returns", "fails", "is tried again", "falls back"])
@pytest.mark.parametrize("does", ["sleeps", "asks"])
def test_a_child_that_its_agent_forgot_is_called_off(play, does, ends):
    """However an agent comes to its end, a child that it left running is called off: it had the agent's slot."""

    async def scenario(engine, tracker):
        left = []

        async def child(run):
            await (sleeps(run) if does == "sleeps" else run.ask("shall I?"))

        async def parent(run):
            if run.attempt == 1 and not left:
                left.append(asyncio.ensure_future(run.child(child)))
                await asyncio.sleep(1)
                if ends != "returns":
                    raise ConnectionError("reset")
            return "done"

        options = {
            "is tried again": {"retry": {"attempts_max": 2, "backoff_s": 0.5}},
            "falls back": {"fallback": parent},
        }
        handle = await engine.submit(parent, **WHO, **options.get(ends, {}))
        await handle.outcome()
        await asyncio.wait(left)
        assert left[0].cancelled() or isinstance(left[0].exception(), ExecutionCancelled)
        one = only(tracker, agent="child")
        assert one.state == "cancelled"
        cancel = next(row for row in tracker.history(one.id) if row.event == "cancel")
        if ends != "fails":  # a failed parent's children are cancelled by the table as well
            assert cancel.payload["reason"] == "the agent that started it has come to its end"
        assert handle.state == ("failed" if ends == "fails" else "completed")

    play(scenario, slots={"total": 1})


def test_a_child_that_is_born_while_its_agent_ends_is_called_off(play):
    """A child whose birth is under way when its agent comes to its end is called off, or never born."""

    async def scenario(engine, tracker):
        left = []

        async def parent(run):
            left.append(asyncio.ensure_future(run.child(sleeps)))
            await asyncio.sleep(0)

        await engine.run(parent, **WHO)
        await asyncio.wait(left)
        assert left[0].cancelled() or isinstance(left[0].exception(), FsmError)
        assert {one.state for one in tracker.find(agent="sleeps")} <= {"cancelled"}

    play(scenario)


def test_a_childs_failure_is_raised_in_the_parent_and_seen(play):
    """A child's error is raised where the parent waits for it, and closes the parent's tool."""

    async def scenario(engine, tracker):
        async def child(run, number):
            raise ValueError(f"no {number}")

        async def parent(run):
            with pytest.raises(ValueError, match="no 7"):
                await run.child(child, 7)
            return "all the same"

        handle = await engine.submit(parent, **WHO)
        assert await handle == "all the same"
        closed = next(row for row in tracker.history(handle.id) if row.event == "close_tool")
        assert (closed.payload["ok"], closed.payload["error"]) == (False, "ValueError: no 7")
        (one,) = tracker.find(parent_id=handle.id)
        assert (one.state, one.user_id, one.thread_id) == ("failed", "ada", "t")

    play(scenario)


# --- generators -----------------------------------------------------------------------------------------------


async def counts(run, count, pause_s=1.0):
    for number in range(count):
        await asyncio.sleep(pause_s)
        yield number


def test_a_stream_yields_as_it_comes(play):
    """Each item reaches the reader when it is yielded, not at the end."""

    async def scenario(engine, tracker):
        loop = asyncio.get_running_loop()
        begun = loop.time()
        seen = [(item, round(loop.time() - begun)) async for item in engine.stream(counts, 3, **WHO)]
        assert seen == [(0, 1), (1, 2), (2, 3)]
        assert only(tracker).state == "completed"

    play(scenario)


def test_run_collects_what_a_generator_yields(play):
    """Whoever runs a generator without streaming gets the list of its items."""

    async def scenario(engine, tracker):
        assert await engine.run(counts, 4, **WHO) == [0, 1, 2, 3]
        assert last(tracker, only(tracker).id)["result"] == [0, 1, 2, 3]

    play(scenario)


@pytest.mark.parametrize("how", ["aclose", "cancel"])
def test_a_reader_that_goes_away_calls_the_execution_off(play, how):
    """A stream that nobody reads any more is cancelled, and its generator is closed."""

    async def scenario(engine, tracker):
        closed = []

        async def agent(run):
            try:
                for number in range(1000):
                    yield number
                    await asyncio.sleep(1 if number > 5 else 0)
            finally:
                closed.append(run.id)

        async def read():
            stream = engine.stream(agent, **WHO)
            try:
                async for item in stream:
                    if item == 5 and how == "aclose":
                        break
            finally:
                await stream.aclose()

        reader = asyncio.ensure_future(read())
        await asyncio.sleep(0.5)
        if how == "cancel":
            await asyncio.sleep(8)
            reader.cancel()
        await asyncio.wait({reader})
        assert closed == [only(tracker).id]
        assert only(tracker).state == "cancelled"

    play(scenario)


def test_an_agent_is_not_far_ahead_of_its_reader(play):
    """An agent that yields faster than it is read waits: what lies between is bounded."""

    async def scenario(engine, tracker):
        made = []

        async def agent(run):
            for number in range(500):
                made.append(number)
                yield number

        stream = engine.stream(agent, **WHO)
        assert await anext(stream) == 0
        await asyncio.sleep(60)
        assert 60 < len(made) < 70
        assert [item async for item in stream] == list(range(1, 500))

    play(scenario)


def test_an_error_comes_after_the_items(play):
    """A generator that fails half way has yielded what it yielded, and then its error is raised."""

    async def scenario(engine, tracker):
        async def agent(run):
            yield 1
            yield 2
            raise ValueError("no third")

        seen = []
        with pytest.raises(ValueError, match="no third"):  # noqa: PT012 - the loop is what raises
            async for item in engine.stream(agent, **WHO):
                seen.append(item)  # noqa: PERF401 - what came before the error counts
        assert seen == [1, 2]

    play(scenario)


def test_items_are_signs_of_life(play):
    """Each item begins the idle limit anew; a pause that is longer than it ends the execution."""

    async def scenario(engine, tracker):
        assert len(await engine.run(counts, 20, timeouts={"idle_s": 3.0}, **WHO)) == 20
        with pytest.raises(ExecutionTimedOut, match="idle"):
            await engine.run(counts, 20, 4.0, timeouts={"idle_s": 3.0}, **WHO)

    play(scenario)


# --- the queue ------------------------------------------------------------------------------------------------


def test_the_queue_is_bounded(play):
    """However fast they come, no more wait than may, and those that are turned away are not created."""

    async def scenario(engine, tracker):
        results = await asyncio.gather(
            *(engine.submit(sleeps, **WHO) for _ in range(10)), return_exceptions=True
        )
        assert sum(isinstance(one, EngineFull) for one in results) == 7
        assert len(tracker.find()) == 3
        assert (engine.running, engine.queued) == (1, 2)
        await engine.close()

    play(scenario, slots={"total": 1, "queued_max": 2})


@pytest.mark.parametrize("resumable", [False, True])
def test_a_close_before_the_first_step(play, resumable):
    """An engine that is closed in the very moment after a submit ends what was submitted, or leaves it to others."""

    async def scenario(engine, tracker):
        @engine.agent(resumable=resumable, retry={"attempts_max": 2 if resumable else 1})
        async def agent(run):
            await sleeps(run)

        handles = [await engine.submit(agent, **WHO) for _ in range(3)]
        await engine.close()
        for handle in handles:
            assert (await handle.outcome()).state == ("queued" if resumable else "cancelled")
        for one in tracker.find(state="queued"):
            assert one.owner is None
            tracker.fire(one.id, "cancel")

    for seed in range(5):
        play(scenario, seed=seed, slots={"total": 2})
