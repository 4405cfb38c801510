"""Every store is held to the same suite, and both do the same with the same program."""

from __future__ import annotations

import pytest

from fsm.testing.conformance import StoreConformance


class TestMemory(StoreConformance):
    store_url = pytest.fixture(lambda self: "memory://", name="store_url")


class TestSqlite(StoreConformance):
    store_url = pytest.fixture(
        lambda self, tmp_path: f"sqlite:///{tmp_path}/conformance.db", name="store_url"
    )
