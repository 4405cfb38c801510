"""FSM003 and FSM005 again: classes that inherit a second tracker or engine from elsewhere in the tree."""

from __future__ import annotations

from typing import Final

from fsm.audit.files import Source, read_source
from fsm.audit.model import Finding, Owner
from fsm.audit.modules import ClassInfo, Linker
from fsm.audit.names import is_double_name

_CODES: Final = {"tracker": "FSM003", "engine": "FSM005"}


def find(
    linker: Linker, owners: list[Owner], max_file_bytes: int
) -> tuple[list[tuple[Source, Finding]], list[Owner]]:
    """Find the classes that are trackers or engines by what they inherit.

    Args:
        linker: The modules of the tree.
        owners: The trackers and engines that were found by their own structure.
        max_file_bytes: The most that is read of a file.

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
                base = _inherits(linker, info, role, roles)
                if base is not None and (info.symbol, role) not in roles:
                    findings.append((module.source, _finding(info, code, role, base, max_file_bytes)))
                    added.append(Owner(info.symbol, module.source.shown, info.line, role, base.keeps))
    return findings, [*owners, *added]


def _inherits(
    linker: Linker, info: ClassInfo, role: str, roles: dict[tuple[str, str], Owner]
) -> Owner | None:
    pending, seen = [info], {info.symbol}
    while pending:
        last = pending.pop()
        for symbol in linker.bases_of(last):
            base = linker.resolve(symbol, last.module).info
            if base is None or base.symbol in seen:
                continue
            owner = roles.get((base.symbol, role))
            if owner is not None:
                return owner
            seen.add(base.symbol)
            pending.append(base)
    return None


def _finding(info: ClassInfo, code: str, role: str, base: Owner, most: int) -> Finding:
    source = info.module.source
    message = f"{info.name} is a second {role}: it inherits what {base.symbol.rpartition('.')[2]} keeps"
    text = read_source(source, most)
    lines = text.split("\n") if isinstance(text, str) else []
    snippet = lines[info.line - 1].strip()[:200] if info.line <= len(lines) else ""
    return Finding(source.shown, info.line, 1, code, message, info.qualname, "error", snippet, info.line)
