"""One fast walk over a syntax tree that sorts its nodes by the scope they stand in.

Every rule asks for calls, assignments and the like of one function or class. Walking once and sorting
is several times faster than a visitor per rule, and keeps the rules free of traversal.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final, TypeVar, overload

A = TypeVar("A", bound=ast.AST)
B = TypeVar("B", bound=ast.AST)
C = TypeVar("C", bound=ast.AST)
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

# Operators, contexts and annotations never construct or assign anything, so they are not walked.
_UNWALKED: Final = frozenset(
    "ctx op ops annotation returns type_comment type_params names name attr id arg level module kind "
    "conversion simple is_async rest kwd_attrs tag".split()
)
_KEPT: Final = frozenset(
    {
        ast.Call,
        ast.Assign,
        ast.AnnAssign,
        ast.AugAssign,
        ast.NamedExpr,
        ast.Delete,
        ast.Return,
        ast.Yield,
        ast.Dict,
        ast.Set,
        ast.List,
        ast.Tuple,
        ast.For,
        ast.AsyncFor,
        ast.comprehension,
        ast.With,
        ast.AsyncWith,
        ast.Import,
        ast.ImportFrom,
        ast.Global,
        ast.Compare,
        ast.ExceptHandler,
        ast.Subscript,
        ast.Lambda,
        ast.While,
    }
)


def _walked_fields() -> dict[type, tuple[str, ...]]:
    fields: dict[type, tuple[str, ...]] = {type(None): ()}
    for kind in vars(ast).values():
        if isinstance(kind, type) and issubclass(kind, ast.AST):
            fields[kind] = tuple(name for name in kind._fields if name not in _UNWALKED)
    for leaf in (
        ast.Name,
        ast.Constant,
        ast.Global,
        ast.Nonlocal,
        ast.Pass,
        ast.Import,
        ast.ImportFrom,
        ast.MatchSingleton,
    ):
        fields[leaf] = ()
    fields[ast.Attribute] = ("value",)
    fields[ast.keyword] = ("value",)
    fields[ast.arguments] = ("defaults", "kw_defaults")
    fields[ast.FormattedValue] = ("value",)
    fields[ast.ExceptHandler] = ("body",)
    return fields


_FIELDS: Final = _walked_fields()


class Scope:
    """A module, class or function body, with the nodes that stand directly in it."""

    __slots__ = ("attrs", "bindings", "children", "kind", "name", "node", "nodes", "parent", "qualname")

    def __init__(self, kind: str, name: str, node: ast.AST, parent: Scope | None) -> None:
        self.kind = kind
        self.name = name
        self.node = node
        self.parent = parent
        self.children: list[Scope] = []
        self.nodes: dict[type, list[ast.AST]] = {}
        self.bindings: dict[str, list[Binding]] | None = None
        self.attrs: dict[str, list[tuple[ast.expr, Scope]]] | None = None
        if parent is None or parent.kind == "module":
            self.qualname = name
        else:
            self.qualname = f"{parent.qualname}.{name}"

    @overload
    def of(self, kind: type[A], /) -> Iterator[A]: ...

    @overload
    def of(self, kind: type[A], second: type[B], /) -> Iterator[A | B]: ...

    @overload
    def of(self, kind: type[A], second: type[B], third: type[C], /) -> Iterator[A | B | C]: ...

    def of(self, kind: type[ast.AST], *more: type[ast.AST]) -> Iterator[Any]:
        """Give the nodes of some kinds that stand directly in this scope."""
        nodes = self.nodes
        if not more:
            return iter(nodes.get(kind, ()))
        return chain.from_iterable([nodes[one] for one in (kind, *more) if one in nodes])

    def enclosing(self) -> Iterator[Scope]:
        """Give this scope and every one around it."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def enclosing_class(self) -> Scope | None:
        """Find the class this scope stands in."""
        return next((scope for scope in self.enclosing() if scope.kind == "class"), None)

    def symbol(self) -> str:
        """Name the scope for people."""
        return self.qualname if self.kind != "module" else "<module>"


class Binding:
    """One way a name gets its value: an import, a definition, an assignment, a parameter."""

    __slots__ = ("kind", "scope", "target", "value")

    def __init__(
        self, kind: str, value: ast.AST | None = None, target: str = "", scope: Scope | None = None
    ) -> None:
        self.kind = kind
        self.value = value
        self.target = target
        self.scope = scope


