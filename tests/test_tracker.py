"""The tracker: one per process, one user at a time if narrowed, and the same answer however often it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlite_tools import python

import fsm.tracker as tracking
from fsm import (
    BadPayload,
    ConfigurationError,
    Machine,
    NotAStore,
    Refused,
    StoreUnavailable,
    Tracker,
    UnknownExecution,
    UnknownMachine,
    configure,
    get_tracker,
)
from fsm.clock import ManualClock
from fsm.ids import execution_id
from fsm.machine import row, state
from fsm.testing import fresh_tracker

ERRAND = Machine(
    name="errand",
    initial="created",
    states=(state("created", "running"), state("out", "waiting", "phase"), state("back", "terminal")),
    transitions=(
        row("created", "leave", "out"),
        row("out created", "time_out", "back"),
        row("out created", "cancel", "back"),
    ),
)
"""A machine of a user's own; it puts the state `created` into another category than the execution machine does."""


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No tracker at all, in an empty folder; what a test sets up is closed after it."""
    monkeypatch.setattr(tracking, "_trackers", [])
    monkeypatch.delenv("FSM_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for tracker in list(tracking._trackers):
        tracker.close()


def begun(tracker: Tracker, **more: Any) -> str:
    made = tracker.create("agent", **{"user_id": "ada", "thread_id": "t", **more})
    tracker.fire(made.id, "start")
    return made.id


def finish(tracker: Tracker, one: str, **payload: Any) -> None:
    for event in ("think", "process_results", "finish"):
        tracker.fire(one, event)
    tracker.fire(one, "complete", **payload)


# --- the one ------------------------------------------------------------------------------------------------------


def test_the_default_store_is_a_file_beside_you(alone):
    """Without a word the executions are kept in fsm.db in the working folder, and every call gets the same tracker."""
    tracker = get_tracker()
    assert tracker is get_tracker()
    assert tracker.store_url == "sqlite:///fsm.db"
    assert (alone / "fsm.db").is_file()


def test_the_environment_names_the_store(alone, monkeypatch):
    """FSM_STORE names the store, unless configure() does; an empty one counts for nothing."""
    monkeypatch.setenv("FSM_STORE", "memory://")
    assert get_tracker().store_url == "memory://"
    get_tracker().close()
    assert configure("sqlite:///mine.db").store_url == "sqlite:///mine.db"
    get_tracker().close()
    monkeypatch.setenv("FSM_STORE", "")
    assert get_tracker().store_url == "sqlite:///fsm.db"
    get_tracker().close()
    monkeypatch.setenv("FSM_STORE", "nonsense://")
    with pytest.raises(NotAStore, match="nonsense"):
        get_tracker()


def test_configure_is_called_once(alone):
    """A second configure(), or one after the first use, is refused; after close() it may be called again."""
    configure("memory://")
    with pytest.raises(ConfigurationError, match=r"configure\(\) once"):
        configure("memory://")
    get_tracker().close()
    get_tracker()
    with pytest.raises(ConfigurationError, match=r"already set up, on sqlite:///fsm\.db"):
        configure("memory://")


def test_a_configure_that_fails_leaves_nothing_behind(alone):
    """When configure() fails it can be called again, rightly."""
    other = ERRAND.extend(name="execution")
    for wrong in (
        {"store": "sqlite:///none/x.db"},
        {"store": 5},
        {"store": "memory://", "machines": [other]},
    ):
        with pytest.raises((ConfigurationError, StoreUnavailable)):
            configure(**wrong)
    configure("memory://")


@pytest.mark.parametrize("arguments", [(), ("memory://",)])
def test_nobody_builds_a_tracker(arguments):
    """Building a tracker by hand is refused with an error that names get_tracker()."""
    with pytest.raises(ConfigurationError, match=r"get_tracker\(\)"):
        Tracker(*arguments)


def test_fresh_trackers_nest():
    """Inside a block get_tracker() gives the innermost fresh tracker, and afterwards the one around it again."""
    with fresh_tracker() as outer:
        assert get_tracker() is outer
        with fresh_tracker() as inner:
            assert get_tracker() is inner
        assert get_tracker() is outer
        with pytest.raises(StoreUnavailable, match="closed"):
            inner.create("a", user_id="u", thread_id="t")


def test_a_thread_that_a_block_starts_sees_the_blocks_tracker():
    """A thread started inside a block works on that block's tracker."""
    seen: list[Tracker] = []
    with fresh_tracker(), fresh_tracker() as tracker:
        thread = threading.Thread(target=lambda: seen.append(get_tracker()))
        thread.start()
        thread.join()
    assert seen == [tracker]


