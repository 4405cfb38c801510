"""The one decision: pure, fenced, bounded in time; and a refusal says why, and what would be allowed instead."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any
from unittest import mock

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fsm import EXECUTION, Fact, Machine, Refusal, Timeouts
from fsm.core import decide as module
from fsm.core.decide import CHANGES, DERIVED, MAX_OPEN_TOOLS, allowed, create, deadline, decide, refuse
from fsm.core.payloads import PAYLOADS, Codec
from fsm.core.records import Identity, Snapshot, Step, receipt_of
from fsm.core.request import Request
from fsm.machine.grammar import row, state
from tests.support.strategies import machines

CODEC = Codec(EXECUTION, frozenset(DERIVED))
BORN_AT = 1_000.0
CURRENT = -1
"""Stands for the fence that the record has: the owner fires."""


def identity(machine: Machine = EXECUTION, timeouts: Timeouts | None = None, **others: Any) -> Identity:
    text = None if timeouts is None else timeouts.model_dump_json(exclude_unset=True)
    usual = Identity(
        "exec_1", machine.content_hash, "agent", "ada", "t", None, None, BORN_AT, 1, 5, None, text, BORN_AT
    )
    return usual._replace(**others)


class Life:
    """One execution, driven by hand: each event a second after the last unless it is said otherwise."""

    def __init__(self, timeouts: Timeouts | None = None, machine: Machine = EXECUTION, **others: Any) -> None:
        self.machine = machine
        self.codec = Codec(machine, frozenset(DERIVED))
        self.step = create(machine, identity(machine, timeouts, **others))
        self.at = BORN_AT

    @property
    def now(self) -> Snapshot:
        return self.step.after

    def ask(
        self, event: str, *, at: float | None = None, fence: int | None = CURRENT, **given: Any
    ) -> Step | Refusal:
        payload, text = self.codec.encode(event, given)
        when = self.at + 1.0 if at is None else at
        fence = self.now.fence if fence == CURRENT else fence
        return decide(
            self.machine,
            self.now,
            Request(event, when, payload, text, fence=fence, key=None, worker="worker_1"),
        )

    def fire(
        self, *events: str, at: float | None = None, fence: int | None = CURRENT, **given: Any
    ) -> Snapshot:
        for event in events:
            step = self.ask(event, at=at, fence=fence, **given)
            assert isinstance(step, Step), step
            self.at = step.after.updated_at
            self.step = step
        return self.now

    def refused(self, event: str, **others: Any) -> Refusal:
        before = self.now
        answer = self.ask(event, **others)
        assert isinstance(answer, Refusal), answer
        assert self.now == before
        return answer


# --- pure ----------------------------------------------------------------------------------------------------

DECIDING = (*("warm", "paid"), *DERIVED)
noted = st.lists(st.sampled_from(sorted(CHANGES)), max_size=2, unique=True).map(tuple)
drawn_machines = machines(facts=DECIDING, assign=noted, events=("go", "turn"))
tool_lists = st.lists(
    st.tuples(st.sampled_from(["search", "read"]), st.none() | st.sampled_from(["c1", "c2"])), max_size=3
).map(tuple)


@st.composite
def snapshots(draw: st.DrawFn, machine: Machine) -> Snapshot:
    """Draw a record of a machine, in any of its states."""
    born = identity(machine, attempts_max=draw(st.integers(1, 3)), model_attempts_max=draw(st.integers(1, 3)))
    entered_at = BORN_AT + draw(st.floats(0, 100))
    return create(machine, born).after._replace(
        state=draw(st.sampled_from(machine.states)).name,
        version=draw(st.integers(1, 9)),
        entered_at=entered_at,
        updated_at=entered_at + draw(st.floats(0, 100)),
        attempt=draw(st.integers(0, 3)),
        owner=draw(st.none() | st.just("worker_1")),
        fence=draw(st.integers(0, 5)),
        tools=draw(tool_lists),
        model_attempt=draw(st.integers(0, 3)),
        not_before=draw(st.none() | st.floats(BORN_AT, BORN_AT + 500)),
        limit_s=draw(st.none() | st.floats(0.1, 100)),
    )


class Sealed(dict[str, Any]):
    """A payload that cannot be changed."""

    def __setitem__(self, *_args: Any) -> None:
        raise AssertionError("a decision must not change its payload")

    __delitem__ = pop = popitem = clear = update = setdefault = __setitem__  # type: ignore[assignment]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_decision_is_pure_and_its_step_follows_from_the_table(data: st.DataObject) -> None:
    """The same input gives the same output and stays as it was; a step is a row of the table and nothing else."""
    machine = data.draw(drawn_machines)
    snapshot = data.draw(snapshots(machine))
    event = data.draw(st.sampled_from(machine.events))
    payload = Sealed(
        data.draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "warm": st.booleans(),
                    "paid": st.booleans(),
                    "name": st.none() | st.sampled_from(["search", "write"]),
                    "call_id": st.none() | st.just("c1"),
                    "owner": st.just("worker_2"),
                    "retry_in_s": st.none() | st.floats(0, 100),
                    "breaker": st.none() | st.just("key"),
                    "expires_s": st.none() | st.floats(0.1, 100),
                },
            )
        )
    )
    fence = data.draw(st.none() | st.just(snapshot.fence))
    facts = Request(
        event,
        BORN_AT + data.draw(st.floats(-50, 500)),
        payload,
        '{"n":1}',
        fence=fence,
        key="key",
        worker="worker_3",
    )
    before = (tuple(snapshot), machine.content_hash)
    answer = decide(machine, snapshot, facts)
    assert decide(machine, snapshot, facts) == answer
    assert (tuple(snapshot), machine.content_hash) == before
    if isinstance(answer, Refusal):
        assert (answer.state, answer.version, answer.event) == (snapshot.state, snapshot.version, event)
        return
    after = answer.after
    assert (answer.source, answer.event, answer.key, answer.payload_json) == (
        snapshot.state, event, "key", '{"n":1}',
    )  # fmt: skip
    arrows = [
        arrow for arrow in machine.by_source[snapshot.state][event]
        if (arrow.target, arrow.effects) == (after.state, answer.effects)
    ]  # fmt: skip
    assert arrows, "the step is an arrow of the table"
    assert after.identity is snapshot.identity
    assert after.version == snapshot.version + 1
    assert after.updated_at == max(facts.at, snapshot.updated_at)
    assert after.entered_at in {snapshot.entered_at, after.updated_at}
    assert after.fence >= snapshot.fence
    assert after.attempt >= snapshot.attempt
    assert (after.due_at is None) is (after.due_kind is None)
    if after.state in machine.terminal:
        assert after.due_at is None


def test_creation_is_version_0_in_the_initial_state() -> None:
    """An execution is born at version 0, owned by nobody, with its queue deadline; creation is the first row."""
    step = create(EXECUTION, identity())
    after = step.after
    assert (step.source, step.event, step.effects) == (None, "create", ())
    assert (after.state, after.version, after.attempt, after.fence, after.owner) == ("created", 0, 0, 0, None)
    assert (after.entered_at, after.updated_at) == (BORN_AT, BORN_AT)
    assert (after.due_at, after.due_kind) == (BORN_AT + 3_600.0, "queue")
    assert (after.tools, after.not_before, after.end_json) == ((), None, None)


def test_effects_are_orders_as_data() -> None:
    """An end that takes its children along says so in the step; nothing is carried out here."""
    life = Life()
    life.fire("start")
    for event in ("fail", "time_out", "cancel"):
        step = life.ask(event)
        assert isinstance(step, Step)
        assert step.effects == ("cancel_children",)
    think = life.ask("think")
    assert isinstance(think, Step)
    assert think.effects == ()


# --- claims and fences ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["connect", "validate", "start"])
@pytest.mark.parametrize("before", [(), ("enqueue",)])
def test_the_first_running_state_claims(event: str, before: tuple[str, ...]) -> None:
    """Whoever takes an execution out of the queue owns it: attempt and fence grow by one, at once."""
    life = Life()
    life.fire(*before)
    now = life.fire(event, owner="worker_7")
    assert (now.owner, now.attempt, now.fence) == ("worker_7", 1, 1)
    assert receipt_of(life.step, 1).fence == 1, "the receipt tells the claimer its fence"


def test_without_a_name_the_calling_worker_becomes_the_owner() -> None:
    """A claim that names nobody is the claim of the worker that makes it."""
    assert Life().fire("start").owner == "worker_1"


def test_going_on_to_the_next_phase_is_no_new_claim() -> None:
    """Only leaving the queue claims: later steps of the same attempt keep owner, attempt and fence."""
    life = Life()
    life.fire("connect", owner="worker_7")
    now = life.fire("validate", "start", "think")
    assert (now.owner, now.attempt, now.fence) == ("worker_7", 1, 1)


@pytest.mark.parametrize(
    ("loss", "given"),
    [("lapse", {}), ("fail", {"retryable": True})],
)
def test_a_late_worker_is_refused_before_and_after_the_next_claim(loss: str, given: dict[str, Any]) -> None:
    """A worker whose attempt was taken away is fenced at once, not only when somebody else has claimed."""
    life = Life(attempts_max=3)
    old = life.fire("start").fence
    life.fire("think", fence=old)
    now = life.fire(loss, **given)
    assert (now.state, now.owner, now.attempt) == ("queued", None, 1)
    assert now.fence == old + 1
    for event in ("progress", "start", "cancel", "complete", "no_such_event"):
        late = life.refused(event, fence=old)
        assert late.reason == "fenced"
        assert "taken away" in late.detail
    new = life.fire("start", owner="worker_2")
    assert (new.owner, new.attempt, new.fence) == ("worker_2", 2, old + 2)
    assert life.refused("think", fence=old).reason == "fenced"
    assert life.refused("think", fence=old + 1).reason == "fenced"
    assert life.fire("think", fence=old + 2).state == "thinking"


def test_a_future_fence_is_refused_too() -> None:
    """A fence that was never given out is not taken for a good one."""
    life = Life()
    life.fire("start")
    assert life.refused("think", fence=2).reason == "fenced"
    assert life.refused("think", fence=0).reason == "fenced"
    assert life.fire("think", fence=1).state == "thinking"


def test_a_release_leaves_nothing_of_the_attempt() -> None:
    """A lost attempt's open tools, model attempts and breaker are gone with it."""
    life = Life(attempts_max=2)
    life.fire("start", "call_model")
    life.fire("open_tool", name="search")
    now = life.fire("lapse", retry_in_s=30.0)
    assert (now.tools, now.model_attempt, now.breaker, now.owner) == ((), 0, None, None)
    assert now.not_before == now.updated_at + 30.0
    assert life.fire("start").not_before is None, "the wait is over when it runs"


def test_attempts_run_out() -> None:
    """The last attempt that is lost ends it dead, the last that fails ends it failed, with the payload kept."""
    life = Life(attempts_max=2)
    life.fire("start", "lapse", "start")
    assert life.fire("lapse").state == "dead"
    life = Life(attempts_max=2)
    life.fire("start")
    assert life.fire("fail", retryable=True).state == "queued"
    life.fire("start")
    ended = life.fire("fail", retryable=True, error="boom")
    assert ended.state == "failed"
    assert json.loads(ended.end_json or "") == {"retryable": True, "error": "boom"}


def test_what_is_not_retryable_fails_at_once() -> None:
    """An error that will not go away ends the execution although attempts are left."""
    life = Life(attempts_max=5)
    life.fire("start")
    assert life.fire("fail", error="no such model").state == "failed"


def test_an_execution_that_nobody_owns_cannot_lose_its_worker() -> None:
    """A lapse needs an owner: in the queue the table refuses it, without an owner the guard."""
    life = Life(attempts_max=2)
    assert life.refused("lapse").reason == "not_allowed"
    life.fire("start")
    life.step = life.step._replace(after=life.now._replace(owner=None))
    refusal = life.refused("lapse")
    assert (refusal.reason, refusal.detail) == ("guard", "no worker owns it, so none can be lost")


