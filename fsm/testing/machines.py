"""A property-based test of any machine that you declare, in one line.

    from fsm.testing.machines import machine_test

    TestErrand = machine_test(ERRAND)

pytest (and unittest) finds the class. Its test drives real executions of the machine, several at a time and with
children, through a fresh tracker on a clock of its own: hypothesis draws events that the table allows (rows that the
example has not taken yet first) and events that it forbids, and after every step the guarantees are checked. What the
drawing left out of the table is then taken on a shortest way, each in an execution of its own. ``TestErrand.report()``
says what was taken and what could not even be taken so; with ``require_all=True`` a second test fails for a row that
was not taken from any of its sources.

A machine whose rows assign what executions do not have (such as `fsm.BREAKER`) has no record that a tracker could
keep. It is run on its executor alone: every fact is then drawn.
"""

from __future__ import annotations

import unittest
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from hypothesis import HealthCheck, note
from hypothesis import settings as Settings  # noqa: N812 - `settings` is what our own argument is called
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from fsm import decide
from fsm.machine import Arrow, Machine, Transition
from fsm.records import Retry
from fsm.testing.driver import Driver, Place, Subject, TrackerDriver, broken, may_start_children
from fsm.testing.oracle import Oracle, Twin
from fsm.timeouts import Timeouts

_T = TypeVar("_T")

MAX_SUBJECTS = 5
"""So many executions at most live side by side in one example."""
_TRIES = (Retry(), Retry(attempts_max=2, model_attempts_max=2), Retry(attempts_max=3, model_attempts_max=3))
_DURATIONS = (0.0, 0.25, 10.0, 3600.0)


class Coverage(NamedTuple):
    """What of a machine's table a test took. An arrow is a row of the table for one of its sources.

    Attributes:
        machine: The machine.
        drawn: How often each arrow was taken by what hypothesis drew.
        walked: How often each arrow was taken on the shortest ways afterwards.
    """

    machine: Machine
    drawn: Counter[Arrow]
    walked: Counter[Arrow]

    @property
    def missing(self) -> tuple[Arrow, ...]:
        """The arrows that were never taken, in the table's order.

        After a whole run these are the ones that no execution can take: no record ever meets their guards.
        """
        return tuple(one for one in self.machine.arrows if not self.drawn[one] and not self.walked[one])

    @property
    def missing_rows(self) -> tuple[Transition, ...]:
        """The rows of the table that were not taken from any of their sources."""
        missing = set(self.missing)
        taken = {arrow.row for arrow in self.machine.arrows if arrow not in missing}
        return tuple(one for index, one in enumerate(self.machine.transitions) if index not in taken)

    def __str__(self) -> str:
        rows, arrows = len(self.machine.transitions), len(self.machine.arrows)
        took_rows, took = rows - len(self.missing_rows), arrows - len(self.missing)
        drawn = sum(1 for arrow in self.machine.arrows if self.drawn[arrow])
        lines = [
            f"{self.machine.name}: {took_rows}/{rows} rows, {took}/{arrows} arrows taken, {drawn} by drawing",
            *(f"  row never taken: {row}" for row in self.missing_rows),
            *(f"  arrow never taken: {arrow}" for arrow in self.missing),
        ]
        return "\n".join(lines)


class _Plan:
    """What one test is made of: the machine, its oracle, where its executions live, and what was taken so far."""

    def __init__(
        self, machine: Machine, store: Place, payloads: Mapping[str, Mapping[str, Any]] | None
    ) -> None:
        strange = {name for row in machine.transitions for name in row.assign} - decide.CHANGES.keys()
        self.oracle = Oracle(machine, payloads, bare=bool(strange))
        self.store = store
        self.coverage = Coverage(machine, Counter(), Counter())

    def driver(self, taken: Counter[Arrow]) -> Driver:
        if self.oracle.bare:
            return Driver(self.oracle, taken)
        return TrackerDriver(self.oracle, taken, self.store)

    def walk(self) -> None:
        """Take every row that the drawing left out, on a shortest way."""
        machine = self.oracle.machine
        for retry in _TRIES[:1] if self.oracle.bare else _TRIES:
            if not self.coverage.missing:
                return
            start = Twin(
                machine.initial,
                attempts_max=retry.attempts_max,
                model_attempts_max=retry.model_attempts_max,
            )
            ways = self.oracle.ways(start)
            driver = self.driver(self.coverage.walked)
            try:
                for arrow in self.coverage.missing:
                    self._go(driver, retry, ways.get(arrow, ()))
                driver.check()
            finally:
                driver.close()

    def _go(self, driver: Driver, retry: Retry, way: tuple[Arrow, ...]) -> None:
        if not way:
            return
        subject = driver.open(retry)
        for arrow in way:
            driver.fire(subject, arrow, dict(self.oracle.enabled(subject.twin))[arrow])


# --- what is drawn --------------------------------------------------------------------------------------------


