"""FSM003 and FSM005 again: classes that inherit a second tracker or engine from elsewhere in the tree."""

from __future__ import annotations

import linecache
from typing import Final

from fsm.audit.files import Source
from fsm.audit.model import Finding, Owner
from fsm.audit.modules import ClassInfo, Linker
from fsm.audit.names import is_double_name

_CODES: Final = {"tracker": "FSM003", "engine": "FSM005"}
_DEPTH: Final = 12


def find(linker: Linker, owners: list[Owner]) -> tuple[list[tuple[Source, Finding]], list[Owner]]:
    """Find the classes that are trackers or engines by what they inherit.

    Args:
        linker: The modules of the tree.
        owners: The trackers and engines that were found by their own structure.

    Returns:
        The findings with their files, and the owners with the new ones added.
    """
    roles: dict[tuple[str, str], Owner] = {(o.symbol, o.role): o for o in owners if o.role in _CODES}
    if not roles:
        return [], owners
    findings: list[tuple[Source, Finding]] = []
    added: list[Owner] = []
    for module in linker.modules:
        for info in module.classes.values():
            if not info.bases or module.source.is_test or is_double_name(info.name):
                continue
            for role, code in _CODES.items():
                base = _inherits(linker, info, role, roles, 0)
                if base is not None and (info.symbol, role) not in roles:
                    findings.append((module.source, _finding(info, code, role, base)))
                    added.append(Owner(info.symbol, module.source.shown, info.line, role, base.keeps))
    return findings, [*owners, *added]


def _inherits(
    linker: Linker, info: ClassInfo, role: str, roles: dict[tuple[str, str], Owner], depth: int
) -> Owner | None:
    if depth > _DEPTH:
        return None
    for symbol in linker.bases_of(info):
        base = linker.resolve(symbol, info.module).info
        if base is None or base is info:
            continue
        owner = roles.get((base.symbol, role)) or _inherits(linker, base, role, roles, depth + 1)
        if owner is not None:
            return owner
    return None


def _finding(info: ClassInfo, code: str, role: str, base: Owner) -> Finding:
    source = info.module.source
    message = f"{info.name} is a second {role}: it inherits what {base.symbol.rpartition('.')[2]} keeps"
    snippet = linecache.getline(source.path, info.line).strip()[:200]
    return Finding(source.shown, info.line, 1, code, message, info.qualname, "error", snippet, info.line)
