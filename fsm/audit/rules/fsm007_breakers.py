"""FSM007: a circuit breaker of its own per object."""

from __future__ import annotations

import ast
import fnmatch
import re
from typing import Final

from fsm.audit.containers import FACTORY_KEYWORDS, own_attribute
from fsm.audit.context import FileContext
from fsm.audit.modules import ClassInfo, Role
from fsm.audit.names import is_double_name, snake
from fsm.audit.roles import Tree
from fsm.audit.rule import Rule
from fsm.audit.scopes import Scope, functions, last_name, stores

CODE: Final = "FSM007"
_FAILURES: Final = re.compile(
    r"(failure|error|fail)s?_?(count|counter|total)?s?$|consecutive_(failures|errors)"
)
_OPENED: Final = re.compile(
    r"(circuit|breaker).*(open|state|tripped)|(open(ed)?|tripped)_(at|until|since)|last_failure|last_opened|(^|_)(is_)?half_open"
)
_HELD: Final = re.compile(r"(config|configuration|settings|info|stats|statistics|metrics|record|health)$")
_THRESHOLD: Final = re.compile(r"threshold|max_fail|failure_limit|max_errors|fail_max")
_BREAKS: Final = re.compile(
    r"^_*(record_(failure|success)|on_(failure|success)|allow(_request|s)?|can_execute|(is_)?(open|closed|half_open)|trip|reset|call"
    r"|call_failed|call_succeeded|__a?enter__|__a?exit__|__call__|before_call|handle_(failure|success|error)|should_attempt_reset|protect|decorate)(_|$)"
)


def check(context: FileContext) -> None:
    """Report breakers that live and die with one object."""
    if context.source.is_test:
        return
    for scope in context.scopes:
        if scope.kind == "class" and not is_double_name(scope.name) and not _is_breaker(scope.name, context):
            _constructed(context, scope)


def judge(tree: Tree, info: ClassInfo) -> Role | None:
    """Say whether a class is a breaker of its own."""
    if (inherited := tree.inherited(info, "breaker")) is not None:
        return inherited
    fact = info.fact
    names = [snake(n) for n in dict.fromkeys([*fact.fields, *fact.counters, *(b.name for b in fact.boxes)])]
    failures = sorted(n for n in names if _FAILURES.search(n) and not _THRESHOLD.search(n))
    opened = sorted(n for n in names if _OPENED.search(n) and not _THRESHOLD.search(n))
    breaks = [m.name for m in fact.methods if _BREAKS.match(m.name)]
    evidence: dict[str, str] = {}
    if failures:
        evidence["failures"] = f"counts {failures[0]}"
    if opened:
        evidence["opened"] = f"opens {opened[0]}"
    if len(breaks) > 1:
        evidence["methods"] = f"decides in {', '.join(breaks[:3])}"
    named = any(fnmatch.fnmatchcase(info.name, pattern) for pattern in tree.config.breaker_patterns)
    if named:
        evidence["name"] = "is called a breaker"
    elif {snake(c) for c in fact.compared} & set(failures):
        evidence["compared"] = "compares them with a bound"
    acts = bool(fact.methods) and not _HELD.search(snake(info.name))
    enough = len(evidence) > 1 if named else acts and evidence.keys() >= {"failures", "opened", "compared"}
    return Role("breaker", evidence, (*failures[:1], *opened[:1])) if enough else None


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
    is_field = isinstance(value, ast.Call) and any(k.arg in FACTORY_KEYWORDS for k in value.keywords)
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
    factories = [keyword.value for keyword in value.keywords if keyword.arg in FACTORY_KEYWORDS]
    if name == "defaultdict":
        factories.extend(value.args[:1])
    for factory in factories:
        if _is_breaker(last_name(factory), context):
            return last_name(factory)
        if made := _made(factory, context):
            return made
    return ""


RULE: Final = Rule(
    code=CODE,
    title="a circuit breaker of its own per object",
    severity="warning",
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
    role="breaker",
    judge=judge,
    says="a circuit breaker of its own",
)
