"""The README's code runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support.places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tour_runs(tmp_path):
    """Every Python block of the README runs, one after another, in an empty folder."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) > 5
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_every_file_that_the_readme_names_exists():
    """A path that the README names is there."""
    named = re.findall(r"`((?:tests|fsm|diagrams)/[\w./]+)`", README) + re.findall(r"\]\(([\w./]+)\)", README)
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []
