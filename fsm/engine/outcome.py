"""How an execution ended, for its callers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, NamedTuple

from fsm.errors import ExecutionCancelled, ExecutionFailed, ExecutionLost, ExecutionTimedOut
from fsm.machine.grammar import OutcomeKind


class Late(NamedTuple):
    """The result or error of an agent whose execution had ended without it.

    Attributes:
        execution_id: The execution.
        agent: The agent's name.
        late_s: How long after the end, in seconds.
        result: What it returned, as JSON-ready data.
        error: What it raised, on one line; ``None`` if it returned.
    """

    execution_id: str
    agent: str
    late_s: float
    result: Any
    error: str | None


@dataclass(frozen=True)
class Outcome:
    """How an execution ended.

    Attributes:
        execution_id: The execution.
        state: The state that it ended in; of one that was released, the state that it was left in.
        result: What the agent returned: the object itself.
        error: What the agent raised, if it failed.
        fallback: Whether the result is the fallback's.
        attempts: How many attempts were made.
        end: The payload of the event that ended it, with that of the event that told it to stop before.
        ended_as: What kind of end the state is, as its machine declares: success, error, timeout, cancelled or lost;
            ``None`` if it has not ended.
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
            ExecutionCancelled: It was cancelled.
            ExecutionLost: It is not this process's any more.
            ExecutionFailed: It was ended as failed from outside, or the agent cancelled itself.
        """
        error = self.failure()
        if error is not None:
            raise error
        return self.result

    def failure(self) -> BaseException | None:
        """Return what `value` would raise, or ``None``."""
        if self.ended_as == "success":
            return None
        failure, end = self._failure(self.end or {}), self.error
        if failure is None:
            return end
        if self.ended_as != "cancelled":
            # The agent's cancellation of itself is the cause: raised itself, it would look like one of the caller's.
            failure.__cause__ = end
        return failure

    def _failure(self, end: dict[str, Any]) -> BaseException | None:
        """Return the error for the kind of end; ``None`` where what the agent raised says it."""
        which = (self.execution_id, self.state)
        if self.ended_as == "timeout":
            return ExecutionTimedOut(*which, end.get("kind") or "phase", end.get("late_s"))
        if self.ended_as == "cancelled":
            return ExecutionCancelled(*which, end.get("reason"), end.get("by"), self.result)
        if self.error is not None and not isinstance(self.error, asyncio.CancelledError):
            return None
        if self.ended_as == "error":
            return ExecutionFailed(*which, end.get("error") or "no reason was given")
        return ExecutionLost(*which)  # it could not even be begun, or it was released
