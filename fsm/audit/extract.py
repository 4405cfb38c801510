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
)
from fsm.audit.context import FileContext
from fsm.audit.facts import Box, ClassFact, FileFacts, Method, slim
from fsm.audit.lifecycle import STATE_MOVES, is_state_member, is_state_name, state_word
from fsm.audit.modules import exports, spelled_bases
from fsm.audit.names import bindings_of, is_double_name, snake
from fsm.audit.scopes import FunctionNode, Scope, dotted, functions, last_name, stores, string_of
from fsm.audit.values import Values

_TAKES_OUT: Final = {"pop", "popitem", "remove", "discard", "clear", "popleft"}
_READS: Final = {"get", "pop", "setdefault", "__contains__", "__getitem__"}
_TIMES: Final = re.compile(r"(^|\.)(time|monotonic|perf_counter|now|utcnow|time_ns|monotonic_ns|loop\.time)$")
_NOWS: Final = {"now", "current_time", "elapsed"}
_TASKS: Final = frozenset(
    "create_task ensure_future Thread Process submit run_in_executor Task Timer start_soon".split()
)
_SETTER: Final = re.compile(
    r"^_*(set|update|transition|mark|advance|change|move|record|register|start|begin|complete|finish|fail|cancel"
    r"|end|abort|stop|timeout|time_out|create|submit|track|add)(_|$)"
)
_WORK: Final = re.compile(
    r"^_*(a?execute|a?run|a?invoke|astream|process|step|act|kickoff|perform)(_|$)|^(create_task|ensure_future|wait_for|gather"
    r"|run_in_executor|to_thread|submit|apply_async|Popen|start|start_soon)$"
)
_FETCHES: Final = re.compile(
    r"^_*(get|pop|dequeue|receive|poll|claim|reserve|fetch|lease|take|[bl]+pop)(_|$)"
)
_MAKES: Final = re.compile(r"^_*(create|make|build|new|for|from|instance|get_instance|default)(_|$)")
_TELLS: Final = re.compile(r"state|status|phase|transition|progress")
_MODEL: Final = re.compile(r"(BaseModel|Model|Schema|Settings|Struct|NamedTuple|TypedDict)$")
_STATE_BOXES: Final = frozenset("state states status statuses phases".split())
_MOST: Final = 12
"""The names of one kind that a record keeps; a class of hundreds of containers is known by its first ones."""


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
            function = _method(scope, values)
            for declared in scope.of(ast.Global):
                for name in declared.names:
                    _note(function.gives, name)
            if function.makes or function.loops:
                facts.functions.append(function)
    if not source.is_test:
        facts.boxes = _module_boxes(context)
    slim(facts)
    return facts


def _module_boxes(context: FileContext) -> list[Box]:
    boxes: dict[str, Box] = {}
    for node in context.scopes[0].of(ast.Assign, ast.AnnAssign):
        note = spelled_type(node.annotation) if isinstance(node, ast.AnnAssign) else ""
        kind = container_kind(node.value, note) if node.value is not None else ""
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if kind and isinstance(target, ast.Name):
                end = node.end_lineno or node.lineno
                boxes[target.id] = Box(target.id, node.lineno, end, kind == "mapping", True, note)
    for scope in context.scopes if boxes else ():
        if isinstance(scope.node, FunctionNode):
            local = bindings_of(scope, context.source)
            if mine := {name: box for name, box in boxes.items() if name not in local}:
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
        if isinstance(comparison.ops[0], (ast.In, ast.NotIn)) and (box := box_of(comparison.comparators[0])):
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


def value_kind(value: ast.expr | None, scope: Scope, context: FileContext) -> str:
    """Say in one word what an expression puts into a container."""
    states = context.config.state_names
    if isinstance(value, ast.Name):
        # A record is often built first and stored afterwards.
        bound = bindings_of(scope, context.source).get(value.id, ())
        value = next((b.value for b in bound if isinstance(b.value, (ast.Dict, ast.Call))), value)
    if isinstance(value, ast.Await):
        value = value.value
    if isinstance(value, ast.Dict):
        return "row" if any(is_state_name(string_of(key) or "", states) for key in value.keys) else ""
    if isinstance(value, ast.Call):
        name = last_name(value.func)
        if is_time(value) or name in _TASKS:
            return "time" if is_time(value) else "task"
        if any(is_state_name(keyword.arg or "", states) for keyword in value.keywords):
            return "row"
        return f"={dotted(value.func)}" if name[:1].isupper() else ""
    if isinstance(value, ast.BinOp):
        return "time" if is_time(value.left) or is_time(value.right) else ""
    return "state" if state_word(value) or is_state_member(value) else ""