def test_a_cancel_waits_for_the_owner_only_if_there_is_one() -> None:
    """What a worker drives is told to stop and has time to; what nobody drives is cancelled at once."""
    assert Life().fire("cancel").state == "cancelled"
    life = Life()
    now = life.fire("start", "cancel")
    assert (now.state, now.due_kind) == ("cancelling", "grace")
    assert life.refused("cancel").reason == "not_allowed"
    ended = life.fire("stopped", result="late")
    assert (ended.state, ended.end_json) == ("cancelled", '{"result":"late"}')


def test_what_was_observed_must_still_be_so() -> None:
    """An event that was meant for an older version, or for what another worker owns, is refused as stale."""
    now = Life().fire("start", "think")
    for facts in (
        Request("progress", now.updated_at, {}, version=now.version - 1),
        Request("progress", now.updated_at, {}, version=now.version + 1),
        Request("progress", now.updated_at, {}, holder="worker_2"),
        Request("progress", now.updated_at, {}, version=now.version, holder="worker_2"),
    ):
        refusal = decide(EXECUTION, now, facts)
        assert isinstance(refusal, Refusal)
        assert refusal.reason == "stale"
        assert f"version {now.version}" in refusal.detail
    same = decide(
        EXECUTION,
        now,
        Request("progress", now.updated_at, {}, fence=now.fence, version=now.version, holder="worker_1"),
    )
    assert isinstance(same, Step)


# --- tools ---------------------------------------------------------------------------------------------------


def tools(*opened: tuple[str, str | None]) -> Life:
    life = Life()
    life.fire("start", "think", "run_tools")
    for name, call_id in opened:
        given = {"name": name} | ({} if call_id is None else {"call_id": call_id})
        life.fire("open_tool", **given)
    return life


def test_tools_are_counted_in_order() -> None:
    """Several tools may be open, several of one name too, and the state stays."""
    life = tools(("search", None), ("read", "c1"), ("search", None))
    assert life.now.tools == (("search", None), ("read", "c1"), ("search", None))
    assert life.now.state == "running_tools"


@pytest.mark.parametrize(
    ("close", "left"),
    [
        ({}, [("b", "2"), ("a", "3"), ("b", "4"), ("c", None)]),
        ({"name": "b"}, [("a", "1"), ("a", "3"), ("b", "4"), ("c", None)]),
        ({"name": "c"}, [("a", "1"), ("b", "2"), ("a", "3"), ("b", "4")]),
        ({"call_id": "3"}, [("a", "1"), ("b", "2"), ("b", "4"), ("c", None)]),
        ({"call_id": "4", "name": "b"}, [("a", "1"), ("b", "2"), ("a", "3"), ("c", None)]),
        ({"name": None, "call_id": None}, [("b", "2"), ("a", "3"), ("b", "4"), ("c", None)]),
    ],
)
def test_a_close_takes_the_call_that_it_means(close: dict[str, Any], left: list[Any]) -> None:
    """A call id closes exactly its call, a name the oldest of that name, and nothing at all the oldest of all."""
    life = tools(("a", "1"), ("b", "2"), ("a", "3"), ("b", "4"), ("c", None))
    assert life.fire("close_tool", **close).tools == tuple(left)


@pytest.mark.parametrize(
    "close", [{"name": "d"}, {"call_id": "9"}, {"name": "a", "call_id": "2"}, {"name": ""}]
)
def test_closing_what_is_not_open_is_refused(close: dict[str, Any]) -> None:
    """A close that means no open call changes nothing and is refused by the guard."""
    life = tools(("a", "1"), ("b", "2"))
    refusal = life.refused("close_tool", **close)
    assert (refusal.reason, refusal.detail) == ("guard", "no such tool is open")
    assert "close_tool" in refusal.allowed
    empty = tools()
    assert empty.refused("close_tool").reason == "guard"
    assert "close_tool" not in empty.refused("close_tool").allowed


def test_a_tool_without_a_name_is_closed_without_one() -> None:
    """Tools that were opened without a name are counted too."""
    life = Life()
    life.fire("start", "think", "open_tool", "open_tool")
    assert life.now.tools == (("", None), ("", None))
    assert life.fire("close_tool", name="").tools == (("", None),)
    assert life.fire("close_tool").tools == ()