class _Dice:
    """Choices out of a few drawn bytes. One draw per step is several times cheaper than one per choice.

    Zero is always the plainest choice, so that a failing example shrinks towards it.
    """

    SIZE = 16

    def __init__(self, rolled: bytes) -> None:
        self._left = iter(rolled)

    def pick(self, choices: Sequence[_T]) -> _T:
        return choices[next(self._left, 0) % len(choices)]

    def one_in(self, number: int) -> bool:
        return self.pick(range(number)) == number - 1


class _Move(NamedTuple):
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


def _payload(dice: _Dice, oracle: Oracle, twin: Twin, arrow: Arrow, base: dict[str, Any]) -> dict[str, Any]:
    """Draw the fields of a payload that the event has and the row does not depend on."""
    fields = oracle.fields(arrow.event) - base.keys()
    payload = dict(base)
    for name, choices in _FIELDS.items():
        value = dice.pick(choices) if name in fields else None
        # The drawn tool may not be the open one: a field that would change the row is left out.
        if value is not None and oracle.resolve(twin, arrow.event, payload | {name: value}) == arrow:
            payload[name] = value
    return payload


def _create(dice: _Dice, driver: Driver, parent: Subject | None = None) -> _Move:
    retry = Retry(attempts_max=dice.pick((1, 2, 3)), model_attempts_max=dice.pick((1, 2, 3)))
    limits = {
        name: value * dice.pick((0.01, 1.5))
        for name, value in driver.machine.timeouts
        if isinstance(value, float) and dice.one_in(2)
    }
    timeouts = Timeouts.model_validate(limits) if limits else None
    under = f" under {parent}" if parent else ""
    text = f"create{under} with attempts {retry.attempts_max}/{retry.model_attempts_max} and limits {limits}"
    return _Move(text, lambda: driver.open(retry, timeouts, parent))


def _take(dice: _Dice, driver: Driver, fresh: set[Arrow]) -> _Move:
    """Draw a row that can be taken, one that this example has not taken yet if there is one."""
    oracle = driver.oracle
    subject = dice.pick([one for one in driver.subjects if not driver.ended(one)])
    enabled = oracle.enabled(subject.twin)
    new = [choice for choice in enabled if choice[0] in fresh]
    # Ends are left for later: an example that ends its executions at once sees little of the table.
    onward = [choice for choice in new if choice[0].target not in oracle.terminal]
    arrow, base = dice.pick((new if dice.one_in(8) else onward) or new or enabled)
    fence = dice.pick((None, subject.twin.fence))
    key = f"key-{subject.twin.version}" if dice.one_in(3) else None
    payload = _payload(dice, oracle, subject.twin, arrow, base)
    fresh.discard(arrow)
    text = f"{subject}: take {arrow} with {payload}, fence={fence}, key={key!r}"
    return _Move(text, lambda: driver.fire(subject, arrow, payload, key=key, fence=fence))


def _forbid(dice: _Dice, driver: Driver, _fresh: set[Arrow]) -> _Move:
    """Draw an event that must be refused, whatever the reason."""
    oracle, machine = driver.oracle, driver.machine
    subject = dice.pick(driver.subjects)
    forbidden = oracle.forbidden(subject.twin)
    reason = dice.pick(tuple(forbidden))
    event, payload = dice.pick(forbidden[reason])
    fence: int | None = None
    if not oracle.bare and dice.one_in(3):
        reason, fence = "fenced", subject.twin.fence + dice.pick((-1, 1))
        event = dice.pick(machine.events)
        fitting = [base for arrow, base in oracle.enabled(subject.twin) if arrow.event == event]
        payload = fitting[0] if fitting else oracle.least(event)
    text = f"{subject}: {event} must be refused as {reason}, with {payload}, fence={fence}"
    return _Move(text, lambda: driver.refuse(subject, event, payload, reason, fence=fence))


def _misuse(dice: _Dice, driver: TrackerDriver) -> _Move:
    """Draw a repeated call, a used key, a payload that does not fit, or another user."""
    subject = dice.pick(driver.subjects)
    event = dice.pick(driver.machine.events)
    kind = dice.pick(("repeat", "duplicate", "misfit", "stranger"))
    if kind == "misfit":
        return _Move(f"{subject}: {event} with a bad payload", lambda: driver.misfit(subject, event))
    if kind == "stranger" or not subject.keyed:
        return _Move(f"{subject}: {event} by a stranger", lambda: driver.stranger(subject, event))
    key = dice.pick(tuple(subject.keyed))
    first = subject.keyed[key]
    fence = dice.pick((None, first.fence))
    if kind == "repeat" or event == first.event:
        text = f"{subject}: {first.event} again, key={key!r}, fence={fence}"
        return _Move(text, lambda: driver.repeat(subject, key, first.payload, fence))
    text = f"{subject}: {event} with the key of {first.event}, {key!r}"
    payload = driver.oracle.least(event)
    return _Move(text, lambda: driver.refuse(subject, event, payload, "duplicate", key=key, fence=fence))


