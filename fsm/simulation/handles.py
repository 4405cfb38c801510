"""What a stepped loop runs: callbacks, timers and tasks, each of a process that can be stopped and killed."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class TimerKeeper(Protocol):
    """What a timer tells its loop."""

    def timer_cancelled(self, timer: Timer) -> None:
        """Take note of a timer that nobody waits for."""
        ...


class Process:
    """Callbacks that live and die together.

    Attributes:
        name: How traces and stacks call it.
        state: ``running``, ``paused`` or ``dead``.
        parked: What became ready while it was paused.
    """

    __slots__ = ("name", "parked", "state", "stopped")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = "running"
        self.stopped = False
        self.parked: list[Handle | Timer] = []

    def __repr__(self) -> str:
        return f"<Process {self.name} {self.state}>"


PROCESS: ContextVar[Process | None] = ContextVar("fsm_simulated_process", default=None)
"""Whose code is running; tasks and callbacks inherit it as they do every context variable."""


class Handle(asyncio.Handle):
    """A callback to come. The base class is there for its type; the loop makes it, with less."""

    __slots__ = ("number", "process")

    number: int
    process: Process | None
    _context: Context
    _callback: Callable[..., object]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.number} of {self.process}: {self._callback}>"

    def cancel(self) -> None:
        """Take it back."""
        self._cancelled = True
        self._callback = _nothing
        self._args = ()


class Timer(asyncio.TimerHandle):
    """A callback at a virtual time; as `Handle`, whose layout it cannot inherit together with its type."""

    __slots__ = ("_keeper", "number", "process")

    number: int
    process: Process | None
    _context: Context
    _callback: Callable[..., object]

    def __init__(
        self,
        when: float,
        number: int,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context | None,
        loop: TimerKeeper,
    ) -> None:
        self._context = context = copy_context() if context is None else context
        self.process = context.get(PROCESS)
        self.number = number
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._when = when
        self._keeper = loop

    __repr__ = Handle.__repr__

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other

    def cancel(self) -> None:
        """Take it back."""
        if not self._cancelled:
            self._cancelled = True
            self._callback = _nothing
            self._args = ()
            self._keeper.timer_cancelled(self)


def _nothing() -> None:
    """Stand where a cancelled callback stood."""


class SteppedTask(asyncio.Task[T]):
    """A task with a number, which is also its hash: so that a set of tasks has the same order in every run."""

    number: int
    process: Process | None

    def __init__(self, coro: Coroutine[Any, Any, T], *, number: int, **options: Any) -> None:
        self.number = number
        context = options.get("context")
        self.process = PROCESS.get() if context is None else context.get(PROCESS)
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number


class OrderedWeakSet:
    """Asynchronous generators that were begun, in that order: a WeakSet's order is that of their addresses."""

    def __init__(self) -> None:
        self._members: dict[int, weakref.ref[Any]] = {}

    def add(self, one: Any) -> None:
        """Put one in."""
        self._members[id(one)] = weakref.ref(one)

    def discard(self, one: Any) -> None:
        """Take one out, if it is there."""
        self._members.pop(id(one), None)

    def clear(self) -> None:
        """Take all out."""
        self._members.clear()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Any]:
        return iter([one for one in [ref() for ref in self._members.values()] if one is not None])


def where(task: asyncio.Task[Any]) -> list[str]:
    """Return where a task waits, the outermost frame first."""
    lines = []
    waits: Any = task.get_coro()
    while waits is not None:
        frame = (
            getattr(waits, "cr_frame", None)
            or getattr(waits, "ag_frame", None)
            or getattr(waits, "gi_frame", None)
        )
        if frame is None:
            break
        lines.append(f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})")
        waits = (
            getattr(waits, "cr_await", None)
            or getattr(waits, "ag_await", None)
            or getattr(waits, "gi_yieldfrom", None)
        )
    return lines
