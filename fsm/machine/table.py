"""The rows resolved once: what leaves each state. Validation and executor read this."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Protocol

from fsm.machine.grammar import Arrow, Category, Fact, Invariant, OutcomeKind, State, Transition
from fsm.machine.timeouts import Timeouts


class Declared(Protocol):
    """What a machine declares (`fsm.machine.machine.Machine`)."""

    @property
    def name(self) -> str: ...
    @property
    def initial(self) -> str: ...
    @property
    def states(self) -> tuple[State, ...]: ...
    @property
    def transitions(self) -> tuple[Transition, ...]: ...
    @property
    def facts(self) -> tuple[Fact, ...]: ...
    @property
    def payloads(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def timeouts(self) -> Timeouts: ...
    @property
    def perpetual(self) -> bool: ...
    @property
    def invariants(self) -> tuple[Invariant, ...]: ...


class Table:
    """A declaration with its selectors resolved; each answer is computed at its first use and then kept."""

    def __init__(self, declared: Declared) -> None:
        self.declared = declared

    @cached_property
    def by_name(self) -> Mapping[str, State]:
        """Every state by its name."""
        return MappingProxyType({state.name: state for state in self.declared.states})

    @cached_property
    def events(self) -> tuple[str, ...]:
        """Every event of the table, in the order of its first row."""
        return tuple(dict.fromkeys(row.event for row in self.declared.transitions))

    @cached_property
    def arrows(self) -> tuple[Arrow, ...]:
        """Every row for every single source state, in the table's order."""
        return tuple(
            Arrow(
                source,
                row.event,
                row.target or source,
                row.literals,
                row.assign,
                row.effects,
                row.otherwise,
                row.target is None,
                index,
                row.by,
                row.implicit,
            )
            for index, row in enumerate(self.declared.transitions)
            for source in self.sources_of(row)
        )

    @cached_property
    def by_source(self) -> Mapping[str, Mapping[str, tuple[Arrow, ...]]]:
        """The arrows of each state and event, in the order in which their guards are tried."""
        table: dict[str, dict[str, tuple[Arrow, ...]]] = {state.name: {} for state in self.declared.states}
        for arrow in self.arrows:
            events = table.setdefault(arrow.source, {})
            events[arrow.event] = (*events.get(arrow.event, ()), arrow)
        return MappingProxyType({source: MappingProxyType(events) for source, events in table.items()})

    @cached_property
    def terminal(self) -> frozenset[str]:
        """The states that nothing leaves."""
        return self.of(Category.TERMINAL)

    @cached_property
    def outcomes(self) -> Mapping[str, OutcomeKind]:
        """What kind of end each terminal state is.

        A state that declares no outcome has that of the events which lead to it: a success if `complete`, or an
        event with no meaning of its own, leads there; else what `fail`, `time_out`, `lapse` or `cancel` means.
        """
        into: dict[str, set[str]] = {name: set() for name in self.terminal}
        for arrow in self.arrows:
            if arrow.target in into:
                into[arrow.target].add(arrow.event)
        return MappingProxyType(
            {
                state.name: state.outcome or _outcome_of(into[state.name])
                for state in self.declared.states
                if state.name in into
            }
        )

    @cached_property
    def fact_defaults(self) -> Mapping[str, bool]:
        """The answer to each fact that neither the record nor the payload knows."""
        return MappingProxyType({fact.name: fact.default for fact in self.declared.facts})

    def of(self, *categories: str) -> frozenset[str]:
        """Return the names of the states of these categories.

        Args:
            categories: Category names, such as ``"running"``.
        """
        return frozenset(state.name for state in self.declared.states if state.category in categories)

    def sources_of(self, row: Transition) -> tuple[str, ...]:
        """Return the states that a row leaves, its @ and ! selectors resolved, in the order of declaration."""
        out: dict[str, None] = {}
        for selector in row.source:
            if selector.startswith("@"):
                out.update(
                    (state.name, None) for state in self.declared.states if state.category == selector[1:]
                )
            elif not selector.startswith("!"):
                out[selector] = None
        return tuple(name for name in out if f"!{name}" not in row.source)


_MEANS: tuple[tuple[str, OutcomeKind], ...] = (
    ("fail", "error"),
    ("time_out", "timeout"),
    ("lapse", "lost"),
    ("cancel", "cancelled"),
    ("stopped", "cancelled"),
)


def _outcome_of(events: set[str]) -> OutcomeKind:
    """Return the outcome of a state that these events lead to; see `Machine.outcomes`."""
    if events - {event for event, _ in _MEANS}:
        return "success"
    for event, outcome in _MEANS:
        if event in events:
            return outcome
    return "success"
