"""FSM007: a circuit breaker of its own per object."""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator
from typing import Final

from fsm.audit.containers import own_attribute, stores
from fsm.audit.context import FileContext
from fsm.audit.model import Finding
from fsm.audit.names import is_double_name
from fsm.audit.roles import Tree
from fsm.audit.rule import Rule, found, reasons
from fsm.audit.scopes import Scope, functions, last_name

CODE: Final = "FSM007"


def check(context: FileContext) -> None:
    """Report breakers that live and die with one object."""
    if context.source.is_test:
        return
    for scope in context.scopes:
        if scope.kind == "class" and not is_double_name(scope.name) and not _is_breaker(scope.name, context):
            _constructed(context, scope)


def find(tree: Tree) -> Iterator[Finding]:
    """Report classes that are a breaker of their own."""
    for info, role in tree.of("breaker"):
        yield found(CODE, info, f"{info.name} is a circuit breaker of its own: it {reasons(role)}")


def _is_breaker(name: str, context: FileContext) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in context.config.breaker_patterns)


def _constructed(context: FileContext, owner: Scope) -> None:
    for scope in (owner, *functions(owner)):
        for target, value in stores(scope):
            own = own_attribute(target) or (_field(scope, target, value))
            if own and (name := _made(value, context)):
                message = f"{owner.name}.{own} is a circuit breaker of its own ({name}) per object"
                context.report(CODE, target, message, scope, span=value)


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


RULE: Final = Rule(
    "FSM007",
    "a circuit breaker of its own per object",
    "warning",
    why="A breaker per object learns nothing from the others: each hammers the same broken service.",
    hint="Share one breaker per key (provider, model, tenant): tracker.breakers.guard(key), as run.model(…) does.",
    bad="""
        class Client:
            def __init__(self):
                self.breaker = CircuitBreaker(failure_threshold=5)
    """,
    good="""
        from fsm import get_tracker

        async def ask(client, prompt):
            async with get_tracker().breakers.guard("openai:gpt-5"):
                return await client.complete(prompt)
    """,
    replaces="a circuit breaker per object",
    local=check,
    find=find,
)
