"""One declared state machine and one registry for the executions of AI agents.

from fsm import configure, get_tracker

tracker = get_tracker()
execution = tracker.create("researcher", user_id="ada", thread_id="t-1")
receipt = tracker.fire(execution.id, "start")
"""

from typing import TYPE_CHECKING, Any

from fsm.core.records import Execution, Receipt, Retry
from fsm.errors import (
    BadPayload,
    BreakerOpen,
    ConfigurationError,
    DamagedRecord,
    EngineFull,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionLost,
    ExecutionTimedOut,
    FsmError,
    InvalidArgument,
    InvalidMachine,
    LeaseLost,
    LimitReached,
    MalformedId,
    NotAStore,
    NotCompleted,
    PrerequisiteFailed,
    Reentered,
    Refusal,
    Refused,
    StoreTooNew,
    StoreUnavailable,
    UnknownBreaker,
    UnknownExecution,
    UnknownMachine,
)
from fsm.lifecycles import BREAKER, EXECUTION
from fsm.machine.grammar import Category, Fact, State, Transition
from fsm.machine.machine import Machine
from fsm.machine.timeouts import Timeouts
from fsm.tracker.process import configure, get_tracker
from fsm.tracker.retention import Retention
from fsm.tracker.tracker import Tracker

if TYPE_CHECKING:
    from fsm.engine import Engine

__all__ = [
    "BREAKER",
    "EXECUTION",
    "BadPayload",
    "BreakerOpen",
    "Category",
    "ConfigurationError",
    "DamagedRecord",
    "Engine",
    "EngineFull",
    "Execution",
    "ExecutionCancelled",
    "ExecutionFailed",
    "ExecutionLost",
    "ExecutionTimedOut",
    "Fact",
    "FsmError",
    "InvalidArgument",
    "InvalidMachine",
    "LeaseLost",
    "LimitReached",
    "Machine",
    "MalformedId",
    "NotAStore",
    "NotCompleted",
    "PrerequisiteFailed",
    "Receipt",
    "Reentered",
    "Refusal",
    "Refused",
    "Retention",
    "Retry",
    "State",
    "StoreTooNew",
    "StoreUnavailable",
    "Timeouts",
    "Tracker",
    "Transition",
    "UnknownBreaker",
    "UnknownExecution",
    "UnknownMachine",
    "configure",
    "get_tracker",
]


def __getattr__(name: str) -> Any:
    # The engine brings asyncio along; whoever only asks the tracker does not pay for it.
    if name == "Engine":
        from fsm.engine import Engine  # noqa: PLC0415 - see above

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
