"""Arguments of every kind in every place: what is no use ends in a typed error, and nothing is half-written."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import enum
import inspect
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsm import EXECUTION, ConfigurationError, FsmError, InvalidArgument, Tracker, errors
from fsm.core.arguments import MAX_NUMBER
from fsm.core.journal import fold
from fsm.core.records import Receipt
from fsm.errors.shown import MAX_SHOWN, shown
from fsm.ids import execution_id
from fsm.testing import fresh_tracker
from fsm.tracker.process import _build, configure, get_tracker
from fsm.tracker.tracker import AsyncTracker, AsyncUserTracker, UserTracker
from tests.support.tracker_tools import begun

LOOP = asyncio.Runner()


class Rude:
    """An object all of whose methods raise."""

    def _refuse(self, *_: Any) -> Any:
        raise RuntimeError("rude")

    __repr__ = __str__ = __eq__ = __hash__ = __bool__ = __len__ = __iter__ = __format__ = __lt__ = _refuse
    __index__ = __int__ = __float__ = __call__ = __contains__ = __getitem__ = __enter__ = __next__ = _refuse


class RudeText(str):
    """A text whose methods raise."""

    __slots__ = ()

    def _refuse(self, *_: Any) -> Any:
        raise RuntimeError("rude")

    __repr__ = __str__ = __eq__ = __hash__ = __len__ = __iter__ = __format__ = __lt__ = __contains__ = _refuse
    encode = strip = split = rpartition = _refuse


class RudeKey(str):
    """A text that can be a key, and whose other methods raise."""

    __slots__ = ()

    def _refuse(self, *_: Any) -> Any:
        raise RuntimeError("rude")

    __repr__ = __str__ = __len__ = __iter__ = __format__ = __lt__ = encode = _refuse


class RudeDict(dict):
    """A dict whose methods raise."""

    def _refuse(self, *_: Any) -> Any:
        raise RuntimeError("rude")

    __iter__ = __getitem__ = __len__ = keys = items = get = __contains__ = _refuse


class RudeMapping(Mapping):
    def __getitem__(self, key: Any) -> Any:
        raise RuntimeError("rude")

    def __iter__(self) -> Iterator[str]:
        return iter(["total_s"])

    def __len__(self) -> int:
        return 1


class RudeKind(type):
    def __repr__(cls) -> str:
        raise RuntimeError("rude")

    @property
    def __name__(cls) -> str:
        raise RuntimeError("rude")


class OfRudeKind(metaclass=RudeKind):
    pass


class Colour(enum.StrEnum):
    RED = "red"


def deep() -> list[Any]:
    """A list in a list in a list ..."""
    one: list[Any] = []
    for _ in range(3000):
        one = [one]
    return one


def itself() -> list[Any]:
    """A list that holds itself."""
    one: list[Any] = []
    one.append(one)
    return one


def failing() -> Iterator[str]:
    """Yield a name, then raise."""
    yield "created"
    raise RuntimeError("rude")


ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "-1": lambda: -1,
    "2**31": lambda: 2**31,
    "2**63": lambda: 2**63,
    "-2**63-1": lambda: -(2**63) - 1,
    "10**400": lambda: 10**400,
    "10**5000": lambda: 10**5000,
    "0.5": lambda: 0.5,
    "1e308": lambda: 1e308,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "1j": lambda: 1j,
    "decimal": lambda: decimal.Decimal("sNaN"),
    "empty": lambda: "",
    "blank": lambda: " ",
    "long": lambda: "x" * 501,
    "huge": lambda: "x" * 2_000_000,
    "NUL": lambda: "a\0b",
    "half a character": lambda: "\ud800",
    "control characters": lambda: "\x1b[2J\r\n",
    "bytes": lambda: b"\xff",
    "list": lambda: [1],
    "set": lambda: {1},
    "dict": lambda: {"a": 1},
    "dict of sets": lambda: {"a": {1}},
    "deep": deep,
    "deep dict": lambda: {"a": deep()},
    "itself": itself,
    "itself in a dict": lambda: {"a": itself()},
    "endless": itertools.count,
    "endless names": lambda: itertools.repeat("created"),
    "failing": failing,
    "function": lambda: len,
    "class": lambda: int,
    "enumeration": lambda: Colour.RED,
    "date": lambda: dt.datetime.max.replace(tzinfo=dt.UTC),
    "path": lambda: pathlib.Path("x"),
    "error": lambda: ValueError("x"),
    "rude": Rude,
    "rude in a list": lambda: [Rude()],
    "rude in a dict": lambda: {"a": Rude()},
    "rude text": lambda: RudeText("rude"),
    "rude text in a list": lambda: [RudeText("created")],
    "rude key": lambda: {RudeKey("total_s"): 1.0},
    "rude dict": lambda: RudeDict(a=1),
    "rude mapping": RudeMapping,
    "of a rude class": OfRudeKind,
    "rude class": lambda: OfRudeKind,
    "another id": execution_id,
}

USUAL: dict[str, dict[str, Any]] = {
    "create": {"agent": "a", "user_id": "ada", "thread_id": "t"},
    "fire": {"execution_id": None, "event": "progress", "fence": 1},
    "get": {"execution_id": None},
    "history": {"execution_id": None},
    "durations": {"execution_id": None},
    "allowed": {"execution_id": None},
    "machine_of": {"execution_id": None},
    "find": {},
    "counts": {},
    "health": {},
    "subscribe": {"after": 0, "follow": False},
    "worker": {},
    "sweep": {},
    "prune": {},
    "position": {},
    "machines": {},
    "for_user": {"user_id": "ada"},
    "close": {},
}
"""What a method is called with beside the one odd argument; ``None`` stands for an open execution's id."""
FIELDS = {
    "progress": ["ok", "note", "error", "no such field"],
    "enqueue": ["note", "position"],
    "await_input": ["question", "expires_s"],
    "complete": ["result", "outcome"],
    "fail": ["error"],
}
"""Fields of payloads; an odd one may be refused or accepted, and what is accepted can be read."""


