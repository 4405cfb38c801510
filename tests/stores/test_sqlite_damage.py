"""Damaged files: whatever bytes are in them, every call answers or raises an error of this library."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fsm.core.timeline import Era, Mark
from fsm.errors import DamagedRecord, FsmError, NotAStore, UnknownMachine
from fsm.stores import Damage, Query
from fsm.stores.breakers import BreakerStore
from fsm.stores.sqlite import damage as damages
from fsm.testing import ManualClock
from fsm.tracker import verify as verification
from fsm.tracker.process import fresh_tracker
from fsm.tracker.sweeper import Sweeper
from fsm.tracker.tracker import Tracker
from tests.support.inside import registry_of, store_of
from tests.support.sqlite_tools import rogue, tamper

MINE = {"user_id": "ada", "thread_id": "t"}
TIMES = 25
"""Number of files that are damaged at random, of each kind."""
ODDITIES = 1
"""Number of odd values that are tried in each column."""


def fill(tracker: Tracker, number: int = 12) -> list[str]:
    made = []
    worker = tracker.worker(ttl_s=1000.0)
    for index in range(number):
        one = tracker.create("a", **MINE, metadata={"k": "v" * 50}, timeouts={"total_s": 50.0 + index})
        made.append(one.id)
        tracker.fire(one.id, "start", note="x" * 50, key="k")
        tracker.fire(one.id, "open_tool", fence=tracker.get(one.id).fence, name="t", call_id="c")
        if index % 3 == 0:
            tracker.create("child", **MINE, parent_id=one.id)
        if index % 4 == 0:
            tracker.fire(one.id, "fail", fence=tracker.get(one.id).fence, error="e" * 40, result={"a": 1})
    tracker.breakers.force_open("m", by="ada", why="x")
    tracker.breakers.reset("m")
    worker._stop.set()  # its lease stays, to be read
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[bytes, list[str]]:
    """The bytes of a store with a life in it, and its executions."""
    file = tmp_path_factory.mktemp("base") / "fsm.db"
    with fresh_tracker(f"sqlite:///{file}?synchronous=NORMAL", clock=ManualClock()) as tracker:
        made = fill(tracker)
    return file.read_bytes(), made


def calls(tracker: Tracker, known: list[str]) -> Iterator[Callable[[], object]]:
    """Every way to read, and some to write."""
    registry = registry_of(tracker)
    store = registry.store
    for one in known[:6]:
        yield lambda one=one: tracker.get(one).model_dump_json()
        yield lambda one=one: [(receipt.payload, receipt.as_dict()) for receipt in tracker.history(one)]
        yield lambda one=one: tracker.allowed(one)
        yield lambda one=one: store.keyed(one, "k")
        yield lambda one=one: store.journal(0, 100, one, "ada")
        yield lambda one=one: tracker.fire(one, "progress", fence=tracker.get(one).fence, key="k")
    yield lambda: [one.model_dump_json() for one in tracker.find(limit=100)]
    yield lambda: tracker.find(category="running", user_id="ada")
    yield lambda: [receipt.payload for receipt in tracker.subscribe(after=0, follow=False)]
    yield lambda: [receipt.payload for receipt in tracker.subscribe(after=0, follow=False, user_id="ada")]
    yield lambda: tracker.create("b", **MINE)
    yield lambda: tracker.create("b", **MINE, parent_id=known[1])
    yield tracker.sweep
    yield lambda: tracker.fire(known[2], "progress", fence=tracker.get(known[2]).fence)
    yield lambda: tracker.fire(known[5], "cancel")
    yield lambda: store.forget(store.ended(1e11, 10))
    yield registry.machines
    yield from (
        store.counts,
        store.position,
        lambda: store.orders("", 10),
        lambda: store.due(1e11, 10),
        store.next_due,
        store.workers,
        lambda: store.lose(0.0),
        lambda: store.owned("w", 10),
        lambda: store.ended(1e11, 10),
        store.ended_count,
        store.machines,
        store.damaged,
        store.inspect,
        lambda: store.timeline("other"),
        lambda: store.timeline(""),
        lambda: store.timeline_set("other", None, Era(1.0)),
        lambda: store.timeline_mark(Mark(1e11, 1e11, 1.0)),
        lambda: store.born("ada", "k"),
    )
    yield lambda: list(verification.verify(registry))
    if isinstance(store, BreakerStore):
        yield store.breaker_list
        yield lambda: store.breaker_load("m")
        yield lambda: store.breaker_changes(0, 10)
        yield store.breaker_position
        yield lambda: tracker.breakers.force_open("m")
        yield tracker.breakers.status


def use(file: Path, known: list[str]) -> tuple[int, int]:
    """Open a file and call everything; only errors of this library may come. Returns answers and errors."""
    answers = errors = 0
    try:
        with fresh_tracker(f"sqlite:///{file}?synchronous=NORMAL", clock=ManualClock()) as tracker:
            for call in calls(tracker, known):
                try:
                    call()
                    answers += 1
                except FsmError:
                    errors += 1
    except FsmError:
        errors += 1
    return answers, errors


def flipped(whole: bytes, rng: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.choice([1, 3, 10, 50])):
        data[rng.randrange(100, len(data))] = rng.randrange(256)
    return bytes(data)


def truncated(whole: bytes, rng: random.Random) -> bytes:
    return whole[: rng.randrange(len(whole))]


def zeroed(whole: bytes, rng: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.choice([1, 2, 5])):
        page = rng.randrange(len(data) // 4096)
        data[page * 4096 : (page + 1) * 4096] = bytes(4096)
    return bytes(data)


def shuffled(whole: bytes, rng: random.Random) -> bytes:
    data = bytearray(whole)
    one, other = (rng.randrange(1, len(data) // 4096) * 4096 for _ in range(2))
    data[one : one + 4096], data[other : other + 4096] = data[other : other + 4096], data[one : one + 4096]
    return bytes(data)


@pytest.mark.parametrize("damage", [flipped, truncated, zeroed, shuffled], ids=lambda damage: damage.__name__)
def test_random_damage_ends_in_typed_errors(damage, base, tmp_path):
    """Flipped bytes, lost ends, empty and exchanged pages: every call answers, or raises an `FsmError`."""
    whole, known = base
    rng = random.Random(damage.__name__)
    logging.disable(logging.CRITICAL)
    try:
        answered = 0
        for number in range(TIMES):
            file = tmp_path / f"{number}.db"
            file.write_bytes(damage(whole, rng))
            answered += use(file, known)[0]
    finally:
        logging.disable(logging.NOTSET)
    assert answered or damage is truncated


TABLES = {
    "executions": (
        "id agent user_id thread_id parent_id retry_of created_at attempts_max model_attempts_max metadata timeouts "
        "state version entered_at updated_at due_at due_kind attempt owner fence tools model_attempt not_before "
        "breaker limit_s ending position event key payload born_at backoff_s backoff_cap_s since_at machine "
        "paused_s suspended born born_key"
    ),
    "journal": "previous execution_id version machine event source target at attempt fence owner key payload",
    "machines": "content_hash name document sealed",
    "states": "name terminal stopping",
    "law": "source event target",
    "eras": "era offset_s held_at begun_s lag_s drift_s even_s",
    "mark": "steady_at wall_at monotonic_s",
    "spared": "id times",
    "places": "number id born",
    "workers": "id name ttl_s started_at renewed_at lost",
    "breakers": "key machine state version generation changed_at since until openings probes successes abandoned",
    "breaker_journal": "key version machine event source target generation at actor reason",
    "horizon": "position",
    "store": "token",
    "bygone": "kept first last",
}
ODD = (
    "'text'", "x'ff00'", "CAST(x'ff41' AS TEXT)", "''", "9e999", "-9e999", "1e300", "9223372036854775807", "-1", "0.5",
    "'['", "'[[1]]'", "'{\"a\":[}'", "'[\"a\"]'", f"'{'[' * 1500}{']' * 1500}'", f"'{{\"a\":{'9' * 5000}}}'",
    "'{\"total_s\":\"x\"}'", "char(0)",
)  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_cells_of_a_wrong_kind_end_in_typed_errors(table, base, tmp_path):
    """Any value in any column of any table, law or no law: every call answers, or raises an `FsmError`."""
    whole, known = base
    rng = random.Random(table)
    columns = TABLES[table].split()
    logging.disable(logging.CRITICAL)
    try:
        for number, column in enumerate(columns):
            for odd in rng.sample(ODD, ODDITIES):
                file = tmp_path / f"{number}.db"
                for suffix in ("", "-wal", "-shm"):
                    file.with_name(file.name + suffix).unlink(missing_ok=True)
                file.write_bytes(whole)
                where = rng.choice(["", " WHERE rowid % 2 = 0" if table == "journal" else ""])
                tamper(file, f"UPDATE OR IGNORE {table} SET {column} = {odd}{where}")
                use(file, known)
    finally:
        logging.disable(logging.NOTSET)


# --- what is damaged is left out, said once, and listed -----------------------------------------------------------


@pytest.fixture
def stored(url: str) -> Iterator[tuple[Path, list[str]]]:
    """A file with twelve executions, all running, and their ids."""
    with fresh_tracker(url, clock=ManualClock()) as tracker:
        made = [tracker.create("a", **MINE).id for _ in range(12)]
        for one in made:
            tracker.fire(one, "start")
    return Path(url.removeprefix("sqlite:///")), made


def hurt(file: Path, execution_id: str, change: str, table: str = "executions") -> None:
    key = "execution_id" if table == "journal" else "id"
    tamper(file, f"UPDATE {table} SET {change} WHERE {key} = '{execution_id}'")


@pytest.mark.parametrize(
    "change",
    [
        "tools = '['", "metadata = '[]'", "state = 'limbo'", "user_id = CAST(x'ff' AS TEXT)", "entered_at = 'x'",
        "machine = 9", "fence = 0.5", "timeouts = '{\"x\":1}'",
    ],
)  # fmt: skip
def test_one_damaged_record_does_not_fail_the_page(change, stored, url, caplog):
    """Pages hold everything but the damaged records, as full as asked for; those are logged once and listed."""
    file, made = stored
    for one in (made[2], made[3], made[7]):
        hurt(file, one, change)
    column = change.partition(" ")[0]
    with fresh_tracker(url, clock=ManualClock()) as tracker:
        whole = [one for one in made if one not in {made[2], made[3], made[7]}]
        for _ in range(3):
            assert [one.id for one in tracker.find()] == whole
            assert [one.id for one in tracker.find(state="starting")] == whole
        pages, after = [], None
        while page := tracker.find(limit=2, after=after):
            pages.append(page)
            after = page[-1].id
        assert [one.id for page in pages for one in page] == whole
        assert [len(page) for page in pages] == [2, 2, 2, 2, 1]
        damaged = store_of(tracker).damaged()
        assert [(one.table, one.key, one.column) for one in damaged] == [
            ("executions", one, column) for one in (made[2], made[3], made[7])
        ]
        for call in (tracker.get, lambda one: tracker.fire(one, "think", fence=tracker.get(one).fence)):
            with pytest.raises(DamagedRecord, match=made[2]) as caught:
                call(made[2])
            assert (caught.value.table, caught.value.key, caught.value.column) == (
                "executions",
                made[2],
                column,
            )
        assert tracker.fire(made[4], "think", fence=tracker.get(made[4]).fence).version == 2
    assert sum("left out of every page" in record.message for record in caplog.records) == 3


def test_the_journal_goes_on_past_a_damaged_row(stored, url):
    """A subscription passes a row that cannot be read; its execution's own history says what is wrong."""
    file, made = stored
    hurt(file, made[5], "payload = '{'", "journal")
    hurt(file, made[6], "at = 9e999", "journal")
    with fresh_tracker(url, clock=ManualClock()) as tracker:
        seen = {receipt.execution_id for receipt in tracker.subscribe(after=0, follow=False)}
        assert seen == set(made) - {made[5], made[6]}
        rows = store_of(tracker).journal(0, 5)
        assert len(rows) == 5
        for one, column in ((made[5], "payload"), (made[6], "at")):
            with pytest.raises(DamagedRecord, match=column):
                tracker.history(one)


