"""What a caller may pass: names, ids, options and metadata, checked before anything is done with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from fsm import ids
from fsm.concurrency.supervised import one_line
from fsm.core.payloads import readable
from fsm.errors import InvalidArgument, MalformedId, UnknownExecution
from fsm.errors.shown import MAX_SHOWN, shown
from fsm.machine.machine import Machine
from fsm.machine.timeouts import MAX_SECONDS, Timeouts

MAX_TEXT = 500
"""Names of agents, users and threads, and keys, are at most so many characters."""
MAX_NAMES = 1_000
"""Maximum number of states that one question names."""
MAX_WAIT_S = 100 * 366 * 86_400.0
"""The longest time for which a thread is told to wait, in seconds: a hundred years; systems refuse a thousand."""
MAX_NUMBER = 2**63 - 1
"""The largest number that every store can keep: positions, fences and seconds since the epoch are at most this."""

_METADATA = TypeAdapter(
    dict[str, JsonValue], config=ConfigDict(ser_json_inf_nan="constants", defer_build=True)
)
_Model = TypeVar("_Model", bound=BaseModel)


def unknown(execution_id: object) -> UnknownExecution:
    """Return the error for an id that nothing is known of, with what is wrong with the id itself, if anything."""
    execution_id = exact(execution_id)
    try:
        ids.parse(execution_id, "exec")
    except MalformedId as error:
        return UnknownExecution(execution_id, error.reason)
    return UnknownExecution(execution_id)


def text(name: str, value: object) -> str:
    """Return `value` as plain text if it is a usable name.

    Raises:
        InvalidArgument: It is no text, empty, too long, or cannot be written as UTF-8.
    """
    value = exact(value)
    if type(value) is not str or not value:
        raise InvalidArgument(f"{name} is a text that is not empty, not {shown(value)}")
    if len(value) > MAX_TEXT:
        raise InvalidArgument(f"{name} has {len(value)} characters, {MAX_TEXT} at most")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{name} holds characters that no encoding knows: {shown(value)}") from None
    if "\0" in value:
        raise InvalidArgument(f"{name} holds a NUL character: {shown(value)}")
    return value


def optional_text(name: str, value: object) -> str | None:
    """Return `value` as plain text if it is a usable name, and ``None`` for ``None``; see `text`."""
    return None if value is None else text(name, value)


def exact(value: object) -> object:
    """Return a text without the methods of a subclass of `str` (an enumeration's member, say), else the value."""
    return str.__str__(value) if isinstance(value, str) else value


def whole(name: str, value: object, lowest: int, highest: int) -> int:
    """Return `value` if it is a whole number within limits; raises `InvalidArgument` for anything else."""
    if type(value) is not int or not lowest <= value <= highest:
        upper = "2**63 - 1" if highest == MAX_NUMBER else str(highest)
        raise InvalidArgument(f"{name} is a whole number from {lowest} to {upper}, not {shown(value)}")
    return value


def seconds(name: str, value: object) -> float:
    """Return `value` as a duration.

    Raises:
        InvalidArgument: It is no number of seconds above 0 and up to `MAX_SECONDS`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MAX_SECONDS:
        raise InvalidArgument(
            f"{name} is a positive number of seconds, at most {MAX_SECONDS:.0f} (about 31 years), not {shown(value)}"
        )
    return float(value)


def flag(name: str, value: object) -> bool:
    """Return `value` if it is True or False; raises `InvalidArgument` for anything else."""
    if type(value) is not bool:
        raise InvalidArgument(f"{name} is True or False, not {shown(value)}")
    return value


def names(state: object) -> frozenset[str]:
    """Return one name or several as a set; raises `InvalidArgument` for anything else."""
    if isinstance(state, str):
        return frozenset([text("state", state)])
    try:
        found = list(islice(iter(state), MAX_NAMES + 1))  # type: ignore[call-overload]
    except Exception:  # noqa: BLE001 - a caller's own iterator may raise anything
        raise InvalidArgument(f"state is the name of a state, or several names, not {shown(state)}") from None
    if len(found) > MAX_NAMES:
        raise InvalidArgument(f"state takes {MAX_NAMES} names at most")
    return frozenset(text("state", one) for one in found)


def model(kind: type[_Model], value: _Model | Mapping[str, Any] | None, name: str) -> _Model | None:
    """Return `value` as a model of that kind; raises `InvalidArgument`, saying what `name` does not fit in."""
    if value is None or isinstance(value, kind):
        return value
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}"[:MAX_SHOWN] for one in found[:4]
        )
        raise InvalidArgument(f"{name} does not fit: {problems}") from None
    except Exception as error:  # noqa: BLE001 - a mapping of the caller's own may raise anything
        raise InvalidArgument(f"{name} cannot be read: {one_line(error)}") from None


def check_limits(machine: Machine, timeouts: Timeouts) -> None:
    """Refuse limits that name no state, that no row can carry out, or that leave an execution open for ever."""
    if too_long := timeouts.too_long:
        raise InvalidArgument(
            f"timeouts.{too_long[0]} is longer than {MAX_SECONDS:.0f} seconds (about 31 years): write None for no limit"
        )
    for name, _ in timeouts.phases:
        if name not in machine.by_name:
            raise InvalidArgument(
                f"timeouts.phases names {shown(name)}, which is no state of machine {machine.name!r}"
            )
    limits = machine.limits(timeouts)
    for state in machine.states:
        if state.name in machine.terminal:
            continue
        bounded = limits.by_state[state.name] is not None or limits.total_s is not None
        if bounded and "time_out" not in machine.by_source[state.name]:
            raise InvalidArgument(
                f"a limit covers the state {state.name!r}, but machine {machine.name!r} has no row for 'time_out' there"
            )
        if not bounded and "time_out" in machine.by_source[state.name]:
            raise InvalidArgument(
                f"nothing would ever end a stay in {state.name!r}: give it a limit, or the whole a total_s"
            )


def metadata_json(value: Mapping[str, Any] | None) -> str | None:
    """Return metadata as JSON text, ``None`` for none; raises `InvalidArgument` for what JSON cannot say."""
    if value is None:
        return None
    try:
        checked = _METADATA.validate_python(value, strict=True)
        written = _METADATA.dump_json(checked)
        if b"null" in written or b"NaN" in written or b"Infinity" in written:
            # pydantic writes NaN and infinities as null; json refuses them.
            json.dumps(checked, allow_nan=False)
    except Exception as error:  # noqa: BLE001 - a dict of the caller's own may raise anything
        raise InvalidArgument(
            f"metadata is a dict of JSON values with text keys: {one_line(error)}"
        ) from None
    return readable("metadata", written) if checked else None
