"""The trackers of a code base as a Mermaid drawing: who keeps which state, and who constructs whom."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Final

from fsm.audit.model import AuditResult, Construction, Owner

_SHAPES: Final = {
    "tracker": ("[(", ")]"),
    "engine": ("[[", "]]"),
    "breaker": ("{{", "}}"),
    "shared": ("[/", "/]"),
}
_MOST_SITES: Final = 12


def as_mermaid(result: AuditResult) -> str:
    """Draw the classes that keep execution state.

    Args:
        result: A finished audit.

    Returns:
        A Mermaid flowchart. A cylinder is a tracker, a subroutine an engine, a hexagon a breaker, a slanted
        box shared state, a rounded box a protected class. A dotted arrow is a construction in the factory,
        a thick one a construction outside it, a thin one the construction of a class without protection.
    """
    names = _Names()
    owners = sorted(result.owners)
    lines = [
        "flowchart LR",
        *(f"    {names.of(owner.symbol, owner.role)}{_shape(owner)}" for owner in owners),
    ]
    drawn = {owner.symbol for owner in result.owners}
    sites: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for made in result.constructions:
        sites[made.owner].add((made.by, _arrow(made)))
    for symbol in sorted(sites):
        role = next((owner.role for owner in result.owners if owner.symbol == symbol), "protected")
        node = names.of(symbol, role)
        if symbol not in drawn:
            lines.append(f'    {node}("{_text(symbol)}")')
        lines.extend(_arrows(names, node, sorted(sites[symbol])))
    for role in ("tracker", "engine", "breaker", "shared"):
        members = sorted({names.of(owner.symbol, role) for owner in result.owners if owner.role == role})
        if members:
            lines.append(f"    class {','.join(members)} {role}")
    lines += [
        "    classDef tracker fill:#fdd,stroke:#a00",
        "    classDef engine fill:#fed,stroke:#a60",
        "    classDef breaker fill:#def,stroke:#06a",
        "    classDef shared fill:#eee,stroke:#666",
    ]
    return "\n".join(lines) + "\n"


def _arrow(made: Construction) -> str:
    if not made.guarded:
        return "-- constructs -->"
    return "-. factory .->" if made.allowed else "== constructs ==>"


def _arrows(names: _Names, node: str, sites: list[tuple[str, str]]) -> list[str]:
    lines: list[str] = []
    for place, arrow in sites[:_MOST_SITES]:
        lines.append(f'    {names.of(place, "site")}["{_text(place)}"] {arrow} {node}')
    if len(sites) > _MOST_SITES:
        # A drawing with a hundred arrows says no more than a number.
        more = names.of(f"{node} more", "site")
        lines.append(f'    {more}["{len(sites) - _MOST_SITES} more places"] --> {node}')
    return lines


def _shape(owner: Owner) -> str:
    opened, closed = _SHAPES.get(owner.role, ("(", ")"))
    kept = f"<br/>{_text(', '.join(owner.keeps))}" if owner.keeps else ""
    return f'{opened}"{_text(owner.symbol)}{kept}<br/>{_text(owner.path)}:{owner.line}"{closed}'


def _text(text: str) -> str:
    return re.sub(r'["<>&]', "", text)


class _Names:
    """Short, stable node names; symbols hold characters that Mermaid gives a meaning."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}

    def of(self, symbol: str, role: str) -> str:
        return self._names.setdefault((symbol, role), f"n{len(self._names)}")