@pytest.mark.parametrize("waiting", ["think", "call_model", "await_input"])
def test_tools_may_be_open_in_any_phase(waiting: str) -> None:
    """A tool opens and closes also during a model's answer and while a person is asked."""
    life = Life()
    life.fire("start", "think")
    if waiting != "think":
        life.fire(waiting)
    where = life.now.state
    life.fire("open_tool", name="search")
    assert life.fire("close_tool").state == where


def test_an_open_tool_keeps_it_from_finishing() -> None:
    """Neither finish nor complete is accepted while a tool is open; an abnormal end is, and leaves none open."""
    life = tools(("search", None))
    life.fire("process_results")
    refusal = life.refused("finish")
    assert (refusal.reason, refusal.detail) == ("guard", "a tool is still open: close it first")
    life.fire("close_tool")
    life.fire("finish")
    life.fire("open_tool", name="late")
    assert life.refused("complete").reason == "guard"
    assert life.fire("fail").tools == ()


def test_open_tools_have_a_limit_in_the_table() -> None:
    """A guard of the table refuses the tool call above the limit; closing one makes room."""
    life = tools()
    life.step = life.step._replace(after=life.now._replace(tools=(("x", None),) * (MAX_OPEN_TOOLS - 1)))
    life.fire("open_tool", name="last")
    refusal = life.refused("open_tool", name="one more")
    assert (refusal.reason, refusal.detail[-15:]) == ("guard", "close one first")
    assert "open_tool" not in refusal.allowed
    assert "close_tool" in refusal.allowed
    life.fire("close_tool")
    assert len(life.fire("open_tool", name="fits").tools) == MAX_OPEN_TOOLS


# --- model calls ---------------------------------------------------------------------------------------------


def test_model_attempts_are_counted_and_run_out() -> None:
    """Each try of a model call counts; when none is left, backing off is refused with what else to do."""
    life = Life(model_attempts_max=3)
    assert life.fire("start", "call_model").model_attempt == 1
    for attempt in (2, 3):
        now = life.fire("back_off", retry_in_s=2.5)
        assert (now.state, now.not_before) == ("backing_off", now.updated_at + 2.5)
        assert life.fire("call_model").model_attempt == attempt
    refusal = life.refused("back_off")
    assert refusal.reason == "guard"
    assert "fallback" in refusal.detail
    assert "back_off" not in refusal.allowed
    life.fire("think")
    assert life.fire("call_model").model_attempt == 1, "another call is counted anew"


def test_a_tripped_call_was_an_attempt() -> None:
    """A call that the breaker cut short counts; the next try of it is the second."""
    life = Life()
    life.fire("start", "call_model")
    now = life.fire("trip", breaker="openai", retry_in_s=9.0)
    assert (now.state, now.breaker, now.not_before) == ("circuit_open", "openai", now.updated_at + 9.0)
    now = life.fire("call_model")
    assert (now.model_attempt, now.breaker, now.not_before) == (2, None, None)


def test_a_call_that_got_no_permit_is_no_attempt() -> None:
    """What the breaker did not let through was not tried: only calls that were made count."""
    life = Life(model_attempts_max=2)
    now = life.fire("start", "think")
    now = life.fire("call_model", permit=False, breaker="openai", retry_in_s=5.0)
    assert (now.state, now.breaker, now.model_attempt) == ("circuit_open", "openai", 0)
    waited = life.fire("call_model", permit=False, breaker="azure", retry_in_s=7.0)
    assert (waited.state, waited.entered_at, waited.breaker) == ("circuit_open", now.entered_at, "azure")
    assert waited.not_before == waited.updated_at + 7.0
    assert life.fire("call_model").model_attempt == 1
    life.fire("back_off")
    assert life.fire("call_model", permit=False).model_attempt == 1
    assert life.fire("call_model").model_attempt == 2
    assert life.refused("back_off").reason == "guard"


def test_a_denied_call_after_an_earlier_one_begins_anew() -> None:
    """A new call that gets no permit does not inherit the tries of the call before it."""
    life = Life(model_attempts_max=3)
    life.fire("start", "call_model", "back_off", "call_model", "think")
    assert life.fire("call_model", permit=False).model_attempt == 0


# --- time ----------------------------------------------------------------------------------------------------

SHORT = Timeouts(total_s=1_000.0, queue_s=10.0, phase_s=20.0, input_s=30.0, grace_s=40.0)


@pytest.mark.parametrize(
    ("events", "kind", "seconds"),
    [
        ((), "queue", 10.0),
        (("enqueue",), "queue", 10.0),
        (("start",), "phase", 20.0),
        (("start", "think", "call_model"), "phase", 20.0),
        (("start", "think", "await_input"), "input", 30.0),
        (("start", "call_model", "back_off"), "phase", 21.0),  # after the ordered pause of a second
        (("start", "call_model", "trip"), "phase", 20.0),
        (("start", "cancel"), "grace", 40.0),
    ],
)
def test_each_kind_of_state_has_its_deadline(events: tuple[str, ...], kind: str, seconds: float) -> None:
    """The limit of a state counts from the moment when it was entered, or when an ordered wait is over."""
    life = Life(SHORT)
    life.fire(*events)
    assert (life.now.due_at, life.now.due_kind) == (life.now.entered_at + seconds, kind)
    assert life.now.entered_at == BORN_AT + len(events)


