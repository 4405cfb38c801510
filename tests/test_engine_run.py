"""What an agent does with its run: the journal is what a reader would expect, and every cancel arrives."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from engine_tools import WHO, events, in_memory, last, legal, only, simulated, states

from fsm.breakers import Backoff, Consecutive, Policy
from fsm.engine import RunOver, current_run
from fsm.errors import (
    BreakerOpen,
    EngineFull,
    ExecutionCancelled,
    ExecutionTimedOut,
    LimitReached,
    PrerequisiteFailed,
)


@pytest.fixture(params=[in_memory, simulated], ids=["memory", "simulated"])
def play(request):
    """Run a scenario in virtual time, on a store that commits at once or on one that takes its time."""
    return request.param


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


# --- retry and fallback ---------------------------------------------------------------------------------------


def test_attempts_with_a_backoff_that_holds_no_slot(play):
    """A failed attempt is tried again after its backoff, during which others have the slot."""

    async def scenario(engine, tracker):
        begun = []

        async def flaky(run):
            begun.append(run.attempt)
            assert current_run() is run
            if run.attempt < 3:
                raise OSError("not yet")
            return run.attempt

        async def quick(run):
            return "in between"

        handle = await engine.submit(flaky, retry={"attempts_max": 3, "backoff_s": 10.0}, **WHO)
        await asyncio.sleep(1)
        assert (handle.state, engine.running) == ("queued", 0)
        assert await engine.run(quick, **WHO) == "in between"
        assert await handle == 3
        assert begun == [1, 2, 3]
        assert (await handle.outcome()).attempts == 3
        assert states(tracker, handle.id).count("queued") == 2

    play(scenario, slots={"total": 1})


def test_a_run_ends_with_its_attempt(play):
    """What a failed attempt left running has no say in the next one."""

    async def scenario(engine, tracker):
        met = []

        async def branch(run):
            await asyncio.sleep(5)
            try:
                await run.progress("from the first attempt")
            except RunOver:
                met.append(run.over)

        async def agent(run):
            if run.attempt == 1:
                asyncio.ensure_future(branch(run))  # noqa: RUF006 - it is forgotten, that is the point
                await run.tool("left open").__aenter__()
                raise OSError("no")
            async with run.tool("search"):
                await asyncio.sleep(20)

        handle = await engine.submit(agent, retry={"attempts_max": 2, "backoff_s": 1.0}, **WHO)
        await handle
        assert met == [True]
        assert events(tracker, handle.id)[-4:] == ["close_tool", "process_results", "finish", "complete"]

    play(scenario)


async def fails(run, *args):
    raise OSError("no network")


async def stands_in(run, *args):
    async with run.model("other", breaker=False):
        pass
    return "from the other one"


@pytest.mark.parametrize(
    ("fallback", "result", "to"),
    [(stands_in, "from the other one", "stands_in"), ("sorry", "sorry", "result"), (None, None, "result")],
)
def test_a_fallback_takes_the_place_when_attempts_are_used_up(play, fallback, result, to):
    """A function, a value, and None as a value: each takes the agent's place after its last attempt."""

    async def scenario(engine, tracker):
        handle = await engine.submit(
            fails, 1, fallback=fallback, retry={"attempts_max": 2, "backoff_s": 1.0}, **WHO
        )
        outcome = await handle.outcome()
        assert (outcome.result, outcome.fallback, outcome.attempts) == (result, True, 2)
        assert isinstance(outcome.error, OSError)
        rows = tracker.history(handle.id)
        back = next(row for row in rows if row.event == "fall_back")
        assert (back.payload["to"], back.payload["error"]) == (to, "no network")
        assert last(tracker, handle.id)["outcome"] == "fallback"

    play(scenario)


def test_a_fallback_that_fails_is_the_end(play):
    """A fallback's error is the execution's, and is not tried again."""

    async def scenario(engine, tracker):
        async def worse(run, *args):
            raise KeyError("worse")

        handle = await engine.submit(
            fails, fallback=worse, retry={"attempts_max": 5, "backoff_s": 1.0}, retry_of=None, **WHO
        )
        with pytest.raises(KeyError, match="worse"):
            await handle
        assert events(tracker, handle.id).count("fall_back") == 1
        assert events(tracker, handle.id)[-1] == "fail"

    play(scenario)


def test_limit_reached_has_a_fallback_too(play):
    """An agent that used up its turns can be stood in for."""

    async def scenario(engine, tracker):
        async def agent(run):
            raise LimitReached("turns")

        assert await engine.run(agent, fallback="so far", **WHO) == "so far"

    play(scenario)


# --- checks ---------------------------------------------------------------------------------------------------


