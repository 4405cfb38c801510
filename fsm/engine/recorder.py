"""A run for frameworks that call back at the start and at the end of something, instead of around it."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from fsm.core.results import jsonable
from fsm.engine.calls import ModelPhase, ToolPhase
from fsm.engine.connection import RunOver
from fsm.errors import FsmError

if TYPE_CHECKING:
    from fsm.engine.run import Run

logger = logging.getLogger(__name__)

MAX_OPEN = 10_000
"""So many calls may be open at once; what begins beyond is not recorded."""


class Recorder:
    """Writes down what a framework says. It never raises, and does nothing once the run is over.

    What must not be lost (the end, a person's answer) does not go this way; a line of the journal that cannot be
    written is logged.
    """

    def __init__(self, run: Run) -> None:
        """Record a run; ``run.recorder`` does."""
        self._run = run
        self._open: dict[Hashable, ModelPhase | ToolPhase] = {}

    async def _enter(self, key: Hashable, phase: ModelPhase | ToolPhase) -> None:
        if self._run.over or key in self._open or len(self._open) >= MAX_OPEN:
            return
        self._open[key] = phase
        try:
            await phase.__aenter__()
        except RunOver:
            self._open.pop(key, None)
        except FsmError as error:
            self._open.pop(key, None)
            logger.warning("%s: a call could not be recorded: %s", self._run.id, error)
        except BaseException:
            self._open.pop(key, None)
            raise

    async def _leave(self, phase: ModelPhase | ToolPhase, error: BaseException | None) -> None:
        try:
            await phase.__aexit__(type(error) if error is not None else None, error, None)
        except RunOver:
            return
        except FsmError as refused:
            logger.warning("%s: the end of a call could not be recorded: %s", self._run.id, refused)

    async def model_started(self, key: Hashable, name: str) -> None:
        """Note that a model call began.

        Args:
            key: What the framework repeats at its end.
            name: The model's name.
        """
        await self._enter(key, self._run.model(name, breaker=False))

    async def model_ended(
        self, key: Hashable, *, error: BaseException | None = None, usage: dict[str, Any] | None = None
    ) -> None:
        """Note that a model call ended; an unknown key is nobody's.

        Args:
            key: As at its start.
            error: What it raised.
            usage: What it used, for the journal.
        """
        phase = self._open.pop(key, None)
        if isinstance(phase, ModelPhase):
            if usage:
                phase.usage(**usage)
            await self._leave(phase, error)

    async def tool_started(
        self, key: Hashable, name: str, *, arguments: Any = None, call_id: str | None = None
    ) -> None:
        """Note that a tool call began.

        Args:
            key: What the framework repeats at its end.
            name: The tool's name.
            arguments: What it is called with.
            call_id: The call's id, where the framework has one.
        """
        await self._enter(key, self._run.tool(name, arguments=arguments, call_id=call_id))

    async def tool_ended(
        self, key: Hashable, *, error: BaseException | None = None, result: Any = None
    ) -> None:
        """Note that a tool call ended; an unknown key is nobody's.

        Args:
            key: As at its start.
            error: What it raised.
            result: What it returned.
        """
        phase = self._open.pop(key, None)
        if isinstance(phase, ToolPhase):
            phase.result = result
            await self._leave(phase, error)

    async def close_all(self, error: BaseException | None = None) -> None:
        """Note that everything that is still open has ended.

        Args:
            error: With what.
        """
        for key in list(self._open):
            phase = self._open.pop(key)
            await self._leave(phase, error)

    async def note(self, text: str, **data: Any) -> None:
        """Write a line into the journal."""
        if self._run.over:
            return
        try:
            await self._run.progress(text, data=jsonable(data) if data else None)
        except (RunOver, FsmError) as error:
            logger.debug("%s: a note could not be written: %s", self._run.id, error)
