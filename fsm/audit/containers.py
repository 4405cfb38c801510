"""Containers and what is written into them: the shapes of assignments that several rules look at."""

from __future__ import annotations

import ast
import re
from typing import Final

from fsm.audit.files import printable
from fsm.audit.limits import LONGEST_NAME
from fsm.audit.scopes import dotted, last_name

_MAPPINGS: Final = frozenset(
    "dict defaultdict OrderedDict WeakValueDictionary WeakKeyDictionary TTLCache LRUCache Dict DefaultDict "
    "MutableMapping Mapping SortedDict ConcurrentDict Manager".split()
)


_SEQUENCES: Final = frozenset("list set deque List Set Deque WeakSet MutableSequence MutableSet".split())


_CONTAINERS: Final = _MAPPINGS | _SEQUENCES
FACTORY_KEYWORDS: Final = {"default_factory", "factory"}


MUTATORS: Final = frozenset(
    "append add insert extend update pop popitem remove discard clear setdefault appendleft popleft".split()
)


def spelled(node: ast.expr, longest: int = 60) -> str:
    """Write an expression for a message."""
    if name := dotted(node):
        return name[:longest] if name.isascii() else printable(name[:longest])
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


def own_attribute(node: ast.AST | None) -> str:
    """Name an attribute of the object or class a method belongs to."""
    if (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in {"self", "cls"}
    ):
        return node.attr
    return ""


def plain_name(target: ast.AST | None) -> str:
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
    # What is written first is outermost: a list of dicts is a list.
    kinds = ("mapping" if name in _MAPPINGS else "sequence" for name in names if name in _CONTAINERS)
    return next(kinds, "")
