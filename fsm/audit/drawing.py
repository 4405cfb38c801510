"""The map of a code base, as a Mermaid drawing, as a page of plain text, and as a plan of what to consolidate first."""

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
    "record": ("[", "]"),
    "enum": (">", "]"),
}
_WEIGHT: Final = {"tracker": 5, "engine": 4, "shared": 4, "breaker": 3, "record": 2, "enum": 1}
_MOST_SITES: Final = 12
"""Arrows to one class; a drawing with a hundred arrows says no more than a number."""
_REPLACED_BY: Final = {
    "tracker": "read get_tracker().find(…) and tracker.subscribe(…); the registry keeps the executions",
    "engine": "drive with engine.run(…)",
    "breaker": "share tracker.breakers.guard(key)",
    "record": "keep the id, and read tracker.get(execution_id)",
    "enum": "read execution.state and execution.category",
    "shared": "keep executions in the registry, narrowed with tracker.for_user(user_id)",
}


def as_mermaid(result: AuditResult) -> str:
    """Draw the classes that keep execution state."""
    names = _Names()
    owners = sorted(result.owners)
    known = {owner.symbol: names.of(owner.symbol, "owner") for owner in owners}
    lines = ["flowchart LR", *(f"    {known[owner.symbol]}{_shape(owner)}" for owner in owners)]
    for owner in owners:
        lines.extend(f"    {known[owner.symbol]} --> {known[used]}" for used in owner.uses if used in known)
    for symbol, sites in sorted(_sites(result).items()):
        node = known.get(symbol)
        if node is None:
            node = names.of(symbol, "owner")
            lines.append(f'    {node}("{_text(symbol)}")')
        for place, arrow in sites[:_MOST_SITES]:
            lines.append(f'    {names.of(place, "site")}["{_text(place)}"] {arrow} {node}')
        if len(sites) > _MOST_SITES:
            more = names.of(f"{node} more", "site")
            lines.append(f'    {more}["{len(sites) - _MOST_SITES} more places"] --> {node}')
    for role in _SHAPES:
        members = sorted({known[owner.symbol] for owner in owners if owner.role == role})
        if members:
            lines.append(f"    class {','.join(members)} {role}")
    lines += [
        "    classDef tracker fill:#fdd,stroke:#a00",
        "    classDef engine fill:#fed,stroke:#a60",
        "    classDef breaker fill:#def,stroke:#06a",
        "    classDef shared fill:#eee,stroke:#666",
        "    classDef record fill:#efe,stroke:#080",
        "    classDef enum fill:#ffd,stroke:#880",
    ]
    return "\n".join(lines) + "\n"


def _sites(result: AuditResult) -> dict[str, list[tuple[str, str]]]:
    sites: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for made in result.constructions:
        sites[made.owner].add((made.by, "-. factory .->" if made.allowed else "== constructs ==>"))
    return {symbol: sorted(found) for symbol, found in sites.items()}


def risk(owner: Owner, made: list[Construction]) -> int:
    """Weigh a class: what its role is worth, how much it keeps, how many places construct it."""
    return _WEIGHT[owner.role] * (1 + len(owner.keeps)) + 2 * sum(not one.allowed for one in made)


def as_page(result: AuditResult) -> str:
    """Write the map as plain text: who keeps what and why, who constructs it, what is kept twice; worst first."""
    made = _made(result)
    ranked = sorted(result.owners, key=lambda o: (-risk(o, made[o.symbol]), o))
    lines = ["Who keeps execution state beside the one registry, the greatest risk first", ""]
    for owner in ranked:
        lines.append(
            f"{risk(owner, made[owner.symbol]):>4}  {owner.role:8} {owner.symbol}  ({owner.path}:{owner.line})"
        )
        if owner.keeps:
            lines.append(f"{'':15}keeps {', '.join(owner.keeps)}")
        lines.extend(f"{'':15}it {why}" for why in owner.why)
        if owner.uses:
            lines.append(f"{'':15}uses {', '.join(owner.uses)}")
        outside = [one for one in made[owner.symbol] if not one.allowed]
        lines.extend(
            f"{'':15}constructed by {one.by}  ({one.path}:{one.line})" for one in outside[:_MOST_SITES]
        )
        if len(outside) > _MOST_SITES:
            lines.append(f"{'':15}and by {len(outside) - _MOST_SITES} more places")
    twice: dict[str, set[str]] = defaultdict(set)
    for owner in result.owners:
        for kept in owner.keeps:
            twice[kept.strip("_")].add(owner.symbol)
    doubled = sorted((name, sorted(holders)) for name, holders in twice.items() if len(holders) > 1)
    if doubled:
        lines += ["", "What is kept more than once", ""]
        lines.extend(f"      {name}: {', '.join(holders)}" for name, holders in doubled)
    if not ranked:
        lines.append("      nobody")
    return "\n".join(lines) + "\n"


def as_plan(result: AuditResult) -> str:
    """Write the order in which to consolidate: what others rest on comes after them, with the files of each step."""
    made = _made(result)
    steps = order(result.owners, made)
    lines = ["What to replace, in this order: nothing that is left rests on what a step removes", ""]
    for number, owners in enumerate(steps, start=1):
        lines.append(f"Step {number}")
        for owner in owners:
            lines.append(f"    {owner.role:8} {owner.symbol}: {_REPLACED_BY[owner.role]}")
            files = sorted({owner.path, *(one.path for one in made[owner.symbol])})
            lines.extend(f"             {file}" for file in files)
        lines.append("")
    return "\n".join(lines)


def order(owners: list[Owner], made: dict[str, list[Construction]]) -> list[list[Owner]]:
    """Sort owners into steps: in each those that no remaining owner uses or constructs; a circle is one step."""
    left = {owner.symbol: owner for owner in sorted(owners)}
    rests: dict[str, set[str]] = {symbol: set() for symbol in left}
    for owner in owners:
        for used in owner.uses:
            if used in rests and used != owner.symbol:
                rests[used].add(owner.symbol)
    for symbol, places in made.items():
        for one in places:
            holder = next((s for s in _prefixes(one.by) if s in left and s != symbol), None)
            if symbol in rests and holder is not None:
                rests[symbol].add(holder)
    steps: list[list[Owner]] = []
    while left:
        free = [symbol for symbol in left if not rests[symbol] & left.keys()] or sorted(left)
        steps.append([left.pop(symbol) for symbol in free])
    return steps


def _prefixes(symbol: str) -> list[str]:
    parts = symbol.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _made(result: AuditResult) -> dict[str, list[Construction]]:
    made: dict[str, list[Construction]] = defaultdict(list)
    for one in result.constructions:
        made[one.owner].append(one)
    return made


def _shape(owner: Owner) -> str:
    opened, closed = _SHAPES[owner.role]
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
