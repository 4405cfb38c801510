"""The tracker narrowed to one user, and what it makes of ids and arguments that are none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from fsm import (
    InvalidArgument,
    Refused,
    Tracker,
    UnknownExecution,
    UnknownMachine,
)
from fsm.ids import execution_id
from tests.support.tracker_tools import begun, finish

# --- one user -----------------------------------------------------------------------------------------------------

FOREIGN: dict[str, Callable[[Tracker, str], object]] = {
    "fire": lambda narrow, one: narrow.fire(one, "start"),
    "fire with a key": lambda narrow, one: narrow.fire(one, "start", key="used"),
    "fire nonsense": lambda narrow, one: narrow.fire(one, "nonsense", x=1),
    "get": lambda narrow, one: narrow.get(one),
    "history": lambda narrow, one: narrow.history(one),
    "durations": lambda narrow, one: narrow.durations(one),
    "allowed": lambda narrow, one: narrow.allowed(one),
    "machine_of": lambda narrow, one: narrow.machine_of(one),
    "subscribe": lambda narrow, one: narrow.subscribe(execution_id=one),
    "create a child": lambda narrow, one: narrow.create("a", thread_id="t", parent_id=one),
    "create a rerun": lambda narrow, one: narrow.create("a", thread_id="t", retry_of=one),
}
EMPTY: dict[str, Callable[[Tracker, str], object]] = {
    "find": lambda narrow, _: narrow.find(),
    "find by user": lambda narrow, _: narrow.find(user_id="ada"),
    "find by state": lambda narrow, _: narrow.find(state="starting"),
    "find by category": lambda narrow, _: narrow.find(category="running"),
    "find by thread": lambda narrow, _: narrow.find(thread_id="t"),
    "find by agent": lambda narrow, _: narrow.find(agent="agent"),
    "find by parent": lambda narrow, one: narrow.find(parent_id=one),
    "find after": lambda narrow, one: narrow.find(after=one[:6]),
    "counts": lambda narrow, _: list(narrow.counts()),
    "subscribe": lambda narrow, _: list(narrow.subscribe(after=0, follow=False)),
    "subscribe to a user": lambda narrow, _: list(narrow.subscribe(after=0, user_id="ada", follow=False)),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_execution_is_unknown(what, either):
    """To every call of another user an execution is as unknown as one that does not exist, and stays untouched."""
    theirs = begun(either)
    either.fire(theirs, "think", fence=either.get(theirs).fence, key="used")
    narrow = either.for_user("bob")
    errors = []
    for one in (theirs, execution_id()):
        with pytest.raises(UnknownExecution) as caught:
            FOREIGN[what](narrow, one)
        errors.append(str(caught.value).replace(one, "ID"))
    assert errors[0] == errors[1]
    assert either.get(theirs).version == 2
    assert len(either.find()) == 1
    with suppress(Refused):  # to its own user it is known, that is all
        FOREIGN[what](either.for_user("ada"), theirs)


@pytest.mark.parametrize("what", EMPTY)
def test_a_foreign_users_lists_are_empty(what, either):
    """What lists executions shows another user nothing, and its own user what there is."""
    theirs = begun(either)
    begun(either, parent_id=theirs)
    assert EMPTY[what](either.for_user("bob"), theirs) == []
    assert EMPTY[what](either.for_user("ada"), theirs) != []


def test_every_public_method_is_in_the_matrix():
    """No method of the tracker is left out of the two matrices above without a reason."""
    public = {name for name in dir(Tracker) if not name.startswith("_")}
    covered = {what.split()[0] for what in (*FOREIGN, *EMPTY)}
    of_the_platform = {
        "breakers",
        "worker",
        "worker_id",
        "sweep",
        "prune",
        "close",
        "closed",
        "clock",
        "store_url",
        "position",
        "machines",
        "health",
    }
    faces = {"aio", "for_user"}
    assert public - covered == of_the_platform | faces


def test_a_narrowed_tracker_acts_for_its_user_alone(either):
    """A narrowed tracker creates for its own user, and cannot be widened or turned to another."""
    narrow = either.for_user("ada")
    assert narrow.create("a", thread_id="t").user_id == "ada"
    assert narrow.create("a", user_id="ada", thread_id="t").user_id == "ada"
    for wrong in ("bob", "", ["ada"]):
        with pytest.raises(InvalidArgument):
            narrow.create("a", user_id=wrong, thread_id="t")
        with pytest.raises(InvalidArgument):
            narrow.for_user(wrong)
    assert narrow.find(user_id="bob") == []
    assert narrow.for_user("ada").counts() == {"created": 2}


# --- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ("", "underscore"), ("x", "underscore"), (None, "not NoneType"), (7, "not int"), ("exec_short", "26"),
        ("exec_01m8281d0kfdztjkpvnbk6yd7m", "unknown execution"),
        ("worker_" + "0" * 26, "worker"), ("exec_" + "!" * 26, "no digit"),
        ("exec_\ud800", "26"), (b"exec", "not bytes"), (["exec"], "not list"),
    ],
)  # fmt: skip
def test_an_unknown_id_is_one_typed_error_everywhere(odd, why, either):
    """An unknown or malformed id is `UnknownExecution` for every method, and says what is wrong with it."""
    for call in list(FOREIGN.values())[: 8 if odd is None else 9]:  # None is no filter for subscribe()
        with pytest.raises(UnknownExecution, match=why):
            call(either, odd)
    for name in ("parent_id", "retry_of"):
        if odd is not None:
            with pytest.raises(UnknownExecution, match=why):
                either.create("a", user_id="u", thread_id="t", **{name: odd})


@pytest.mark.parametrize("value", ["", None, 5, "x" * 501, "\0", "\ud800", b"x", ["x"]])
@pytest.mark.parametrize("name", ["agent", "user_id", "thread_id"])
def test_unusable_names_are_refused(name, value, either):
    """Names that are no text, empty, too long or not writable are refused, and nothing is created."""
    arguments = {"agent": "a", "user_id": "u", "thread_id": "t", name: value}
    with pytest.raises(InvalidArgument, match=name):
        either.create(arguments.pop("agent"), **arguments)
    assert either.counts() == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0}, {"limit": 10_001}, {"limit": True}, {"limit": "5"}, {"state": "nonsense"}, {"state": 5},
        {"state": [["created"]]}, {"state": ["created", "nonsense"]}, {"category": "nonsense"},
        {"category": ["running"]},
        {"after": 5}, {"after": ""}, {"after": "\ud800"}, {"parent_id": 5}, {"agent": ""}, {"user_id": 5},
        {"thread_id": ()},
    ],
)  # fmt: skip
def test_find_refuses_what_makes_no_sense(wrong, either):
    """A filter of a wrong type or value is refused and not answered with an empty page."""
    begun(either)
    with pytest.raises(InvalidArgument):
        either.find(**wrong)


@pytest.mark.parametrize("after", ["1", 1.0, True, [1]])
def test_subscribe_refuses_positions_that_are_none(after, either):
    """A position that is no number is refused at once."""
    with pytest.raises(InvalidArgument, match="position"):
        either.subscribe(after=after, follow=False)
    assert list(either.subscribe(after=2**80, follow=False)) == []


def test_unknown_machines_are_named(either):
    """A machine that nobody declared is refused with the names that there are."""
    with pytest.raises(UnknownMachine, match="execution"):
        either.create("a", user_id="u", thread_id="t", machine="executoin")


@pytest.mark.parametrize(
    "metadata",
    [
        {1: 2},
        {"a": object()},
        {"a": {1: 2}},
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": "\ud800"},
        [1],
        "x",
    ],
)
def test_metadata_that_json_cannot_say_is_refused(metadata, either):
    """Metadata that would not come back as it was given is refused, not bent."""
    with pytest.raises(InvalidArgument, match="metadata"):
        either.create("a", user_id="u", thread_id="t", metadata=metadata)
    assert either.counts() == {}


def test_metadata_is_copied_and_never_shared(either):
    """Metadata belongs to the execution: neither the caller's dict nor what was shown can change it afterwards."""
    given = {"tags": ["a"], "n": {"m": 1}}
    made = either.create("a", user_id="u", thread_id="t", metadata=given)
    other = either.create("a", user_id="u", thread_id="t", metadata=given)
    given["tags"].append("b")
    made.metadata["n"]["m"] = 2
    either.get(made.id).metadata.clear()
    either.find()[0].metadata["tags"].append("c")
    for one in (made, other):
        assert either.get(one.id).metadata == {"tags": ["a"], "n": {"m": 1}}
    assert either.create("a", user_id="u", thread_id="t").metadata == {}


@pytest.mark.parametrize("result", [0, False, "", [], {}, None, 0.0, "x", [0]])
def test_results_stay_themselves(result, either):
    """A result comes back as itself, falsy ones included."""
    one = begun(either)
    finish(either, one, result=result, outcome="fine")
    shown = either.get(one)
    assert (shown.result, type(shown.result), shown.outcome) == (result, type(result), "fine")
