"""A cancel at any wait of any public coroutine of ``tracker.aio`` leaves nothing half done and nothing behind."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest

import fsm.concurrency.locks
from fsm import Tracker
from fsm.registry.reader import MAX_READERS
from fsm.testing import ManualClock, fresh_tracker
from fsm.tracker.tracker import AsyncTracker, AsyncUserTracker
from fsm.tracker.verify import verify
from tests.support.cancelled import WHEN, HangsUp

USER: dict[str, Any] = {"user_id": "ada", "thread_id": "t"}
MAX_WAITS = 100
"""Maximum number of waits of one call; one that waits more often does not come to an end."""
SETTLED_S = 60.0
"""How long the library's threads may take to complete what a cancelled caller has left, in seconds."""
TIMES = {"once": 1, "twice": 2, "for ever": MAX_WAITS * 10}
Call = Callable[[Any, "Stage"], Coroutine[Any, Any, Any]]

injected: Counter[str] = Counter()
"""How many cancels were delivered, by scenario; `-s` prints the sum."""


@pytest.fixture(scope="module", autouse=True)
def _summary():
    yield
    print(f"\npoints injected: {sum(injected.values())} in {len(injected)} scenarios")


class Stage:
    """A registry with something in it for every call.

    Attributes:
        parent: An execution that a call may cancel; it has an open child.
        runs: An execution whose owner may say that it goes on.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.runs = tracker.create("agent", **USER).id
        tracker.fire(self.runs, "start")
        self.set()

    def set(self) -> None:
        """Make what a call may have used up."""
        tracker = self.tracker
        self.parent = tracker.create("agent", **USER).id
        self.child = tracker.create("agent", parent_id=self.parent, **USER).id
        for one in (tracker.create("agent", **USER) for _ in range(2)):
            tracker.fire(one.id, "cancel")


async def every(stream: Any) -> list[Any]:
    """All receipts of a stream that ends; it is closed whatever happens."""
    async with aclosing(stream):
        return [receipt async for receipt in stream]


async def follows(aio: Any, stage: Stage) -> Any:
    """Wait in a subscription until there is news, which come from another thread."""
    news = threading.Timer(0.02, lambda: stage.tracker.fire(stage.runs, "progress", fence=1))
    async with aclosing(aio.subscribe()) as stream:
        news.start()
        try:
            return await anext(stream)
        finally:
            news.join()


CALLS: dict[str, list[Call]] = {
    "create": [
        lambda aio, stage: aio.create("agent", metadata={"a": [1]}, user_id="ada", thread_id="t"),
        lambda aio, stage: aio.create("agent", parent_id=stage.parent, user_id="ada", thread_id="t"),
    ],
    "fire": [
        lambda aio, stage: aio.fire(stage.runs, "progress", fence=1),
        lambda aio, stage: aio.fire(stage.parent, "cancel"),
    ],
    "get": [lambda aio, stage: aio.get(stage.runs)],
    "history": [lambda aio, stage: aio.history(stage.runs)],
    "durations": [lambda aio, stage: aio.durations(stage.runs)],
    "allowed": [lambda aio, stage: aio.allowed(stage.runs)],
    "machine_of": [lambda aio, stage: aio.machine_of(stage.runs)],
    "find": [lambda aio, stage: aio.find(category="running", limit=2)],
    "counts": [lambda aio, stage: aio.counts()],
    "subscribe": [
        lambda aio, stage: every(aio.subscribe(after=0, follow=False)),
        lambda aio, stage: every(aio.subscribe(after=0, execution_id=stage.runs, follow=False)),
        follows,
    ],
    "sweep": [lambda aio, stage: aio.sweep()],
    "prune": [lambda aio, stage: aio.prune(keep=1, archive=lambda _: None)],
    "health": [lambda aio, stage: aio.health()],
    "position": [lambda aio, stage: aio.position()],
    "machines": [lambda aio, stage: aio.machines()],
}
"""How every public coroutine of the faces is called; what is not here is not cancelled anywhere."""
SYNCHRONOUS = {"for_user"}
"""Public methods that wait for nothing."""


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_every_coroutine_is_cancelled():
    """Each public method of both faces has a call here, or is no coroutine and returns no stream."""
    assert public(AsyncTracker) | public(AsyncUserTracker) == CALLS.keys() | SYNCHRONOUS
    for name in SYNCHRONOUS:
        method = getattr(AsyncTracker, name)
        assert not inspect.iscoroutinefunction(method)
        assert "Iterator" not in str(inspect.signature(method).return_annotation)


def settled(tracker: Tracker) -> bool:
    """Whether the library's own threads have done what callers left to them, without a sweeper."""
    registry = tracker._registry
    readers = registry.reader._threads
    reading = readers is not None and (not readers._work_queue.empty() or readers._idle_semaphore._value == 0)
    left = registry.committer.waiting or registry.committer._busy or registry.aftermath._jobs.qsize()
    return not (reading or left or registry.store.orders("", 10))


