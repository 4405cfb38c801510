"""Verification: a store that the library wrote has no findings, and each planted violation has one that names it."""

from __future__ import annotations

import random
import shutil
from contextlib import closing, suppress
from pathlib import Path

import pytest

from fsm.errors import Finding, FsmError, Refused
from fsm.lifecycles import EXECUTION
from fsm.machine.grammar import row, state
from fsm.machine.machine import Machine
from fsm.testing import ManualClock, fresh_tracker
from fsm.tracker import verify as verification
from fsm.tracker.tracker import Tracker
from fsm.tracker.verify import verify
from tests.support.sqlite_tools import rogue, tamper

MINE = {"user_id": "ada", "thread_id": "t"}
ERRAND = Machine(
    name="errand",
    initial="waiting",
    states=(state("waiting", "pending"), state("going", "running"), state("home", "terminal")),
    transitions=(
        row("waiting", "go", "going", assign="claim"),
        row("going", "again", "going"),
        row("going", "return_home", "home"),
        row("waiting going", "cancel", "home"),
    ),
)


def codes(tracker: Tracker) -> set[str]:
    return {one.code for one in verify(tracker._registry)}


def live(tracker: Tracker) -> dict[str, str]:
    """Let executions go through everything that the table knows; return some of them by name."""
    clock = tracker._registry.clock
    made = {}

    def new(name: str, *events: str | tuple[str, dict[str, object]], **options: object) -> str:
        one = tracker.create(name, **MINE, **options)
        for event in events:
            clock.advance(0.25)
            said = (event, {}) if isinstance(event, str) else event
            tracker.fire(one.id, said[0], fence=tracker.get(one.id).fence, **said[1])
        made[name] = one.id
        return one.id

    new("created", metadata={"ä": [1]}, timeouts={"total_s": 5000})
    new("idle", "start", timeouts={"idle_s": 9.0})
    new("asked", "start", "think", ("await_input", {"expires_s": 30.0}))
    new(
        "tools",
        "start",
        ("open_tool", {"name": "a"}),
        ("open_tool", {"name": "b"}),
        ("close_tool", {"name": "a"}),
    )
    new("backing", "start", "call_model", "back_off", retry={"attempts_max": 2, "backoff_s": 8.0})
    new("behind", "start", ("call_model", {"permit": False, "breaker": "m", "retry_in_s": 7.0}), "progress")
    new("retried", "start", ("fail", {"retryable": True, "error": "x"}), "start", retry={"attempts_max": 3})
    new("keyed", ("start", {"key": "k1"}), ("progress", {"key": "k2", "note": "n", "data": [None, 1.5]}))
    new(
        "done",
        "start",
        "think",
        "process_results",
        "finish",
        ("complete", {"result": {"ü": 0.1}, "key": "end"}),
    )
    new("parent", "start")
    new("child", "start", parent_id=made["parent"])
    new("grown", "start", parent_id=made["parent"])
    tracker.fire(made["grown"], "cancel")
    tracker.fire(made["parent"], "cancel", reason="enough")
    new("errand", "go", "again", machine="errand")
    new("late", timeouts={"queue_s": 0.5})
    clock.advance(1.0)
    tracker.sweep()
    worker = tracker.worker(ttl_s=1.0)
    new("lost", "start", retry={"attempts_max": 2})
    new("dead", "start", timeouts={"total_s": 50.0})
    worker.close(hand_back=True)
    tracker.breakers.force_open("m", by="ada", why="maintenance")
    tracker.breakers.reset("m", by="ada")
    return made


@pytest.fixture(params=["memory://", "sqlite"])
def tracker(request, url):
    """A tracker with a life behind it, on each kind of store."""
    where = f"{url}?synchronous=NORMAL" if request.param == "sqlite" else request.param
    with fresh_tracker(where, clock=ManualClock(), machines=[ERRAND]) as fresh:
        yield fresh


def test_what_the_library_writes_has_no_findings(tracker):
    """After a life of every kind of event nothing is found, on either store."""
    live(tracker)
    assert list(verify(tracker._registry)) == []


