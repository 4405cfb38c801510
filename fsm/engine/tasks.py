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


def on_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether this code runs on a loop: a coroutine that is collected after its loop's end does not."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


class Undisturbed(Coroutine[Any, Any, T]):
    """Carries a coroutine out to its end, whatever cancels the task that it runs in; also one that has not begun.

    What the coroutine waits for is not handed to the task: each time the task waits for a future of this object's own,
    and a cancellation ends no more than that. Await it, or make a task of it.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        """Wrap a coroutine that has not begun."""
        self._coroutine = coroutine
        self._waits_for: asyncio.Future[Any] | None = None

    def __await__(self) -> Generator[Any, None, T]:
        """Return itself: it is sent to and thrown into as a generator is."""
        return self  # type: ignore[return-value]

    def __iter__(self) -> Undisturbed[T]:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, _: Any) -> Any:
        """Go on, if what the coroutine waits for is there."""
        while self._waits_for is None or self._waits_for.done():
            future = self._coroutine.send(None)
            if future is None:
                return None  # it lets others have a turn
            future._asyncio_future_blocking = False  # noqa: SLF001 - how a future tells its task to wait
            self._waits_for = future
        return self._wait(self._waits_for)

    @staticmethod
    def _wait(future: asyncio.Future[Any]) -> asyncio.Future[None]:
        wait: asyncio.Future[None] = future.get_loop().create_future()

        def there(_: object) -> None:
            if not wait.done():
                wait.set_result(None)

        future.add_done_callback(there)
        wait.add_done_callback(lambda _: future.remove_done_callback(there))
        wait._asyncio_future_blocking = True  # noqa: SLF001 - as above
        return wait

    def throw(  # type: ignore[override]
        self,
        kind: type[BaseException] | BaseException,
        error: BaseException | None = None,
        _: TracebackType | None = None,
    ) -> Any:
        """Go on in spite of a cancellation; anything else is the coroutine's."""
        raised = kind if isinstance(kind, BaseException) else error if error is not None else kind()
        if isinstance(raised, asyncio.CancelledError):
            return self.send(None)
        return self._coroutine.throw(raised)

    def close(self) -> None:
        """Close the coroutine: its loop is gone."""
        self._coroutine.close()


class Dismissible(Coroutine[Any, Any, T]):
    """An agent's coroutine. It is stepped as any other until it is dismissed: then its next cancellation closes it.

    Attributes:
        dismissed: Whether its next cancellation closes it.
        ignored: Whether it was closed and went on all the same.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], cancelled: Callable[[], object]) -> None:
        """Wrap a coroutine.

        Args:
            coroutine: The agent's.
            cancelled: Called before each cancellation that it is given.
        """
        self._coroutine = coroutine
        self._cancelled = cancelled
        self.dismissed = False
        self.ignored = False

    def __await__(self) -> Generator[Any, None, T]:
        """Return itself: it is sent to and thrown into as a generator is."""
        return self  # type: ignore[return-value]

    def __iter__(self) -> Dismissible[T]:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def dismiss(self) -> None:
        """Let the next cancellation close it."""
        self.dismissed = True

    def send(self, value: Any) -> Any:
        """Go on."""
        return self._coroutine.send(value)

    def throw(  # type: ignore[override]
        self,
        kind: type[BaseException] | BaseException,
        error: BaseException | None = None,
        _: TracebackType | None = None,
    ) -> Any:
        """Hand an exception on; a cancellation of one that was dismissed closes it."""
        raised = kind if isinstance(kind, BaseException) else error if error is not None else kind()
        if isinstance(raised, asyncio.CancelledError):
            if self.dismissed:
                self._end()
                raise raised
            self._cancelled()
        return self._coroutine.throw(raised)

    def _end(self) -> None:
        """Close it: `GeneratorExit` runs its ``finally`` blocks, which cannot wait for anything any more."""
        try:
            self._coroutine.close()
        except BaseException:  # noqa: BLE001 - whatever an agent raises there, no caller waits for it any more
            self.ignored = True
            _kept.append(self._coroutine)

    def close(self) -> None:
        """Close the coroutine: its loop is gone."""
        self._coroutine.close()


MAX_KEPT = 1_000
"""Maximum number of agents that ignored even their closing and are kept suspended."""
_kept: deque[Any] = deque(maxlen=MAX_KEPT)
