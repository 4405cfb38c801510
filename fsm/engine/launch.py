"""The creation of an execution that an engine drives: committed in a task that no caller's cancellation reaches."""

from __future__ import annotations

import logging
from typing import Any

from fsm.engine.admission import Seat
from fsm.engine.connection import Connection
from fsm.engine.retries import surely
from fsm.engine.runtime import Runtime
from fsm.errors import ConfigurationError, StoreUnavailable
from fsm.machine.machine import Machine
from fsm.registry.command import Command

logger = logging.getLogger(__name__)

SPOKEN = frozenset("start complete fail cancel stopped time_out lapse progress".split())
"""The events without which an engine cannot drive an execution to its end."""


def check_machine(machine: Machine) -> None:
    """Raise `ConfigurationError` if a machine lacks what an engine says."""
    lacks = sorted(SPOKEN.difference(machine.events))
    if lacks:
        raise ConfigurationError(
            f"the engine cannot drive machine {machine.name!r}, which has no {', '.join(lacks)}: derive yours with "
            "EXECUTION.extend(…), or drive its executions with tracker.fire"
        )


async def create(runtime: Runtime, seat: Seat, agent: str, **options: Any) -> Connection:
    """Commit the creation of an execution, and return the connection to it; its seat is given back if that fails."""
    making = _create(runtime, seat, agent, options)
    if runtime.registry.store.instant:
        return await making  # nothing is waited for, so no cancel can arrive

    async def undo(connection: Connection) -> None:
        try:
            await _cancel(runtime, connection.id)  # nothing would drive it
        finally:
            seat.close()
            connection.close()

    return await runtime.through(making, "fsm-create", undo=undo)


async def _create(runtime: Runtime, seat: Seat, agent: str, options: dict[str, Any]) -> Connection:
    registry, connection = runtime.registry, None
    try:
        birth: Command = await runtime.read(registry.birth, agent, **options)
        assert birth.born is not None  # noqa: S101 - a birth has a step
        snapshot = birth.born.after
        connection = Connection(runtime, snapshot, registry.law_of(snapshot.identity.machine).machine)
        committed = registry.committer.submit(birth)
        if committed is not None:
            await committed
        try:
            await runtime.read(registry.created, birth)
        except StoreUnavailable as error:
            # Was it created? Only the store can say, and nothing else would drive it.
            known = registry.store.load
            if error.committed is not None or await runtime.read(known, birth.request.execution_id) is None:
                raise
    except Exception as error:
        seat.close()
        if connection is not None:
            connection.close()
            if isinstance(error, StoreUnavailable) and error.committed is None:
                # Its caller is told that the outcome is unknown; if it was created, nothing drives it.
                runtime.see_to(_cancel(runtime, connection.id), "fsm-cancel")
        raise
    return connection


async def _cancel(runtime: Runtime, execution_id: str) -> None:
    async def cancel() -> None:
        order = runtime.registry.order(execution_id, "cancel", {"reason": "its caller was cancelled"})
        await runtime.read(runtime.registry.carry_all, [order])

    try:
        await surely(cancel, f"{execution_id}: its cancel")
    except StoreUnavailable as error:
        logger.error("%s: could not be cancelled; its deadline will end it: %s", execution_id, error)  # noqa: TRY400
