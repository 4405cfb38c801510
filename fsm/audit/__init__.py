"""`fsm audit`: finds second sources of truth of execution state in a Python code base.

It reads source with `ast` and never imports or runs it. `audit` is the library's door; the command line
lives in `fsm.audit.cli`, the only module here that writes for people.
"""

from fsm.audit.config import AuditConfig, load_config, read_config
from fsm.audit.errors import AuditError, BaselineError, ConfigError, PathError
from fsm.audit.model import AuditResult, Finding, Skipped
from fsm.audit.runner import audit

__all__ = [
    "AuditConfig",
    "AuditError",
    "AuditResult",
    "BaselineError",
    "ConfigError",
    "Finding",
    "PathError",
    "Skipped",
    "audit",
    "load_config",
    "read_config",
]
