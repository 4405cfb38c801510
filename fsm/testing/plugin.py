"""The pytest plugin: the fixtures `fsm_clock` and `fsm_tracker`, and the options of the transition coverage.

pytest loads this module in every run, so what it needs beyond pytest is imported by the fixtures themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fsm.clock import ManualClock
    from fsm.tracker.tracker import Tracker

pytest.register_assert_rewrite("fsm.testing.conformance")


@pytest.fixture
def fsm_clock() -> ManualClock:
    """A clock that goes on only when the test says so."""
    from fsm.clock import ManualClock  # noqa: PLC0415 - only tests that ask for it pay for it

    return ManualClock()


@pytest.fixture
def fsm_tracker(fsm_clock: ManualClock) -> Iterator[Tracker]:
    """A fresh tracker in memory on the test's clock; `get_tracker()` returns it while the test runs."""
    from fsm.tracker.process import fresh_tracker  # noqa: PLC0415 - as above

    with fresh_tracker(clock=fsm_clock) as fresh:
        yield fresh


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options of the transition coverage (`fsm.testing.coverage`)."""
    group = parser.getgroup("fsm", "agent-fsm: transition coverage")
    group.addoption("--fsm-cover", action="store_true", help="report which arrows of the machines were taken")
    group.addoption(
        "--fsm-cover-machine",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="cover this machine instead of the two shipped ones (several times for several)",
    )
    group.addoption("--fsm-cover-fail", action="store_true", help="fail if an arrow was not taken")
    group.addoption("--fsm-cover-draw", metavar="DIR", help="write drawings there, missing arrows in red")


def pytest_configure(config: pytest.Config) -> None:
    """Watch the machines if an option asks for it."""
    config.addinivalue_line("markers", "fsm_no_cover: what this test takes does not count for --fsm-cover")
    if any(config.getoption(f"--fsm-cover{more}") for more in ("", "-machine", "-fail", "-draw")):
        from fsm.testing import coverage  # noqa: PLC0415 - as above

        coverage.configure(config)
