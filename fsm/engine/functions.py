"""What may be an agent: coroutine functions, plain functions, generators of both kinds; and how each is called."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import aclosing
from typing import Any

from fsm.engine.run import Run
from fsm.engine.threads import SyncRun, thread_of_its_own
from fsm.errors import BadPayload

Emit = Callable[[Any], Awaitable[None]]
KEEP_ITEMS = 10_000
"""Number of items above which an agent that yields them, and that no caller streams from, keeps the last ones only."""


class Agent:
    """A function and how it wants to be called.

    Attributes:
        function: The function.
        name: What people call it.
        options: What `Engine.run` takes by default.
        resumable: Whether its calls are noted with their executions, so that another process can go on with them.
        streams: Whether it yields items instead of returning a result.
        inline: Whether it runs on the event loop; otherwise in a thread, which cannot be cancelled.
        takes_run: Whether its first argument is its run.
        once: Whether it is the body of a block, which cannot be run again.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        resumable: bool = False,
        once: bool = False,
    ) -> None:
        """Look at a function of any kind, or an object with such a ``__call__``; its name is the function's own.

        Raises:
            BadPayload: It cannot be called.
        """
        if not callable(function):
            raise BadPayload(f"an agent is a function, or the name of a registered one, not {function!r}")
        self.function = function
        self.name = name or name_of(function)
        self.options = dict(options or {})
        self.resumable = resumable
        target = _target(function)
        self.streams = inspect.isasyncgenfunction(target) or inspect.isgeneratorfunction(target)
        self.once = once
        self.inline = inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target)
        self.takes_run = _takes_run(function)

    async def call(
        self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any], emit: Emit | None
    ) -> Any:
        """Call it and return its result; of a generator the list of its items, unless `emit` takes each of them."""
        kept: list[Any] = []
        take = emit or _keeper(kept)

        async def taker(item: Any) -> None:
            await take(item)
            await run.alive()

        if self.inline:
            made = self.function(*((run, *args) if self.takes_run else args), **kwargs)
        else:
            made = await _in_thread(self, SyncRun(run), args, kwargs, taker)
            if self.takes_run and (inspect.isawaitable(made) or inspect.isasyncgen(made)):
                raise _neither(self, made)
        if inspect.isasyncgen(made):
            await _drain(made, taker)
        elif inspect.isawaitable(made):
            return await made
        elif made is not _DRAINED:
            return made
        return None if emit is not None else kept


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function, as a person would call it."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", None) or type(function).__name__


def _target(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function behind partials and callable objects, which tells what kind it is."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        plain: Callable[..., Any] = inspect.unwrap(function)
        return plain
    of_type: Any = type(function)
    call: Callable[..., Any] = of_type.__call__
    return call


def _takes_run(function: Callable[..., Any]) -> bool:
    """Whether the first parameter is a run: it is called so, or its annotation says so."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    if not parameters:
        return False
    first = parameters[0]
    note = (
        first.annotation if isinstance(first.annotation, str) else getattr(first.annotation, "__name__", "")
    )
    return first.name == "run" or note.rsplit(".", 1)[-1] in {"Run", "SyncRun"}


def _keeper(kept: list[Any]) -> Emit:
    async def keep(item: Any) -> None:
        if len(kept) >= KEEP_ITEMS:
            del kept[: KEEP_ITEMS // 2]
        kept.append(item)

    return keep


async def _drain(made: AsyncGenerator[Any, Any], emit: Emit) -> None:
    async with aclosing(made) as items:
        async for item in items:
            await emit(item)


_DRAINED: Any = object()
"""The result of a generator whose items were taken."""


def _neither(agent: Agent, made: Any) -> BadPayload:
    """Return the error of a plain function that returned a coroutine: what it got is the run of a plain function."""
    kind = "an asynchronous generator" if inspect.isasyncgen(made) else "a coroutine"
    if inspect.iscoroutine(made):
        made.close()  # otherwise Python warns that it was never awaited
    return BadPayload(
        f"the agent {agent.name!r} is a plain function, which runs in a thread with a SyncRun, and returned {kind}, "
        "which needs a Run: write it as 'async def', give the coroutine function itself or a functools.partial of it, "
        "or put functools.wraps on its wrapper"
    )


async def _in_thread(
    agent: Agent, run: SyncRun, args: tuple[Any, ...], kwargs: Mapping[str, Any], emit: Emit
) -> Any:
    """Call a function in a thread of its own.

    A thread cannot be cancelled. A cancelled call waits on, as a coroutine that swallows its cancellation does; how
    long is for the engine to say.
    """

    def work() -> Any:
        first = (run, *args) if agent.takes_run else args
        made = agent.function(*first, **kwargs)
        if inspect.isgenerator(made):
            _drain_sync(made, run, emit)
            return _DRAINED
        return made

    future, run.run.thread = thread_of_its_own(work, agent.name)
    await _until(future, run)
    return future.result()


async def _until(future: asyncio.Future[Any], run: SyncRun) -> None:
    """Wait for a thread, whatever cancels this, until the agent is abandoned."""
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            run.stop()
            if run.run.connection.closing:
                raise  # no caller waits for it any more: the loop is being closed


def _drain_sync(made: Generator[Any, Any, Any], run: SyncRun, emit: Emit) -> None:
    try:
        for item in made:
            run.wait(emit(item))
    finally:
        made.close()
