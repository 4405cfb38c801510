"""What is needed to go on with an execution of a registered agent in another process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic_core import PydanticSerializationError, to_jsonable_python

from fsm.core.records import Snapshot
from fsm.core.results import clipped
from fsm.engine.run import Answer, answer_of, asked
from fsm.errors import BadPayload, StoreUnavailable
from fsm.machine.grammar import Category
from fsm.registry.registry import Registry
from fsm.stores.base import Query

CALLED_WITH = "called_with"
"""The key in an execution's metadata under which the arguments of a resumable agent stand."""


class Registration(NamedTuple):
    """An execution that waits for a worker, and how its agent was called.

    Attributes:
        snapshot: The record.
        args: The arguments.
        kwargs: Those by name.
        answers: Questions that were answered, with their answers, in order.
    """

    snapshot: Snapshot
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    answers: list[tuple[str, Answer]]


def called_with(
    metadata: Mapping[str, Any] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return metadata with the arguments of a call.

    Raises:
        BadPayload: They are no JSON, or the metadata uses the key itself.
    """
    if metadata and CALLED_WITH in metadata:
        raise BadPayload(f"metadata[{CALLED_WITH!r}] is where a resumable agent's arguments are kept")
    try:
        call = to_jsonable_python({"args": args, "kwargs": dict(kwargs or {})})
    except PydanticSerializationError as error:
        raise BadPayload(
            f"a resumable agent is called with JSON, so that another process can call it: {error}"
        ) from None
    return {**(metadata or {}), CALLED_WITH: call}


def waiting_for(registry: Registry, agents: set[str], known: set[str], limit: int) -> list[Registration]:
    """Return queued executions of these agents that may begin now and are not `known`, `limit` at the most.

    The table of each record's own machine says which states are pending. One that this process cannot drive is set
    aside with its reason, and those behind it are found all the same
    (`tests/engine/test_hostile_engine.py::test_what_cannot_be_gone_on_with_is_set_aside`).
    """
    now, health = registry.now(), registry.health
    found: list[Registration] = []
    # A name may be pending in one machine and mean something else in another.
    pending = frozenset(name for machine in registry.machines() for name in machine.of(Category.PENDING))
    for name in agents:
        after: str | None = None
        while len(found) < limit:
            page = registry.store.find(Query(states=pending, agent=name, limit=limit, after=after))
            for snapshot in page:
                execution_id, version = snapshot.identity.id, snapshot.version
                waits = snapshot.not_before is not None and snapshot.not_before > now
                begun = version > 0 or snapshot.attempt > 0
                if waits or not begun or execution_id in known or health.skips(execution_id, version, now):
                    continue
                try:
                    registration = _registration(registry, snapshot)
                except StoreUnavailable:
                    raise
                except Exception as error:  # noqa: BLE001 - metadata and answers are anybody's JSON
                    health.set_aside(execution_id, version, error, now)
                else:
                    found += () if registration is None else (registration,)
            if len(page) < limit:
                break
            after = page[-1].identity.id
    return found[:limit]


def _registration(registry: Registry, snapshot: Snapshot) -> Registration | None:
    """Return how the agent was called; ``None`` if that was not noted, or the execution does not wait for a worker.

    Raises:
        BadPayload: What was noted is no call.
    """
    machine = registry.law_of(snapshot.identity.machine).machine
    text = snapshot.identity.metadata_json
    metadata = json.loads(text) if text else None
    pending = machine.by_name[snapshot.state].category is Category.PENDING
    if not pending or not isinstance(metadata, dict) or CALLED_WITH not in metadata:
        return None
    call = metadata[CALLED_WITH]
    args = call.get("args") or [] if isinstance(call, dict) else None
    kwargs = call.get("kwargs") or {} if isinstance(call, dict) else None
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise BadPayload(
            f"metadata[{CALLED_WITH!r}] is {{'args': […], 'kwargs': {{…}}}}, as a registered agent's submit() writes "
            f"it, not {clipped(repr(call))}: cancel this execution, and submit it to the agent again"
        )
    return Registration(snapshot, tuple(args), kwargs, _answers(registry, snapshot))


def _answers(registry: Registry, snapshot: Snapshot) -> list[tuple[str, Answer]]:
    """Return the questions that were answered, as `asked` knows them, with their answers, in order."""
    question: str | None = None
    answers: list[tuple[str, Answer]] = []
    for row in registry.store.history(snapshot.identity.id):
        if row.event == "await_input":
            question = asked(row.payload.get("question") or "", row.payload.get("data"))
        elif row.event == "receive_input" and question is not None:
            answers.append((question, answer_of(row.payload_json)))
            question = None
        elif row.event == "withdraw":
            question = None
    return answers
