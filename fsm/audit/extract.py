"""From a syntax tree to the facts of a file, in one pass."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Final

from fsm.audit.calls import calls_of
from fsm.audit.containers import (
    MUTATORS,
    container_kind,
    is_field,
    outermost,
    own_attribute,
    plain_name,
    spelled_type,
    stores,
)
from fsm.audit.context import FileContext
from fsm.audit.facts import Box, ClassFact, FileFacts, Method, slim
from fsm.audit.lifecycle import is_state_member, is_state_name, state_word
from fsm.audit.modules import exports, spelled_bases
from fsm.audit.names import bindings_of, is_double_name, snake
from fsm.audit.scopes import FunctionNode, Scope, dotted, functions, last_name, string_of
from fsm.audit.values import Values

_TAKES_OUT: Final = {"pop", "popitem", "remove", "discard", "clear", "popleft"}
_READS: Final = {"get", "pop", "setdefault", "__contains__", "__getitem__"}
_TIMES: Final = re.compile(r"(^|\.)(time|monotonic|perf_counter|now|utcnow|time_ns|monotonic_ns|loop\.time)$")
_TASKS: Final = {
    "create_task",
    "ensure_future",
    "Thread",
    "Process",
    "submit",
    "run_in_executor",
    "Task",
    "Timer",
}
_SETTER: Final = re.compile(
    r"^_*(set|update|transition|mark|advance|change|move|record|register|start|begin|complete|finish|fail|cancel"
    r"|end|abort|stop|timeout|time_out|create|submit|track|add)(_|$)"
)
_MOVES: Final = re.compile(
    r"^(set|update|change|advance)_(state|status|phase)$|^transition(_to|_state)?$|^mark_\w+"
)
_WORK: Final = re.compile(
    r"^_*(a?execute|a?run|a?invoke|astream|process|step|act|kickoff|perform)(_|$)|^(create_task|ensure_future|wait_for|gather"
    r"|run_in_executor|to_thread|submit|apply_async|Popen|start)$"
)
_MODEL: Final = re.compile(r"(BaseModel|Model|Schema|Settings|Struct|NamedTuple|TypedDict)$")
_MOST: Final = 12


def extract(context: FileContext) -> FileFacts:
    """Take the facts of a file out of its tree."""
    source, root = context.source, context.scopes[0]
    facts = FileFacts()
    facts.names, facts.stars = exports(source, root)
    values = Values(source, root, context.work)
    facts.calls = calls_of(context, values)
    for scope in context.scopes:
        if isinstance(scope.node, ast.ClassDef):
            facts.classes.append(_Class(context, scope, values).fact)
        elif isinstance(scope.node, FunctionNode) and scope.parent is root and not source.is_test:
            function = _method(scope, values, top=True)
            if function.makes or function.loops:
                facts.functions.append(function)
    if not source.is_test:
        facts.boxes = _module_boxes(context)
    slim(facts)
    return facts


def _module_boxes(context: FileContext) -> list[Box]:
    root = context.scopes[0]
    boxes: dict[str, Box] = {}
    for node in root.of(ast.Assign, ast.AnnAssign):
        note = spelled_type(node.annotation) if isinstance(node, ast.AnnAssign) else ""
        kind = container_kind(node.value, note) if node.value is not None else ""
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if kind and isinstance(target, ast.Name):
                boxes[target.id] = Box(
                    target.id, node.lineno, node.end_lineno or node.lineno, kind == "mapping", True, note
                )
    if boxes:
        for scope in context.scopes:
            if isinstance(scope.node, FunctionNode):
                local = bindings_of(scope, context.source)
                mine = {name: box for name, box in boxes.items() if name not in local}
                if mine:
                    _use(scope, mine, plain_name, context)
    return [box for box in boxes.values() if box.inserts or box.removes]


def _note(values: list[str], value: str) -> None:
    if value and value not in values and len(values) < _MOST:
        values.append(value)


def _use(  # noqa: C901, PLR0912 # a branch per kind of node
    method: Scope, boxes: dict[str, Box], name_of: Callable[[ast.expr], str], context: FileContext
) -> None:
    """Note what one function does with some containers."""

    def box_of(node: ast.expr) -> Box | None:
        return boxes.get(name_of(outermost(node)))

    for target, value in stores(method):
        if isinstance(target, ast.Subscript) and (box := box_of(target.value)) is not None:
            _note(box.inserts, method.name)
            _note(box.values, value_kind(value, method, context))
            _note(box.keys, _key(target.slice))
            _note(box.changed, _key(target.slice))
    for node in method.of(ast.Subscript):
        if (box := box_of(node.value)) is not None:
            _note(box.keys, _key(node.slice))
    for deletion in method.of(ast.Delete):
        for target in deletion.targets:
            if isinstance(target, ast.Subscript) and (box := box_of(target.value)) is not None:
                _note(box.removes, method.name)
                _note(box.changed, _key(target.slice))
    for comparison in method.of(ast.Compare):
        if (
            isinstance(comparison.ops[0], (ast.In, ast.NotIn))
            and (box := box_of(comparison.comparators[0])) is not None
        ):
            _note(box.keys, _key(comparison.left))
    for call in method.of(ast.Call):
        func = call.func
        if not isinstance(func, ast.Attribute) or (box := box_of(func.value)) is None:
            continue
        name = func.attr
        if call.args and (name in _READS or (not box.mapping and name in MUTATORS)):
            _note(box.keys, _key(call.args[0]))
        if call.args and name in MUTATORS:
            _note(box.changed, _key(call.args[0]))
        if name in _TAKES_OUT:
            _note(box.removes, method.name)
        elif name in MUTATORS:
            _note(box.inserts, method.name)
            if call.args:
                _note(box.values, value_kind(call.args[-1], method, context))


def _key(node: ast.expr) -> str:
    if isinstance(node, ast.Call) and node.args and last_name(node.func) in {"str", "UUID"}:
        node = node.args[0]
    name = snake(last_name(node))
    if name == "id" and isinstance(node, ast.Attribute):
        return f"{snake(last_name(node.value))}_id"
    return name


def value_kind(value: ast.expr | None, scope: Scope, context: FileContext) -> str:  # noqa: PLR0911 # an answer per kind
    """Say in one word what an expression puts into a container."""
    if isinstance(value, ast.Name):
        # A record is often built first and stored afterwards.
        bound = bindings_of(scope, context.source).get(value.id, ())
        built = (b.value for b in bound if isinstance(b.value, (ast.Dict, ast.Call)))
        value = next(built, value)
    if isinstance(value, ast.Await):
        value = value.value
    if isinstance(value, ast.Dict):
        return (
            "row"
            if any(is_state_name(string_of(key) or "", context.config.state_names) for key in value.keys)
            else ""
        )
    if isinstance(value, ast.Call):
        name = last_name(value.func)
        if is_time(value):
            return "time"
        if name in _TASKS:
            return "task"
        if any(is_state_name(keyword.arg or "", context.config.state_names) for keyword in value.keywords):
            return "row"
        return f"={dotted(value.func)}" if name[:1].isupper() else ""
    if isinstance(value, ast.BinOp):
        return "time" if is_time(value.left) or is_time(value.right) else ""
    return "state" if state_word(value) or is_state_member(value) else ""


def is_time(node: ast.AST | None) -> bool:
    """Say whether an expression reads a clock."""
    return isinstance(node, ast.Call) and _TIMES.search(dotted(node.func)) is not None


def _method(scope: Scope, values: Values, *, top: bool = False) -> Method:  # noqa: C901, PLR0912 # a branch per kind of node
    node = scope.node
    assert isinstance(node, FunctionNode)  # noqa: S101 # for the type checker
    args = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    last = node.body[0].lineno if node.body else node.lineno
    fact = Method(scope.name, node.lineno, last, args[:_MOST], isinstance(node, ast.AsyncFunctionDef))
    if node.returns is not None:
        fact.note = spelled_type(node.returns)
    loops = [*scope.of(ast.For, ast.AsyncFor), *scope.of(ast.While)]
    tries = scope.of(ast.ExceptHandler)
    tried = bool(loops) and any(
        loop.lineno <= handler.lineno <= (loop.end_lineno or 0) for handler in tries for loop in loops[:_MOST]
    )
    for call in scope.of(ast.Call):
        fact.calls += 1
        name = last_name(call.func)
        if not fact.drives and _WORK.match(name):
            fact.drives = "work"
        if tried and (name in {"sleep", "wait"} or len(fact.loops) < _MOST):
            _note(fact.loops, "sleep" if name == "sleep" else f"call:{dotted(call.func) or name}")
        if name.lstrip("_")[:1].isupper() and not name.isupper():
            for symbol in values.of(call.func, scope):
                _note(fact.makes, symbol)
        elif isinstance(call.func, ast.Attribute) and (part := own_attribute(call.func.value)):
            _note(fact.forwards, f"{part}.{name}")
    if tried:
        _note(fact.loops, "try")
    for result in scope.of(ast.Return):
        if isinstance(result.value, (ast.Name, ast.Attribute)):
            _note(fact.gives, last_name(result.value))
        elif isinstance(result.value, ast.Call):
            _note(fact.gives, f"{last_name(result.value.func)}()")
    if top:
        for declared in scope.of(ast.Global):
            for name in declared.names:
                _note(fact.gives, name)
    return fact


class _Class:
    """Reads one class."""

    def __init__(self, context: FileContext, scope: Scope, values: Values) -> None:
        node = scope.node
        assert isinstance(node, ast.ClassDef)  # noqa: S101 # for the type checker
        self.context, self.scope, self.values = context, scope, values
        nested = scope.parent is not None and scope.parent.kind != "module"
        self.fact = ClassFact(scope.qualname, node.lineno, node.body[0].lineno, spelled_bases(node), nested)
        if context.source.is_test or is_double_name(scope.name):
            # What stands in for a class in tests has no role; it is only known by its name.
            return
        self.fact.decorators = [
            last_name(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list
        ]
        self.boxes: dict[str, Box] = {}
        self._body(node)
        methods = sorted(functions(scope), key=lambda method: getattr(method.node, "lineno", 0))
        # What the object keeps is known before it is asked what a method does with it.
        for method in methods:
            for assignment in method.of(ast.Assign, ast.AnnAssign):
                self._store(assignment, method)
        for method in methods:
            self._method(method)
        self.fact.boxes = list(self.boxes.values())
        if self.boxes:
            for method in methods:
                _use(method, self.boxes, self._held, context)

    def _held(self, node: ast.expr) -> str:
        """Name what is kept by the object or, through its type or its name, by the class."""
        if isinstance(node, ast.Attribute) and not own_attribute(node):
            base = node.value
            by_type = isinstance(base, ast.Call) and last_name(base.func) == "type"
            return node.attr if by_type or last_name(base) in {"__class__", self.fact.name} else ""
        return own_attribute(node)

    def _body(self, node: ast.ClassDef) -> None:
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                self.fact.fields[item.target.id] = spelled_type(item.annotation)
            elif isinstance(item, ast.Assign):
                for target in item.targets:
                    if isinstance(target, ast.Name):
                        self.fact.members.append(snake(target.id))
                        self.fact.fields.setdefault(target.id, _column(item.value))
        for assignment in self.scope.of(ast.Assign, ast.AnnAssign):
            self._store(assignment, self.scope)

    def _store(self, node: ast.Assign | ast.AnnAssign, scope: Scope) -> None:
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            name = own_attribute(target) if scope is not self.scope else plain_name(target)
            if not name:
                continue
            note = spelled_type(node.annotation) if isinstance(node, ast.AnnAssign) else ""
            kind = container_kind(node.value, note)
            if kind:
                shared = scope is self.scope and not self._per_object(node)
                end = node.end_lineno or node.lineno
                box = self.boxes.setdefault(
                    name, Box(name, node.lineno, end, kind == "mapping", shared, note)
                )
                # What __init__ binds again belongs to the object.
                box.shared &= scope is self.scope
            elif scope is not self.scope:
                self._attribute(name, node.value, note, scope)

    def _per_object(self, node: ast.Assign | ast.AnnAssign) -> bool:
        if is_field(node.value):
            return True
        if not isinstance(node, ast.AnnAssign) or "ClassVar" in spelled_type(node.annotation):
            return False
        return any(_MODEL.search(base) for base in self.fact.bases)

    def _attribute(self, name: str, value: ast.expr | None, note: str, scope: Scope) -> None:
        """Note what an attribute of the object is set to."""
        fact = self.fact
        if name not in fact.fields or not fact.fields[name]:
            fact.fields[name] = note or (
                _annotation_of(value.id, scope) if isinstance(value, ast.Name) else ""
            )
        if is_time(value):
            _note(fact.clocks, name)
        if is_state_name(name.lstrip("_"), self.context.config.state_names) and (word := state_word(value)):
            _note(fact.states.setdefault(name, []), word)
        for option in value.values if isinstance(value, ast.BoolOp) else [value]:
            if isinstance(option, ast.Call):
                for symbol in self.values.of(option.func, scope):
                    if symbol.rpartition(".")[2].lstrip("_")[:1].isupper():
                        _note(fact.parts.setdefault(name, []), symbol)

    def _method(self, method: Scope) -> None:
        fact, states = self.fact, self.context.config.state_names
        info = _method(method, self.values)
        fact.methods.append(info)
        for target, value in stores(method):
            if isinstance(target, ast.Attribute):
                info.sets_state |= is_state_name(target.attr, states) and not own_attribute(target)
            elif isinstance(target, ast.Subscript):
                key = string_of(target.slice) or ""
                boxed = own_attribute(outermost(target.value))
                kind = value_kind(value, method, self.context) if boxed in self.boxes else ""
                named = boxed and set(snake(boxed).split("_")) & {
                    "state",
                    "states",
                    "status",
                    "statuses",
                    "phases",
                }
                moved = boxed in self.boxes and _MOVES.match(method.name) is not None
                info.sets_state |= (
                    is_state_name(key, states) or kind in {"state", "row"} or bool(named) or moved
                )
        for counted in method.of(ast.AugAssign):
            if isinstance(counted.op, ast.Add):
                _note(fact.counters, _counter(counted.target))
        for comparison in method.of(ast.Compare):
            self._compare(comparison)
        for call in method.of(ast.Call):
            name = last_name(call.func)
            carries = _carries_state(call, states)
            moves = (
                isinstance(call.func, ast.Attribute) and _MOVES.match(name) and not _is_self(call.func.value)
            )
            born = name[:1].isupper() and carries and _SETTER.match(method.name)
            info.sets_state |= bool(moves or born or (carries and name in {"setattr", "update", "replace"}))

    def _compare(self, comparison: ast.Compare) -> None:
        if not isinstance(comparison.ops[0], (ast.Gt, ast.GtE, ast.Lt, ast.LtE, ast.Eq)):
            return
        for side in (comparison.left, *comparison.comparators):
            name = own_attribute(side)
            if name:
                _note(self.fact.compared, name)
            if isinstance(side, ast.BinOp) or is_time(side):
                parts = [side.left, side.right] if isinstance(side, ast.BinOp) else [side]
                if any(
                    is_time(part) or last_name(part) in {"now", "current_time", "elapsed"} for part in parts
                ):
                    _note(self.fact.clocks, next((last_name(p) for p in parts if last_name(p)), "now"))
                    if isinstance(side, ast.BinOp):
                        _note(self.fact.compared, own_attribute(side.right) or last_name(side.right))


def _column(value: ast.expr) -> str:
    return last_name(value.func) if isinstance(value, ast.Call) else ""


def _counter(target: ast.expr) -> str:
    if isinstance(target, ast.Subscript):
        return (string_of(target.slice) or "") if own_attribute(outermost(target)) else ""
    return own_attribute(target) or (
        last_name(target) if own_attribute(getattr(target, "value", None)) else ""
    )


def _annotation_of(name: str, scope: Scope) -> str:
    node = scope.node
    if isinstance(node, FunctionNode):
        for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            if arg.arg == name and arg.annotation is not None:
                return spelled_type(arg.annotation)
    return ""


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


def _carries_state(call: ast.Call, states: list[str]) -> bool:
    if any(keyword.arg in states for keyword in call.keywords):
        return True
    return any(
        string_of(argument) in states
        or (isinstance(argument, ast.Dict) and any(string_of(key) in states for key in argument.keys))
        for argument in call.args
    )
