"""Streams: the verdict falls at the first content item."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from fsm import BreakerOpen
from fsm.breakers import Breakers, Consecutive, Policy
from fsm.clock import ManualClock
from fsm.stores.opening import open_store


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def breakers(clock) -> Breakers:
    policy = Policy(trip=Consecutive(failures=2), cooldown_s=10.0, jitter=0.0)
    return Breakers(open_store("memory://"), clock, policy=policy)


def calls(breakers: Breakers) -> dict[str, int]:
    return breakers.status_of("k").calls


def broken(items, error=TimeoutError):
    """A stream that yields `items` and then breaks."""
    yield from items
    raise error


async def aiter_of(items, error=None, closed=None):
    try:
        for item in items:
            yield item
        if error is not None:
            raise error
    finally:
        if closed is not None:
            closed.append(True)


def half_open(breakers: Breakers, clock: ManualClock) -> None:
    for _ in range(2):
        with pytest.raises(TimeoutError):
            list(breakers.stream("k", broken([])))
    clock.advance(10.0)


def drain(stream) -> list:
    async def scenario() -> list:
        return [item async for item in stream]

    return asyncio.run(scenario())


def test_the_verdict_falls_at_the_first_content(breakers, clock):
    """The first content item closes a half-open breaker, while the stream still flows."""
    half_open(breakers, clock)
    stream = breakers.stream("k", iter(["", "a", "b"]))
    assert next(stream) == ""
    assert breakers.status_of("k").state == "half_open"
    assert next(stream) == "a"
    assert breakers.status_of("k").state == "closed"
    assert list(stream) == ["b"]
    assert calls(breakers)["success"] == 1


def test_the_verdict_falls_at_the_first_content_async(breakers, clock):
    """The same holds for an asynchronous stream."""
    half_open(breakers, clock)

    async def scenario() -> None:
        stream = breakers.stream_async("k", aiter_of(["", "a", "b"]))
        assert await anext(stream) == ""
        assert breakers.status_of("k").state == "half_open"
        assert await anext(stream) == "a"
        assert breakers.status_of("k").state == "closed"
        assert [item async for item in stream] == ["b"]

    asyncio.run(scenario())
    assert calls(breakers)["success"] == 1


def test_closing_before_the_first_content_is_a_cancel(breakers, clock):
    """A stream that is closed before its first content gives its probe back and counts as cancelled."""
    half_open(breakers, clock)
    closed: list[bool] = []

    async def scenario() -> None:
        stream = breakers.stream_async("k", aiter_of(["", "a"], closed=closed))
        await anext(stream)
        assert breakers.status_of("k").probes == 1
        await stream.aclose()

    asyncio.run(scenario())
    assert closed == [True], "the stream inside is closed as well"
    assert (breakers.status_of("k").state, breakers.status_of("k").probes) == ("half_open", 0)
    stream = breakers.stream("k", iter(["", "a"]))
    next(stream)
    assert breakers.status_of("k").probes == 1
    stream.close()
    assert (breakers.status_of("k").state, breakers.status_of("k").probes) == ("half_open", 0)
    assert calls(breakers)["cancelled"] == 2


def test_closing_after_the_first_content_is_nothing(breakers):
    """A reader that has seen enough and goes is neither a failure nor a cancel."""
    for stream in (breakers.stream("k", iter("abc")), breakers.stream("k", iter("abc"))):
        next(stream)
        stream.close()

    async def scenario() -> None:
        stream = breakers.stream_async("k", aiter_of("abc"))
        await anext(stream)
        await stream.aclose()

    asyncio.run(scenario())
    assert calls(breakers) == {"success": 3}


def test_an_error_before_the_first_content_is_a_failure(breakers):
    """A stream that breaks before its first content failed, and raises its own error."""
    with pytest.raises(TimeoutError):
        list(breakers.stream("k", broken([""])))
    with pytest.raises(TimeoutError):
        drain(breakers.stream_async("k", aiter_of([""], TimeoutError())))
    assert calls(breakers) == {"success": 0, "failure": 2}
    with pytest.raises(BreakerOpen):
        next(breakers.stream("k", iter("abc")))


def test_an_error_after_the_first_content_is_a_failure_too(breakers):
    """A stream that stalls after its first content counts as a failure beside its success."""
    with pytest.raises(TimeoutError):
        list(breakers.stream("k", broken(["a"])))
    assert (calls(breakers), breakers.status_of("k").failures) == ({"success": 1, "failure": 1}, 1)
    with pytest.raises(ConnectionError):
        drain(breakers.stream_async("k", aiter_of("a", ConnectionError())))
    assert calls(breakers) == {"success": 2, "failure": 2}


def test_a_stall_is_seen(breakers, clock):
    """A pause between two items that is longer than allowed is a failure, though the item still came."""

    def slow():
        yield "a"
        clock.advance(5.0)
        yield "b"

    assert list(breakers.stream("k", slow(), stall_s=5.1)) == ["a", "b"]
    assert calls(breakers) == {"success": 1}
    assert list(breakers.stream("k", slow(), stall_s=5.0)) == ["a", "b"]
    assert calls(breakers) == {"success": 2, "failure": 1}


def test_the_readers_own_pauses_are_no_stall(breakers, clock):
    """The time that the reader takes between two items is not the provider's."""
    stream = breakers.stream("k", iter("ab"), stall_s=5.0)
    next(stream)
    clock.advance(60.0)
    assert list(stream) == ["b"]
    assert calls(breakers) == {"success": 1}


