"""What a class keeps and what its methods do with it, worked out once for several rules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from fsm.audit.names import bindings_of, snake
from fsm.audit.rules.containers import (
    MUTATORS,
    container_kind,
    is_field,
    outermost,
    own_attribute,
    plain_name,
    spelled_type,
    stores,
)
from fsm.audit.rules.lifecycle import is_record, is_state_member, state_word
from fsm.audit.scopes import FunctionNode, Scope, last_name, string_of

if TYPE_CHECKING:
    # The context hands out profiles, so it imports this module.
    from fsm.audit.rules.context import FileContext

_VALUE_TYPE: Final = re.compile(
    r"\b\w*(Execution(?!Plan|Config|Lock|Factory|Error|Policy|Options)|ExecutionRecord|AgentRun(?!time|ner)|RunState"
    r"|RunRecord|RunContext|AgentState|AgentPhase|RunInfo)"
)
# These words speak of what serves executions, not of executions.
_SERVICE: Final = re.compile(
    r"(^|_)(caches?|locks?|factory|factories|events?|config|configs|callbacks?|handlers?|listeners?|semaphores?|pools?"
    r"|metrics?|stats|counts?|counters?|times?|durations?|limits?|plans?|hooks?|results?|waiters?|futures?)$"
)
_STATE_WORDS: Final = {"state", "states", "status", "statuses", "phase", "phases"}
_SETTER: Final = re.compile(
    r"^_*(set|update|transition|mark|advance|change|move|record|register|start|begin|complete|finish|fail|cancel"
    r"|end|abort|stop|timeout|time_out)(_|$).*"
)
_STATE_NAME: Final = re.compile(r"(^|_)(state|status|phase)$")
_MOVES: Final = re.compile(
    r"^(set|update|change|advance)_(state|status|phase)$|^transition(_to|_state)?$|^mark_\w+"
)
_READS: Final = {"get", "pop", "setdefault", "__contains__", "__getitem__"}


class Keeping:
    """An attribute of a class that holds several things."""

    __slots__ = ("annotation", "class_level", "keyed_by_id", "mapping", "mutated", "name", "node")

    def __init__(
        self, name: str, node: ast.AST, *, mapping: bool, class_level: bool, annotation: str
    ) -> None:
        self.name = name
        self.node = node
        self.mapping = mapping
        self.class_level = class_level
        self.annotation = annotation
        self.keyed_by_id = False
        self.mutated = False


class ClassProfile:
    """The facts about one class.

    Args:
        context: The file.
        scope: The scope of the class.
    """

    def __init__(self, context: FileContext, scope: Scope) -> None:
        self.context = context
        self.scope = scope
        self.methods = list(_functions(scope))
        self.keepings: dict[str, Keeping] = {}
        self.setters: set[str] = set()
        self._find_keepings()
        # What the methods do matters only to what the class keeps.
        if self.keepings:
            for method in self.methods:
                self._read_method(method)

    @property
    def name(self) -> str:
        """Give the class's own name.

        Returns:
            The name.
        """
        return self.scope.name

    def registries(self) -> list[Keeping]:
        """List the attributes that keep executions.

        Returns:
            Mappings that are keyed by execution ids, hold execution records, or are called so.
        """
        return [keeping for keeping in self.keepings.values() if keeping.mapping and self.keeps_runs(keeping)]

    def keeps_runs(self, keeping: Keeping) -> bool:
        """Say whether an attribute keeps executions.

        Args:
            keeping: The attribute.

        Returns:
            True when its key, its type or its name says so.
        """
        if _SERVICE.search(snake(keeping.name)):
            return False
        if keeping.keyed_by_id or _VALUE_TYPE.search(keeping.annotation):
            return True
        words = set(snake(keeping.name).split("_"))
        plural = words & {word for word in self.context.config.registry_words if word.endswith("s")}
        mixed = words & {*self.context.config.registry_words, "agent", "agents"} and words & _STATE_WORDS
        return bool(plural or mixed)

    def _find_keepings(self) -> None:
        for node, scope in self._stores():
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                name = own_attribute(target) if scope is not self.scope else plain_name(target)
                if not name:
                    continue
                note = spelled_type(node.annotation) if isinstance(node, ast.AnnAssign) else ""
                kind = container_kind(node.value, note)
                if kind:
                    level = scope is self.scope and not self._per_object(node)
                    self.keepings.setdefault(
                        name,
                        Keeping(name, node, mapping=kind == "mapping", class_level=level, annotation=note),
                    )

    def _per_object(self, node: ast.Assign | ast.AnnAssign) -> bool:
        """Say whether a value in a class body becomes one value per object, as fields of models do."""
        if is_field(node.value):
            return True
        if not isinstance(node, ast.AnnAssign) or "ClassVar" in spelled_type(node.annotation):
            return False
        bases: list[ast.expr] = getattr(self.scope.node, "bases", [])
        return any(last_name(base).endswith(("Model", "Schema", "Settings", "Struct")) for base in bases)

    def _stores(self) -> Iterator[tuple[ast.Assign | ast.AnnAssign, Scope]]:
        for scope in (self.scope, *self.methods):
            for assignment in scope.of(ast.Assign):
                yield assignment, scope
            for typed in scope.of(ast.AnnAssign):
                yield typed, scope

    def _read_method(self, method: Scope) -> None:
        for target, value in stores(method):
            self._read_store(target, value, method)
        for node in method.of(ast.Subscript):
            self._note_key(node.value, node.slice)
        for call in method.of(ast.Call):
            self._read_call(call, method)
        for comparison in method.of(ast.Compare):
            if isinstance(comparison.ops[0], (ast.In, ast.NotIn)):
                self._note_key(comparison.comparators[0], comparison.left)
        for deletion in method.of(ast.Delete):
            for target in deletion.targets:
                if isinstance(target, ast.Subscript):
                    self._note_mutation(target.value)

    def _note_key(self, container: ast.expr, key: ast.expr) -> None:
        keeping = self.keepings.get(own_attribute(outermost(container)))
        if keeping is not None and self.is_id(key):
            keeping.keyed_by_id = True

    def _note_mutation(self, container: ast.expr) -> None:
        keeping = self.keepings.get(own_attribute(outermost(container)))
        if keeping is not None:
            keeping.mutated = True

    def is_id(self, node: ast.expr) -> bool:
        """Say whether an expression is an execution id.

        Args:
            node: The expression, such as a key.

        Returns:
            True for ``execution_id``, ``context.run_id``, ``execution.id`` and ``str(run_id)``.
        """
        if isinstance(node, ast.Call) and node.args and last_name(node.func) in {"str", "UUID"}:
            node = node.args[0]
        name = last_name(node)
        if name == "id" and isinstance(node, ast.Attribute):
            return is_record(node.value)
        return bool(name) and self.context.id_names(name)

    def _read_store(self, target: ast.expr, value: ast.expr | None, method: Scope) -> None:
        if isinstance(target, ast.Attribute):
            if self.is_state_name(target.attr) and not own_attribute(target):
                self.setters.add(method.name)
        elif isinstance(target, ast.Subscript):
            self._note_mutation(target.value)
            inner = own_attribute(outermost(target.value))
            key = string_of(target.slice)
            if (key and self.is_state_name(key)) or (inner and self._holds_state(inner, value, method)):
                self.setters.add(method.name)

    def is_state_name(self, name: str) -> bool:
        """Say whether an attribute or key holds a state.

        Args:
            name: Its name.

        Returns:
            True for the configured names and for what ends in state, status or phase.
        """
        return name in self.context.config.state_names or _STATE_NAME.search(name) is not None

    def _holds_state(self, name: str, value: ast.expr | None, method: Scope) -> bool:
        """Say whether a value that goes into a registry is, or carries, a state."""
        if name not in self.keepings:
            return False
        if isinstance(value, ast.Name):
            # A record is often built first and stored afterwards.
            bound = bindings_of(method, self.context.source).get(value.id, ())
            built = (binding.value for binding in bound if isinstance(binding.value, (ast.Dict, ast.Call)))
            value = next(built, value)
        if isinstance(value, ast.Dict):
            return any(string_of(key) in self.context.config.state_names for key in value.keys)
        if isinstance(value, ast.Call):
            return any(keyword.arg in self.context.config.state_names for keyword in value.keywords)
        named = set(snake(name).split("_")) & _STATE_WORDS
        return bool(state_word(value)) or is_state_member(value) or bool(named)

    def _read_call(self, call: ast.Call, method: Scope) -> None:
        func = call.func
        states = self.context.config.state_names
        name = last_name(func)
        if isinstance(func, ast.Attribute):
            if call.args and func.attr in _READS:
                self._note_key(func.value, call.args[0])
            if func.attr in MUTATORS:
                self._note_mutation(func.value)
        if name in {"setattr", "update", "replace"} and _carries_state(call, states):
            self.setters.add(method.name)
        elif isinstance(func, ast.Attribute) and _MOVES.match(name) and not _is_self(func.value):
            # The record moves itself; the order comes from here.
            self.setters.add(method.name)
        elif name[:1].isupper() and _SETTER.match(method.name) and _carries_state(call, states):
            # A record that is born with a state, by a method that starts executions.
            self.setters.add(method.name)


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


def _carries_state(call: ast.Call, states: list[str]) -> bool:
    if any(keyword.arg in states for keyword in call.keywords):
        return True
    for argument in call.args:
        if string_of(argument) in states:
            return True
        if isinstance(argument, ast.Dict) and any(string_of(key) in states for key in argument.keys):
            return True
    return False


def _functions(scope: Scope) -> Iterator[Scope]:
    for child in scope.children:
        if isinstance(child.node, FunctionNode):
            yield child
            yield from _functions(child)