def test_a_random_walk_has_no_findings(tracker, monkeypatch):
    """Whatever sequence of allowed events an execution goes through, its journal folds to its record."""
    monkeypatch.setattr(verification, "PAGE", 7)
    rng = random.Random(20)
    payloads = {
        "fail": [{"retryable": True}, {"retryable": True, "retry_in_s": 3.0}, {"error": "x"}],
        "call_model": [{}, {"permit": False}, {"permit": False, "retry_in_s": 2.5, "breaker": "b"}],
        "open_tool": [{"name": "a"}, {"name": "a", "call_id": "1"}, {}],
        "close_tool": [{}, {"name": "a"}, {"call_id": "1"}],
        "await_input": [{}, {"expires_s": 4.0}],
        "back_off": [{}, {"retry_in_s": 1.0}],
        "complete": [{"result": 0}, {}],
    }
    for number in range(40):
        limits = rng.choice(
            [None, {"idle_s": 5.0}, {"total_s": None, "phase_s": 7.0}, {"phases": {"thinking": 2.0}}]
        )
        one = tracker.create("a", **MINE, timeouts=limits, retry={"attempts_max": 3}, metadata={"n": number})
        for _ in range(rng.randrange(40)):
            tracker._registry.clock.advance(rng.random())
            if rng.random() < 0.1:
                tracker._registry.clock.jump(rng.uniform(-500, 500))
            events = [
                event
                for event in tracker.allowed(one.id)
                if event not in {"time_out", "lapse"} or rng.random() < 0.1
            ]
            if not events:
                break
            event = rng.choice(events)
            with suppress(Refused):
                tracker.fire(
                    one.id,
                    event,
                    fence=tracker.get(one.id).fence,
                    **rng.choice(payloads.get(event, [{}])),
                )
    assert list(verify(tracker._registry)) == []


def test_it_reads_page_by_page(tracker, monkeypatch):
    """However many executions there are, no more than a page of them is asked for at once."""
    monkeypatch.setattr(verification, "PAGE", 2)
    live(tracker)
    store = tracker._registry.store
    asked = []
    find, journal = store.find, store.journal
    monkeypatch.setattr(store, "find", lambda query: asked.append(query.limit) or find(query), raising=False)
    monkeypatch.setattr(
        store, "journal", lambda after, limit: asked.append(limit) or journal(after, limit), raising=False
    )
    assert list(verify(tracker._registry)) == []
    assert max(asked) == 2
    assert len(asked) > 10


def test_what_changes_while_it_is_looked_at_is_no_finding(tracker, monkeypatch):
    """An execution that moves on between two reads of a verification is looked at again."""
    made = live(tracker)
    store = tracker._registry.store
    history = store.history
    moves = iter(["think", "call_model"])

    def moving(execution_id: str):
        found = history(execution_id)
        if execution_id == made["idle"] and (event := next(moves, None)):
            tracker.fire(execution_id, event, fence=tracker.get(execution_id).fence)
            return found[:-1]  # a journal read too early
        return found

    monkeypatch.setattr(store, "history", moving, raising=False)
    assert list(verify(tracker._registry)) == []


def of(agent: str) -> str:
    return f"(SELECT id FROM executions WHERE agent = '{agent}')"


def journaled(agent: str, version: int, change: str) -> str:
    return f"UPDATE journal SET {change} WHERE version = {version} AND execution_id = {of(agent)}"


