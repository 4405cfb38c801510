"""The engine: runs agents of every kind, each as an execution of the one table.

    from fsm import Engine

    engine = Engine()

    async def support(run, question):
        async with run.model("openai:gpt-5"):
            ...
        async with run.tool("find_order", arguments={"number": 4711}) as call:
            call.result = ...
        answer = await run.ask("Refund 120 EUR?", expires_s=3600)
        return "Your parcel arrives on Tuesday."

    result = await engine.run(support, "Where is my parcel?", user_id="ada", thread_id="t-1")

Whatever the agent does, its execution ends through the table: with its result, its error, a deadline that really
cancels it, a cancel, or the end of the process.
"""

from fsm.engine.admission import Slots
from fsm.engine.calls import ModelPhase, ToolPhase
from fsm.engine.engine import Engine, Registered
from fsm.engine.errors import RunOver
from fsm.engine.handle import Handle
from fsm.engine.outcome import Late, Outcome
from fsm.engine.recorder import Recorder
from fsm.engine.run import Answer, Run, current_run
from fsm.engine.threads import SyncRun

__all__ = [
    "Answer",
    "Engine",
    "Handle",
    "Late",
    "ModelPhase",
    "Outcome",
    "Recorder",
    "Registered",
    "Run",
    "RunOver",
    "Slots",
    "SyncRun",
    "ToolPhase",
    "current_run",
]
