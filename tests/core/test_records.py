"""Records: what is shown is a copy, time is booked where it was spent, and a journal that lies is found out."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fsm import BREAKER, EXECUTION, Execution, Machine, Receipt, Retry, Timeouts
from fsm.core.decide import DERIVED, create, decide
from fsm.core.journal import durations, fold, legal_rows
from fsm.core.payloads import Codec
from fsm.core.records import Identity, Snapshot, Step, receipt_of, view
from fsm.core.request import Request
from tests.support.strategies import machines

BORN_AT = 100.0


def identity(machine: Machine = EXECUTION, **others: Any) -> Identity:
    usual = Identity(
        "exec_1", machine.content_hash, "agent", "ada", "t-1", None, None, BORN_AT, 1, 5, None, None
    )
    return usual._replace(**others)


def receipt(version: int, source: str | None, event: str, target: str, at: float) -> Receipt:
    return Receipt(version, "exec_1", version, event, source, target, at, 0, 0, None, None, None)


def journal(*story: tuple[str, str, float]) -> list[Receipt]:
    """Return a journal that begins in `created`; each part is an event, where it led and when."""
    out = [receipt(0, None, "create", "created", BORN_AT)]
    for version, (event, target, at) in enumerate(story, start=1):
        out.append(receipt(version, out[-1].target, event, target, at))
    return out


def told(*story: tuple[str, dict[str, Any], float]) -> tuple[list[Receipt], Snapshot]:
    """Return the journal and the record of a life, decided event by event."""
    codec = Codec(EXECUTION, frozenset(DERIVED))
    step = create(EXECUTION, identity(attempts_max=3))
    receipts = [receipt_of(step, 1)]
    for event, fields, at in story:
        payload, text = codec.encode(event, fields)
        answer = decide(
            EXECUTION,
            step.after,
            Request(event, at, payload, text, fence=step.after.fence, worker="worker_1"),
        )
        assert isinstance(answer, Step), answer
        step = answer
        receipts.append(receipt_of(step, len(receipts) + 1))
    return receipts, step.after


# --- durations -----------------------------------------------------------------------------------------------

LIFE = journal(
    ("start", "starting", 101.0),
    ("think", "thinking", 103.0),
    ("call_model", "calling_model", 106.0),
    ("open_tool", "calling_model", 107.0),
    ("think", "thinking", 110.0),
    ("process_results", "processing_results", 110.5),
    ("finish", "completing", 111.0),
    ("complete", "completed", 112.0),
)
SPENT = {
    "created": 1.0,
    "starting": 2.0,
    "thinking": 3.5,
    "calling_model": 4.0,
    "processing_results": 0.5,
    "completing": 1.0,
}


def test_time_is_booked_to_the_state_in_which_it_was_spent() -> None:
    """Each stay counts for the state that was left, not for the one that was entered; visits are summed."""
    assert durations(LIFE, EXECUTION.terminal, 112.0) == SPENT
    assert list(durations(LIFE, EXECUTION.terminal, 112.0)) == list(SPENT), "in the order of the first visit"


def test_durations_stop_growing_at_the_end() -> None:
    """After the end nothing grows any more, and the end itself takes no time."""
    for now in (112.0, 113.0, 1e9):
        assert durations(LIFE, EXECUTION.terminal, now) == SPENT


def test_an_open_stay_counts_up_to_now() -> None:
    """While it is open, the state that it is in grows with the clock, and only that one."""
    for now, thinking in ((103.0, 0.0), (103.5, 0.5), (1_003.0, 900.0)):
        spent = durations(LIFE[:3], EXECUTION.terminal, now)
        assert spent == {"created": 1.0, "starting": 2.0, "thinking": thinking}


def test_a_journal_of_nothing_took_no_time() -> None:
    """No journal, no time; a birth alone counts for the first state."""
    assert durations([], EXECUTION.terminal, 5.0) == {}
    assert durations(LIFE[:1], EXECUTION.terminal, 104.0) == {"created": 4.0}


def test_no_duration_is_negative() -> None:
    """A clock that is behind the journal's last row takes nothing away."""
    assert durations(LIFE[:3], EXECUTION.terminal, 50.0)["thinking"] == 0.0