def test_a_sweep_goes_on_past_a_damaged_row(stored, url):
    """Deadlines of whole records are met, however many damaged ones are overdue before them."""
    file, made = stored
    tamper(file, f"UPDATE executions SET due_kind = x'ff', due_at = 1 WHERE id < '{made[8]}'")
    with fresh_tracker(url, clock=ManualClock()) as tracker:
        registry_of(tracker).clock.advance(100_000)
        assert tracker.sweep().timed_out == 4
        assert [tracker.get(one).state for one in made[8:]] == ["timed_out"] * 4
        assert len(store_of(tracker).due(1e11, 2)) == 0


def test_a_worker_that_cannot_be_read_is_left_out(stored, url):
    """Damaged rows of workers and orders are passed over, and the sweeper does its work."""
    file, made = stored
    with fresh_tracker(url, clock=ManualClock()) as tracker:
        sound = tracker.worker(ttl_s=5.0)
        tamper(file, "INSERT INTO workers SELECT 'odd', 'x', 'x', started_at, renewed_at, lost FROM workers",
               f"INSERT INTO orders VALUES ('{made[0]}', 'x', 'cancel')")  # fmt: skip
        store = store_of(tracker)
        assert [worker.id for worker in store.workers()] == [sound.id]
        assert store.orders("", 10) == []
        Sweeper(registry_of(tracker)).sweep()
        assert {one.table for one in store.damaged()} == {"workers", "orders"}


