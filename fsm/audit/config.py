"""The `[tool.fsm.audit]` table of pyproject.toml: what it may say, what is assumed, and its errors."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fsm.audit.errors import ConfigError, PathError, clipped
from fsm.audit.files import printable, read_regular

MOST_BYTES: Final = 4_000_000
"""The size above which a file is taken for no configuration."""
Severity = Literal["error", "warning", "note"]
CODES = ("FSM001", "FSM002", "FSM003", "FSM004", "FSM005", "FSM006", "FSM007", "FSM008", "FSM100")


class AuditConfig(BaseModel):
    """Everything the audit knows about a code base. Every list can be replaced in pyproject.toml.

    Attributes:
        protected: Classes that only their factory may construct (FSM001). A bare name stands for every
            class of that name; one word alone, such as ``Tracker``, stands for classes of the audited
            tree and of fsm only, since many packages have a tracker. A dotted name stands for one class.
        factories: Functions that may construct them: a name, ``Class.method`` or a dotted name, with
            ``*`` as a wildcard. In the module that defines the class, functions named ``get_…``,
            ``create_…`` and so on are its factories as well.
        id_names: Names that mean an execution id; ``execution_id`` also stands for ``test_execution_id``
            and ``executionId``.
        id_makers: Functions, classes or modules that may make ids, with ``*`` as a wildcard.
        registry_words: Words in the name of an attribute that keeps executions.
        state_names: Attributes that hold the state of an execution.
        tracker_patterns: Class names that may keep executions: they ARE the one registry (FSM003).
        engine_patterns: Class names that may drive executions (FSM005).
        breaker_patterns: Class names that count as a circuit breaker (FSM007).
        exclude: Path patterns that are not audited.
        include_tests: Whether test files are audited as well.
        select: Codes to report; empty means all.
        ignore: Codes not to report.
        severity: A severity per code, instead of the rule's own.
        max_file_bytes: Files larger than this are skipped and reported.
        baseline: A file of known findings, relative to pyproject.toml.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    protected: list[str] = Field(
        default=["Tracker", "ExecutionTracker", "AgentExecutionTracker", "RunTracker", "AgentRunTracker"]
    )
    factories: list[str] = Field(
        default=["get_tracker", "get_execution_tracker", "get_agent_execution_tracker", "*TrackerFactory.*"]
    )
    id_names: list[str] = Field(
        default=["execution_id", "exec_id", "run_id", "execution_uuid", "run_uuid", "exec_uuid"]
    )
    id_makers: list[str] = Field(
        default=[
            "fsm.ids",
            "*IdGenerator",
            "*IDGenerator",
            "*IdFactory",
            "*IDFactory",
            "*IdManager",
            "*IDManager",
        ]
    )
    registry_words: list[str] = Field(default=["execution", "executions", "exec", "execs", "run", "runs"])
    state_names: list[str] = Field(
        default=[
            "state",
            "status",
            "phase",
            "execution_state",
            "execution_status",
            "execution_phase",
            "current_phase",
            "current_state",
            "run_state",
            "run_status",
            "agent_state",
        ]
    )
    tracker_patterns: list[str] = Field(default=["fsm.*"])
    engine_patterns: list[str] = Field(default=["fsm.*"])
    breaker_patterns: list[str] = Field(default=["*CircuitBreaker", "*Breaker"])
    exclude: list[str] = Field(
        default=[
            ".git",
            ".hg",
            ".svn",
            ".venv",
            ".tox",
            ".nox",
            ".eggs",
            ".mypy_cache",
            ".ruff_cache",
            "__pycache__",
            "node_modules",
            "site-packages",
            "venv",
            "build",
            "dist",
        ]
    )
    include_tests: bool = True
    select: list[str] = Field(default=[])
    ignore: list[str] = Field(default=[])
    severity: dict[str, Severity] = Field(default={})
    max_file_bytes: int = Field(default=2_000_000, gt=0)
    baseline: str | None = None

    @field_validator("select", "ignore")
    @classmethod
    def _codes_exist(cls, codes: list[str]) -> list[str]:
        for code in codes:
            if not any(known.startswith(code) for known in CODES) or not code:
                raise ValueError(f"no rule is called {code!r}; the rules are {', '.join(CODES)}")
        return codes

    @field_validator("severity")
    @classmethod
    def _severity_codes_exist(cls, severity: dict[str, Severity]) -> dict[str, Severity]:
        for code in severity:
            if code not in CODES:
                raise ValueError(f"no rule is called {code!r}; the rules are {', '.join(CODES)}")
        return severity

    def enabled(self, code: str) -> bool:
        """Say whether a rule is on; a prefix such as ``FSM`` selects all of its rules.

        Args:
            code: The rule's code.

        Returns:
            True when its findings are to be reported.
        """
        if any(code.startswith(prefix) for prefix in self.ignore):
            return False
        return not self.select or any(code.startswith(prefix) for prefix in self.select)


