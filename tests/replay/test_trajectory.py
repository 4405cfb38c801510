"""Recorded trajectories, and what the driver makes of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsm.core.journal import fold
from fsm.lifecycles.execution import EXECUTION
from fsm.replay.events import ReplayClock, replay, replay_one
from fsm.replay.trajectory import MalformedLine, Trajectory, read_line, route
from fsm.tracker.process import fresh_tracker
from tests.support.places import SAMPLE


def run(*events, clock=None, **fields):
    """Replay one trajectory in memory and return what became of it, with its journal."""
    trajectory = Trajectory(
        id="x", events=[{"kind": e} if isinstance(e, str) else e for e in events], **fields
    )
    with fresh_tracker(clock=clock) as tracker:
        done = replay_one(tracker, trajectory, clock=clock)
        history = tracker.history(done.execution_id)
        assert fold(history, tracker.machine_of(done.execution_id)) == done.state
        return done, history, tracker.get(done.execution_id), tracker.durations(done.execution_id)


def sample(name):
    lines = [read_line(line) for line in SAMPLE.read_text().splitlines()]
    return next(one for one in lines if one.id == f"sample/{name}")


def states(history):
    out = []
    for receipt in history:
        if not out or out[-1] != receipt.target:
            out.append(receipt.target)
    return out


EXPECTED = {
    "chat": "completed",
    "parallel-tools": "completed",
    "answer-while-tools-run": "completed",
    "interrupted-and-resumed": "completed",
    "interrupted-for-good": "cancelled",
    "provider-errors": "completed",
    "failed-at-once": "failed",
    "turn-limit": "timed_out",
    "handed-over": "completed",
    "sub-agent": "completed",
    "just-stops": "running_tools",
    "ends-without-a-word": "completed",
}


def test_the_sample_ends_as_it_says():
    """Every trajectory of the shipped sample ends as it says, and nothing is refused."""
    trajectories = [read_line(line) for line in SAMPLE.read_text().splitlines()]
    assert {one.id.removeprefix("sample/") for one in trajectories} == EXPECTED.keys()
    with fresh_tracker() as tracker:
        for trajectory in trajectories:
            done = replay_one(tracker, trajectory)
            assert done.state == EXPECTED[trajectory.id.removeprefix("sample/")], trajectory.id
            assert done.refusals == ()
            assert done.ended == (done.state != "running_tools")


def test_recorded_runs_of_real_agents(traces):
    """The 931 recorded runs go through without a refusal, and every journal folds to its execution's state."""
    trajectories = [read_line(line) for path in traces for line in path.read_bytes().splitlines()]
    expected = {
        "completed": "completed",
        "handoff": "completed",
        "limit": "timed_out",
        "cancelled": "cancelled",
    }
    with fresh_tracker() as tracker:
        summary = replay(tracker, trajectories)
        assert (summary.executions, summary.refused) == (931, 0)
        by_thread = {execution.thread_id: execution for execution in tracker.find(limit=1000)}
        for trajectory in trajectories:
            execution = by_thread[trajectory.id]
            history = tracker.history(execution.id)
            assert fold(history, tracker.machine_of(execution.id)) == execution.state
            outcome = trajectory.events[-1].outcome
            assert (execution.state, execution.outcome) == (expected[outcome], outcome)
            opened = sum(event.kind == "tool_start" for event in trajectory.events)
            assert sum(receipt.event == "open_tool" for receipt in history) == opened


def test_a_limit_is_a_timeout():
    """A run that hit its turn limit ends timed_out, and the outcome says that it was a limit."""
    done, _, execution, _ = run("start", "model", {"kind": "end", "outcome": "limit"})
    assert (done.state, execution.outcome) == ("timed_out", "limit")


def test_a_handoff_is_kept_as_the_outcome():
    """A run that was handed to a person is completed, and its outcome stays handoff."""
    done, _, execution, _ = run("start", "model", {"kind": "end", "outcome": "handoff"})
    assert (done.state, execution.outcome) == ("completed", "handoff")


def test_a_failure_before_the_first_step():
    """A run that fails before it began ends failed, straight from created, with the error it had."""
    done, history, execution, _ = run(
        {"kind": "error", "message": "no key"}, {"kind": "end", "outcome": "failed"}
    )
    assert states(history) == ["created", "failed"]
    assert execution.error == "no key"
    assert done.refusals == ()


def test_an_end_without_a_word():
    """An end that names no outcome is completed, or failed if an error was the last that was heard."""
    assert run("start", "model", "end")[0].state == "completed"
    assert run("start", "error", "end")[0].state == "failed"


def test_no_end_leaves_the_execution_open():
    """A run without an end is left open, with a deadline that will end it."""
    done, _, execution, _ = run("start", "model", {"kind": "tool_start", "name": "x"})
    assert not done.ended
    assert execution.due_at is not None
    assert execution.open_tools == ("x",)


def test_an_interrupt_closes_what_is_open():
    """An interrupt closes the open tools and waits for the user, who goes on."""
    done, history, _, _ = run(
        "start", "model", {"kind": "tool_start", "name": "a"}, {"kind": "tool_start", "name": "b"}, "cancel",
        "user", "model", {"kind": "end", "outcome": "completed"},
    )  # fmt: skip
    assert (done.state, done.refusals) == ("completed", ())
    at = [receipt.event for receipt in history]
    assert at.count("close_tool") == 2
    assert at.index("await_input") > max(i for i, event in enumerate(at) if event == "close_tool")
    assert "receive_input" in at


