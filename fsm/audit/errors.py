"""What can go wrong before a finding: each error says what was wrong and what to do instead."""

from __future__ import annotations

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


def clipped(value: object) -> str:
    """Write a value for a message, however long or deep it is."""
    return _SHORT.repr(value)


class AuditError(Exception):
    """The audit could not run; the text says why and what to do."""


class ConfigError(AuditError):
    """The configuration in pyproject.toml is not one the audit understands."""


class BaselineError(AuditError):
    """The baseline file cannot be read, or an update would let it grow."""


class PathError(AuditError):
    """A path that was asked for does not exist or cannot be read."""
