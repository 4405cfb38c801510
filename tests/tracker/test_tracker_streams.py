"""The journal as a stream, and executions on machines of other processes."""

from __future__ import annotations

import threading

import pytest

from fsm import (
    ConfigurationError,
    UnknownExecution,
)
from fsm.testing import fresh_tracker
from tests.support.sqlite_tools import python
from tests.support.tracker_tools import begun

# --- the stream ---------------------------------------------------------------------------------------------------


def test_a_stream_from_now_on_begins_with_the_call(either):
    """A subscription begins with what is committed after the call, even if it is read later."""
    one = begun(either)
    stream = either.subscribe()
    receipt = either.fire(one, "think", fence=either.get(one).fence)
    assert next(stream) == receipt
    stream.close()


def test_a_stream_from_the_beginning_is_the_whole_journal(either):
    """A subscription from 0 yields everything that ever happened, page after page, without a gap."""
    one = begun(either)
    for _ in range(600):
        either.fire(one, "progress", fence=either.get(one).fence)
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
    either.fire(other, "think", fence=either.get(other).fence)
    either.fire(one, "cancel", by="ada")
    either.fire(one, "stopped", fence=either.get(one).fence)
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
                tracker.fire(sys.argv[2], event, fence=tracker.get(sys.argv[2]).fence)
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
    from fsm.machine.grammar import row, state
    from fsm.machine.machine import Machine
    from fsm.core.payloads import Payload, register_payload
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
        assert tracker.fire(mine, "think", fence=tracker.get(mine).fence).version == 2
        child.communicate("\n")
