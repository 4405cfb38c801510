"""The asyncio face: the same names, never a blocked loop, and a cancelled caller that loses nothing."""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextlib import aclosing, closing

import pytest

from fsm import BadPayload, Refused, Retry, Timeouts, Tracker, UnknownExecution
from fsm.testing import fresh_tracker
from fsm.tracker.options import CreateOptions, Filters, RetryOptions, TimeoutOptions
from fsm.tracker.scope import Scope
from fsm.tracker.tracker import AsyncTracker, AsyncUserTracker, UserTracker
from tests.support.sqlite_tools import rogue


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


PROCESS_WIDE = {"aio", "breakers", "clock", "close", "closed", "store_url", "worker", "worker_id"}
FACES = [(Tracker, AsyncTracker), (UserTracker, AsyncUserTracker)]
NOT_AWAITED = {"subscribe", "for_user"}
PAIRS = [(ours, theirs, name) for theirs, ours in FACES for name in sorted(public(ours))]


@pytest.mark.parametrize(("theirs", "ours"), FACES)
def test_both_faces_have_the_same_names(theirs, ours):
    """Every method of the tracker, and of one user's, is there for asyncio under its name, and no other."""
    assert public(ours) == public(theirs) - PROCESS_WIDE


@pytest.mark.parametrize(("ours", "theirs", "name"), PAIRS)
def test_both_faces_take_the_same_arguments(ours, theirs, name):
    """A method takes the same arguments by name, kind and default in both faces, and is awaited in the one."""
    mine = inspect.signature(getattr(ours, name)).parameters.values()
    assert [(one.name, one.kind, one.default) for one in mine] == [
        (one.name, one.kind, one.default)
        for one in inspect.signature(getattr(theirs, name)).parameters.values()
    ]
    assert inspect.iscoroutinefunction(getattr(ours, name)) is (name not in NOT_AWAITED)
    assert inspect.getdoc(getattr(ours, name))


@pytest.mark.parametrize(
    ("face", "name", "options"),
    [(Tracker, "create", CreateOptions), (UserTracker, "create", CreateOptions), (Scope, "find", Filters)],
)
def test_a_signature_shows_every_option(face, name, options):
    """`help` and `inspect.signature` show each option by its name, and none of them is hidden behind two stars."""
    shown = inspect.signature(getattr(face, name)).parameters
    assert shown.keys() > options.__annotations__.keys()
    assert all(one.kind is not one.VAR_KEYWORD for one in shown.values())


@pytest.mark.parametrize(("options", "model"), [(TimeoutOptions, Timeouts), (RetryOptions, Retry)])
def test_the_options_of_a_model_are_its_fields(options, model):
    """What type checkers take for a dict of limits is what the model takes."""
    assert options.__annotations__.keys() == model.model_fields.keys()


def test_a_mistyped_option_is_named(either):
    """An option that is none is Python's own error for it, and names the nearest one."""
    with pytest.raises(TypeError, match=r"create\(\) got an unexpected.*'timeout'; did you mean 'timeouts'"):
        either.create("a", user_id="u", thread_id="t", timeout={})
    with pytest.raises(TypeError, match=r"find\(\) got an unexpected.*did you mean 'state'"):
        either.find(states="created")
    assert either.counts() == {}


def test_a_tracker_says_whose_it_is(either):
    """The default text of each face names the store, and the user of a user's tracker."""
    assert repr(either) == f"<Tracker of {either.store_url}>"
    assert repr(either.for_user("ada")) == f"<tracker of {either.store_url} for user 'ada'>"
    assert repr(either.aio) == f"<Tracker of {either.store_url}>.aio"
    either.close()
    assert "closed" in repr(either)


def test_a_run_through_the_asyncio_face(either):
    """What the asyncio face does is what the other face sees, and the other way round."""

    async def scenario() -> None:
        aio = either.aio
        made = await aio.create("a", user_id="ada", thread_id="t", metadata={"n": 1})
        assert await aio.allowed(made.id) == either.allowed(made.id)
        receipt = await aio.fire(made.id, "start", key="k", note="x")
        assert receipt == either.fire(made.id, "start", key="k")
        assert await aio.get(made.id) == either.get(made.id)
        assert await aio.history(made.id) == either.history(made.id)
        assert await aio.durations(made.id) == either.durations(made.id)
        assert await aio.machine_of(made.id) == either.machine_of(made.id)
        assert await aio.find(state="starting") == either.find(state="starting")
        assert await aio.counts() == either.counts() == {"starting": 1}
        assert await aio.position() == either.position() == 2
        assert await aio.machines() == either.machines()
        assert (await aio.sweep()).timed_out == 0
        assert await aio.prune(keep=0) == 0
        with pytest.raises(Refused, match="not_allowed"):
            await aio.fire(made.id, "finish", fence=receipt.fence)
        with pytest.raises(BadPayload):
            await aio.fire(made.id, "think", fence=receipt.fence, nonsense=1)
        with pytest.raises(TypeError, match="user_id"):
            await aio.create("a", thread_id="t")
        narrow = aio.for_user("bob")
        with pytest.raises(UnknownExecution):
            await narrow.get(made.id)
        assert (await narrow.create("a", thread_id="t")).user_id == "bob"
        assert [one.user_id for one in await narrow.find()] == ["bob"]
        assert [one async for one in narrow.subscribe(after=0, user_id="ada", follow=False)] == []
        assert [one.version async for one in aio.subscribe(after=0, execution_id=made.id, follow=False)] == [
            0,
            1,
        ]

    asyncio.run(scenario())


