"""`# noqa: FSM001` comments: which findings they silence, and which of them silence nothing."""

from __future__ import annotations

import io
import re
import tokenize
from dataclasses import dataclass, field
from typing import Final

from fsm.audit.config import AuditConfig
from fsm.audit.model import Finding

UNUSED: Final = "FSM100"
_NOQA: Final = re.compile(r"#\s*noqa\b(?P<codes>\s*:\s*[A-Z]+[0-9]+(?:[\s,]+[A-Z]+[0-9]+)*)?", re.IGNORECASE)
_LONGEST: Final = 200
"""Lines of a statement on which its comment may stand."""
_CODE: Final = re.compile(r"[A-Z]+[0-9]+")


@dataclass(slots=True)
class _Comment:
    """The codes of one comment; none stand for all rules."""

    col: int
    codes: list[str]
    used: set[str] = field(default_factory=set)


def apply_noqa(
    text: str, findings: list[Finding], config: AuditConfig, shown: str
) -> tuple[list[Finding], int]:
    """Take out the findings that a comment silences and report the comments that silence nothing."""
    lowered = text.lower()
    if "noqa" not in lowered:
        return findings, 0
    lines = text.split("\n")
    near = {
        line for f in findings for line in range(f.line, min(f.end_line, f.line + _LONGEST, len(lines)) + 1)
    }
    if "fsm" not in lowered and not any("noqa" in lines[line - 1].lower() for line in near):
        # To read comments takes as long as to parse; most of them are other tools' business.
        return findings, 0
    comments = _comments(text)
    remaining = [finding for finding in findings if not _silenced(finding, comments)]
    silenced = len(findings) - len(remaining)
    if config.enabled(UNUSED):
        for line, comment in sorted(comments.items()):
            remaining.extend(_unused(line, comment, config, shown, lines))
    return remaining, silenced


def _silenced(finding: Finding, comments: dict[int, _Comment]) -> bool:
    # A long statement may carry its comment on any of its lines; the first one wins.
    for line in range(finding.line, min(finding.end_line, finding.line + _LONGEST) + 1):
        comment = comments.get(line)
        if comment is not None and (not comment.codes or finding.code in comment.codes):
            comment.used.add(finding.code)
            return True
    return False


def _unused(line: int, comment: _Comment, config: AuditConfig, shown: str, lines: list[str]) -> list[Finding]:
    found: list[Finding] = []
    for code in comment.codes:
        if code.startswith("FSM") and code != UNUSED and code not in comment.used and config.enabled(code):
            message = f"noqa: {code} silences nothing on this line; remove it"
            snippet = lines[line - 1].strip()[:200] if line <= len(lines) else ""
            found.append(
                Finding(shown, line, comment.col + 1, UNUSED, message, snippet=snippet, end_line=line)
            )
    # The comment may say that it is kept on purpose, by naming this rule as well.
    return [] if UNUSED in comment.codes else found


def _comments(text: str) -> dict[int, _Comment]:
    """Read the comments with the tokenizer: the same words in a string are not a comment."""
    comments: dict[int, _Comment] = {}
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type != tokenize.COMMENT:
                continue
            match = _NOQA.search(token.string)
            if match:
                codes = _CODE.findall((match["codes"] or "").upper())
                comments[token.start[0]] = _Comment(token.start[1] + match.start(), codes)
    except (tokenize.TokenError, SyntaxError):
        # What was read so far still counts; the file itself was parsed by then.
        pass
    return comments
