"""The pytest plugin: the fixtures `clock` and `tracker`, for whoever has the package installed.

pytest loads this module in every run, so what it needs beyond pytest is imported by the fixtures themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fsm.clock import ManualClock
    from fsm.tracker import Tracker

pytest.register_assert_rewrite("fsm.testing.reading", "fsm.testing.steps", "fsm.testing.writing")


@pytest.fixture
def clock() -> ManualClock:
    """A clock that goes on only when the test says so."""
    from fsm.clock import ManualClock  # noqa: PLC0415 - only tests that ask for it pay for it

    return ManualClock()


@pytest.fixture
def tracker(clock: ManualClock) -> Iterator[Tracker]:
    """A fresh tracker in memory on the test's clock; `get_tracker()` returns it as long as the test runs."""
    from fsm.tracker import fresh_tracker  # noqa: PLC0415 - as above

    with fresh_tracker(clock=clock) as fresh:
        yield fresh
