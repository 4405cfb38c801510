"""The pytest plugin: the options of the transition coverage."""

from __future__ import annotations

import pytest

from fsm.testing import coverage


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options of the transition coverage."""
    coverage.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Watch the machines if an option asks for it."""
    coverage.configure(config)