def test_internal_events_do_not_prolong_a_phase() -> None:
    """Progress and tools leave the phase's deadline where it was."""
    life = Life(SHORT)
    due_at = life.fire("start", "think").due_at
    assert life.fire("progress", "open_tool", "close_tool").due_at == due_at
    assert life.fire("think" if life.now.state != "thinking" else "prepare_tools").due_at != due_at


def test_a_single_phase_has_a_limit_of_its_own() -> None:
    """A limit by name takes the place of the general one, half a second exactly."""
    life = Life(Timeouts(phase_s=20.0, phases={"thinking": 0.5}))
    assert life.fire("start").due_at == life.at + 20.0
    assert life.fire("think").due_at == life.at + 0.5


def test_the_total_limit_beats_a_later_phase_limit() -> None:
    """When the whole execution must end first, that is its deadline, counted from creation."""
    life = Life(Timeouts(total_s=15.0, phase_s=20.0, queue_s=14.0))
    assert (life.now.due_at, life.now.due_kind) == (BORN_AT + 14.0, "queue")
    now = life.fire("start")
    assert (now.due_at, now.due_kind) == (BORN_AT + 15.0, "total")


def test_silence_has_a_deadline_while_it_runs() -> None:
    """Idle counts from the last event, only in running states; every sign of life moves it."""
    life = Life(Timeouts(idle_s=5.0, input_s=10.0))
    assert life.now.due_kind == "queue", "waiting in a queue is not silence"
    now = life.fire("start")
    assert (now.due_at, now.due_kind) == (now.updated_at + 5.0, "idle")
    later = life.fire("progress", at=life.at + 3.0)
    assert (later.due_at, later.due_kind) == (later.updated_at + 5.0, "idle")
    assert life.fire("think", "await_input").due_kind == "input", "a person may be silent"
    assert life.fire("receive_input").due_kind == "idle"
    assert life.fire("cancel").due_kind == "grace"


def test_a_question_may_bring_its_own_limit() -> None:
    """expires_s bounds this one wait, through tools and progress, and not the next one."""
    life = Life(SHORT)
    now = life.fire("start", "think")
    now = life.fire("await_input", expires_s=0.25)
    assert (now.due_at, now.due_kind) == (now.entered_at + 0.25, "input")
    assert life.fire("progress").due_at == now.due_at
    life.fire("receive_input")
    assert life.now.due_kind == "phase"
    now = life.fire("await_input")
    assert now.due_at == now.entered_at + 30.0
    life.fire("receive_input")
    now = life.fire("await_input", expires_s=500.0)
    assert now.due_at == now.entered_at + 500.0, "it may also be longer"


def test_a_question_has_a_limit_even_where_the_general_one_was_lifted() -> None:
    """expires_s counts also when input_s is None."""
    life = Life(Timeouts(input_s=None, total_s=None))
    life.fire("start", "think")
    assert life.fire("await_input").due_at is None
    life.fire("receive_input")
    now = life.fire("await_input", expires_s=7.0)
    assert (now.due_at, now.due_kind) == (now.entered_at + 7.0, "input")


def test_a_planned_wait_does_not_count_against_the_queue() -> None:
    """The queue's limit of a retry counts from the moment when it may start."""
    life = Life(SHORT, attempts_max=2)
    life.fire("start")
    now = life.fire("fail", retryable=True, retry_in_s=100.0)
    assert now.not_before == now.updated_at + 100.0
    assert (now.due_at, now.due_kind) == (now.not_before + 10.0, "queue")


def test_a_retry_at_once_counts_from_now() -> None:
    """A retry without a wait, by policy or by payload, has the queue's limit from now on."""
    life = Life(SHORT, attempts_max=2, backoff_s=0.0)
    life.fire("start")
    now = life.fire("fail", retryable=True)
    assert (now.not_before, now.due_at) == (now.updated_at, now.entered_at + 10.0)
    life = Life(SHORT, attempts_max=2)
    life.fire("start")
    now = life.fire("fail", retryable=True, retry_in_s=0.0)
    assert (now.not_before, now.due_at) == (now.updated_at, now.entered_at + 10.0)


@pytest.mark.parametrize(
    "story",
    [
        ("start", "think", "process_results", "finish", "complete"),
        ("fail",),
        ("time_out",),
        ("cancel",),
        ("start", "lapse"),
    ],
)
def test_there_is_no_deadline_after_the_end(story: tuple[str, ...]) -> None:
    """What has ended is due never again."""
    now = Life(SHORT).fire(*story)
    assert now.state in EXECUTION.terminal
    assert (now.due_at, now.due_kind) == (None, None)


def test_without_any_limit_nothing_is_due() -> None:
    """Limits that were lifted leave no deadline at all."""
    lifted = Timeouts(total_s=None, queue_s=None, phase_s=None, idle_s=None, input_s=None, grace_s=None)
    life = Life(lifted)
    for event in ("enqueue", "start", "think", "await_input", "receive_input", "cancel"):
        assert (life.now.due_at, life.now.due_kind) == (None, None)
        life.fire(event)


