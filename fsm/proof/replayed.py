"""A path that refutes an invariant, carried out: on `decide`, through a tracker, and as a test that fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from fsm.core.decide import DERIVED, EXECUTIONS, create, decide
from fsm.core.payloads import Codec
from fsm.core.records import Identity, Snapshot, Step
from fsm.core.request import Request
from fsm.errors import ConfigurationError, Refused
from fsm.machine.expressions import Compiled, compiled, source
from fsm.machine.machine import Machine
from fsm.machine.validation import CATEGORIES
from fsm.proof.prover import Counterexample, Leg, Verdict, of_steps

Event = tuple[str, dict[str, Any]]
"""An event and its payload."""
_SAID: dict[str, dict[str, Any]] = {
    "said_wait": {"retry_in_s": 1.0},
    "said_breaker": {"breaker": "a breaker"},
    "said_expiry": {"expires_s": 60.0},
}
"""The payload that makes an input present which may be absent."""
_UNKNOWN_TOOL = {"call_id": "no such call"}
_RETRY = ("attempts_max", "model_attempts_max")


def events_of(machine: Machine, path: Counterexample) -> list[Event]:
    """Return the events of a path with the payloads that take it."""
    return [(leg.event, _payload(machine, leg)) for leg in path.legs]


def _payload(machine: Machine, leg: Leg) -> dict[str, Any]:
    arrows = machine.by_source[leg.source].get(leg.event, ())
    facts = {fact for arrow in arrows for fact, _ in arrow.literals}
    used = {word for arrow in arrows for name in arrow.assign for word in EXECUTIONS.changes[name].values()}
    payload: dict[str, Any] = {fact: bool(leg.inputs[fact]) for fact in sorted(facts - DERIVED.keys())}
    for name in sorted(used & _SAID.keys()):
        if leg.inputs[name]:
            payload |= _SAID[name]
    if "tool_known" in facts and not leg.inputs["tool_known"]:
        payload |= _UNKNOWN_TOOL
    return payload


def carried(machine: Machine, path: Counterexample) -> list[Snapshot] | None:
    """Carry a path out on `decide`; return its records, or ``None`` if it goes another way.

    Args:
        machine: The machine.
        path: A path of the proof.
    """
    limits = {name: path.constants[name] for name in _RETRY}
    identity = Identity(
        "exec_proof", machine.content_hash, "proof", "proof", "proof", None, None, 0.0,
        limits["attempts_max"], limits["model_attempts_max"], None, None,
    )  # fmt: skip
    codec = Codec(machine, frozenset(DERIVED))
    records = [create(machine, identity).after]
    for leg, (event, given) in zip(path.legs, events_of(machine, path), strict=True):
        payload, text = codec.encode(event, given)
        now = records[-1]
        request = Request(
            event, now.updated_at + 1.0, payload, text, fence=now.fence, worker="worker", ordered=True
        )
        step = decide(machine, now, request)
        if not isinstance(step, Step) or step.after.state != leg.target:
            return None
        records.append(step.after)
    return records


@lru_cache(maxsize=256)
def _holds(machine: Machine, text: str) -> Callable[..., bool]:
    """Return an expression as a function of a record and the one before it."""
    words = dict(EXECUTIONS.python)
    facts = {fact: source(said, words) for fact, said in EXECUTIONS.facts.items()}
    states = {state.name: f"(record.state == {state.name!r})" for state in machine.states}
    categories = {
        f"@{category}": f"(record.state in {sorted(machine.of(category))!r})" for category in CATEGORIES
    }
    terms = dict(categories | states | facts | words)
    terms |= {f"before.{word}": said.replace("record.", "before.") for word, said in terms.items()}
    return compiled(text, Compiled("record, before", terms, {}))


def broken(machine: Machine, records: Sequence[Snapshot]) -> list[str]:
    """Return the names of the machine's invariants that some of these records in a row break."""
    found = []
    for one in machine.invariants:
        holds = _holds(machine, one.holds)
        steps = pairwise(records) if of_steps(one) else ((None, record) for record in records)
        if not all(holds(after, before) for before, after in steps):
            found.append(one.name)
    return found


def replay(
    tracker: Any, machine: Machine, events: Sequence[Event], *, retry: Mapping[str, int]
) -> list[Snapshot]:
    """Carry events out through a tracker, and return the records that they lead to, the first one included.

    The path ends at an event that the table refuses: a table that was mended refuses one.

    Args:
        tracker: The tracker (`fsm.Tracker`).
        machine: The machine.
        events: The events with their payloads.
        retry: What the execution is created with.
    """
    load = tracker._registry.store.load  # noqa: SLF001 - a record has fields that no execution shows
    execution = tracker.create(
        "proof", user_id="proof", thread_id="proof", machine=machine, retry=dict(retry)
    )
    records = [load(execution.id)]
    for event, payload in events:
        try:
            tracker.fire(execution.id, event, fence=records[-1].fence, **payload)
        except Refused:
            break
        records.append(load(execution.id))
    return records


def as_test(spec: str, machine: Machine, verdict: Verdict) -> str:
    """Write a path that refutes an invariant as a test, which fails until the table is mended.

    Args:
        spec: Where the machine is: ``execution``, or ``MODULE:NAME``.
        machine: The machine.
        verdict: The refutation.

    Raises:
        ConfigurationError: The machine's instances are no executions, or nothing refutes the invariant.
    """
    path = verdict.breaks
    if machine.perpetual or path is None:
        raise ConfigurationError("a test is written of an invariant of executions that a path refutes")
    module, _, name = spec.rpartition(":")
    module, name = (module, name) if module else ("fsm", spec.upper())
    first, *inner = name.split(".")
    retry = {word: path.constants[word] for word in _RETRY}
    events = "".join(f"        ({event!r}, {payload!r}),\n" for event, payload in events_of(machine, path))
    return f'''"""A path that `fsm verify {spec} --prove` found; the test fails until the table is mended."""

from {module} import {first}
from fsm.proof.replayed import broken, replay


def test_{verdict.invariant.name}(fsm_tracker):
    """{verdict.invariant.says}."""
    machine = {".".join([first, *inner])}
    events = [
{events}    ]
    records = replay(fsm_tracker, machine, events, retry={retry!r})
    assert {verdict.invariant.name!r} not in broken(machine, records)
'''
