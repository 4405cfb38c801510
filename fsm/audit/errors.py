"""What can go wrong before a finding: each error says what was wrong and what to do instead."""


class AuditError(Exception):
    """The audit could not run; the text says why and what to do."""


class ConfigError(AuditError):
    """The configuration in pyproject.toml is not one the audit understands."""


class BaselineError(AuditError):
    """The baseline file cannot be read, or an update would let it grow."""


class PathError(AuditError):
    """A path that was asked for does not exist or cannot be read."""