def config_from(table: dict[str, Any], *, origin: str = "[tool.fsm.audit]") -> AuditConfig:
    """Check a configuration table.

    Args:
        table: The table as it stands in pyproject.toml; dashes in keys are read as underscores.
        origin: What to call the table in an error.

    Returns:
        The configuration, with the defaults for what the table leaves out.

    Raises:
        ConfigError: A key is unknown or a value has the wrong type; the text names each one.
    """
    try:
        return AuditConfig.model_validate({key.replace("-", "_"): value for key, value in table.items()})
    except ValidationError as error:
        lines = [_teach(dict(problem)) for problem in error.errors()]
        raise ConfigError(f"{origin} is not valid:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _teach(problem: dict[str, Any]) -> str:
    where = [str(part) for part in problem["loc"]]
    key = where[0]
    if problem["type"] == "extra_forbidden":
        known = list(AuditConfig.model_fields)
        close = difflib.get_close_matches(key, known, n=1)
        meant = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(known)}"
        return f"{key!r} is not a key of the audit; {meant}"
    if problem["type"] == "literal_error":
        return f"{'.'.join(where)} must be one of {', '.join(get_args(Severity))}, not {clipped(problem['input'])}"
    if problem["type"] == "value_error":
        return f"{key}: {problem['ctx']['error']}"
    example = {"include_tests": "true", "max_file_bytes": "2000000", "baseline": '".fsm-audit.json"'}
    shape = example.get(key, '["name", "another_name"]')
    if key == "severity":
        shape = '{ FSM002 = "warning" }'
    return (
        f"{'.'.join(where)}: {problem['msg']} (got {clipped(problem['input'])}); write it as {key} = {shape}"
    )


def load_config(start: Path) -> tuple[AuditConfig, Path]:
    """Find the nearest pyproject.toml at or above a path and read its audit table.

    Args:
        start: The first path that is audited.

    Returns:
        The configuration, and the project folder that paths are reported relative to: the one that
        holds pyproject.toml, or the current folder where there is none.

    Raises:
        ConfigError: The file is not TOML, or its audit table is not valid.
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
    """Read the audit table of one TOML file.

    Args:
        path: A pyproject.toml.

    Returns:
        The configuration; the defaults if the file has no ``[tool.fsm.audit]``.

    Raises:
        ConfigError: The file cannot be read, is not TOML, or its audit table is not valid.
    """
    try:
        raw = read_regular(str(path), MOST_BYTES + 1)
        if raw is None or len(raw) > MOST_BYTES:
            raise ConfigError(f"{path} must be a regular file of at most {MOST_BYTES} bytes")
        data: Any = tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{path} is not valid TOML for the audit: it is nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {str(error)[:300]}") from None
    for key in ("tool", "fsm", "audit"):
        data = data.get(key, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: [tool.fsm.audit] must be a table, but {key!r} is {clipped(data)}")
    return config_from(data, origin=f"{path} [tool.fsm.audit]")