def build_scopes(tree: ast.Module) -> list[Scope]:
    """Walk a module once and sort its nodes by scope."""
    root = Scope("module", "", tree, None)
    scopes = [root]
    pending: list[tuple[Scope, list[ast.stmt]]] = [(root, tree.body)]
    while pending:
        scope, body = pending.pop()
        for inner in _fill(scope, body):
            scopes.append(inner)
            inner_body: list[ast.stmt] = inner.node.body  # type: ignore[attr-defined] # a definition has one
            pending.append((inner, inner_body))
    return scopes


def _fill(scope: Scope, body: list[ast.stmt]) -> list[Scope]:
    """File every node of one body; definitions inside become scopes of their own."""
    nodes = scope.nodes
    stack: list[ast.AST | None] = list(body)
    pop, push, extend = stack.pop, stack.append, stack.extend
    while stack:
        node = pop()
        kind = node.__class__
        if kind is ast.Name or kind is ast.Constant:
            # Half of all nodes, with nothing below them.
            continue
        if kind in _KEPT:
            if kind in nodes:
                nodes[kind].append(node)  # type: ignore[arg-type] # None is not in _KEPT
            else:
                nodes[kind] = [node]  # type: ignore[list-item] # None is not in _KEPT
        elif kind in _DEFINITIONS:
            _define(scope, node, stack)  # type: ignore[arg-type] # a definition
            continue
        for name in _FIELDS[kind]:
            value = getattr(node, name)
            if value.__class__ is list:
                extend(value)
            elif value is not None:
                push(value)
    return scope.children


def functions(scope: Scope) -> Iterator[Scope]:
    """Give the methods of a class, those inside methods included."""
    pending = list(reversed(scope.children))
    while pending:
        child = pending.pop()
        if isinstance(child.node, FunctionNode):
            yield child
            pending.extend(reversed(child.children))


_DEFINITIONS: Final = frozenset({ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef})


def _define(scope: Scope, node: ast.ClassDef | FunctionNode, stack: list[ast.AST | None]) -> None:
    kind = "class" if isinstance(node, ast.ClassDef) else "function"
    scope.children.append(Scope(kind, node.name, node, scope))
    stack.extend(node.decorator_list)
    if isinstance(node, ast.ClassDef):
        stack.extend(node.keywords)
        stack.extend(node.bases)
    else:
        stack.append(node.args)


def unpacked(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Give the single targets of an assignment, each with its own value where that is written beside it."""
    if not isinstance(target, (ast.Tuple, ast.List)):
        yield target, value
        return
    values: list[ast.expr | None] = [None] * len(target.elts)
    if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(values):
        values = list(value.elts)
    for inner, inner_value in zip(target.elts, values, strict=True):
        yield from unpacked(inner, inner_value)


def stores(scope: Scope) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Give every target that a scope assigns to, tuples taken apart."""
    for node in scope.of(ast.Assign):
        for target in node.targets:
            if target.__class__ is ast.Tuple or target.__class__ is ast.List:
                yield from unpacked(target, node.value)
            else:
                yield target, node.value
    for single in scope.of(ast.AnnAssign, ast.AugAssign):
        if single.value is not None:
            yield single.target, single.value


def release(scopes: list[Scope]) -> None:
    """Break the reference cycles between scopes, so that memory is freed without the collector."""
    for scope in scopes:
        scope.parent = None
        scope.children = []
        scope.nodes = {}
        scope.bindings = None
        scope.attrs = None


def dotted(node: ast.AST | None) -> str:
    """Spell an attribute chain."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    parts.append(node.id)
    return ".".join(reversed(parts))


def last_name(node: ast.AST | None) -> str:
    """Give the last name of a chain, whatever it hangs on."""
    # Asked of every call several times; the classes of syntax trees have no heirs.
    kind = node.__class__
    if kind is ast.Attribute:
        return node.attr  # type: ignore[union-attr, no-any-return]
    return node.id if kind is ast.Name else ""  # type: ignore[union-attr]


def string_of(node: ast.AST | None) -> str | None:
    """Give the text of a string literal."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None
