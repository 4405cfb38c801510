"""The journal as a stream."""

from __future__ import annotations

import asyncio

import pytest

from fsm.process import fresh_tracker


@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("store", ["memory://", "sqlite"])
def test_a_cancelled_subscriber_ends(turns, store, tmp_path):
    """A subscriber that is cancelled ends, at whatever moment between a commit and its delivery."""
    url = store if store == "memory://" else f"sqlite:///{tmp_path}/t.db"

    async def scenario() -> bool:
        execution = await tracker.aio.create("a", user_id="u", thread_id="t")
        stream = tracker.aio.subscribe()
        reader = asyncio.create_task(_drain(stream))
        for _ in range(3):
            await asyncio.sleep(0)
        await asyncio.to_thread(lambda: None)  # the reader's own first look runs in a thread
        await tracker.aio.fire(execution.id, "start")
        for _ in range(turns):
            await asyncio.sleep(0)
        reader.cancel()
        done, _ = await asyncio.wait({reader}, timeout=20)
        return reader in done and reader.cancelled()

    async def _drain(stream) -> None:
        async for _ in stream:
            pass

    with fresh_tracker(url) as tracker:
        assert asyncio.run(scenario())
