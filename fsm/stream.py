"""The journal as a stream: whoever has seen position n asks for what came after it.

Commits of this process wake a reader at once. Commits of other processes are found by looking every `POLL_S`
seconds, if the store is one that others can write to.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import NamedTuple

from fsm.checks import MAX_NUMBER, optional_text
from fsm.errors import BadPayload, StoreUnavailable
from fsm.records import Receipt
from fsm.registry import Registry
from fsm.shown import shown

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
    after: int
    execution_id: str | None
    user_id: str | None


def wanted(after: int | None, execution_id: str | None, user_id: str | None) -> Wanted:
    """Return a caller's arguments, checked; see `Scope.subscribe`.

    Raises:
        BadPayload: `after` is no position, or `user_id` no usable name.
    """
    if after is not None and (type(after) is not int or after < 0):
        raise BadPayload(f"after is a position in the journal, a number from 0, not {shown(after)}")
    return Wanted(
        None if after is None else min(after, MAX_NUMBER),
        execution_id,
        optional_text("user_id", user_id),
    )


def _begin(registry: Registry, want: Wanted) -> _Cursor:
    execution_id = want.execution_id
    if execution_id is not None:
        # An unknown one is refused at once and not answered by an endless silence.
        execution_id = registry.load(execution_id, want.user_id).identity.id
    after = registry.store.position() if want.after is None else want.after
    return _Cursor(after, execution_id, want.user_id)


def _page(registry: Registry, cursor: _Cursor) -> tuple[list[Receipt], _Cursor]:
    """Return what is new and where to go on; rows that a filter hides are passed over for good."""
    try:
        top = registry.store.position()
        rows = registry.store.journal(cursor.after, PAGE, cursor.execution_id, cursor.user_id)
    except StoreUnavailable:
        if registry.closed:
            return [], cursor  # closed between two looks: the stream ends, as it does for those who wait
        raise
    after = rows[-1].position if rows else cursor.after
    return rows, cursor._replace(after=after if len(rows) == PAGE else max(after, top))


def _over(registry: Registry, cursor: _Cursor, rows: list[Receipt]) -> bool:
    """Whether nothing can follow: the one execution that is watched has ended, or the tracker was closed."""
    if registry.closed:
        return True
    if cursor.execution_id is None or rows:
        return False
    snapshot = registry.load(cursor.execution_id, cursor.user_id)
    terminal = registry.law_of(snapshot.identity.machine).machine.terminal
    return snapshot.state in terminal and not registry.store.journal(cursor.after, 1, cursor.execution_id)


def follow(registry: Registry, want: Wanted, *, wait: bool) -> Iterator[Receipt]:
    """Yield receipts as they are committed; see `Scope.subscribe`."""
    cursor = _begin(registry, want)
    return _follow(registry, cursor, wait=wait)


def _follow(registry: Registry, cursor: _Cursor, *, wait: bool) -> Iterator[Receipt]:
    news = threading.Event()
    registry.listeners[news.set] = None
    try:
        while True:
            news.clear()
            if registry.closed:
                return
            rows, cursor = _page(registry, cursor)
            yield from rows
            if len(rows) == PAGE:
                continue
            if not wait or _over(registry, cursor, rows):
                return
            if not rows:
                news.wait(None if registry.store.instant else POLL_S)
    finally:
        registry.listeners.pop(news.set, None)


async def follow_async(registry: Registry, want: Wanted, *, wait: bool) -> AsyncIterator[Receipt]:
    """Yield receipts as they are committed, without blocking the event loop; see `Scope.subscribe`."""
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
    try:
        while not registry.closed:
            news.clear()
            rows, cursor = await registry.reader.in_thread(_page, registry, cursor)
            for receipt in rows:
                yield receipt
            if len(rows) == PAGE:
                continue
            if not wait or await registry.reader.in_thread(_over, registry, cursor, rows):
                return
            if not rows:
                # Not wait_for: before Python 3.12 it loses a cancel that comes together with the news
                # (tests/test_stream.py cancels at every moment).
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if registry.store.instant else POLL_S):
                        await news.wait()
    finally:
        registry.listeners.pop(wake, None)
