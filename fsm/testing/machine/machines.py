"""A property-based test of any machine that you declare, in one line.

    from fsm.testing import machine_test

    TestErrand = machine_test(ERRAND)

pytest (and unittest) finds the class. Its test drives real executions of the machine, several at a time and with
children, through a fresh tracker on a clock of its own: hypothesis draws events that the table allows (rows that the
example has not taken yet first) and events that it forbids, and after every step the guarantees are checked. What the
drawing left out of the table is then taken on a shortest way, each in an execution of its own. ``TestErrand.report()``
says what was taken and what could not even be taken so; with ``require_all=True`` a second test fails for a row that
was not taken from any of its sources.

A perpetual machine whose rows assign what executions do not have (such as `fsm.BREAKER`) has no record that a tracker
could keep. It is run on its executor alone: every fact is then drawn.
"""

from __future__ import annotations

import unittest
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from hypothesis import HealthCheck, note
from hypothesis import settings as Settings  # noqa: N812 - `settings` is what our own argument is called
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from fsm.core import decide
from fsm.core.records import Retry
from fsm.errors import ConfigurationError
from fsm.machine.grammar import Arrow, Transition
from fsm.machine.machine import Machine
from fsm.testing.machine.driver import Driver, broken
from fsm.testing.machine.moves import Dice, Move, create, move
from fsm.testing.machine.oracle import Oracle, Twin
from fsm.testing.machine.tracked import Place, TrackerDriver

_TRIES = (Retry(), Retry(attempts_max=2, model_attempts_max=2), Retry(attempts_max=3, model_attempts_max=3))


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
        if strange and not machine.perpetual:
            raise ConfigurationError(
                f"machine {machine.name!r} assigns {', '.join(sorted(strange))}, which executions do not have; they "
                f"have: {', '.join(decide.CHANGES)}. Only a perpetual machine is tested without executions"
            )
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
        try:
            for arrow in way:
                driver.fire(subject, arrow, dict(self.oracle.enabled(subject.twin))[arrow])
        except Exception as error:
            error.add_note("\n".join(["on the way:", *(f"    {arrow}" for arrow in way)]))
            raise


# --- the rules ---------------------------------------------------------------------------------------------------


_ROLLED = st.binary(min_size=Dice.SIZE, max_size=Dice.SIZE)


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
        self._make(create(Dice(rolled), self.driver))

    @rule(rolled=_ROLLED)
    def step(self, rolled: bytes) -> None:
        self._make(move(Dice(rolled), self.driver, self.fresh))

    def _make(self, move: Move) -> None:
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
        """Whatever is drawn, the table is law and the guarantees hold."""
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
        ConfigurationError: An event's payload needs a field that `payloads` does not give, or a machine that ends
            assigns what executions do not have.
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
