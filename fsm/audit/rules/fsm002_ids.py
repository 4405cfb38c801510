"""FSM002: an execution id made by hand."""

from __future__ import annotations

import ast
import re
from bisect import bisect_left
from typing import Final

from fsm.audit.containers import own_attribute
from fsm.audit.context import FileContext
from fsm.audit.lifecycle import is_record
from fsm.audit.made import is_id_maker
from fsm.audit.names import snake
from fsm.audit.rule import Rule
from fsm.audit.scopes import FunctionNode, Scope, last_name, string_of, unpacked

CODE: Final = "FSM002"
# Functions that shape an id for the eye or take one apart; what they return is not a new id.
_SHAPERS: Final = re.compile(
    r"(^|_)(parse|format|mask|redact|normalize|sanitize|validate|describe|short|display)_"
)
_PREFIX: Final = re.compile(r"(agent[-_])?(exec|execution|run)[-_:]")
_PLAIN: Final = {"id", "_id", "ID", "eid", "identifier"}
_RECORD: Final = re.compile(r"^(Agent)?(Execution|Run)(Record|Info|Entry)?$")
_KEYED_CALLS: Final = {"get": 1, "pop": 1, "setdefault": 1, "getattr": 2, "setattr": 2, "setitem": 2}


def check(context: FileContext) -> None:
    """Report every execution id that the file makes by hand."""
    lines = context.id_names.mentions(context.text)
    if not lines:
        return
    known = signatures(context)
    for scope in context.scopes:
        if _within(scope, lines):
            _Ids(context, scope, known).run()


def _within(scope: Scope, lines: list[int]) -> bool:
    node = scope.node
    if not isinstance(node, FunctionNode | ast.ClassDef):
        return True
    at = bisect_left(lines, node.lineno)
    return at < len(lines) and lines[at] <= (node.end_lineno or node.lineno)


def _may_make_here(scope: Scope, context: FileContext) -> bool:
    module = context.source.module
    name = f"{module}.{scope.qualname}" if scope.qualname else module
    return is_id_maker(name, tuple(context.config.id_makers))