def methods(kind: type) -> list[str]:
    return sorted(
        name for name in dir(kind) if not name.startswith("_") and inspect.isfunction(getattr(kind, name))
    )


def places(kind: type) -> list[tuple[str, str]]:
    """Return every parameter of every public method."""
    return [
        (name, one.name)
        for name in methods(kind)
        for one in inspect.signature(getattr(kind, name)).parameters.values()
        if one.name != "self" and one.kind is not one.VAR_KEYWORD
    ]


def call(face: Any, name: str, arguments: dict[str, Any]) -> Any:
    """Call a method, positional parameters by position; wait for what is awaited, and read a page of a stream."""
    if arguments.get("follow") is True:
        arguments["follow"] = False  # a stream that follows has no end
    function = getattr(face, name)
    parameters = inspect.signature(function).parameters.values()
    first = [arguments.pop(one.name) for one in parameters if one.kind is one.POSITIONAL_ONLY]

    async def awaited() -> Any:
        made = function(*first, **arguments)
        if hasattr(made, "__anext__"):
            return [row async for row in made]
        return await made if inspect.isawaitable(made) else made

    if isinstance(face, (AsyncTracker, AsyncUserTracker)):
        return LOOP.run(awaited())
    made = function(*first, **arguments)
    return list(made) if hasattr(made, "__next__") else made


def attempt(action: Callable[[], Any]) -> tuple[bool, Any]:
    """Return whether it was refused, in a typed error that can be read, and else what it returned."""
    try:
        return False, action()
    except FsmError as error:
        said = str(error)
    said.encode()
    assert len(said) < 3000
    return True, None


def sound(tracker: Tracker) -> int:
    """Check that everything can be read and holds together; returns how much there is."""
    found = tracker.find(limit=10_000)
    for one in found:
        history = tracker.history(one.id)
        assert [row.version for row in history] == list(range(one.version + 1))
        assert fold(history, tracker.machine_of(one.id)) == one.state
        assert all(isinstance(row.as_dict(), dict) for row in history)
        one.model_dump_json()
    assert sum(tracker.counts().values()) == len(found)
    rows = list(tracker.subscribe(after=0, follow=False))
    assert all(isinstance(row, Receipt) for row in rows)
    return len(rows)


@pytest.fixture(scope="module", autouse=True)
def _loop():
    yield
    LOOP.close()


@pytest.fixture
def face_of(either):
    return {
        Tracker: either,
        UserTracker: either.for_user("ada"),
        AsyncTracker: either.aio,
        AsyncUserTracker: either.aio.for_user("ada"),
    }


@pytest.mark.parametrize("kind", [Tracker, UserTracker, AsyncTracker, AsyncUserTracker])
def test_odd_arguments_end_in_typed_errors(kind, either, face_of):
    """An odd value for any argument of any method is used, or refused in a typed error that leaves nothing behind."""
    one = begun(either)
    before = either.position()
    for name, parameter in places(kind):
        for said, odd in ODD.items():
            usual = {key: one if value is None else value for key, value in USUAL[name].items()}
            refused, made = attempt(partial(call, face_of[kind], name, {**usual, parameter: odd()}))
            assert not refused or either.position() == before, (name, parameter, said)
            if name == "worker" and made is not None:
                made.close()
            before = either.position()
    sound(either)


@pytest.mark.parametrize("kind", [Tracker, UserTracker, AsyncTracker, AsyncUserTracker])
def test_every_method_is_asked(kind):
    """No public method is without usual arguments here, so none is left out of the test above."""
    assert set(methods(kind)) <= USUAL.keys()