def test_threads_with_blocks_of_their_own_do_not_meet():
    """Threads that each open a block each have a tracker of their own, whatever the others do meanwhile."""
    together = threading.Barrier(4, timeout=60)
    seen: list[tuple[bool, dict[str, int]]] = []

    def work(number: int) -> None:
        with fresh_tracker() as tracker:
            together.wait()
            for _ in range(number):
                get_tracker().create("a", user_id="u", thread_id="t")
            together.wait()
            seen.append((get_tracker() is tracker, tracker.counts()))
            together.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(seen, key=str) == [(True, {"created": number}) for number in range(1, 5)]


def test_the_fixture_gives_a_fresh_tracker_on_its_clock(tracker, clock):
    """The plugin's fixtures give a fresh tracker in memory, which is get_tracker()'s, on a clock that obeys."""
    assert get_tracker() is tracker
    assert tracker.store_url == "memory://"
    assert tracker.counts() == {}
    made = tracker.create("a", user_id="u", thread_id="t")
    clock.advance(2.5)
    assert tracker.durations(made.id) == {"created": 2.5}


@pytest.mark.parametrize("number", range(3))
def test_the_fixture_is_fresh_every_time(tracker, number):
    """No test sees what another one, in this process or in another worker, has created."""
    assert tracker.find() == []
    tracker.create("a", user_id="u", thread_id="t")


# --- one user -----------------------------------------------------------------------------------------------------

FOREIGN: dict[str, Callable[[Tracker, str], object]] = {
    "fire": lambda narrow, one: narrow.fire(one, "start"),
    "fire with a key": lambda narrow, one: narrow.fire(one, "start", key="used"),
    "fire nonsense": lambda narrow, one: narrow.fire(one, "nonsense", x=1),
    "get": lambda narrow, one: narrow.get(one),
    "history": lambda narrow, one: narrow.history(one),
    "durations": lambda narrow, one: narrow.durations(one),
    "allowed": lambda narrow, one: narrow.allowed(one),
    "machine_of": lambda narrow, one: narrow.machine_of(one),
    "subscribe": lambda narrow, one: narrow.subscribe(execution_id=one),
    "create a child": lambda narrow, one: narrow.create("a", thread_id="t", parent_id=one),
    "create a rerun": lambda narrow, one: narrow.create("a", thread_id="t", retry_of=one),
}
EMPTY: dict[str, Callable[[Tracker, str], object]] = {
    "find": lambda narrow, _: narrow.find(),
    "find by user": lambda narrow, _: narrow.find(user_id="ada"),
    "find by state": lambda narrow, _: narrow.find(state="starting"),
    "find by category": lambda narrow, _: narrow.find(category="running"),
    "find by thread": lambda narrow, _: narrow.find(thread_id="t"),
    "find by agent": lambda narrow, _: narrow.find(agent="agent"),
    "find by parent": lambda narrow, one: narrow.find(parent_id=one),
    "find after": lambda narrow, one: narrow.find(after=one[:6]),
    "counts": lambda narrow, _: list(narrow.counts()),
    "subscribe": lambda narrow, _: list(narrow.subscribe(after=0, follow=False)),
    "subscribe to a user": lambda narrow, _: list(narrow.subscribe(after=0, user_id="ada", follow=False)),
}


@pytest.fixture(params=["memory://", "sqlite"])
def either(request, url):
    """A fresh tracker on each kind of store."""
    with fresh_tracker(url if request.param == "sqlite" else request.param, clock=ManualClock()) as fresh:
        yield fresh


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_execution_is_unknown(what, either):
    """To every call of another user an execution is as unknown as one that does not exist, and stays untouched."""
    theirs = begun(either)
    either.fire(theirs, "think", key="used")
    narrow = either.for_user("bob")
    errors = []
    for one in (theirs, execution_id()):
        with pytest.raises(UnknownExecution) as caught:
            FOREIGN[what](narrow, one)
        errors.append(str(caught.value).replace(one, "ID"))
    assert errors[0] == errors[1]
    assert either.get(theirs).version == 2
    assert len(either.find()) == 1
    with suppress(Refused):  # to its own user it is known, that is all
        FOREIGN[what](either.for_user("ada"), theirs)