async def nothing_is_left(tracker: Tracker, stage: Stage, cancelled_parent: bool) -> None:
    """Assert what must hold when a caller has gone, whatever it was in the middle of."""
    registry = tracker._registry
    end = time.monotonic() + SETTLED_S
    while not settled(tracker) or (cancelled_parent and tracker.get(stage.child).state != "cancelled"):
        assert time.monotonic() < end, (stage.parent, tracker.get(stage.parent), tracker.get(stage.child))
        await asyncio.sleep(0.001)
    assert not fsm.concurrency.locks.inside()
    assert registry.committer.watchers == {}
    assert registry.listeners == {}
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert sum(thread.name.startswith("fsm-read") for thread in threading.enumerate()) <= MAX_READERS
    # A slot of a reader's thread that is lost would let one of these wait for ever.
    read = asyncio.gather(*(tracker.aio.get(stage.runs) for _ in range(2 * MAX_READERS)))
    fired = await asyncio.wait_for(tracker.aio.fire(stage.runs, "progress", fence=1), SETTLED_S)
    assert {one.id for one in await asyncio.wait_for(read, SETTLED_S)} == {stage.runs}
    assert (await tracker.aio.get(stage.runs)).version == fired.version


async def at_every_wait(tracker: Tracker, narrowed: bool, call: Call, times: int, when: str) -> int:
    """Make a call again and again, cancelled before it, at its first wait, its second …; return how often."""
    stage = Stage(tracker)
    for at in range(MAX_WAITS):
        aio = tracker.aio.for_user("ada") if narrowed else tracker.aio
        struck = HangsUp(call(aio, stage), at, times, when)
        task = asyncio.create_task(struck)  # type: ignore[arg-type]
        await asyncio.wait({task})
        over = struck.waits < at
        if over:
            task.result()
        else:
            assert task.cancelled() or task.exception() is None, "a cancel is no error"
        await nothing_is_left(tracker, stage, tracker.get(stage.parent).ended)
        if tracker.get(stage.parent).ended or when == WHEN[0]:
            stage.set()
        if over:
            assert list(verify(tracker._registry)) == []
            return at
    raise AssertionError(f"it waits more than {MAX_WAITS} times")


VARIANTS = [(name, number) for name, calls in CALLS.items() for number in range(len(calls))]


@pytest.mark.parametrize(("name", "number"), VARIANTS)
@pytest.mark.parametrize("store", ["memory://", "sqlite"])
def test_a_cancel_at_any_wait_leaves_nothing(name, number, store, url):
    """Cancelled at each wait, once, twice and for ever: journals fold, nothing is held, and the next call works."""
    where = f"{url}?synchronous=NORMAL" if store == "sqlite" else store
    call = CALLS[name][number]
    struck = 0
    with fresh_tracker(where, clock=ManualClock()) as tracker:
        for narrowed in (False, True):
            if narrowed and name not in public(AsyncUserTracker):
                continue
            for when in WHEN:
                for times in TIMES.values():
                    struck += asyncio.run(at_every_wait(tracker, narrowed, call, times, when))
    assert struck
    injected[f"{store[:6]} {name} {number}"] += struck
