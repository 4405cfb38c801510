"""One user's tracker: every public attribute of both faces, called on what is another user's."""

from __future__ import annotations

import asyncio
import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

import pytest

from fsm import FsmError, InvalidArgument, Tracker, UnknownExecution
from fsm.ids import execution_id
from fsm.tracker.aio import AsyncScope
from fsm.tracker.scope import Scope
from fsm.tracker.tracker import AsyncTracker, AsyncUserTracker, UserTracker
from tests.support.tracker_tools import begun

THEIRS = {"user_id": "ada", "thread_id": "secret-thread"}
Call = Callable[[Any, str], Any]

# What each method of a user's tracker is asked about another user's execution. It answers as it would for one that
# does not exist: with the same error, or with the same value.
CALLS: dict[str, list[Call]] = {
    "create": [
        lambda it, one: it.create("a", thread_id="t", parent_id=one),
        lambda it, one: it.create("a", thread_id="t", retry_of=one),
        lambda it, one: it.create("a", thread_id="t", parent_id=one, retry_of=one),
    ],
    "fire": [
        lambda it, one: it.fire(one, "cancel"),
        lambda it, one: it.fire(one, "think", fence=1),
        lambda it, one: it.fire(one, "no_such_event", x=1),
        lambda it, one: it.fire(one, "progress", fence=1, note=object()),
        lambda it, one: it.fire(one, "think", fence=1, key="used"),
        lambda it, one: it.fire(one, "start", key="used"),
        lambda it, one: it.fire(one, "progress", fence=1),
        lambda it, one: it.fire(one, "lapse"),
        lambda it, one: it.fire(one, "time_out"),
    ],
    "get": [lambda it, one: it.get(one)],
    "history": [lambda it, one: it.history(one)],
    "durations": [lambda it, one: it.durations(one)],
    "allowed": [lambda it, one: it.allowed(one)],
    "machine_of": [lambda it, one: it.machine_of(one)],
    "find": [
        lambda it, _: it.find(),
        lambda it, _: it.find(user_id="ada"),
        lambda it, _: it.find(state=["thinking", "created"]),
        lambda it, _: it.find(category="running"),
        lambda it, _: it.find(category="terminal", user_id="ada"),
        lambda it, _: it.find(agent="agent"),
        lambda it, _: it.find(thread_id="secret-thread"),
        lambda it, one: it.find(parent_id=one),
        lambda it, one: it.find(after=one),
        lambda it, one: it.find(after=one[:-1]),
        lambda it, one: it.find(user_id="ada", thread_id="secret-thread", parent_id=one, limit=1),
    ],
    "counts": [lambda it, _: it.counts()],
    "subscribe": [
        lambda it, one: it.subscribe(execution_id=one, follow=False),
        lambda it, one: it.subscribe(after=0, execution_id=one, user_id="ada", follow=False),
        lambda it, one: it.subscribe(after=0, execution_id=one, user_id="bob", follow=False),
        lambda it, _: it.subscribe(after=0, follow=False),
        lambda it, _: it.subscribe(after=0, user_id="ada", follow=False),
        lambda it, _: it.subscribe(after=2**63 - 1, user_id="ada", follow=False),
    ],
    "for_user": [
        lambda it, one: it.for_user("bob").get(one),
        lambda it, _: it.for_user("bob").find(user_id="ada"),
    ],
    "aio": [lambda it, one: it.aio.get(one), lambda it, _: it.aio.counts()],
}
TURNED: list[Call] = [
    lambda it, _: it.create("a", user_id="ada", thread_id="t"),
    lambda it, _: it.for_user("ada"),
]
"""Calls that name another user outright: these are refused, whether that user has anything or not."""
NOBODYS = {  # what is everybody's or the process's, and therefore no attribute of one user's tracker
    "breakers", "clock", "close", "closed", "health", "machines", "position", "prune", "store_url", "sweep", "worker",
    "worker_id",
}  # fmt: skip


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def answer(call: Call, face: Any, one: str) -> tuple[str, Any]:
    """Return what a call comes to, awaited and listed if need be, with the id left out of errors."""

    async def awaited(made: Any) -> Any:
        return [row async for row in made] if hasattr(made, "__anext__") else await made

    async def in_a_loop() -> Any:
        made = call(face, one)
        return await awaited(made) if hasattr(made, "__anext__") or inspect.isawaitable(made) else made

    try:
        if isinstance(face, AsyncUserTracker):
            value = asyncio.run(in_a_loop())
        else:
            value = call(face, one)
            if inspect.isawaitable(value):
                value = asyncio.run(awaited(value))
            elif hasattr(value, "__next__"):
                value = list(value)
    except FsmError as error:
        return type(error).__name__, str(error).replace(one, "ID")
    return "value", value


