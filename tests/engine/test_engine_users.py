"""Nothing of another user is known: every method of the engine and of the tracker for asyncio that takes an id."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from fsm import ConfigurationError, Engine, Refused, UnknownExecution
from fsm.engine import Handle, Recorder, Registered, Run, SyncRun
from fsm.engine.block import Block
from fsm.ids import execution_id
from fsm.tracker.tracker import AsyncTracker
from tests.support.engine_tools import in_memory, simulated
from tests.support.tracker_tools import begun, finish
from tests.tracker.test_tracker_users import EMPTY, FOREIGN

PLAYS = pytest.mark.parametrize("play", [in_memory, simulated])
BOB = {"user_id": "bob", "thread_id": "t"}


# --- the engine ---------------------------------------------------------------------------------------------------


async def work(run: Run) -> str:
    return run.id


async def each(run: Run, item: Any) -> str:
    return run.id


async def items(run: Run) -> AsyncIterator[int]:
    yield 1


async def streamed(engine: Engine, **options: Any) -> list[Any]:
    return [item async for item in engine.stream(items, **BOB, **options)]


async def in_a_block(engine: Engine, **options: Any) -> None:
    async with engine.execution("a", **BOB, **options):
        pass


async def as_a_child(engine: Engine, **options: Any) -> None:
    async def parent(run: Run) -> Any:
        return await run.child(work, **options)

    await engine.run(parent, **BOB)


Call = Callable[..., Any]
CALLS: dict[str, Call] = {
    "run": lambda engine, **link: engine.run(work, **BOB, **link),
    "submit": lambda engine, **link: engine.submit(work, **BOB, **link),
    "map": lambda engine, **link: engine.map(each, [1, 2], **BOB, **link),
    "stream": streamed,
    "execution": in_a_block,
    "Registered.submit": lambda engine, **link: engine.agent(work).submit(**BOB, **link),
    "Registered.map": lambda engine, **link: engine.agent(each).map([1], **BOB, **link),
}
MATRIX: dict[str, Call] = {
    **{
        f"{name} as a child": lambda engine, one, call=call: call(engine, parent_id=one)
        for name, call in CALLS.items()
    },
    **{
        f"{name} as a rerun": lambda engine, one, call=call: call(engine, retry_of=one)
        for name, call in CALLS.items()
    },
    "Run.child as a rerun": lambda engine, one: as_a_child(engine, retry_of=one),
}
IN_THREADS: dict[str, Call] = {
    "SyncRun.child as a rerun": lambda engine, one: engine.run_sync(
        lambda run: run.child(work, retry_of=one), **BOB
    ),
    "run_sync as a child": lambda engine, one: engine.run_sync(work, **BOB, parent_id=one),
    "run_sync as a rerun": lambda engine, one: engine.run_sync(work, **BOB, retry_of=one),
}


async def told(made: Any) -> str:
    with pytest.raises(UnknownExecution) as caught:
        await made
    return str(caught.value)


@PLAYS
@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("what", MATRIX)
def test_a_foreign_execution_is_unknown_to_the_engine(what, ended, play):
    """Whoever names another user's execution is told what they are told of one that does not exist."""

    async def scenario(engine, tracker):
        theirs = begun(tracker)
        if ended:
            finish(tracker, theirs)
        before = tracker.get(theirs)
        nobodys = execution_id()
        texts = {
            (await told(MATRIX[what](Engine(tracker, sweep_every_s=None, lease_s=None), one))).replace(
                one, "ID"
            )
            for one in (theirs, nobodys)
        }
        assert len(texts) == 1
        assert tracker.get(theirs) == before
        assert tracker.find(parent_id=theirs) == []
        for one in tracker.find(user_id="bob"):  # the parent of a child that could not be created
            assert what.startswith("Run.child")
            assert one.state == "failed"
        if not ended:
            await tracker.aio.fire(theirs, "cancel")
            await tracker.aio.fire(theirs, "stopped", fence=tracker.get(theirs).fence)

    play(scenario)


