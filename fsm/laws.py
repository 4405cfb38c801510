"""A machine together with what this process needs to run it, and as the data that a store keeps its law by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fsm.decide import CHANGES, DERIVED
from fsm.errors import ConfigurationError, FsmError
from fsm.machine import Category, Machine
from fsm.payloads import Codec
from fsm.records import legal_rows
from fsm.stores.base import MachineRecord


class Law(NamedTuple):
    """A machine and the codec of its events' payloads."""

    machine: Machine
    codec: Codec


def law_for(machine: Machine, *, foreign: bool = False) -> Law:
    """Return a machine's law. A foreign one can be read even if its events cannot be checked in this process."""
    strange = {name for row in machine.transitions for name in row.assign} - CHANGES.keys()
    try:
        if strange:
            raise ConfigurationError(
                f"machine {machine.name!r} assigns {', '.join(sorted(strange))}, which executions do not have; "
                f"they have: {', '.join(CHANGES)}"
            )
        return Law(machine, Codec(machine, frozenset(DERIVED)))
    except FsmError as error:
        if not foreign:
            raise
        return Law(machine, _Unchecked(error))


class _Unchecked(Codec):
    """The codec of a machine whose events this process cannot check: whoever fires one learns what is missing."""

    def __init__(self, error: FsmError) -> None:
        self._error = error

    def encode(self, event: str, payload: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
        del payload
        raise ConfigurationError(f"{event!r} cannot be fired from this process: {self._error}")


def record_of(machine: Machine) -> MachineRecord:
    """Return a machine as the data that a store keeps its law by."""
    return MachineRecord(
        machine.content_hash,
        machine.name,
        machine.to_json(),
        tuple(
            (state.name, state.category is Category.TERMINAL, state.category is Category.STOPPING)
            for state in machine.states
        ),
        tuple(sorted(legal_rows(machine), key=lambda row: (row[0] or "", row[1], row[2]))),
    )