def is_time(node: ast.AST | None) -> bool:
    """Say whether an expression reads a clock."""
    return isinstance(node, ast.Call) and _TIMES.search(dotted(node.func)) is not None


def _method(scope: Scope, values: Values) -> Method:
    node = scope.node
    assert isinstance(node, FunctionNode)  # noqa: S101 # for the type checker
    args = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    last = node.body[0].lineno if node.body else node.lineno
    fact = Method(scope.name, node.lineno, last, args[:_MOST], isinstance(node, ast.AsyncFunctionDef))
    if node.returns is not None:
        fact.note = spelled_type(node.returns)
    loops = [*scope.of(ast.For, ast.AsyncFor), *scope.of(ast.While)][:_MOST]
    handlers = scope.of(ast.ExceptHandler) if loops else ()
    tried = any(loop.lineno <= h.lineno <= (loop.end_lineno or 0) for h in handlers for loop in loops)
    for call in scope.of(ast.Call):
        _note_call(fact, call, scope, values)
        if tried and len(fact.loops) < _MOST:
            name = last_name(call.func)
            _note(fact.loops, "sleep" if name == "sleep" else f"call:{dotted(call.func) or name}")
    if tried:
        fact.loops.append("try")
    fact.works = _works(scope, loops)
    for result in scope.of(ast.Return):
        value = result.value.value if isinstance(result.value, ast.Await) else result.value
        if isinstance(value, ast.Call):
            name = last_name(value.func)
            of = last_name(getattr(value.func, "value", None))
            _note(fact.gives, f"{of if _MAKES.match(name) and of[:1].isupper() else name}()")
        else:
            _note(fact.gives, last_name(value))
    return fact


def _note_call(fact: Method, call: ast.Call, scope: Scope, values: Values) -> None:
    """Note what a call makes, forwards or drives."""
    func = made = call.func
    name = last_name(func)
    fact.calls += 1
    fact.drives = fact.drives or _WORK.match(name) is not None
    if isinstance(func, ast.Attribute) and name[:1].islower() and _MAKES.match(name):
        made = func.value
    of = last_name(made)
    if of.lstrip("_")[:1].isupper() and not of.isupper():
        for symbol in values.of(made, scope):
            _note(fact.makes, symbol)
    elif isinstance(func, ast.Attribute) and (part := own_attribute(func.value)):
        _note(fact.forwards, f"{part}.{name}")
    for argument in call.args:
        # What is handed over to be called later, such as to_thread(self.engine.run), is forwarded all the same.
        if isinstance(argument, ast.Attribute) and (part := own_attribute(argument.value)):
            _note(fact.forwards, f"{part}.{argument.attr}")


def _works(scope: Scope, loops: list[ast.For | ast.AsyncFor | ast.While]) -> list[str]:
    """Name what a function works through: what it loops over and runs item by item, or ``queue``."""
    found: list[str] = []
    items = [
        (loop.target, loop.iter)
        for loop in [*loops, *scope.of(ast.comprehension)]
        if not isinstance(loop, ast.While)
    ]
    runs: set[str] = set()
    if items or loops:
        for call in scope.of(ast.Call):
            name = last_name(call.func)
            if _WORK.match(name):
                used = [call.func, *call.args]
                used += [
                    inner
                    for outer in call.args
                    if isinstance(outer, ast.Call)
                    for inner in (outer.func, *outer.args)
                ]
                runs.update(_root(part) for part in used)
            elif _FETCHES.match(name) and any(
                isinstance(loop, ast.While) and loop.lineno <= call.lineno <= (loop.end_lineno or 0)
                for loop in loops
            ):
                runs.add("")
                _note(found, f"queue:{last_name(getattr(call.func, 'value', None))}")
    for target, of in items:
        names = {part.id for part in ast.walk(target) if isinstance(part, ast.Name)}
        if names & runs:
            inner = of.func.value if isinstance(of, ast.Call) and isinstance(of.func, ast.Attribute) else of
            _note(found, snake(last_name(inner)))
    return found


