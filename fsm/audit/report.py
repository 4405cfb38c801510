"""The forms a result can be written in: text, JSON, SARIF and the annotations of GitHub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

from fsm.audit.model import AuditResult, Finding
from fsm.audit.rules import RULES

_SARIF_LEVELS: Final = {"error": "error", "warning": "warning", "note": "note"}
_GITHUB_LEVELS: Final = {"error": "error", "warning": "warning", "note": "notice"}


def as_text(result: AuditResult) -> str:
    """Write one line per finding, and a summary by rule."""
    lines = [f"{f.path}:{f.line}:{f.col}: {f.code} {f.message}" for f in result.findings]
    if lines:
        lines.append("")
    for code, count in result.by_rule().items():
        rule = RULES[code]
        lines.append(f"{code} {count:>6}  {rule.title}")
        lines.append(f"{'':15}{rule.hint}")
    return "\n".join([*lines, summary(result)])


def summary(result: AuditResult) -> str:
    """Say in one line what came out."""
    extras = [
        f"{count} {what}"
        for count, what in (
            (result.suppressed, "silenced by noqa"),
            (result.baselined, "known from the baseline"),
            (result.stale, "gone from the baseline (run --update-baseline)"),
            (len(result.skipped), "files skipped"),
        )
        if count
    ]
    return ", ".join([f"{len(result.findings)} findings in {result.files} files", *extras])


def as_json(result: AuditResult) -> str:
    """Write the result as JSON, for programs."""
    return json.dumps(result.to_dict(), indent=2, ensure_ascii=False)


def as_github(result: AuditResult) -> str:
    """Write workflow commands, which GitHub shows beside the lines of a pull request."""
    lines = [
        f"::{_GITHUB_LEVELS[f.severity]} file={_property(f.path)},line={f.line},col={f.col},"
        f"title={f.code} {_property(RULES[f.code].title)}::{_data(f.message)}"
        for f in result.findings
    ]
    return "\n".join([*lines, f"::notice title=fsm audit::{_data(summary(result))}"])


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def as_sarif(result: AuditResult) -> str:
    """Write SARIF 2.1.0, which code-scanning services read."""
    codes = list(RULES)
    log: dict[str, Any] = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "fsm audit", "rules": [_sarif_rule(code) for code in codes]}},
                "columnKind": "unicodeCodePoints",
                "results": [_sarif_result(finding, codes) for finding in result.findings],
                "invocations": [
                    {
                        "executionSuccessful": True,
                        "toolExecutionNotifications": [
                            {
                                "level": "warning",
                                "message": {"text": f"The file was skipped: {skipped.reason}"},
                                "locations": [_location(skipped.path, skipped.line, None)],
                            }
                            for skipped in result.skipped
                        ],
                    }
                ],
            }
        ],
    }
    return json.dumps(log, indent=2, ensure_ascii=False)


def _sarif_rule(code: str) -> dict[str, Any]:
    rule = RULES[code]
    return {
        "id": code,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        "help": {"text": rule.hint},
        "defaultConfiguration": {"level": _SARIF_LEVELS[rule.severity]},
    }


def _sarif_result(finding: Finding, codes: list[str]) -> dict[str, Any]:
    return {
        "ruleId": finding.code,
        "ruleIndex": codes.index(finding.code),
        "level": _SARIF_LEVELS[finding.severity],
        "message": {"text": finding.message},
        "locations": [_location(finding.path, finding.line, finding.col)],
        # The services match findings of two runs by this; a line number would change with every edit.
        "partialFingerprints": {"fsmAudit/v1": fingerprint(finding)},
    }


def _location(path: str, line: int, col: int | None) -> dict[str, Any]:
    region = {"startLine": line} if col is None else {"startLine": line, "startColumn": col}
    return {"physicalLocation": {"artifactLocation": {"uri": quote(path)}, "region": region}}


def fingerprint(finding: Finding) -> str:
    """Give a finding an identity that survives edits elsewhere in its file."""
    parts = (finding.code, finding.path, finding.symbol, snippet_hash(finding.snippet))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def snippet_hash(snippet: str) -> str:
    """Hash a source line so that reformatting its blanks changes nothing."""
    return hashlib.sha256("".join(snippet.split()).encode("utf-8", "backslashreplace")).hexdigest()[:16]


FORMATS: Final[dict[str, Callable[[AuditResult], str]]] = {
    "text": as_text,
    "json": as_json,
    "sarif": as_sarif,
    "github": as_github,
}
