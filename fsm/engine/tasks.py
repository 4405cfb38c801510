"""Coroutines that a cancellation does not reach, and agents that do not outlive every cancellation.

A caller may be cancelled again and again: anyio does so at every step until a task has left its scope. What the engine
has to do all the same runs in a task of its own, as an `Undisturbed`, and the caller leaves. The event loop's end
cancels that task too; it goes on nevertheless, and everything that is done in one has a limit of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

MAX_KEPT = 1_000
"""Maximum number of agents that ignored even their closing and are kept suspended."""
_kept: deque[Any] = deque(maxlen=MAX_KEPT)


class Leaves(Exception):
    """Carries SystemExit and KeyboardInterrupt out of an agent's task: asyncio would end the loop at once."""


def on_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether this code runs on a loop: a coroutine that is collected after its loop's end does not."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def came_to(task: asyncio.Task[Any]) -> tuple[Any, BaseException | None]:
    """Return the outcome of a task: its result, or its error."""
    if task.cancelled():
        return None, asyncio.CancelledError("the agent was cancelled from inside")
    error = task.exception()
    if isinstance(error, Leaves):
        error = error.__cause__
    return (None, error) if error is not None else (task.result(), None)


class _Wrapped(Coroutine[Any, Any, T]):
    """A coroutine behind another one's face: stepped as it is, unless a method below says otherwise."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, T], cancelled: Callable[[], object] | None = None
    ) -> None:
        self._coroutine = coroutine
        self._cancelled = cancelled

    def __await__(self) -> Generator[Any, None, T]:
        """Return itself: it is sent to and thrown into as a generator is."""
        return self  # type: ignore[return-value]

    def __iter__(self) -> _Wrapped[T]:
        return self

    def throw(  # type: ignore[override]
        self,
        kind: type[BaseException] | BaseException,
        error: BaseException | None = None,
        _: TracebackType | None = None,
    ) -> Any:
        """Hand an exception on; a cancellation is announced before."""
        raised = kind if isinstance(kind, BaseException) else error if error is not None else kind()
        if isinstance(raised, asyncio.CancelledError):
            if self._cancelled is not None:
                self._cancelled()
            return self.cancel(raised)
        return self._coroutine.throw(raised)

    def cancel(self, raised: asyncio.CancelledError) -> Any:
        """Take a cancellation."""
        return self._coroutine.throw(raised)

    def close(self) -> None:
        """Close the coroutine: its loop is gone."""
        self._coroutine.close()


class Undisturbed(_Wrapped[T]):
    """Carries a coroutine out to its end, whatever cancels the task that it runs in; also one that has not begun.

    What the coroutine waits for is not handed to the task: each time the task waits for a future of this object's own,
    and a cancellation ends no more than that. Await it, or make a task of it. `cancelled` is called at each
    cancellation.
    """

    _waits_for: asyncio.Future[Any] | None = None
    _wait: asyncio.Future[None] | None = None

    def send(self, _: Any = None) -> Any:
        """Go on, if what the coroutine waits for is there."""
        while (waits_for := self._waits_for) is None or waits_for.done():
            waits_for = self._waits_for = self._coroutine.send(None)
            if waits_for is None:
                return None  # it lets others have a turn
            waits_for._asyncio_future_blocking = False
            waits_for.add_done_callback(self._there)
        self._wait = wait = waits_for.get_loop().create_future()
        wait._asyncio_future_blocking = True
        return wait

    __next__ = send  # what a task calls to send nothing

    def _there(self, _: object) -> None:
        if self._wait is not None and not self._wait.done():
            self._wait.set_result(None)

    def cancel(self, raised: asyncio.CancelledError) -> Any:
        """Go on in spite of a cancellation."""
        del raised
        return self.send(None)


class Dismissible(_Wrapped[T]):
    """An agent's coroutine. It is stepped as any other until it is dismissed: then its next cancellation closes it.

    Attributes:
        dismissed: Whether its next cancellation closes it.
        ignored: Whether it was closed and went on all the same.
    """

    dismissed = False
    ignored = False

    def send(self, value: Any = None) -> Any:
        """Go on; what would end the event loop ends this task alone."""
        try:
            return self._coroutine.send(value)
        except (SystemExit, KeyboardInterrupt) as error:
            raise Leaves from error

    __next__ = send

    def cancel(self, raised: asyncio.CancelledError) -> Any:
        """Pass the cancellation on, or close one that was dismissed.

        Closing runs its ``finally`` blocks, which cannot wait for anything any more.
        """
        if not self.dismissed:
            try:
                return self._coroutine.throw(raised)
            except (SystemExit, KeyboardInterrupt) as error:
                raise Leaves from error
        try:
            self._coroutine.close()
        except BaseException:  # noqa: BLE001 - whatever an agent raises there, no caller waits for it any more
            self.ignored = True
            _kept.append(self._coroutine)
        raise raised