@pytest.mark.parametrize("items", ["", "a"])
def test_a_stalled_asynchronous_stream_is_ended(breakers, items):
    """A stream that does not go on in time is ended with a TimeoutError, before its first content and after it."""
    closed: list[bool] = []

    async def stalled():
        try:
            for item in items:
                yield item
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    with pytest.raises(TimeoutError):
        drain(breakers.stream_async("k", stalled, first_s=0.01, stall_s=0.01))
    assert closed == [True]
    assert calls(breakers) == {"success": len(items), "failure": 1}


def test_a_stream_is_opened_inside_its_permit(breakers, clock):
    """A function that opens the stream is not called without a permit, and its errors are the stream's."""
    opened: list[str] = []

    async def open_stream():
        opened.append("async")
        raise ConnectionError

    def open_sync():
        opened.append("sync")
        raise ConnectionError

    with pytest.raises(ConnectionError):
        drain(breakers.stream_async("k", open_stream))
    with pytest.raises(ConnectionError):
        list(breakers.stream("k", open_sync))
    with pytest.raises(BreakerOpen):
        list(breakers.stream("k", open_sync))
    with pytest.raises(BreakerOpen):
        drain(breakers.stream_async("k", open_stream))
    assert opened == ["async", "sync"]


def test_an_unused_stream_takes_nothing(breakers, clock):
    """A stream that is not read takes no permit."""
    half_open(breakers, clock)
    breakers.stream("k", iter("abc"))
    breakers.stream_async("k", aiter_of("abc"))
    assert breakers.status_of("k").probes == 0
    assert breakers.status_of("k").state == "open"


def test_decorated_generators(breakers):
    """A decorated generator yields, takes and returns what it did before, and is judged as a stream."""

    @breakers("k")
    def generator(first):
        got = yield first
        got = yield got
        return got or 0

    @breakers("k")
    async def agenerator(*items):
        for item in items:
            yield item

    stream = generator(0)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(agenerator)
    assert next(stream) == 0
    assert calls(breakers) == {"success": 1}
    assert stream.send("x") == "x"
    with pytest.raises(StopIteration) as end:
        next(stream)
    assert end.value.value == 0
    assert drain(agenerator(None, 0, "", "a")) == [None, 0, "", "a"]
    assert calls(breakers) == {"success": 2}


def test_a_stream_without_content_ends_well(breakers):
    """A stream that ends in order without any content is a success."""
    assert list(breakers.stream("k", iter([]))) == []
    assert drain(breakers.stream_async("k", aiter_of([""]))) == [""]
    assert calls(breakers) == {"success": 2}
