"""The words of the audit: a finding, a skipped file, and the result of one run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One place where execution state is kept, or made, outside the one registry.

    The baseline hashes the snippet. A ``noqa`` may stand on any line up to ``end_line``. ``keeper`` is the class that
    the place stands in, where such a class may do what others may not.
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
    """A file that was not audited, and why."""

    path: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True, order=True)
class Owner:
    """A class that keeps execution state, for the map: what it keeps, why it counts, and the owners that it uses."""

    symbol: str
    path: str
    line: int
    role: str
    keeps: tuple[str, ...] = ()
    why: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Construction:
    """Who constructs a class that keeps execution state, and whether it happens inside the class's factory."""

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
    """What one run found: ``stale`` baseline entries match nothing, ``cached`` files were not parsed."""

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
                    **{name: getattr(f, name) for name in ("path", "line")},
                    "column": f.col,
                    **{
                        name: getattr(f, name)
                        for name in ("code", "severity", "symbol", "message", "snippet")
                    },
                }
                for f in self.findings
            ],
            "skipped": [{"path": s.path, "line": s.line, "reason": s.reason} for s in self.skipped],
        }