@pytest.mark.parametrize("event", FIELDS)
def test_odd_payloads_are_accepted_or_refused_whole(event, either):
    """An odd value in a payload is committed so that everybody can read it, or refused in a typed error."""
    one = None
    for field in FIELDS[event]:
        for said, odd in ODD.items():
            if one is None or not (event == "progress" or event in either.allowed(one)):
                one = either.create("a", user_id="ada", thread_id="t").id
                way = {"enqueue": "", "complete": "start think process_results finish"}.get(event, "start")
                for step in way.split():
                    either.fire(one, step, fence=either.get(one).fence)
            before = either.position()
            given = {"fence": either.get(one).fence, field: odd()}
            refused, _ = attempt(partial(either.fire, one, event, **given))
            assert not refused or either.position() == before, (event, field, said)
    sound(either)


def test_unknown_and_missing_arguments_are_python_s_own_errors(either):
    """An argument that a method does not have, or lacks, is a TypeError as everywhere in Python."""
    for wrong in (
        lambda: either.create("a"),
        lambda: either.create("a", user_id="u", thread_id="t", nonsense=1),
        lambda: either.find(nonsense=1),
        either.get,
    ):
        with pytest.raises(TypeError):
            wrong()
    assert either.position() == 0


@pytest.mark.parametrize("parameter", inspect.signature(configure).parameters)
def test_odd_configurations_end_in_typed_errors(parameter, tmp_path, monkeypatch):
    """An odd value in the place of any argument of `configure` is a typed error, and leaves no tracker behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fsm.tracker.process._trackers", ())
    monkeypatch.setattr(
        "fsm.tracker.process._mine", __import__("contextvars").ContextVar("mine", default=None)
    )
    for odd in ODD.values():
        refused, made = attempt(partial(configure, **{"store": "memory://", parameter: odd()}))
        if not refused:
            made.close()
    for store in (
        "sqlite:///" + "x" * 300,
        "sqlite:///a\0b",
        "sqlite:///\udcff/x.db",
        "sqlite:///no/such/folder.db",
    ):
        with pytest.raises(FsmError):
            _build(store, None, ())
    assert get_tracker.__module__ == "fsm.tracker.process"
    with fresh_tracker() as tracker:
        assert get_tracker() is tracker


def test_retention_without_a_sweeper_is_refused():
    """Retention that nothing would carry out is refused and not ignored."""
    from fsm import Retention  # noqa: PLC0415 - beside its use

    with pytest.raises(ConfigurationError):
        configure("memory://", retention=Retention(max_count=1))


def test_numbers_at_the_edges_are_kept_or_refused(either):
    """The largest numbers that a store can keep are accepted as fence and position, and the next ones are refused."""
    one = begun(either)
    with pytest.raises(FsmError) as caught:
        either.fire(one, "progress", fence=MAX_NUMBER)
    assert not isinstance(caught.value, InvalidArgument)
    for fence in (MAX_NUMBER + 1, -1):
        with pytest.raises(InvalidArgument):
            either.fire(one, "progress", fence=fence)
    assert list(either.subscribe(after=MAX_NUMBER + 1, follow=False)) == []


def test_an_enumerations_member_is_its_text(either):
    """A member of an enumeration of texts is taken as its value, and comes back as plain text."""
    made = either.create(Colour.RED, user_id=Colour.RED, thread_id=Colour.RED, machine=EXECUTION.name)
    shown_again = either.find(agent=Colour.RED, user_id=Colour.RED)[0]
    assert (shown_again.id, type(shown_again.agent)) == (made.id, str)
    assert either.for_user(Colour.RED).counts() == {"created": 1}


# --- values in messages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ODD)
def test_a_value_is_shown_whatever_it_does(odd):
    """Any value is shown as a short text that can be written anywhere."""
    text = shown(ODD[odd]())
    assert type(text) is str
    assert 0 < len(text) <= MAX_SHOWN
    text.encode()


@pytest.mark.parametrize(
    "value", ["x", "it's", None, 1, 1.5, ["a", 1], {"a": [1]}, b"x", (), {"b"}, ValueError("x")]
)
def test_usual_values_are_shown_as_python_shows_them(value):
    """A value of a usual size is shown as `repr` shows it."""
    assert shown(value) == repr(value)


@pytest.mark.parametrize("odd", ODD)
def test_errors_about_odd_values_can_be_read(odd):
    """Every error that shows a caller's value can be built from any value, and its text is short."""
    value = ODD[odd]()
    for build in (
        errors.UnknownExecution,
        errors.UnknownMachine,
        partial(errors.MalformedId, reason="x" * 10_000),
        partial(errors.InvalidMachine, findings=()),
    ):
        said = str(build(value))
        assert len(said) < 1000
        said.encode()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    user=st.text(max_size=8), metadata=st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=2)
)
def test_drawn_texts_come_back_as_they_were(user, metadata, either):
    """A user's name and metadata of any characters are kept exactly, or refused in a typed error."""
    before = either.position()
    try:
        made = either.create("a", user_id=user, thread_id="t", metadata=metadata)
    except InvalidArgument:
        assert either.position() == before
        return
    again = either.for_user(user).get(made.id)
    assert (again.user_id, again.metadata) == (user, metadata)
