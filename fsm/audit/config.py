"""The `[tool.fsm.audit]` table of pyproject.toml: what it may say, what is assumed, and its errors."""

from __future__ import annotations

import difflib
import fnmatch
import os
import pkgutil
import re
import tomllib
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

from fsm.audit.errors import ConfigError, PathError, clipped
from fsm.audit.files import printable, read_regular

MOST_BYTES: Final = 4_000_000
"""The size above which a file is taken for no configuration."""
Severity = Literal["error", "warning", "note"]
# A rule is one file, and its code is the beginning of the file's name.
MODULES: Final = tuple(
    sorted(
        m.name
        for m in pkgutil.iter_modules([str(Path(__file__).parent / "rules")])
        if m.name.startswith("fsm")
    )
)
CODES: Final = tuple(name[:6].upper() for name in MODULES)


def matches_name(name: str, patterns: list[str]) -> bool:
    """Say whether a dotted name is one of those that a configuration names, with or without their module."""
    return _any_of(tuple(patterns)).match(name) is not None


@lru_cache(maxsize=64)
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    options = [fnmatch.translate(each) for p in patterns for each in (p, f"*.{p}")]
    return re.compile("|".join(options) or "(?!)")


@dataclass(frozen=True)
class AuditConfig:
    """Everything the audit knows about a code base. Every list can be replaced in pyproject.toml.

    Attributes:
        protected: Classes that only their factory may construct (FSM001), beside those with the role of a tracker,
            engine or breaker. A bare name stands for every class of that name; one word alone, such as ``Tracker``,
            for classes of the audited tree and of fsm only. A dotted name stands for one class.
        factories: Functions that may construct them: a name, ``Class.method`` or a dotted name, with ``*`` as a
            wildcard. In the module that defines the class, functions named ``get_…``, ``create_…`` are factories too.
        id_names: Names that mean an execution id; ``execution_id`` also stands for ``executionId``.
        id_makers: Functions, classes or modules that may make ids, with ``*`` as a wildcard.
        registry_words: Words in the name of an attribute that keeps executions.
        state_names: Attributes that hold the state of an execution.
        tracker_patterns: Classes that may keep executions: they ARE the one registry.
        engine_patterns: Classes that may drive executions.
        breaker_patterns: Class names that count as a circuit breaker (FSM007).
        exclude: Path patterns that are not audited.
        select: Codes to report; empty means all.
        severity: A severity per code, instead of the rule's own.
        max_file_bytes: Files larger than this are skipped and reported.
        baseline: A file of known findings, relative to pyproject.toml.
    """

    protected: list[str] = field(
        default_factory="Tracker ExecutionTracker AgentExecutionTracker RunTracker AgentRunTracker".split
    )
    factories: list[str] = field(
        default_factory=(
            "get_tracker get_execution_tracker get_agent_execution_tracker"
            " *TrackerFactory.* *EngineFactory.* *BreakerFactory.*"
        ).split
    )
    id_names: list[str] = field(
        default_factory="execution_id exec_id run_id execution_uuid run_uuid exec_uuid".split
    )
    id_makers: list[str] = field(
        default_factory="fsm.ids *IdGenerator *IDGenerator *IdFactory *IDFactory *IdManager *IDManager".split
    )
    registry_words: list[str] = field(default_factory="execution executions exec execs run runs".split)
    state_names: list[str] = field(
        default_factory=(
            "state status phase execution_state execution_status execution_phase current_phase current_state"
            " run_state run_status agent_state"
        ).split
    )
    tracker_patterns: list[str] = field(default_factory="fsm.*".split)
    engine_patterns: list[str] = field(default_factory="fsm.*".split)
    breaker_patterns: list[str] = field(default_factory="*CircuitBreaker *Breaker".split)
    exclude: list[str] = field(
        default_factory=(
            ".git .hg .svn .venv .tox .nox .eggs .mypy_cache .ruff_cache __pycache__ node_modules"
            " site-packages venv build dist"
        ).split
    )
    include_tests: bool = True
    select: list[str] = field(default_factory=list)
    ignore: list[str] = field(default_factory=list)
    severity: dict[str, Severity] = field(default_factory=dict)
    max_file_bytes: int = 2_000_000
    baseline: str | None = None

    def __post_init__(self) -> None:
        """Refuse codes of rules that do not exist."""
        problems = [
            f"{key}: no rule is called {code!r}; the rules are {', '.join(CODES)}"
            for key in ("select", "ignore", "severity")
            for code in getattr(self, key)
            if not code
            or not any(known == code or (key != "severity" and known.startswith(code)) for known in CODES)
        ]
        if problems:
            raise ConfigError("\n".join(f"  {line}" for line in problems))

    def enabled(self, code: str) -> bool:
        """Say whether a rule is on; a prefix such as ``FSM`` selects all of its rules."""
        if any(code.startswith(prefix) for prefix in self.ignore):
            return False
        return not self.select or any(code.startswith(prefix) for prefix in self.select)

    def exempt(self, kind: str) -> list[str]:
        """Give the patterns of the classes that may have a role: they are the one registry, and its engine."""
        if kind in {"engine", "breaker"}:
            return self.engine_patterns
        return self.tracker_patterns if kind == "tracker" else [*self.tracker_patterns, *self.engine_patterns]


