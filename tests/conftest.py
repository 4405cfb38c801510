"""What all tests share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from fsm.core.timeline import Mark
from fsm.testing import ManualClock, fresh_tracker
from fsm.testing.conformance.steps import birth, committed, move, walk

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "fsm" / "samples" / "trajectories.jsonl"

pytest.register_assert_rewrite("tests.support.engine_tools")
# A commit is green or red, the same for everybody: what is drawn depends on the test alone. To look for what nobody
# has seen yet, set FSM_RANDOM_TIMES to 20, say: everything is drawn anew then, and the engine's programs 20 times.
settings.register_profile("default", deadline=None, derandomize="FSM_RANDOM_TIMES" not in os.environ)
# Enough to catch a planted bug, the same in every run, and no time spent on making its example small.
settings.register_profile(
    "mutants", deadline=None, derandomize=True, database=None, max_examples=30, phases=[Phase.generate]
)
settings.load_profile("default")


@pytest.fixture(scope="session")
def traces() -> list[Path]:
    """The recorded trajectories beside the checkout; CI sets FSM_REQUIRE_TRACES where they must not be missing."""
    files = sorted((ROOT.parent / "shared" / "traces").glob("*.jsonl"))
    if not files:
        if os.environ.get("FSM_REQUIRE_TRACES"):
            pytest.fail("the recorded trajectories are missing, and this run must have them")
        pytest.skip("the recorded trajectories are not beside this checkout")
    return files


@pytest.fixture(params=["memory", "simulated"])
def play(request):
    """Run a scenario in virtual time, on a store that commits at once or on one that takes its time."""
    from tests.support import engine_tools  # noqa: PLC0415 - the engine, for those who need it

    return {"memory": engine_tools.in_memory, "simulated": engine_tools.simulated}[request.param]


@pytest.fixture
def clock(fsm_clock):
    """The clock of the plugin, under a name that modules can override."""
    return fsm_clock


@pytest.fixture
def tracker(clock):
    """A fresh tracker in memory on the test's clock."""
    with fresh_tracker(clock=clock) as fresh:
        yield fresh


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path}/fsm.db"


@pytest.fixture(scope="session")
def written_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of `written`, made once; tests get copies."""
    file = tmp_path_factory.mktemp("written") / "fsm.db"
    with fresh_tracker(f"sqlite:///{file}") as tracker:
        first = birth(id="open")
        started = move(first.after, "start", key="k")
        committed(tracker._registry.store, first, started, *walk(birth(id="ended"), "cancel"))
        tracker._registry.store.timeline_mark(Mark(1.0, 1.0, 1.0))
    return file


@pytest.fixture
def written(url: str, written_once: Path) -> Path:
    """A SQLite file with an open execution, `open`, that used the key k, and an ended one, `ended`."""
    return Path(shutil.copy(written_once, url.removeprefix("sqlite:///")))


@pytest.fixture(params=["memory://", "sqlite"])
def either(request, url):
    """A fresh tracker on each kind of store."""
    with fresh_tracker(url if request.param == "sqlite" else request.param, clock=ManualClock()) as fresh:
        yield fresh
