"""A section of code that one thread at a time is in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Section:
    """Calls functions one after another; nothing holds it except a function that runs.

    A thread that is in it already may enter again: a signal handler, a finaliser or a log handler that uses the same
    breaker must not wait for itself. What runs inside therefore leaves something usable behind after every line.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call `function` inside."""
        # On one line, because an interrupt between two lines would leave the lock held for ever
        # (tests/breakers/test_hostile_breakers.py::test_an_interrupt_at_every_line).
        with self._lock: return function(*args)  # noqa: E701  # fmt: skip
