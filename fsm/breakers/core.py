"""The one decision about a breaker: given its row, an event and facts, what follows from the table?

Pure: no clock, no store, no randomness, no lock; time and random numbers are facts. `BREAKER`
(`fsm.lifecycles.breaker`) decides: each function here either asks its executor or keeps the counts that its guards
look at. The meaning of the table's `assign` names is defined here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fsm.breakers.policy import Policy
from fsm.breakers.verdicts import Kind, Verdict
from fsm.lifecycles.breaker import BREAKER, CLOSED, FORCED_OPEN, HALF_OPEN, OPEN
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

ANSWERS: dict[str, Callable[[BreakerRow, BreakerFacts], bool]] = {
    "policy_met": lambda _, facts: facts.policy_met,
    "enough_calls": lambda _, facts: facts.enough_calls,
    "until_passed": lambda _, facts: facts.left_s <= 0,
    "probe_free": lambda row, facts: len(row.probes) < facts.policy.probes_at_once,
    "enough_successes": lambda row, facts: row.successes >= facts.policy.successes_needed,
    "enough_abandoned": lambda row, facts: row.abandoned >= facts.policy.abandoned_limit,
}


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

_Change = Callable[[BreakerRow, BreakerFacts], BreakerRow]


def _next_generation(row: BreakerRow, facts: BreakerFacts) -> BreakerRow:
    # A wall clock that jumped back must not make a journal run backwards.
    return row._replace(
        generation=row.generation + 1,
        changed_at=max(facts.at, row.changed_at),
        since=None,
        until=None,
        probes=(),
        successes=0,
        abandoned=0,
    )


def _open_until(row: BreakerRow, facts: BreakerFacts) -> BreakerRow:
    if facts.retry_after_s is None:
        open_s = facts.policy.cooldown(row.openings, facts.draw)
    else:
        open_s = min(facts.retry_after_s, facts.policy.throttle_max_s)
    return row._replace(since=facts.at, until=facts.at + open_s)


def _extend_until(row: BreakerRow, facts: BreakerFacts) -> BreakerRow:
    # By what is left, not by `until`: were the wall clock set back, the old instant would hide the extension.
    asked_s = 0.0 if facts.retry_after_s is None else min(facts.retry_after_s, facts.policy.throttle_max_s)
    return row._replace(since=facts.at, until=facts.at + max(facts.left_s, asked_s))


CHANGES: dict[str, _Change] = {
    "next_generation": _next_generation,
    "open_until": _open_until,
    "extend_until": _extend_until,
    "take_probe": lambda row, facts: row._replace(
        probes=(*row.probes, (facts.token, facts.at + facts.policy.probe_lease_s))
    ),
    "longer_cooldown": lambda row, _: row._replace(openings=row.openings + 1),
    "reset_cooldown": lambda row, _: row._replace(openings=0),
}
"""What a row's `assign` can name in the breaker's machine; they are carried out from left to right."""


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
    for name in arrow.assign:
        after = CHANGES[name](after, facts)
    return BreakerStep(
        after._replace(state=arrow.target, version=row.version + 1),
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
    noted = row._replace(
        probes=tuple(probe for probe in row.probes if probe[0] != token),
        successes=row.successes + (verdict.kind is Kind.SUCCESS),
        abandoned=row.abandoned + (verdict.kind is Kind.CANCELLED),
    )
    event = _PROBE_EVENTS.get(verdict.kind)
    step = _step(decide_breaker(noted, event, facts)) if event else None
    return step or BreakerStep(noted._replace(version=row.version + 1), row.state, None, facts.at)


def _step(decided: BreakerStep | BreakerRefusal) -> BreakerStep | None:
    return decided if isinstance(decided, BreakerStep) else None
