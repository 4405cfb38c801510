"""What happens next in a drawn example: choices out of dice, from the moves that make sense in the situation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from fsm.core.records import Retry
from fsm.machine.grammar import Arrow
from fsm.machine.timeouts import Timeouts
from fsm.testing.machine.driver import Driver, Subject
from fsm.testing.machine.oracle import Oracle, Twin
from fsm.testing.machine.tracked import TrackerDriver

_T = TypeVar("_T")

MAX_SUBJECTS = 5
"""So many executions at most live side by side in one example."""
_DURATIONS = (0.0, 0.25, 10.0, 3600.0)


class Dice:
    """Choices out of a few drawn bytes. One draw per step is several times cheaper than one per choice.

    Zero is always the plainest choice, so that a failing example shrinks towards it.
    """

    SIZE = 16

    def __init__(self, rolled: bytes) -> None:
        self._left = iter(rolled)

    def pick(self, choices: Sequence[_T]) -> _T:
        """Return one of some choices; the first for a zero, and when every byte was used."""
        return choices[next(self._left, 0) % len(choices)]

    def one_in(self, number: int) -> bool:
        """Return whether something happens that happens once in so many times; not for a zero."""
        return self.pick(range(number)) == number - 1


class Move(NamedTuple):
    """One drawn step; its text is what a failing example shows."""

    text: str
    make: Callable[[], object]


_SECONDS = (None, 0.5, 30.0, 7200.0)
_FIELDS: dict[str, tuple[Any, ...]] = {
    "retry_in_s": _SECONDS,
    "expires_s": _SECONDS,
    "owner": (None, "worker-a", "worker-b"),
    "name": (None, "search", "fetch"),
    "call_id": (None, "1", "2"),
    "note": (None, "", "ä note"),
}
"""Fields of payloads that change a record or must be kept as they are, and what they may be."""


def _payload(dice: Dice, oracle: Oracle, twin: Twin, arrow: Arrow, base: dict[str, Any]) -> dict[str, Any]:
    """Draw the fields of a payload that the event has and the row does not depend on."""
    fields = oracle.fields(arrow.event) - base.keys()
    payload = dict(base)
    for name, choices in _FIELDS.items():
        value = dice.pick(choices) if name in fields else None
        # The drawn tool may not be the open one: a field that would change the row is left out.
        if value is not None and oracle.resolve(twin, arrow.event, payload | {name: value}) == arrow:
            payload[name] = value
    return payload


def create(dice: Dice, driver: Driver, parent: Subject | None = None) -> Move:
    """Draw the birth of an execution, a child if there is a parent."""
    retry = Retry(attempts_max=dice.pick((1, 2, 3)), model_attempts_max=dice.pick((1, 2, 3)))
    # An execution may bring limits of its own where the machine's bound every stay; others are kept as they are.
    declared = driver.machine.timeouts if driver.oracle.bounded() else ()
    limits = {
        name: value * dice.pick((0.01, 1.5))
        for name, value in declared
        if isinstance(value, float) and dice.one_in(2)
    }
    timeouts = Timeouts.model_validate(limits) if limits else None
    under = f" under {parent}" if parent else ""
    text = f"create{under} with attempts {retry.attempts_max}/{retry.model_attempts_max} and limits {limits}"
    return Move(text, lambda: driver.open(retry, timeouts, parent))


def _give_birth(dice: Dice, driver: TrackerDriver) -> Move:
    """Draw a child, and now and then one of a parent that may have none any more."""
    may = [one for one in driver.subjects if driver.may_have_children(one)]
    may_not = [one for one in driver.subjects if one not in may]
    if may and not (may_not and dice.one_in(4)):
        return create(dice, driver, dice.pick(may))
    parent = dice.pick(may_not)
    return Move(f"create under {parent} must be refused", lambda: driver.orphan(parent))


def _take(dice: Dice, driver: Driver, fresh: set[Arrow]) -> Move:
    """Draw a row that can be taken, one that this example has not taken yet if there is one."""
    oracle = driver.oracle
    subject = dice.pick([one for one in driver.subjects if not driver.ended(one)])
    enabled = oracle.enabled(subject.twin)
    new = [choice for choice in enabled if choice[0] in fresh]
    # Ends are left for later: an example that ends its executions at once sees little of the table. And what was
    # just done is often done again: some mistakes show only when there are two of a thing.
    onward = [choice for choice in new if choice[0].target not in oracle.terminal]
    again = [choice for choice in enabled if choice[0] == subject.last]
    way = dice.pick((onward, onward, onward, again, again, enabled, new))
    arrow, base = dice.pick(way or onward or enabled)
    subject.last = arrow
    fence = dice.pick((None, subject.twin.fence))
    key = f"key-{subject.twin.version}" if dice.one_in(3) else None
    payload = _payload(dice, oracle, subject.twin, arrow, base)
    fresh.discard(arrow)
    text = f"{subject}: take {arrow} with {payload}, fence={fence}, key={key!r}"
    return Move(text, lambda: driver.fire(subject, arrow, payload, key=key, fence=fence))


def _forbid(dice: Dice, driver: Driver, _fresh: set[Arrow]) -> Move:
    """Draw an event that must be refused, whatever the reason."""
    oracle, machine = driver.oracle, driver.machine
    subject = dice.pick(driver.subjects)
    forbidden = oracle.forbidden(subject.twin)
    reason = dice.pick(tuple(forbidden))
    event, payload = dice.pick(forbidden[reason])
    fence: int | None = None
    if not oracle.bare and dice.one_in(3):
        reason, fence = "fenced", subject.twin.fence + dice.pick((-1, 1) if subject.twin.fence else (1, 2))
        event = dice.pick(machine.events)
        fitting = [base for arrow, base in oracle.enabled(subject.twin) if arrow.event == event]
        payload = fitting[0] if fitting else oracle.least(event)
    owners = [
        choice for choice in oracle.enabled(subject.twin) if oracle.needs_fence(subject.twin, choice[0])
    ]
    if owners and fence is None and dice.one_in(3):
        arrow, payload = dice.pick(owners)
        reason, event = "fenced", arrow.event
    text = f"{subject}: {event} must be refused as {reason}, with {payload}, fence={fence}"
    return Move(text, lambda: driver.refuse(subject, event, payload, reason, fence=fence))


def _misuse(dice: Dice, driver: TrackerDriver) -> Move:
    """Draw a repeated call, a used key, a payload that does not fit, or another user."""
    subject = dice.pick(driver.subjects)
    event = dice.pick(driver.machine.events)
    kind = dice.pick(("repeat", "duplicate", "misfit", "stranger", "user"))
    systems = [choice for choice in driver.oracle.enabled(subject.twin) if choice[0].by == "system"]
    if kind == "user" and systems:
        arrow, payload = dice.pick(systems)
        text = f"{subject}: {arrow.event} by its user must be refused as forbidden, with {payload}"
        return Move(text, lambda: driver.refuse(subject, arrow.event, payload, "forbidden", narrowed=True))
    if kind == "misfit":
        return Move(f"{subject}: {event} with a bad payload", lambda: driver.misfit(subject, event))
    if kind == "stranger" or not subject.keyed:
        return Move(f"{subject}: {event} by a stranger", lambda: driver.stranger(subject, event))
    key = dice.pick(tuple(subject.keyed))
    first = subject.keyed[key]
    fence = dice.pick((None, first.fence))
    if kind == "repeat" or event == first.event:
        text = f"{subject}: {first.event} again, key={key!r}, fence={fence}"
        return Move(text, lambda: driver.repeat(subject, key, first.payload, fence))
    text = f"{subject}: {event} with the key of {first.event}, {key!r}"
    payload = driver.oracle.least(event)
    return Move(text, lambda: driver.refuse(subject, event, payload, "duplicate", key=key, fence=fence))


def _let_pass(dice: Dice, driver: TrackerDriver) -> Move:
    seconds = dice.pick(_DURATIONS)
    if not dice.one_in(3):
        return Move(f"{seconds} s pass", lambda: driver.pass_time(seconds))
    jump = dice.pick((-1.0, 1.0)) * seconds
    return Move(f"the wall clock jumps by {jump} s", lambda: driver.jump(jump))


def move(dice: Dice, driver: Driver, fresh: set[Arrow]) -> Move:
    """Draw the next step of an example."""
    kinds = ["take"] * 10 * any(not driver.ended(one) for one in driver.subjects) + ["forbid"] * 2
    kinds += ["create"] * 2 * (len(driver.subjects) < MAX_SUBJECTS)
    if isinstance(driver, TrackerDriver):
        kind = dice.pick([*kinds, "misuse", "time"])
        if kind == "misuse":
            return _misuse(dice, driver)
        if kind == "time":
            return _let_pass(dice, driver)
        if kind == "create" and not dice.one_in(4):
            return _give_birth(dice, driver)
    else:
        kind = dice.pick(kinds)
    if kind == "create":
        return create(dice, driver)
    return (_take if kind == "take" else _forbid)(dice, driver, fresh)