@pytest.mark.parametrize("what", EMPTY)
def test_a_foreign_users_lists_are_empty(what, either):
    """What lists executions shows another user nothing, and its own user what there is."""
    theirs = begun(either)
    begun(either, parent_id=theirs)
    assert EMPTY[what](either.for_user("bob"), theirs) == []
    assert EMPTY[what](either.for_user("ada"), theirs) != []


def test_every_public_method_is_in_the_matrix():
    """No method of the tracker is left out of the two matrices above without a reason."""
    public = {name for name in vars(Tracker) if not name.startswith("_")}
    covered = {what.split()[0] for what in (*FOREIGN, *EMPTY)}
    of_the_platform = {
        "worker",
        "worker_id",
        "sweep",
        "prune",
        "close",
        "clock",
        "store_url",
        "position",
        "machines",
    }
    faces = {"aio", "for_user"}
    assert public - covered == of_the_platform | faces


def test_a_narrowed_tracker_acts_for_its_user_alone(either):
    """A narrowed tracker creates for its own user, and cannot be widened or turned to another."""
    narrow = either.for_user("ada")
    assert narrow.create("a", thread_id="t").user_id == "ada"
    assert narrow.create("a", user_id="ada", thread_id="t").user_id == "ada"
    for wrong in ("bob", "", ["ada"]):
        with pytest.raises(BadPayload):
            narrow.create("a", user_id=wrong, thread_id="t")
        with pytest.raises(BadPayload):
            narrow.for_user(wrong)
    assert narrow.find(user_id="bob") == []
    assert narrow.for_user("ada").counts() == {"created": 2}


# --- keys ---------------------------------------------------------------------------------------------------------


def test_the_same_key_gives_the_first_receipt_for_ever(either):
    """The same key again gives the first receipt: at once, after later transitions, and after the end."""
    one = begun(either)
    first = either.fire(one, "think", key="k", note="once")
    assert either.fire(one, "think", key="k", note="once") == first
    either.fire(one, "process_results")
    assert either.fire(one, "think", key="k") == first
    either.fire(one, "finish")
    either.fire(one, "complete")
    assert either.fire(one, "think", key="k", fence=99) == first
    assert either.get(one).version == 5


def test_a_key_for_another_event_is_refused(either):
    """A key that was used for another event is refused as a duplicate, and names its first use."""
    one = begun(either)
    either.fire(one, "think", key="k")
    with pytest.raises(Refused, match="was used for 'think' at version 2") as caught:
        either.fire(one, "process_results", key="k")
    assert caught.value.reason == "duplicate"
    assert either.get(one).version == 2


def test_concurrent_calls_with_one_key_make_one_transition(either):
    """However many call at once with one key, one transition is made and all get its receipt."""
    one = begun(either)
    together = threading.Barrier(16, timeout=60)
    receipts = []

    def call() -> None:
        together.wait()
        receipts.append(either.fire(one, "progress", key="k"))

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(receipts) == 16
    assert len(set(receipts)) == 1
    assert either.get(one).version == 2


def test_a_refused_call_does_not_use_its_key_up(either):
    """A key of a refused call is free: the same call succeeds once it is legal."""
    one = begun(either)
    with pytest.raises(Refused):
        either.fire(one, "finish", key="k")
    either.fire(one, "think")
    either.fire(one, "process_results")
    assert either.fire(one, "finish", key="k").target == "completing"


