"""The grammar of a machine: states, and ONE table of transitions.

A `Machine` is an immutable declaration; an execution is an instance of it (the idea is Automat's: the machine is
not the instance). It is data through and through: it can be compared, hashed, written as JSON and read back. It is
proved when it is built (`fsm.machine.validation`): a declaration that does not hold together never becomes a `Machine`.

A row reads: in `source`, on `event`, if `guard` holds, go to `target`, noting `assign`, then doing `effects`.

- ``source`` names states, or categories with an @, and takes single states out again with an !:
  ``"created queued"``, ``"@running @waiting"``, ``"@waiting !awaiting_input"``.
- ``target`` is empty for an internal transition: something is recorded, the state stays.
- ``guard`` joins facts with ``and``, each perhaps with ``not``: ``"retryable and attempts_left"``. The rows of one
  (source, event) are tried from top to bottom; the last has no guard, or says in ``otherwise`` why it refuses.
- ``assign`` names the record's changes, which commit together with the state; ``effects`` are orders as data,
  carried out after the commit.
- ``by`` says who may fire it: ``anyone``, the ``owner`` (the current fence is needed once a worker has claimed the
  execution), or the ``system`` (never a tracker that is narrowed to a user).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from fsm.errors import InvalidMachine
from fsm.machine.timeouts import Limits, Timeouts

if TYPE_CHECKING:
    from fsm.machine.executor import Executor

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
DeadlineKind = Literal["queue", "phase", "input", "grace", "cooldown"]
OutcomeKind = Literal["success", "error", "timeout", "cancelled", "lost"]
"""What kind of end a terminal state is."""
Authority = Literal["anyone", "owner", "system"]
"""Who may fire a row: anyone; the owner, who passes the current fence once a worker has claimed the execution; or the
system: the platform's own tracker and the library's sweepers, never a tracker that is narrowed to a user."""
CREATE = "create"
"""The event of every journal's first row: nothing -> the initial state. No table declares it."""

MAX_LIMITS = 1024
"""So many different time limits are kept resolved per machine; then the cache starts anew."""


