"""The threads that wait for the store: the registry's own, few, gone with it, and begun again after a fork."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading

import pytest

from fsm import StoreUnavailable
from fsm.registry.reader import MAX_READERS
from fsm.testing import fresh_tracker
from tests.support.inside import registry_of


def readers() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("fsm-read")]


def test_a_full_default_executor_does_not_keep_anybody_from_reading(url):
    """While blocking calls hold every thread of asyncio's default executor, every awaited method answers."""

    async def scenario() -> None:
        go = threading.Event()
        try:
            blocked = [asyncio.ensure_future(asyncio.to_thread(go.wait, 60)) for _ in range(40)]
            aio = tracker.aio
            made = await aio.create("a", user_id="ada", thread_id="t")
            await aio.fire(made.id, "start")
            assert (await aio.get(made.id)).state == "starting"
            assert [row.version async for row in aio.subscribe(after=0, follow=False)] == [0, 1]
            assert not any(one.done() for one in blocked)
        finally:
            go.set()
        await asyncio.gather(*blocked)

    with fresh_tracker(url) as tracker:
        asyncio.run(scenario())


def test_the_readers_are_few_and_end_with_the_registry(url):
    """Hundreds of reads at once take no more threads than the limit, in their callers' contexts; none outlives it."""
    mine = contextvars.ContextVar("mine", default=0)

    async def one(number: int) -> int:
        mine.set(number)
        return await registry_of(tracker).reader.call(mine.get)

    async def scenario() -> list[int]:
        return await asyncio.gather(*(one(number) for number in range(300)))

    before = len(readers())
    with fresh_tracker(url) as tracker:
        assert asyncio.run(scenario()) == list(range(300))
        mine_now = readers()
        assert before < len(mine_now) <= before + MAX_READERS
    for thread in mine_now:
        thread.join(60)
        assert not thread.is_alive()


def test_a_closed_registry_answers_without_a_thread(url):
    """After the registry was closed an awaited read is refused as any other, and a read under way is answered."""

    async def scenario() -> None:
        go = threading.Event()
        under_way = asyncio.ensure_future(registry_of(tracker).reader.call(go.wait, 60))
        await asyncio.sleep(0)
        tracker.close()
        go.set()
        assert await under_way
        with pytest.raises(StoreUnavailable, match="closed"):
            await tracker.aio.get("exec_" + "0" * 26)

    with fresh_tracker(url) as tracker:
        asyncio.run(scenario())


def test_where_no_thread_can_be_had_the_caller_is_told(url, monkeypatch):
    """A read for which no thread can be started is a typed error, and the next one works."""

    def refuse(self) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        made = await tracker.aio.create("a", user_id="ada", thread_id="t")
        registry_of(tracker).reader.after_fork()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(StoreUnavailable, match="thread") as caught:
                await tracker.aio.get(made.id)
            assert caught.value.committed is None
        assert (await tracker.aio.get(made.id)).id == made.id

    with fresh_tracker(url) as tracker:
        asyncio.run(scenario())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*")
def test_a_forked_child_has_readers_of_its_own(url):
    """A child that is forked while its parent's readers live reads for itself."""

    async def scenario() -> None:
        assert await tracker.aio.counts() == {}

    with fresh_tracker(url) as tracker:
        asyncio.run(scenario())
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(scenario())
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
