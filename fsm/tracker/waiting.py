"""How a face waits for the store: on the caller's thread, or on its event loop.

A scope's method says once what is written, and hands it to the `Waiting` of its face. So the face for asyncio is made
of the same methods: `awaited` runs one that reads on a thread, and one that writes with the loop's `Waiting`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial, wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar, cast

from fsm.registry.command import Command, make_up, own
from fsm.registry.registry import Registry
from fsm.tracker import stream

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Finish = Callable[[Command], Any]


class Waiting(NamedTuple):
    """How one face waits.

    Attributes:
        write: Commits a command, or the one that a function returns which reads the store, and returns what its last
            argument makes of the committed command.
        follow: Yields receipts as they are committed.
    """

    write: Callable[[Registry, Command | partial[Command], Finish], Any]
    follow: Callable[..., Any]


def _write(registry: Registry, command: Command | partial[Command], finish: Finish) -> Any:
    if not isinstance(command, Command):
        command = command()
    registry.committer.commit(command)
    made = finish(command)
    if command.effects:
        registry.carry_out(command)
    return made


async def _write_on_loop(registry: Registry, command: Command | partial[Command], finish: Finish) -> Any:
    if not isinstance(command, Command):
        command = await _on_thread(registry, command.func, *command.args, **command.keywords)
    await registry.committer.commit_async(command)
    if command.error is not None:  # to say what it was the store may be asked
        return await registry.reader.call(finish, command)
    made = finish(command)
    if command.effects:
        try:
            await registry.reader.call(registry.carry_out, command)
        except BaseException:  # a cancel keeps the call from being made while all threads are busy
            make_up([command])
            raise
    return made


async def _on_thread(registry: Registry, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function on a thread that may wait, with arguments that the caller can no longer change."""
    owned: Any = {name: own(value) for name, value in kwargs.items()}
    return await registry.reader.call(function, *args, **owned)


ON_THREAD = Waiting(_write, stream.follow)
ON_LOOP = Waiting(_write_on_loop, stream.follow_async)


def waits(method: F) -> F:
    """Mark a method that waits by its scope's `Waiting` alone: it is called on the event loop as it is."""
    method.waits = True  # type: ignore[attr-defined]
    return method


def awaited(
    method: Callable[Concatenate[Any, P], T],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Return a scope's method for the face for asyncio: the same arguments, awaited."""
    plain: Callable[..., Any] = (
        method  # its first argument is the scope here, and the face for those who call it
    )
    if getattr(method, "waits", False):

        @wraps(method)
        async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
            return cast("T", await plain(self._loop, *args, **kwargs))

    else:

        @wraps(method)
        async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
            scope = self._scope
            return cast("T", await _on_thread(scope._registry, plain, scope, *args, **kwargs))

    return call


def iterated(
    method: Callable[Concatenate[Any, P], Iterator[T]],
) -> Callable[Concatenate[Any, P], AsyncIterator[T]]:
    """Return a scope's method that yields for the face for asyncio: the same arguments, an asynchronous iterator."""

    @wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return cast("AsyncIterator[T]", method(self._loop, *args, **kwargs))

    return call
