"""The one decision about a breaker: given its row, an event and facts, what follows from the table?

Pure: no clock, no store, no randomness, no lock; time and random numbers are facts. `BREAKER`
(`fsm.lifecycles.breaker`) decides: each function here either asks its executor or keeps the counts that its guards
look at. The meaning of the table's `assign` names is defined here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from fsm.breakers.policy import Policy
from fsm.breakers.verdicts import Kind, Verdict
from fsm.lifecycles.breaker import BREAKER, CLOSED, FORCED_OPEN, HALF_OPEN, OPEN
from fsm.machine.expressions import Compiled, Vocabulary, compiled
from fsm.machine.grammar import Arrow
from fsm.stores.breakers import BreakerRow

PROBE_WAIT_S = 1.0
"""The longest time, in seconds, that a caller is told to wait while all probes are in flight; they seldom take long."""


class BreakerFacts(NamedTuple):
    """What a decision is made on, beside the row.

    Attributes:
        at: The instant, in seconds since the epoch.
        policy: How the breaker behaves.
        left_s: How much of the cooldown is left, in seconds, by a clock that cannot be set back.
        policy_met: A rule of the policy is reached.
        enough_calls: That rule has seen its minimum number of calls.
        retry_after_s: What a server asked for, in seconds.
        token: The name of the probe that is taken.
        draw: A number from 0 to 1, drawn at random: the jitter's.
    """

    at: float
    policy: Policy
    left_s: float = 0.0
    policy_met: bool = False
    enough_calls: bool = False
    retry_after_s: float | None = None
    token: str = ""
    draw: float = 0.0


class BreakerStep(NamedTuple):
    """A decision: the row after it. Nothing has happened yet.

    Attributes:
        after: The row, with the next version.
        source: The state before.
        event: The event whose row of the table was taken; ``None`` for a mere note (a probe given back, a success
            that is not enough yet), which leaves state and generation alone.
        at: The instant, in seconds since the epoch.
    """

    after: BreakerRow
    source: str
    event: str | None
    at: float


class BreakerRefusal(NamedTuple):
    """Why an event was not carried out; nothing was changed.

    Attributes:
        key: The breaker.
        state: Its state.
        event: The event.
        reason: ``guard``, ``not_allowed`` or ``unknown_event``.
        detail: The table's own words, if it has any.
        retry_after_s: In how many seconds it is worth asking again.
    """

    key: str
    state: str
    event: str
    reason: str
    detail: str
    retry_after_s: float


def unseen(key: str) -> BreakerRow:
    """Return the row of a breaker that never changed its state."""
    return BreakerRow(key, BREAKER.initial)


# --- facts that guards ask ------------------------------------------------------------------------------------

FACTS: dict[str, str] = {
    "policy_met": "rule_met",
    "enough_calls": "calls_seen",
    "until_passed": "cooled_down",
    "probe_free": "probes < probes_at_once",
    "enough_successes": "successes >= successes_needed",
    "enough_abandoned": "abandoned >= abandoned_limit",
}
"""What the guards of the breaker's machine ask, as expressions over its row (`fsm.machine.expressions`)."""
_TERMS = (
    {word: f"row.{word}" for word in "version generation since until openings successes abandoned".split()}
    | {word: f"facts.policy.{word}" for word in "probes_at_once successes_needed abandoned_limit".split()}
    | {
        "probes": "len(row.probes)",
        "rule_met": "facts.policy_met",
        "calls_seen": "facts.enough_calls",
        "cooled_down": "(facts.left_s <= 0)",
    }
)
ANSWERS: dict[str, Callable[[BreakerRow, BreakerFacts], bool]] = {
    name: compiled(text, Compiled("row, facts", _TERMS, {})) for name, text in FACTS.items()
}
"""The same as functions of a row and what the decision is made on."""


class _Question:
    """What the executor is asked; thrown away afterwards."""

    __slots__ = ("arrow", "facts", "row", "state")

    def __init__(self, row: BreakerRow, facts: BreakerFacts) -> None:
        self.state = row.state
        self.row = row
        self.facts = facts
        self.arrow: Arrow | None = None

    def ask(self, fact: str) -> bool:
        return ANSWERS[fact](self.row, self.facts)


# --- changes that the table's rows assign ----------------------------------------------------------------------

# Data, as the execution's (`fsm.core.decide.CHANGES`): an expression for each word that a change sets.