RECORD = {
    "a state of another way": ("idle", "state = 'thinking'", "fold"),
    "a version without its row": ("idle", "version = version + 1", "versions"),
    "a fence set back": ("retried", "fence = 1", "fold"),
    "an owner that nobody became": ("idle", "owner = 'mallory'", "fold"),
    "an attempt that nobody made": ("idle", "attempt = 99", "fold"),
    "a tool that nobody opened": ("idle", "tools = '[[\"x\",null]]'", "fold"),
    "a tool forgotten": ("tools", "tools = NULL", "fold"),
    "an entry at another time": ("idle", "entered_at = entered_at - 5", "fold"),
    "a change at another time": ("idle", "updated_at = updated_at + 5", "fold"),
    "a model attempt": ("backing", "model_attempt = 7", "fold"),
    "a breaker that nobody named": ("behind", "breaker = 'other'", "fold"),
    "a limit that nobody gave": ("asked", "limit_s = 1e9", "fold"),
    "another result": ("done", "ending = '{\"result\":\"other\"}'", "fold"),
    "a wait without end": ("backing", "not_before = not_before + 1000", "fold"),
    "a wait that nobody ordered": ("idle", "not_before = 5", "fold"),
    "a wait forgotten": ("backing", "not_before = NULL", "fold"),
    "a deadline taken away": ("idle", "due_at = NULL, due_kind = NULL", "deadline"),
    "a deadline put off": ("created", "due_at = due_at + 1000", "deadline"),
    "a deadline of another kind": ("created", "due_kind = 'total'", "deadline"),
    "a deadline of silence put off": ("idle", "due_at = due_at + 90000", "deadline"),
    "a deadline of silence too early": ("idle", "due_at = since_at", "deadline"),
    "a deadline after the end": ("done", "due_at = 5, due_kind = 'total'", "deadline"),
    "a deadline as text": ("created", "due_at = 'never'", "damaged"),
    "a creation at another time": ("created", "created_at = 5", "birth"),
    "an entry in the future": ("created", "since_at = since_at + 1e8", "future"),
    "a birth in the future": ("created", "born_at = born_at + 1e8", "future"),
    "tools that are no JSON": ("tools", "tools = '['", "damaged"),
    "metadata that is no JSON": ("created", "metadata = '['", "damaged"),
    "a user that is no text": ("created", "user_id = x'ff'", "damaged"),
    "a state nobody knows": ("created", "state = 'limbo'", "damaged"),
    "a machine nobody knows": ("created", "machine = 77", "damaged"),
    "a parent that never was": ("created", "parent_id = 'exec_none'", "damaged"),
    "a parent of another user": ("created", f"parent_id = {of('idle')}, user_id = 'eve'", "parent"),
    "its own parent": ("created", "parent_id = id", "parent"),
    "an orphan": ("created", f"parent_id = {of('parent')}", "orphan"),
    "a last row elsewhere": ("created", "position = 1000", "damaged"),
}  # fmt: skip
ELSEWHERE = {
    "a version that is missing": (journaled("idle", 1, "version = 5"), "damaged"),
    "an event that did not happen": (journaled("idle", 1, "event = 'think'"), "illegal"),
    "an event whose guard does not hold": (
        f"UPDATE journal SET event = 'close_tool' WHERE version = 2 AND execution_id = {of('keyed')}", "refused",
    ),
    "a row that does not follow": (journaled("idle", 1, "source = 'queued'"), "chain"),
    "a retry that was none": (journaled("retried", 2, "payload = NULL"), "fold"),
    "a payload that does not fit": (journaled("idle", 1, "payload = '{\"owner\":5}'"), "payload"),
    "a payload that is no JSON": (journaled("keyed", 1, "payload = '['"), "damaged"),
    "a time that runs backwards": (journaled("keyed", 2, "at = 5"), "fold"),
    "a fence that falls": (journaled("keyed", 2, "fence = 0"), "fence"),
    "another birth": (journaled("idle", 0, "event = 'born'"), "birth"),
    "an execution taken out of its journal": ("DELETE FROM executions WHERE agent = 'idle'", "journal"),
    "a journal taken away": (f"DELETE FROM journal WHERE execution_id = {of('idle')}", "damaged"),
    "a key in two rows": ("DROP INDEX journal_key; " + journaled("keyed", 2, "key = 'k1'"), "keys"),
    "a key that is no text": (
        journaled("keyed", 2, "key = CAST(x'6b32ff' AS TEXT)"), "damaged",
    ),
    "an order that nobody gave": (f"INSERT INTO orders VALUES ({of('keyed')}, 1, 'cancel')", "orders"),
    "a tombstone of what is there": (f"INSERT INTO tombstones VALUES ({of('idle')})", "damaged"),
    "a machine that was rewritten": ("UPDATE machines SET document = replace(document, 'going', 'away')", "machine"),
    "a machine that is no JSON": ("UPDATE machines SET document = 'x' WHERE name = 'errand'", "machine"),
    "a machine without its seal": ("UPDATE machines SET sealed = 0 WHERE name = 'errand'", "damaged"),
    "a machine without its rows": ("DELETE FROM law WHERE machine = 1 AND event = 'think'", "damaged"),
    "a timeline that is text": ("UPDATE eras SET offset_s = 'x'", "damaged"),
    "no horizon": ("DELETE FROM horizon", "damaged"),
    "no store id": ("DELETE FROM store", "damaged"),
    "a breaker in another state": ("UPDATE breakers SET state = 'disabled'", "breaker"),
    "a breaker of another generation": ("UPDATE breakers SET generation = 77", "breaker"),
    "a breaker's row that does not follow": ("UPDATE breaker_journal SET source = 'open' WHERE version = 1", "breaker"),
    "a breaker without a journal": ("DELETE FROM breaker_journal", "damaged"),
    "a worker that is back": ("INSERT INTO departed (id) SELECT id FROM workers", "damaged"),
}  # fmt: skip
PLANTED = {
    what: (f"UPDATE executions SET {change} WHERE agent = '{agent}'", code)
    for what, (agent, change, code) in RECORD.items()
} | ELSEWHERE


