"""A machine: states, and ONE table of transitions (`fsm.machine.grammar` says how a row reads).

A `Machine` is an immutable declaration; an execution is an instance of it (the idea is Automat's: the machine is
not the instance). It is data through and through: it can be compared, hashed, written as JSON and read back. It is
proved when it is built (`fsm.machine.validation`): a declaration that does not hold together never becomes a `Machine`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from fsm.errors import InvalidMachine
from fsm.machine.grammar import (
    Arrow,
    Category,
    Declaration,
    Fact,
    Invariant,
    Name,
    OutcomeKind,
    State,
    Transition,
)
from fsm.machine.table import Table
from fsm.machine.timeouts import Limits, Timeouts
from fsm.machine.validation import prove

if TYPE_CHECKING:
    from fsm.machine.executor import Executor

MAX_LIMITS = 1024
"""Maximum number of different time limits that a machine keeps resolved; then the cache starts empty."""


class Machine(Declaration):
    """The immutable, proved declaration that executions are instances of.

    Attributes:
        name: Lower case, words joined with underscores.
        initial: The state in which every execution begins.
        states: The closed set of states.
        transitions: The one table.
        facts: The questions that guards may ask.
        payloads: For each event with a payload, the name of its model (see `fsm.core.records.PAYLOADS`).
        timeouts: The time limits of an execution that brings none of its own.
        perpetual: Whether the machine never ends (a breaker); it then has no terminal state.
        doc: What the machine is for.
        invariants: What holds of every record that the table can lead to.

    Raises:
        InvalidMachine: The declaration does not hold together; every finding is listed.
        pydantic.ValidationError: A name, a category or a type is not of the grammar.
    """

    name: Name
    initial: Name
    states: Annotated[tuple[State, ...], Field(min_length=1)]
    transitions: tuple[Transition, ...]
    facts: tuple[Fact, ...] = ()
    payloads: tuple[tuple[Name, str], ...] = ()
    timeouts: Timeouts = Timeouts()
    perpetual: bool = False
    doc: str = ""
    invariants: tuple[Invariant, ...] = ()

    @model_validator(mode="after")
    def _prove(self) -> Self:
        if findings := prove(self.table):
            raise InvalidMachine(self.name, findings)
        return self

    def __hash__(self) -> int:
        return hash(self.content_hash)

    # A copy of what cannot change is the thing itself; another process gets the declaration and proves it again.

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: dict[int, Any] | None = None) -> Self:
        return self

    def __reduce__(self) -> tuple[Callable[[str], Machine], tuple[str]]:
        return type(self).from_json, (self.to_json(),)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:  # noqa: ARG002
        """Return a machine with some fields replaced, proved again; the same machine if nothing is replaced."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**(fields | dict(update))) if update else self

    # --- what the table says, resolved once -----------------------------------------------------------------

    @cached_property
    def table(self) -> Table:
        """The rows, resolved."""
        return Table(self)

    @cached_property
    def by_name(self) -> Mapping[str, State]:
        """Every state by its name."""
        return self.table.by_name

    @cached_property
    def events(self) -> tuple[str, ...]:
        """Every event of the table, in the order of its first row."""
        return self.table.events

    @cached_property
    def arrows(self) -> tuple[Arrow, ...]:
        """Every row for every single source state, in the table's order."""
        return self.table.arrows

    @cached_property
    def by_source(self) -> Mapping[str, Mapping[str, tuple[Arrow, ...]]]:
        """The arrows of each state and event, in the order in which their guards are tried."""
        return self.table.by_source

    @cached_property
    def terminal(self) -> frozenset[str]:
        """The states that nothing leaves."""
        return self.table.terminal

    @cached_property
    def outcomes(self) -> Mapping[str, OutcomeKind]:
        """What kind of end each terminal state is (`Table.outcomes`)."""
        return self.table.outcomes

    @cached_property
    def fact_defaults(self) -> Mapping[str, bool]:
        """The answer to each fact when neither the record nor the payload knows better."""
        return self.table.fact_defaults

    def of(self, *categories: str) -> frozenset[str]:
        """Return the names of the states of these categories, such as ``"running"``."""
        return self.table.of(*categories)

    def sources_of(self, row: Transition) -> tuple[str, ...]:
        """Return the states that a row leaves, its selectors resolved, in the order of declaration."""
        return self.table.sources_of(row)

    @cached_property
    def payload_names(self) -> Mapping[str, str]:
        """The name of the payload model of each event that has one."""
        return MappingProxyType(dict(self.payloads))

    @cached_property
    def executor(self) -> Executor:
        """The table, ready to run; built at the first use and then kept."""
        from fsm.machine.executor import Executor  # noqa: PLC0415 - a declaration that is not run needs no executor

        return Executor(self.table)

    def limits(self, timeouts: Timeouts | None = None) -> Limits:
        """Resolve time limits into one look-up per state.

        Args:
            timeouts: The limits of one execution; ``None`` for the machine's own.

        Returns:
            The limits, in seconds.
        """
        merged = timeouts.over(self.timeouts) if timeouts is not None else self.timeouts
        single = dict(merged.phases)
        by_state: dict[str, tuple[str, float] | None] = {}
        for state in self.states:
            seconds = single.get(state.name)
            if seconds is None and state.deadline is not None:
                seconds = merged.by_kind.get(state.deadline)
            bounded = seconds is not None and state.category != Category.TERMINAL
            by_state[state.name] = (state.deadline or "phase", seconds) if bounded and seconds else None
        return Limits(
            by_state,
            merged.total_s,
            merged.idle_s,
            self.of("running"),
            frozenset(state.name for state in self.states if state.deadline == "input"),
            total_given=timeouts is not None and timeouts.total_s is not None,
        )

    def limits_for(self, timeouts_json: str | None) -> Limits:
        """Return the resolved limits of an execution; the same text gives the same object.

        Args:
            timeouts_json: What `Timeouts.model_dump_json` wrote with ``exclude_unset`` (a limit that is written as
                null is lifted), or ``None`` for the machine's own limits.
        """
        limits = self.limits_known.get(timeouts_json)
        if limits is None:
            if len(self.limits_known) >= MAX_LIMITS:
                self.limits_known.clear()
            timeouts = Timeouts.model_validate_json(timeouts_json) if timeouts_json else None
            limits = self.limits_known[timeouts_json] = self.limits(timeouts)
        return limits

    @cached_property
    def limits_known(self) -> dict[str | None, Limits]:
        """What `limits_for` has resolved, by text; at most `MAX_LIMITS`."""
        return {}

    # --- derive, write, read ----------------------------------------------------------------------------------

    def extend(
        self,
        *,
        name: str,
        states: Iterable[State] = (),
        transitions: Iterable[Transition] = (),
        facts: Iterable[Fact] = (),
        invariants: Iterable[Invariant] = (),
        payloads: Mapping[str, str] | None = None,
        timeouts: Timeouts | None = None,
        doc: str | None = None,
    ) -> Machine:
        """Derive a machine with more states and rows, proved again.

        New rows are tried before the inherited ones of the same (source, event), so that a guarded row can
        refine an inherited one; rows with a category as their source reach the new states by themselves.

        Args:
            name: The name of the new machine.
            states: States to add.
            transitions: Rows to add.
            facts: Facts to add.
            invariants: Invariants to add; those that are inherited hold of the new machine too, or its proof fails.
            payloads: Payload models to add, by event.
            timeouts: Limits that take the place of the inherited ones.
            doc: What the new machine is for.

        Returns:
            The new machine; this one is unchanged.

        Raises:
            InvalidMachine: The result does not hold together.
        """
        return Machine(
            name=name,
            initial=self.initial,
            states=(*self.states, *states),
            transitions=(*transitions, *self.transitions),
            facts=(*self.facts, *facts),
            payloads=tuple((dict(self.payloads) | dict(payloads or {})).items()),
            timeouts=timeouts.over(self.timeouts) if timeouts is not None else self.timeouts,
            perpetual=self.perpetual,
            doc=self.doc if doc is None else doc,
            invariants=(*self.invariants, *invariants),
        )

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the declaration as JSON text, from which `from_json` makes an equal machine."""
        return self.model_dump_json(exclude_defaults=True, indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Machine:
        """Read a declaration and prove it.

        Args:
            text: What `to_json` wrote, or an equal document by hand.

        Raises:
            InvalidMachine: The declaration does not hold together.
            pydantic.ValidationError: The text is no JSON or not of the grammar.
        """
        return cls.model_validate_json(text)

    @cached_property
    def content_hash(self) -> str:
        """Thirty-two hex digits over all that decides behaviour; texts and invariants do not count."""
        data = self.model_dump(
            mode="json", exclude={"doc": True, "invariants": True, "states": {"__all__": {"doc"}}}
        )
        data["facts"] = [[fact.name, fact.default] for fact in self.facts]
        for row in data["transitions"]:
            row["otherwise"] = row["otherwise"] is not None
            if row["by"] == "anyone":
                del row["by"]  # a machine that uses no later word of the grammar keeps its hash
            if not row["implicit"]:
                del row["implicit"]
        for state in data["states"]:
            if state["outcome"] is None:
                del state["outcome"]
        canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]
