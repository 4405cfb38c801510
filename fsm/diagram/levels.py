"""Which line of a drawing each state stands on, so that a machine reads from top to bottom.

`dot` can find such lines by itself, but it counts the boxes and the way back as well, and then the ends float to
the top. Here only the way forward counts: the longest way from the initial state without a step back. The ends
share the last line.
"""

from __future__ import annotations

from collections.abc import Iterator

from fsm.diagram.plan import Plan
from fsm.machine.grammar import Category

FLAT = 3
"""Up to so many pending states stand side by side on the first line."""


def levels_of(plan: Plan) -> dict[str, int]:
    """Give every state and every box of a plan its line.

    Args:
        plan: What is drawn.

    Returns:
        The line of each, from 0 at the top.
    """
    machine = plan.machine
    steps, first = plan.steps(), flat(plan)
    ends = machine.terminal
    out = _forward(machine.initial, steps, first, 0)
    # What only a category's box leads to (a state of stopping, say) stands just above the ends.
    bottom = max((line for name, line in out.items() if name not in ends), default=0)
    beyond = [state.name for state in machine.states if state.name not in out and state.name not in ends]
    base = max(bottom, 1)
    for name in beyond:
        if name not in out:
            new = _forward(name, steps, first, base)
            out.update((other, line) for other, line in new.items() if other not in out)
    bottom = max([bottom, *(line for name, line in out.items() if name not in ends)])
    # In the order of declaration: a set's own order is another one in every process.
    out.update((state.name, bottom + 1) for state in machine.states if state.name in ends)
    out.update((box.key, base - 1 if beyond else bottom) for box in plan.boxes)
    return out


def flat(plan: Plan) -> frozenset[str]:
    """Return the pending states that stand side by side at the start."""
    pending = plan.machine.of(Category.PENDING)
    return pending if plan.machine.initial in pending and len(pending) <= FLAT else frozenset()


def _forward(root: str, steps: dict[str, list[str]], first: frozenset[str], base: int) -> dict[str, int]:
    """Return the longest way from the root to each state that it reaches, steps back left out."""
    order, back = _search(root, steps)
    out = {root: base}
    for name in order:
        for target in steps[name]:
            if (name, target) not in back:
                length = 0 if name in first and target in first else 1
                out[target] = max(out.get(target, base), out[name] + length)
    return out


def _search(root: str, steps: dict[str, list[str]]) -> tuple[list[str], set[tuple[str, str]]]:
    """Search in depth; return the states so that every step forward leads on, and the steps that lead back."""
    done: list[str] = []
    back: set[tuple[str, str]] = set()
    seen, on_way = {root}, {root}
    stack: list[tuple[str, Iterator[str]]] = [(root, iter(steps[root]))]
    while stack:
        name, rest = stack[-1]
        for target in rest:
            if target in on_way:
                back.add((name, target))
            elif target not in seen:
                seen.add(target)
                on_way.add(target)
                stack.append((target, iter(steps[target])))
                break
        else:
            stack.pop()
            on_way.discard(name)
            done.append(name)
    return done[::-1], back
