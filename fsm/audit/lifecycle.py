"""The vocabulary of lifecycles: which words, enums and attributes speak of the state of an execution."""

from __future__ import annotations

import ast
import re
from typing import Final

from fsm.audit.limits import LONGEST_NAME
from fsm.audit.names import snake
from fsm.audit.scopes import last_name, string_of

OPEN_WORDS: Final = frozenset(
    "created submitted todo doing received retry inprogress new init initialized initializing idle pending queued "
    "ready scheduled starting started running active executing processing in_progress thinking planning working "
    "waiting blocked paused suspended retrying cancelling canceling stopping completing tool_execution "
    "tool_preparation llm_interaction result_processing awaiting_input circuit_breaker_open".split()
)
ACTIVE_WORDS: Final = frozenset(
    "running doing started executing processing in_progress working active thinking queued".split()
)
"""Words of what runs; an order or a ticket has a state as well, and none of these."""
ENDED_WORDS: Final = frozenset(
    "completed complete done finished succeeded success failed failure error errored cancelled canceled "
    "aborted terminated timeout timed_out stopped dead killed expired finish fail ok interrupted rejected".split()
)
WORDS: Final = OPEN_WORDS | ENDED_WORDS
ENUM_BASE: Final = re.compile(r"(Enum|Choices|Flag)$")
ENGINE_DRIVES: Final = re.compile(
    r"^(a?run|a?execute|process|drive|launch|a?invoke|orchestrate|kickoff|loop|perform)(_|$)"
)
STATE_MOVES: Final = re.compile(
    r"^(set|update|change|advance)_(state|status|phase)$|^transition(_to|_state)?$|^mark_\w+"
)
# Machines of other things share the words: a connection, a task of a scheduler, an order.
_ENUM: Final = re.compile(r"(State|Status|Phase|Lifecycle|Stage)s?$")
_RECORD: Final = re.compile(
    r"(^|_)(executions?|exec|run|agent_run|agent_execution|attempt|execution_(record|context|state|info|entry)"
    r"|run_(record|context|state|info)|agent_state|exec_(record|context|info))$"
)


_STATE_NAME: Final = re.compile(r"(^|_)(state|status|phase)$")


def is_state_name(name: str, known: list[str]) -> bool:
    """Say whether an attribute or key holds a state: the configured names, and what ends in state, status or phase."""
    return name in known or _STATE_NAME.search(name[:LONGEST_NAME]) is not None


def state_word(node: ast.AST | None) -> str:
    """Give the lifecycle word an expression stands for."""
    text = string_of(node)
    if text is None and isinstance(node, ast.Attribute):
        text = last_name(node.value) if node.attr in {"value", "name"} else node.attr
        if not text.isupper() and node.attr != "value":
            return ""
    word = snake(text.replace("-", "_").replace(" ", "_")) if text else ""
    return word if word in WORDS else ""


def is_state_member(node: ast.AST | None) -> bool:
    """Say whether an expression is a member of an enum of states, whatever the member is called."""
    if isinstance(node, ast.Attribute) and node.attr in {"value", "name"}:
        node = node.value
    return isinstance(node, ast.Attribute) and _ENUM.search(last_name(node.value)) is not None


def is_record(node: ast.AST | None) -> bool:
    """Say whether an expression is called like the record of an execution."""
    if isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Await):
        node = node.value
    if isinstance(node, ast.Call):
        inner = node.func
        if isinstance(inner, ast.Attribute) and inner.attr in {"get", "pop", "setdefault"}:
            return is_record(inner.value)
        node = inner
    name = snake(last_name(node))
    return bool(name) and _RECORD.search(name) is not None