_EXAMPLES: Final = {
    "include_tests": "true",
    "max_file_bytes": "2000000",
    "baseline": '".fsm-audit.json"',
    "severity": '{ FSM002 = "warning" }',
}


_SINGLE: Final[dict[str, tuple[tuple[type, ...], str]]] = {
    "include_tests": ((bool,), "true or false"),
    "max_file_bytes": ((int,), "a number above 0"),
    "baseline": ((str, type(None)), "a path"),
}


def config_from(table: dict[str, Any], *, origin: str = "[tool.fsm.audit]") -> AuditConfig:
    """Check a configuration table; dashes in keys are read as underscores.

    Raises:
        ConfigError: A key is unknown or a value has the wrong type; the text names each one.
    """
    values = {str(key).replace("-", "_"): value for key, value in table.items()}
    problems = [problem for key, value in values.items() for problem in _problems(key, value)]
    if problems:
        raise ConfigError(f"{origin} is not valid:\n" + "\n".join(f"  {line}" for line in problems))
    try:
        return AuditConfig(**values)
    except ConfigError as error:
        raise ConfigError(f"{origin} is not valid:\n{error}") from None


def _problems(key: str, value: Any) -> list[str]:
    known = [f.name for f in fields(AuditConfig)]
    if key not in known:
        close = difflib.get_close_matches(key[:100], known, n=1)
        meant = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(known)}"
        return [f"{clipped(key)} is not a key of the audit; {meant}"]
    shape = _EXAMPLES.get(key, '["name", "another_name"]')

    def wrong(where: str, must: str, got: Any) -> str:
        return f"{where} must be {must} (got {clipped(got)}); write it as {key} = {shape}"

    if key == "severity":
        if not isinstance(value, dict):
            return [wrong(key, "a table of codes", value)]
        levels = get_args(Severity)
        return [
            f"severity.{code} must be one of {', '.join(levels)}, not {clipped(level)}"
            for code, level in value.items()
            if level not in levels
        ]
    if key in _SINGLE:
        kinds, must = _SINGLE[key]
        return (
            [] if type(value) in kinds and (kinds[0] is not int or value > 0) else [wrong(key, must, value)]
        )
    if not isinstance(value, list):
        return [wrong(key, "a list of texts", value)]
    return [
        wrong(f"{key}.{at}", "a text", item) for at, item in enumerate(value) if not isinstance(item, str)
    ]


def load_config(start: Path) -> tuple[AuditConfig, Path]:
    """Find the nearest pyproject.toml at or above a path and read its audit table.

    Raises:
        ConfigError: The file is not TOML, or its audit table is not valid.
        PathError: The path, or the current folder, cannot be reached.
    """
    try:
        start = start.resolve()
        here = Path.cwd()
    except (OSError, RuntimeError) as error:
        # A loop of links, or a current folder that was removed.
        raise PathError(f"{printable(str(start))} cannot be reached: {error}") from None
    for folder in (start, *start.parents):
        candidate = folder / "pyproject.toml"
        # A name that is too long for the system holds no configuration, nor does the file that is audited.
        if os.path.isfile(candidate):  # noqa: PTH113 # a Path raises where it cannot look
            return read_config(candidate), folder
    return AuditConfig(), here


def read_config(path: Path) -> AuditConfig:
    """Read the audit table of one TOML file; the defaults if it has no ``[tool.fsm.audit]``.

    Raises:
        ConfigError: The file cannot be read, is not TOML, or its audit table is not valid.
    """
    shown = printable(str(path))
    try:
        raw = read_regular(str(path), MOST_BYTES + 1)
        if raw is None or len(raw) > MOST_BYTES:
            raise ConfigError(f"{shown} must be a regular file of at most {MOST_BYTES} bytes")
        data: Any = tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{shown} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{shown} is not valid TOML for the audit: it is nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{shown} is not valid TOML: {printable(str(error)[:300])}") from None
    for key in ("tool", "fsm", "audit"):
        data = data.get(key, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{shown}: [tool.fsm.audit] must be a table, but {key!r} is {clipped(data)}")
    return config_from(data, origin=f"{shown} [tool.fsm.audit]")