def test_a_wait_that_nobody_named_follows_the_policy() -> None:
    """The n-th wait doubles up to the cap, and the jitter takes up to half of it; a named wait is taken as it is."""
    life = Life(attempts_max=9, backoff_s=2.0, backoff_cap_s=10.0)
    for wait in (2.0, 4.0, 8.0, 10.0, 10.0):
        life.fire("start")
        now = life.fire("fail", retryable=True)
        assert now.not_before == now.updated_at + wait
    for jitter, wait in ((0.0, 10.0), (0.5, 7.5), (1.0, 5.0)):
        started = life.now._replace(state="starting", attempt=6)
        for payload, wanted in (({"retryable": True}, wait), ({"retryable": True, "retry_in_s": 3.0}, 3.0)):
            step = decide(
                EXECUTION,
                started,
                Request("fail", started.updated_at, payload, fence=started.fence, jitter=jitter),
            )
            assert isinstance(step, Step)
            assert step.after.not_before == started.updated_at + wanted


def test_the_backoff_of_model_calls_counts_their_own_attempts() -> None:
    """A pause between two model calls doubles with the tries of that call, whichever attempt of the whole it is."""
    life = Life(model_attempts_max=9, backoff_s=0.5)
    life.fire("start", "call_model")
    for wait in (0.5, 1.0, 2.0, 4.0):
        now = life.fire("back_off")
        assert now.not_before == now.updated_at + wait
        life.fire("call_model")


def test_deadlines_lie_on_the_steady_timeline() -> None:
    """Records carry the wall clock's time, deadlines and waits the steady one's, however far the two are apart."""
    born = create(EXECUTION, identity(timeouts=SHORT, born_at=50.0, attempts_max=2)).after
    assert (born.entered_at, born.due_at) == (BORN_AT, 60.0)
    facts = Request("start", BORN_AT + 9_000.0, {"retry_in_s": 5.0, "retryable": True}, now=52.0)
    started = decide(EXECUTION, born, facts)
    assert isinstance(started, Step)
    assert (started.after.entered_at, started.after.since_at) == (BORN_AT + 9_000.0, 52.0)
    assert (started.after.due_at, started.after.due_kind) == (72.0, "phase")
    failed = decide(EXECUTION, started.after, facts.but(event="fail", now=53.0, fence=started.after.fence))
    assert isinstance(failed, Step)
    assert (failed.after.not_before, failed.after.due_at) == (58.0, 68.0)


seconds = st.none() | st.floats(0.1, 1_000.0)


@settings(max_examples=300)
@given(
    st.builds(Timeouts, total_s=seconds, queue_s=seconds, phase_s=seconds, idle_s=seconds, input_s=seconds),
    st.sampled_from(EXECUTION.states),
    st.tuples(st.floats(0, 500), st.floats(0, 500)),
    st.none() | st.floats(-500, 2_000),
    st.none() | st.floats(0.1, 1_000.0),
)
def test_the_nearest_deadline_counts(timeouts, where, stay, wait, own) -> None:
    """The deadline is the earliest of all that apply, and of two at the same instant the narrower one."""
    entered_at, updated_at = BORN_AT + stay[0], BORN_AT + sum(stay)
    not_before = None if wait is None else entered_at + wait
    limits = EXECUTION.limits(timeouts)
    bounds: list[tuple[float, int, str]] = []
    kind = where.deadline
    general = {
        "queue": timeouts.queue_s, "phase": timeouts.phase_s, "input": timeouts.input_s, "grace": timeouts.grace_s,
    }.get(kind)  # fmt: skip
    if "grace_s" not in timeouts.model_fields_set and kind == "grace":
        general = 30.0
    if where.category != "terminal":
        since = max(entered_at, not_before or 0.0)  # an ordered wait does not count against the limit
        if general is not None:
            bounds.append((since + (general if own is None else own), 0, str(kind)))
        elif own is not None:
            bounds.append((entered_at + own, 0, "input"))
        if timeouts.total_s is not None:
            bounds.append((BORN_AT + timeouts.total_s, 1, "total"))
        if timeouts.idle_s is not None and where.category == "running":
            bounds.append((updated_at + timeouts.idle_s, 2, "idle"))
        expected = (min(bounds)[0], min(bounds)[2]) if bounds else (None, None)
        found = deadline(limits, where.name, BORN_AT, entered_at, updated_at, not_before, own)
        assert found == expected


@settings(max_examples=200)
@given(
    st.booleans(),
    seconds,
    seconds,
    st.sampled_from(EXECUTION.states),
    st.none() | st.floats(0.1, 1_000.0),
    st.floats(0.0, 500.0),
)
def test_waiting_for_a_person_counts_against_a_total_of_ones_own_only(
    given_, total_s, input_s, where, own, paused
) -> None:
    """The machine's total leaves earlier questions out and never ends a bounded one; one's own does both."""
    limits = EXECUTION.limits(Timeouts(input_s=input_s, queue_s=None, phase_s=None, idle_s=None))
    limits = limits._replace(total_s=total_s, total_given=given_)
    due_at, kind = deadline(limits, where.name, BORN_AT, BORN_AT, BORN_AT, None, own, paused)
    if where.category == "terminal":
        return
    stay_s = (
        own
        if own is not None
        else None
        if limits.by_state[where.name] is None
        else limits.by_state[where.name][1]
    )
    asks = where.deadline == "input"
    bounds = [(BORN_AT + stay_s, 0)] if stay_s is not None else []
    if total_s is not None and (given_ or not asks or stay_s is None):
        bounds.append((BORN_AT + total_s + (0.0 if given_ else paused), 1))
    assert due_at == (min(bounds)[0] if bounds else None)
    assert (kind == "total") == bool(bounds and min(bounds)[1])


