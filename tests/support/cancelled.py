"""Coroutines whose callers hang up while they wait."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

WHEN = ("at the wait", "before the wait", "when it is over")
"""When a cancel comes: during the wait, before the loop has seen it, or after it and before the coroutine goes on."""


class HangsUp(Coroutine[Any, Any, Any]):
    """A coroutine whose task is cancelled at its n-th wait (at 0: before it begins), and at some of those that follow.

    Attributes:
        waits: How many waits there were.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, times: int, when: str = WHEN[0]) -> None:
        self._coroutine = coroutine
        self._at = at
        self._left = times
        self._when = when
        self._due = at == 0  # before the coroutine has begun
        self.waits = 0

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        if self._due:
            self._due = False
            return self.throw(asyncio.CancelledError())
        return self._waiting(self._coroutine.send(value))

    def throw(self, *error):
        self._due = False
        return self._waiting(self._coroutine.throw(*error))

    def close(self):
        self._coroutine.close()

    def _waiting(self, future):
        self.waits += 1
        if self.waits < self._at or not self._left:
            return future
        self._left -= 1
        if self._when == "before the wait":
            return self.throw(asyncio.CancelledError())
        if self._when == "when it is over":
            self._due = True
        else:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
        return future
