"""Questions that were answered before: which answer belongs to which question, when an agent is run again."""

from __future__ import annotations

import pytest

from fsm.engine import Engine
from fsm.tracker.process import get_tracker
from tests.support.framework_tools import ADA, on_loop, payloads, until


def run_again(agent, answers):
    """Let a person give all answers but the last one, lose the worker, give the last one, and go on elsewhere."""

    async def main():
        async with Engine() as gone:
            handle = await gone.agent(agent, name="asker", resumable=True).submit(**ADA)
            for at, answer in enumerate(answers[:-1], 2):
                await until(lambda: handle.state == "awaiting_input")
                get_tracker().fire(handle.id, "receive_input", **answer)
                await until(lambda at=at: len(payloads("await_input")) == at)
        get_tracker().fire(handle.id, "receive_input", **answers[-1])
        async with Engine() as engine:
            engine.agent(agent, name="asker", resumable=True)
            (adopted,) = await engine.adopt()
            return await adopted.result()

    return on_loop(main)


@pytest.fixture(autouse=True)
def fresh(tracker):
    """Every test has a tracker of its own in memory."""
    return tracker


@pytest.mark.parametrize("data", [None, {"eur": 12}])
def test_the_same_question_twice_has_two_answers(data):
    """Asked in the same order again, each gets its own, and nobody is asked once more."""

    async def agent(run):
        return [(await run.ask("Sure?", data=data)).approved for _ in range(2)]

    assert run_again(agent, [{"verdict": "approved"}, {"verdict": "refused"}]) == [True, False]
    assert len(payloads("await_input")) == 2


def test_an_agent_that_remembers_by_itself_asks_for_the_later_answer():
    """Whoever goes on at the second question gets the second answer, although both have one text."""
    done = []

    async def agent(run):
        while len(done) < 2:
            done.append((await run.ask("Sure?", data={"number": len(done)})).approved)
        return done

    assert run_again(agent, [{"verdict": "approved"}, {"verdict": "refused"}]) == [True, False]
    assert len(payloads("await_input")) == 2
