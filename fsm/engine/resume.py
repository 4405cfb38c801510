"""Registered agents, and what is needed to go on with one of their executions in another process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import PydanticSerializationError, to_jsonable_python

from fsm.core.results import clipped
from fsm.engine.answers import asked
from fsm.errors import BadPayload, StoreUnavailable
from fsm.machine.grammar import Category
from fsm.registry.registry import Registry
from fsm.stores.base import Query

if TYPE_CHECKING:
    from fsm.core.records import Snapshot
    from fsm.engine.engine import Engine
    from fsm.engine.functions import Agent
    from fsm.engine.outcome import Handle, Outcome

CALLED_WITH = "called_with"
"""The key in an execution's metadata under which the arguments of a resumable agent stand."""


class Registered:
    """What ``@engine.agent`` makes of a function: call it to run it, tracked.

    Attributes:
        agent: The function and its options.
    """

    def __init__(self, engine: Engine, agent: Agent) -> None:
        self._engine = engine
        self.agent = agent
        self.__name__ = agent.name
        self.__doc__ = agent.function.__doc__
        self.__wrapped__: Callable[..., Any] = agent.function

    def __repr__(self) -> str:
        return f"<agent {self.agent.name!r}>"

    async def __call__(self, *args: Any, user_id: str, thread_id: str, **kwargs: Any) -> Any:
        """Run it to its end; see `Engine.run`.

        Args:
            *args: The agent's own arguments, without its run.
            user_id: Whose execution it is.
            thread_id: The conversation.
            **kwargs: The agent's own arguments by name.
        """
        return await self._engine.run(self, *args, user_id=user_id, thread_id=thread_id, kwargs=kwargs)

    async def submit(self, *args: Any, **options: Any) -> Handle:
        """Begin it and return its handle; see `Engine.submit`."""
        return await self._engine.submit(self, *args, **options)

    async def map(self, items: Any, **options: Any) -> list[Outcome]:
        """Run it for many items; see `Engine.map`."""
        return await self._engine.map(self, items, **options)


class Registration(NamedTuple):
    """An execution that waits for somebody, and how its agent was called.

    Attributes:
        snapshot: The record.
        called_with: The arguments, and those by name.
        answers: Questions that were answered, with the payloads of the answers, in order.
    """

    snapshot: Snapshot
    called_with: tuple[tuple[Any, ...], dict[str, Any]]
    answers: list[tuple[str, str | None]]


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


def waiting_for(
    registry: Registry, agents: Mapping[str, Agent], known: set[str], limit: int
) -> list[Registration]:
    """Return queued executions of these agents that may begin now.

    One that cannot be gone on with is set aside with its reason, and those behind it are found all the same
    (`tests/test_hostile_engine.py::test_what_cannot_be_gone_on_with_is_set_aside`).

    Args:
        registry: The registry.
        agents: Resumable agents, by name.
        known: The executions that are driven here.
        limit: How many at the most.
    """
    now, health = registry.now(), registry.health
    found: list[Registration] = []
    # A name may be pending in one machine and mean something else in another: each record's own machine decides.
    pending = frozenset(name for machine in registry.machines() for name in machine.of(Category.PENDING))
    for name in agents:
        after: str | None = None
        while len(found) < limit:
            page = registry.store.find(Query(states=pending, agent=name, limit=limit, after=after))
            for snapshot in page:
                machine = registry.law_of(snapshot.identity.machine).machine
                if machine.by_name[snapshot.state].category is not Category.PENDING:
                    continue
                execution_id, version = snapshot.identity.id, snapshot.version
                waits = snapshot.not_before is not None and snapshot.not_before > now
                begun = version > 0 or snapshot.attempt > 0
                if waits or not begun or execution_id in known or health.skips(execution_id, version, now):
                    continue
                try:
                    call = _call_of(snapshot)
                    if call is not None:
                        found.append(Registration(snapshot, call, _answers(registry, snapshot)))
                except StoreUnavailable:
                    raise
                except Exception as error:  # noqa: BLE001 - metadata and answers are anybody's JSON
                    health.set_aside(execution_id, version, error, now)
            if len(page) < limit:
                break
            after = page[-1].identity.id
    return found[:limit]


def _call_of(snapshot: Snapshot) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return how the agent was called; ``None`` if that was not noted.

    Raises:
        BadPayload: What was noted is no call.
    """
    text = snapshot.identity.metadata_json
    metadata = json.loads(text) if text else None
    if not isinstance(metadata, dict) or CALLED_WITH not in metadata:
        return None
    call = metadata[CALLED_WITH]
    args, kwargs = (
        (call.get("args") or [], call.get("kwargs") or {}) if isinstance(call, dict) else (None, None)
    )
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise BadPayload(
            f"metadata[{CALLED_WITH!r}] is {{'args': […], 'kwargs': {{…}}}}, as a registered agent's submit() writes "
            f"it, not {clipped(repr(call))}: cancel this execution, and submit it to the agent again"
        )
    return tuple(args), kwargs


def _answers(registry: Registry, snapshot: Snapshot) -> list[tuple[str, str | None]]:
    """Return the questions that were answered, as `asked` knows them, in order, with the payload of each answer."""
    question: str | None = None
    answers: list[tuple[str, str | None]] = []
    for row in registry.store.history(snapshot.identity.id):
        if row.event == "await_input":
            question = asked(row.payload.get("question") or "", row.payload.get("data"))
        elif row.event == "receive_input" and question is not None:
            answers.append((question, row.payload_json))
            question = None
        elif row.event == "withdraw":
            question = None
    return answers
