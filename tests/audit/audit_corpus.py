"""Reads the corpus and measures the rules on it.

A corpus file holds snippets under ``=== bad TITLE`` and ``=== good TITLE``. ``--- PATH`` starts a file of a
snippet with several; a line that ends with ``# >>`` is one that the rule must report. Snippets are text, not
modules, so that the audit of this repository does not report its own examples.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from fsm.audit import AuditConfig, audit

FOLDER = Path(__file__).parent / "corpus"
RULES = [f"FSM00{number}" for number in range(1, 9)]
NEWER = [f"FSM0{number}" for number in range(10, 18)]
MARK = "# >>"


@dataclass(frozen=True)
class Snippet:
    code: str
    kind: str
    title: str
    files: dict[str, str]

    def expected(self) -> set[tuple[str, int]]:
        return {
            (path, number)
            for path, text in self.files.items()
            for number, line in enumerate(text.splitlines(), start=1)
            if line.rstrip().endswith(MARK)
        }

    def reported(self) -> set[tuple[str, int]]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for path, text in self.files.items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8")
            result = audit([folder], AuditConfig(select=[self.code]), project=folder)
        assert not result.skipped, result.skipped
        return {(finding.path, finding.line) for finding in result.findings}


@dataclass
class Score:
    bad: int = 0
    good: int = 0
    hits: int = 0
    misses: list[str] = field(default_factory=list)
    extras: list[str] = field(default_factory=list)

    @property
    def recall(self) -> float:
        return self.hits / max(1, self.hits + len(self.misses))

    @property
    def precision(self) -> float:
        return self.hits / max(1, self.hits + len(self.extras))


def snippets(code: str) -> list[Snippet]:
    found: list[Snippet] = []
    for block in (FOLDER / f"{code}.txt").read_text(encoding="utf-8").split("=== ")[1:]:
        head, _, body = block.partition("\n")
        kind, _, title = head.partition(" ")
        files = {"app.py": body}
        if body.startswith("--- "):
            parts = [part.partition("\n") for part in body.split("--- ")[1:]]
            files = {path.strip(): text for path, _, text in parts}
        found.append(Snippet(code, kind, title, files))
    return found


def score(code: str) -> Score:
    result = Score()
    for snippet in snippets(code):
        expected, reported = snippet.expected(), snippet.reported()
        result.bad += snippet.kind == "bad"
        result.good += snippet.kind == "good"
        result.hits += len(expected & reported)
        result.misses += [f"{snippet.title} {place}" for place in sorted(expected - reported)]
        result.extras += [f"{snippet.title} {place}" for place in sorted(reported - expected)]
    return result


def main() -> None:
    print(f"{'rule':8}{'bad':>5}{'good':>6}{'recall':>9}{'precision':>11}")
    for code in sys.argv[1:] or [*RULES, *NEWER]:
        measured = score(code)
        print(f"{code:8}{measured.bad:5}{measured.good:6}{measured.recall:9.1%}{measured.precision:11.1%}")
        for line in measured.misses:
            print(f"    missed  {line}")
        for line in measured.extras:
            print(f"    extra   {line}")


if __name__ == "__main__":
    main()
