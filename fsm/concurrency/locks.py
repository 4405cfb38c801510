"""Locks and events that a thread can meet a second time: in a signal handler, in a finaliser, after an interrupt.

A handler and a finaliser run between two bytecodes of whatever their thread does, also while it holds a lock. With
`threading.Lock` the second acquisition waits for ever; with `threading.RLock` it sees data that is half changed. The
`Lock` here knows its owner and refuses it at once with `Reentered`; a `Bell` is an event without such a lock inside.

An exception may arise between any two bytecodes as well (Ctrl-C, no memory). A ``with`` statement over a lock of the
interpreter's own lets go of it whatever happens: it looks for signals neither between the acquisition and the block
nor between the block and the release. That is why `Lock` leaves its release to the interpreter
(`tests/registry/test_hostile_core.py` interrupts every line).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from functools import wraps
from queue import Empty, SimpleQueue
from types import FunctionType, TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple, Unpack

from fsm.concurrency.forks import first_in_child
from fsm.errors import Reentered

Args = TypeVarTuple("Args")
T = TypeVar("T")
_Exit = Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], None]


class Lock:
    """A lock that refuses the thread that holds it, and starts over in a forked child.

    Attributes:
        mine: Returns whether the calling thread holds it.
        mutex: The interpreter's own lock, for a ``with`` block where `mine` was asked before.
        what: What it protects, for the error.
    """

    __slots__ = ("__weakref__", "mine", "mutex", "what")

    mine: Callable[[], bool]

    def __init__(self, what: str) -> None:
        """Begin released.

        Args:
            what: What it protects.
        """
        self.what = what
        mutex: Any = threading.RLock()  # it knows its owner; that it could be taken twice is not used
        self.mutex = mutex
        self.mine = mutex._is_owned  # noqa: SLF001 - threading.Condition asks the same
        _locks.add(self)

    def __enter__(self) -> Self:
        if self.mine():
            raise Reentered(self.what)
        try:
            self.mutex.acquire()
        except BaseException:
            self.free()  # the interrupt may have come after the acquisition
            raise
        return self

    @property
    def __exit__(self) -> _Exit:  # noqa: PYI036, PLE0302, RUF100 - it returns the function
        # The interpreter's own function, which a ``with`` statement asks for before it enters. One written here
        # could be interrupted before its first line, and nothing would release the lock.
        leave: _Exit = self.mutex.__exit__
        return leave

    def run(self, function: Callable[[Unpack[Args]], T], *args: *Args) -> T:
        """Call a function while holding the lock.

        Raises:
            Reentered: This thread holds it already.
        """
        if self.mine():
            raise Reentered(self.what)
        try:
            with self.mutex:
                return function(*args)
        except BaseException:
            self.free()  # a debugger or a tracer may raise where the block ends, before the release
            raise

    def run_nested(self, function: Callable[[Unpack[Args]], T], *args: *Args) -> T:
        """Call a function while holding the lock, also if this thread holds it already.

        It is for a section whose data are usable after every line, which a finaliser, a signal handler or a log
        handler may enter while its thread is inside: refused, it would lose the verdict of its own call
        (`tests/breakers/test_hostile_breakers.py::test_a_finaliser_that_uses_the_breaker`).
        """
        with self.mutex: return function(*args)  # noqa: E701 - a tracer may raise between two lines  # fmt: skip

    def free(self) -> None:
        """Release it if the calling thread holds it."""
        while self.mine():
            self.mutex.release()

    def acquire(self, timeout: float = -1) -> bool:
        """Take it, also a second time, for what cannot be written as one block; `release` it as often."""
        taken: bool = self.mutex.acquire(timeout=timeout)
        return taken

    def release(self) -> None:
        """Release it once."""
        self.mutex.release()

    def after_fork(self) -> None:
        """Start over in a forked child, unless the one thread that it has holds it and will release it."""
        if not self.mine():
            self.mutex._at_fork_reinit()  # noqa: SLF001 - as the threading module does with its own


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _after_fork() -> None:
    for lock in list(_locks):
        lock.after_fork()


first_in_child(_after_fork)

MAX_LOOKS = 10
"""How often `inside` looks again when other threads make locks at the same time."""


def inside() -> bool:
    """Return whether the calling thread holds any lock of the library: it cannot wait for other threads here."""
    for _ in range(MAX_LOOKS):
        try:
            return any(lock.mine() for lock in _locks)
        except RuntimeError:
            continue  # the set was changed by another thread
    return True


def freeing(lock: str, named: str) -> Callable[[type[T]], type[T]]:
    """Return a class decorator: a method that ends with an exception holds the object's lock no longer.

    The interpreter lets go of a lock where a ``with`` block ends. A debugger or a tracer, a test that injects
    exceptions say, may raise just before that; then this does.

    Args:
        lock: The attribute with the lock.
        named: The name by which the methods take it.
    """

    def decorate(kind: type[T]) -> type[T]:
        for base in reversed(kind.__mro__):
            for name, method in tuple(vars(base).items()):
                if isinstance(method, FunctionType) and named in method.__code__.co_names:
                    setattr(kind, name, _freeing(method, lock))
        return kind

    return decorate


def _freeing(method: Callable[..., Any], lock: str) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        guard: Lock = getattr(self, lock)
        if guard.mine():
            raise Reentered(guard.what)
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            guard.free()
            raise

    return call


class Bell:
    """An event like `threading.Event`, which may be set by a handler that interrupts its own `set`.

    One thread clears it and waits; any number may set it.
    """

    __slots__ = ("_queue", "_set")

    def __init__(self) -> None:
        self._set = False
        self._queue: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        """Return whether it was set since it was last cleared."""
        return self._set

    def set(self) -> None:
        """Wake up the one that waits."""
        self._set = True
        if self._queue.empty():
            self._queue.put(None)

    def clear(self) -> None:
        """Forget that it was set."""
        self._set = False
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            pass

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; return whether it is.

        Args:
            timeout: How long at most, in seconds.
        """
        if not self._set:
            try:
                self._queue.get(timeout=timeout)
            except Empty:
                return self._set
            if self._queue.empty():
                self._queue.put(None)  # for the next one that waits
        return self._set