def everything(tracker: Tracker) -> Any:
    """Return all that there is, for a comparison."""
    found = tracker.find(limit=1000)
    return found, [tracker.history(one.id) for one in found], tracker.position()


def faces(tracker: Tracker) -> list[Any]:
    return [tracker.for_user("bob"), tracker.for_user("bob").aio, tracker.aio.for_user("bob")]


@pytest.mark.parametrize("name", CALLS)
def test_what_is_another_users_does_not_exist(name, either):
    """Each method answers for another user's execution as for none, and changes, shows and counts nothing of it."""
    theirs = begun(either, **THEIRS)
    either.fire(theirs, "think", fence=either.get(theirs).fence, key="used")
    begun(either, parent_id=theirs, **THEIRS)
    ended = begun(either, retry_of=theirs, **THEIRS)
    either.fire(ended, "fail", fence=either.get(ended).fence, error="secret")
    before = everything(either)
    for face in faces(either)[: 1 if name == "aio" else None]:
        for number, call in enumerate(CALLS[name]):
            none = execution_id()
            got, wanted = answer(call, face, theirs), answer(call, face, none)
            assert got == wanted, (name, number)
            assert got[0] in {"UnknownExecution", "value", "BadPayload"}
            assert got[0] != "value" or not got[1], "whatever is listed or counted is empty"
            assert not re.search(r"\b(ada|secret)\b", str(got))
    assert everything(either) == before


@pytest.mark.parametrize("name", CALLS)
def test_to_its_own_user_it_exists(name, either):
    """The same calls by the user whose execution it is find it: the matrix above does not pass by accident."""
    theirs = begun(either, **THEIRS)
    either.fire(theirs, "think", fence=either.get(theirs).fence, key="used")
    begun(either, parent_id=theirs, **THEIRS)
    none = execution_id()
    own = either.for_user("ada")
    if name == "for_user":
        assert own.for_user("ada").get(theirs).id == theirs
        return
    assert any(
        answer(call, own, theirs) != answer(call, either.for_user("bob"), none) for call in CALLS[name]
    )


@pytest.mark.parametrize("call", TURNED)
def test_a_users_tracker_is_not_turned_to_another(call, either):
    """A user's tracker neither creates for another user nor becomes another user's, known to the registry or not."""
    for face in faces(either):
        assert answer(call, face, "")[0] == "InvalidArgument"
    begun(either, **THEIRS)
    before = everything(either)
    for face in faces(either):
        assert answer(call, face, "")[0] == "InvalidArgument"
        with pytest.raises(InvalidArgument):
            face.for_user("")
        assert type(face.for_user("bob")) is type(face)
    assert everything(either) == before


@pytest.mark.parametrize("kind", [UserTracker, AsyncUserTracker])
def test_every_attribute_of_a_users_tracker_is_in_the_matrix(kind):
    """No public attribute of either face is without a call in the matrix."""
    assert public(kind) == CALLS.keys() - ({"aio"} if kind is AsyncUserTracker else set())


def test_what_cannot_be_narrowed_is_not_there(either):
    """What is everybody's is no attribute of one user's tracker, and type checkers know: it is no `Tracker`."""
    assert public(Tracker) - public(UserTracker) == NOBODYS
    for face in faces(either):
        for name in NOBODYS:
            assert not hasattr(face, name), name
    assert not issubclass(UserTracker, Tracker)
    assert not issubclass(AsyncUserTracker, AsyncTracker)
    assert typing.get_type_hints(Tracker.for_user)["return"] is UserTracker
    assert issubclass(UserTracker, Scope)
    assert issubclass(AsyncUserTracker, AsyncScope)
    for kind in (Tracker, UserTracker):
        with pytest.raises(FsmError):
            kind()


def test_a_key_is_its_executions_own(either):
    """A key that another user used says nothing: the same key works for one's own execution as if it were new."""
    theirs = begun(either, **THEIRS)
    either.fire(theirs, "think", fence=either.get(theirs).fence, key="k")
    narrow = either.for_user("bob")
    mine = narrow.create("a", thread_id="secret-thread")
    assert narrow.fire(mine.id, "start", key="k").version == 1
    assert narrow.counts() == {"starting": 1}
    assert [one.id for one in narrow.find(thread_id="secret-thread")] == [mine.id]
    with pytest.raises(UnknownExecution):
        narrow.fire(theirs, "think", fence=narrow.get(theirs).fence, key="k")


def test_a_users_stream_follows_that_user_alone(either):
    """A stream of a user's tracker shows what is committed for that user while others commit, in order."""
    narrow = either.for_user("bob")
    stream = narrow.subscribe(after=0)
    for _ in range(3):
        begun(either, **THEIRS)
        mine = narrow.create("a", thread_id="t")
        assert next(stream).execution_id == mine.id
    either.close()
    assert list(stream) == []
