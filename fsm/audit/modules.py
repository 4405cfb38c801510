"""What the modules of a tree export to each other, kept small, and the search through them.

A `Module` is made of every file's facts. The `Linker` follows a dotted symbol through re-exports, stars and
aliases to the class it stands for.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Final

from fsm.audit.facts import ClassFact, FileFacts
from fsm.audit.files import Source
from fsm.audit.limits import STEPS_PER_SYMBOL, SYMBOLS_PER_EXPRESSION
from fsm.audit.names import absolute_module, bindings_of, import_targets
from fsm.audit.scopes import Scope, dotted, string_of

_DEPTH: Final = 16
UNKNOWN: Final = "?"


@dataclass(frozen=True, slots=True)
class Role:
    """What a class is, and why: a sentence for each family of evidence, and the attributes that keep its state."""

    kind: str
    evidence: dict[str, str]
    keeps: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class ClassInfo:
    """A class of the tree: its facts and the module that defines it."""

    module: Module
    fact: ClassFact
    symbol: str
    roles: dict[str, Role] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The class's own name."""
        return self.fact.name


@dataclass(slots=True, eq=False)
class Module:
    """A file of the tree: its facts, and its classes by qualified name."""

    source: Source
    facts: FileFacts
    classes: dict[str, ClassInfo] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The module's dotted name, worked out from the folders."""
        return self.source.module

    @classmethod
    def of(cls, source: Source, facts: FileFacts) -> Module:
        """Make the module of a file."""
        module = cls(source, facts)
        for fact in facts.classes:
            module.classes[fact.qualname] = ClassInfo(module, fact, f"{source.module}.{fact.qualname}")
        return module


def exports(source: Source, root: Scope) -> tuple[dict[str, list[str]], list[str]]:
    """List what the top level of a file binds by imports and aliases, and what it star-imports."""
    names: dict[str, list[str]] = {}
    stars: list[str] = []
    for node in root.of(ast.Import, ast.ImportFrom):
        for name, target in import_targets(node, source):
            if name == "*" and isinstance(node, ast.ImportFrom):
                stars.append(absolute_module(node, source))
            else:
                _add(names, name, f"={target}")
    if "__getattr__" in bindings_of(root, source):
        _lazy_exports(source, root, names)
    for assignment in root.of(ast.Assign):
        text = spelled(assignment.value)
        for target_node in assignment.targets:
            if text and isinstance(target_node, ast.Name) and text != target_node.id:
                _add(names, target_node.id, text)
    return names, stars


def _lazy_exports(source: Source, root: Scope, names: dict[str, list[str]]) -> None:
    """Add what a module hands out when it is asked: what is imported then, and what a table of homes lists."""
    for lazy in root.children:
        for node in lazy.of(ast.Import, ast.ImportFrom) if lazy.name == "__getattr__" else ():
            for name, target in import_targets(node, source):
                _add(names, name, f"={target}")
    for table in root.of(ast.Dict):
        for key, value in zip(table.keys, table.values, strict=True):
            home = value.elts[0] if isinstance(value, (ast.Tuple, ast.List)) and value.elts else value
            exported, path = string_of(key), string_of(home) or ""
            if exported and exported.isidentifier() and path.replace(".", "").isidentifier():
                level = len(path) - len(path.lstrip("."))
                home_module = absolute_module(ast.ImportFrom(path[level:] or None, [], level), source)
                _add(names, exported, f"={home_module}.{exported}")


def _add(names: dict[str, list[str]], name: str, target: str) -> None:
    known = names.setdefault(name, [])
    if target not in known and len(known) < SYMBOLS_PER_EXPRESSION:
        known.append(target)


def spelled_bases(node: ast.ClassDef) -> list[str]:
    """Spell the bases of a class; ``Base[T]`` and ``with_metaclass(Meta, Base)`` stand for ``Base``."""
    bases: list[str] = []
    for base in node.bases:
        plain = base.value if isinstance(base, ast.Subscript) else base
        options = plain.args if isinstance(plain, ast.Call) else [plain]
        bases.extend(text for option in options if (text := spelled(option)))
    return bases


def spelled(node: ast.expr) -> str:
    """Spell an expression that names something."""
    if isinstance(node, ast.Call) and dotted(node.func) == "getattr" and len(node.args) > 1:
        attribute = string_of(node.args[1])
        base = spelled(node.args[0])
        return f"{base}.{attribute}" if base and attribute else ""
    return dotted(node)


@dataclass(slots=True)
class Resolved:
    """Where a symbol led: every symbol on the way, and the class of the tree at its end, if there is one."""

    visited: list[str] = field(default_factory=list)
    info: ClassInfo | None = None


