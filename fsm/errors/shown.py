"""A value of a caller's, as it stands in an error message."""

from __future__ import annotations

import reprlib
from typing import Any

MAX_SHOWN = 200
"""Maximum number of characters of one value in a message."""


class _Brief(reprlib.Repr):
    """What `repr` returns for values of a usual size; the middle of longer ones is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxother = self.maxlong = MAX_SHOWN
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 20


_brief = _Brief()


def shown(value: Any) -> str:
    """Return a value as a short text that can be written anywhere, whatever its own methods do."""
    try:
        # join() makes a plain text of it: a subclass of str may have methods of its own.
        text = "".join([_brief.repr(value), ""])
    except Exception:  # noqa: BLE001 - a value's own method may raise anything
        return f"a value of type {kind_of(value)} that cannot be shown"
    if len(text) > MAX_SHOWN:
        text = text[: MAX_SHOWN - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode()


def kind_of(value: object) -> str:
    """Return the name of a value's class, whatever a metaclass makes of it."""
    try:
        name = "".join([type.__dict__["__name__"].__get__(type(value)), ""])
    except Exception:  # noqa: BLE001 - as above
        return "object"
    return name[:MAX_SHOWN].encode("utf-8", "backslashreplace").decode()
