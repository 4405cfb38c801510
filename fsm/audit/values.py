"""Which classes an expression may stand for, as dotted symbols."""

from __future__ import annotations

import ast
from typing import Final

from fsm.audit.files import Source
from fsm.audit.limits import SYMBOLS_PER_EXPRESSION, Work
from fsm.audit.modules import UNKNOWN
from fsm.audit.names import absolute_module, bindings_of, imported_name, lookup
from fsm.audit.scopes import Binding, Scope, dotted, last_name, string_of

_DEPTH: Final = 10
# What hangs on an object nobody knows; only a telling class name is believed of it.
_OBJECT: Final = f"{UNKNOWN}.{UNKNOWN}"


# Names, not bound methods: those would tie the syntax tree into a reference cycle.
_JUDGES: Final = {
    ast.Name: "_name",
    ast.Attribute: "_attribute",
    ast.Subscript: "_subscript",
    ast.Call: "_call",
    ast.IfExp: "_branch",
    ast.BoolOp: "_either",
    ast.NamedExpr: "_walrus",
}


class Values:
    """Evaluates the names of one file."""

    def __init__(self, source: Source, root: Scope, work: Work) -> None:
        self._source = source
        self._work = work
        self._known: dict[tuple[int, int], list[str]] = {}
        self._names: dict[tuple[int, str], list[str]] = {}
        # A node that is known by its address must not be freed before the other nodes.
        self._kept: list[ast.AST | None] = []
        self._inner = {child.qualname: child for child in root.children}
        self._root = root
        self._stars = [
            absolute_module(node, source)
            for node in root.of(ast.ImportFrom)
            if any(alias.name == "*" for alias in node.names)
        ]

    def of(self, node: ast.AST | None, scope: Scope, depth: int = 0) -> list[str]:
        """List the symbols an expression may stand for."""
        judge = _JUDGES.get(node.__class__)
        if judge is None or depth >= _DEPTH:
            return []
        # A name that is bound n times to one that is bound n times would be followed n * n times.
        key = (id(node), id(scope)) if isinstance(node, ast.Name) else None
        if key is not None and key in self._known:
            return self._known[key]
        if not self._work.step():
            return []
        if key is not None:
            # A name that is reached again while it is followed adds nothing.
            self._known[key] = []
            self._kept.append(node)
        found: list[str] = getattr(self, judge)(node, scope, depth + 1)
        symbols = list(dict.fromkeys(found))[:SYMBOLS_PER_EXPRESSION]
        if key is not None:
            self._known[key] = symbols
        return symbols

    def _branch(self, node: ast.IfExp, scope: Scope, depth: int) -> list[str]:
        return self._all([node.body, node.orelse], scope, depth)

    def _either(self, node: ast.BoolOp, scope: Scope, depth: int) -> list[str]:
        return self._all(node.values, scope, depth)

    def _walrus(self, node: ast.NamedExpr, scope: Scope, depth: int) -> list[str]:
        return self.of(node.value, scope, depth)

    def _all(self, nodes: list[ast.expr], scope: Scope, depth: int) -> list[str]:
        return [symbol for node in nodes for symbol in self.of(node, scope, depth)]

    def _name(self, node: ast.Name, scope: Scope, depth: int) -> list[str]:
        found = lookup(node.id, scope, self._source)
        owner = found[0].scope if found else None
        if owner is not None:
            # All uses of a name that one scope binds stand for the same.
            name = (id(owner), node.id)
            if name not in self._names:
                self._names[name] = []
                bound = [symbol for binding in found for symbol in self._bound(binding, scope, depth)]
                self._names[name] = list(dict.fromkeys(bound))[:SYMBOLS_PER_EXPRESSION]
            return self._names[name]
        if not found:
            starred = [f"{star}.{node.id}" for star in self._stars]
            return starred or [f"{UNKNOWN}.{node.id}"]
        return [symbol for binding in found for symbol in self._bound(binding, scope, depth)]

    def _bound(self, binding: Binding, scope: Scope, depth: int) -> list[str]:
        if binding.kind == "import":
            return [binding.target]
        if binding.kind == "class":
            return [f"{self._source.module}.{binding.target}"]
        return self.of(binding.value, binding.scope or scope, depth)

    def _attribute(self, node: ast.Attribute, scope: Scope, depth: int) -> list[str]:
        owner = scope.enclosing_class()
        if isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"} and owner is not None:
            return self._own_attribute(node.attr, owner, depth)
        if isinstance(node.value, ast.Name):
            # A class attribute read through the class's name.
            for binding in lookup(node.value.id, scope, self._source):
                if binding.kind == "class":
                    inner = self._class_scope(binding.target)
                    held = self._own_attribute(node.attr, inner, depth) if inner else []
                    if held:
                        return held
        bases = self.of(node.value, scope, depth)
        return [f"{base}.{node.attr}" for base in bases] or [f"{_OBJECT}.{node.attr}"]

    def _class_scope(self, qualname: str) -> Scope | None:
        return self._inner.get(qualname)

    def _own_attribute(self, name: str, owner: Scope, depth: int) -> list[str]:
        key = (id(owner), f".{name}")
        if key in self._names:
            return self._names[key]
        self._names[key] = []
        held: list[str] = []
        for binding in bindings_of(owner, self._source).get(name, ()):
            held.extend(self._bound(binding, owner, depth))
        for value, scope in self._instance_attributes(owner).get(name, ()):
            held.extend(self.of(value, scope, depth))
        self._names[key] = list(dict.fromkeys(held))[:SYMBOLS_PER_EXPRESSION]
        return self._names[key]

    def _instance_attributes(self, owner: Scope) -> dict[str, list[tuple[ast.expr, Scope]]]:
        if owner.attrs is None:
            owner.attrs = {}
            for method in owner.children:
                for node in method.of(ast.Assign):
                    for target in node.targets:
                        if isinstance(target, ast.Attribute) and dotted(target.value) in {"self", "cls"}:
                            owner.attrs.setdefault(target.attr, []).append((node.value, method))
        return owner.attrs

    def _subscript(self, node: ast.Subscript, scope: Scope, depth: int) -> list[str]:
        key = string_of(node.slice)
        inner = node.value
        if key is not None and isinstance(inner, ast.Call) and last_name(inner.func) in {"globals", "locals"}:
            return self.of(ast.Name(id=key), self._root, depth)
        if key is not None and dotted(inner) == "sys.modules":
            return [key]
        if key is not None and (of := _namespace(inner)) is not None:
            return [f"{base}.{key}" for base in self.of(of, scope, depth)]
        held = self._held_in(inner, key, scope, depth)
        found = held if held is not None else self.of(inner, scope, depth)
        # What a fixture holds under the name of a class is taken for that class, where the name is telling.
        named = key is not None and key[:1].isupper() and key.isidentifier()
        return found or ([f"{_OBJECT}.{key}"] if named else [])

    def _held_in(self, node: ast.expr, key: str | None, scope: Scope, depth: int) -> list[str] | None:
        """Look into a display of values, written here or bound to a name."""
        options: list[tuple[ast.AST | None, Scope]] = [(node, scope)]
        if isinstance(node, ast.Name):
            options = [(b.value, b.scope or scope) for b in lookup(node.id, scope, self._source)]
        elif isinstance(node, ast.Attribute) and dotted(node.value) in {"self", "cls"}:
            owner = scope.enclosing_class()
            options = list(self._class_values(node.attr, owner)) if owner is not None else []
        for option, where in options:
            if isinstance(option, ast.Dict):
                pairs = zip(option.keys, option.values, strict=True)
                chosen = [value for name, value in pairs if key is None or string_of(name) in {None, key}]
                return self._all(chosen, where, depth)
            if isinstance(option, (ast.List, ast.Tuple)):
                return self._all(option.elts, where, depth)
        return None

    def _class_values(self, name: str, owner: Scope) -> list[tuple[ast.AST | None, Scope]]:
        held: list[tuple[ast.AST | None, Scope]] = [
            (binding.value, owner) for binding in bindings_of(owner, self._source).get(name, ())
        ]
        held.extend(self._instance_attributes(owner).get(name, ()))
        return held

    def _call(self, node: ast.Call, scope: Scope, depth: int) -> list[str]:
        name = last_name(node.func)
        args = node.args
        if not args:
            return []
        text = string_of(args[0])
        if name in {"import_module", "__import__"} and text is not None:
            return [text if not text.startswith(".") else f"{self._package()}{text}"]
        if name == "get" and isinstance(node.func, ast.Attribute):
            held = self._held_in(node.func.value, text, scope, depth) or []
            return held + (self.of(args[1], scope, depth) if len(args) > 1 else [])
        return self._two(name, node, scope, depth) if len(args) > 1 else []

    def _two(self, name: str, node: ast.Call, scope: Scope, depth: int) -> list[str]:
        """Evaluate the builtins that hand out a class when called with two arguments."""
        args = node.args
        attribute = string_of(args[1])
        if name == "getattr" and attribute:
            return [f"{base}.{attribute}" for base in self.of(args[0], scope, depth)]
        if name == "cast" and imported_name(dotted(node.func), scope, self._source).startswith("typing"):
            return self.of(args[1], scope, depth)
        if name == "type" and isinstance(args[1], ast.Tuple):
            return self._all(args[1].elts, scope, depth)
        return []

    def _package(self) -> str:
        module = self._source.module
        return module if self._source.is_package else module.rpartition(".")[0]


def _namespace(node: ast.expr) -> ast.expr | None:
    """Find x in ``x.__dict__`` and ``vars(x)``."""
    if isinstance(node, ast.Attribute) and node.attr == "__dict__":
        return node.value
    if isinstance(node, ast.Call) and dotted(node.func) == "vars" and node.args:
        return node.args[0]
    return None