# --- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ("", "underscore"), ("x", "underscore"), (None, "not NoneType"), (7, "not int"), ("exec_short", "26"),
        ("exec_01m8281d0kfdztjkpvnbk6yd7m", "unknown execution"),
        ("worker_" + "0" * 26, "worker"), ("exec_" + "!" * 26, "no digit"),
        ("exec_\ud800", "26"), (b"exec", "not bytes"), (["exec"], "not list"),
    ],
)  # fmt: skip
def test_an_unknown_id_is_one_typed_error_everywhere(odd, why, either):
    """An unknown or malformed id is `UnknownExecution` for every method, and says what is wrong with it."""
    for call in list(FOREIGN.values())[: 8 if odd is None else 9]:  # None is no filter for subscribe()
        with pytest.raises(UnknownExecution, match=why):
            call(either, odd)
    for name in ("parent_id", "retry_of"):
        if odd is not None:
            with pytest.raises(UnknownExecution, match=why):
                either.create("a", user_id="u", thread_id="t", **{name: odd})


@pytest.mark.parametrize("value", ["", None, 5, "x" * 501, "\0", "\ud800", b"x", ["x"]])
@pytest.mark.parametrize("name", ["agent", "user_id", "thread_id"])
def test_unusable_names_are_refused(name, value, either):
    """Names that are no text, empty, too long or not writable are refused, and nothing is created."""
    arguments = {"agent": "a", "user_id": "u", "thread_id": "t", name: value}
    with pytest.raises(BadPayload, match=name):
        either.create(arguments.pop("agent"), **arguments)
    assert either.counts() == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0}, {"limit": 10_001}, {"limit": True}, {"limit": "5"}, {"state": "nonsense"}, {"state": 5},
        {"state": [["created"]]}, {"state": ["created", "nonsense"]}, {"category": "nonsense"},
        {"category": ["running"]},
        {"after": 5}, {"after": ""}, {"after": "\ud800"}, {"parent_id": 5}, {"agent": ""}, {"user_id": 5},
        {"thread_id": ()},
    ],
)  # fmt: skip
def test_find_refuses_what_makes_no_sense(wrong, either):
    """A filter of a wrong type or value is refused and not answered with an empty page."""
    begun(either)
    with pytest.raises(BadPayload):
        either.find(**wrong)


@pytest.mark.parametrize("after", ["1", 1.0, True, [1]])
def test_subscribe_refuses_positions_that_are_none(after, either):
    """A position that is no number is refused at once."""
    with pytest.raises(BadPayload, match="position"):
        either.subscribe(after=after, follow=False)
    assert list(either.subscribe(after=2**80, follow=False)) == []


def test_unknown_machines_are_named(either):
    """A machine that nobody declared is refused with the names that there are."""
    with pytest.raises(UnknownMachine, match="execution"):
        either.create("a", user_id="u", thread_id="t", machine="executoin")


@pytest.mark.parametrize(
    "metadata",
    [
        {1: 2},
        {"a": object()},
        {"a": {1: 2}},
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": "\ud800"},
        [1],
        "x",
    ],
)
def test_metadata_that_json_cannot_say_is_refused(metadata, either):
    """Metadata that would not come back as it was given is refused, not bent."""
    with pytest.raises(BadPayload, match="metadata"):
        either.create("a", user_id="u", thread_id="t", metadata=metadata)
    assert either.counts() == {}


def test_metadata_is_copied_and_never_shared(either):
    """Metadata belongs to the execution: neither the caller's dict nor what was shown can change it afterwards."""
    given = {"tags": ["a"], "n": {"m": 1}}
    made = either.create("a", user_id="u", thread_id="t", metadata=given)
    other = either.create("a", user_id="u", thread_id="t", metadata=given)
    given["tags"].append("b")
    made.metadata["n"]["m"] = 2
    either.get(made.id).metadata.clear()
    either.find()[0].metadata["tags"].append("c")
    for one in (made, other):
        assert either.get(one.id).metadata == {"tags": ["a"], "n": {"m": 1}}
    assert either.create("a", user_id="u", thread_id="t").metadata == {}


@pytest.mark.parametrize("result", [0, False, "", [], {}, None, 0.0, "x", [0]])
def test_results_stay_themselves(result, either):
    """A result comes back as itself, falsy ones included."""
    one = begun(either)
    finish(either, one, result=result, outcome="fine")
    shown = either.get(one)
    assert (shown.result, type(shown.result), shown.outcome) == (result, type(result), "fine")