class Category(StrEnum):
    """What a state means to whoever watches: every state declares one (after SCXML and Temporal)."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    STOPPING = "stopping"
    TERMINAL = "terminal"


def _words(value: Any) -> Any:
    """Let a table say ``"created queued"`` where a tuple is meant."""
    return tuple(value.split()) if isinstance(value, str) else value


Names = Annotated[tuple[Name, ...], BeforeValidator(_words)]
Selector = Annotated[str, StringConstraints(pattern=r"^[@!]?[a-z][a-z0-9_]*$", max_length=65)]
Guard = Annotated[
    str, StringConstraints(pattern=r"^(not )?[a-z][a-z0-9_]*( and (not )?[a-z][a-z0-9_]*)*$", max_length=300)
]
Literals = tuple[tuple[str, bool], ...]


class _Declaration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class State(_Declaration):
    """One of a machine's closed set of states.

    Attributes:
        name: Lower case, words joined with underscores.
        category: pending, running, waiting, stopping or terminal.
        deadline: The kind of limit that bounds a stay here; see `Timeouts`.
        doc: One line for the reader of the table and the drawing.
        outcome: What kind of end a terminal state is. `Machine.outcomes` derives that of a state which declares none
            from the events that lead to it.
    """

    name: Name
    category: Category
    deadline: DeadlineKind | None = None
    doc: str = ""
    outcome: OutcomeKind | None = None


class Fact(_Declaration):
    """A yes-or-no question that guards may ask.

    Attributes:
        name: How guards call it.
        default: The answer when neither the record nor the event's payload knows one.
        doc: One line for the reader.
    """

    name: Name
    default: bool = False
    doc: str = ""


class Transition(_Declaration):
    """One row of the table; see the module's text for how it reads.

    Attributes:
        source: State names, or categories with an @; a state with an ! is left out.
        event: An imperative verb.
        target: The state that it leads to; ``None`` for an internal transition.
        guard: Facts that must hold, or ``None``.
        assign: Names of the record's changes that commit with the state.
        effects: Names of the orders that are carried out after the commit.
        otherwise: The declared refusal: one sentence for the caller when no row's guard holds.
        by: Who may fire it.
    """

    source: Annotated[tuple[Selector, ...], BeforeValidator(_words), Field(min_length=1)]
    event: Name
    target: Name | None = None
    guard: Guard | None = None
    assign: Names = ()
    effects: Names = ()
    otherwise: str | None = None
    by: Authority = "anyone"

    @property
    def literals(self) -> Literals:
        """The guard as pairs of fact and wanted answer, all of which must hold."""
        if self.guard is None:
            return ()
        parts = self.guard.split(" and ")
        return tuple((part.removeprefix("not "), not part.startswith("not ")) for part in parts)

    def __str__(self) -> str:
        guard = f" [{self.guard}]" if self.guard else ""
        target = self.target or "(stays)"
        return f"{' '.join(self.source)} --{self.event}{guard}--> {target}"


def state(
    name: str,
    category: str,
    deadline: DeadlineKind | None = None,
    doc: str = "",
    *,
    outcome: OutcomeKind | None = None,
) -> State:
    """Write a `State` on one line of a table; the arguments are its fields."""
    return State(name=name, category=Category(category), deadline=deadline, doc=doc, outcome=outcome)


def row(
    source: str,
    event: str,
    target: str | None = None,
    guard: str | None = None,
    *,
    assign: str = "",
    effects: str = "",
    otherwise: str | None = None,
    by: Authority = "anyone",
) -> Transition:
    """Write a `Transition` on one line of a table; the arguments are its fields, lists as words."""
    return Transition(
        source=tuple(source.split()),
        event=event,
        target=target,
        guard=guard,
        assign=tuple(assign.split()),
        effects=tuple(effects.split()),
        otherwise=otherwise,
        by=by,
    )


class Arrow(NamedTuple):
    """A row of the table for one single source state, with its selectors resolved.

    Attributes:
        source: The state that it leaves.
        event: The event that takes it.
        target: The state that it leads to; the source itself for an internal transition.
        literals: The guard as pairs of fact and wanted answer.
        assign: The record's changes that commit with the state.
        effects: The orders that are carried out after the commit.
        otherwise: The declared refusal.
        internal: Whether the state stays by declaration.
        row: The index of the row in the machine's table.
        by: Who may fire it.
    """

    source: str
    event: str
    target: str
    literals: Literals
    assign: tuple[str, ...]
    effects: tuple[str, ...]
    otherwise: str | None
    internal: bool
    row: int
    by: Authority

    @property
    def guard(self) -> str:
        """The guard as text, empty for none."""
        return " and ".join(name if wanted else f"not {name}" for name, wanted in self.literals)

    def __str__(self) -> str:
        guard = f" [{self.guard}]" if self.literals else ""
        return f"{self.source} --{self.event}{guard}--> {self.target}"


class Machine(_Declaration):
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

    @model_validator(mode="after")
    def _prove(self) -> Self:
        from fsm.machine.validation import prove  # noqa: PLC0415 - the proof reads the grammar, the grammar calls the proof

        if findings := prove(self):
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
    def by_name(self) -> Mapping[str, State]:
        """Every state by its name."""
        return MappingProxyType({state.name: state for state in self.states})

    @cached_property
    def events(self) -> tuple[str, ...]:
        """Every event of the table, in the order of its first row."""
        return tuple(dict.fromkeys(row.event for row in self.transitions))

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
            )
            for index, row in enumerate(self.transitions)
            for source in self.sources_of(row)
        )

    @cached_property
    def by_source(self) -> Mapping[str, Mapping[str, tuple[Arrow, ...]]]:
        """The arrows of each state and event, in the order in which their guards are tried."""
        table: dict[str, dict[str, tuple[Arrow, ...]]] = {state.name: {} for state in self.states}
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
                for state in self.states
                if state.name in into
            }
        )

    @cached_property
    def fact_defaults(self) -> Mapping[str, bool]:
        """The answer to each fact when nobody knows better."""
        return MappingProxyType({fact.name: fact.default for fact in self.facts})

    @cached_property
    def payload_names(self) -> Mapping[str, str]:
        """The name of the payload model of each event that has one."""
        return MappingProxyType(dict(self.payloads))

    @cached_property
    def executor(self) -> Executor:
        """The table, ready to run; built at the first use and then kept."""
        from fsm.machine.executor import Executor  # noqa: PLC0415 - a declaration that nobody runs needs no executor

        return Executor(self)

    def of(self, *categories: str) -> frozenset[str]:
        """Return the names of the states of these categories.

        Args:
            categories: Category names, such as ``"running"``.
        """
        return frozenset(state.name for state in self.states if state.category in categories)

    def sources_of(self, row: Transition) -> tuple[str, ...]:
        """Return the states that a row leaves, its @ and ! selectors resolved, in the order of declaration."""
        out: dict[str, None] = {}
        for selector in row.source:
            if selector.startswith("@"):
                out.update((state.name, None) for state in self.states if state.category == selector[1:])
            elif not selector.startswith("!"):
                out[selector] = None
        return tuple(name for name in out if f"!{name}" not in row.source)

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
        limits = self._limits.get(timeouts_json)
        if limits is None:
            if len(self._limits) >= MAX_LIMITS:
                self._limits.clear()
            timeouts = Timeouts.model_validate_json(timeouts_json) if timeouts_json else None
            limits = self._limits[timeouts_json] = self.limits(timeouts)
        return limits

    @cached_property
    def _limits(self) -> dict[str | None, Limits]:
        return {}

    # --- derive, write, read ----------------------------------------------------------------------------------

    def extend(
        self,
        *,
        name: str,
        states: Iterable[State] = (),
        transitions: Iterable[Transition] = (),
        facts: Iterable[Fact] = (),
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
        """Thirty-two hex digits over all that decides behaviour; texts for the reader do not count."""
        data = self.model_dump(mode="json", exclude={"doc": True, "states": {"__all__": {"doc"}}})
        data["facts"] = [[fact.name, fact.default] for fact in self.facts]
        for row in data["transitions"]:
            row["otherwise"] = row["otherwise"] is not None
            if row["by"] == "anyone":
                del row["by"]  # a machine that uses no later word of the grammar keeps its hash
        for state in data["states"]:
            if state["outcome"] is None:
                del state["outcome"]
        canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]


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
