"""Where things lie: the checkout (or the copy of it that holds the tests), and the package that is tested."""

from __future__ import annotations

from pathlib import Path

import fsm

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the tests, README.md and the drawings."""
PACKAGE = Path(fsm.__file__).resolve().parent
"""The package, in the checkout or wherever it was installed."""
SAMPLE = PACKAGE / "samples" / "trajectories.jsonl"