def test_internal_events_split_no_stay() -> None:
    """Events that keep the state leave its time as it would be without them."""
    with_progress, _ = told(("start", {}, 101.0), ("progress", {}, 102.0), ("think", {}, 104.0))
    without, _ = told(("start", {}, 101.0), ("think", {}, 104.0))
    spent = durations(without, EXECUTION.terminal, 110.0)
    assert durations(with_progress, EXECUTION.terminal, 110.0) == spent
    assert spent == {"created": 1.0, "starting": 3.0, "thinking": 6.0}


@settings(max_examples=100)
@given(
    st.lists(st.floats(0.0, 1e4), min_size=1, max_size=9),
    st.floats(0.0, 1e4),
    st.sampled_from(["completed", "thinking"]),
)
def test_durations_sum_up_to_the_whole_life(gaps: list[float], rest: float, last: str) -> None:
    """All durations together are the time from birth to the end, or to now while it is open."""
    receipts = [receipt(0, None, "create", "created", BORN_AT)]
    at = BORN_AT
    for index, gap in enumerate(gaps):
        at += gap
        target = last if index == len(gaps) - 1 else "starting" if index % 2 else "thinking"
        receipts.append(receipt(index + 1, receipts[-1].target, "go", target, at))
    until = at if last == "completed" else at + rest
    spent = durations(receipts, EXECUTION.terminal, at + rest)
    assert sum(spent.values()) == pytest.approx(until - BORN_AT, abs=1e-6)
    assert all(value >= 0 for value in spent.values())
    assert "completed" not in spent


# --- fold ----------------------------------------------------------------------------------------------------


def test_a_sound_journal_replays_to_its_state() -> None:
    """A journal folds to the state of its last row; an empty one to nothing."""
    assert fold(LIFE, EXECUTION) == "completed"
    for length in range(1, len(LIFE)):
        assert fold(LIFE[:length], EXECUTION) == LIFE[length - 1].target
    assert fold([], EXECUTION) is None


def test_a_missing_row_is_found() -> None:
    """A journal from which any row was taken, but the last, does not fold."""
    for gone in range(len(LIFE) - 1):
        with pytest.raises(ValueError, match=f"version {gone} is missing: found {gone + 1}"):
            fold([*LIFE[:gone], *LIFE[gone + 1 :]], EXECUTION)


def test_a_repeated_or_swapped_row_is_found() -> None:
    """Rows that come twice or out of order are found."""
    with pytest.raises(ValueError, match="version 3 is missing: found 2"):
        fold([*LIFE[:3], LIFE[2], *LIFE[3:]], EXECUTION)
    with pytest.raises(ValueError, match="version 2 is missing: found 3"):
        fold([*LIFE[:2], LIFE[3], LIFE[2]], EXECUTION)


def test_a_row_that_begins_elsewhere_is_found() -> None:
    """A row must begin where the last one ended."""
    torn = [*LIFE[:3], LIFE[3]._replace(source="starting"), *LIFE[4:]]
    with pytest.raises(ValueError, match="version 3 begins in 'starting', the last ended in 'thinking'"):
        fold(torn, EXECUTION)
    with pytest.raises(ValueError, match="version 0 begins in 'created', the last ended in None"):
        fold([LIFE[0]._replace(source="created")], EXECUTION)


@pytest.mark.parametrize(
    "row",
    [
        receipt(1, "created", "complete", "completed", 101.0),
        receipt(1, "created", "start", "thinking", 101.0),
        receipt(1, "created", "begin", "starting", 101.0),
        receipt(1, "created", "create", "created", 101.0),
        receipt(1, "created", "start", "nowhere", 101.0),
    ],
)
def test_a_row_that_is_not_of_the_table_is_found(row: Receipt) -> None:
    """A row whose event, or where it led, the table does not know is found and named."""
    with pytest.raises(ValueError, match=f"'created' --{row.event}--> '{row.target}' is no row of the table"):
        fold([LIFE[0], row], EXECUTION)


