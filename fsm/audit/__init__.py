"""`fsm audit`: finds second sources of truth of execution state in a Python code base.

It reads source with `ast` and never imports or runs it. `audit` is the library's door; the command line lives in
`fsm.audit.cli`. Nothing is loaded before it is asked for, and nothing of the rest of fsm is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsm.audit.config import AuditConfig, load_config, read_config
    from fsm.audit.errors import AuditError, BaselineError, ConfigError, PathError
    from fsm.audit.model import AuditResult, Finding, Skipped
    from fsm.audit.runner import audit

_HOMES = {
    "config": ("AuditConfig", "load_config", "read_config"),
    "errors": ("AuditError", "BaselineError", "ConfigError", "PathError"),
    "model": ("AuditResult", "Finding", "Skipped"),
    "runner": ("audit",),
}
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


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
