"""What the tests of the pydantic-ai integration run: scripted models, an agent, an engine in virtual time."""

from __future__ import annotations

import asyncio
from itertools import groupby

from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import DeltaToolCall, FunctionModel

from fsm import get_tracker
from fsm.engine import Engine
from fsm.simulation.loop import SteppedLoop

ADA = {"user_id": "ada", "thread_id": "t"}
ONE_CALL = "starting calling_model thinking running_tools processing_results"


def call(*names, **args):
    """A model's answer that calls tools."""
    return ModelResponse([ToolCallPart(name, args) for name in names])


def said(text="done"):
    return ModelResponse([TextPart(text)])


def scripted(*turns, name="scripted"):
    """A model whose requests come to these, one after the other; streamed, too.

    (A function that is not async would run in a thread, and there is none in virtual time.)
    """

    async def answer(messages, info):
        turn = turns[sum(isinstance(message, ModelResponse) for message in messages)]
        if isinstance(turn, Exception):
            raise turn
        return turn

    async def stream(messages, info):
        for at, part in enumerate((await answer(messages, info)).parts):
            if isinstance(part, TextPart):
                for letter in part.content:
                    yield letter
            else:
                yield {at: DeltaToolCall(name=part.tool_name)}
                for letter in part.args_as_json_str():
                    yield {at: DeltaToolCall(json_args=letter)}

    return FunctionModel(answer, stream_function=stream, model_name=name)


def an_agent(*turns, **options):
    """An agent with the tools `one` and `two`, which come to 1 and 2, and `bad`, which raises what `bad.error` is."""
    agent = Agent(scripted(*turns), **options)

    @agent.tool_plain
    async def one() -> int:
        await asyncio.sleep(1)
        return 1

    @agent.tool_plain
    async def two(of: int = 1) -> int:
        await asyncio.sleep(5)
        return 2 * of

    return agent


def perform(function, prompt="hi", *, for_real=False):
    """Run an agent function on an engine; return its result, or what it raised.

    Time is virtual, unless it is for real: a store on a disk needs threads.
    """

    async def main():
        try:
            return await Engine().run(function, prompt, **ADA)
        except Exception as error:  # noqa: BLE001 - it is what the test asks about
            return error

    with asyncio.Runner(loop_factory=None if for_real else lambda: SteppedLoop(0)) as runner:
        return runner.run(main())


def the_only(tracker=None):
    """The one execution that there is; whatever it came to, nothing of it is open."""
    tracker = tracker or get_tracker()
    (only,) = tracker.find()
    assert only.ended
    assert only.open_tools == ()
    return only


def journal(tracker=None):
    tracker = tracker or get_tracker()
    return tracker.history(the_only(tracker).id)


def states(tracker=None):
    """The states that it went through, after its creation."""
    return " ".join(state for state, _ in groupby(one.target for one in journal(tracker)[1:]))


def payloads(event, tracker=None):
    return [one.payload for one in journal(tracker) if one.event == event]


def tokens():
    """What the requests used, in their order."""
    data = [one.payload.get("data") for one in journal()]
    return [one for one in data if isinstance(one, dict) and "input_tokens" in one]


def notes(text):
    return [one["data"] for one in payloads("progress") if one.get("note") == text]


def answered(function, answers):
    """Run an agent function while a person answers its questions, by their text."""
    asked = []

    async def main():
        tracker = get_tracker()
        handle = await Engine().submit(function, "hi", **ADA)
        outcome = asyncio.ensure_future(handle.result())
        for _ in range(1000):
            if outcome.done():
                break
            if tracker.get(handle.id).state == "awaiting_input":
                question = tracker.history(handle.id)[-1].payload["question"]
                asked.append(question)
                tracker.fire(handle.id, "receive_input", by="bob", **answers[question])
            await asyncio.sleep(1)
        return await outcome

    with asyncio.Runner(loop_factory=lambda: SteppedLoop(0)) as runner:
        return runner.run(main()), asked
