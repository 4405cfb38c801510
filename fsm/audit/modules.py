"""What the modules of a tree export to each other, kept small, and the search through them.

Pass one keeps a `Module` of every file: its imports, aliases and classes. The `Linker` then follows a
dotted symbol through re-exports, stars and aliases to the class it stands for.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass, field
from typing import Final

from fsm.audit.files import Source
from fsm.audit.limits import STEPS_PER_SYMBOL
from fsm.audit.names import absolute_module, import_targets
from fsm.audit.scopes import Scope, dotted, string_of

_DEPTH: Final = 16
UNKNOWN: Final = "?"


@dataclass(slots=True)
class ClassInfo:
    """A class of the tree.

    Attributes:
        module: The module that defines it.
        qualname: Its name inside the module; a dot means that it is nested.
        line: The line of its definition.
        bases: Its bases, dotted as they are written.
        nested: Whether it is defined inside a function or another class.
    """

    module: Module
    qualname: str
    line: int
    bases: tuple[str, ...]
    nested: bool

    @property
    def name(self) -> str:
        """Give the class's own name.

        Returns:
            The last part of the qualified name.
        """
        return self.qualname.rpartition(".")[2]

    @property
    def symbol(self) -> str:
        """Give the class's full name.

        Returns:
            Module and qualified name.
        """
        return f"{self.module.name}.{self.qualname}"


@dataclass(slots=True)
class Module:
    """What pass one keeps of a file.

    Attributes:
        source: The file.
        names: For each top-level name, what it may stand for: an absolute symbol after ``=``, or a name
            of this module.
        stars: Modules that are star-imported.
        classes: The classes, by qualified name.
    """

    source: Source
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stars: tuple[str, ...] = ()
    classes: dict[str, ClassInfo] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Give the module's dotted name.

        Returns:
            The name worked out from the folders.
        """
        return self.source.module


def summarise(source: Source, scopes: list[Scope]) -> Module:
    """Keep what other modules may need of a file.

    Args:
        source: The file.
        scopes: Its scopes.

    Returns:
        Its summary, which holds no syntax tree.
    """
    module = Module(source)
    root = scopes[0]
    names: dict[str, tuple[str, ...]] = {}
    stars: list[str] = []
    for node in root.of(ast.Import, ast.ImportFrom):
        for name, target in import_targets(node, source):
            if name == "*" and isinstance(node, ast.ImportFrom):
                stars.append(absolute_module(node, source))
            else:
                _add(names, name, f"={target}")
    for assignment in root.of(ast.Assign):
        text = spelled(assignment.value)
        for target_node in assignment.targets:
            if text and isinstance(target_node, ast.Name) and text != target_node.id:
                _add(names, target_node.id, text)
    module.names = names
    module.stars = tuple(stars)
    for scope in scopes:
        if isinstance(scope.node, ast.ClassDef):
            module.classes[scope.qualname] = _class_info(module, scope, scope.node)
    return module


def _add(names: dict[str, tuple[str, ...]], name: str, target: str) -> None:
    names[sys.intern(name)] = (*names.get(name, ()), sys.intern(target))


def _class_info(module: Module, scope: Scope, node: ast.ClassDef) -> ClassInfo:
    bases: list[str] = []
    for base in node.bases:
        # Base[T] and with_metaclass(Meta, Base) stand for Base.
        plain = base.value if isinstance(base, ast.Subscript) else base
        options = plain.args if isinstance(plain, ast.Call) else [plain]
        bases.extend(sys.intern(text) for option in options if (text := spelled(option)))
    nested = scope.parent is not None and scope.parent.kind != "module"
    return ClassInfo(module, scope.qualname, node.lineno, tuple(bases), nested)


def spelled(node: ast.expr) -> str:
    """Spell an expression that names something.

    Args:
        node: A chain of attributes, or `getattr` with a constant name on one.

    Returns:
        The dotted name, else the empty string.
    """
    if isinstance(node, ast.Call) and dotted(node.func) == "getattr" and len(node.args) > 1:
        attribute = string_of(node.args[1])
        base = spelled(node.args[0])
        return f"{base}.{attribute}" if base and attribute else ""
    return dotted(node)


@dataclass(slots=True)
class Resolved:
    """Where a symbol led.

    Attributes:
        visited: Every symbol on the way, the last one included.
        info: The class at the end, if it is one of the tree.
    """

    visited: list[str] = field(default_factory=list)
    info: ClassInfo | None = None


class Linker:
    """Follows symbols through the modules of the tree.

    Args:
        modules: The summaries of all files.
    """

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
        """Say whether a symbol starts in a package of the tree.

        Args:
            symbol: An absolute dotted symbol.

        Returns:
            True when its first part is a package or module of the tree.
        """
        return symbol.partition(".")[0] in self._tops

    def find(self, name: str, near: Module) -> Module | None:
        """Find a module by an absolute name, although the tree may lie in a folder such as ``src``.

        Args:
            name: A dotted module name.
            near: The importing module; of several candidates, the one that shares most with it is taken.

        Returns:
            The module, or None when the tree has none of that name.
        """
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
            # A lone name may be a sibling of a script; anything further away would be a guess.
            return self._by_name.get(f"{folder}.{name}")
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
        """Follow an absolute symbol to a class.

        Args:
            symbol: A dotted name such as ``pkg.tracker.Tracker``.
            near: The module that uses it.

        Returns:
            What was visited on the way and the class at its end, if any.
        """
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
        for target in module.names.get(rest[0], ()):
            full = ".".join([target, *rest[1:]])
            if full.startswith("="):
                done = self._follow(full[1:], module, resolved, seen)
            else:
                # The name of this module may be defined or imported further up.
                done = self._follow(f"{module.name}.{full}", module, resolved, seen)
            if done:
                return True
        for starred in self._starred(module):
            if not (rest[0] in starred.names or ".".join(rest) in starred.classes):
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
                for star in last.stars:
                    starred = self.find(star, last)
                    if starred is not None and starred.name not in seen:
                        seen.add(starred.name)
                        known.append(starred)
                        pending.append(starred)
        return known

    def bases_of(self, info: ClassInfo) -> list[str]:
        """Give the bases of a class as absolute symbols, as far as they are known.

        Args:
            info: A class of the tree.

        Returns:
            A symbol per base; a builtin or unknown one starts with ``?``.
        """
        module = info.module
        symbols: list[str] = []
        for base in info.bases:
            head = base.partition(".")[0]
            if head in module.names or head in module.classes or module.stars:
                symbols.append(f"{module.name}.{base}")
            elif f"{info.qualname.rpartition('.')[0]}.{base}" in module.classes:
                symbols.append(f"{module.name}.{info.qualname.rpartition('.')[0]}.{base}")
            else:
                symbols.append(f"{UNKNOWN}.{base}")
        return symbols


def _shared(one: str, other: str) -> int:
    shared = 0
    for left, right in zip(one.split("."), other.split("."), strict=False):
        if left != right:
            break
        shared += 1
    return shared
