"""An execution whose agent is the body of a ``with`` block."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextvars import Token
from types import TracebackType
from typing import Any

from fsm.engine.errors import RunOver
from fsm.engine.functions import Agent
from fsm.engine.handle import Handle
from fsm.engine.retries import surely
from fsm.engine.run import CURRENT, Run
from fsm.engine.tasks import on_loop
from fsm.engine.threads import Portal, SyncRun
from fsm.errors import BadPayload, ConfigurationError, ExecutionLost, StoreUnavailable


class Block:
    """An execution for ``async with`` (yields its `Run`) or ``with`` (yields its `SyncRun`).

    A driver drives it as any other. Its agent hands its run to the block, and waits for the end of the body.

    Attributes:
        result: The result of the body; set it, and the record has it.
    """

    def __init__(
        self,
        agent_name: str,
        options: dict[str, Any],
        begin: Callable[..., Awaitable[Handle]],
        portal: Callable[[], Portal],
    ) -> None:
        """Prepare; `begin` takes the agent and the options, and returns the handle of its execution."""
        self._agent = Agent(self._body, agent_name, once=True)
        self._options = options
        self._begin = begin
        self._portal = portal
        self._handle: Handle | None = None
        self._run: asyncio.Future[Run] | None = None
        self._ended: asyncio.Future[BaseException | None] | None = None
        self._task: asyncio.Task[Any] | None = None  # in which the body runs, if that can be cancelled
        self._cancels = 0
        self._stopping = False
        self._told = False
        self._token: Token[Run | None] | None = None
        self.result: Any = None

    async def _body(self, run: Run) -> Any:
        """Stand in for the agent, which is the body of the block."""
        entered, ended = self._run, self._ended
        assert entered is not None  # noqa: S101 - the block was entered
        assert ended is not None  # noqa: S101 - as above
        if not entered.done():
            entered.set_result(run)
        while not ended.done():
            try:
                await asyncio.wait({ended})
            except asyncio.CancelledError:
                if run.connection.closing:
                    raise
                self._stopping = True
                self._tell()
        error = ended.result()
        stopping = self._stopping or run.connection.stop.done()
        if isinstance(error, asyncio.CancelledError) and not stopping:
            with contextlib.suppress(StoreUnavailable):
                what = f"{run.id}: its cancel"
                await surely(lambda: run.connection.cancel("its caller was cancelled", None), what)
        if error is not None:
            raise error
        return self.result

    def _loop(self) -> asyncio.AbstractEventLoop:
        assert self._ended is not None  # noqa: S101 - it was entered
        return self._ended.get_loop()

    def _tell(self) -> None:
        """Cancel the body: its execution is over for another reason than its end."""
        if self._task is not None and self._stopping and not self._told:
            self._told = True
            self._task.cancel()

    async def _enter(self) -> Run:
        if "retry" in self._options:
            raise BadPayload("the body of a with block cannot be run twice: retry needs an agent function")
        if self._run is not None:
            raise ConfigurationError(
                "this execution was entered before: ask engine.execution() for another one"
            )
        loop = asyncio.get_running_loop()
        self._run = entered = loop.create_future()
        self._ended = ended = loop.create_future()
        handle = self._handle = await self._begin(self._agent, **self._options)
        handle.add_done_callback(lambda: entered.done() or entered.cancel())
        try:
            await asyncio.wait({entered})
        except asyncio.CancelledError as error:
            ended.set_result(error)
            await handle.give_up("its caller was cancelled")
            raise
        if entered.cancelled():
            outcome = await handle.outcome()
            raise outcome.failure() or ExecutionLost(handle.id, handle.state)
        run: Run = entered.result()
        return run

    async def _leave(self, error: BaseException | None) -> BaseException | None:
        """Say that the body has ended, wait until the execution has, and return what its outcome raises."""
        handle, ended = self._handle, self._ended
        assert handle is not None  # noqa: S101 - it was entered
        assert ended is not None  # noqa: S101 - as above
        trace = error.__traceback__ if error is not None else None
        ended.set_result(error)
        try:
            return (await handle.outcome()).failure()
        finally:
            if error is not None:
                error.__traceback__ = (
                    trace  # it was raised in the engine as well; the body's traceback is its own
                )

    # --- async with ---------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Run:
        run = await self._enter()
        self._task = asyncio.current_task()
        self._cancels = self._task.cancelling() if self._task is not None else 0
        self._token = CURRENT.set(run)
        self._tell()  # if it was stopped before the body could begin
        return run

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            with contextlib.suppress(ValueError):  # it is left in another context than it was entered in
                CURRENT.reset(self._token)
        ours = self._told and isinstance(error, asyncio.CancelledError)
        if self._told and self._task is not None:
            # What was cancelled here is taken back here, as asyncio.timeout does it.
            ours = ours and self._task.uncancel() <= self._cancels
        self._told = True
        if isinstance(error, GeneratorExit) and not on_loop(self._loop()):
            return  # its loop is gone; the end of the process ends it
        failure = await self._leave(error)
        if failure is not None and (ours or isinstance(error, RunOver)):
            raise failure from None

    # --- with ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> SyncRun:
        return SyncRun(self._portal().call(self._enter()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failure = self._portal().call(self._leave(error))
        if failure is not None and isinstance(error, RunOver):
            raise failure from None