def _let_pass(dice: _Dice, driver: TrackerDriver) -> _Move:
    seconds = dice.pick(_DURATIONS)
    if not dice.one_in(3):
        return _Move(f"{seconds} s pass", lambda: driver.pass_time(seconds))
    jump = dice.pick((-1.0, 1.0)) * seconds
    return _Move(f"the wall clock jumps by {jump} s", lambda: driver.jump(jump))


def _move(dice: _Dice, driver: Driver, fresh: set[Arrow]) -> _Move:
    """Draw the next step of an example."""
    kinds = ["take"] * 10 * any(not driver.ended(one) for one in driver.subjects) + ["forbid"] * 2
    kinds += ["create"] * (len(driver.subjects) < MAX_SUBJECTS)
    if isinstance(driver, TrackerDriver):
        kind = dice.pick([*kinds, "misuse", "time"])
        if kind == "misuse":
            return _misuse(dice, driver)
        if kind == "time":
            return _let_pass(dice, driver)
        if kind == "create" and dice.one_in(2):
            parent = dice.pick(driver.subjects)
            if not may_start_children(driver, parent):
                return _Move(f"create under {parent} must be refused", lambda: driver.orphan(parent))
            return _create(dice, driver, parent)
    else:
        kind = dice.pick(kinds)
    if kind == "create":
        return _create(dice, driver)
    return (_take if kind == "take" else _forbid)(dice, driver, fresh)


_ROLLED = st.binary(min_size=_Dice.SIZE, max_size=_Dice.SIZE)


class _Rules(RuleBasedStateMachine):
    """The steps of one example. There is one rule, which chooses: hypothesis would leave rules out at random."""

    plan: ClassVar[_Plan]

    def __init__(self) -> None:
        super().__init__()
        self.driver = self.plan.driver(self.plan.coverage.drawn)
        self.fresh = set(self.plan.oracle.machine.arrows)
        self.sound = True

    @initialize(rolled=_ROLLED)
    def begin(self, rolled: bytes) -> None:
        self._make(_create(_Dice(rolled), self.driver))

    @rule(rolled=_ROLLED)
    def step(self, rolled: bytes) -> None:
        self._make(_move(_Dice(rolled), self.driver, self.fresh))

    def _make(self, move: _Move) -> None:
        note(f"    {move.text}")
        self.sound = False  # a teardown after a broken guarantee must not hide it behind another one
        move.make()
        self.sound = True

    def teardown(self) -> None:
        try:
            if self.sound:
                self.driver.check()
        finally:
            self.driver.close()


# --- the test -------------------------------------------------------------------------------------------------


class MachineTest(unittest.TestCase):
    """The base of the classes that `machine_test` makes.

    Attributes:
        machine: The machine under test.
        settings: How long hypothesis tries.
    """

    __test__ = False

    machine: ClassVar[Machine]
    settings: ClassVar[Settings]
    _rules: ClassVar[type[_Rules]]
    _done: ClassVar[bool]

    @classmethod
    def explore(cls) -> Coverage:
        """Run the machine, unless that was done, and return which rows were taken.

        Raises:
            GuaranteeBroken: The library did not do what the table or a guarantee says.
        """
        if not cls._done:
            run_state_machine_as_test(cls._rules, settings=cls.settings)
            cls._rules.plan.walk()
            cls._done = True
        return cls._rules.plan.coverage

    @classmethod
    def report(cls) -> str:
        """Return how many rows were taken so far, and each that was not."""
        return str(cls._rules.plan.coverage)

    def test_guarantees(self) -> None:
        """Whatever is drawn, the table is the law and the guarantees hold."""
        self.explore()


def machine_test(
    machine: Machine,
    *,
    store: Place = "memory://",
    settings: Settings | None = None,
    require_all: bool = False,
    payloads: Mapping[str, Mapping[str, Any]] | None = None,
) -> type[MachineTest]:
    """Make a test of a machine; assign it to a name that begins with ``Test`` in a test module.

    Args:
        machine: Any machine.
        store: Where its executions live: a URL, or a function that returns a URL or an open store for each example.
        settings: Hypothesis' settings; the loaded profile if nothing is said.
        require_all: Whether a row that was never taken fails the test.
        payloads: For each event whose payload model asks for fields of its own, what the tests shall send.

    Returns:
        A subclass of `unittest.TestCase`; its ``report()`` says which rows were taken.

    Raises:
        ConfigurationError: An event's payload needs a field that `payloads` does not give.
    """
    title = machine.name.title().replace("_", "")

    class Rules(_Rules):
        plan = _Plan(machine, store, payloads)

    class Case(MachineTest):
        __test__ = True
        _rules = Rules
        _done = False

    class CompleteCase(Case):
        def test_every_row(self) -> None:
            """Every row of the table can be taken, and was."""
            coverage = self.explore()
            if coverage.missing_rows:
                broken("every row can be taken", str(coverage))

    case = CompleteCase if require_all else Case
    case.machine = machine
    case.settings = Settings(
        settings,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    Rules.__name__ = Rules.__qualname__ = f"{title}Rules"
    case.__name__ = case.__qualname__ = f"Test{title}"
    return case