class Linker:
    """Follows symbols through the modules of the tree."""

    def __init__(self, modules: list[Module]) -> None:
        self.modules = modules
        self._by_name: dict[str, Module] = {}
        self._by_last: dict[str, list[Module]] = {}
        for module in modules:
            # A stub beside its module must not hide it.
            if module.name not in self._by_name or not module.source.path.endswith(".pyi"):
                self._by_name[module.name] = module
            self._by_last.setdefault(module.name.rpartition(".")[2], []).append(module)
        self._tops = {module.name.partition(".")[0] for module in modules}
        self._found: dict[tuple[str, str], Module | None] = {}
        self._stars: dict[str, list[Module]] = {}

    def in_tree(self, symbol: str) -> bool:
        """Say whether a symbol starts in a package of the tree."""
        return symbol.partition(".")[0] in self._tops

    def find(self, name: str, near: Module) -> Module | None:
        """Find a module by an absolute name, although the tree may lie in a folder such as ``src``."""
        exact = self._by_name.get(name)
        if exact is not None:
            return exact
        folder = near.name if near.source.is_package else near.name.rpartition(".")[0]
        key = (name, folder)
        if key not in self._found:
            self._found[key] = self._search(name, folder)
        return self._found[key]

    def _search(self, name: str, folder: str) -> Module | None:
        if "." not in name:
            # A lone name is a sibling of a script, or what some path leads to: the only one that is nearest to the top.
            alone = sorted(self._by_last.get(name, ()), key=_level)[:2]
            only = alone[0] if alone and (len(alone) == 1 or _level(alone[0]) < _level(alone[1])) else None
            return self._by_name.get(f"{folder}.{name}") or only
        ending = f".{name}"
        candidates = [m for m in self._by_last.get(name.rpartition(".")[2], ()) if m.name.endswith(ending)]
        if candidates:
            return max(candidates, key=lambda m: _shared(m.name, folder))
        parts = name.split(".")
        for start in range(1, len(parts) - 1):
            inner = self._by_name.get(".".join(parts[start:]))
            if inner is not None:
                return inner
        return None

    def resolve(self, symbol: str, near: Module) -> Resolved:
        """Follow an absolute symbol to a class."""
        resolved = Resolved()
        self._follow(symbol, near, resolved, set())
        return resolved

    def _follow(self, symbol: str, near: Module, resolved: Resolved, seen: set[str]) -> bool:
        resolved.visited.append(symbol)
        if symbol in seen or len(seen) > _DEPTH:
            return False
        seen.add(symbol)
        parts = symbol.split(".")
        for end in range(len(parts), 0, -1):
            module = self.find(".".join(parts[:end]), near)
            if module is not None:
                return end < len(parts) and self._inside(module, parts[end:], resolved, seen)
        return False

    def _inside(self, module: Module, rest: list[str], resolved: Resolved, seen: set[str]) -> bool:
        info = module.classes.get(".".join(rest))
        if info is not None:
            resolved.visited.append(info.symbol)
            resolved.info = info
            return True
        for target in module.facts.names.get(rest[0], ()):
            full = ".".join([target, *rest[1:]])
            if full.startswith("="):
                done = self._follow(full[1:], module, resolved, seen)
            else:
                # The name of this module may be defined or imported further up.
                done = self._follow(f"{module.name}.{full}", module, resolved, seen)
            if done:
                return True
        for starred in self._starred(module):
            if not (rest[0] in starred.facts.names or ".".join(rest) in starred.classes):
                continue
            key = f"*{starred.name}.{rest[0]}"
            if key not in seen and len(seen) <= _DEPTH:
                seen.add(key)
                if self._inside(starred, rest, resolved, seen):
                    return True
        return False

    def _starred(self, module: Module) -> list[Module]:
        """List the modules whose names a module has by its star imports, at any distance."""
        known = self._stars.get(module.name)
        if known is None:
            known = self._stars[module.name] = []
            pending, seen = [module], {module.name}
            while pending and len(known) < STEPS_PER_SYMBOL:
                last = pending.pop(0)
                for star in last.facts.stars:
                    starred = self.find(star, last)
                    if starred is not None and starred.name not in seen:
                        seen.add(starred.name)
                        known.append(starred)
                        pending.append(starred)
        return known

    def bases_of(self, info: ClassInfo) -> list[str]:
        """Give the bases of a class as absolute symbols, as far as they are known."""
        module = info.module
        symbols: list[str] = []
        for base in info.fact.bases:
            head = base.partition(".")[0]
            if head in module.facts.names or head in module.classes or module.facts.stars:
                symbols.append(f"{module.name}.{base}")
            elif f"{info.fact.qualname.rpartition('.')[0]}.{base}" in module.classes:
                symbols.append(f"{module.name}.{info.fact.qualname.rpartition('.')[0]}.{base}")
            else:
                symbols.append(f"{UNKNOWN}.{base}")
        return symbols


def _level(module: Module) -> tuple[bool, int]:
    return module.source.is_test, module.name.count(".")


def _shared(one: str, other: str) -> int:
    shared = 0
    for left, right in zip(one.split("."), other.split("."), strict=False):
        if left != right:
            break
        shared += 1
    return shared