CHANGES: dict[str, Mapping[str, str]] = {
    "next_generation": {
        "generation": "generation + 1", "changed_at": "later", "since": "none", "until": "none", "probes": "()",
        "successes": "0", "abandoned": "0",
    },
    "open_until": {"since": "at", "until": "cooled_at"},
    "extend_until": {"since": "at", "until": "extended_at"},
    "take_probe": {"probes": "probes_and_this"},
    "longer_cooldown": {"openings": "openings + 1"},
    "reset_cooldown": {"openings": "0"},
}  # fmt: skip
"""What a row's `assign` can name in the breaker's machine; they are carried out from left to right."""
NOTE: Mapping[str, str] = {
    "probes": "probes_without",
    "successes": "successes + 1 if succeeded else successes",
    "abandoned": "abandoned + 1 if called_off else abandoned",
}
"""What the verdict on a probe changes, before the table is asked whether that is enough."""


def _cooled_at(row: BreakerRow, facts: BreakerFacts) -> float:
    if facts.retry_after_s is None:
        return facts.at + facts.policy.cooldown(row.openings, facts.draw)
    return facts.at + min(facts.retry_after_s, facts.policy.throttle_max_s)


def _extended_at(_row: BreakerRow, facts: BreakerFacts) -> float:
    # By what is left, not by `until`: were the wall clock set back, the old instant would hide the extension.
    asked_s = 0.0 if facts.retry_after_s is None else min(facts.retry_after_s, facts.policy.throttle_max_s)
    return facts.at + max(facts.left_s, asked_s)


_INPUTS: dict[str, Callable[[BreakerRow, BreakerFacts], Any]] = {
    "at": lambda _, facts: facts.at,
    "later": lambda row, facts: max(
        facts.at, row.changed_at
    ),  # a clock set back makes no journal run backwards
    "cooled_at": _cooled_at,
    "extended_at": _extended_at,
    "probes_and_this": lambda row, facts: (
        *row.probes,
        (facts.token, facts.at + facts.policy.probe_lease_s),
    ),
}
"""What a change takes from the clock, the policy and the caller."""

BREAKERS = Vocabulary(
    words={
        "version": "count", "generation": "count", "openings": "count", "successes": "count", "abandoned": "count",
        "probes": "count", "since": "thing", "until": "thing",
    },
    constants={"probes_at_once": 1, "successes_needed": 1, "abandoned_limit": 1},
    facts=FACTS,
    inputs={
        "rule_met": "flag", "calls_seen": "flag", "cooled_down": "flag", "at": "present", "later": "present",
        "cooled_at": "present", "extended_at": "present",
        "succeeded": "flag", "called_off": "flag",
    },
    assume=("not (succeeded and called_off)",),  # no verdict is both
    # Of the list of probes a proof knows the length.
    defined={"probes_and_this": "probes + 1", "probes_without": "probes - 1"},
    begins={
        "version": "0", "generation": "1", "openings": "0", "successes": "0", "abandoned": "0", "probes": "()",
        "since": "none", "until": "none",
    },
    changes=CHANGES,
    frame={"always": {"version": "version + 1"}},
    beside={"note": ("half_open and probes > 0", {"version": "version + 1", **NOTE})},
    in_turn=True,
)  # fmt: skip
"""What the words of the breaker's machine mean."""


@lru_cache(maxsize=64)
def _change(items: tuple[tuple[str, str], ...]) -> Callable[..., tuple[Any, ...]]:
    terms = _TERMS | {name: f"{name}(row, facts)" for name in _INPUTS}
    terms |= {
        "succeeded": "verdict.succeeded",
        "called_off": "verdict.called_off",
        "probes_without": "verdict.left",
    }
    return compiled([text for _, text in items], Compiled("row, facts, verdict", terms, dict(_INPUTS)))


class _Verdict(NamedTuple):
    succeeded: bool
    called_off: bool
    left: tuple[tuple[str, float], ...]


def _changed(
    row: BreakerRow, facts: BreakerFacts, change: Mapping[str, str], verdict: _Verdict | None = None
) -> BreakerRow:
    values = _change(tuple(change.items()))(row, facts, verdict)
    return row._replace(**dict(zip(change, values, strict=True)))


# --- decisions ------------------------------------------------------------------------------------------------


