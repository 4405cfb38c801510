"""What a name stands for inside one file: imports, definitions, assignments, loops and parameters."""

from __future__ import annotations

import ast
import re
from typing import Final

from fsm.audit.files import Source
from fsm.audit.limits import LONGEST_NAME
from fsm.audit.scopes import Binding, FunctionNode, Scope, unpacked

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


_DOUBLE = re.compile(r"^_*(Mock|Fake|Stub|Dummy|Spy|Test)|(Mock|Stub|Fake|Double|Test|Tests|TestCase)$")


def snake(name: str) -> str:
    """Write a name in snake case, so that ``executionId`` and ``EXECUTION_ID`` compare equal."""
    name = name[:LONGEST_NAME]
    if name.islower():
        return name.strip("_")
    return _CAMEL.sub("_", name).lower().strip("_")


def import_targets(node: ast.Import | ast.ImportFrom, source: Source) -> list[tuple[str, str]]:
    """List the names an import statement binds and what each stands for."""
    if isinstance(node, ast.Import):
        heads = [alias.name.partition(".")[0] for alias in node.names]
        return [
            (alias.asname, alias.name) if alias.asname else (head, head)
            for alias, head in zip(node.names, heads, strict=True)
        ]
    base = absolute_module(node, source)
    return [(alias.asname or alias.name, f"{base}.{alias.name}") for alias in node.names]


def absolute_module(node: ast.ImportFrom, source: Source) -> str:
    """Give the absolute module that a from-import names."""
    if not node.level:
        return node.module or ""
    parts = source.module.split(".") if source.module else []
    strip = node.level - 1 if source.is_package else node.level
    parts = parts[: len(parts) - strip] if strip else parts
    return ".".join([*parts, *([node.module] if node.module else [])])


def bindings_of(scope: Scope, source: Source) -> dict[str, list[Binding]]:
    """List how every name of one scope gets its values; worked out once per scope."""
    if scope.bindings is None:
        scope.bindings = _bindings(scope, source)
    return scope.bindings


def _bindings(scope: Scope, source: Source) -> dict[str, list[Binding]]:  # noqa: C901 # a branch per kind of node
    found: dict[str, list[Binding]] = {}

    def bind(name: str, kind: str, value: ast.AST | None = None, target: str = "") -> None:
        found.setdefault(name, []).append(Binding(kind, value, target, scope))

    for node in scope.of(ast.Import, ast.ImportFrom):
        for name, target in import_targets(node, source):
            bind(name, "import", None, target)
    for child in scope.children:
        bind(child.name, child.kind, child.node, child.qualname)
    pairs: list[tuple[ast.expr, ast.expr | None]] = [
        (t, a.value) for a in scope.of(ast.Assign) for t in a.targets
    ]
    pairs += [(a.target, a.value) for a in scope.of(ast.AnnAssign, ast.NamedExpr) if a.value is not None]
    # What a context manager hands out is not known, and so hides an outer name.
    items = (item for block in scope.of(ast.With, ast.AsyncWith) for item in block.items)
    pairs += [(item.optional_vars, None) for item in items if item.optional_vars is not None]
    for loop in scope.of(ast.For, ast.AsyncFor, ast.comprehension):
        options = loop.iter.elts if isinstance(loop.iter, (ast.Tuple, ast.List, ast.Set)) else [None]
        pairs += [(loop.target, option) for option in options]
    for place, value in pairs:
        for inner, inner_value in unpacked(place, value):
            if isinstance(inner, ast.Name):
                bind(inner.id, "value", inner_value)
    if isinstance(scope.node, FunctionNode):
        args = scope.node.args
        for parameter in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg):
            if parameter is not None:
                bind(parameter.arg, "parameter")
        for name in (name for declared in scope.of(ast.Global) for name in declared.names):
            found.pop(name, None)
    return found


def lookup(name: str, scope: Scope, source: Source) -> list[Binding]:
    """Find how a name gets its value, seen from a scope, by Python's rules."""
    for place in scope.enclosing():
        # A class body is not visible from the functions inside it.
        if place.kind == "class" and place is not scope:
            continue
        found = bindings_of(place, source).get(name)
        if found:
            return found
    return []


def imported_name(text: str, scope: Scope, source: Source) -> str:
    """Spell a dotted name with its first part replaced by what was imported under it."""
    head, _, rest = text.partition(".")
    for binding in lookup(head, scope, source):
        if binding.kind == "import":
            return f"{binding.target}.{rest}" if rest else binding.target
    return text


def is_double_name(name: str) -> bool:
    """Say whether a class is called like a stand-in for tests."""
    return _DOUBLE.search(name) is not None


_LONGEST: Final = 80
_TAIL = re.compile(r"(_?(\d+|[a-z]|str|hex|value|first|second|one|two|user_?\d+|user_?[ab]))?$")


class IdNames:
    """Says whether a name means an execution id."""

    __slots__ = ("_known", "_pattern", "_spellings")

    def __init__(self, names: list[str]) -> None:
        options = "|".join(re.escape(snake(name)) for name in names) or "(?!)"
        squeezed = "|".join(re.escape(snake(name).replace("_", "")) for name in names) or "(?!)"
        self._pattern = re.compile(rf"((.*_)?({options})s?|({squeezed}))(?=(.*))")
        # execution.id = uuid4() and id = f"run_{n}" have no such name, and make such an id all the same.
        spellings = {snake(name).replace("_", joint) for name in names for joint in ("_", "-", "")}
        quoted = [quote + word for quote in "\"'" for word in ("exec", "run", "agent_exec", "agent_run")]
        self._spellings = [*sorted(spellings), "uuid", *quoted]
        self._known: dict[str, bool] = {}

    def __call__(self, name: str) -> bool:
        """Judge one name."""
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = self._judge(name)
        return known

    def mentions(self, text: str) -> list[int]:
        """Find where a text may speak of such an id at all; looking closer elsewhere is a waste of time."""
        lowered = text.lower()
        places: list[int] = []
        for spelling in self._spellings:
            # Many plain searches are several times faster than one pattern of alternatives.
            place = lowered.find(spelling)
            while place >= 0:
                places.append(place)
                place = lowered.find(spelling, place + 1)
        lines: list[int] = []
        line, last = 1, 0
        for place in sorted(places):
            line += lowered.count("\n", last, place)
            last = place
            lines.append(line)
        return lines

    def _judge(self, name: str) -> bool:
        if not name.isascii() or len(name) > _LONGEST or not name.replace("-", "_").isidentifier():
            return False
        match = self._pattern.match(snake(name.replace("-", "_")))
        return match is not None and _TAIL.fullmatch(match.group(5)) is not None
