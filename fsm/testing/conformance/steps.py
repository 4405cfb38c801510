"""Steps as the committer hands them to a store, made by hand: what tests of stores are written with."""

# ruff: noqa: S101 - a helper of tests

from __future__ import annotations

from typing import Any

from fsm import ids
from fsm.core.decide import DERIVED, create, decide
from fsm.core.payloads import Codec
from fsm.core.records import Identity, Receipt, Snapshot, Step
from fsm.core.request import Request
from fsm.errors import Refusal
from fsm.lifecycles.execution import EXECUTION
from fsm.machine.grammar import row, state
from fsm.machine.machine import Machine
from fsm.stores import Store

OTHER = Machine(
    name="errand",
    initial="open",
    states=(state("open", "running"), state("shut", "terminal")),
    transitions=(row("open", "shut", "shut"), row("open", "cancel", "shut")),
)
"""A second machine, as a user would declare one."""

_CODECS = {machine.content_hash: Codec(machine, frozenset(DERIVED)) for machine in (EXECUTION, OTHER)}
_MACHINES = {machine.content_hash: machine for machine in (EXECUTION, OTHER)}


def birth(
    *,
    agent: str = "agent",
    user_id: str = "ada",
    thread_id: str = "thread",
    machine: Machine = EXECUTION,
    at: float = 1000.0,
    **more: Any,
) -> Step:
    """Return the step that creates an execution; `more` are further fields of its `Identity`."""
    fields: dict[str, Any] = {
        "id": ids.execution_id(),
        "parent_id": None,
        "retry_of": None,
        "attempts_max": 1,
        "model_attempts_max": 5,
        "metadata_json": None,
        "timeouts_json": None,
    }
    fields |= {
        "machine": machine.content_hash,
        "agent": agent,
        "user_id": user_id,
        "thread_id": thread_id,
        "created_at": at,
    }
    return create(machine, Identity(**(fields | more)))


def move(
    before: Snapshot,
    event: str,
    *,
    key: str | None = None,
    at: float = 1001.0,
    now: float | None = None,
    **payload: Any,
) -> Step:
    """Return the step that an event comes to; the event must be legal."""
    content_hash = before.identity.machine
    checked, text = _CODECS[content_hash].encode(event, payload)
    request = Request(event, at, checked, text, fence=before.fence, key=key, worker="worker_1", now=now)
    decided = decide(_MACHINES[content_hash], before, request)
    assert not isinstance(decided, Refusal), decided
    return decided


def walk(begin: Step, *events: str) -> list[Step]:
    """Return `begin` and the steps of the events after it."""
    steps = [begin]
    for event in events:
        steps.append(move(steps[-1].after, event))
    return steps


def committed(store: Store, *steps: Step) -> list[Receipt]:
    """Append a batch of which every step must be committed."""
    out = store.append(steps)
    receipts = [one for one in out if isinstance(one, Receipt)]
    assert len(receipts) == len(steps), out
    return receipts
