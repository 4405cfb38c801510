"""Known findings, and the ratchet that only lets their number shrink.

An entry is keyed by rule, path, symbol and a hash of the source line, so edits elsewhere in a file do not
wake it. Several equal findings share an entry with a count.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Final

from fsm.audit.errors import BaselineError, clipped
from fsm.audit.files import read_regular
from fsm.audit.model import AuditResult, Finding
from fsm.audit.report import snippet_hash

Key = tuple[str, str, str, str]
_VERSION: Final = 1
MOST_BYTES: Final = 64_000_000
"""The size above which a file is taken for no baseline."""
_FIELDS: Final = ("rule", "path", "symbol", "snippet")


def key_of(finding: Finding) -> Key:
    """Give the identity under which a finding is kept."""
    return (finding.code, finding.path, finding.symbol, snippet_hash(finding.snippet))


def read_baseline(path: Path) -> Counter[Key]:
    """Read a baseline.

    Raises:
        BaselineError: The file is missing, or is not a baseline.
    """
    try:
        raw = read_regular(str(path), MOST_BYTES + 1)
        if raw is None or len(raw) > MOST_BYTES:
            raise BaselineError(
                f"{path} is no regular file of at most {MOST_BYTES} bytes; write a new baseline"
            )
        data: Any = json.loads(raw.decode("utf-8"))
        if data["version"] != _VERSION:
            raise BaselineError(f"{path} has version {data['version']!r}; this fsm writes version {_VERSION}")
        known: Counter[Key] = Counter()
        for entry in data["findings"]:
            rule, where, symbol, snippet = (str(entry[name]) for name in _FIELDS)
            count = entry["count"]
            if not isinstance(count, int) or count < 0:
                raise ValueError(f"a count must be a number of findings, not {count!r}")  # noqa: TRY301 # caught below with the others
            known[rule, where, symbol, snippet] += count
    except FileNotFoundError:
        raise BaselineError(f"the baseline {path} does not exist; write it with --update-baseline") from None
    except OSError as error:
        raise BaselineError(f"the baseline {path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise BaselineError(
            f"{path} is nested too deeply for a baseline of fsm audit; write a new one"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise BaselineError(
            f"{path} is not a baseline of fsm audit ({clipped(error)}); write a new one"
        ) from None
    return known


def apply_baseline(result: AuditResult, known: Counter[Key]) -> None:
    """Take the known findings out of a result; what remains is growth."""
    left = known.copy()
    fresh: list[Finding] = []
    for finding in result.findings:
        key = key_of(finding)
        if left[key] > 0:
            left[key] -= 1
        else:
            fresh.append(finding)
    result.baselined = len(result.findings) - len(fresh)
    result.findings = fresh
    result.stale = sum(left.values())


def write_baseline(path: Path, findings: list[Finding], *, allow_growth: bool = False) -> int:
    """Write the findings as the new baseline.

    Raises:
        BaselineError: The baseline exists and would grow, or the file cannot be written.
    """
    found = Counter(key_of(finding) for finding in findings)
    if path.exists() and not allow_growth:
        grown = found - read_baseline(path)
        if grown:
            rule, where, symbol, _ = min(grown)
            raise BaselineError(
                f"the baseline would grow by {grown.total()} findings, the first is {rule} in {where} "
                f"({symbol}); fix them, or accept them with --allow-growth"
            )
    entries = [
        dict(zip(_FIELDS, key, strict=True)) | {"count": count} for key, count in sorted(found.items())
    ]
    text = json.dumps({"version": _VERSION, "findings": entries}, indent=1, ensure_ascii=False) + "\n"
    # A half-written baseline would wake every finding, so the new one appears in one step.
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise BaselineError(f"the baseline {path} cannot be written: {error.strerror}") from None
    return found.total()
