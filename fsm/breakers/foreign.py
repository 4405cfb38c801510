"""Reading foreign objects: exceptions, responses, headers, classifiers, log handlers. Their errors stay here.

An error of a caller is never replaced by one that reading it raises. An interrupt is: KeyboardInterrupt and SystemExit
may come from a signal at any moment, so they go on, once the permit is settled.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

DROPPED: tuple[type[BaseException], ...] = (Exception, asyncio.CancelledError, GeneratorExit)
"""What foreign code may raise without consequences. Nothing awaits or yields here, so the latter two are its own."""
MAX_WHY = 200
"""Maximum number of characters of an error that the journal keeps."""
_UNREADABLE = "(its text cannot be read)"


def read(thing: Any, name: str) -> Any:
    """Return an attribute, ``None`` if there is none or reading it raises."""
    try:
        return getattr(thing, name, None)
    except DROPPED:
        return None


def text_of(thing: Any) -> str | None:
    """Return a thing as plain text, ``None`` if it cannot be read."""
    try:
        return str.__str__(str(thing))  # of a subclass that may do anything only the characters
    except DROPPED:
        return None


def storable(said: object) -> str:
    """Return a text without characters that no encoding knows; a broken error message must not break a breaker."""
    text = text_of(said)
    return _UNREADABLE if text is None else text.encode(errors="replace").decode()


def why_of(error: BaseException) -> str:
    """Return an exception as a few words for the journal."""
    name = text_of(read(type(error), "__name__")) or "error"
    said = text_of(error)
    return storable(f"{name}: {_UNREADABLE if said is None else said[:MAX_WHY]}"[:MAX_WHY])


def say(
    logger: logging.Logger, level: int, message: str, *args: object, error: BaseException | None = None
) -> None:
    """Write to the log; a handler or a filter that raises breaks no call."""
    try:
        logger.log(level, message, *args, exc_info=error)
    except DROPPED:
        return
