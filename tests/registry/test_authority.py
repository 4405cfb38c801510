"""Who may fire what is in the table: the owner with its fence, the system, or anyone; and what an end means is too."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fsm import EXECUTION, Engine, Machine, Refused
from fsm.errors import ConfigurationError
from fsm.machine.grammar import row, state
from fsm.testing import fresh_tracker

MINE: dict[str, Any] = {"user_id": "ada", "thread_id": "t"}
OWNERS = sorted({arrow.event for arrow in EXECUTION.arrows if arrow.by == "owner"})


def claimed(tracker, **more: Any):
    one = tracker.create("agent", **MINE, **more).id
    return one, tracker.fire(one, "start").fence


def test_every_row_of_the_execution_says_who_may_fire_it() -> None:
    """Only a claim, an answer and a cancel are anyone's; time and loss are the system's; the rest is the owner's."""
    by = {
        kind: {arrow.event for arrow in EXECUTION.arrows if arrow.by == kind} for kind in ("anyone", "system")
    }
    assert by["system"] == {"time_out", "lapse"}
    assert by["anyone"] == {"connect", "validate", "start", "receive_input", "cancel"}
    claims = {arrow.event for arrow in EXECUTION.arrows if "claim" in arrow.assign}
    assert by["anyone"] - claims == {"receive_input", "cancel"}


def test_a_zombie_that_omits_its_fence_is_refused_whatever_it_fires(either) -> None:
    """After a claim no event of the owner is taken without the current fence, in any state that can be reached."""
    one, fence = claimed(either)
    for way in ("think", "call_model", "run_tools", "process_results", "finish"):
        for event in OWNERS:
            with pytest.raises(Refused) as caught:
                either.fire(one, event)
            assert caught.value.reason in {"fenced", "not_allowed", "guard"}
            assert not set(caught.value.allowed) & set(OWNERS) or caught.value.reason != "fenced"
        either.fire(one, way, fence=fence)
    either.fire(one, "complete", fence=fence)


def test_a_zombie_cannot_end_what_waits_for_another_worker(either) -> None:
    """Once an execution was claimed, its old worker cannot fail it in the queue, with or without a fence."""
    one, fence = claimed(either, retry={"attempts_max": 2, "backoff_s": 0.0})
    either.fire(one, "lapse")
    for given in ({}, {"fence": fence}):
        with pytest.raises(Refused) as caught:
            either.fire(one, "fail", error="late", **given)
        assert caught.value.reason == "fenced"
    assert either.get(one).state == "queued"
    either.fire(one, "fail", fence=either.get(one).fence, error="an operator gives up")


def test_a_user_fires_nothing_of_the_system(either) -> None:
    """A tracker that is narrowed to a user neither times out nor lapses, and is not told that it could."""
    one, _ = claimed(either)
    mine = either.for_user("ada")
    for event in ("time_out", "lapse"):
        with pytest.raises(Refused) as caught:
            mine.fire(one, event)
        assert caught.value.reason == "forbidden"
        assert event not in caught.value.allowed
        assert event not in mine.allowed(one)
        assert event in either.allowed(one)
    assert either.get(one).version == 1


def test_an_answer_goes_on_with_the_attempt_that_asked(either) -> None:
    """A worker that is lost while a person is asked costs no attempt: there is no second attempt of one."""
    one, fence = claimed(either)
    either.fire(one, "think", fence=fence)
    either.fire(one, "await_input", fence=fence, question="Pay?")
    either.fire(one, "lapse")
    for event in ("open_tool", "progress"):
        with pytest.raises(Refused) as caught:
            either.fire(one, event, fence=either.get(one).fence)
        assert caught.value.reason == "guard"
    either.fire(one, "receive_input", verdict="approved")
    waiting = either.get(one)
    assert (waiting.state, waiting.open_tools, waiting.attempt) == ("queued", (), 1)
    again = either.fire(one, "start")
    assert (again.attempt, again.fence) == (1, fence + 2)
    assert either.fire(one, "fail", fence=again.fence, error="x", retryable=True).target == "failed"


def test_a_call_behind_an_open_breaker_keeps_to_its_attempts(either) -> None:
    """A model call that was tripped in its last attempt is not made again."""
    one, fence = claimed(either, retry={"model_attempts_max": 1})
    either.fire(one, "call_model", fence=fence)
    either.fire(one, "trip", fence=fence)
    with pytest.raises(Refused, match="no attempt of this model call is left"):
        either.fire(one, "call_model", fence=fence)
    assert either.get(one).model_attempt == 1


