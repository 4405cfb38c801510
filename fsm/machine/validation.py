"""The proof that a machine holds together, made when it is built.

`prove` returns every finding, not just the first: whoever declares a machine mends it in one go. Each check is a
small generator over the declaration; none of them knows a particular machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from pydantic import BaseModel

from fsm.errors import Finding

if TYPE_CHECKING:
    from fsm.machine.machine import Arrow, Machine, State

CATEGORIES = ("pending", "running", "waiting", "stopping", "terminal")
RESERVED = frozenset({"create"})
"""Event names that the library itself writes to journals."""
RESERVED_FACTS = frozenset(
    {"and", "not", "fence", "key"} | {name for name in dir(BaseModel) if not name.startswith("_")}
)
"""Words of the guards' grammar, what `fire` takes itself, and names that a payload model has already: no payload can
have a field of that name."""
MAX_FACTS = 12
"""A (state, event) whose guards ask more facts than this is refused: its table of answers has 4096 lines."""


def prove(machine: Machine) -> list[Finding]:
    """Check a declaration.

    Args:
        machine: The declaration, complete in itself.

    Returns:
        Every finding; an empty list means that the machine holds together.
    """
    return [finding for check in _CHECKS for finding in check(machine)]


# --- names ---------------------------------------------------------------------------------------------------


def _unknown_names(machine: Machine) -> Iterator[Finding]:
    states = machine.by_name
    if machine.initial not in states:
        yield Finding(
            "unknown_state", f"initial={machine.initial}", "no such state", _near(machine.initial, states)
        )
    for event, _ in machine.payloads:
        if event not in machine.events:
            yield Finding(
                "unknown_event", f"payloads[{event}]", "no row has this event", _near(event, machine.events)
            )
    for state, _ in machine.timeouts.phases:
        if state not in states:
            yield Finding("unknown_state", f"timeouts.phases[{state}]", "no such state", _near(state, states))


def _unknown_in_rows(machine: Machine) -> Iterator[Finding]:
    states = machine.by_name
    for row in machine.transitions:
        strange = False
        for selector in row.source:
            what, known = ("category", CATEGORIES) if selector.startswith("@") else ("state", tuple(states))
            if selector.lstrip("@!") not in known:
                strange = True
                yield Finding(
                    f"unknown_{what}", str(row), f"no such source {selector!r}", _near(selector, known)
                )
        if not strange and not machine.sources_of(row):
            yield Finding(
                "empty_source", str(row), "no state is left to come from", "Declare one, or drop the row"
            )
        if row.target is not None and row.target not in states:
            yield Finding(
                "unknown_state", str(row), f"no such target {row.target!r}", _near(row.target, states)
            )
        for fact, _ in row.literals:
            if fact not in machine.fact_defaults:
                yield Finding(
                    "unknown_fact", str(row), f"no such fact {fact!r}", _near(fact, machine.fact_defaults)
                )
        if row.event in RESERVED:
            yield Finding("reserved_event", str(row), "the library itself writes this event", "Rename it")


def _repeated_names(machine: Machine) -> Iterator[Finding]:
    for what, names in (
        ("state", [state.name for state in machine.states]),
        ("fact", [fact.name for fact in machine.facts]),
        ("payload", [event for event, _ in machine.payloads]),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                yield Finding(f"duplicate_{what}", name, f"declared {count} times", "Keep one")
    for fact in machine.fact_defaults.keys() & RESERVED_FACTS:
        yield Finding("reserved_fact", fact, "the word has a meaning of its own", "Rename it")


# --- rows ----------------------------------------------------------------------------------------------------


def _rows(machine: Machine) -> Iterator[Finding]:
    for events in machine.by_source.values():
        for arrows in events.values():
            yield from _never_taken(machine, arrows)
            yield from _not_covered(machine, arrows)


def _never_taken(machine: Machine, arrows: tuple[Arrow, ...]) -> Iterator[Finding]:
    for index, arrow in enumerate(arrows):
        wanted = dict(arrow.literals)
        if len(wanted) != len(set(arrow.literals)):
            yield Finding(
                "impossible_guard", _at(machine, arrow), "the guard contradicts itself", "Drop one half"
            )
            continue
        for earlier in arrows[:index]:
            if set(earlier.literals) == set(arrow.literals):
                yield Finding(
                    "duplicate_row",
                    _at(machine, arrow),
                    f"the same source, event and guard stand in row {earlier.row + 1}",
                    "Drop one of the two",
                )
                break
            if all(wanted.get(fact) is answer for fact, answer in earlier.literals):
                yield Finding(
                    "shadowed_row",
                    _at(machine, arrow),
                    f"row {earlier.row + 1} ({earlier}) always goes first",
                    "Move the narrower guard up, or drop the row",
                )
                break
        else:
            before = arrows[:index]
            if len(_facts(before)) <= MAX_FACTS and _open_case(wanted, before) is None:
                yield Finding(
                    "shadowed_row",
                    _at(machine, arrow),
                    f"rows {', '.join(str(one.row + 1) for one in before)} together leave it no case",
                    "Move it up, or drop the row",
                )


def _not_covered(machine: Machine, arrows: tuple[Arrow, ...]) -> Iterator[Finding]:
    if any(not arrow.literals or arrow.otherwise is not None for arrow in arrows):
        return
    facts = _facts(arrows)
    if len(facts) > MAX_FACTS:
        yield Finding(
            "too_many_facts",
            _at(machine, arrows[-1]),
            f"guards ask {len(facts)} facts, {MAX_FACTS} at most can be checked",
            "Join some of them into one fact",
        )
        return
    left = _open_case({}, arrows)
    if left is not None:
        case = " and ".join(name if answer else f"not {name}" for name, answer in sorted(left.items()))
        yield Finding(
            "guard_without_else",
            _at(machine, arrows[-1]),
            f"nothing is said for the case: {case}",
            "Add a last row without a guard, or say otherwise= why it is refused",
        )


def _facts(arrows: Iterable[Arrow]) -> set[str]:
    return {fact for arrow in arrows for fact, _ in arrow.literals}


def _open_case(known: dict[str, bool], arrows: tuple[Arrow, ...]) -> dict[str, bool] | None:
    """Return answers, `known` among them, for which no arrow is taken; ``None`` if there are none.

    The first arrow that `known` does not rule out either takes every case, or asks a fact that is still open: then
    both of its answers are tried.
    """
    for arrow in arrows:
        if any(known.get(fact, wanted) is not wanted for fact, wanted in arrow.literals):
            continue
        for fact, wanted in arrow.literals:
            if fact not in known:
                left = _open_case(known | {fact: not wanted}, arrows)
                return _open_case(known | {fact: wanted}, arrows) if left is None else left
        return None
    return known


def _terminal_rows(machine: Machine) -> Iterator[Finding]:
    for arrow in machine.arrows:
        if arrow.source in machine.terminal:
            yield Finding(
                "leaves_terminal",
                _at(machine, arrow),
                f"{arrow.source!r} is terminal, nothing leaves it",
                "Make the state another category, or start a new execution with retry_of",
            )


def _outcomes(machine: Machine) -> Iterator[Finding]:
    for state in machine.states:
        if state.outcome is not None and state.category != "terminal":
            yield Finding(
                "outcome_without_end",
                state.name,
                f"it declares outcome={state.outcome!r}, but it is {state.category}, not terminal",
                "Drop outcome=, or make the state terminal",
            )


# --- paths ---------------------------------------------------------------------------------------------------


def _ends(machine: Machine) -> Iterator[Finding]:
    if machine.perpetual and machine.terminal:
        yield Finding(
            "perpetual_with_end",
            " ".join(sorted(machine.terminal)),
            "a perpetual machine has no terminal state",
            "Drop perpetual=True, or the state",
        )
    if not machine.perpetual and not machine.terminal:
        yield Finding(
            "no_end",
            machine.name,
            "no state is terminal, an execution would run for ever",
            "Declare a terminal state, or say perpetual=True",
        )
    if machine.initial in machine.terminal:
        yield Finding(
            "ends_at_start", f"initial={machine.initial}", "the initial state is terminal", "Begin elsewhere"
        )


def _reach(start: Iterable[str], edges: dict[str, set[str]]) -> set[str]:
    seen = set(start)
    todo = list(seen)
    while todo:
        for state in edges.get(todo.pop(), ()):
            if state not in seen:
                seen.add(state)
                todo.append(state)
    return seen


def _reachable(machine: Machine) -> Iterator[Finding]:
    if machine.initial not in machine.by_name:
        return  # already reported; every state would be reported again as unreachable
    forward: dict[str, set[str]] = {}
    backward: dict[str, set[str]] = {}
    for arrow in machine.arrows:
        forward.setdefault(arrow.source, set()).add(arrow.target)
        backward.setdefault(arrow.target, set()).add(arrow.source)
    reached = _reach([machine.initial], forward)
    for state in machine.states:
        if state.name not in reached:
            yield Finding(
                "unreachable_state",
                state.name,
                f"no path leads here from {machine.initial!r}",
                "Add a row that leads here, or drop the state",
            )
    goal = [machine.initial] if machine.perpetual else sorted(machine.terminal)
    what = f"no path leads back to {machine.initial!r}" if machine.perpetual else "no path leads to an end"
    home = _reach(goal, backward)
    for state in machine.states:
        if state.name in reached and state.name not in home | machine.terminal and goal:
            exits = forward.get(state.name, set()) - {state.name}
            yield Finding(
                "trap",
                state.name,
                what if exits else f"nothing leads out, and {what}",
                "Add a row that leads out, or make the state terminal",
            )


def _waits(machine: Machine) -> Iterator[Finding]:
    """The events `cancel` and `time_out` carry these meanings in every machine."""
    for state in machine.states:
        waits = state.category == "waiting"
        if waits and state.deadline is None:
            yield Finding(
                "wait_without_deadline",
                state.name,
                "it could wait for ever",
                "Declare deadline= (queue, phase, input, grace or cooldown)",
            )
        if machine.perpetual:
            continue
        if waits and not _leaves(machine, state.name, "cancel"):
            yield Finding(
                "wait_without_cancel",
                state.name,
                "nobody could call it off",
                "Add a row for the event 'cancel' that leads out",
            )
        if not _leaves(machine, state.name, "time_out"):
            for limit, where in _limits_on(machine, state):
                yield Finding(
                    "deadline_without_row",
                    state.name,
                    f"its {limit} deadline has no transition to take",
                    f"Add a row for the event 'time_out' that leads out, or drop {where}",
                )


def _limits_on(machine: Machine, state: State) -> Iterator[tuple[str, str]]:
    """Yield each limit that the declaration itself puts on a stay in a state, and where it says so."""
    limits = machine.timeouts
    if state.category == "terminal":
        return
    if state.deadline is not None:
        yield state.deadline, "deadline="
    if state.name in dict(limits.phases):
        yield "phase", f"timeouts.phases[{state.name}]"
    if limits.total_s is not None:
        yield "total", "timeouts.total_s"
    if limits.idle_s is not None and state.category == "running":
        yield "idle", "timeouts.idle_s"


def _leaves(machine: Machine, state: str, event: str) -> bool:
    return any(arrow.target != state for arrow in machine.by_source[state].get(event, ()))


# --- helpers -------------------------------------------------------------------------------------------------


def _near(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    from difflib import get_close_matches  # noqa: PLC0415 - for the one who mistyped

    near = get_close_matches(name.lstrip("@!"), names, n=1)
    return f"Did you mean {near[0]!r}" if near else f"Known: {', '.join(names) or 'none'}"


def _at(machine: Machine, arrow: Arrow) -> str:
    return f"row {arrow.row + 1} of {len(machine.transitions)} ({arrow})"


_CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    _unknown_names,
    _unknown_in_rows,
    _repeated_names,
    _rows,
    _terminal_rows,
    _outcomes,
    _ends,
    _reachable,
    _waits,
)