def decide_breaker(row: BreakerRow, event: str, facts: BreakerFacts) -> BreakerStep | BreakerRefusal:
    """Return what follows from an event of `BREAKER`: a step to commit, or a refusal. Nothing is changed either way."""
    question = _Question(row, facts)
    trigger = BREAKER.executor.triggers.get(event)
    if trigger is None or not trigger(question):
        return _refuse(row, event, facts)
    arrow = question.arrow
    assert arrow is not None  # noqa: S101 - the executor sets it whenever it returns True
    after = row
    for change in BREAKERS.assigned(arrow.assign, internal=arrow.internal, ends=False):
        after = _changed(after, facts, change)
    return BreakerStep(
        after._replace(state=arrow.target),
        row.state,
        event,
        max(facts.at, row.changed_at),
    )


def _refuse(row: BreakerRow, event: str, facts: BreakerFacts) -> BreakerRefusal:
    if event not in BREAKER.executor.triggers:
        reason, detail = "unknown_event", f"the breaker's machine has no event {event!r}"
    else:
        arrows = BREAKER.by_source[row.state].get(event, ())
        said = [arrow.otherwise for arrow in arrows if arrow.otherwise]
        reason = "guard" if arrows else "not_allowed"
        detail = said[-1] if said else f"the table has no row for {event!r} in state {row.state!r}"
    return BreakerRefusal(row.key, row.state, event, reason, detail, wait_s(row, facts))


def wait_s(row: BreakerRow, facts: BreakerFacts) -> float:
    """Return in how many seconds it is worth asking again for a permit."""
    if row.state == OPEN:
        return facts.left_s
    if row.state == HALF_OPEN:
        return PROBE_WAIT_S
    # What is held open by hand has no end that is known: ask again after one cooldown.
    return facts.policy.cooldown_s if row.state == FORCED_OPEN else 0.0


def left_s(row: BreakerRow, at: float) -> float:
    """Return how much of a cooldown is left at an instant, in seconds, where the row is read for the first time.

    A wall clock that was set back since cannot make it more than the whole cooldown.
    """
    if row.until is None:
        return 0.0
    whole_s = row.until - (row.since if row.since is not None else row.until)
    return min(max(0.0, row.until - at), whole_s)


_PROBE_EVENTS: dict[Kind, str] = {
    Kind.SUCCESS: "probes_ok",
    Kind.FAILURE: "probe_failed",
    Kind.THROTTLED: "throttle",
    Kind.CANCELLED: "abandoned",
}


def judge(
    row: BreakerRow, generation: int, token: str | None, verdict: Verdict, facts: BreakerFacts
) -> BreakerStep | None:
    """Return the step that follows from a call's verdict.

    Args:
        row: The breaker's row.
        generation: The generation of the call's permit.
        token: The name of the probe that the call was, ``None`` for an ordinary call.
        verdict: The call's verdict.
        facts: What else the decision is made on; `retry_after_s` is taken from the verdict.

    Returns:
        ``None`` if the verdict only feeds metrics: of an old generation, ignored, not enough.
    """
    facts = facts._replace(retry_after_s=verdict.retry_after_s)
    if row.generation != generation:
        # The one thing that a late verdict still knows better: how long the server wants to be left alone.
        if verdict.kind is Kind.THROTTLED and row.state == OPEN and verdict.retry_after_s is not None:
            longer = min(verdict.retry_after_s, facts.policy.throttle_max_s) > facts.left_s
            return _step(decide_breaker(row, "throttle", facts)) if longer else None
        return None
    if row.state == CLOSED:
        event = {Kind.FAILURE: "trip", Kind.SUCCESS: "trip", Kind.THROTTLED: "throttle"}.get(verdict.kind)
        return _step(decide_breaker(row, event, facts)) if event else None
    if row.state == HALF_OPEN and any(name == token for name, _ in row.probes):
        return _judge_probe(row, token, verdict, facts)
    return None


def _judge_probe(row: BreakerRow, token: str | None, verdict: Verdict, facts: BreakerFacts) -> BreakerStep:
    """Give the probe back, count it, and ask the table whether that is enough."""
    left = tuple(probe for probe in row.probes if probe[0] != token)
    came_to = _Verdict(verdict.kind is Kind.SUCCESS, verdict.kind is Kind.CANCELLED, left)
    noted = _changed(row, facts, NOTE, came_to)
    event = _PROBE_EVENTS.get(verdict.kind)
    step = _step(decide_breaker(noted, event, facts)) if event else None
    return step or BreakerStep(noted._replace(version=row.version + 1), row.state, None, facts.at)


def _step(decided: BreakerStep | BreakerRefusal) -> BreakerStep | None:
    return decided if isinstance(decided, BreakerStep) else None
