"""What a simulation's checker keeps: commits and sweeps as they happened, leases and executions as they are."""

from __future__ import annotations

from typing import NamedTuple

from fsm.core.records import Receipt, Step
from fsm.errors import FsmError
from fsm.machine.machine import Machine
from fsm.registry.command import Command

EPOCH_S = 1_700_000_000.0
"""The wall clock of a worker without skew when a simulation begins, in seconds since the epoch."""


class Broken(FsmError):
    """A guarantee does not hold. `guarantee` names it in a few words."""

    def __init__(self, guarantee: str, detail: str) -> None:
        self.guarantee = guarantee
        super().__init__(f"{guarantee}: {detail}")


class Commit(NamedTuple):
    """A commit as the store saw it.

    Attributes:
        at_s: When, in virtual seconds.
        who: The name of the process that asked for it.
        command: What it asked for.
        step: What was decided.
        receipt: What the store answered.
    """

    at_s: float
    who: str
    command: Command
    step: Step
    receipt: Receipt


class Sweep(NamedTuple):
    """The beginning of a sweep: how many commits there were, the virtual time, and the steady timeline's instant."""

    commits: int
    at_s: float
    now: float


class Lease:
    """A worker's lease as it really is: when the store last took a renewal, in virtual seconds."""

    __slots__ = ("renewed_s", "ttl_s", "who")

    def __init__(self, who: str, ttl_s: float, renewed_s: float) -> None:
        self.who = who
        self.ttl_s = ttl_s
        self.renewed_s = renewed_s


class Model:
    """An execution as its journal tells it."""

    __slots__ = (
        "attempt", "called_off", "fence", "gone", "holder", "keys", "last", "legal", "machine", "owner", "rows",
        "state", "suspended", "terminal",
    )  # fmt: skip

    def __init__(self, machine: Machine, legal: frozenset[tuple[str | None, str, str]]) -> None:
        self.machine = machine
        self.terminal = machine.terminal
        self.legal = legal
        self.rows: list[Receipt] = []
        self.keys: set[str] = set()
        self.state: str | None = None
        self.attempt = 0
        self.fence = 0
        self.owner: str | None = None
        self.called_off = False
        self.suspended = (
            False  # its owner was lost while it waited for a person: the next claim is the same attempt
        )
        self.gone = False  # it was pruned
        self.last: Step | None = None
        self.holder: str | None = None  # the owner as the commits tell, while it is open