def test_parallel_tools_are_paired_by_name_first_in_first_out():
    """Tools of one name close in the order in which they opened; a nameless end closes the oldest of all."""
    done, _history, execution, _ = run(
        "start", "model", {"kind": "tool_start", "name": "a"}, {"kind": "tool_start", "name": "b"},
        {"kind": "tool_start", "name": "a"}, {"kind": "tool_end", "name": "a"}, "tool_end",
    )  # fmt: skip
    assert execution.open_tools == ("a",)
    assert done.refusals == ()


def test_an_orphaned_tool_end_is_refused_and_the_rest_goes_on():
    """The end of a tool that never opened is refused, is counted, and stops nothing."""
    done, _, _, _ = run(
        "start", "model", {"kind": "tool_end", "name": "x"}, {"kind": "end", "outcome": "completed"}
    )
    assert done.state == "completed"
    assert [(one.event, one.reason) for one in done.refusals] == [("close_tool", "guard")]


def test_what_comes_after_the_end_is_refused():
    """Events that a recording has after its end are refused: an end is final."""
    done, _, execution, _ = run("start", "model", {"kind": "end", "outcome": "completed"}, "model", "user")
    assert execution.state == "completed"
    assert {one.reason for one in done.refusals} == {"terminal"}


def test_recorded_times_are_booked_to_their_phases():
    """A recording with times keeps them: each phase has the time that the agent spent in it."""
    _, _history, execution, spent = run(
        {"kind": "start", "t": 0.0}, {"kind": "model", "t": 4.0}, {"kind": "tool_start", "name": "x", "t": 4.0},
        {"kind": "tool_end", "name": "x", "t": 7.0}, {"kind": "model", "t": 12.0},
        {"kind": "end", "outcome": "completed", "t": 12.0}, clock=ReplayClock(),
    )  # fmt: skip
    assert spent["calling_model"] == pytest.approx(9.0, abs=1e-3)
    assert spent["running_tools"] == pytest.approx(3.0, abs=1e-3)
    assert execution.ended_at - execution.created_at == pytest.approx(12.0, abs=1e-3)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not JSON"),
        (b"[]", "no trajectory"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"id":"a"}', "events"),
        (b'{"id":"","events":[]}', "id"),
        (b'{"id":"a","events":[{"kind":"dance"}]}', "kind"),
        (b'{"id":"a","events":[{}]}', "kind"),
        (b'{"id":"a","events":[{"kind":"end","outcome":"maybe"}]}', "outcome"),
        (b'{"id":"a","events":[{"kind":"start","t":NaN}]}', "t"),
        (b'{"id":"a","events":[{"kind":"start","t":-1}]}', "t"),
        (b'{"id":"a","events":"start"}', "events"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_malformed_line_says_why(line, why):
    """A line that is no trajectory is refused with the place and the reason."""
    with pytest.raises(MalformedLine, match=why):
        read_line(line)


def test_unknown_fields_and_empty_lines_are_borne():
    """A recording may have more fields than we know, a byte order mark, and empty lines."""
    assert read_line(b"  \n") is None
    assert (
        read_line(b'\xef\xbb\xbf{"id":"a","x":1,"events":[{"kind":"start","y":2}]}').events[0].kind == "start"
    )


def test_a_way_takes_implicit_rows_only():
    """The way between two phases takes implicit rows, the first of each event; only its last event may be another."""
    way = route("created", "completing")
    assert way[0] == "start"
    source = "created"
    for event in way:
        arrow = EXECUTION.by_source[source][event][0]
        assert arrow.implicit
        source = arrow.target
    assert source == "completing"
    assert route("created", "awaiting_input") == ("start", "think", "await_input")
    assert route("running_tools", "running_tools") == ()
    assert route("completed", "thinking") is None


_EVENT = st.fixed_dictionaries(
    {"kind": st.sampled_from("start user model tool_start tool_end subagent error cancel".split())},
    optional={"name": st.sampled_from(["a", "b"]), "ok": st.booleans()},
)


def _sensible(events):
    """A tool ends only after it began, as the format promises."""
    out, tools = [], []
    for event in events:
        if event["kind"] == "tool_start":
            tools.append(event.get("name"))
        elif event["kind"] == "cancel":
            tools.clear()
        elif event["kind"] == "tool_end":
            if not tools:
                continue
            name = event.get("name")
            if name is None:
                tools.pop(0)
            elif name in tools:
                tools.remove(name)
            else:
                continue
        out.append(event)
    return out


@settings(max_examples=300)
@given(st.lists(_EVENT, max_size=25), st.sampled_from("completed failed limit cancelled handoff".split()))
def test_every_trajectory_of_the_format_goes_through(events, outcome):
    """Whatever order of events the format allows, nothing is refused and the run ends as its recording says."""
    done, _, execution, _ = run(*_sensible(events), {"kind": "end", "outcome": outcome})
    assert done.refusals == ()
    expected = {"limit": "timed_out", "handoff": "completed"}.get(outcome, outcome)
    assert done.state == expected
    if outcome != "failed":
        assert execution.outcome == outcome


def test_a_line_survives_the_round_trip():
    """A trajectory that is read, written and read again is the same."""
    for line in SAMPLE.read_text().splitlines():
        one = read_line(line)
        assert read_line(json.dumps(one.model_dump(exclude_none=True))) == one
