"""A run for frameworks that call back at the start and at the end of something, instead of around it."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Any

from fsm.core.results import clipped, jsonable
from fsm.engine.calls import ModelPhase, ToolPhase
from fsm.engine.errors import RunOver
from fsm.engine.inflight import InFlight
from fsm.errors import FsmError

logger = logging.getLogger(__name__)

MAX_OPEN = 10_000
"""Maximum number of calls that are open at once; what begins beyond is not recorded."""


class Recorder:
    """Writes down what a framework says. It never raises, and does nothing once the run is over.

    What must not be lost (the end, a person's answer) does not go this way; a line of the journal that cannot be
    written is logged. Each call has a `key` that the framework repeats at its end; an unknown one is passed over.
    """

    def __init__(self, inflight: InFlight) -> None:
        self._inflight = inflight
        self._id = inflight.connection.id
        self._open: dict[Hashable, ModelPhase | ToolPhase] = {}

    async def _enter(self, key: Hashable, phase: ModelPhase | ToolPhase) -> None:
        if self._inflight.over or key in self._open or len(self._open) >= MAX_OPEN:
            return
        self._open[key] = phase
        try:
            await phase.__aenter__()
        except BaseException as error:
            self._open.pop(key, None)
            if isinstance(error, FsmError):
                logger.warning("%s: a call could not be recorded: %s", self._id, error)
            elif not isinstance(error, RunOver):
                raise

    async def _leave(self, phase: ModelPhase | ToolPhase, error: BaseException | None) -> None:
        try:
            await phase.__aexit__(type(error) if error is not None else None, error, None)
        except RunOver:
            return
        except FsmError as refused:
            logger.warning("%s: the end of a call could not be recorded: %s", self._id, refused)

    async def model_started(self, key: Hashable, name: str) -> None:
        """Note that a model call began."""
        await self._enter(key, ModelPhase(self._inflight, name, None))

    async def model_ended(
        self, key: Hashable, *, error: BaseException | None = None, usage: dict[str, Any] | None = None
    ) -> None:
        """Note that a model call ended: what it raised, and what it used for the journal."""
        phase = self._open.pop(key, None)
        if isinstance(phase, ModelPhase):
            if usage:
                phase.usage(**usage)
            await self._leave(phase, error)

    async def tool_started(
        self, key: Hashable, name: str, *, arguments: Any = None, call_id: str | None = None
    ) -> None:
        """Note that a tool call began; `call_id` is the call's id where the framework has one."""
        await self._enter(key, ToolPhase(self._inflight, name, call_id, arguments))

    async def tool_ended(
        self, key: Hashable, *, error: BaseException | None = None, result: Any = None
    ) -> None:
        """Note that a tool call ended: what it raised, or returned."""
        phase = self._open.pop(key, None)
        if isinstance(phase, ToolPhase):
            phase.result = result
            await self._leave(phase, error)

    async def close_all(self, error: BaseException | None = None) -> None:
        """Note that everything that is still open has ended."""
        for key in list(self._open):
            await self._leave(self._open.pop(key), error)

    async def note(self, text: str, **data: Any) -> None:
        """Write a line into the journal."""
        if self._inflight.over:
            return
        try:
            await self._inflight.fire(
                "progress", {"note": clipped(text), **({"data": jsonable(data)} if data else {})}
            )
        except (RunOver, FsmError) as error:
            logger.debug("%s: a note could not be written: %s", self._id, error)
