"""An execution whose agent is the body of a ``with`` block."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fsm.engine.connection import RunOver
from fsm.engine.driver import Drive
from fsm.engine.functions import Agent
from fsm.engine.outcome import outcome_of
from fsm.engine.run import Run, _current
from fsm.engine.tasks import on_loop
from fsm.engine.threads import SyncRun
from fsm.errors import BadPayload, ConfigurationError, ExecutionLost

if TYPE_CHECKING:
    from contextvars import Token

    from fsm.engine.engine import Engine


class Session:
    """An execution for ``async with`` (yields its `Run`) or ``with`` (yields its `SyncRun`).

    Attributes:
        result: What the body came to; set it, and the record has it.
    """

    def __init__(self, engine: Engine, agent_name: str, options: dict[str, Any]) -> None:
        self._engine = engine
        self._name = agent_name
        self._options = options
        self._drive: Drive | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = 0
        self._told = False
        self._token: Token[Run | None] | None = None
        self.result: Any = None

    # --- async with ---------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Run:
        drive = await self._begin()
        self._task = asyncio.current_task()
        self._cancelled = self._task.cancelling() if self._task is not None else 0
        drive.link.stop.add_done_callback(self._stop)
        self._token = _current.set(drive.run)
        return drive.run

    def _stop(self, _: asyncio.Future[None]) -> None:
        """The execution is over for another reason than the body's end: cancel the body."""
        if self._task is not None and not self._told:
            self._told = True
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        drive = self._drive
        assert drive is not None  # noqa: S101 - it was entered
        drive.link.stop.remove_done_callback(self._stop)
        if self._token is not None:
            with contextlib.suppress(ValueError):  # it is left in another context than it was entered in
                _current.reset(self._token)
        ours = self._told and isinstance(error, asyncio.CancelledError)
        if self._told and self._task is not None:
            # What was cancelled here is dealt with here, as asyncio.timeout does it.
            ours = ours and self._task.uncancel() <= self._cancelled
        self._told = True
        if isinstance(error, GeneratorExit) and not on_loop(drive.home.loop):
            return  # its loop is gone; who speaks at exit needs its link
        await self._over(drive, error)
        if ours or isinstance(error, RunOver):
            failure = outcome_of(drive).failure()
            if failure is not None:
                raise failure from None

    async def _begin(self) -> Drive:
        if "retry" in self._options:
            raise BadPayload("the body of a with block cannot be run twice: retry needs an agent function")
        if self._drive is not None:
            raise ConfigurationError(
                "this execution was entered before: ask engine.execution() for another one"
            )
        engine = self._engine
        drive = self._drive = await engine._prepare(Agent(_body, self._name), deque(), **self._options)
        try:
            begun = await drive.begin()
            if begun:
                await drive.check_before()
        except GeneratorExit:
            raise  # its loop is gone; who speaks at exit needs its link
        except BaseException as error:
            await drive.home.through(self._early(drive, error), "fsm-session-early")
            raise
        if not begun:
            drive.finish()
            raise outcome_of(drive).failure() or ExecutionLost(drive.link.id, drive.link.state)
        return drive

    @staticmethod
    async def _early(drive: Drive, error: BaseException) -> None:
        """End what ended before its body could begin: a check refused it, or its caller was cancelled."""
        try:
            if isinstance(error, asyncio.CancelledError):
                await drive.leave("its caller was cancelled")
            else:
                await drive.close(None, error)
        finally:
            drive.finish()

    async def _over(self, drive: Drive, error: BaseException | None) -> None:
        """Say how the body ended, in a task of the engine's own: a caller that is cancelled during it leaves."""
        await drive.home.through(self._end(drive, error), "fsm-session-end")

    async def _end(self, drive: Drive, error: BaseException | None) -> None:
        try:
            if isinstance(error, asyncio.CancelledError) and not drive.link.stop.done():
                await drive.call_off_surely("its caller was cancelled")
            await drive.close(self.result, error)
        finally:
            drive.finish()

    # --- with ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> SyncRun:
        drive = self._engine.portal().call(self._begin())
        return SyncRun(drive.run)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        drive = self._drive
        assert drive is not None  # noqa: S101 - it was entered
        over = isinstance(error, RunOver)
        self._engine.portal().call(self._over(drive, asyncio.CancelledError() if over else error))
        failure = outcome_of(drive).failure()
        if over and failure is not None:
            raise failure from None


def _body() -> None:
    """Stand in for the agent, which is the body of the block."""