def test_time_spent_waiting_for_a_person_is_kept_with_the_record() -> None:
    """Each stay that waits for a person adds its length to the record when it is left, and no other stay does."""
    life = Life(timeouts=None)
    life.fire("start", "think", at=BORN_AT + 10.0)
    life.fire("await_input", at=BORN_AT + 20.0)
    assert life.fire("progress", at=BORN_AT + 50.0).paused_s == 0.0
    assert life.fire("receive_input", at=BORN_AT + 120.0).paused_s == 100.0
    life.fire("await_input", at=BORN_AT + 130.0)
    now = life.fire("withdraw", at=BORN_AT + 135.0)
    assert now.paused_s == 105.0
    assert life.fire("call_model", at=BORN_AT + 500.0).paused_s == 105.0


def test_a_clock_that_goes_back_does_not_take_the_journal_along() -> None:
    """After a jump back of the wall clock, records stand still instead of running backwards, and waits stay whole."""
    life = Life(SHORT, attempts_max=2)
    life.fire("start", at=BORN_AT + 100.0)
    now = life.fire("think", at=BORN_AT - 3_600.0)
    assert (now.updated_at, now.entered_at) == (BORN_AT + 100.0, BORN_AT + 100.0)
    assert now.due_at == BORN_AT + 120.0
    life.fire("call_model", at=BORN_AT - 3_600.0)
    now = life.fire("back_off", at=BORN_AT - 3_600.0, retry_in_s=5.0)
    assert now.not_before == BORN_AT + 105.0, "a wait is counted from the record's time"
    now = life.fire("fail", at=BORN_AT - 7_200.0, retryable=True, retry_in_s=50.0)
    assert (now.not_before, now.due_at) == (BORN_AT + 150.0, BORN_AT + 160.0)
    assert life.fire("start", at=BORN_AT + 200.0).updated_at == BORN_AT + 200.0


# --- refusals ------------------------------------------------------------------------------------------------


def test_an_event_that_has_no_row_here_is_not_allowed() -> None:
    """A known event in a state without a row for it is refused as not_allowed, naming both."""
    refusal = Life().refused("complete")
    assert refusal.reason == "not_allowed"
    assert "'complete'" in refusal.detail
    assert "'created'" in refusal.detail
    assert refusal.execution_id == "exec_1"
    assert refusal.allowed == ("enqueue", "connect", "validate", "start", "fail", "time_out", "cancel")


@pytest.mark.parametrize(
    ("typo", "hint"), [("compleet", "did you mean 'complete'?"), ("", ""), ("zzzzz", "")]
)
def test_an_event_that_no_row_knows_is_unknown(typo: str, hint: str) -> None:
    """A misspelt event is refused as unknown, with the one that was probably meant; also after the end."""
    life = Life()
    refusal = life.refused(typo)
    assert refusal.reason == "unknown_event"
    assert "no such event" in refusal.detail
    assert hint in refusal.detail
    life.fire("cancel")
    assert life.refused(typo).reason == "unknown_event"


def test_the_creation_cannot_be_fired() -> None:
    """The event that every journal begins with is none that a caller can fire."""
    assert Life().refused("create").reason == "unknown_event"


@pytest.mark.parametrize("end", ["completed", "failed", "timed_out", "cancelled", "dead"])
def test_an_end_is_final(end: str) -> None:
    """No event leaves a terminal state; the refusal says how to run again."""
    life = Life()
    life.step = life.step._replace(after=life.now._replace(state=end))
    for event in EXECUTION.events:
        refusal = life.refused(event)
        assert (refusal.reason, refusal.allowed) == ("terminal", ())
        assert end in refusal.detail
        assert "retry_of='exec_1'" in refusal.detail


def test_a_guard_without_a_sentence_names_what_it_asks() -> None:
    """A guard that refuses without a declared sentence is explained by its facts."""
    machine = Machine(
        name="m",
        initial="a",
        states=(state("a", "running"), state("b", "terminal")),
        facts=(Fact(name="paid"), Fact(name="owned")),
        transitions=(
            row("a", "go", "b", "paid"),
            row("a", "go", "b", "not paid and owned", otherwise=""),
            row("a", "time_out", "b"),
        ),
    )
    life = Life(machine=machine)
    refusal = life.refused("go")
    assert refusal.reason == "guard"
    assert "paid, not paid and owned" in refusal.detail


def test_a_given_sentence_is_kept() -> None:
    """Whoever refuses for a reason of his own can say his own sentence."""
    now = Life().now
    refusal = refuse(EXECUTION, now, Request("start", 1.0), "duplicate", "this key came with another event")
    assert (refusal.reason, refusal.detail) == ("duplicate", "this key came with another event")
    assert refusal.allowed == allowed(EXECUTION, now)


def test_a_default_answers_a_fact_that_nobody_knows() -> None:
    """A fact that neither record nor payload answers has its declared default."""
    for default in (False, True):
        machine = Machine(
            name="m",
            initial="a",
            states=(state("a", "running"), state("b", "terminal"), state("c", "terminal")),
            facts=(Fact(name="paid", default=default),),
            transitions=(row("a", "go", "b", "paid"), row("a", "go", "c")),
        )
        for payload, wanted in (
            ({}, default),
            ({"paid": None}, default),
            ({"paid": True}, True),
            ({"paid": False}, False),
        ):
            step = decide(machine, create(machine, identity(machine)).after, Request("go", 1.0, payload))
            assert isinstance(step, Step)
            assert step.after.state == ("b" if wanted else "c")


