"""Which classes are protected, and which places may construct them all the same."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from typing import Final

from fsm.audit.config import AuditConfig
from fsm.audit.modules import UNKNOWN, ClassInfo, Linker, Module
from fsm.audit.names import is_double_name

# In the module that defines a class, functions of these names are its factories.
_FACTORY: Final = re.compile(
    r"^_*(get|create|make|build|new|reset|init|initialize|provide|configure|default)(_|$)"
)
_CHAIN: Final = 12


class Protection:
    """Answers for every symbol of the tree whether it stands for a class that only its factory may construct."""

    def __init__(self, linker: Linker, config: AuditConfig) -> None:
        self.linker = linker
        self._bare = {name for name in config.protected if "." not in name}
        self._dotted = {name for name in config.protected if "." in name}
        self._factories = config.factories
        self._classes: dict[int, bool] = {}
        self._symbols: dict[tuple[str, str], ClassInfo | str | None] = {}
        every = [info for module in linker.modules for info in module.classes.values()]
        count = Counter(info.name for info in every)
        keepers = (info for info in every if self._has_role(info) and count[info.name] == 1)
        self._telling = {info.name: info for info in keepers if sum(map(str.isupper, info.name)) > 1}

    def guards(self, info: ClassInfo, depth: int = 0) -> bool:
        """Say whether a class of the tree is protected, itself or through a base."""
        known = self._classes.get(id(info))
        if known is not None or depth > _CHAIN:
            return bool(known)
        self._classes[id(info)] = False
        result = (
            self._has_role(info)
            or self._is_named(info)
            or (
                # A fake that inherits is still a fake, as long as it stays among the tests.
                not (info.module.source.is_test and is_double_name(info.name))
                and any(
                    self._base_guards(base, info.module, depth + 1) for base in self.linker.bases_of(info)
                )
            )
        )
        self._classes[id(info)] = result
        return result

    def _is_named(self, info: ClassInfo) -> bool:
        if any(_ends_with(info.symbol, name) for name in self._dotted):
            return True
        # A class of the same name inside a function or a test file is a double, not the class itself.
        return info.name in self._bare and not info.fact.nested and not info.module.source.is_test

    def _has_role(self, info: ClassInfo) -> bool:
        return bool(info.roles.keys() & {"tracker", "engine", "breaker"})

    def _base_guards(self, symbol: str, module: Module, depth: int) -> bool:
        resolved = self.linker.resolve(symbol, module)
        if resolved.info is not None:
            return self.guards(resolved.info, depth)
        return any(self._named(visited) for visited in resolved.visited)

    def protected(self, symbol: str, near: Module) -> ClassInfo | str | None:
        """Judge a symbol."""
        key = (symbol, near.name)
        if key not in self._symbols:
            self._symbols[key] = self._judge(symbol, near)
        return self._symbols[key]

    def _judge(self, symbol: str, near: Module) -> ClassInfo | str | None:
        if symbol.startswith(UNKNOWN):
            name = symbol.rpartition(".")[2]
            # An attribute of an unknown object is believed if its name is telling and belongs to one class alone.
            return self._telling.get(name) or (name if self._named(symbol) else None)
        resolved = self.linker.resolve(symbol, near)
        if resolved.info is not None:
            if self.guards(resolved.info):
                return resolved.info
            # An alias of a protected name is protected, although the class behind it has another name.
            names = {visited.rpartition(".")[2] for visited in resolved.visited} - {resolved.info.name}
            return resolved.info if names & self._bare and not resolved.info.module.source.is_test else None
        return next((visited for visited in resolved.visited if self._named(visited)), None)

    def _named(self, symbol: str) -> bool:
        """Judge a symbol by its name alone, as there is no class of the tree behind it."""
        if any(_ends_with(symbol, name) or _same_package(symbol, name) for name in self._dotted):
            return True
        origin, _, name = symbol.rpartition(".")
        if name not in self._bare:
            return False
        # Many packages have a Tracker; only a name of several words is telling enough on its own.
        telling = sum(letter.isupper() for letter in name) > 1
        top = symbol.partition(".")[0]
        return telling or top == "fsm" or origin == UNKNOWN or self.linker.in_tree(symbol)

    def may_construct(self, scope: str, module: Module, owner: ClassInfo | str) -> bool:
        """Say whether a place may construct a protected class."""
        place = f"{module.name}.{scope}" if scope else module.name
        parts = place.split(".")
        prefixes = [".".join(parts[: end + 1]) for end in range(len(parts))]
        for pattern in self._factories:
            if any(
                fnmatch.fnmatchcase(p, pattern) or fnmatch.fnmatchcase(p, f"*.{pattern}") for p in prefixes
            ):
                return True
        if not isinstance(owner, ClassInfo) or owner.module is not module:
            return False
        around = scope.split(".") if scope else []
        starts = [".".join(around[: end + 1]) for end in range(len(around))]
        if owner.fact.qualname in starts:
            return True
        if not self._is_named(owner) and not self._has_role(owner):
            # Only the class that is the registry has a factory; a subclass would be a second registry.
            return False
        names = [name for name, start in zip(around, starts, strict=True) if start not in module.classes]
        return not scope or any(_FACTORY.match(name) for name in names)

    def owner_name(self, owner: ClassInfo | str) -> str:
        """Name a protected class for people."""
        return owner.symbol if isinstance(owner, ClassInfo) else owner.removeprefix(f"{UNKNOWN}.")


def _ends_with(symbol: str, name: str) -> bool:
    return symbol == name or symbol.endswith(f".{name}")


def _same_package(symbol: str, name: str) -> bool:
    """fsm.Tracker also stands for fsm.tracker.Tracker: the same name anywhere in the package."""
    package, _, last = name.partition(".")[0], "", name.rpartition(".")[2]
    return symbol.startswith(f"{package}.") and symbol.endswith(f".{last}")