# --- find and count -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory://", "sqlite"])
def test_categories_are_those_of_each_machine(store, url):
    """A category means what each machine says it means, and pages stay full and stable across machines."""
    with fresh_tracker(url if store == "sqlite" else store, machines=[ERRAND]) as tracker:
        pairs = [
            (
                tracker.create("a", user_id="u", thread_id="t").id,
                tracker.create("a", user_id="u", thread_id="t", machine=which).id,
            )
            for which in (ERRAND, "errand", ERRAND)
        ]
        executions, errands = zip(*pairs, strict=True)
        assert [one.id for one in tracker.find(category="pending")] == list(executions)
        assert [one.id for one in tracker.find(category="running")] == list(errands)
        assert [one.id for one in tracker.find(category="running", limit=2)] == list(errands[:2])
        assert [one.id for one in tracker.find(category="running", limit=2, after=errands[0])] == list(
            errands[1:]
        )
        tracker.fire(errands[0], "leave")
        assert [one.id for one in tracker.find(state="out", category="waiting")] == [errands[0]]
        assert tracker.find(state="out", category="running") == []
        assert tracker.counts() == {"created": 5, "out": 1}
        assert tracker.machine_of(errands[0]) == ERRAND
        assert tracker.allowed(errands[0]) == ("time_out", "cancel")


def test_pages_follow_each_other(either):
    """Pages joined together are all executions, once each, in the order of their creation."""
    made = [either.create("a", user_id="u", thread_id="t").id for _ in range(25)]
    pages = []
    while page := either.find(limit=4, after=pages[-1] if pages else None):
        pages += [one.id for one in page]
    assert pages == made


def test_allowed_is_what_the_table_allows_now(either):
    """`allowed` lists the events of the state, less those that the record itself rules out."""
    made = either.create("a", user_id="u", thread_id="t")
    assert either.allowed(made.id) == (
        "enqueue",
        "connect",
        "validate",
        "start",
        "fail",
        "time_out",
        "cancel",
    )
    either.fire(made.id, "start")
    assert "close_tool" not in either.allowed(made.id)
    either.fire(made.id, "open_tool", name="s")
    assert "close_tool" in either.allowed(made.id)
    either.fire(made.id, "fail")
    assert either.allowed(made.id) == ()


# --- time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory://", "sqlite"])
def test_time_is_booked_to_where_it_was_spent_and_stops_at_the_end(store, url):
    """Each phase's time is the time that was spent in it; several visits add up, and an end stops the clock."""
    clock = ManualClock()
    with fresh_tracker(url if store == "sqlite" else store, clock=clock) as tracker:
        one = tracker.create("a", user_id="u", thread_id="t").id
        for event, seconds in (
            (None, 1.0), ("start", 2.0), ("think", 4.0), ("call_model", 8.0), ("progress", 16.0), ("think", 0.5),
            ("await_input", 32.0), ("receive_input", 0.25), ("process_results", 64.0), ("finish", 128.0),
        ):  # fmt: skip
            if event:
                tracker.fire(one, event)
            clock.advance(seconds)
        spent = {
            "created": 1.0, "starting": 2.0, "thinking": 4.75, "calling_model": 24.0, "awaiting_input": 32.0,
            "processing_results": 64.0, "completing": 128.0,
        }  # fmt: skip
        assert tracker.durations(one) == spent
        clock.advance(1.0)
        assert tracker.durations(one)["completing"] == 129.0
        tracker.fire(one, "complete")
        clock.advance(3600.0)
        assert tracker.durations(one) == spent | {"completing": 129.0}
        assert tracker.get(one).ended_at == clock.wall() - 3600.0


def test_a_wall_clock_that_jumps_back_does_not_turn_a_journal_round(tracker, clock):
    """A journal's instants never go back, whatever an administrator does to the clock."""
    one = begun(tracker)
    clock.jump(-7200.0)
    tracker.fire(one, "think")
    instants = [receipt.at for receipt in tracker.history(one)]
    assert instants == sorted(instants)
    assert min(tracker.durations(one).values()) >= 0


