"""One list of guarantees: README's table, the checkers and the planted bugs name what is in it, and nothing else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from fsm.simulation.guarantees import GUARANTEES
from fsm.testing.machine.tracked import _FORBIDDEN
from tests.testing.test_planted_bugs import BUGS

ROOT = Path(__file__).resolve().parents[2]
RAISES = {"Broken", "broken"}


def checked() -> set[str]:
    """Return every guarantee that a checker names."""
    named = set(_FORBIDDEN.values())
    for file in (*(ROOT / "fsm/simulation").glob("*.py"), *(ROOT / "fsm/testing").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISES:
                first = node.args[0]
                assert isinstance(first, (ast.Constant, ast.Subscript)), f"{file}:{node.lineno}"
                if isinstance(first, ast.Constant):
                    named.add(first.value)
    return named


def promised() -> dict[str, tuple[str, list[str]]]:
    """Return README's table: for each guarantee its sentence and the tests that show it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| guarantee | what holds | shown by |") :].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]
    return {name: (sentence, re.findall(r"`(.+?)`", shown)) for name, sentence, shown in rows}


def test_checkers_and_planted_bugs_name_what_is_in_the_list():
    """Whatever a checker finds broken, or a bug breaks, is in the list of guarantees."""
    assert checked() <= GUARANTEES.keys()
    assert {name for bug in BUGS for name in bug.guarantees} <= GUARANTEES.keys()


def test_the_readme_promises_what_is_in_the_list():
    """README says each guarantee in the words of the list, and names tests that exist."""
    for name, (sentence, tests) in promised().items():
        assert GUARANTEES.get(name) == sentence, name
        assert tests
        assert [test for test in tests if not (ROOT / test).is_file()] == []


def test_nothing_in_the_list_is_an_empty_promise():
    """Every guarantee in the list is checked, broken by a planted bug, or shown by tests that README names."""
    broken = {name for bug in BUGS for name in bug.guarantees}
    assert GUARANTEES.keys() - checked() - broken - promised().keys() == set()