def test_a_stream_begins_with_the_call(either):
    """A subscription begins with what is committed after the call, and ends with its execution."""

    async def scenario() -> list[str]:
        made = await either.aio.create("a", user_id="ada", thread_id="t")
        stream = either.aio.subscribe(execution_id=made.id)
        for event in ("start", "cancel", "stopped"):
            await either.aio.fire(made.id, event, fence=either.get(made.id).fence)
        return [receipt.event async for receipt in stream]

    assert asyncio.run(scenario()) == ["start", "cancel", "stopped"]


def test_a_busy_file_does_not_block_the_loop(url):
    """While another program holds the file the loop goes on: tasks run, reads are answered, subscriptions begin."""

    async def scenario() -> None:
        made = await tracker.aio.create("a", user_id="ada", thread_id="t")
        other = rogue(url.removeprefix("sqlite:///"))
        with closing(other):
            other.execute("BEGIN IMMEDIATE")
            # What needs a write goes first: a refusal alone needs none, and is answered at once.
            waiting = [asyncio.create_task(tracker.aio.fire(made.id, "start"))]
            waiting += [
                asyncio.create_task(tracker.aio.fire(made.id, "progress", fence=tracker.get(made.id).fence))
                for _ in range(3)
            ]
            turns = 0
            while turns < 1000:
                await asyncio.sleep(0)
                turns += 1
            assert (await tracker.aio.get(made.id)).version == 0
            stream = tracker.aio.subscribe()
            assert not any(task.done() for task in waiting)
            other.execute("ROLLBACK")
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in done[1:]] == [Refused] * 3
        async with aclosing(stream) as receipts:
            assert (await anext(receipts)).event == "start"

    with fresh_tracker(url) as tracker:
        asyncio.run(scenario())


class Held:
    """A store whose next append waits until it is let go."""

    def __init__(self, store) -> None:
        self.store, self.began, self.go = store, threading.Event(), threading.Event()
        self.append_ = store.append
        store.append = self.append

    def append(self, steps):
        self.began.set()
        assert self.go.wait(60)
        return self.append_(steps)


def test_a_cancelled_caller_does_not_undo_its_transition(url):
    """A caller that is cancelled while it waits gets its cancel; the transition and its effects happen all the same."""

    async def scenario() -> None:
        parent = await tracker.aio.create("a", user_id="ada", thread_id="t")
        child = await tracker.aio.create("a", user_id="ada", thread_id="t", parent_id=parent.id)
        stream = tracker.aio.subscribe(after=await tracker.aio.position(), execution_id=child.id)
        held = Held(tracker._registry.store)
        task = asyncio.create_task(tracker.aio.fire(parent.id, "cancel"))
        await asyncio.to_thread(held.began.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.go.set()
        assert [receipt.event async for receipt in stream] == ["cancel"]
        assert (await tracker.aio.get(parent.id)).state == "cancelled"

    with fresh_tracker(url) as tracker:
        asyncio.run(scenario())


def test_a_loop_that_is_closed_under_its_commits_costs_nobody_else_anything(url):
    """A loop that ends while its commit is under way leaves the committer sound, and the effects are carried out."""
    with fresh_tracker(url) as tracker:
        parent = tracker.create("a", user_id="ada", thread_id="t")
        child = tracker.create("a", user_id="ada", thread_id="t", parent_id=parent.id)
        stream = tracker.subscribe(execution_id=child.id)
        held = Held(tracker._registry.store)

        async def scenario() -> None:
            task = asyncio.create_task(tracker.aio.fire(parent.id, "cancel"))
            await asyncio.to_thread(held.began.wait, 60)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(scenario())
        held.go.set()
        assert [receipt.event for receipt in stream] == ["cancel"]
        assert tracker.get(parent.id).state == "cancelled"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_subscriber_whose_loop_is_gone_does_not_disturb_commits(either):
    """A subscription that was left behind in a closed loop does not make anybody's call fail."""
    made = either.create("a", user_id="ada", thread_id="t")
    loop = asyncio.new_event_loop()
    stream = either.aio.subscribe(after=0)
    loop.run_until_complete(anext(stream))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    assert either.fire(made.id, "start").version == 1
    assert either.fire(made.id, "think", fence=either.get(made.id).fence).version == 2
    assert not either._registry.listeners


def test_many_tasks_share_the_loop_and_the_disk(url):
    """Hundreds of tasks on one loop each get their own receipt, and versions have no gap."""

    async def scenario() -> None:
        made = [await tracker.aio.create("a", user_id="ada", thread_id="t") for _ in range(50)]

        async def run(execution_id: str) -> list[int]:
            return [
                (await tracker.aio.fire(execution_id, event, fence=tracker.get(execution_id).fence)).version
                for event in ("start", "think", "cancel")
            ]

        assert await asyncio.gather(*(run(one.id) for one in made)) == [[1, 2, 3]] * 50

    with fresh_tracker(url) as tracker:
        asyncio.run(scenario())
        assert tracker.counts() == {"cancelling": 50}
