"""FSM006: a state written around the tracker."""

from __future__ import annotations

import ast
import re
from typing import Final

from fsm.audit.containers import own_attribute, spelled
from fsm.audit.context import FileContext
from fsm.audit.lifecycle import is_record, is_state_member
from fsm.audit.names import snake
from fsm.audit.rule import Rule
from fsm.audit.scopes import last_name, stores, string_of

CODE: Final = "FSM006"
_REGISTRY: Final = re.compile(
    r"^_*((active|running|current|all|agent|tracked|pending|live)_)*(executions|execs|runs)$"
)
_FOREIGN: Final = re.compile(
    r"(^|_)(response|resp|request|req|http|socket|ws|websocket|connection|conn|button|widget|door|order|invoice"
    r"|breaker|circuit|service|node|host|span|health|check|step|todo|issue|ticket|payment|user|account)$"
)


def check(context: FileContext) -> None:
    """Report states of executions that are written without the tracker."""
    for scope in context.scopes:
        inside = scope.enclosing_class()
        # What a keeper does inside itself is reported once, as the keeper; who is one is known at the end.
        context.keeper = inside.qualname if inside is not None else ""
        removed = [(t, None) for d in scope.of(ast.Delete) for t in d.targets if isinstance(t, ast.Subscript)]
        for target, value in [*stores(scope), *removed]:
            what = _judge(target, value, context)
            if what:
                context.report(CODE, target, f"{what} is written around the tracker", scope, span=value)
        for call in scope.of(ast.Call):
            what = _called(call, context)
            if what:
                context.report(CODE, call, f"{what} is written around the tracker", scope)
    context.keeper = ""


def _judge(target: ast.expr, value: ast.expr | None, context: FileContext) -> str:
    if isinstance(target, ast.Attribute):
        return _attribute(target, target.value, target.attr, value, context)
    if not isinstance(target, ast.Subscript):
        return ""
    key = string_of(target.slice)
    if key is not None:
        return _attribute(target, _behind_dict(target.value), key, value, context)
    name = last_name(target.value)
    # Another object's registry, or the module's; an object's own one is judged with its class.
    if _REGISTRY.match(snake(name)) and not own_attribute(target.value):
        return f"the registry {name!r}"
    return ""


def _behind_dict(node: ast.expr) -> ast.expr:
    return node.value if isinstance(node, ast.Attribute) and node.attr == "__dict__" else node


def _attribute(
    target: ast.expr, base: ast.expr, name: str, value: ast.expr | None, context: FileContext
) -> str:
    if name.lstrip("_") not in context.config.state_names or (
        value is None and isinstance(target, ast.Subscript)
    ):
        return ""
    # An object may keep a state of its own; several of them with ids are another rule's business.
    if isinstance(base, ast.Name) and base.id in {"self", "cls"}:
        return ""
    record = is_record(base)
    owner = snake(last_name(base))
    if record or (not _FOREIGN.search(owner) and _means_execution(value)):
        return f"{name!r} of {spelled(base)}"
    return ""


_EXECUTION_ENUM: Final = re.compile(r"(Execution|Agent|Run)\w*(State|Status|Phase)$")


def _means_execution(value: ast.expr | None) -> bool:
    """Say whether a value is a state of an execution by its enum's name."""
    node = value.value if isinstance(value, ast.Attribute) and value.attr in {"value", "name"} else value
    if not is_state_member(node) or not isinstance(node, ast.Attribute):
        return False
    return _EXECUTION_ENUM.search(last_name(node.value)) is not None


def _called(call: ast.Call, context: FileContext) -> str:
    name = last_name(call.func)
    if name in {"setattr", "__setattr__"} and len(call.args) > 2:  # noqa: PLR2004 # object, name, value
        attribute = string_of(call.args[-2])
        return _attribute(call, call.args[-3], attribute or "", call.args[-1], context)
    if name in {"update", "pop", "clear", "setdefault"} and isinstance(call.func, ast.Attribute):
        return _mutated(call, call.func.value, name, context)
    return ""


def _mutated(call: ast.Call, base: ast.expr, name: str, context: FileContext) -> str:
    held = last_name(base)
    if isinstance(base, ast.Attribute) and held == "__dict__" and name == "update" and is_record(base.value):
        keys = {keyword.arg for keyword in call.keywords}
        keys.update(string_of(key) for arg in call.args if isinstance(arg, ast.Dict) for key in arg.keys)
        if keys & set(context.config.state_names):
            return f"a state of {spelled(base.value)}"
    private = held.startswith("_") and isinstance(base, ast.Attribute) and not own_attribute(base)
    if private and _REGISTRY.match(snake(held)):
        return f"the registry {held!r}"
    return ""


RULE: Final = Rule(
    code=CODE,
    title="a state written around the tracker",
    severity="error",
    why="A state that no transition led to has no guard, no journal row and no deadline.",
    hint="Fire the event (tracker.fire(execution_id, 'complete')) and let the table decide.",
    bad="""
        def give_up(execution):
            execution.state = "failed"
    """,
    good="""
        from fsm import get_tracker

        def give_up(execution):
            get_tracker().fire(execution.id, "fail", retryable=False)
    """,
    local=check,
)
