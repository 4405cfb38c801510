"""The store in PostgreSQL: the same suite as every store, on a real server."""

from __future__ import annotations

import pytest

from fsm.testing.conformance.suite import StoreConformance


class TestPostgres(StoreConformance):
    store_url = pytest.fixture(lambda self, pg_url: pg_url, name="store_url")
