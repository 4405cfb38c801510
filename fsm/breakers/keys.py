"""The names of breakers: what may be a key or a pattern, and an error for everything else."""

from __future__ import annotations

import re
from typing import Any

from fsm.core.arguments import text
from fsm.errors import BadPayload

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def key_of(value: Any, name: str = "key") -> str:
    """Return a breaker's key, or a pattern of keys, as plain text; raises `BadPayload` if it is no usable name."""
    if not issubclass(type(value), str):
        raise BadPayload(
            f"the {name} of a breaker is a text that names what it protects, as 'openai:gpt-5', "
            f"not a {type(value).__name__}"
        )
    plain = text(name, str.__str__(value))
    if _CONTROL.search(plain):
        raise BadPayload(
            f"{name} holds a control character: {plain!r}; name the breaker in printable characters"
        )
    return plain
