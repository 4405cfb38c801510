"""The grammar of a machine: states, facts, and rows of the one table.

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
- ``implicit`` rows only change the phase: a driver may take them unasked, on the way to another event.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
DeadlineKind = Literal["queue", "phase", "input", "grace", "cooldown"]
OutcomeKind = Literal["success", "error", "timeout", "cancelled", "lost"]
"""What kind of end a terminal state is."""
Authority = Literal["anyone", "owner", "system"]
"""Who may fire a row: anyone; the owner, who passes the current fence once a worker has claimed the execution; or the
system: the platform's own tracker and the library's sweepers, never a tracker that is narrowed to a user."""
CREATE = "create"
"""The event of every journal's first row: nothing -> the initial state. No table declares it."""


class Category(StrEnum):
    """What a state means to those who watch it: every state declares one (after SCXML and Temporal)."""

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


class Declaration(BaseModel):
    """What all parts of a machine have in common: they are frozen, and know their fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class State(Declaration):
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


class Fact(Declaration):
    """A yes-or-no question that guards may ask.

    Attributes:
        name: How guards call it.
        default: The answer when neither the record nor the event's payload knows one.
        doc: One line for the reader.
    """

    name: Name
    default: bool = False
    doc: str = ""


class Transition(Declaration):
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
        implicit: Whether a driver may take it unasked, on the way to another event or state.
    """

    source: Annotated[tuple[Selector, ...], BeforeValidator(_words), Field(min_length=1)]
    event: Name
    target: Name | None = None
    guard: Guard | None = None
    assign: Names = ()
    effects: Names = ()
    otherwise: str | None = None
    by: Authority = "anyone"
    implicit: bool = False

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


class Invariant(Declaration):
    """What holds of every record that the table can lead to; `fsm verify --prove` proves it.

    Invariants decide nothing: a machine keeps its hash whatever it states.

    Attributes:
        name: What it is called in a proof.
        says: One sentence for the reader.
        holds: An expression over the record (`fsm.machine.expressions`): ``"attempt <= attempts_max"``.
    """

    name: Name
    says: str
    holds: Annotated[str, StringConstraints(min_length=1, max_length=300)]


def invariant(name: str, says: str, holds: str) -> Invariant:
    """Write an `Invariant` on one line of a table; the arguments are its fields."""
    return Invariant(name=name, says=says, holds=holds)


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


def row(  # noqa: PLR0913 - a row of a table has as many columns
    source: str,
    event: str,
    target: str | None = None,
    guard: str | None = None,
    *,
    assign: str = "",
    effects: str = "",
    otherwise: str | None = None,
    by: Authority = "anyone",
    implicit: bool = False,
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
        implicit=implicit,
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
        implicit: Whether a driver may take it unasked.
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
    implicit: bool = False

    @property
    def guard(self) -> str:
        """The guard as text, empty for none."""
        return " and ".join(name if wanted else f"not {name}" for name, wanted in self.literals)

    def __str__(self) -> str:
        guard = f" [{self.guard}]" if self.literals else ""
        return f"{self.source} --{self.event}{guard}--> {self.target}"
