"""A page of a category asks the store for machines that are new, and for no document twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from fsm.machine.machine import Machine
from fsm.testing import fresh_tracker
from tests.support.tracker_tools import ERRAND

USER: dict[str, Any] = {"user_id": "ada", "thread_id": "t"}


@pytest.fixture
def read(either, monkeypatch):
    """How often the documents were read from the store, and how often one was parsed."""
    count: Counter[str] = Counter()
    store, parse = either._registry.store, Machine.from_json
    machines = store.machines

    def counted() -> dict[str, str]:
        count["machines"] += 1
        return machines()

    def parsed(document: str) -> Machine:
        count["parsed"] += 1
        return parse(document)

    monkeypatch.setattr(store, "machines", counted)
    monkeypatch.setattr(Machine, "from_json", parsed)
    return count


def test_pages_of_a_category_read_the_machines_once(either, read):
    """However many pages a category has, on whichever face, the documents of the machines are read once."""
    ids = [either.create("agent", **USER).id for _ in range(12)]
    seen: list[str] = []
    while page := either.find(category="pending", limit=2, after=seen[-1] if seen else None):
        seen += [one.id for one in page]
    assert seen == ids
    assert len(asyncio.run(either.aio.find(category="pending"))) == len(ids)
    assert len(either.for_user("ada").find(category="pending", state="created")) == len(ids)
    assert read["machines"] <= 1
    assert read["parsed"] == 0


def test_a_machine_of_another_process_is_seen_by_the_next_page(url, monkeypatch):
    """A machine that another process adds between two pages is read then, once, and its executions are found."""
    with fresh_tracker(url) as tracker:
        first = tracker.create("agent", **USER)
        assert [one.id for one in tracker.find(category="waiting")] == []
        assert [one.id for one in tracker.find(category="pending", limit=1)] == [first.id]
        with fresh_tracker(url, machines=[ERRAND]) as other:
            errand = other.create("agent", machine="errand", **USER)
            other.fire(errand.id, "leave")
        assert [one.id for one in tracker.find(category="waiting")] == [errand.id]
        assert [one.id for one in tracker.find(state="out")] == [errand.id]
        monkeypatch.setattr(tracker._registry.store, "machines", lambda: pytest.fail("it is known"))
        assert [one.id for one in tracker.find(category="waiting")] == [errand.id]
        assert {machine.name for machine in tracker.machines()} == {"execution", "errand"}