def _raises(run):
    raise PermissionError("not for you")


async def _says(run):
    await asyncio.sleep(1)
    return "ask somebody else"


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (_says, "ask somebody else"),
        (lambda _: "no", "no"),
        (lambda _: False, "<lambda> said no"),
        (_raises, "PermissionError: not for you"),
    ],
    ids=["async text", "text", "false", "exception"],
)
def test_a_check_refuses_before_the_agent_begins(play, hook, reason):
    """A check that says no ends the execution as refused, in validating, and the agent never begins."""

    async def scenario(engine, tracker):
        begun = []

        async def agent(run):
            begun.append(run)

        with pytest.raises(PrerequisiteFailed, match=reason):
            await engine.run(agent, before=[lambda _: None, hook], retry={"attempts_max": 3}, **WHO)
        one = only(tracker)
        assert not begun
        assert states(tracker, one.id) == ["created", "validating", "failed"]
        assert last(tracker, one.id)["outcome"] == "refused"

    play(scenario)


def test_checks_that_agree_let_the_agent_begin(play):
    """With checks the journal shows validating, then starting."""

    async def scenario(engine, tracker):
        async def agent(run):
            return 1

        async def fine(run):
            await run.log("looked at")
            return True

        assert await engine.run(agent, before=[fine], after=[lambda _run, _result: None], **WHO) == 1
        assert states(tracker, only(tracker).id)[:3] == ["created", "validating", "starting"]

    play(scenario)


def test_a_result_that_a_check_refuses_is_none(play):
    """A check of the result that says no ends the execution as refused."""

    async def scenario(engine, tracker):
        async def agent(run):
            return "a secret"

        with pytest.raises(PrerequisiteFailed, match="it tells a secret"):
            await engine.run(agent, after=[lambda _, result: f"it tells {result}"], **WHO)
        assert last(tracker, only(tracker).id)["outcome"] == "refused"

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


# --- breakers -------------------------------------------------------------------------------------------------

ONE = Policy(trip=Consecutive(failures=1), cooldown_s=30.0, cooldown_max_s=600.0, jitter=0.0)


def test_an_open_breaker_gives_the_slot_back_and_another_model_is_taken(play):
    """Without a permit the execution is circuit_open and holds no slot; the agent goes on with another model."""

    async def scenario(engine, tracker):
        tracker.breakers.force_open("big")
        held = []

        async def agent(run):
            with pytest.raises(BreakerOpen):
                async with run.model("big"):
                    pass
            held.append((run.state, engine.running))
            async with run.model("small"):
                held.append((run.state, engine.running))

        await engine.run(agent, **WHO)
        assert held == [("circuit_open", 0), ("calling_model", 1)]
        assert states(tracker, only(tracker).id)[2:5] == ["circuit_open", "calling_model", "thinking"]

    play(scenario)


def test_a_call_that_opens_the_breaker_trips(play):
    """An error that opens the breaker is in the journal as a trip, and goes on to the agent."""

    async def scenario(engine, tracker):
        tracker.breakers.declare("*", ONE)

        async def agent(run):
            with pytest.raises(ConnectionError):
                async with run.model("big"):
                    raise ConnectionError("reset")
            return run.state

        assert await engine.run(agent, **WHO) == "circuit_open"
        assert "trip" in events(tracker, only(tracker).id)

    play(scenario)


def test_call_model_backs_off_without_a_slot(play):
    """Between two tries of a model call the execution is backing_off, and others have its slot."""

    async def scenario(engine, tracker):
        tries = []

        async def call():
            tries.append(len(tries))
            if len(tries) < 3:
                raise ConnectionError("reset")
            return "said"

        async def agent(run):
            backoff = Backoff(attempts=3, initial_s=100.0, max_s=100.0)
            return await run.call_model("big", call, backoff=backoff)

        async def looks():
            seen = Counter()
            while not handle.done:
                seen[handle.state, engine.running] += 1
                await asyncio.sleep(0.1)
            return seen

        handle = await engine.submit(agent, **WHO)
        seen = await looks()
        assert await handle == "said"
        # The commit comes just before the slot is given back: at most one look per wait may fall in between.
        assert seen["backing_off", 0] > 2 >= seen["backing_off", 1]
        assert events(tracker, handle.id).count("back_off") == 2

    play(scenario, slots={"total": 1})


