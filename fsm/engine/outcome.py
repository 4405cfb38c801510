"""How an execution ended, for whoever waits for it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsm.concurrency.supervised import one_line
from fsm.errors import ExecutionCancelled, ExecutionFailed, ExecutionLost, ExecutionTimedOut
from fsm.machine.grammar import OutcomeKind

if TYPE_CHECKING:
    from fsm.engine.driver import Drive

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How an execution ended.

    Attributes:
        execution_id: The execution.
        state: The state that it ended in; of one that was handed back, the state that it was left in.
        ended_as: What kind of end the state is, as its machine declares: success, error, timeout, cancelled or lost;
            ``None`` if it has not ended.
        result: What the agent returned: the object itself.
        error: What the agent raised, if it failed.
        fallback: Whether the result is the fallback's.
        attempts: How many attempts were made.
        end: The payload of the event that ended it, with that of the event that told it to stop before.
    """

    execution_id: str
    state: str
    result: Any = None
    error: BaseException | None = None
    fallback: bool = False
    attempts: int = 0
    end: dict[str, Any] | None = None
    ended_as: OutcomeKind | None = None

    @property
    def completed(self) -> bool:
        """Whether there is a result: it ended as its machine declares a success."""
        return self.ended_as == "success"

    def value(self) -> Any:
        """Return the result.

        Raises:
            Exception: What the agent raised, if it failed.
            ExecutionTimedOut: A deadline passed.
            ExecutionCancelled: It was called off.
            ExecutionLost: It is not this process's any more.
            ExecutionFailed: It was ended as failed by somebody else, or the agent cancelled itself.
        """
        error = self.failure()
        if error is not None:
            raise error
        return self.result

    def failure(self) -> BaseException | None:
        """Return what `value` would raise, or ``None``."""
        if self.completed:
            return None
        end = self.end or {}
        make = _FAILURES.get(self.ended_as or "")
        if make is not None:
            return make(self, end)
        # It could not even be begun, or it was handed back.
        if self.error is None or isinstance(self.error, asyncio.CancelledError):
            lost = ExecutionLost(self.execution_id, self.state)
            # Raised itself, it would look like a cancellation of the caller that waits.
            lost.__cause__ = self.error
            return lost
        return self.error


def outcome_of(drive: Drive) -> Outcome:
    """Return how an execution ended that was driven here."""
    snapshot = drive.link.snapshot
    ended = drive.link.ended
    end = json.loads(snapshot.end_json) if ended and snapshot.end_json else {}
    # Of what another engine has brought to its end there is the record's result alone.
    result = drive.result if drive.result is not None else end.get("result")
    if ended and drive.link.called_off is not None:
        end = {**json.loads(drive.link.called_off), **end}
    return Outcome(
        drive.link.id,
        snapshot.state,
        result,
        drive.error,
        drive.fell_back or end.get("outcome") == "fallback",
        snapshot.attempt,
        end,
        drive.link.machine.outcomes.get(snapshot.state),
    )


def _failed(outcome: Outcome, end: dict[str, Any]) -> BaseException:
    if outcome.error is not None and not isinstance(outcome.error, asyncio.CancelledError):
        return outcome.error
    # A cancellation of the agent's own making is none of whoever waits: raised there, it would look like one.
    error = ExecutionFailed(outcome.execution_id, outcome.state, end.get("error") or "no reason was given")
    error.__cause__ = outcome.error
    return error


def _timed_out(outcome: Outcome, end: dict[str, Any]) -> BaseException:
    error = ExecutionTimedOut(
        outcome.execution_id, outcome.state, end.get("kind") or "phase", end.get("late_s")
    )
    error.__cause__ = outcome.error
    return error


def _cancelled(outcome: Outcome, end: dict[str, Any]) -> BaseException:
    return ExecutionCancelled(
        outcome.execution_id, outcome.state, end.get("reason"), end.get("by"), outcome.result
    )


_FAILURES = {"error": _failed, "timeout": _timed_out, "cancelled": _cancelled}


class Handle:
    """An execution that was handed to an engine.

    Attributes:
        id: The execution's id.
    """

    def __init__(self, drive: Drive, task: asyncio.Task[Outcome]) -> None:
        self._drive = drive
        self._task = task
        self.id = drive.link.id

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return self._task.done()

    @property
    def state(self) -> str:
        """The state of the last commit."""
        return self._drive.link.snapshot.state

    async def outcome(self) -> Outcome:
        """Wait until it is over; however it ends, nothing is raised. A cancelled wait does not cancel it."""
        await asyncio.wait({self._task})
        # One that was cancelled before its first step has been ended from outside, and has nothing to return.
        return outcome_of(self._drive) if self._task.cancelled() else self._task.result()

    async def result(self) -> Any:
        """Wait until it is over and return the result; raises as `Outcome.value` does."""
        return (await self.outcome()).value()

    async def attended(self) -> Any:
        """Return the result as `result` does; but whoever cancels the wait calls the execution off."""
        try:
            return await self.result()
        except asyncio.CancelledError:
            if not self.done:
                await self.give_up("its caller was cancelled")
            raise

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    async def cancel(self, reason: str | None = None, *, by: str | None = None) -> None:
        """Call it off: the agent is cancelled, and has its grace to stop. Nothing happens if it has ended.

        Args:
            reason: Why.
            by: Who.
        """
        await self._drive.call_off(reason, by)

    async def give_up(self, reason: str) -> None:
        """Call it off and wait until it is over, whether or not the store takes the cancel.

        A caller that is cancelled during it leaves; the engine goes on with it.

        Args:
            reason: Why.
        """
        await self._drive.home.through(self._give_up(reason), "fsm-give-up")

    async def _give_up(self, reason: str) -> None:
        try:
            await self.cancel(reason)
        except Exception as error:  # noqa: BLE001 - whatever it is, no caller waits for the agent any more
            logger.warning(
                "%s: the cancel was not taken, the agent is stopped all the same: %s",
                self.id,
                one_line(error),
            )
            self._task.cancel()
        await asyncio.wait({self._task})

    def add_done_callback(self, function: Callable[[], object]) -> None:
        """Call a function when it is over.

        Args:
            function: What to call; on the event loop.
        """
        self._task.add_done_callback(lambda _: function())
