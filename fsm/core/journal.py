"""What a journal says: its durations, the state that it leads to, and the rows that are law."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from fsm.core.records import MachineRecord, Receipt
from fsm.machine.grammar import CREATE, Category
from fsm.machine.machine import Machine


def durations(receipts: Iterable[Receipt], terminal: frozenset[str], now: float) -> dict[str, float]:
    """Book the time of an execution to the states in which it was spent.

    Args:
        receipts: Its journal from the beginning, in order.
        terminal: The terminal states of its machine; they take no time.
        now: The instant up to which an open stay counts, in seconds since the epoch.

    Returns:
        Seconds by state, in the order of the first visit; several visits are summed.
    """
    spent: dict[str, float] = {}
    state: str | None = None
    since = now
    for receipt in receipts:
        if state is not None:
            spent[state] = spent.get(state, 0.0) + max(0.0, receipt.at - since)
        state, since = receipt.target, receipt.at
    if state is not None and state not in terminal:
        spent[state] = spent.get(state, 0.0) + max(0.0, now - since)
    return spent


def fold(receipts: Iterable[Receipt], machine: Machine) -> str | None:
    """Replay a journal on its table and return the state that it leads to; ``None`` for an empty journal.

    Args:
        receipts: The journal of one execution from the beginning, in order.
        machine: Its machine.

    Raises:
        ValueError: A row is not of the table, a version is missing, or a row begins where the last did not end.
    """
    state: str | None = None
    for version, receipt in enumerate(receipts):
        if receipt.version != version:
            raise ValueError(f"version {version} is missing: found {receipt.version}")
        if receipt.source != state:
            raise ValueError(f"version {version} begins in {receipt.source!r}, the last ended in {state!r}")
        if (receipt.source, receipt.event, receipt.target) not in legal_rows(machine):
            raise ValueError(
                f"{receipt.source!r} --{receipt.event}--> {receipt.target!r} is no row of the table"
            )
        state = receipt.target
    return state


@lru_cache(maxsize=256)
def legal_rows(machine: Machine) -> frozenset[tuple[str | None, str, str]]:
    """Return every (source, event, target) that a journal of this machine may hold, the creation included."""
    rows: set[tuple[str | None, str, str]] = {
        (arrow.source, arrow.event, arrow.target) for arrow in machine.arrows
    }
    return frozenset(rows | {(None, CREATE, machine.initial)})


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