def test_a_birth_into_another_state_is_found() -> None:
    """An execution is born in the machine's initial state and by no other event."""
    for birth in (
        receipt(0, None, "create", "queued", BORN_AT),
        receipt(0, None, "start", "created", BORN_AT),
    ):
        with pytest.raises(ValueError, match="is no row of the table"):
            fold([birth], EXECUTION)


def test_nothing_follows_an_end() -> None:
    """A row after a terminal state is no row of the table."""
    with pytest.raises(ValueError, match="'completed' --fail--> 'failed' is no row"):
        fold([*LIFE, receipt(9, "completed", "fail", "failed", 113.0)], EXECUTION)


@settings(max_examples=60)
@given(machines())
def test_the_legal_rows_are_the_arrows_and_the_birth(machine: Machine) -> None:
    """What a journal may hold is exactly the machine's arrows and the creation."""
    expected = {(arrow.source, arrow.event, arrow.target) for arrow in machine.arrows}
    assert legal_rows(machine) == expected | {(None, "create", machine.initial)}


def test_legal_rows_of_two_machines_are_not_mixed_up() -> None:
    """Each machine has its own legal rows, also when machines of one name differ."""
    twin = EXECUTION.model_copy(update={"transitions": EXECUTION.transitions[:-1]})
    assert legal_rows(EXECUTION) - legal_rows(twin) == {("cancelling", "fail", "cancelled")}
    assert legal_rows(BREAKER).isdisjoint(legal_rows(EXECUTION))


# --- receipts ------------------------------------------------------------------------------------------------


def test_a_receipt_says_what_was_committed() -> None:
    """A receipt holds the state before and after, the version, the claim and what came with the event."""
    receipts, after = told(("enqueue", {}, 101.0), ("start", {"owner": "worker_7", "note": "go"}, 102.5))
    assert receipts[-1] == Receipt(
        3,
        "exec_1",
        2,
        "start",
        "queued",
        "starting",
        102.5,
        1,
        1,
        "worker_7",
        None,
        receipts[-1].payload_json,
    )
    assert receipts[-1].payload == {"owner": "worker_7", "note": "go"}
    assert receipts[-1].state == "starting" == after.state
    assert receipts[1].payload == {}
    assert receipts[0].source is None
    assert [one.version for one in receipts] == [0, 1, 2]


def test_a_receipts_payload_is_fresh_at_every_look() -> None:
    """Changing the payload that was read changes neither the receipt nor the next look."""
    receipts, _ = told(("start", {"data": {"list": [1]}}, 101.0))
    receipts[-1].payload["data"]["list"].append(2)
    receipts[-1].payload["more"] = True
    assert receipts[-1].payload == {"data": {"list": [1]}}
    data = receipts[-1].as_dict()
    data["payload"]["data"]["list"].clear()
    assert receipts[-1].payload == {"data": {"list": [1]}}


def test_a_receipt_as_a_dict_is_json() -> None:
    """A receipt as a dict has every field, the payload decoded, and can be written as JSON."""
    receipts, _ = told(("start", {"note": "x"}, 101.0))
    data = json.loads(json.dumps(receipts[-1].as_dict()))
    assert data["payload"] == {"note": "x"}
    assert set(data) == set(Receipt._fields) - {"payload_json"} | {"payload"}


# --- what is shown -------------------------------------------------------------------------------------------


def shown(snapshot: Snapshot) -> Execution:
    """Return the view of a record, checked as strictly as if it came from outside."""
    execution = view(snapshot, EXECUTION)
    assert Execution.model_validate(execution.model_dump()) == execution, "the view has the declared types"
    return execution


@pytest.mark.parametrize("result", [0, False, "", [], {}, None, 1.5, {"deep": [None]}])
def test_a_result_is_shown_as_it_was_given(result: Any) -> None:
    """Whatever was returned is the result, falsy values too; the outcome is told apart from it."""
    story = [
        ("start", {}, 101.0),
        ("think", {}, 102.0),
        ("process_results", {}, 103.0),
        ("finish", {}, 104.0),
        ("complete", {"result": result}, 105.0),
    ]
    _, after = told(*story)
    execution = shown(after)
    assert execution.result == result
    assert type(execution.result) is type(result)
    assert (execution.state, execution.category, execution.outcome) == ("completed", "terminal", "completed")
    assert execution.ended
    assert execution.ended_at == 105.0
    assert execution.error is None


