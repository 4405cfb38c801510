"""Attempts, what takes an agent's place, and the checks around it."""

from __future__ import annotations

import asyncio

import pytest

from fsm.engine import RunOver, current_run
from fsm.errors import (
    LimitReached,
    PrerequisiteFailed,
)
from tests.support.engine_tools import WHO, events, last, only, states

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


def test_a_fallback_that_fails_takes_no_attempt_that_is_left(play):
    """What cannot be tried again has its fallback at once; that one's failure is the end, attempts left or not."""

    async def scenario(engine, tracker):
        async def agent(run):
            raise ValueError("for good")

        async def worse(run):
            raise OSError("might go away")

        with pytest.raises(OSError, match="might"):
            await engine.run(agent, fallback=worse, retry={"attempts_max": 5}, **WHO)
        one = only(tracker)
        assert (one.state, one.attempt, events(tracker, one.id)[-2:]) == ("failed", 1, ["fall_back", "fail"])

    play(scenario, retry_on=(OSError,))
