"""Containers and what is written into them: the shapes of assignments that several rules look at."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from fsm.audit.files import printable
from fsm.audit.limits import LONGEST_NAME
from fsm.audit.scopes import Scope, last_name

_MAPPINGS: Final = {
    "dict",
    "defaultdict",
    "OrderedDict",
    "WeakValueDictionary",
    "WeakKeyDictionary",
    "TTLCache",
    "LRUCache",
    "Dict",
    "DefaultDict",
    "MutableMapping",
    "Mapping",
    "SortedDict",
    "ConcurrentDict",
    "Manager",
}


_SEQUENCES: Final = {
    "list",
    "set",
    "deque",
    "List",
    "Set",
    "Deque",
    "WeakSet",
    "MutableSequence",
    "MutableSet",
}


FACTORY_KEYWORDS: Final = {"default_factory", "factory"}


MUTATORS: Final = frozenset(
    {
        "append",
        "add",
        "insert",
        "extend",
        "update",
        "pop",
        "popitem",
        "remove",
        "discard",
        "clear",
        "setdefault",
    }
    | {"appendleft", "popleft"}
)


def spelled(node: ast.expr, longest: int = 60) -> str:
    """Write an expression for a message."""
    try:
        return printable(ast.unparse(node)[:longest])
    except (ValueError, RecursionError):
        return "…"


def spelled_type(node: ast.expr) -> str:
    """Write an annotation, as far as it is judged."""
    return spelled(node, LONGEST_NAME)


def outermost(node: ast.expr) -> ast.expr:
    """Give what a chain of subscripts hangs on."""
    # self._by_user[user_id][execution_id] is kept in self._by_user.
    while isinstance(node, ast.Subscript):
        node = node.value
    return node


def stores(scope: Scope) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Give every target that a scope assigns to, tuples taken apart."""
    for node in scope.of(ast.Assign):
        for target in node.targets:
            yield from _unpacked(target, node.value)
    for single in scope.of(ast.AnnAssign, ast.AugAssign):
        if single.value is not None:
            yield single.target, single.value


def _unpacked(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    if not isinstance(target, (ast.Tuple, ast.List)):
        yield target, value
        return
    values: list[ast.expr | None] = [None] * len(target.elts)
    if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(values):
        values = list(value.elts)
    for inner, inner_value in zip(target.elts, values, strict=True):
        yield from _unpacked(inner, inner_value)


def own_attribute(node: ast.AST | None) -> str:
    """Name an attribute of the object or class a method belongs to."""
    if (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in {"self", "cls"}
    ):
        return node.attr
    return ""


def plain_name(target: ast.expr) -> str:
    """Name a variable."""
    return target.id if isinstance(target, ast.Name) else ""


def is_field(value: ast.expr | None) -> bool:
    """Say whether a value in a class body declares a field, of which every object has its own."""
    if value is None:
        return True
    if not isinstance(value, ast.Call):
        return False
    made = any(keyword.arg in FACTORY_KEYWORDS for keyword in value.keywords)
    return made or last_name(value.func).lower().endswith(("field", "attr", "attrib", "column"))


def container_kind(value: ast.expr | None, annotation: str = "") -> str:
    """Say what kind of container an expression makes."""
    if isinstance(value, ast.BoolOp):
        # What a caller may hand in falls back to a container of its own.
        value = value.values[-1]
    if isinstance(value, (ast.Dict, ast.DictComp)):
        return "mapping"
    if isinstance(value, (ast.List, ast.Set, ast.ListComp, ast.SetComp)):
        return "sequence"
    names: list[str] = []
    if isinstance(value, ast.Call):
        names = [last_name(value.func)]
        names += [last_name(keyword.value) for keyword in value.keywords if keyword.arg in FACTORY_KEYWORDS]
    names += re.findall(r"\w+", annotation)[:3]
    if any(name in _MAPPINGS for name in names):
        return "mapping"
    return "sequence" if any(name in _SEQUENCES for name in names) else ""
