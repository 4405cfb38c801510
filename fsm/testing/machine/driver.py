"""What drives instances of a machine in a test, and holds every move against the oracle.

A driver opens instances, fires what must be taken and what must be refused, and raises `GuaranteeBroken` as soon as
the library does not do what the table says. It draws nothing; who drives it (`fsm.testing.machine.machines`) decides
what happens next. This one runs a machine bare; `fsm.testing.machine.tracked` runs executions through a tracker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from fsm.core.records import Receipt, Retry
from fsm.machine.grammar import Arrow
from fsm.machine.timeouts import Timeouts
from fsm.testing.machine.oracle import Moment, Oracle, Twin


class GuaranteeBroken(AssertionError):
    """The library did not do what the table or a guarantee says.

    Attributes:
        guarantee: Its name in `fsm.simulation.guarantees`.
    """

    def __init__(self, guarantee: str, detail: str) -> None:
        self.guarantee = guarantee
        super().__init__(f"{guarantee}: {detail}")


def broken(guarantee: str, detail: str) -> NoReturn:
    """Raise `GuaranteeBroken`."""
    raise GuaranteeBroken(guarantee, detail)


class Subject:
    """One execution under test.

    Attributes:
        number: How messages call it.
        twin: What its record must be.
        parent: The execution that started it.
        receipts: Its journal, as it was handed out.
        keyed: The receipts of the calls that had an idempotency key.
        limits: Its time limits.
        last: The row that it took last.
        id: Its id in the tracker; empty for a machine that is run bare.
    """

    def __init__(self, number: int, twin: Twin, limits: Timeouts, parent: Subject | None = None) -> None:
        """Begin with the record as it must be at the creation."""
        self.number = number
        self.twin = twin
        self.parent = parent
        self.limits = limits
        self.receipts: list[Receipt] = []
        self.keyed: dict[str, Receipt] = {}
        self.last: Arrow | None = None
        self.id = ""

    def __str__(self) -> str:
        return f"#{self.number} ({self.twin.state}, version {self.twin.version})"


class Driver:
    """Runs a machine without a record: its executor alone, every fact answered by the test."""

    def __init__(self, oracle: Oracle, taken: Counter[Arrow]) -> None:
        """Set up.

        Args:
            oracle: What the table says.
            taken: Counts the rows that were taken.
        """
        self.oracle = oracle
        self.machine = oracle.machine
        self.subjects: list[Subject] = []
        self.taken = taken

    def open(
        self,
        retry: Retry | None = None,
        timeouts: Timeouts | None = None,
        parent: Subject | None = None,
    ) -> Subject:
        """Begin an instance, in the machine's initial state."""
        twin = Twin(
            self.machine.initial,
            attempts_max=(retry or Retry()).attempts_max,
            model_attempts_max=(retry or Retry()).model_attempts_max,
            total_given=timeouts is not None and timeouts.total_s is not None,
        )
        subject = Subject(len(self.subjects) + 1, twin, self.oracle.limits(timeouts), parent)
        self.subjects.append(subject)
        return subject

    def ended(self, subject: Subject) -> bool:
        """Return whether an instance has reached its end."""
        return subject.twin.state in self.oracle.terminal

    def fire(
        self,
        subject: Subject,
        arrow: Arrow,
        payload: Mapping[str, Any],
        *,
        key: str | None = None,
        fence: int | None = None,
    ) -> None:
        """Take a row that must be taken.

        Args:
            subject: The instance.
            arrow: The row.
            payload: What comes with the event; the facts as booleans.
            key: An idempotency key that was not used yet.
            fence: The present fence, or ``None``.
        """
        del key, fence  # only records have them
        found = _run(self.oracle, subject.twin.state, arrow.event, payload)
        if found != arrow:
            broken("the table is law", f"{subject} --{arrow.event}--> must take {arrow}, took {found}")
        subject.twin = self.oracle.take(subject.twin, arrow, payload, Moment(0.0))
        self.taken[arrow] += 1

    def refuse(
        self,
        subject: Subject,
        event: str,
        payload: Mapping[str, Any],
        reason: str,
        *,
        key: str | None = None,
        fence: int | None = None,
    ) -> None:
        """Fire an event that must be refused, and see that nothing was changed."""
        del reason, key, fence
        found = _run(self.oracle, subject.twin.state, event, payload)
        if found is not None:
            broken("what the table does not allow is refused", f"{subject} took {found}")

    def check(self) -> None:
        """Check everything once more; called when nothing else happens any more."""

    def close(self) -> None:
        """Let go of everything."""


class _Question:
    """What the executor is asked."""

    def __init__(self, state: str, answers: Callable[[str], bool]) -> None:
        self.state = state
        self.arrow: Arrow | None = None
        self._answers = answers

    def ask(self, fact: str) -> bool:
        return self._answers(fact)


def _run(oracle: Oracle, state: str, event: str, payload: Mapping[str, Any]) -> Arrow | None:
    twin = Twin(state)
    question = _Question(state, lambda fact: oracle.holds(twin, event, payload, fact))
    trigger = oracle.machine.executor.triggers.get(event)
    done = trigger is not None and trigger(question)
    if question.state != state or done is not (question.arrow is not None):
        broken(
            "a decision changes nothing by itself",
            f"{state} --{event}-->: {question.state}, {question.arrow}",
        )
    return question.arrow