# --- parents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "state_"), [("cancel", "cancelling"), ("fail", "failed"), ("time_out", "timed_out")]
)
def test_a_parents_end_reaches_its_children_and_theirs(event, state_, either):
    """When a parent is called off or ends badly its children are called off, and their children too, over all pages."""
    parent = begun(either)
    child = begun(either, parent_id=parent)
    grandchild = either.create("a", user_id="ada", thread_id="t", parent_id=child).id
    done = begun(either, parent_id=parent)
    finish(either, done)
    many = [either.create("a", user_id="ada", thread_id="t", parent_id=parent).id for _ in range(105)]
    stranger = begun(either)
    either.fire(parent, event)
    assert either.get(parent).state == state_
    assert either.get(child).state == "cancelling"
    assert either.get(grandchild).state == "cancelled"
    assert {either.get(one).state for one in many} == {"cancelled"}
    assert either.get(done).state == "completed"
    assert either.get(stranger).state == "starting"
    assert either.history(grandchild)[-1].payload["by"] == child


def test_children_of_another_machine_are_called_off_too(url):
    """A child on a machine of its own is called off by that machine's cancel, if it has one."""
    with fresh_tracker(url, machines=[ERRAND]) as tracker:
        parent = begun(tracker)
        errand = tracker.create("a", user_id="ada", thread_id="t", machine="errand", parent_id=parent).id
        tracker.fire(parent, "fail")
        assert tracker.get(errand).state == "back"
        assert parent in tracker.history(errand)[-1].payload["note"]


@pytest.mark.parametrize("event", ["cancel", "fail"])
def test_an_ended_parent_starts_no_children(event, either):
    """A parent that has ended, or was told to stop, cannot start children any more."""
    parent = begun(either)
    either.fire(parent, event)
    with pytest.raises(Refused, match="cannot start children") as caught:
        either.create("a", user_id="ada", thread_id="t", parent_id=parent)
    assert caught.value.reason == "terminal"
    assert len(either.find()) == 1


def test_a_child_that_is_born_while_its_parent_ends_is_called_off(either, monkeypatch):
    """A child whose parent ends between the check and the commit does not outlive it."""
    parent = begun(either)
    registry = either._registry
    commit = registry.committer.commit

    def late(command):
        if command.born is not None:
            monkeypatch.undo()
            either.fire(parent, "fail")
        commit(command)

    monkeypatch.setattr(registry.committer, "commit", late)
    with pytest.raises(Refused, match="cannot start children"):
        either.create("a", user_id="ada", thread_id="t", parent_id=parent)
    assert [one.state for one in either.find()] == ["failed", "cancelled"]


def test_an_effect_that_fails_does_not_deny_the_transition(either, monkeypatch, caplog):
    """When the children cannot be reached the parent's transition stands, its receipt is returned, and it is logged."""
    parent = begun(either)
    begun(either, parent_id=parent)

    def broken(_query):
        raise StoreUnavailable("gone")

    monkeypatch.setattr(either._registry.store, "find", broken)
    assert either.fire(parent, "fail").target == "failed"
    assert "could not carry out" in caplog.text


# --- the stream ---------------------------------------------------------------------------------------------------


def test_a_stream_from_now_on_begins_with_the_call(either):
    """A subscription begins with what is committed after the call, even if it is read later."""
    one = begun(either)
    stream = either.subscribe()
    receipt = either.fire(one, "think")
    assert next(stream) == receipt
    stream.close()


def test_a_stream_from_the_beginning_is_the_whole_journal(either):
    """A subscription from 0 yields everything that ever happened, page after page, without a gap."""
    one = begun(either)
    for _ in range(600):
        either.fire(one, "progress")
    assert [receipt.position for receipt in either.subscribe(after=0, follow=False)] == list(range(1, 603))
    assert [receipt.position for receipt in either.subscribe(after=600, follow=False)] == [601, 602]


def test_a_stream_of_one_execution_ends_with_it(either):
    """A subscription to an execution ends by itself when the execution has ended."""
    one, other = begun(either), begun(either)
    seen = []
    ready = threading.Event()

    def read() -> None:
        for receipt in either.subscribe(after=0, execution_id=one):
            seen.append(receipt.event)
            ready.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert ready.wait(60)
    either.fire(other, "think")
    either.fire(one, "cancel", by="ada")
    either.fire(one, "stopped")
    thread.join(60)
    assert not thread.is_alive()
    assert seen == ["create", "start", "cancel", "stopped"]
    assert [receipt.event for receipt in either.subscribe(after=2**62, execution_id=one)] == []


