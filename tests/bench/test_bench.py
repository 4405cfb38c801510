"""The benches run: nobody would notice for months that one does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent


@pytest.mark.slow
def test_the_engines_bench_runs(tmp_path):
    """`--quick` measures everything once, and what is counted in virtual time is as it must be."""
    command = [sys.executable, str(BENCH / "engine.py"), "--quick", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) > 30
    assert all(row["value"] > 0 for row in rows if "own" not in row["what"])
    virtual = [row for row in rows if row["unit"] == "s, virtual"]
    assert [row["met"] for row in virtual] == [None, True, True]
    assert list(tmp_path.iterdir()) == []