@pytest.mark.parametrize("what", IN_THREADS)
def test_a_foreign_execution_is_unknown_to_threads(what, tracker):
    """The same for code without an event loop."""
    theirs = begun(tracker)
    texts = []
    for one in (theirs, execution_id()):
        engine = Engine(tracker, sweep_every_s=None, lease_s=None)
        try:
            with pytest.raises(UnknownExecution) as caught:
                IN_THREADS[what](engine, one)
        finally:
            engine.portal().close()
        texts.append(str(caught.value).replace(one, "ID"))
    assert texts[0] == texts[1]
    assert tracker.get(theirs).version == 1
    assert tracker.find(parent_id=theirs) == []


@PLAYS
@pytest.mark.parametrize("name", CALLS)
def test_to_its_own_user_it_is_known(name, play):
    """The same calls on one's own execution work: the matrix does not refuse everything."""

    async def scenario(engine, tracker):
        own = begun(tracker, user_id="bob")
        for link in ({"parent_id": own}, {"retry_of": own}):
            made = CALLS[name](Engine(tracker, sweep_every_s=None, lease_s=None), **link)
            made = await made if inspect.isawaitable(made) else made
            if isinstance(made, Handle):
                await made
        assert len(tracker.find(parent_id=own)) == len(tracker.find(user_id="bob")) // 2
        await tracker.aio.fire(own, "cancel")
        await tracker.aio.fire(own, "stopped", fence=tracker.get(own).fence)

    play(scenario)


@PLAYS
@pytest.mark.parametrize("whose", [{"user_id": "ada"}, {"parent_id": "exec_x"}])
def test_a_child_is_its_parents_users(whose, play):
    """A run cannot start a child for another user, or under another parent."""

    async def scenario(engine, tracker):
        async def parent(run):
            return await run.child(work, **whose)

        with pytest.raises(TypeError):
            await engine.run(parent, user_id="bob", thread_id="t")
        assert tracker.counts() == {"failed": 1}

    play(scenario)


@PLAYS
def test_adopted_executions_stay_their_users(play):
    """What an engine takes over runs for the user whose it is, with that user's answers and nobody else's."""

    async def scenario(engine, tracker):
        seen = {}

        async def agent(run, name):
            answer = await run.ask("Go on?")
            seen[run.user_id] = (run.user_id, name, answer.text, run.metadata.get("of"))

        first = Engine(tracker, sweep_every_s=None, lease_s=None)
        first.agent(name="resumed", resumable=True)(agent)
        handles = {
            user: await first.submit("resumed", user, user_id=user, thread_id="t", metadata={"of": user})
            for user in ("ada", "bob")
        }
        await asyncio.sleep(1.0)
        await first.close()
        for user, handle in handles.items():
            with pytest.raises(UnknownExecution):
                await tracker.for_user("eve").aio.fire(
                    handle.id, "receive_input", verdict="text", text="mine"
                )
            await tracker.for_user(user).aio.fire(handle.id, "receive_input", verdict="text", text=user)
        engine.agent(name="resumed", resumable=True)(agent)
        for handle in await engine.adopt():
            await handle
        assert seen == {user: (user, user, user, user) for user in ("ada", "bob")}

    play(scenario)


def test_an_engine_takes_no_narrowed_tracker(tracker):
    """An engine drives everybody's executions: a tracker that was narrowed to one user is refused."""
    with pytest.raises(ConfigurationError, match="for_user"):
        Engine(tracker.for_user("bob"))


@PLAYS
def test_what_an_engine_remembers_of_slots_is_each_users_own(play):
    """A user's limits count that user's executions alone, whatever the names look like."""

    async def scenario(engine, tracker):
        async def agent(run):
            await asyncio.sleep(1.0)

        users = ["ada", "ADA", "ada ", "a", "0", "None"]
        handles = [
            await engine.submit(agent, user_id=user, thread_id="t") for user in users for _ in range(2)
        ]
        assert (engine.running, engine.queued) == (len(users), len(users))
        for handle in handles:
            await handle

    play(scenario, slots={"per_user": 1})


OF_THE_PLATFORM = {
    # The engine is the program's, not a user's: its caller names the user each time.
    Engine: "adopt agent close late left_open portal queued run_until_signal running serve stragglers tracker".split(),
    # These belong to one execution, which its holder created or adopted; they take no id.
    Handle: "add_done_callback attended cancel done give_up outcome result state".split(),
    Run: (
        "again agent_name alive annotate ask attempt call_model end id log loop metadata model over phase progress "
        "recorder resumed state thread_id tool user_id"
    ).split(),
    SyncRun: (
        "agent_name alive annotate ask attempt call_model id log metadata model over phase progress resumed sleep "
        "state stop thread_id tool user_id wait"
    ).split(),
    Recorder: "close_all model_ended model_started note tool_ended tool_started".split(),
    Registered: [],
    Block: [],
}


@pytest.mark.parametrize("face", OF_THE_PLATFORM)
def test_every_public_method_is_in_the_matrix(face):
    """No method of the engine or of what it hands out is left out of the matrix without a reason."""
    public = {name for name in vars(face) if not name.startswith("_")}
    covered = set()
    for what in (*MATRIX, *IN_THREADS):
        whole = what.split()[0]
        owner, _, name = whole.rpartition(".")
        if (owner or "Engine") == face.__name__:
            covered.add(name)
    assert public - covered == set(OF_THE_PLATFORM[face])


def test_no_method_takes_an_id_unnoticed():
    """Whatever of the engine's has a parameter that names an execution is called in the matrix."""
    noticed = {what.split()[0] for what in (*MATRIX, *IN_THREADS)}
    for face in OF_THE_PLATFORM:
        for name, member in vars(face).items():
            if name.startswith("_") or not callable(member):
                continue
            ids = {
                one
                for one in inspect.signature(member).parameters
                if one.endswith("_id") or one == "retry_of"
            }
            if ids & {"execution_id", "parent_id", "retry_of"}:
                assert {name, f"{face.__name__}.{name}"} & noticed, (face, name)


# --- the tracker for asyncio --------------------------------------------------------------------------------------


class Awaited:
    """The tracker for asyncio, as if it were the other: the same matrix is for both."""

    def __init__(self, aio: AsyncTracker) -> None:
        self._aio = aio

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._call, name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        async def all_of(made: Any) -> Any:
            return [one async for one in made]

        async def call() -> Any:
            if name == "subscribe":
                return await all_of(self._aio.subscribe(*args, **{**kwargs, "follow": False}))
            return await getattr(self._aio, name)(*args, **kwargs)

        return asyncio.run(call())


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("way", ["narrowed first", "narrowed last"])
def test_a_foreign_execution_is_unknown_to_asyncio(what, way, either):
    """To every awaited call of another user an execution is as unknown as one that does not exist."""
    theirs = begun(either)
    either.fire(theirs, "think", fence=either.get(theirs).fence, key="used")
    narrow = either.for_user("bob").aio if way == "narrowed first" else either.aio.for_user("bob")
    errors = []
    for one in (theirs, execution_id()):
        with pytest.raises(UnknownExecution) as caught:
            FOREIGN[what](Awaited(narrow), one)
        errors.append(str(caught.value).replace(one, "ID"))
    assert errors[0] == errors[1]
    assert either.get(theirs).version == 2
    assert len(either.find()) == 1
    with suppress(Refused):
        FOREIGN[what](Awaited(either.aio.for_user("ada")), theirs)


@pytest.mark.parametrize("what", EMPTY)
def test_a_foreign_users_lists_are_empty_for_asyncio(what, either):
    """What lists executions shows another user nothing when awaited either, and its own user what there is."""
    theirs = begun(either)
    begun(either, parent_id=theirs)
    assert EMPTY[what](Awaited(either.aio.for_user("bob")), theirs) == []
    assert EMPTY[what](Awaited(either.aio.for_user("ada")), theirs) != []


def test_every_method_for_asyncio_is_in_the_matrix():
    """No awaited method is left out of the two matrices without a reason."""
    public = {name for name in dir(AsyncTracker) if not name.startswith("_")}
    covered = {what.split()[0] for what in (*FOREIGN, *EMPTY)}
    assert public - covered == {"sweep", "prune", "position", "machines", "health"} | {"for_user"}
