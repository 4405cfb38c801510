"""What callers may give by keyword: each option is named once, for every face and for all code that passes them on.

Type checkers and editors read the options from the typed dictionaries here; `spelled` shows them to `help` and to
`inspect.signature`, and `known` refuses any other name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypedDict, TypeVar

from fsm.core.records import Retry
from fsm.machine.machine import Machine
from fsm.machine.timeouts import Timeouts

F = TypeVar("F", bound=Callable[..., Any])


class TimeoutOptions(TypedDict, total=False):
    """The fields of `Timeouts`, for a caller who writes a dict."""

    total_s: float | None
    queue_s: float | None
    phase_s: float | None
    idle_s: float | None
    input_s: float | None
    grace_s: float | None
    phases: Mapping[str, float]


class RetryOptions(TypedDict, total=False):
    """The fields of `Retry`, for a caller who writes a dict."""

    attempts_max: int
    model_attempts_max: int
    backoff_s: float
    backoff_cap_s: float


class CreateOptions(TypedDict, total=False):
    """What an execution may be created with, beside its agent, user and thread; see `Tracker.create`."""

    timeouts: Timeouts | TimeoutOptions | None
    retry: Retry | RetryOptions | None
    parent_id: str | None
    retry_of: str | None
    metadata: Mapping[str, Any] | None
    machine: Machine | str | None
    key: str | None


class Filters(TypedDict, total=False):
    """Which executions are meant; see `Scope.find`."""

    state: str | Iterable[str] | None
    category: str | None
    agent: str | None
    user_id: str | None
    thread_id: str | None
    parent_id: str | None


def spelled(options: type) -> Callable[[F], F]:
    """Return a decorator that shows the options of a typed dictionary in the place of a function's ``**options``."""

    def show(function: F) -> F:
        signature = inspect.signature(function)
        given = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in options.__annotations__.items()
        ]
        function.__signature__ = signature.replace(parameters=[*given, *more])  # type: ignore[attr-defined]
        return function

    return show


def known(call: str, given: Iterable[str], options: type) -> None:
    """Refuse options that are none, as Python refuses arguments, and name the nearest one."""
    for name in given:
        if name not in options.__annotations__:
            near = get_close_matches(name, options.__annotations__, n=1)
            hint = (
                f"; did you mean {near[0]!r}?" if near else f". Options: {', '.join(options.__annotations__)}"
            )
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}{hint}")