@pytest.fixture(scope="module")
def lived(tmp_path_factory) -> Path:
    """A SQLite file with a life in it; tests tamper with copies."""
    file = tmp_path_factory.mktemp("lived") / "fsm.db"
    with fresh_tracker(f"sqlite:///{file}", clock=ManualClock(), machines=[ERRAND]) as tracker:
        live(tracker)
        tracker.worker(ttl_s=9.0)._stop.set()  # its row stays
    return file


def findings(file: Path) -> list[Finding]:
    with fresh_tracker(
        f"sqlite:///{file}?synchronous=NORMAL", clock=ManualClock(), machines=[ERRAND]
    ) as tracker:
        return list(verify(tracker._registry))


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_violation_is_found(what, lived, tmp_path):
    """Whatever is changed behind the law's back is found under the code of the invariant that it breaks."""
    file = tmp_path / "fsm.db"
    shutil.copy(lived, file)
    sql, code = PLANTED[what]
    tamper(file, *sql.split("; "))
    try:
        found = findings(file)
    except FsmError as error:
        assert what in {"a timeline that is text", "no horizon", "no store id"}, error  # noqa: PT017
        return
    assert code in {one.code for one in found}, found
    assert all(one.message and one.fix and one.row for one in found)


def test_a_law_that_is_missing_is_found(lived, tmp_path):
    """A trigger or an index that is not there any more, or is another one, is found."""
    file = tmp_path / "fsm.db"
    shutil.copy(lived, file)
    assert findings(file) == []
    with closing(rogue(file)) as connection:
        connection.execute("DROP TRIGGER execution_stays")
        connection.execute("DROP TRIGGER journal_stays")
        connection.execute("CREATE TRIGGER journal_stays BEFORE UPDATE ON journal BEGIN SELECT 1; END")
        connection.execute("CREATE TRIGGER extra AFTER INSERT ON journal BEGIN SELECT 1; END")
    said = {one.row: one.message for one in findings(file)}
    assert "missing" in said["file trigger execution_stays"]
    assert "not as this library" in said["file trigger journal_stays"]
    assert "another program" in said["file trigger extra"]


def test_a_record_in_memory_is_folded_too():
    """On memory:// a record that does not follow from its journal is found as well."""
    with fresh_tracker(clock=ManualClock()) as tracker:
        one = tracker.create("a", **MINE)
        tracker.fire(one.id, "start")
        assert codes(tracker) == set()
        rows = tracker._registry.store._rows[one.id]
        whole = rows[0]
        for change in ({"fence": 7}, {"tools": (("x", None),)}, {"state": "thinking"}):
            rows[0] = whole._replace(**change)
            assert "fold" in codes(tracker), change
        rows[0] = whole._replace(due_at=None, due_kind=None)
        assert codes(tracker) == {"deadline"}
        rows[0] = whole
        del rows[1]
        assert "versions" in codes(tracker)


def test_payloads_of_others_are_said_to_be_unreadable(url):
    """A journal whose payload model is not registered here is reported as such, and the rest is folded."""
    from fsm.core.payloads import PAYLOADS, Payload, register_payload  # noqa: PLC0415

    class Stamp(Payload):
        colour: str = "red"

    register_payload("stamp", Stamp)
    try:
        stamped = EXECUTION.extend(name="stamped", payloads={"progress": "stamp"})
        with fresh_tracker(url, machines=[stamped]) as tracker:
            one = tracker.create("a", **MINE, machine="stamped")
            tracker.fire(one.id, "start")
            tracker.fire(one.id, "progress", fence=tracker.get(one.id).fence, colour="blue")
            assert codes(tracker) == set()
    finally:
        del PAYLOADS["stamp"]
    with fresh_tracker(url) as tracker:
        tracker.create("b", **MINE)
        [found] = verify(tracker._registry)
        assert (found.code, found.row) == ("payload", one.id)
        assert "Register" in found.fix
