"""Every error survives the way to another process, and is caught by one name."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from fsm import errors
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
    Finding,
    FsmError,
    InvalidArgument,
    InvalidMachine,
    KeyTaken,
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

REFUSAL = Refusal("exec_1", "completed", "start", "terminal", (), 3, "it has ended")
ERRORS: list[FsmError] = [
    FsmError("something"),
    InvalidMachine("m", [Finding("trap", "a", "nothing leads out", "Add a row")]),
    Refused(REFUSAL),
    UnknownExecution("exec_1", "it is too short"),
    UnknownBreaker("openai:gpt5", ("openai:gpt-5",)),
    UnknownMachine("executor", ("execution", "breaker")),
    InvalidArgument("wrong"),
    BadPayload("wrong"),
    MalformedId("x", "too short"),
    LeaseLost("worker_1"),
    KeyTaken("exec_1"),
    Reentered("a commit"),
    ConfigurationError("twice"),
    StoreUnavailable("full", committed=None),
    NotAStore("a text file"),
    DamagedRecord("executions", "exec_1", "tools", "are no list of calls"),
    StoreTooNew("fsm.db", 9, 2),
    NotCompleted("exec_1", "queued", "it was handed back"),
    ExecutionTimedOut("exec_1", "timed_out", "phase", 0.25),
    ExecutionCancelled("exec_1", "cancelled", "found it myself", "ada", 3),
    ExecutionLost("exec_1", "dead"),
    ExecutionFailed("exec_1", "failed", "boom"),
    PrerequisiteFailed("no credit"),
    LimitReached("50 turns"),
    EngineFull(100_000),
    BreakerOpen("openai:gpt-5", 2.5, 1_700_000_000.0, "open"),
]


def test_every_error_of_the_library_is_looked_at_here() -> None:
    """No error class is left out below."""
    classes = {
        one
        for _, one in inspect.getmembers(errors, inspect.isclass)
        if issubclass(one, Exception) and one.__module__ == "fsm.errors"
    }
    assert classes == {type(error) for error in ERRORS}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("way", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
def test_an_error_survives_pickling(error: FsmError, way) -> None:
    """An error that crosses a process boundary arrives with its text and all of its data."""
    again = way(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert isinstance(again, FsmError)


def test_a_refusal_can_be_read_from_the_exception() -> None:
    """The exception shows every part of the refusal, and its text names them for a person."""
    error = Refused(REFUSAL._replace(allowed=("cancel", "fail"), state="queued", reason="guard"))
    assert (error.execution_id, error.state, error.event) == ("exec_1", "queued", "start")
    assert (error.reason, error.allowed, error.version) == ("guard", ("cancel", "fail"), 3)
    for part in ("exec_1", "queued", "'start'", "guard", "version 3", "cancel, fail", "it has ended"):
        assert part in str(error)
    assert "Allowed now: nothing" in str(Refused(REFUSAL))


def test_an_unknown_machine_is_answered_with_the_nearest_name() -> None:
    """A misspelt machine name is met with the name that was probably meant."""
    assert "did you mean 'execution'" in str(UnknownMachine("executon", ("execution", "breaker")))
    assert "'executon'. Known: none" in str(UnknownMachine("executon"))