class _Ids:
    """The judgement of one scope; each maker is reported once, however many names it goes to."""

    def __init__(self, context: FileContext, scope: Scope, known: dict[str, list[str]]) -> None:
        self.context = context
        self.known = known
        self.scope = scope
        self.means_id = context.id_names
        self.seen: set[int] = set()

    def run(self) -> None:
        self._assignments()
        self._calls()
        self._dictionaries()
        self._function()

    def judge(self, name: str, value: ast.expr | None, where: ast.AST, span: ast.AST | None = None) -> None:
        """Report a value that is made by hand, if the name it goes to means an execution id."""
        if value is None or not (self.means_id(name) or _is_id_of_execution(name, value, where)):
            return
        for expression in _elements(value) if snake(name).endswith("s") else [value]:
            how = self.context.maker.made(expression, self.scope)
            if how and id(value) not in self.seen and not _may_make_here(self.scope, self.context):
                self.seen.update(id(part) for part in ast.walk(value))
                message = f"{name!r} is made by hand with {how}; let the registry hand out execution ids"
                self.context.report(CODE, where, message, self.scope, span=span or value)

    def _assignments(self) -> None:
        for node in self.scope.of(ast.Assign):
            for target in node.targets:
                self._target(target, node.value, node)
        for single in self.scope.of(ast.AnnAssign, ast.AugAssign, ast.NamedExpr):
            self._target(single.target, single.value, single)

    def _target(self, target: ast.expr, value: ast.expr | None, where: ast.AST) -> None:
        for inner, inner_value in unpacked(target, value):
            self.judge(target_name(inner), inner_value, where)

    def _calls(self) -> None:
        for node in self.scope.of(ast.Call):
            func = node.func
            for keyword in node.keywords:
                if keyword.arg is not None:
                    self.judge(self._meant(keyword.arg, func), keyword.value, keyword, node)
            if node.args:
                self._positional(node)
            name = last_name(func)
            at = _KEYED_CALLS.get(name)
            if at is not None and len(node.args) > at:
                self.judge(string_of(node.args[at - 1]) or "", node.args[at], node)

    def _meant(self, name: str, func: ast.expr) -> str:
        """Read Execution(id=…) as what it means."""
        return "execution_id" if name == "id" and _RECORD.search(last_name(func)) else name

    def _positional(self, node: ast.Call) -> None:
        """Judge arguments without a keyword, where the called function stands in this file."""
        func, owner = node.func, self.scope.enclosing_class()
        name = func.id if isinstance(func, ast.Name) else ""
        if owner is not None and own_attribute(func):
            name = f"{owner.qualname}.{own_attribute(func)}"
        names = self.known.get(name, ())
        for name, argument in zip(names, node.args, strict=False):
            if isinstance(argument, ast.Starred):
                return
            self.judge(name, argument, argument, node)

    def _dictionaries(self) -> None:
        for node in self.scope.of(ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if key is not None and (text := string_of(key)):
                    self.judge(text, value, key, value)

    def _function(self) -> None:
        for function in self.scope.of(ast.Lambda):
            _defaults(function.args, self)
        node = self.scope.node
        if not isinstance(node, FunctionNode):
            return
        if not _SHAPERS.search(snake(node.name) + "_"):
            for result in self.scope.of(ast.Return, ast.Yield):
                self.judge(node.name, result.value, result)
        _defaults(node.args, self)


def signatures(context: FileContext) -> dict[str, list[str]]:
    """List the positional parameters of what a file defines, where one of them means an id."""
    found: dict[str, list[str]] = {}
    for scope in context.scopes:
        node, owner = scope.node, scope.parent
        if isinstance(node, FunctionNode):
            names = [parameter.arg for parameter in (*node.args.posonlyargs, *node.args.args)]
            if not any(map(context.id_names, names)):
                continue
            names = names[1:] if names[0] in {"self", "cls"} else names
            found[scope.qualname] = names
            if owner is not None and owner.kind == "class" and scope.name == "__init__":
                found[owner.qualname] = names
        elif isinstance(node, ast.ClassDef) and _is_dataclass(node):
            fields = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
            names = [field.id for field in fields if isinstance(field, ast.Name)]
            if any(map(context.id_names, names)):
                found.setdefault(scope.qualname, names)
    return found


def _is_dataclass(node: ast.ClassDef) -> bool:
    decorators = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return any(last_name(decorator) in {"dataclass", "define", "attrs"} for decorator in decorators)


def _defaults(args: ast.arguments, ids: _Ids) -> None:
    positional = [*args.posonlyargs, *args.args]
    for parameter, default in zip(reversed(positional), reversed(args.defaults), strict=False):
        ids.judge(parameter.arg, default, parameter)
    for parameter, keyword_default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        ids.judge(parameter.arg, keyword_default, parameter)


def target_name(target: ast.expr) -> str:
    """Name what an assignment writes to."""
    if isinstance(target, ast.Name):
        return target.id
    if isinstance(target, ast.Attribute):
        return target.attr
    if isinstance(target, ast.Subscript):
        return string_of(target.slice) or ""
    return ""


def _is_id_of_execution(name: str, value: ast.expr, where: ast.AST) -> bool:
    """Recognise ``execution.id = …`` and ``id = f"exec_{…}"``, where the name alone says too little."""
    if name not in _PLAIN:
        return False
    targets = where.targets if isinstance(where, ast.Assign) else []
    if any(isinstance(target, ast.Attribute) and is_record(target.value) for target in targets):
        return True
    first = (
        value.values[0] if isinstance(value, ast.JoinedStr) and value.values else getattr(value, "left", None)
    )
    return _PREFIX.match(string_of(first) or "") is not None


def _elements(value: ast.expr) -> list[ast.expr]:
    if isinstance(value, (ast.List, ast.Tuple, ast.Set)):
        return value.elts
    if isinstance(value, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
        return [value.elt]
    return [value]


RULE: Final = Rule(
    code=CODE,
    title="an execution id made by hand",
    severity="error",
    why="An id that the registry did not hand out belongs to no execution: logs point nowhere.",
    hint="Take the id from tracker.create(…).id, or name what may make ids in id_makers.",
    bad="""
        import uuid

        def start(agent):
            execution_id = f"exec_{uuid.uuid4().hex[:8]}"
            return agent.run(execution_id)
    """,
    good="""
        from fsm import get_tracker

        def start(agent, user, thread):
            execution = get_tracker().create(agent.name, user_id=user, thread_id=thread)
            return agent.run(execution.id)
    """,
    local=check,
)