# --- what an end means --------------------------------------------------------------------------------------------

JOB = Machine(
    name="job",
    initial="waiting",
    states=(
        state("waiting", "pending"),
        state("working", "running"),
        state("halting", "stopping", "grace"),
        state("done", "terminal"),
        state("broken", "terminal"),
        state("late", "terminal"),
        state("dropped", "terminal", outcome="cancelled"),
    ),
    transitions=(
        row("waiting", "start", "working", assign="claim"),
        row("working", "complete", "done", by="owner"),
        row("working", "progress", by="owner"),
        row("waiting working", "fail", "broken"),
        row("waiting working", "time_out", "late", by="system"),
        row("working", "lapse", "waiting", assign="release", by="system"),
        row("waiting", "cancel", "dropped"),
        row("working", "cancel", "halting"),
        row("halting", "stopped", "dropped"),
        row("halting", "fail", "dropped"),
        row("halting", "time_out", "dropped", by="system"),
        row("halting", "lapse", "dropped", by="system"),
    ),
)


def test_undeclared_outcomes_follow_from_the_events() -> None:
    """A terminal state that declares no outcome has that of the events which lead to it."""
    assert dict(JOB.outcomes) == {
        "done": "success",
        "broken": "error",
        "late": "timeout",
        "dropped": "cancelled",
    }
    assert dict(EXECUTION.outcomes)["dead"] == "lost"


def test_a_machine_that_says_nothing_new_keeps_its_hash() -> None:
    """The words that came later into the grammar count in a machine's hash only where they are used."""
    plain = Machine(name="m", initial="a", states=(state("a", "running"), state("b", "terminal")),
                    transitions=(row("a", "go", "b"), row("a", "cancel", "b")))  # fmt: skip
    assert (
        plain.content_hash == "5f36da139482fbeb14586b0f5414e0c3"
    )  # as before there were outcomes and authorities
    owned = plain.model_copy(
        update={"transitions": (row("a", "go", "b", by="owner"), row("a", "cancel", "b"))}
    )
    assert owned.content_hash != plain.content_hash


def test_an_agent_on_a_machine_of_its_own_returns_its_result() -> None:
    """A success is what the machine declares, whatever the state is called; so are the other ends."""

    async def work(run, word):
        if word == "bad":
            raise ValueError(word)
        return word.upper()

    async def scenario() -> None:
        async with Engine(tracker) as engine:
            assert await engine.run(work, "good", machine="job", **MINE) == "GOOD"
            with pytest.raises(ValueError, match="bad"):
                await engine.run(work, "bad", machine="job", **MINE)

    with fresh_tracker(machines=[JOB]) as tracker:
        asyncio.run(scenario())
        good, bad = tracker.find()
        assert (good.state, good.ended_as, good.succeeded, good.result) == ("done", "success", True, "GOOD")
        assert (bad.state, bad.ended_as, bad.succeeded) == ("broken", "error", False)


def test_what_is_queued_on_another_machine_is_adopted(url) -> None:
    """A serving engine goes on with executions of every machine that it knows, not of the first one only."""

    async def work(run, word):
        return word

    async def scenario() -> None:
        async with Engine(tracker) as engine:
            engine.agent(work, name="worker", resumable=True)
            (handle,) = await engine.adopt()
            assert await handle == "again"

    retried = JOB.extend(name="retried", transitions=(row("waiting", "enqueue", "waiting"),))
    with fresh_tracker(url, machines=[retried]) as tracker:
        called = {"called_with": {"args": ["again"], "kwargs": {}}}
        one = tracker.create("worker", machine="retried", metadata=called, **MINE)
        tracker.fire(one.id, "enqueue")
        asyncio.run(scenario())
        assert tracker.get(one.id).ended_as == "success"


def test_an_effect_that_nothing_carries_out_is_refused() -> None:
    """A typo in an effect's name is found when the machine is registered, not dropped when it is due."""
    typo = Machine(name="m", initial="a", states=(state("a", "running"), state("b", "terminal")),
                   transitions=(row("a", "cancel", "b", effects="cancel_childern"),))  # fmt: skip
    with pytest.raises(ConfigurationError, match="cancel_childern"), fresh_tracker(machines=[typo]):
        pytest.fail("it was registered")
