"""The journal as a stream: whoever has seen position n asks for what came after it.

Commits of this process wake a reader at once, and so do those of others if the store tells of them. What was not told
is found by looking every `POLL_S` seconds, if the store is one that others can write to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import NamedTuple

from fsm.concurrency.locks import Bell
from fsm.concurrency.supervised import one_line
from fsm.core.arguments import MAX_NUMBER, optional_text
from fsm.core.records import Receipt
from fsm.errors import FsmError, InvalidArgument, StoreUnavailable
from fsm.errors.shown import shown
from fsm.registry.registry import Registry

POLL_S = 0.1
"""So often, in seconds, a reader looks for other processes' commits."""
PAGE = 500
"""So many receipts are read at a time."""


class Wanted(NamedTuple):
    """What a reader wants: the rows after a position, of one execution, of one user."""

    after: int | None
    execution_id: str | None
    user_id: str | None


class _Cursor(NamedTuple):
    """How far a reader has come, and what it knows of the one execution that it watches, if it watches one."""

    after: int
    execution_id: str | None
    user_id: str | None
    terminal: frozenset[str] = frozenset()
    state: str = ""


class _Look(NamedTuple):
    """What one look at the journal found: rows, where to go on, and whether anything can follow."""

    rows: list[Receipt]
    cursor: _Cursor
    over: bool


def wanted(after: int | None, execution_id: str | None, user_id: str | None) -> Wanted:
    """Return a caller's arguments, checked; see `Scope.subscribe`.

    Raises:
        InvalidArgument: `after` is no position, or `user_id` no usable name.
    """
    if after is not None and (type(after) is not int or after < 0):
        raise InvalidArgument(f"after is a position in the journal, a number from 0, not {shown(after)}")
    return Wanted(
        None if after is None else min(after, MAX_NUMBER),
        execution_id,
        optional_text("user_id", user_id),
    )


def _begin(registry: Registry, want: Wanted) -> _Cursor:
    after = registry.store.position() if want.after is None else want.after
    if want.execution_id is None:
        return _Cursor(after, None, want.user_id)
    # An unknown one is refused at once and not answered by an endless silence.
    snapshot = registry.load(want.execution_id, want.user_id)
    terminal = registry.law_of(snapshot.identity.machine).machine.terminal
    return _Cursor(after, snapshot.identity.id, want.user_id, frozenset(terminal), snapshot.state)


def _look(registry: Registry, cursor: _Cursor) -> _Look:
    """Return what is new and where to go on; rows that a filter hides are passed over for good.

    Raises:
        FsmError: The journal could not be read; everything before the position in its note was yielded.
    """
    try:
        return _page(registry, cursor)
    except Exception as error:  # noqa: BLE001 - a reader is told of everything in one typed error
        if registry.closed:  # between two steps: the stream ends, as it does for those who wait
            return _Look([], cursor, over=True)
        said: Exception = error
        if not isinstance(error, FsmError):
            said = StoreUnavailable(f"the journal cannot be read: {one_line(error)}")
            said.__cause__ = error
        said.add_note(
            f"everything up to position {cursor.after} was yielded: subscribe again with after={cursor.after}"
        )
        raise said from said.__cause__


def _page(registry: Registry, cursor: _Cursor) -> _Look:
    store = registry.store
    top = store.position()  # before the rows: what is committed in between is found by the next look
    rows = store.journal(cursor.after, PAGE, cursor.execution_id, cursor.user_id)
    if rows:
        after = rows[-1].position if len(rows) == PAGE else max(rows[-1].position, top)
        state = rows[-1].target if cursor.execution_id is not None else ""
        return _Look(rows, cursor._replace(after=after, state=state), over=False)
    cursor = cursor._replace(after=max(cursor.after, top))
    if cursor.execution_id is None:
        return _Look([], cursor, over=False)
    if cursor.state not in cursor.terminal:
        cursor = cursor._replace(state=registry.load(cursor.execution_id, cursor.user_id).state)
        if cursor.state in cursor.terminal:  # it ended after the rows were read
            return _Look([], cursor, over=not store.journal(cursor.after, 1, cursor.execution_id))
    return _Look([], cursor, over=cursor.state in cursor.terminal)


def follow(registry: Registry, want: Wanted | None, *, wait: bool) -> Iterator[Receipt]:
    """Yield receipts as they are committed; see `Scope.subscribe`. ``None`` is what nothing fits."""
    if want is None:
        return iter(())
    cursor = _begin(registry, want)
    return _follow(registry, cursor, wait=wait)


def _follow(registry: Registry, cursor: _Cursor, *, wait: bool) -> Iterator[Receipt]:
    news = Bell()
    registry.listeners[news.set] = None
    if wait:
        registry.ear.start()
    try:
        while not registry.closed:
            news.clear()
            rows, cursor, over = _look(registry, cursor)
            yield from rows
            if over or (not wait and len(rows) < PAGE):
                return
            if not rows:
                news.wait(None if registry.store.instant else POLL_S)
    finally:
        registry.listeners.pop(news.set, None)


def follow_async(registry: Registry, want: Wanted | None, *, wait: bool) -> AsyncIterator[Receipt]:
    """Yield receipts as they are committed, without blocking the event loop; see `Scope.subscribe`."""
    if want is not None and want.after is None:
        # "From now on" begins with this call and not with the first wait. One look at the journal's end: no reader
        # waits for a writer.
        want = want._replace(after=registry.store.position())
    return _follow_async(registry, want, wait=wait)


async def _follow_async(registry: Registry, want: Wanted | None, *, wait: bool) -> AsyncIterator[Receipt]:
    if want is None:
        return
    import asyncio  # noqa: PLC0415 - loaded by those who use it

    loop = asyncio.get_running_loop()
    news = asyncio.Event()

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(news.set)
        except RuntimeError:  # its loop was closed under it; whoever commits has nothing to do with that
            registry.listeners.pop(wake, None)

    cursor = await registry.reader.in_thread(_begin, registry, want)
    registry.listeners[wake] = None
    if wait:
        registry.ear.start()
    try:
        while not registry.closed:
            news.clear()
            rows, cursor, over = await registry.reader.in_thread(_look, registry, cursor)
            for receipt in rows:
                yield receipt
            if over or (not wait and len(rows) < PAGE):
                return
            if not rows:
                # Not wait_for: before Python 3.12 it loses a cancel that comes together with the news
                # (tests/tracker/test_stream.py cancels at every moment).
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if registry.store.instant else POLL_S):
                        await news.wait()
    finally:
        registry.listeners.pop(wake, None)