def test_a_machine_that_is_not_known_is_typed(stored, url):
    """An execution of a machine whose declaration cannot be read is refused with that, and others are found."""
    file, made = stored
    with fresh_tracker(url, clock=ManualClock()) as tracker:
        machine = registry_of(tracker)._by_name["execution"].extend(name="other")
        tracker.create("b", **MINE, machine=machine)
    tamper(file, "UPDATE machines SET document = '{}' WHERE name = 'other'")
    with fresh_tracker(url, clock=ManualClock()) as tracker:
        assert [one.id for one in tracker.find()] == made
        [aside] = registry_of(tracker).health.aside()
        assert "unknown machine" in aside.reason
        with pytest.raises(UnknownMachine):
            tracker.get(aside.execution_id)


def test_a_history_that_leads_in_a_circle_comes_to_an_end(stored, url):
    """A link between rows that leads forward, or into another's journal, ends in a typed error and not in a loop."""
    file, made = stored
    tamper(file, f"UPDATE journal SET previous = position + 1 WHERE execution_id = '{made[0]}'",
           f"UPDATE journal SET previous = 1 WHERE execution_id = '{made[5]}' AND version = 1",
           f"UPDATE executions SET position = 999 WHERE id = '{made[6]}'")  # fmt: skip
    with fresh_tracker(url, clock=ManualClock()) as tracker:
        for one in (made[0], made[5], made[6]):
            with pytest.raises(DamagedRecord):
                tracker.history(one)
        assert len(tracker.history(made[1])) == 2


