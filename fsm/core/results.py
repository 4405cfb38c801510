"""What agents return and raise, as the journal keeps it: JSON, of a bounded size.

`jsonable` is the one coercion of a result, for the engine and for whom drives by hand (`fsm.core.payloads.ending`).
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from dataclasses import is_dataclass
from itertools import islice
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

MAX_RESULT_BYTES = 65_536
"""A result, a tool's arguments or its answer is kept up to this size, as JSON in bytes; of a larger one its
beginning is kept. Documents belong elsewhere."""
MAX_TRACEBACK = 20_000
"""So many characters of a traceback are kept: the end, where the error is."""
MAX_TEXT = 2_000
"""So many characters of an error's message are kept."""
MAX_LOOKED_AT = 10_000
"""Maximum number of a result's members that are looked at for one that may have no end."""


def jsonable(value: Any, limit: int = MAX_RESULT_BYTES) -> Any:
    """Return a value as JSON-ready data; what JSON cannot say becomes text, what is too large its beginning.

    A value that is too large becomes ``{"truncated": true, "characters": …, "begins": …}``.

    Args:
        value: Anything: pydantic models, dataclasses, dates … are written as pydantic writes them.
        limit: The largest JSON text that is kept whole, in bytes.
    """
    if value is None or value is True or value is False:
        return value
    if _flows(value):
        return _shown(value)
    try:
        data = to_jsonable_python(value, fallback=repr, inf_nan_mode="strings", serialize_unknown=True)
        text = json.dumps(data, ensure_ascii=False)
        if "NaN" in text or "Infinity" in text:  # perhaps a number that JSON cannot say; in a text they stay
            data = json.loads(text, parse_constant=str)
            text = json.dumps(data, ensure_ascii=False)
        # A lone surrogate is a text that no store and no reader takes.
        text.encode()
    except (PydanticSerializationError, TypeError, ValueError, RecursionError):
        return _shown(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a __repr__ or a serializer of the user's own: whatever it raises
        return f"<{type_of(value)} that cannot be shown>"
    if len(text) <= limit and len(text.encode()) <= limit:
        return data
    return {"truncated": True, "characters": len(text), "begins": text[: MAX_RESULT_BYTES // 8]}


def _flows(value: Any) -> bool:
    """Return whether a value is, or holds, an iterator: writing it down would empty it, and may never end."""
    todo, looked_at = [value], 0
    while todo and looked_at < MAX_LOOKED_AT:
        one = todo.pop()
        looked_at += 1
        if isinstance(one, Iterator):
            return True
        if isinstance(one, dict):
            todo.extend(islice(dict.values(one), MAX_LOOKED_AT))
        elif isinstance(one, (list, tuple, set, frozenset)):
            todo.extend(islice(one, MAX_LOOKED_AT))
        elif is_dataclass(type(one)):
            todo.extend(getattr(one, "__dict__", {}).values())
    return False


def _shown(value: Any) -> str:
    try:
        return clipped(repr(value))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - as above
        return f"<{type_of(value)} that cannot be shown>"


def type_of(value: Any) -> str:
    """Return the name of a value's type, whatever its metaclass does."""
    return clipped(str(type.__dict__["__name__"].__get__(type(value))))


def clipped(text: str) -> str:
    """Return a text that every store takes, of a bounded length."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def message_of(error: BaseException) -> str:
    """Return what an error says; its type if it says nothing."""
    try:
        return clipped(str(error)) or type_of(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a __str__ of the user's own
        return type_of(error)


def why(error: BaseException) -> str:
    """Return an error on one line: its type and what it says."""
    said = message_of(error)
    kind = type_of(error)
    return said if said == kind else clipped(f"{kind}: {said}")


def described(error: BaseException) -> dict[str, Any]:
    """Return an error as the payload of ``fail`` and ``fall_back`` has it: message, type and traceback."""
    try:
        lines = "".join(traceback.format_exception(error))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - as above; the traceback is a service, not a duty
        lines = ""
    return {
        "error": message_of(error),
        "error_type": type_of(error),
        "traceback": lines[-MAX_TRACEBACK:].encode("utf-8", "replace").decode() or None,
    }