@pytest.mark.parametrize(
    ("event", "given", "outcome", "error"),
    [
        ("fail", {"error": "boom"}, "failed", "boom"),
        ("fail", {"error": "boom", "outcome": "quota"}, "quota", "boom"),
        ("fail", {}, "failed", None),
        ("time_out", {"kind": "total"}, "total", None),
        ("time_out", {"kind": "limit", "outcome": "turns"}, "turns", None),
        ("time_out", {}, "timed_out", None),
        ("cancel", {"reason": "changed my mind"}, "cancelled", None),
    ],
)
def test_an_end_says_why(event: str, given: dict[str, Any], outcome: str, error: str | None) -> None:
    """The outcome is the given word, else the kind of limit, else the state; the error is the given text."""
    _, after = told((event, given, 101.0))
    execution = shown(after)
    assert (execution.outcome, execution.error) == (outcome, error)


def test_what_is_open_has_no_outcome() -> None:
    """While it runs there is no outcome, result, error or end."""
    _, after = told(("start", {}, 101.0))
    execution = shown(after)
    assert not execution.ended
    assert (execution.ended_at, execution.outcome, execution.result, execution.error) == (
        None,
        None,
        None,
        None,
    )
    assert (execution.state, execution.category, execution.owner) == ("starting", "running", "worker_1")
    assert (execution.attempt, execution.attempts_max, execution.fence) == (1, 3, 1)


def test_a_failed_attempt_that_is_retried_has_no_outcome() -> None:
    """A retryable failure ends the attempt, not the execution."""
    _, after = told(("start", {}, 101.0), ("fail", {"retryable": True, "error": "503"}, 102.0))
    execution = shown(after)
    assert (execution.state, execution.outcome, execution.error, execution.ended_at) == (
        "queued",
        None,
        None,
        None,
    )


def test_a_view_shares_nothing() -> None:
    """Metadata and results that are changed by one reader are whole for the next one."""
    born = identity(metadata_json='{"tags":["a"]}', timeouts_json='{"phase_s":0.5}')
    after = create(EXECUTION, born).after._replace(state="completed", end_json='{"result":[1]}')
    first = view(after, EXECUTION)
    first.metadata["tags"].append("b")
    first.result.append(2)
    again = view(after, EXECUTION)
    assert again.metadata == {"tags": ["a"]}
    assert again.result == [1]
    assert again.timeouts == Timeouts(phase_s=0.5).over(EXECUTION.timeouts)
    assert again.timeouts.model_fields_set == {"phase_s"}


def test_a_view_is_frozen() -> None:
    """What is shown cannot be written to."""
    execution = view(create(EXECUTION, identity()).after, EXECUTION)
    with pytest.raises(ValidationError, match="frozen"):
        execution.state = "completed"  # type: ignore[misc]


def test_open_tools_are_shown_by_name() -> None:
    """The open tools are listed oldest first."""
    _, after = told(
        ("start", {}, 101.0),
        ("open_tool", {"name": "search", "call_id": "1"}, 102.0),
        ("open_tool", {"name": "read"}, 103.0),
    )
    assert shown(after).open_tools == ("search", "read")


@pytest.mark.parametrize("bad", [0, -1, 1001, 1.5, "2", True, None])
def test_attempts_are_counted_in_whole_numbers(bad: Any) -> None:
    """Attempts below one, beyond all reason, broken, as text or as booleans are refused."""
    for field in ("attempts_max", "model_attempts_max"):
        with pytest.raises(ValidationError, match=field):
            Retry(**{field: bad})
    assert (Retry().attempts_max, Retry().model_attempts_max) == (1, 5)


@pytest.mark.parametrize("bad", [-1.0, -0.001, math.nan, math.inf, "1", True, None])
def test_waits_are_durations(bad: Any) -> None:
    """A negative, endless or NaN wait, text and booleans are refused; no wait at all is one."""
    for field in ("backoff_s", "backoff_cap_s"):
        with pytest.raises(ValidationError, match=field):
            Retry(**{field: bad})
    assert Retry(backoff_s=0, backoff_cap_s=0.5).backoff_cap_s == 0.5