@pytest.mark.parametrize("almost", [1, "true", [True]])
def test_only_true_is_yes(almost: Any) -> None:
    """A fact holds if it is answered with True, not with something that looks like it."""
    now = Life(attempts_max=2).fire("start")
    step = decide(EXECUTION, now, Request("fail", now.updated_at, {"retryable": almost}, fence=now.fence))
    assert isinstance(step, Step)
    assert step.after.state == "failed"


# --- allowed -------------------------------------------------------------------------------------------------


def payloads_for(facts: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield payloads that answer their facts in every way, and name tools that are open and that are not."""
    for answers in product((False, True), repeat=len(facts)):
        for name, call_id in (
            (None, None), ("search", None), ("read", None), ("write", None), (None, "c1"), (None, "c9"),
        ):  # fmt: skip
            yield dict(zip(facts, answers, strict=True)) | {"name": name, "call_id": call_id}


def successes(machine: Machine, snapshot: Snapshot, facts: Sequence[str]) -> set[str]:
    return {
        event
        for event in machine.events
        for payload in payloads_for(facts)
        if isinstance(
            decide(machine, snapshot, Request(event, snapshot.updated_at, payload, fence=snapshot.fence)),
            Step,
        )
    }


@settings(max_examples=120, deadline=None)
@given(st.data(), st.sampled_from([1, 2, 3, MAX_OPEN_TOOLS]))
def test_allowed_is_exactly_what_some_payload_could_make_succeed(data: st.DataObject, most: int) -> None:
    """For any machine and record the allowed events are those, and only those, that can succeed."""
    machine = data.draw(drawn_machines)
    snapshot = data.draw(snapshots(machine))
    with mock.patch.object(module, "MAX_OPEN_TOOLS", most):
        found = allowed(machine, snapshot)
        assert set(found) == successes(machine, snapshot, ("warm", "paid"))
        assert len(set(found)) == len(found)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([2, MAX_OPEN_TOOLS]))
def test_allowed_holds_for_executions(data: st.DataObject, most: int) -> None:
    """For executions too, allowed is exactly the set of events that can succeed."""
    snapshot = data.draw(snapshots(EXECUTION))
    with mock.patch.object(module, "MAX_OPEN_TOOLS", most):
        assert set(allowed(EXECUTION, snapshot)) == successes(EXECUTION, snapshot, ("retryable", "permit"))


def test_events_are_listed_in_the_order_of_the_table() -> None:
    """Allowed events come in the table's order, so that lists and messages are stable."""
    life = Life()
    life.fire("start")
    assert list(life.refused("complete").allowed) == [
        event for event in EXECUTION.events if event in life.refused("complete").allowed
    ]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_refusal_lists_what_is_allowed_and_never_what_was_refused_by_the_table(data: st.DataObject) -> None:
    """Whatever is refused as not allowed is not among the allowed events."""
    snapshot = data.draw(snapshots(EXECUTION))
    event = data.draw(st.sampled_from(EXECUTION.events))
    answer = decide(
        EXECUTION,
        snapshot,
        Request(event, snapshot.updated_at, CODEC.encode(event, {})[0], fence=snapshot.fence),
    )
    assume(isinstance(answer, Refusal))
    assert answer.allowed == allowed(EXECUTION, snapshot)
    if answer.reason in {"not_allowed", "terminal", "unknown_event"}:
        assert event not in answer.allowed


def test_every_payload_field_that_decide_reads_is_one_of_a_model() -> None:
    """The fields that changes of the record are made from exist in the payload models."""
    fields = {field for model in PAYLOADS.values() for field in model.model_fields}
    assert {"owner", "retry_in_s", "breaker", "name", "call_id", "expires_s", "retryable", "permit"} <= fields


# --- what mutants showed that no test said ------------------------------------------------------------------------


def test_an_attempt_beyond_the_last_leaves_none():
    """Attempts are left while there were fewer than there may be; more than that are not "different", but none."""
    for name, limit in (("attempts_left", "attempts_max"), ("model_attempts_left", "model_attempts_max")):
        count = name.removesuffix("s_left")
        answers = [
            DERIVED[name](create(EXECUTION, identity(**{limit: 2})).after._replace(**{count: tried}), {})
            for tried in (0, 1, 2, 3)
        ]
        assert answers == [True, True, False, False], name


def test_a_release_raises_the_fence_by_one():
    """A release makes the old worker a stranger, and leaves no number out, however large it is by now."""
    life = Life(attempts_max=9)
    for fence in (1, 3, 5):
        assert life.fire("start").fence == fence
        assert life.fire("fail", error="x", retryable=True).fence == fence + 1


def test_what_is_stale_is_told_by_value():
    """A version and a holder are compared by what they are, in either direction."""
    snapshot = create(EXECUTION, identity()).after._replace(version=1_000, owner="m", state="thinking")
    for facts, decided in (
        ({"version": int("1000")}, Step), ({"version": 999}, Refusal), ({"version": 1_001}, Refusal),
        ({"holder": "".join("m")}, Step), ({"holder": "a"}, Refusal), ({"holder": "z"}, Refusal),
    ):  # fmt: skip
        answer = decide(EXECUTION, snapshot, Request("progress", BORN_AT + 1.0, {}, **facts))
        assert isinstance(answer, decided), facts
