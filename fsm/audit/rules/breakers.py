"""FSM007: a circuit breaker of its own per object."""

from __future__ import annotations

import ast
import fnmatch
import re
from typing import Final

from fsm.audit.model import Owner
from fsm.audit.rules.containers import own_attribute, stores
from fsm.audit.rules.context import FileContext
from fsm.audit.rules.profile import ClassProfile
from fsm.audit.scopes import Scope, last_name

CODE: Final = "FSM007"
_FAILURES: Final = re.compile(
    r"(failure|error|fail)s?_?(count|counter|total)?s?$|consecutive_(failures|errors)"
)
_OPENED: Final = re.compile(
    r"(circuit|breaker).*(open|state|tripped)|(open(ed)?|tripped)_(at|until|since)|last_failure"
)
_THRESHOLD: Final = re.compile(r"threshold|max_failures|failure_limit|max_errors")


def check(context: FileContext) -> None:
    """Report breakers that live and die with one object.

    Args:
        context: The file.
    """
    for profile in context.profiles():
        if not _is_breaker(profile.name, context):
            _constructed(context, profile)
            _home_grown(context, profile)


def _is_breaker(name: str, context: FileContext) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in context.config.breaker_patterns)


def _constructed(context: FileContext, profile: ClassProfile) -> None:
    for scope in (profile.scope, *profile.methods):
        for target, value in stores(scope):
            own = own_attribute(target) or (_field(scope, target, value))
            if own and (name := _made(value, context)):
                message = f"{profile.name}.{own} is a circuit breaker of its own ({name}) per object"
                context.report(CODE, target, message, scope, span=value)
                place = f"{context.source.module}.{profile.scope.qualname}"
                context.owners.append(Owner(place, context.source.shown, target.lineno, "breaker", (own,)))


def _field(scope: Scope, target: ast.expr, value: ast.expr | None) -> str:
    """A dataclass field with a default factory makes one per object; a class attribute is shared."""
    is_field = isinstance(value, ast.Call) and any(
        k.arg in {"default_factory", "factory"} for k in value.keywords
    )
    return target.id if scope.kind == "class" and is_field and isinstance(target, ast.Name) else ""


def _made(value: ast.AST | None, context: FileContext) -> str:
    """Name the breaker that an expression constructs."""
    if isinstance(value, (ast.BoolOp, ast.IfExp, ast.Dict, ast.List, ast.Tuple, ast.Lambda)):
        # A breaker per key that is kept by one object is still that object's own.
        return next((name for part in ast.iter_child_nodes(value) if (name := _made(part, context))), "")
    return _called(value, context) if isinstance(value, ast.Call) else ""


def _called(value: ast.Call, context: FileContext) -> str:
    name = last_name(value.func)
    if _is_breaker(name, context) and name[:1].isupper():
        return name
    factories = [keyword.value for keyword in value.keywords if keyword.arg in {"default_factory", "factory"}]
    if name == "defaultdict":
        factories.extend(value.args[:1])
    for factory in factories:
        if _is_breaker(last_name(factory), context):
            return last_name(factory)
        if made := _made(factory, context):
            return made
    return ""


def _home_grown(context: FileContext, profile: ClassProfile) -> None:
    """Recognise failures that are counted against a threshold to open something."""
    names = {own_attribute(target) for method in profile.methods for target, _ in stores(method)} - {""}
    failures = sorted(name for name in names if _FAILURES.search(name) and not _THRESHOLD.search(name))
    opened = sorted(name for name in names if _OPENED.search(name) and not _THRESHOLD.search(name))
    if failures and opened and _compared(profile, failures):
        how = f"{profile.name} counts {failures[0]} and opens {opened[0]}"
        message = f"{how}: a circuit breaker of its own per object"
        node = profile.scope.node
        context.report(CODE, node, message, profile.scope, span=profile.methods[0].node)
        place = f"{context.source.module}.{profile.scope.qualname}"
        line: int = getattr(node, "lineno", 1)
        context.owners.append(Owner(place, context.source.shown, line, "breaker", (failures[0], opened[0])))


def _compared(profile: ClassProfile, failures: list[str]) -> bool:
    for method in profile.methods:
        for comparison in method.of(ast.Compare):
            if own_attribute(comparison.left) in failures and isinstance(
                comparison.ops[0], (ast.Gt, ast.GtE, ast.Eq)
            ):
                return True
    return False
