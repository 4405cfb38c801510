"""The proof that a machine holds together, made when it is built.

`prove` returns every finding, not just the first, so that a declaration is mended in one go. Each check is a
small generator over the declaration; none of them knows a particular machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from pydantic import BaseModel

from fsm.errors import Finding
from fsm.machine.expressions import NoExpression, words_of
from fsm.machine.grammar import Arrow, State
from fsm.machine.table import Table

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


def prove(table: Table) -> list[Finding]:
    """Return every finding on a declaration; an empty list means that it holds together."""
    return [finding for check in _CHECKS for finding in check(table)]


# --- names ---------------------------------------------------------------------------------------------------


def _unknown_names(table: Table) -> Iterator[Finding]:
    states = table.by_name
    if table.declared.initial not in states:
        yield Finding(
            "unknown_state",
            f"initial={table.declared.initial}",
            "no such state",
            _near(table.declared.initial, states),
        )
    for event, _ in table.declared.payloads:
        if event not in table.events:
            yield Finding(
                "unknown_event", f"payloads[{event}]", "no row has this event", _near(event, table.events)
            )
    for state, _ in table.declared.timeouts.phases:
        if state not in states:
            yield Finding("unknown_state", f"timeouts.phases[{state}]", "no such state", _near(state, states))


def _unknown_in_rows(table: Table) -> Iterator[Finding]:
    states = table.by_name
    for row in table.declared.transitions:
        strange = False
        for selector in row.source:
            what, known = ("category", CATEGORIES) if selector.startswith("@") else ("state", tuple(states))
            if selector.lstrip("@!") not in known:
                strange = True
                yield Finding(
                    f"unknown_{what}", str(row), f"no such source {selector!r}", _near(selector, known)
                )
        if not strange and not table.sources_of(row):
            yield Finding(
                "empty_source", str(row), "no state is left to come from", "Declare one, or drop the row"
            )
        if row.target is not None and row.target not in states:
            yield Finding(
                "unknown_state", str(row), f"no such target {row.target!r}", _near(row.target, states)
            )
        for fact, _ in row.literals:
            if fact not in table.fact_defaults:
                yield Finding(
                    "unknown_fact", str(row), f"no such fact {fact!r}", _near(fact, table.fact_defaults)
                )
        if row.event in RESERVED:
            yield Finding("reserved_event", str(row), "the library itself writes this event", "Rename it")


def _repeated_names(table: Table) -> Iterator[Finding]:
    for what, names in (
        ("state", [state.name for state in table.declared.states]),
        ("fact", [fact.name for fact in table.declared.facts]),
        ("payload", [event for event, _ in table.declared.payloads]),
        ("invariant", [invariant.name for invariant in table.declared.invariants]),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                yield Finding(f"duplicate_{what}", name, f"declared {count} times", "Keep one")
    for fact in table.fact_defaults.keys() & RESERVED_FACTS:
        yield Finding("reserved_fact", fact, "the word has a meaning of its own", "Rename it")


# --- rows ----------------------------------------------------------------------------------------------------


def _rows(table: Table) -> Iterator[Finding]:
    for events in table.by_source.values():
        for arrows in events.values():
            yield from _never_taken(table, arrows)
            yield from _not_covered(table, arrows)


def _never_taken(table: Table, arrows: tuple[Arrow, ...]) -> Iterator[Finding]:
    for index, arrow in enumerate(arrows):
        wanted = dict(arrow.literals)
        if len(wanted) != len(set(arrow.literals)):
            yield Finding(
                "impossible_guard", _at(table, arrow), "the guard contradicts itself", "Drop one half"
            )
            continue
        for earlier in arrows[:index]:
            if set(earlier.literals) == set(arrow.literals):
                yield Finding(
                    "duplicate_row",
                    _at(table, arrow),
                    f"the same source, event and guard stand in row {earlier.row + 1}",
                    "Drop one of the two",
                )
                break
            if all(wanted.get(fact) is answer for fact, answer in earlier.literals):
                yield Finding(
                    "shadowed_row",
                    _at(table, arrow),
                    f"row {earlier.row + 1} ({earlier}) always goes first",
                    "Move the narrower guard up, or drop the row",
                )
                break
        else:
            before = arrows[:index]
            if len(_facts(before)) <= MAX_FACTS and _open_case(wanted, before) is None:
                yield Finding(
                    "shadowed_row",
                    _at(table, arrow),
                    f"rows {', '.join(str(one.row + 1) for one in before)} together leave it no case",
                    "Move it up, or drop the row",
                )


def _not_covered(table: Table, arrows: tuple[Arrow, ...]) -> Iterator[Finding]:
    if any(not arrow.literals or arrow.otherwise is not None for arrow in arrows):
        return
    facts = _facts(arrows)
    if len(facts) > MAX_FACTS:
        yield Finding(
            "too_many_facts",
            _at(table, arrows[-1]),
            f"guards ask {len(facts)} facts, {MAX_FACTS} at most can be checked",
            "Join some of them into one fact",
        )
        return
    left = _open_case({}, arrows)
    if left is not None:
        case = " and ".join(name if answer else f"not {name}" for name, answer in sorted(left.items()))
        yield Finding(
            "guard_without_else",
            _at(table, arrows[-1]),
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


def _terminal_rows(table: Table) -> Iterator[Finding]:
    for arrow in table.arrows:
        if arrow.source in table.terminal:
            yield Finding(
                "leaves_terminal",
                _at(table, arrow),
                f"{arrow.source!r} is terminal, nothing leaves it",
                "Make the state another category, or start a new execution with retry_of",
            )


def _outcomes(table: Table) -> Iterator[Finding]:
    for state in table.declared.states:
        if state.outcome is not None and state.category != "terminal":
            yield Finding(
                "outcome_without_end",
                state.name,
                f"it declares outcome={state.outcome!r}, but it is {state.category}, not terminal",
                "Drop outcome=, or make the state terminal",
            )


def _invariants(table: Table) -> Iterator[Finding]:
    for invariant in table.declared.invariants:
        try:
            words = words_of(invariant.holds)
        except NoExpression as error:
            yield Finding("bad_invariant", invariant.name, str(error), "See fsm.machine.expressions")
            continue
        for word in words:
            if word.startswith("@") and word[1:] not in CATEGORIES:
                yield Finding(
                    "unknown_category", invariant.name, f"no such category {word!r}", _near(word, CATEGORIES)
                )


# --- paths ---------------------------------------------------------------------------------------------------


def _ends(table: Table) -> Iterator[Finding]:
    if table.declared.perpetual and table.terminal:
        yield Finding(
            "perpetual_with_end",
            " ".join(sorted(table.terminal)),
            "a perpetual machine has no terminal state",
            "Drop perpetual=True, or the state",
        )
    if not table.declared.perpetual and not table.terminal:
        yield Finding(
            "no_end",
            table.declared.name,
            "no state is terminal, an execution would run for ever",
            "Declare a terminal state, or say perpetual=True",
        )
    if table.declared.initial in table.terminal:
        yield Finding(
            "ends_at_start",
            f"initial={table.declared.initial}",
            "the initial state is terminal",
            "Begin elsewhere",
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


def _reachable(table: Table) -> Iterator[Finding]:
    if table.declared.initial not in table.by_name:
        return  # already reported; every state would be reported again as unreachable
    forward: dict[str, set[str]] = {}
    backward: dict[str, set[str]] = {}
    for arrow in table.arrows:
        forward.setdefault(arrow.source, set()).add(arrow.target)
        backward.setdefault(arrow.target, set()).add(arrow.source)
    reached = _reach([table.declared.initial], forward)
    for state in table.declared.states:
        if state.name not in reached:
            yield Finding(
                "unreachable_state",
                state.name,
                f"no path leads here from {table.declared.initial!r}",
                "Add a row that leads here, or drop the state",
            )
    goal = [table.declared.initial] if table.declared.perpetual else sorted(table.terminal)
    what = (
        f"no path leads back to {table.declared.initial!r}"
        if table.declared.perpetual
        else "no path leads to an end"
    )
    home = _reach(goal, backward)
    for state in table.declared.states:
        if state.name in reached and state.name not in home | table.terminal and goal:
            exits = forward.get(state.name, set()) - {state.name}
            yield Finding(
                "trap",
                state.name,
                what if exits else f"nothing leads out, and {what}",
                "Add a row that leads out, or make the state terminal",
            )


def _waits(table: Table) -> Iterator[Finding]:
    """The events `cancel` and `time_out` carry these meanings in every machine."""
    for state in table.declared.states:
        waits = state.category == "waiting"
        if waits and state.deadline is None:
            yield Finding(
                "wait_without_deadline",
                state.name,
                "it could wait for ever",
                "Declare deadline= (queue, phase, input, grace or cooldown)",
            )
        if table.declared.perpetual:
            continue
        if waits and not _leaves(table, state.name, "cancel"):
            yield Finding(
                "wait_without_cancel",
                state.name,
                "nobody could call it off",
                "Add a row for the event 'cancel' that leads out",
            )
        if not _leaves(table, state.name, "time_out"):
            for limit, where in _limits_on(table, state):
                yield Finding(
                    "deadline_without_row",
                    state.name,
                    f"its {limit} deadline has no transition to take",
                    f"Add a row for the event 'time_out' that leads out, or drop {where}",
                )


def _limits_on(table: Table, state: State) -> Iterator[tuple[str, str]]:
    """Yield each limit that the declaration itself puts on a stay in a state, and where it says so."""
    limits = table.declared.timeouts
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


def _leaves(table: Table, state: str, event: str) -> bool:
    return any(arrow.target != state for arrow in table.by_source[state].get(event, ()))


# --- helpers -------------------------------------------------------------------------------------------------


def _near(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    from difflib import get_close_matches  # noqa: PLC0415 - for the one who mistyped

    near = get_close_matches(name.lstrip("@!"), names, n=1)
    return f"Did you mean {near[0]!r}" if near else f"Known: {', '.join(names) or 'none'}"


def _at(table: Table, arrow: Arrow) -> str:
    return f"row {arrow.row + 1} of {len(table.declared.transitions)} ({arrow})"


_CHECKS: tuple[Callable[[Table], Iterator[Finding]], ...] = (
    _unknown_names,
    _unknown_in_rows,
    _repeated_names,
    _rows,
    _terminal_rows,
    _outcomes,
    _invariants,
    _ends,
    _reachable,
    _waits,
)
