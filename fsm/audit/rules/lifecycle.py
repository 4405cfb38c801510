"""The vocabulary of lifecycles: which words, enums and attributes speak of the state of an execution."""

from __future__ import annotations

import ast
import re
from typing import Final

from fsm.audit.names import snake
from fsm.audit.scopes import last_name, string_of

OPEN_WORDS: Final = {
    "created",
    "new",
    "init",
    "initialized",
    "initializing",
    "idle",
    "pending",
    "queued",
    "ready",
    "scheduled",
    "starting",
    "started",
    "running",
    "active",
    "executing",
    "processing",
    "in_progress",
    "thinking",
    "planning",
    "working",
    "waiting",
    "blocked",
    "paused",
    "suspended",
    "retrying",
    "cancelling",
    "canceling",
    "stopping",
    "completing",
    "tool_execution",
    "tool_preparation",
    "llm_interaction",
    "result_processing",
    "awaiting_input",
    "circuit_breaker_open",
}
ENDED_WORDS: Final = {
    "completed",
    "complete",
    "done",
    "finished",
    "succeeded",
    "success",
    "failed",
    "failure",
    "error",
    "errored",
    "cancelled",
    "canceled",
    "aborted",
    "terminated",
    "timeout",
    "timed_out",
    "stopped",
    "dead",
    "killed",
    "expired",
}
WORDS: Final = OPEN_WORDS | ENDED_WORDS
# Machines of other things share the words: a connection, a task of a scheduler, an order.
_ENUM: Final = re.compile(r"(State|Status|Phase|Lifecycle|Stage)s?$")
_RECORD: Final = re.compile(
    r"(^|_)(executions?|exec|run|agent_run|agent_execution|attempt|execution_(record|context|state|info|entry)"
    r"|run_(record|context|state|info)|agent_state|exec_(record|context|info))$"
)


def state_word(node: ast.AST | None) -> str:
    """Give the lifecycle word an expression stands for.

    Args:
        node: A string, an enum member such as ``ExecutionState.RUNNING``, or its ``.value``.

    Returns:
        The word in snake case, or the empty string.
    """
    text = string_of(node)
    if text is None and isinstance(node, ast.Attribute):
        text = last_name(node.value) if node.attr in {"value", "name"} else node.attr
        if not text.isupper() and node.attr != "value":
            return ""
    word = snake(text.replace("-", "_").replace(" ", "_")) if text else ""
    return word if word in WORDS else ""


def is_state_member(node: ast.AST | None) -> bool:
    """Say whether an expression is a member of an enum of states, whatever the member is called.

    Args:
        node: An expression.

    Returns:
        True for ``AgentPhase.WARMING`` and ``RunState.X.value``.
    """
    if isinstance(node, ast.Attribute) and node.attr in {"value", "name"}:
        node = node.value
    return isinstance(node, ast.Attribute) and _ENUM.search(last_name(node.value)) is not None


def is_record(node: ast.AST | None) -> bool:
    """Say whether an expression is called like the record of an execution.

    Args:
        node: A name, an attribute, a subscript or a call.

    Returns:
        True for ``execution``, ``self.current_run``, ``executions[id]`` and ``tracker.get_execution(id)``.
    """
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
