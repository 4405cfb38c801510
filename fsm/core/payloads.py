"""What comes with an event: one pydantic model per event that has a payload, checked before anything is decided.

A payload is JSON. It is checked strictly (no text becomes a number, nothing unknown is taken), written as JSON text
at once, and read back from that text whenever somebody looks: so it can be neither shared nor changed afterwards,
and every store gives back the same.

An end is never refused for a value: `ending` makes it fit. A run whose agent has failed must not stay open because the
error's text is long or the result is a tuple.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AllowInfNan,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    ValidationError,
    create_model,
)
from pydantic_core import ErrorDetails, PydanticSerializationError

from fsm.concurrency.supervised import one_line
from fsm.core.results import clipped, described, jsonable, type_of
from fsm.errors import BadPayload
from fsm.machine.timeouts import MAX_SECONDS

if TYPE_CHECKING:
    from fsm.machine.machine import Machine

MAX_BYTES = 1_048_576
"""A payload or metadata larger than this, as JSON text in bytes, is refused: keep documents elsewhere."""

MAX_DIGITS = 4_300
"""A whole number with more digits than this is refused: Python itself would refuse to read it back."""
_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % (MAX_DIGITS + 1))

MAX_LINE = 10_000
"""Maximum length of a text in a payload, in characters."""
MAX_TRACEBACK = 100_000
"""Maximum length of a traceback in a payload, in characters; a longer one keeps its end."""
Text = Annotated[str, Field(max_length=MAX_LINE)]
Late = Annotated[float, Field(ge=0), AllowInfNan(False)]
Duration = Annotated[float, Field(ge=0, le=MAX_SECONDS), AllowInfNan(False)]


class Payload(BaseModel):
    """What every event may carry: a `note` for people and `data` of any JSON shape."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants", defer_build=True
    )

    note: Text | None = None
    data: JsonValue = None


class Ending(Payload):
    """What comes with an event that ends an execution, or tells it to stop: see `ending`."""


class Claim(Payload):
    """A worker takes the execution; `owner` is its id."""

    owner: Text | None = None


class CallModel(Payload):
    """A language model is called: its `name`; whether the `breaker` of that key gave a `permit`."""

    name: Text | None = None
    permit: StrictBool = True
    breaker: Text | None = None
    retry_in_s: Duration | None = None


class BackOff(Payload):
    """A model call failed and is tried again after `retry_in_s` seconds."""

    retry_in_s: Duration | None = None
    error: Text | None = None


class Trip(Payload):
    """The `breaker` of that key opened during the call; it may let calls through again in `retry_in_s` seconds."""

    breaker: Text | None = None
    retry_in_s: Duration | None = None
    error: Text | None = None


class AwaitInput(Payload):
    """A person is asked a `question`, for `expires_s` seconds at most."""

    question: Text | None = None
    expires_s: Annotated[float, Field(gt=0, le=MAX_SECONDS), AllowInfNan(False)] | None = None


class ReceiveInput(Payload):
    """A person answered: a `verdict`, a `text`, and `by` whom."""

    verdict: Literal["approved", "refused", "text"] | None = None
    text: Text | None = None
    by: Text | None = None


class OpenTool(Payload):
    """A tool call began: the tool's `name`, its `call_id` where calls of one name are told apart."""

    name: Text = ""
    call_id: Text | None = None
    arguments: JsonValue = None


class CloseTool(Payload):
    """A tool call ended. Without `call_id` the oldest of that `name` is meant, without a name the oldest of all."""

    name: Text | None = None
    call_id: Text | None = None
    ok: StrictBool = True
    result: JsonValue = None
    error: Text | None = None


class Progress(Payload):
    """A sign of life; `ok` is false for something that went wrong without ending anything."""

    ok: StrictBool = True


class FallBack(Payload):
    """An error ended what was tried; `to`, another agent or a result that was kept ready, takes its place."""

    error: Text = ""
    error_type: Text | None = None
    traceback: Annotated[str, Field(max_length=MAX_TRACEBACK)] | None = None
    to: Text | None = None