def test_a_page_gives_up_when_too_much_is_damaged(stored, url, monkeypatch):
    """A file with more damaged rows in a row than the limit is refused, instead of read to its end for one page."""
    file, made = stored
    tamper(file, f"UPDATE executions SET tools = '[' WHERE id > '{made[0]}'")
    monkeypatch.setattr(damages, "MAX_LEFT_OUT", 3)
    with fresh_tracker(url, clock=ManualClock()) as tracker:
        store = store_of(tracker)
        assert [one.identity.id for one in store.find(Query(limit=1))] == made[:1]
        with pytest.raises(NotAStore, match="damaged records in a row"):
            store.find(Query(limit=2, after=made[0]))


def test_the_list_of_damage_has_a_limit(stored, url, monkeypatch):
    """However many records are damaged, no more than the limit are listed."""
    file, _ = stored
    tamper(file, "UPDATE executions SET tools = '['")
    monkeypatch.setattr(damages, "MAX_DAMAGED", 4)
    with fresh_tracker(url, clock=ManualClock()) as tracker:
        assert tracker.find() == []
        assert len(store_of(tracker).damaged()) == 4


def test_a_store_in_memory_has_no_damage():
    """On memory:// nothing is ever listed."""
    with fresh_tracker() as tracker:
        tracker.create("a", **MINE)
        assert store_of(tracker).damaged() == store_of(tracker).inspect() == []


def test_an_inspection_names_broken_pages(stored, url):
    """SQLite's own check is part of an inspection: an index that does not fit its table is named."""
    file, _ = stored
    with closing(rogue(file)) as connection:
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute(
            "UPDATE sqlite_master SET sql = 'CREATE INDEX executions_agent ON executions (user_id, id)' "
            "WHERE name = 'executions_agent'"
        )
    with fresh_tracker(url, clock=ManualClock()) as tracker:
        found = store_of(tracker).inspect()
    assert any(one.table == "file" and one.key == "pages" for one in found), found
    assert Damage("file", "index executions_agent", "", "is not as this library makes it") in found