def test_a_cancelled_call_gives_its_probe_back(play):
    """A model call that is cancelled while it is the breaker's probe leaves the probe to the next caller."""

    async def scenario(engine, tracker):
        tracker.breakers.declare("*", ONE)

        async def trips(run):
            async with run.model("big"):
                raise ConnectionError("reset")

        async def calls(run):
            async with run.model("big"):
                await asyncio.sleep(1e5)

        with pytest.raises(ConnectionError):
            await engine.run(trips, **WHO)
        await asyncio.sleep(31)
        for _ in range(2):
            handle = await engine.submit(calls, **WHO)
            await asyncio.sleep(1)
            assert tracker.breakers.get("big").row.state == "half_open"
            assert len(tracker.breakers.get("big").row.probes) == 1
            await handle.cancel()
            await handle.outcome()
            assert tracker.breakers.get("big").row.probes == ()

    play(scenario)


# --- several things at once -------------------------------------------------------------------------------------


async def _tool(run, name, seconds):
    async with run.tool(name):
        await asyncio.sleep(seconds)


async def _model(run, name, seconds):
    async with run.model(name):
        await asyncio.sleep(seconds)


async def _ask(run, question, seconds):
    await asyncio.sleep(seconds)
    return (await run.ask(question)).text


PARALLEL = {
    "tools": (
        [(_tool, "a", 1), (_tool, "b", 2), (_tool, "c", 3)],
        ["starting", "thinking", "running_tools", "processing_results"],
    ),
    "models": ([(_model, "a", 1), (_model, "b", 2)], ["starting", "calling_model", "thinking"]),
    "a tool that outlives a model": (
        [(_model, "a", 1), (_tool, "b", 2)],
        ["starting", "calling_model", "running_tools", "processing_results"],
    ),
    "a model that outlives a tool": (
        [(_model, "a", 2), (_tool, "b", 1)],
        ["starting", "calling_model", "thinking"],
    ),
}


@pytest.mark.parametrize("name", PARALLEL)
def test_several_things_at_once(name):
    """Tools and models at once: the journal's states are those that a reader would expect."""
    branches, expected = PARALLEL[name]

    async def scenario(engine, tracker):
        async def agent(run):
            pending = []
            for branch, *args in branches:
                pending.append(asyncio.ensure_future(branch(run, *args)))
                await asyncio.sleep(0.1)
            await asyncio.gather(*pending)

        await engine.run(agent, **WHO)
        seen = states(tracker, only(tracker).id)
        inside = seen[1 : 1 + len(expected)]
        assert (
            inside
            == [one for one in expected if one in seen]
            == [one for one in expected if one != "thinking" or one in seen]
        )
        assert events(tracker, only(tracker).id).count("close_tool") == sum(
            one[0] is _tool for one in branches
        )

    in_memory(scenario)
    simulated(scenario)


def test_a_model_inside_a_tool(play):
    """A tool that calls a model is running_tools again when the model has answered."""

    async def scenario(engine, tracker):
        async def agent(run):
            async with run.tool("summarise"):
                await _model(run, "small", 1)
                await asyncio.sleep(1)

        await engine.run(agent, **WHO)
        assert states(tracker, only(tracker).id)[2:-2] == [
            "thinking", "running_tools", "calling_model", "running_tools", "processing_results",
        ]  # fmt: skip

    play(scenario)


def test_two_questions_and_a_tool_at_once(play):
    """Two branches ask at once: one question after the other is shown, tools go on, and each gets its answer."""

    async def scenario(engine, tracker):
        async def agent(run):
            return await asyncio.gather(
                _ask(run, "first?", 0.1), _ask(run, "second?", 0.2), _tool(run, "search", 30)
            )

        handle = await engine.submit(agent, **WHO)
        for answer in ("one", "two"):
            await asyncio.sleep(2)
            assert handle.state == "awaiting_input"
            await tracker.aio.fire(handle.id, "receive_input", text=answer)
        assert (await handle)[:2] == ["one", "two"]
        assert events(tracker, handle.id).count("await_input") == 2
        legal(tracker, handle.id)

    play(scenario, slots={"total": 1})


def test_branches_that_wait_for_the_slot_take_one(play):
    """After a question several branches go on: they share the execution's one slot."""

    async def scenario(engine, tracker):
        async def agent(run):
            await asyncio.gather(_ask(run, "?", 0), *(_late_tool(run) for _ in range(5)))

        async def _late_tool(run):
            await asyncio.sleep(1)
            await _tool(run, "t", 10)

        async def other(run):
            await asyncio.sleep(20)

        handle = await engine.submit(agent, **WHO)
        await asyncio.sleep(2)
        between = await engine.submit(other, **WHO)
        await asyncio.sleep(1)
        await tracker.aio.fire(handle.id, "receive_input", text="yes")
        await asyncio.sleep(5)
        assert (engine.running, engine.queued) == (1, 1)
        await between
        await asyncio.sleep(1)
        assert (engine.running, engine.queued) == (1, 0)
        await handle

    play(scenario, slots={"total": 1})
