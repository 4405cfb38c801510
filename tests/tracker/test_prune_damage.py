"""An archive that cannot show one execution keeps that one, and goes on with the others."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from fsm import StoreUnavailable
from fsm.testing import ManualClock, fresh_tracker
from fsm.tracker import retention
from fsm.tracker.retention import Retention, would_prune

USER: dict[str, Any] = {"user_id": "ada", "thread_id": "t"}
DAMAGE = {
    "the record": "UPDATE executions SET tools = '[' WHERE id = ?",
    "its journal": "UPDATE journal SET payload = '[' WHERE execution_id = ? AND event = 'cancel'",
    "its links": "UPDATE journal SET previous = 0 WHERE execution_id = ? AND event = 'cancel'",
}
POLICIES: list[dict[str, Any]] = [{"older_than_s": 0.0}, {"keep": 0}, {"older_than_s": 0.0, "keep": 0}]


def ended(tracker: Any, count: int) -> list[str]:
    ids = [tracker.create("agent", **USER).id for _ in range(count)]
    for one in ids:
        tracker.fire(one, "cancel")
    return ids


def tamper(tracker: Any, sql: str, *ids: str) -> None:
    """Change the file behind its law."""
    with closing(sqlite3.connect(tracker.store_url.removeprefix("sqlite:///"))) as file:
        for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            file.execute(f"DROP TRIGGER {name}")
        for one in ids:
            file.execute(sql, (one,))
        file.commit()


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_execution_is_kept_and_the_others_go(url, monkeypatch, caplog, damage, policy):
    """More damaged executions than a batch holds, the oldest of all, are set aside and counted; all others go."""
    monkeypatch.setattr(retention, "BATCH", 2)
    with fresh_tracker(url) as tracker:
        ids = ended(tracker, 9)
        bad, good = [*ids[:3], ids[6]], [*ids[3:6], *ids[7:]]
        tamper(tracker, DAMAGE[damage], *bad)
        archived: list[str] = []
        assert tracker.prune(archive=lambda record: archived.append(record["execution"]["id"]), **policy) == 5
        assert archived == good
        aside = [one for one in tracker.health().aside if one.event == retention.ARCHIVE]
        assert [one.execution_id for one in aside] == bad
        assert "4 ended executions cannot be shown" in caplog.text
        store = tracker._registry.store
        assert store.ended_count() == len(bad)
        assert store.ended(float("inf"), 100) == bad
        assert tracker.prune(archive=archived.append, **policy) == 0
        assert tracker.prune(**policy) == len(bad), "without an archive nothing has to be shown"


def test_what_is_kept_counts_what_cannot_be_shown(url):
    """Of what is kept by number, executions that cannot be shown are a part."""
    with fresh_tracker(url) as tracker:
        ids = ended(tracker, 6)
        tamper(tracker, DAMAGE["the record"], *ids[:2])
        archived: list[Any] = []
        assert tracker.prune(keep=3, archive=archived.append) == 3
        assert [record["execution"]["id"] for record in archived] == ids[2:5]
        assert tracker.prune(keep=1, archive=archived.append) == 1
        assert tracker.prune(keep=1, archive=archived.append) == 0


def test_an_execution_of_an_unreadable_machine_is_kept(url):
    """An execution whose machine's declaration is damaged is set aside, and one that was set aside may go later."""
    with fresh_tracker(url) as tracker:
        [one] = ended(tracker, 1)
        tamper(
            tracker,
            "UPDATE machines SET document = replace(document, '\"execution\"', '5') WHERE 0 <> length(?)",
            one,
        )
    with fresh_tracker(url, machines=[]) as tracker:
        law = tracker._registry._laws
        kept = dict(law)
        law.clear()
        assert tracker.prune(keep=0, archive=lambda _: None) == 0
        assert [entry.execution_id for entry in tracker.health().aside] == [one]
        law.update(kept)
        assert tracker.prune(keep=0, archive=lambda _: None) == 1
        assert tracker.health().aside == ()


def test_a_store_that_does_not_answer_and_a_failing_archive_end_it(either, monkeypatch):
    """An archive that raises, or a store that is away, says so; nothing of that batch is deleted or set aside."""
    ended(either, 3)

    def full(record: dict[str, Any]) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        either.prune(keep=0, archive=full)

    def away(execution_id: str) -> None:
        raise StoreUnavailable("for a moment")

    with monkeypatch.context() as patch:
        patch.setattr(either._registry.store, "history", away)
        with pytest.raises(StoreUnavailable):
            either.prune(keep=0, archive=lambda _: None)
    assert either.health().aside == ()
    assert either.prune(keep=0, archive=lambda _: None) == 3


def test_a_dry_run_reads_the_same_clock(url):
    """What would be deleted is what is deleted, although the wall clock jumps by days in between."""
    clock = ManualClock()
    with fresh_tracker(url, clock=clock) as tracker:
        ended(tracker, 2)
        clock.advance(100.0)
        clock.jump(30 * 86_400.0)
        for older_than_s in (0.0, 50.0, 200.0):
            would = would_prune(tracker._registry, Retention(max_age_s=older_than_s))
            assert would == (2 if older_than_s < 100 else 0), older_than_s
        assert tracker.prune(older_than_s=200.0) == 0
        assert tracker.prune(older_than_s=50.0) == 2