def _root(node: ast.expr) -> str:
    while isinstance(node, (ast.Attribute, ast.Starred)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


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
        for method in methods if self.boxes else ():
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
                        column = last_name(item.value.func) if isinstance(item.value, ast.Call) else ""
                        self.fact.fields.setdefault(target.id, column)
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
        if not fact.fields.get(name):
            fact.fields[name] = note or _annotation_of(plain_name(value), scope)
        if is_time(value):
            _note(fact.clocks, name)
        if is_state_name(name.lstrip("_"), self.context.config.state_names) and (word := state_word(value)):
            _note(fact.states.setdefault(name, []), word)
        options: list[ast.AST | None] = [*value.values] if isinstance(value, ast.BoolOp) else [value]
        if isinstance(value, ast.Name):
            options = [bound.value for bound in bindings_of(scope, self.context.source).get(value.id, ())]
        for option in options:
            if isinstance(option, ast.Call):
                for symbol in self.values.of(option.func, scope):
                    if symbol.rpartition(".")[2].lstrip("_")[:1].isupper():
                        _note(fact.parts.setdefault(name, []), symbol)

    def _method(self, method: Scope) -> None:
        fact = self.fact
        info = _method(method, self.values)
        fact.methods.append(info)
        info.sets_state = any(self._stores_state(*pair, method) for pair in stores(method))
        setter = _SETTER.match(method.name) is not None
        for call in method.of(ast.Call):
            name = last_name(call.func)
            if not info.sets_state:
                info.sets_state = self._calls_state(call, name, setter=setter)
            if _TELLS.search(name):
                self._tell(call, name)
        for counted in method.of(ast.AugAssign):
            if isinstance(counted.op, ast.Add):
                _note(fact.counters, _counter(counted.target))
        for comparison in method.of(ast.Compare):
            self._compare(comparison)

    def _tell(self, call: ast.Call, name: str) -> None:
        """Note a call that says which state something is in, such as ``self.tracker.update_status(id, RUNNING)``."""
        for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
            if word := state_word(argument):
                _note(self.fact.states.setdefault(f"{name}()", []), word)

    def _stores_state(self, target: ast.expr, value: ast.expr | None, method: Scope) -> bool:
        states = self.context.config.state_names
        if isinstance(target, ast.Attribute):
            return is_state_name(target.attr, states) and not own_attribute(target)
        if not isinstance(target, ast.Subscript):
            return False
        box = own_attribute(outermost(target.value))
        if is_state_name(string_of(target.slice) or "", states) or set(snake(box).split("_")) & _STATE_BOXES:
            return True
        return box in self.boxes and (
            STATE_MOVES.match(method.name) is not None
            or value_kind(value, method, self.context) in {"state", "row"}
        )

    def _calls_state(self, call: ast.Call, name: str, *, setter: bool) -> bool:
        func = call.func
        moves = isinstance(func, ast.Attribute) and STATE_MOVES.match(name) is not None
        if moves and plain_name(func.value) not in {"self", "cls"}:  # type: ignore[attr-defined] # an attribute
            return True
        carries = name in {"setattr", "update", "replace"} or (setter and name[:1].isupper())
        return carries and _carries_state(call, self.context.config.state_names)

    def _compare(self, comparison: ast.Compare) -> None:
        if not isinstance(comparison.ops[0], (ast.Gt, ast.GtE, ast.Lt, ast.LtE, ast.Eq)):
            return
        for side in (comparison.left, *comparison.comparators):
            _note(self.fact.compared, own_attribute(side))
            parts = [side.left, side.right] if isinstance(side, ast.BinOp) else [side]
            if isinstance(side, ast.BinOp) or is_time(side):
                if not any(is_time(part) or last_name(part) in _NOWS for part in parts):
                    continue
                _note(self.fact.clocks, next((last_name(p) for p in parts if last_name(p)), "now"))
                if isinstance(side, ast.BinOp):
                    _note(self.fact.compared, own_attribute(side.right) or last_name(side.right))


def _counter(target: ast.expr) -> str:
    if isinstance(target, ast.Subscript):
        return (string_of(target.slice) or "") if own_attribute(outermost(target)) else ""
    return own_attribute(target) or (
        last_name(target) if own_attribute(getattr(target, "value", None)) else ""
    )


def _annotation_of(name: str, scope: Scope) -> str:
    node = scope.node
    if name and isinstance(node, FunctionNode):
        for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            if arg.arg == name and arg.annotation is not None:
                return spelled_type(arg.annotation)
    return ""


def _carries_state(call: ast.Call, states: list[str]) -> bool:
    if any(keyword.arg in states for keyword in call.keywords):
        return True
    return any(
        string_of(argument) in states
        or (isinstance(argument, ast.Dict) and any(string_of(key) in states for key in argument.keys))
        for argument in call.args
    )
