"""The journal as a stream."""

from __future__ import annotations

import asyncio
import gc
import re
import sqlite3
import threading

import pytest

from fsm import FsmError, InvalidArgument, StoreUnavailable
from fsm.stores.base import Query
from fsm.tracker.process import fresh_tracker
from tests.support.tracker_tools import begun


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


class Failing:
    """Make a store's reads of the journal fail in turn with every kind of error, and work in between."""

    def __init__(self, store, monkeypatch) -> None:
        self.errors: list[BaseException] = []
        for name in ("position", "journal"):
            monkeypatch.setattr(store, name, self.wrapped(getattr(store, name)))

    def wrapped(self, read):
        def call(*args):
            if self.errors:
                raise self.errors.pop()
            return read(*args)

        return call


ERRORS = [
    StoreUnavailable("locked"),
    sqlite3.DatabaseError("damaged"),
    UnicodeDecodeError("utf-8", b"x", 0, 1, "x"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", ["one", "user", "all"])
def test_a_stream_that_fails_goes_on_from_its_position(error, kind, either, monkeypatch):
    """A read that fails is one typed error that names the position, from which nothing is missed or seen twice."""
    mine = begun(either)
    begun(either, user_id="bob")
    failing = Failing(either._registry.store, monkeypatch)
    wanted = {"one": {"execution_id": mine}, "user": {"user_id": "ada"}, "all": {}}[kind]
    seen, after = [], 0
    for turn in range(6):
        either.fire(mine, "progress", fence=either.get(mine).fence)
        stream = either.subscribe(after=after, follow=True, **wanted)
        seen += [next(stream) for _ in range({"one": 3, "user": 3, "all": 5}[kind] if not turn else 1)]
        failing.errors.append(error)
        with pytest.raises(FsmError) as caught:
            next(stream)
        after = int(re.search(r"after=(\d+)", caught.value.__notes__[-1])[1])
        caught.value.__notes__.clear()
        assert list(stream) == []
    failing.errors.clear()
    assert seen == list(either.subscribe(after=0, follow=False, **wanted))
    assert not either._registry.listeners


def test_an_awaited_stream_that_fails_is_typed_and_leaves_nothing(either, monkeypatch):
    """The same holds for asyncio: a typed error, no listener, and no row twice."""
    mine = begun(either)
    failing = Failing(either._registry.store, monkeypatch)

    async def scenario() -> list[int]:
        stream = either.aio.subscribe(after=0, execution_id=mine)
        seen = [(await anext(stream)).version, (await anext(stream)).version]
        failing.errors.append(RuntimeError("odd"))
        with pytest.raises(StoreUnavailable, match="RuntimeError: odd"):
            await anext(stream)
        return seen

    assert asyncio.run(scenario()) == [0, 1]
    assert not either._registry.listeners


def test_streams_that_are_left_early_leave_nothing(either):
    """A stream that is closed, collected or never begun leaves no listener, thread or task behind."""
    begun(either)
    threads = {thread.name for thread in threading.enumerate() if not thread.name.startswith("fsm-read")}
    for leave in (lambda stream: stream.close(), lambda stream: None):
        stream = either.subscribe(after=0)
        next(stream)
        leave(stream)
        del stream
        gc.collect()
        either.subscribe(after=0)

    async def scenario() -> int:
        stream = either.aio.subscribe(after=0)
        await anext(stream)
        await stream.aclose()
        async for _ in either.aio.subscribe(after=0):
            break
        either.aio.subscribe(after=0)
        waiting = asyncio.create_task(anext(either.aio.subscribe()))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()
        return len(asyncio.all_tasks())

    assert asyncio.run(scenario()) == 1
    gc.collect()
    assert not either._registry.listeners
    left = {thread.name for thread in threading.enumerate() if not thread.name.startswith("fsm-read")}
    assert left <= threads


def test_a_stream_ends_when_its_tracker_is_closed_at_any_step(either, monkeypatch):
    """A tracker that is closed while a stream is between two reads ends the stream, without an error."""
    mine = begun(either)
    store = either._registry.store
    read, calls = store.journal, []

    def journal(*args):
        calls.append(args)
        if len(calls) == 2:
            either.close()
        return read(*args)

    monkeypatch.setattr(store, "journal", journal)
    assert [row.version for row in either.subscribe(after=0, execution_id=mine)] == [0, 1]


def test_a_question_for_known_states_reads_no_machines(either, monkeypatch):
    """Pages of known states do not read the machines' documents; a name that may be another process's does."""
    begun(either)
    reads = []
    machines = either._registry.store.machines
    monkeypatch.setattr(either._registry.store, "machines", lambda: reads.append(1) or machines())
    for _ in range(3):
        assert len(either.find(state="starting")) == 1
        assert either.find(state=["created", "completed"]) == []
    assert reads == []
    with pytest.raises(InvalidArgument, match="nonsense"):
        either.find(state="nonsense")
    assert len(reads) == 1


def test_a_question_for_more_states_than_one_statement_takes(either):
    """A category of hundreds of states is asked for in one question, and pages as any other."""
    made = begun(either)
    query = Query(states=frozenset([f"s{number}" for number in range(700)] + ["starting"]))
    assert [one.identity.id for one in either._registry.store.find(query)] == [made]
