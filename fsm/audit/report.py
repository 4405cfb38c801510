"""The forms a result can be written in."""

from __future__ import annotations

from fsm.audit.catalog import RULES
from fsm.audit.model import AuditResult


def as_text(result: AuditResult) -> str:
    """Write one line per finding, and a summary by rule.

    Args:
        result: A finished audit.

    Returns:
        Lines of the form ``path:line:col: CODE message``, and the summary after an empty line.
    """
    lines = [f"{f.path}:{f.line}:{f.col}: {f.code} {f.message}" for f in result.findings]
    if lines:
        lines.append("")
    for code, count in result.by_rule().items():
        lines.append(f"{code} {count:>6}  {RULES[code].title}. {RULES[code].hint}")
    return "\n".join([*lines, summary(result)])


def summary(result: AuditResult) -> str:
    """Say in one line what came out.

    Args:
        result: A finished audit.

    Returns:
        The number of files and findings, and what was silenced, known or skipped.
    """
    extras = [
        f"{count} {what}"
        for count, what in (
            (result.suppressed, "silenced by noqa"),
            (result.baselined, "known from the baseline"),
            (result.stale, "baseline entries gone"),
            (len(result.skipped), "files skipped"),
        )
        if count
    ]
    found = f"{len(result.findings)} findings in {result.files} files"
    return ", ".join([found, *extras]) + f" ({result.seconds:.1f} s)"
