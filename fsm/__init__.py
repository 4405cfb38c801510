"""One declared state machine and one registry for the executions of AI agents.

from fsm import configure, get_tracker

tracker = get_tracker()
execution = tracker.create("researcher", user_id="ada", thread_id="t-1")
receipt = tracker.fire(execution.id, "start")
"""

from fsm.errors import (
    BadPayload,
    BreakerOpen,
    ConfigurationError,
    FsmError,
    InvalidMachine,
    LeaseLost,
    MalformedId,
    NotAStore,
    Refusal,
    Refused,
    StoreTooNew,
    StoreUnavailable,
    UnknownExecution,
    UnknownMachine,
)
from fsm.lifecycles import BREAKER, EXECUTION
from fsm.machine import Category, Fact, Machine, State, Transition
from fsm.records import Execution, Receipt, Retry
from fsm.retention import Retention
from fsm.timeouts import Timeouts
from fsm.tracker import Tracker, configure, get_tracker

__all__ = [
    "BREAKER",
    "EXECUTION",
    "BadPayload",
    "BreakerOpen",
    "Category",
    "ConfigurationError",
    "Execution",
    "Fact",
    "FsmError",
    "InvalidMachine",
    "LeaseLost",
    "Machine",
    "MalformedId",
    "NotAStore",
    "Receipt",
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
    "UnknownExecution",
    "UnknownMachine",
    "configure",
    "get_tracker",
]
