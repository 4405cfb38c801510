"""FSM008: mutable state at module or class level, shared between users."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Final

from fsm.audit.model import Owner
from fsm.audit.names import bindings_of, snake
from fsm.audit.rules.containers import (
    MUTATORS,
    container_kind,
    outermost,
    own_attribute,
    spelled_type,
    stores,
)
from fsm.audit.rules.context import FileContext
from fsm.audit.rules.profile import ClassProfile
from fsm.audit.scopes import FunctionNode, Scope, last_name

CODE: Final = "FSM008"
# What belongs to one user or one run; a registry of plugins or a cache of constants does not.
_PERSONAL: Final = re.compile(
    r"(^|_)(executions?|execs|runs|sessions|users|agents?_(states?|status|runs?)|run_(states?|records?|contexts?)"
    r"|conversations|requests|jobs|user_(contexts?|states?|data))(_by_\w+|_map|_registry|_store|_cache|_dict)?$"
    r"|(^|_)(executions?|runs?|agents?)_(states?|records?|registry|contexts?|tracker|info|data|store|map|phases?|status)"
)
# What these keep alive serves the process, not a user.
_SERVICE: Final = re.compile(
    r"(^|_)(locks?|semaphores?|pools?|background_tasks|tasks_refs?|task_refs|factory|factories|handlers?|hooks?|events?)$"
)
_KEY: Final = re.compile(
    r"(^|_)(execution|exec|run|session|user|thread|agent|task|request|conversation|job)_?(id|uuid|key)$"
)


def check(context: FileContext) -> None:
    """Report containers of executions that all users of a process share.

    Args:
        context: The file.
    """
    if context.source.is_test:
        return
    _module_level(context)
    for profile in context.profiles():
        _class_level(context, profile)


def _module_level(context: FileContext) -> None:
    root = context.scopes[0]
    held = {
        target.id: node
        for node in root.of(ast.Assign, ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and _is_container(node)
    }
    if not held:
        return
    for name in sorted(_mutated_globally(held, context)):
        message = f"{name!r} is mutable state at module level: all users of the process share it"
        context.report(CODE, held[name], message, root)
        owner = Owner(context.source.module, context.source.shown, held[name].lineno, "shared", (name,))
        context.owners.append(owner)


def _is_container(node: ast.Assign | ast.AnnAssign) -> bool:
    note = spelled_type(node.annotation) if isinstance(node, ast.AnnAssign) else ""
    return node.value is not None and container_kind(node.value, note) != ""


def _mutated_globally(held: Mapping[str, ast.stmt], context: FileContext) -> set[str]:
    found: set[str] = set()
    for scope in context.scopes:
        if not isinstance(scope.node, FunctionNode):
            continue
        for container, key in _mutations(scope):
            name = container.id if isinstance(container, ast.Name) else ""
            known = name in held and name not in found and _is_personal(name, key)
            if known and not _hides(name, scope, context):
                found.add(name)
    return found


def _hides(name: str, scope: Scope, context: FileContext) -> bool:
    if any(name in node.names for node in scope.of(ast.Global)):
        return False
    return name in bindings_of(scope, context.source)


def _mutations(scope: Scope) -> list[tuple[ast.expr, ast.expr | None]]:
    """List the containers a scope changes, each with the key where there is one."""
    found: list[tuple[ast.expr, ast.expr | None]] = []
    for target, _ in stores(scope):
        if isinstance(target, ast.Subscript):
            found.append((target.value, target.slice))
    for deletion in scope.of(ast.Delete):
        found.extend(
            (target.value, target.slice) for target in deletion.targets if isinstance(target, ast.Subscript)
        )
    found.extend(
        (call.func.value, call.args[0] if call.args else None)
        for call in scope.of(ast.Call)
        if isinstance(call.func, ast.Attribute) and call.func.attr in MUTATORS
    )
    return [(outermost(container), key) for container, key in found]


def _is_personal(name: str, key: ast.expr | None) -> bool:
    """Say whether a container, by its name or by a key that is used on it, belongs to users or runs."""
    word = snake(name)
    if _SERVICE.search(word):
        return False
    key_name = snake(last_name(key))
    return _PERSONAL.search(word) is not None or (bool(key_name) and _KEY.search(key_name) is not None)


def _class_level(context: FileContext, profile: ClassProfile) -> None:
    shared = {k.name: k for k in profile.keepings.values() if k.class_level}
    if not shared:
        return
    rebound = {own_attribute(target) for method in profile.methods for target, _ in stores(method)}
    for method in profile.methods:
        for container, key in _mutations(method):
            name = own_attribute(container) or _through_class(container, profile.name)
            keeping = shared.get(name)
            if keeping is None or name in rebound:
                continue
            if _is_personal(name, key):
                del shared[name]
                message = (
                    f"{profile.name}.{name} is mutable state at class level: all objects and users share it"
                )
                context.report(CODE, keeping.node, message, profile.scope)
                line: int = getattr(keeping.node, "lineno", 1)
                place = f"{context.source.module}.{profile.scope.qualname}"
                context.owners.append(Owner(place, context.source.shown, line, "shared", (name,)))


def _through_class(node: ast.expr, name: str) -> str:
    if not isinstance(node, ast.Attribute):
        return ""
    base = node.value
    if isinstance(base, ast.Name) and base.id == name:
        return node.attr
    # Reached through the type of the object.
    by_type = isinstance(base, ast.Call) and last_name(base.func) == "type"
    return node.attr if by_type or last_name(base) == "__class__" else ""
