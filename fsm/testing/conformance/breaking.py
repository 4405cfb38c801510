"""The part of the conformance suite about breakers: rows, their journal, and how much of it is kept."""

# ruff: noqa: S101 - these are tests, made of asserts

from __future__ import annotations

import pytest

from fsm.core.journal import record_of
from fsm.errors import StoreUnavailable
from fsm.lifecycles.breaker import BREAKER
from fsm.stores import Store
from fsm.stores.breakers import BREAKER_LINES, LAST, BreakerEntry, BreakerRow, BreakerStore


def _change(key: str, version: int) -> tuple[BreakerRow, BreakerEntry]:
    """Return the n-th change of a breaker that is held open and reset in turn, and its line of the journal."""
    event, before, after = (
        ("force_open", "closed", "forced_open") if version % 2 else ("reset", "forced_open", "closed")
    )
    row = BreakerRow(key, after, version, version + 1, float(version))
    return row, BreakerEntry(
        0, key, version, event, before, after, version + 1, float(version), "ada", f"no {version}"
    )


class Breaking:
    """What a store that breakers are shared over must do; a store that keeps none is skipped."""

    @pytest.fixture
    def shared(self, store: Store) -> BreakerStore:
        """The store, with the breakers' machine registered."""
        if not isinstance(store, BreakerStore):
            pytest.skip("this store keeps no breakers")
        store.register(record_of(BREAKER))
        return store

    def _write(self, shared: BreakerStore, key: str, *versions: int) -> None:
        for version in versions:
            row, entry = _change(key, version)
            assert shared.breaker_swap(BREAKER.content_hash, version - 1, row, entry) is True

    def test_a_breakers_row_is_swapped_with_its_line(self, shared: BreakerStore) -> None:
        """A row is written with its line of the journal, on the expected version only; a note has no line."""
        assert shared.breaker_load("k") is None
        assert (shared.breaker_position(), shared.breaker_list()) == (0, [])
        row, entry = _change("k", 1)
        assert shared.breaker_swap(BREAKER.content_hash, 7, row._replace(version=8), entry) is False
        assert shared.breaker_swap(BREAKER.content_hash, 0, row, entry) is True
        assert shared.breaker_swap(BREAKER.content_hash, 0, row, entry) is False
        noted = row._replace(version=2, probes=(("p", 8.5),), since=1.0, until=2.5)
        assert shared.breaker_swap(BREAKER.content_hash, 1, noted, None) is True
        assert shared.breaker_load("k") == noted
        assert shared.breaker_list() == [noted]
        assert shared.breaker_changes(0, 10) == [entry._replace(position=1)]

    def test_a_breakers_journal_is_read_in_both_directions(self, shared: BreakerStore) -> None:
        """Lines come oldest first: the first ones after a position, or the last ones before one, of one key or all."""
        for version in range(1, 6):
            self._write(shared, "a", version)
            self._write(shared, "b", version)

        def read(*arguments: int | str | None) -> list[tuple[str, int]]:
            found = shared.breaker_changes(*arguments)  # type: ignore[arg-type]
            assert [one.position for one in found] == sorted(one.position for one in found)
            return [(one.key, one.version) for one in found]

        assert read(0, 3) == [("a", 1), ("b", 1), ("a", 2)]
        assert read(0, 2, None, LAST) == [("a", 5), ("b", 5)]
        assert read(0, 2, "a", LAST) == [("a", 4), ("a", 5)]
        assert read(3, 2, "b") == [("b", 2), ("b", 3)]
        assert read(3, 2, "b", 9) == [("b", 3), ("b", 4)]
        assert read(0, 10, "c", LAST) == read(10, 5) == read(0, 5, None, 1) == []

    def test_a_breakers_journal_is_bounded(self, shared: BreakerStore) -> None:
        """The newest lines of each key are kept, others' lines are untouched, and no position is given out twice."""
        self._write(shared, "quiet", 1)
        self._write(shared, "busy", *range(1, BREAKER_LINES + 6))
        assert shared.breaker_position() == BREAKER_LINES + 6
        kept = shared.breaker_changes(0, 2 * BREAKER_LINES)
        assert [one.version for one in kept] == [1, *range(6, BREAKER_LINES + 6)]
        assert [one.position for one in kept] == [1, *range(7, BREAKER_LINES + 7)]
        self._write(shared, "quiet", 2)
        assert shared.breaker_changes(BREAKER_LINES + 6, 5)[0].position == BREAKER_LINES + 7

    def test_a_closed_store_of_breakers_says_so(self, shared: BreakerStore, store: Store) -> None:
        """Whatever is asked of a closed store about breakers is answered with `StoreUnavailable`."""
        store.close()
        for call in (
            lambda: shared.breaker_load("k"),
            lambda: shared.breaker_swap(BREAKER.content_hash, 0, *_change("k", 1)),
            shared.breaker_list,
            lambda: shared.breaker_changes(0, 1),
            lambda: shared.breaker_changes(0, 1, "k", LAST),
            shared.breaker_position,
        ):
            with pytest.raises(StoreUnavailable):
                call()