def test_a_stream_of_one_user_shows_that_user_alone(either):
    """A subscription to a user, or of a narrowed tracker, shows that user's receipts and no others."""
    mine, theirs = begun(either), begun(either, user_id="bob")
    for stream in (
        either.subscribe(after=0, user_id="ada", follow=False),
        either.for_user("ada").subscribe(after=0, follow=False),
    ):
        assert {receipt.execution_id for receipt in stream} == {mine}
    assert list(either.subscribe(after=0, user_id="ada", execution_id=mine, follow=False)) == either.history(
        mine
    )
    with pytest.raises(UnknownExecution):
        either.subscribe(user_id="ada", execution_id=theirs)


def test_a_stream_ends_when_the_tracker_is_closed(either):
    """Whoever waits for news of a tracker that is closed is let go."""
    stream = either.subscribe(after=0)
    one = begun(either)
    assert [next(stream).event, next(stream).event] == ["create", "start"]
    thread = threading.Thread(target=lambda: list(stream))
    thread.start()
    either.close()
    thread.join(60)
    assert not thread.is_alive()
    assert one


def test_a_stream_shows_what_other_processes_commit(url):
    """Commits of another process arrive in a subscription, in order."""
    code = """
        import sys
        from fsm.testing import fresh_tracker
        with fresh_tracker(sys.argv[1]) as tracker:
            print("ready", flush=True)
            sys.stdin.readline()
            for event in ("start", "think", "cancel", "stopped"):
                tracker.fire(sys.argv[2], event)
    """
    with fresh_tracker(url) as tracker:
        one = tracker.create("a", user_id="u", thread_id="t").id
        child = python(code, url, one)
        assert child.stdout.readline() == "ready\n"
        stream = tracker.subscribe(execution_id=one)
        child.stdin.write("go\n")
        child.stdin.flush()
        assert [receipt.event for receipt in stream] == ["start", "think", "cancel", "stopped"]
        child.communicate()
        assert tracker.get(one).state == "cancelled"


# --- machines of other processes ----------------------------------------------------------------------------------

FOREIGN_MACHINE = """
    import sys
    from fsm.machine import Machine, row, state
    from fsm.payloads import Payload, register_payload
    from fsm.testing import fresh_tracker

    class Parcel(Payload):
        weight_kg: float = 1.0

    register_payload("parcel", Parcel)
    machine = Machine(
        name="parcel", initial="here", states=(state("here", "waiting", "phase"), state("gone", "terminal")),
        transitions=(row("here", "send", "gone"), row("here", "time_out", "gone"), row("here", "cancel", "gone")),
        payloads=(("send", "parcel"),),
    )
    with fresh_tracker(sys.argv[1], machines=[machine]) as tracker:
        one = tracker.create("courier", user_id="u", thread_id="t", machine="parcel", metadata={"to": "Ada"})
        print(one.id, flush=True)
        sys.stdin.readline()
"""


def test_executions_of_another_processes_machine_are_readable(url):
    """An execution on a machine that only another process knows is read like any other, while it runs."""
    with fresh_tracker(url) as tracker:
        mine = begun(tracker)
        child = python(FOREIGN_MACHINE, url)
        one = child.stdout.readline().strip()
        shown = tracker.get(one)
        assert (shown.machine, shown.state, shown.category, shown.metadata) == (
            "parcel",
            "here",
            "waiting",
            {"to": "Ada"},
        )
        assert tracker.allowed(one) == ("send", "time_out", "cancel")
        assert [found.id for found in tracker.find(state="here")] == [one]
        assert {found.id for found in tracker.find()} == {one, mine}
        assert tracker.machine_of(one).name == "parcel"
        assert [receipt.event for receipt in tracker.history(one)] == ["create"]
        with pytest.raises(ConfigurationError, match="register_payload"):
            tracker.fire(one, "send", weight_kg=2.0)
        assert tracker.fire(mine, "think").version == 2
        child.communicate("\n")
