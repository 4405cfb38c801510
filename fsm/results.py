"""What agents return and raise, as the journal keeps it: JSON, of a bounded size.

`jsonable` is the one coercion of a result, for the engine and for whom drives by hand (`fsm.payloads.ending`).
"""

from __future__ import annotations

import json
import traceback
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

MAX_RESULT_BYTES = 65_536
"""A result, a tool's arguments or its answer is kept up to this size, as JSON in bytes; of a larger one its
beginning is kept. Documents belong elsewhere."""
MAX_TRACEBACK = 20_000
"""So many characters of a traceback are kept: the end, where the error is."""
MAX_TEXT = 2_000
"""So many characters of an error's message are kept."""


def jsonable(value: Any, limit: int = MAX_RESULT_BYTES) -> Any:
    """Return a value as JSON-ready data; what JSON cannot say becomes text, what is too large its beginning.

    A value that is too large becomes ``{"truncated": true, "characters": …, "begins": …}``.

    Args:
        value: Anything: pydantic models, dataclasses, dates … are written as pydantic writes them.
        limit: The largest JSON text that is kept whole, in bytes.
    """
    if value is None or value is True or value is False:
        return value
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
    except Exception:  # noqa: BLE001 - a __repr__ or a serializer of the user's own: whatever it raises
        return f"<{type(value).__name__} that cannot be shown>"
    if len(text) <= limit and len(text.encode()) <= limit:
        return data
    return {"truncated": True, "characters": len(text), "begins": text[: MAX_RESULT_BYTES // 8]}


def _shown(value: Any) -> str:
    try:
        return clipped(repr(value))
    except Exception:  # noqa: BLE001 - as above
        return f"<{type(value).__name__} that cannot be shown>"


def clipped(text: str) -> str:
    """Return a text that every store takes, of a bounded length."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def message_of(error: BaseException) -> str:
    """Return what an error says; its type if it says nothing."""
    try:
        return clipped(str(error)) or type(error).__name__
    except Exception:  # noqa: BLE001 - a __str__ of the user's own
        return type(error).__name__


def why(error: BaseException) -> str:
    """Return an error on one line: its type and what it says."""
    said = message_of(error)
    return said if said == type(error).__name__ else clipped(f"{type(error).__name__}: {said}")


def described(error: BaseException) -> dict[str, Any]:
    """Return an error as the payload of ``fail`` and ``fall_back`` has it: message, type and traceback."""
    try:
        lines = "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 - as above; the traceback is a service, not a duty
        lines = ""
    return {
        "error": message_of(error),
        "error_type": clipped(type(error).__name__),
        "traceback": lines[-MAX_TRACEBACK:].encode("utf-8", "replace").decode() or None,
    }
