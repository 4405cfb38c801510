"""What every store must do, as tests to inherit.

Whoever writes a store subclasses `StoreConformance` in a test module and says where the store is:

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def store_url(self, tmp_path):
            return f"sqlite:///{tmp_path}/conformance.db"

A store that `fsm.stores.open_store` does not know overrides the fixture `open_store` instead: it returns a function
that opens the place, each time anew. The suite knows the protocol (`fsm.stores.Store`) and nothing of the inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from fsm.core.journal import record_of
from fsm.lifecycles.execution import EXECUTION
from fsm.stores import Store, open_store
from fsm.testing.conformance.breaking import Breaking
from fsm.testing.conformance.keeping import Keeping
from fsm.testing.conformance.reading import Reading
from fsm.testing.conformance.steps import OTHER
from fsm.testing.conformance.writing import Writing


class StoreConformance(Writing, Reading, Breaking, Keeping):
    """The suite; subclass it, and give it a `store_url` or an `open_store` fixture."""

    @pytest.fixture
    def store_url(self) -> str:
        """Where the store is; a fresh place for every test."""
        raise NotImplementedError("override the fixture store_url (or open_store) of StoreConformance")

    @pytest.fixture
    def open_store(self, store_url: str) -> Callable[[], Store]:
        """A function that opens the place."""
        return lambda: open_store(store_url)

    @pytest.fixture
    def store(self, open_store: Callable[[], Store]) -> Iterator[Store]:
        """The open store, with both machines registered."""
        store = open_store()
        store.register(record_of(EXECUTION))
        store.register(record_of(OTHER))
        yield store
        store.close()
