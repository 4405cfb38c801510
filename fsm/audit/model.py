"""The words of the audit: a finding, a skipped file, and the result of one run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One place where execution state is kept, or made, outside the one registry.

    Attributes:
        path: The file, relative to the project, with forward slashes.
        line: The line, counted from 1.
        col: The column, counted from 1.
        code: The rule, such as ``FSM001``.
        message: What was found, in one sentence.
        symbol: The class or function that encloses it, or ``<module>``.
        severity: ``error``, ``warning`` or ``note``.
        snippet: The source line, stripped, which the baseline hashes.
        end_line: The last line of the statement, where a ``noqa`` may stand as well.
        keeper: The class that it stands in, where such a class may do what others may not.
    """

    path: str
    line: int
    col: int
    code: str
    message: str
    symbol: str = "<module>"
    severity: str = "error"
    snippet: str = ""
    end_line: int = 0
    keeper: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Skipped:
    """A file that was not audited, and why.

    Attributes:
        path: The file, relative to the project.
        line: The line the reason points at, or 1.
        reason: Why the file was not audited.
    """

    path: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True, order=True)
class Owner:
    """A class that keeps execution state, for the map of the code base.

    Attributes:
        symbol: The class's dotted name.
        path: The file that defines it.
        line: The line of its definition.
        role: ``tracker``, ``engine``, ``breaker``, ``record``, ``enum`` or ``shared``.
        keeps: The attributes that hold the state.
        why: The families of evidence, a sentence each.
        uses: Symbols of the owners that it inherits, constructs or keeps.
    """

    symbol: str
    path: str
    line: int
    role: str
    keeps: tuple[str, ...] = ()
    why: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Construction:
    """Who constructs a class that keeps execution state.

    Attributes:
        owner: The constructed class's dotted name.
        by: The dotted name of the function, class or module that constructs it.
        path: The file of the construction.
        line: Its line.
        allowed: Whether it happens inside the class's factory.
    """

    owner: str
    by: str
    path: str
    line: int
    allowed: bool
    col: int = 1
    end: int = 0
    scope: str = ""
    how: str = "is constructed"


@dataclass(slots=True)
class AuditResult:
    """What one run found.

    Attributes:
        findings: The findings that count, in the order of the files.
        skipped: The files that were not audited, each with its reason.
        files: How many files were looked at.
        suppressed: How many findings a ``noqa`` silenced.
        baselined: How many findings the baseline already knew.
        stale: Baseline entries that no longer match anything.
        owners: The classes that keep execution state.
        constructions: Who constructs them.
        cached: How many files were not read again, since the cache knew their content.
        seconds: How long it took.
    """

    findings: list[Finding] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    files: int = 0
    suppressed: int = 0
    baselined: int = 0
    stale: int = 0
    owners: list[Owner] = field(default_factory=list)
    constructions: list[Construction] = field(default_factory=list)
    cached: int = 0
    seconds: float = 0.0

    def by_rule(self) -> dict[str, int]:
        """Count the findings of each rule."""
        return dict(sorted(Counter(finding.code for finding in self.findings).items()))

    def to_dict(self) -> dict[str, Any]:
        """Describe the result as plain data, which is also the documented JSON form."""
        return {
            "files": self.files,
            "seconds": round(self.seconds, 3),
            "summary": self.by_rule(),
            "suppressed": self.suppressed,
            "baselined": self.baselined,
            "stale_baseline_entries": self.stale,
            "findings": [
                {
                    "path": f.path,
                    "line": f.line,
                    "column": f.col,
                    "code": f.code,
                    "severity": f.severity,
                    "symbol": f.symbol,
                    "message": f.message,
                    "snippet": f.snippet,
                }
                for f in self.findings
            ],
            "skipped": [{"path": s.path, "line": s.line, "reason": s.reason} for s in self.skipped],
        }