class Fail(Ending):
    """An error ended the attempt. A `retryable` one is tried again after `retry_in_s` if an attempt is left."""

    error: Text = ""
    error_type: Text | None = None
    traceback: Annotated[str, Field(max_length=MAX_TRACEBACK)] | None = None
    retryable: StrictBool = False
    retry_in_s: Duration | None = None
    outcome: Text | None = None
    result: JsonValue = None


class TimeOut(Ending):
    """A limit was reached: its `kind`, and by how many seconds (`late_s`) this was noticed late."""

    kind: Literal["queue", "phase", "idle", "input", "total", "grace", "cooldown", "limit"] = "phase"
    late_s: Late | None = None
    outcome: Text | None = None
    result: JsonValue = None


class Lapse(Ending):
    """The lease of the `worker` ran out; the next attempt may begin in `retry_in_s` seconds."""

    worker: Text | None = None
    retry_in_s: Duration | None = None


class Cancel(Ending):
    """Somebody (`by`) called the execution off, for a `reason`."""

    reason: Text | None = None
    by: Text | None = None
    outcome: Text | None = None


class End(Ending):
    """The end: a `result` of any JSON value (0, False, "" and [] are results), and an `outcome` in one word."""

    result: JsonValue = None
    outcome: Text | None = None


PAYLOADS: dict[str, type[Payload]] = {
    "connect": Claim,
    "validate": Claim,
    "start": Claim,
    "call_model": CallModel,
    "back_off": BackOff,
    "trip": Trip,
    "await_input": AwaitInput,
    "receive_input": ReceiveInput,
    "open_tool": OpenTool,
    "close_tool": CloseTool,
    "progress": Progress,
    "fall_back": FallBack,
    "fail": Fail,
    "time_out": TimeOut,
    "lapse": Lapse,
    "cancel": Cancel,
    "stopped": End,
    "complete": End,
}
"""The payload models by the name under which a machine's `payloads` refers to them."""


def register_payload(name: str, model: type[Payload]) -> None:
    """Make a payload model known, so that a machine's `payloads` can name it.

    Args:
        name: The name that the machine uses.
        model: A subclass of `Payload`.

    Raises:
        BadPayload: The name is taken by another model, or `model` is no subclass of `Payload`.
    """
    if not (isinstance(model, type) and issubclass(model, Payload)):
        raise BadPayload(f"a payload model is a subclass of fsm.Payload, not {model!r}")
    if taken := {"fence", "key"} & model.model_fields.keys():
        raise BadPayload(f"fire() takes {', '.join(sorted(taken))} itself: give the field another name")
    if PAYLOADS.setdefault(name, model) is not model:
        raise BadPayload(f"the payload name {name!r} is taken by {PAYLOADS[name].__name__}: choose another")


