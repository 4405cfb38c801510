"""The part of the stores' conformance suite about upkeep: deadlines in pages, what a worker owns, reports of loops."""

# ruff: noqa: S101, PLR2004 - these are tests, made of asserts and expected values

from __future__ import annotations

import pytest

from fsm.errors import StoreUnavailable
from fsm.stores import Store
from fsm.stores.base import BEAT_KEPT_S, MAX_BEATS, Beat
from fsm.testing.conformance.steps import birth, committed, move


def due_at(instant: float) -> str:
    """Return limits under which an execution that is born at 0 is due at an instant."""
    return f'{{"queue_s": {instant}, "total_s": null}}'


def beat(process: str = "p", loop: str = "sweeper", seen_at: float = 100.0, turns: int = 1) -> Beat:
    """Return a report."""
    return Beat(
        process,
        loop,
        "a worker",
        "host",
        7,
        True,
        turns,
        2,
        1,
        "KeyError: 'ü'",
        90.0,
        95.5,
        None,
        1.0,
        seen_at,
    )


class Keeping:
    """What a store gives a sweeper, and keeps of loops; see `fsm.testing.conformance.suite`."""

    def test_deadlines_come_in_pages(self, store: Store) -> None:
        """Pages of deadlines, each after the last row of the one before, are all that is due, longest overdue first."""
        steps = [birth(timeouts_json=due_at(float(1 + number // 3))) for number in range(12)]
        committed(store, *steps)
        expected = sorted((step.after.due_at or 0.0, step.after.identity.id) for step in steps)[:9]
        whole = store.due(3.5, 100)
        assert [(one.due_at, one.execution_id) for one in whole] == expected
        assert {(one.version, one.kind) for one in whole} == {(0, "queue")}
        for size in (1, 2, 9, 10):
            paged = last = store.due(3.5, size)
            while last:
                assert len(last) <= size
                last = store.due(3.5, size, (last[-1].due_at, last[-1].execution_id))
                paged = paged + last
            assert paged == whole, size
        assert store.due(3.5, 100) == whole, "what was looked at is found again"
        assert store.due(0.5, 100) == []

    def test_a_deadline_that_moved_is_in_its_new_place(self, store: Store) -> None:
        """A page shows deadlines as they are now: one that moved is neither in its old place nor left out."""
        early, late = birth(timeouts_json=due_at(1.0)), birth(timeouts_json=due_at(2.0))
        committed(store, early, late)
        started = move(early.after, "start")
        committed(store, started)
        assert [one.execution_id for one in store.due(2.5, 10)] == [late.after.identity.id]
        assert started.after.due_at is not None
        found = store.due(started.after.due_at, 1, (2.0, late.after.identity.id))
        assert [(one.execution_id, one.version) for one in found] == [(early.after.identity.id, 1)]
        committed(store, move(started.after, "fail"))
        assert [one.execution_id for one in store.due(1e9, 10)] == [late.after.identity.id]

    def test_the_nearest_deadline_after_an_instant(self, store: Store) -> None:
        """The nearest deadline is that of all, or of those after an instant; there may be none."""
        assert store.next_due() is None
        committed(store, *(birth(timeouts_json=due_at(float(at))) for at in (5, 3, 9, 3, 7)))
        assert store.next_due() == 3.0
        assert [store.next_due(after) for after in (2.9, 3.0, 5.0, 8.0, 9.0)] == [3.0, 5.0, 7.0, 9.0, None]

    def test_what_a_worker_owns_comes_in_pages(self, store: Store) -> None:
        """Pages of what a worker owns, by id, are all of it that has not ended."""
        births = [birth() for _ in range(7)]
        starts = [move(step.after, "start") for step in births]
        committed(store, *births, *starts, move(starts[2].after, "fail"))
        owned = [(one.after.identity.id, 1) for index, one in enumerate(starts) if index != 2]
        assert store.owned("worker_1", 100) == owned
        assert store.owned("worker_1", 2) == owned[:2]
        assert store.owned("worker_1", 2, owned[1][0]) == owned[2:4]
        assert store.owned("worker_1", 100, owned[-1][0]) == []
        assert store.owned("worker_2", 100) == []

    def test_a_depth_is_kept(self, store: Store) -> None:
        """How deep in its family an execution is comes back with its record."""
        parent = birth(depth=3)
        committed(store, parent)
        kept = store.load(parent.after.identity.id)
        assert kept is not None
        assert kept.identity.depth == 3

    def test_reports_take_the_place_of_earlier_ones(self, store: Store) -> None:
        """Of each loop of each process the last report is kept, as it was written."""
        assert store.beats() == []
        store.beat([])
        store.beat([beat(), beat(loop="lease"), beat(process="o")])
        store.beat([beat(seen_at=101.0, turns=5)])
        assert store.beats() == [
            beat(process="o"), beat(loop="lease"), beat(seen_at=101.0, turns=5),
        ]  # fmt: skip

    def test_old_reports_are_dropped(self, store: Store) -> None:
        """Reports that grow old are dropped, and so are the oldest beyond a number."""
        store.beat([beat(process="gone", seen_at=1.0)])
        store.beat([beat(process="young", seen_at=2.0 + BEAT_KEPT_S)])
        assert [one.process for one in store.beats()] == ["young"]
        first = 3.0 + BEAT_KEPT_S
        store.beat([beat(process=f"p{number:05}", seen_at=first + number) for number in range(MAX_BEATS)])
        kept = store.beats()
        assert len(kept) == MAX_BEATS
        assert "young" not in {one.process for one in kept}

    def test_a_store_says_what_it_is(self, store: Store) -> None:
        """A store names its place, and says whether a call ever waits."""
        assert isinstance(store.url, str)
        assert store.url
        assert store.instant in {True, False}

    def test_a_whole_store_has_no_damage(self, store: Store) -> None:
        """Where nothing is damaged no damage is found."""
        committed(store, birth())
        assert store.damaged() == []
        assert store.inspect() == []

    def test_a_store_knows_its_own_version(self, store: Store) -> None:
        """The version of a store's layout is a number, 0 where nothing is ever migrated."""
        assert store.schema_version() >= 0

    def test_a_closed_store_keeps_nothing_up(self, store: Store) -> None:
        """A closed store says so to sweepers and to loops that report."""
        store.close()
        for call in (
            lambda: store.due(1.0, 1),
            store.beats,
            lambda: store.beat([beat()]),
            store.schema_version,
        ):
            with pytest.raises(StoreUnavailable):
                call()
