"""The two shipped tables are exactly the ones that were designed, and every arrow of them is taken here.

The expectations are typed from the design as literal data, state by state; nothing in them is computed from the
tables that they judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import pytest

from fsm import BREAKER, EXECUTION, FsmError, Machine, Refusal
from fsm.core.decide import DERIVED, create, decide
from fsm.core.journal import fold
from fsm.core.payloads import Codec
from fsm.core.records import Identity, Snapshot, Step, receipt_of
from fsm.core.request import Request
from fsm.lifecycles import LEGACY_EDGES, LEGACY_PHASES, LEGACY_STATES, IllegalLegacyEdge, legacy_event
from fsm.machine.executor import Executor
from fsm.machine.grammar import Arrow

CATEGORIES: dict[str, str] = {
    "created": "pending",
    "queued": "pending",
    "connecting": "running",
    "validating": "running",
    "starting": "running",
    "thinking": "running",
    "preparing_tools": "running",
    "calling_model": "running",
    "running_tools": "running",
    "processing_results": "running",
    "completing": "running",
    "awaiting_input": "waiting",
    "backing_off": "waiting",
    "circuit_open": "waiting",
    "cancelling": "stopping",
    "completed": "terminal",
    "failed": "terminal",
    "timed_out": "terminal",
    "cancelled": "terminal",
    "dead": "terminal",
}

# (state, event) -> the cases in their order, each the facts that must hold and where it then leads. A case without
# facts takes the rest; "refused" says that the rest is refused.
Cases = list[tuple[dict[str, bool], str]]
REFUSED = "refused"
NO_TOOL = {"tools_open": False}


def model(permitted: str = "calling_model", denied: str = "circuit_open") -> Cases:
    return [({"permit": True}, permitted), ({}, denied)]


def to(target: str) -> Cases:
    return [({}, target)]


def stays(state: str) -> dict[str, Cases]:
    """What holds in any running or waiting state, mostly without moving it."""
    return {
        "open_tool": [({"owned": True, "tools_left": True}, state), ({}, REFUSED)],
        "close_tool": [({"tool_known": True}, state), ({}, REFUSED)],
        "progress": [({"owned": True}, state), ({}, REFUSED)],
        "fall_back": [({"owned": True}, "thinking"), ({}, REFUSED)],
    }


FAIL: Cases = [({"retryable": True, "attempts_left": True}, "queued"), ({}, "failed")]
LAPSE: Cases = [({"owned": True, "attempts_left": True}, "queued"), ({"owned": True}, "dead"), ({}, REFUSED)]
LEFT: Cases = [
    ({"permit": True, "model_attempts_left": True}, "calling_model"),
    ({"model_attempts_left": True}, "circuit_open"),
    ({}, REFUSED),
]
CANCEL: Cases = [({"owned": True}, "cancelling"), ({}, "cancelled")]
ENDS = {"fail": FAIL, "time_out": to("timed_out"), "lapse": LAPSE, "cancel": CANCEL}

EXPECTED: dict[str, dict[str, Cases]] = {
    "created": {
        "enqueue": to("queued"),
        "connect": to("connecting"),
        "validate": to("validating"),
        "start": to("starting"),
        "fail": FAIL,
        "time_out": to("timed_out"),
        "cancel": to("cancelled"),
    },
    "queued": {
        "connect": to("connecting"),
        "validate": to("validating"),
        "start": to("starting"),
        "fail": FAIL,
        "time_out": to("timed_out"),
        "cancel": to("cancelled"),
    },
    "connecting": {"validate": to("validating"), "start": to("starting"), **stays("connecting"), **ENDS},
    "validating": {"start": to("starting"), **stays("validating"), **ENDS},
    "starting": {"think": to("thinking"), "call_model": model(), **stays("starting"), **ENDS},
    "thinking": {
        "prepare_tools": to("preparing_tools"),
        "call_model": model(),
        "run_tools": to("running_tools"),
        "await_input": to("awaiting_input"),
        "process_results": to("processing_results"),
        **stays("thinking"),
        **ENDS,
    },
    "preparing_tools": {
        "run_tools": to("running_tools"),
        "call_model": model(),
        "think": to("thinking"),
        **stays("preparing_tools"),
        **ENDS,
    },
    "calling_model": {
        "think": to("thinking"),
        "run_tools": to("running_tools"),
        "process_results": to("processing_results"),
        "await_input": to("awaiting_input"),
        "trip": to("circuit_open"),
        "back_off": [({"model_attempts_left": True}, "backing_off"), ({}, REFUSED)],
        **stays("calling_model"),
        **ENDS,
    },
    "running_tools": {
        "think": to("thinking"),
        "call_model": model(),
        "process_results": to("processing_results"),
        "await_input": to("awaiting_input"),
        **stays("running_tools"),
        **ENDS,
    },
    "processing_results": {
        "think": to("thinking"),
        "call_model": model(),
        "await_input": to("awaiting_input"),
        "finish": [(NO_TOOL, "completing"), ({}, REFUSED)],
        **stays("processing_results"),
        **ENDS,
    },
    "completing": {"complete": [(NO_TOOL, "completed"), ({}, REFUSED)], **stays("completing"), **ENDS},
    "awaiting_input": {
        "receive_input": [({"owned": True}, "thinking"), ({}, "queued")],
        "withdraw": [({"owned": True}, "thinking"), ({}, REFUSED)],
        **stays("awaiting_input"),
        **ENDS,
        "lapse": [({"owned": True}, "awaiting_input"), ({}, REFUSED)],
    },
    "backing_off": {"call_model": model(), "think": to("thinking"), **stays("backing_off"), **ENDS},
    "circuit_open": {"call_model": LEFT, "think": to("thinking"), **stays("circuit_open"), **ENDS},
    "cancelling": {
        "stopped": to("cancelled"),
        "time_out": to("cancelled"),
        "lapse": to("cancelled"),
        "fail": to("cancelled"),
    },
    "completed": {},
    "failed": {},
    "timed_out": {},
    "cancelled": {},
    "dead": {},
}

BY_HAND = {"force_open": to("forced_open"), "disable": to("disabled"), "reset": to("closed")}
BREAKER_CATEGORIES = {
    "closed": "running",
    "open": "waiting",
    "half_open": "running",
    "forced_open": "stopping",
    "disabled": "stopping",
}
BREAKER_EXPECTED: dict[str, dict[str, Cases]] = {
    "closed": {
        "trip": [({"policy_met": True, "enough_calls": True}, "open"), ({}, REFUSED)],
        "throttle": to("open"),
        **BY_HAND,
    },
    "open": {
        "throttle": to("open"),
        "acquire": [({"until_passed": True}, "half_open"), ({}, REFUSED)],
        **BY_HAND,
    },
    "half_open": {
        "throttle": to("open"),
        "acquire": [({"probe_free": True}, "half_open"), ({}, REFUSED)],
        "probes_ok": [({"enough_successes": True}, "closed"), ({}, REFUSED)],
        "probe_failed": to("open"),
        "lease_expired": to("open"),
        "abandoned": [({"enough_abandoned": True}, "open"), ({}, REFUSED)],
        **BY_HAND,
    },
    "forced_open": BY_HAND,
    "disabled": BY_HAND,
}

MACHINES: list[tuple[Machine, dict[str, dict[str, Cases]], dict[str, str]]] = [
    (EXECUTION, EXPECTED, CATEGORIES),
    (BREAKER, BREAKER_EXPECTED, BREAKER_CATEGORIES),
]
BOTH = pytest.mark.parametrize(("machine", "expected", "categories"), MACHINES, ids=["execution", "breaker"])


class Question:
    """Stands in for a record: a state, and an answer to every fact."""

    def __init__(self, state: str, answers: Mapping[str, bool]) -> None:
        self.state = state
        self.arrow: Arrow | None = None
        self.answers = answers

    def ask(self, fact: str) -> bool:
        return self.answers[fact]


def all_answers(machine: Machine) -> list[dict[str, bool]]:
    names = [fact.name for fact in machine.facts]
    return [dict(zip(names, answers, strict=True)) for answers in product((False, True), repeat=len(names))]


def wanted(cases: Cases, answers: Mapping[str, bool]) -> str:
    return next(
        target for facts, target in cases if all(answers[fact] is answer for fact, answer in facts.items())
    )


# --- the tables ----------------------------------------------------------------------------------------------


@BOTH
def test_the_states_are_the_designed_ones(
    machine: Machine, expected: Mapping[str, Any], categories: dict[str, str]
) -> None:
    """The closed set of states and their categories are those of the design."""
    assert {one.name: str(one.category) for one in machine.states} == categories
    assert machine.initial == next(iter(expected))
    assert len(EXECUTION.states) == 20
    assert all(one.doc for one in machine.states), "every state says what it means"
    assert all(one.doc for one in machine.facts)


@BOTH
def test_the_table_is_the_designed_one(
    machine: Machine, expected: dict[str, dict[str, Cases]], categories: dict[str, str]
) -> None:
    """Over every state, event and answer to every fact, the machine goes where the design says, or refuses."""
    executor = Executor(machine.table)
    events = {event for by_event in expected.values() for event in by_event}
    assert set(machine.events) == events
    for name, event in product(categories, sorted(events)):
        cases = expected[name].get(event)
        for answers in all_answers(machine):
            question = Question(name, answers)
            taken = executor.triggers[event](question)
            target = question.arrow.target if question.arrow else REFUSED
            assert taken is (question.arrow is not None)
            assert target == (wanted(cases, answers) if cases else REFUSED), (name, event, answers)


@BOTH
def test_every_pair_is_a_row_or_a_refusal_with_a_reason(
    machine: Machine, expected: dict[str, dict[str, Cases]], categories: dict[str, str]
) -> None:
    """Each (state, event) pair is carried out or refused with a reason and a sentence that fit the table."""
    for name, event in product(categories, machine.events):
        snapshot = at(name, machine)
        answer = decide(machine, snapshot, Request(event, 1.0, {})) if machine is EXECUTION else None
        if answer is None:  # the breaker's rows note changes that no execution has
            question = Question(name, machine.fact_defaults)
            if machine.executor.triggers[event](question):
                assert wanted(expected[name][event], machine.fact_defaults) != REFUSED
                continue
            answer = refusal_of(machine, snapshot, event)
        if isinstance(answer, Step):
            assert event in expected[name]
            continue
        reason = (
            "terminal"
            if categories[name] == "terminal"
            else "guard"
            if event in expected[name]
            else "not_allowed"
        )
        assert answer.reason == reason, (name, event)
        assert answer.detail
        assert answer.event == event
        assert answer.state == name
        assert (answer.allowed == ()) is (categories[name] == "terminal")


def refusal_of(machine: Machine, snapshot: Snapshot, event: str) -> Refusal:
    answer = decide(machine, snapshot, Request(event, 1.0, {}))
    assert isinstance(answer, Refusal)
    return answer


@BOTH
def test_every_waiting_state_can_be_called_off_and_is_bounded(
    machine: Machine, expected: Mapping[str, Any], categories: dict[str, str]
) -> None:
    """Whatever waits has a deadline, and in the execution machine a way to cancel it."""
    for one in machine.states:
        if categories[one.name] == "waiting":
            assert one.deadline is not None
            assert machine is BREAKER or "cancel" in expected[one.name]
    limits = EXECUTION.limits()
    open_states = [one.name for one in EXECUTION.states if one.category != "terminal"]
    assert all(limits.by_state[name] for name in open_states), "by default no state is without a limit"


def test_each_event_with_a_payload_has_its_own_model() -> None:
    """The events that carry something have a model; the others take a note and data only."""
    named = set(EXECUTION.payload_names)
    assert named == {
        *("connect", "validate", "start", "call_model", "back_off", "trip", "await_input", "receive_input"),
        *(
            "open_tool",
            "close_tool",
            "progress",
            "fall_back",
            "fail",
            "time_out",
            "lapse",
            "cancel",
            "stopped",
            "complete",
        ),
    }
    assert named < set(EXECUTION.events)


# --- every arrow is taken ------------------------------------------------------------------------------------


IDENTITY = Identity("exec_1", EXECUTION.content_hash, "agent", "u", "t", None, None, 0.0, 2, 2, None, None)
CODEC = Codec(EXECUTION, frozenset(DERIVED))


def at(state: str, machine: Machine = EXECUTION, **others: Any) -> Snapshot:
    """Return a record in a state."""
    born = create(machine, IDENTITY._replace(machine=machine.content_hash)).after
    return born._replace(state=state, **others)


def records(state: str) -> Iterable[tuple[Snapshot, dict[str, Any]]]:
    """Yield records in a state and payload facts, so that every answer to every fact occurs."""
    for owner, attempt, model_attempt, tools, retryable, permit in product(
        ("worker_1", None), (1, 2), (1, 2), ((), (("search", None),)), (False, True), (False, True)
    ):
        yield (
            at(state, owner=owner, attempt=attempt, model_attempt=model_attempt, tools=tools),
            {"retryable": retryable, "permit": permit},
        )


def test_every_arrow_of_the_execution_machine_is_taken() -> None:
    """Each single arrow of the execution table is taken by decide, from records as they occur."""
    taken = set()
    for one in EXECUTION.states:
        for snapshot, answers in records(one.name):
            for event in EXECUTION.events:
                given = {"fail": ("retryable",), "call_model": ("permit",)}.get(event, ())
                payload, text = CODEC.encode(event, {name: answers[name] for name in given})
                step = decide(EXECUTION, snapshot, Request(event, 1.0, payload, text, fence=snapshot.fence))
                if isinstance(step, Step):
                    arrow = arrow_of(EXECUTION, snapshot, event, payload)
                    assert (step.source, step.event, step.after.state) == (arrow.source, event, arrow.target)
                    assert step.effects == arrow.effects
                    taken.add(arrow)
    assert set(EXECUTION.arrows) - taken == set()


def arrow_of(machine: Machine, snapshot: Snapshot, event: str, payload: Mapping[str, Any]) -> Arrow:
    """Find the arrow for a record by hand: the first whose facts hold."""
    answers = {
        "owned": snapshot.owner is not None,
        "attempts_left": snapshot.attempt < 2,
        "model_attempts_left": snapshot.model_attempt < 2,
        "tools_left": len(snapshot.tools) < 1000,
        "tools_open": bool(snapshot.tools),
        "tool_known": bool(snapshot.tools),
        "retryable": payload.get("retryable", False),
        "permit": payload.get("permit", True),
    }
    return next(
        arrow
        for arrow in machine.by_source[snapshot.state][event]
        if all(answers[fact] is answer for fact, answer in arrow.literals)
    )


def test_every_arrow_of_the_breaker_machine_is_taken() -> None:
    """Each single arrow of the breaker table is taken by the executor."""
    taken = set()
    for one in BREAKER.states:
        for answers in all_answers(BREAKER):
            for event in BREAKER.events:
                question = Question(one.name, answers)
                if BREAKER.executor.triggers[event](question):
                    assert question.arrow is not None
                    taken.add(question.arrow)
    assert set(BREAKER.arrows) - taken == set()


# Stories from the first row to the last, each event with its payload; the last word is the state that it ends in.
STORIES: list[tuple[list[tuple[str, dict[str, Any]]], str]] = [
    (
        [
            ("enqueue", {}),
            ("connect", {}),
            ("validate", {}),
            ("start", {}),
            ("think", {}),
            ("prepare_tools", {}),
            ("call_model", {"name": "m"}),
            ("back_off", {"retry_in_s": 1.0}),
            ("call_model", {}),
            ("trip", {"breaker": "m", "retry_in_s": 5.0}),
            ("call_model", {"permit": False}),
            ("think", {}),
            ("run_tools", {}),
            ("open_tool", {"name": "search"}),
            ("open_tool", {"name": "read"}),
            ("close_tool", {"name": "read"}),
            ("close_tool", {}),
            ("await_input", {"question": "Sure?", "expires_s": 60.0}),
            ("receive_input", {"verdict": "approved", "by": "ada"}),
            ("process_results", {}),
            ("finish", {}),
            ("complete", {"result": 0}),
        ],
        "completed",
    ),
    ([("start", {}), ("fail", {"retryable": True}), ("start", {}), ("fail", {"retryable": True})], "failed"),
    ([("start", {}), ("lapse", {}), ("start", {}), ("lapse", {})], "dead"),
    ([("start", {}), ("think", {}), ("cancel", {}), ("stopped", {"result": "late"})], "cancelled"),
    ([("validate", {}), ("start", {}), ("time_out", {"kind": "total"})], "timed_out"),
    ([("cancel", {})], "cancelled"),
]


@pytest.mark.parametrize(("story", "end"), STORIES, ids=[end for _, end in STORIES])
def test_whole_lives_end_where_they_should(story: list[tuple[str, dict[str, Any]]], end: str) -> None:
    """A life told event by event ends in the designed state, and its journal replays to the same state."""
    step = create(EXECUTION, IDENTITY._replace(model_attempts_max=3))  # the third call is let through late
    journal = [receipt_of(step, 0)]
    for version, (event, given) in enumerate(story, start=1):
        payload, text = CODEC.encode(event, given)
        answer = decide(
            EXECUTION,
            step.after,
            Request(event, float(version), payload, text, fence=step.after.fence, worker="worker_1"),
        )
        assert isinstance(answer, Step), answer
        step = answer
        assert step.after.version == version
        journal.append(receipt_of(step, version))
    assert step.after.state == end
    assert fold(journal, EXECUTION) == end


# --- the older trackers --------------------------------------------------------------------------------------

# Fourteen phases, and where each could go; typed again from the older tracker's rules.
OLD_EDGES: dict[str, tuple[str, ...]] = {
    "created": ("websocket_setup", "failed"),
    "websocket_setup": ("context_validation", "failed"),
    "context_validation": ("starting", "failed"),
    "starting": ("thinking", "failed", "timeout"),
    "thinking": ("tool_preparation", "llm_interaction", "failed", "timeout"),
    "tool_preparation": ("tool_execution", "llm_interaction", "failed", "timeout"),
    "llm_interaction": (
        *("tool_execution", "result_processing", "thinking"),
        *("failed", "timeout", "circuit_breaker_open"),
    ),
    "tool_execution": ("result_processing", "thinking", "llm_interaction", "failed", "timeout"),
    "result_processing": ("thinking", "completing", "failed", "timeout"),
    "completing": ("completed", "failed", "timeout"),
    "completed": (),
    "failed": (),
    "timeout": (),
    "circuit_breaker_open": (),
}
OLD_NAMES: dict[str, str] = {
    "pending": "created",
    "created": "created",
    "websocket_setup": "connecting",
    "context_validation": "validating",
    "starting": "starting",
    "thinking": "thinking",
    "tool_preparation": "preparing_tools",
    "llm_interaction": "calling_model",
    "tool_execution": "running_tools",
    "result_processing": "processing_results",
    "completing": "completing",
    "completed": "completed",
    "failed": "failed",
    "timeout": "timed_out",
    "circuit_breaker_open": "circuit_open",
    "cancelled": "cancelled",
    "dead": "dead",
    "running": "thinking",
}


def test_every_old_name_is_mapped() -> None:
    """Each phase and each status of the older trackers has its state here, the one that the design says."""
    assert len(LEGACY_PHASES) == 14
    assert set(LEGACY_PHASES) == set(OLD_EDGES)
    merged = LEGACY_STATES | LEGACY_PHASES
    assert merged == OLD_NAMES
    assert all(LEGACY_PHASES[name] == here for name, here in LEGACY_STATES.items() if name in LEGACY_PHASES)
    assert set(merged.values()) <= set(EXECUTION.by_name)


@pytest.mark.parametrize("pair", sorted((s, t) for s, ts in OLD_EDGES.items() for t in ts), ids="->".join)
def test_a_legal_old_edge_is_legal_here(pair: tuple[str, str]) -> None:
    """The event for a legal old edge really leads from the one mapped state to the other."""
    source, target = pair
    event = legacy_event(source, target)
    for snapshot in (at(LEGACY_PHASES[source]), at(LEGACY_PHASES[source], owner="worker_1", attempt=1)):
        payload, text = CODEC.encode(event, {})
        step = decide(EXECUTION, snapshot, Request(event, 1.0, payload, text, fence=snapshot.fence))
        assert isinstance(step, Step), step
        assert step.after.state == LEGACY_PHASES[target]


def test_there_are_35_legal_old_edges_and_161_others() -> None:
    """Of the 196 pairs of old phases 35 are legal, and each of the other 161 is refused with what is legal."""
    legal = {(source, target) for source, targets in OLD_EDGES.items() for target in targets}
    assert legal == LEGACY_EDGES
    assert len(legal) == 35
    refused = 0
    for source, target in product(LEGACY_PHASES, repeat=2):
        if (source, target) in legal:
            continue
        refused += 1
        with pytest.raises(IllegalLegacyEdge) as caught:
            legacy_event(source, target)
        for one in OLD_EDGES[source]:
            assert one in str(caught.value)
    assert refused == 161


def test_an_unknown_old_phase_is_refused_by_name() -> None:
    """A name that the older tracker never had is refused, with the names that it had."""
    for pair in (("created", "resting"), ("resting", "created")):
        with pytest.raises(IllegalLegacyEdge, match=r"'resting' is no legacy phase.*websocket_setup"):
            legacy_event(*pair)
    assert issubclass(IllegalLegacyEdge, FsmError)