class Codec:
    """Checks and writes the payloads of one machine's events."""

    def __init__(self, machine: Machine, derived: frozenset[str]) -> None:
        """Build one model per event, once.

        Args:
            machine: The machine.
            derived: The facts that the record itself answers; the others may come with the payload.

        Raises:
            BadPayload: The machine names a payload model that is not registered.
        """
        self._models: dict[str, type[Payload]] = {}
        self.empty: dict[str, dict[str, Any] | None] = {}
        """What each event carries that is handed in without a payload; ``None`` if that has to be checked."""
        for event in machine.events:
            model = self._model_of(machine, event, derived)
            self._models[event] = model
            try:
                self.empty[event] = dict(model().__dict__)
            except Exception:  # noqa: BLE001 - a validator of a user's may raise anything
                self.empty[event] = None  # a field is required, say: every payload is checked

    @staticmethod
    def _model_of(machine: Machine, event: str, derived: frozenset[str]) -> type[Payload]:
        name = machine.payload_names.get(event)
        if name is not None and name not in PAYLOADS:
            raise BadPayload(
                f"machine {machine.name!r} gives event {event!r} the payload {name!r}, which nobody registered: "
                f"call register_payload({name!r}, YourModel) first. Known: {', '.join(sorted(PAYLOADS))}"
            )
        # A machine that says nothing means by `time_out`, `cancel`, `complete` … what everybody means by it.
        base = PAYLOADS[name] if name is not None else PAYLOADS.get(event, Payload)
        rows = (row for row in machine.transitions if row.event == event)
        guards = {fact for row in rows for fact, _ in row.literals} - derived
        asked = guards - base.model_fields.keys()
        for fact in sorted(guards - asked):
            if base.model_fields[fact].annotation not in {bool, bool | None}:
                raise BadPayload(
                    f"machine {machine.name!r} asks the fact {fact!r} of {event!r}, whose payload has a field of "
                    "that name that is no boolean, so nothing could answer it: rename the fact"
                )
        if not asked:
            return base
        fields: dict[str, Any] = {
            fact: (StrictBool, machine.fact_defaults.get(fact, False)) for fact in sorted(asked)
        }
        return create_model(f"{machine.name}_{event}", __base__=base, **fields)

    def encode(self, event: str, payload: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
        """Check a payload.

        Args:
            event: The event that it comes with.
            payload: The fields, by name.

        Returns:
            The fields with their defaults, and the given ones as JSON text (``None`` when none was given).

        Raises:
            BadPayload: A field is unknown, missing, of a wrong type, or the text is too large.
        """
        if not payload:
            empty = self.empty.get(event, {})
            if empty is not None:
                return empty, None
        model = self._models.get(event)
        if model is None:
            return {}, None  # no such event: the table refuses it, whatever it carries
        try:
            return _written(event, model, payload)
        except BadPayload:
            if not issubclass(model, Ending):
                raise
        return _written(event, model, ending(model, payload))

    def decode(self, event: str, text: str | None) -> Mapping[str, Any]:
        """Read a recorded payload back, with the defaults of what was not given.

        Args:
            event: The event that it came with.
            text: What `encode` returned.

        Raises:
            BadPayload: The text does not fit the event's payload model in this process.
        """
        model = self._models.get(event)
        if model is None:
            return {}
        try:
            return model.model_validate_json(text or "{}").__dict__
        except ValidationError as error:
            raise BadPayload(_explain(event, model, error)) from None


def _written(
    event: str, model: type[Payload], payload: Mapping[str, Any]
) -> tuple[Mapping[str, Any], str | None]:
    try:
        checked = model.__pydantic_validator__.validate_python(payload)
        text = checked.__pydantic_serializer__.to_json(checked, exclude_unset=True)
    except ValidationError as error:
        raise BadPayload(_explain(event, model, error)) from None
    except (PydanticSerializationError, RuntimeError) as error:  # another thread may change it under way
        raise BadPayload(f"the payload of {event!r} cannot be written as JSON: {error}") from None
    except Exception as error:  # noqa: BLE001 - a value's own method may raise anything
        raise BadPayload(f"the payload of {event!r} cannot be read: {one_line(error)}") from None
    return checked.__dict__, readable(f"the payload of {event!r}", text)


def ending(model: type[Payload], payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the payload of an end with every value made to fit.

    An exception as the error becomes its message, type and traceback. A long text is clipped, with a mark. What JSON
    cannot say is coerced as the engine coerces results (`fsm.core.results.jsonable`). What fits in no way is left
    out. The `note` says what was changed. The names of the fields stay: one that the event does not have is still
    refused.

    Args:
        model: The event's payload model.
        payload: The fields, by name.
    """
    given = dict(payload)
    error: Any = given.get("error")
    if issubclass(type(error), BaseException):  # what an object says of its own class may raise
        given = (
            {name: value for name, value in described(error).items() if name in model.model_fields}
            | given
            | {"error": described(error)["error"]}
        )
    fitting: dict[str, Any] = {}
    changed: list[str] = []
    for name, value in given.items():
        if name not in model.model_fields or _fits(model, name, value):
            fitting[name] = value
            continue
        for candidate in _coerced(name, value):
            if _fits(model, name, candidate):
                fitting[name] = candidate
                if _lossy(value, candidate):
                    changed.append(f"{name} ({type_of(value)}) is kept in part, or as text")
                break
        else:
            changed.append(f"{name} was left out: {clipped(str(jsonable(value)))}")
    if changed:
        said = [str(fitting["note"])] if fitting.get("note") else []
        fitting["note"] = list(_coerced("note", "; ".join([*changed, *said])))[-1]
    return fitting


_SAID_IN_FULL = (date, time, timedelta, Decimal, Enum, PurePath, UUID, bytes)
"""What is written as text and can be told from it."""
FIELD_BYTES = MAX_BYTES // 4
"""The largest JSON text, in bytes, that a field keeps whole in a payload that had to be made to fit."""


def _fits(model: type[Payload], name: str, value: Any) -> bool:
    try:
        checked = model.__pydantic_validator__.validate_python({name: value})
        text = checked.__pydantic_serializer__.to_json(checked, include={name})
        return len(readable(name, text)) <= FIELD_BYTES
    except ValidationError as error:
        return not any(problem["loc"][:1] == (name,) for problem in error.errors(include_url=False))
    except Exception:  # noqa: BLE001 - a value's own method may raise anything
        return False


def _lossy(value: Any, candidate: Any) -> bool:
    """Return whether a value cannot be told from what stands for it: a tuple's list says all that the tuple did."""
    if issubclass(type(value), str):
        return bool(candidate != value)
    if isinstance(candidate, dict) and candidate.get("truncated") is True:
        return True
    return isinstance(candidate, str) and not issubclass(type(value), _SAID_IN_FULL)


def _coerced(name: str, value: Any) -> Iterator[Any]:
    """Yield what may stand for a value, the closest first: as JSON, as text, as the end of a text."""
    if issubclass(type(value), str):
        value = value.encode("utf-8", "replace").decode()  # a lone surrogate is a text that no store takes
    data = jsonable(value, FIELD_BYTES)
    yield data
    text = value if issubclass(type(value), str) else data if isinstance(data, str) else json.dumps(data)
    keep = (MAX_TRACEBACK if name == "traceback" else MAX_LINE) - 1
    yield f"…{text[-keep:]}" if name == "traceback" else f"{text[:keep]}…" if len(text) > keep else text


def readable(what: str, text: bytes) -> str:
    """Return JSON as text if it is small enough, and can be read back by everybody.

    Args:
        what: What it is, for the error.
        text: The JSON, with NaN and infinity as words.

    Raises:
        BadPayload: It is too large, or holds a number that JSON or Python's own reader refuses.
    """
    if b"NaN" in text or b"Infinity" in text or (len(text) > MAX_DIGITS and _LONG_NUMBER.search(text)):
        _refuse_numbers(what, text)
    if len(text) > MAX_BYTES:
        raise BadPayload(f"{what} is {len(text)} bytes, {MAX_BYTES} at most: store a reference instead")
    return text.decode()


def _refuse_numbers(what: str, text: bytes) -> None:
    """Refuse numbers that cannot be read back; the bytes may also stand inside a string, which is fine."""

    def constant(name: str) -> None:
        raise BadPayload(f"{what} holds {name}, which JSON cannot say: send null or text")

    def whole(digits: str) -> int:
        if len(digits.lstrip("-")) > MAX_DIGITS:
            raise BadPayload(
                f"{what} holds a number of {len(digits)} digits, {MAX_DIGITS} at most: send text"
            )
        return 0

    json.loads(text, parse_constant=constant, parse_int=whole)


_SHOWN = 4
"""So many problems, and so many parts of a path, are named in an error; a person reads it."""


def _explain(event: str, model: type[Payload], error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    problems = "; ".join(f"{_path(problem['loc'])}: {_said(problem)}" for problem in found[:_SHOWN])
    return f"the payload of {event!r} does not fit: {problems}. It takes: {', '.join(model.model_fields)}"


def _path(where: tuple[int | str, ...]) -> str:
    more = ".…" if len(where) > _SHOWN else ""
    return ".".join(str(part)[:100] for part in where[:_SHOWN]) + more if where else "payload"


def _said(problem: ErrorDetails) -> str:
    return "nested too deeply, or in itself" if problem["type"].startswith("recursion") else problem["msg"]
