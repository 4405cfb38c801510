"""FSM017: events of executions that are sent to browsers by hand."""

from __future__ import annotations

import ast
import re
from typing import Final

from fsm.audit.context import FileContext
from fsm.audit.names import snake
from fsm.audit.rule import Rule
from fsm.audit.scopes import last_name, string_of

CODE: Final = "FSM017"
_SENDS: Final = re.compile(r"^_*(a?send|emit|broadcast|publish|push|notify)(_|$)")
_KEYS: Final = {"type", "event", "event_type", "kind", "status"}
_EVENT: Final = re.compile(
    r"^(agent|run|execution|task|job|tool|workflow|step)_?(is_)?(started|thinking|executing|running|completed|finished|failed"
    r"|cancelled|error|timed_out|queued|paused)$"
)


def check(context: FileContext) -> None:
    """Report calls that send a message whose type says that an execution has changed."""
    if context.source.is_test:
        return
    for scope in context.scopes:
        for call in scope.of(ast.Call):
            name = last_name(call.func)
            if _SENDS.match(name) and (event := _event(call)):
                context.report(
                    CODE, call, f"{name}() sends the event {event!r} by hand, beside the journal", scope
                )


def _event(call: ast.Call) -> str:
    values: list[ast.expr] = list(call.args[:2])
    for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
        if isinstance(argument, ast.Dict):
            pairs = zip(argument.keys, argument.values, strict=True)
            values += [value for key, value in pairs if string_of(key) in _KEYS]
    values += [keyword.value for keyword in call.keywords if keyword.arg in _KEYS]
    texts = [snake(string_of(value) or "") for value in values]
    return next((text for text in texts if _EVENT.match(text)), "")


RULE: Final = Rule(
    code=CODE,
    title="events of executions sent by hand",
    severity="note",
    why="An event that is sent by hand comes before its commit, or never, and is lost when the browser reconnects.",
    hint="Send what is committed: follow tracker.subscribe(…), or tracker.aio in a coroutine.",
    bad="""
        async def run(websocket, agent):
            await websocket.send_json({"type": "agent_started"})
            return await agent.run()
    """,
    good="""
        from fsm import get_tracker

        def follow(execution_id, send):
            for receipt in get_tracker().subscribe(execution_id=execution_id):
                send(receipt)
    """,
    replaces="websocket events sent by hand",
    local=check,
)
