"""The lean executor and stock `transitions` agree on everything, and a refused event leaves no trace."""

from __future__ import annotations

import ast
import contextlib
import inspect
import types
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import transitions
from hypothesis import given, settings

import fsm
from fsm import BREAKER, EXECUTION, Fact, Machine
from fsm.machine.executor import Executor
from fsm.machine.grammar import Arrow, row, state
from tests.support.strategies import FACT_NAMES, cases, machines

SHIPPED = pytest.mark.parametrize("machine", [EXECUTION, BREAKER], ids=lambda machine: machine.name)


class Question:
    """Stands in for a record, and notes which facts it was asked."""

    def __init__(self, where: str, answers: Mapping[str, bool]) -> None:
        self.state = where
        self.arrow: Arrow | None = None
        self.answers = answers
        self.asked: set[str] = set()

    def ask(self, fact: str) -> bool:
        self.asked.add(fact)
        return self.answers[fact]


class Oracle:
    """A stock `transitions.Machine` with one model; its guards are callables over one dict of answers."""

    def __init__(self, machine: Machine) -> None:
        self.answers: Mapping[str, bool] = {}
        self.taken: int | None = None
        self.model = types.SimpleNamespace()
        self.stock = transitions.Machine(
            self.model,
            states=[one.name for one in machine.states],
            initial=machine.initial,
            auto_transitions=False,
            model_attribute="where",
        )
        for index, one in enumerate(machine.transitions):
            names: dict[str, None] = {}
            for selector in one.source:
                names |= {s.name: None for s in machine.states if selector in {s.name, f"@{s.category}"}}
            for source in names.keys() - {selector[1:] for selector in one.source if selector[0] == "!"}:
                self.stock.add_transition(
                    one.event,
                    source,
                    one.target,
                    conditions=[self._fact(name) for name, wanted in one.literals if wanted],
                    unless=[self._fact(name) for name, wanted in one.literals if not wanted],
                    after=self._note(index),
                )

    def _fact(self, name: str) -> Callable[[], bool]:
        return lambda: self.answers[name]

    def _note(self, index: int) -> Callable[[], None]:
        return lambda: setattr(self, "taken", index)

    def fire(self, where: str, event: str, answers: Mapping[str, bool]) -> tuple[str, int | None]:
        """Return the state after the event and the row that was taken; no row if it was refused."""
        self.stock.set_state(where, self.model)
        self.answers, self.taken = answers, None
        with contextlib.suppress(transitions.MachineError):
            self.model.trigger(event)
        return self.model.where, self.taken


def agree(machine: Machine) -> int:
    """Compare both over the whole product of states, events and answers; return how often a row was taken."""
    oracle, executor = Oracle(machine), Executor(machine.table)
    assert set(executor.triggers) == set(oracle.stock.events)
    moves = 0
    for one, event in product(machine.states, machine.events):
        for answers in cases([fact.name for fact in machine.facts]):
            question = Question(one.name, answers)
            taken = executor.triggers[event](question)
            target, index = oracle.fire(one.name, event, answers)
            assert taken is (index is not None)
            if question.arrow is None:
                assert index is None
                assert target == one.name
            else:
                moves += 1
                assert (question.arrow.target, question.arrow.row) == (target, index)
                assert (question.arrow.source, question.arrow.event) == (one.name, event)
            assert question.state == one.name, "the executor answers, it does not move"
    return moves


@SHIPPED
def test_the_shipped_machines_run_as_stock_transitions_runs_them(machine: Machine) -> None:
    """Over the whole product of states, events and guard values both executors take the same row or none."""
    assert agree(machine) > 0


@settings(max_examples=50, deadline=None)
@given(machines())
def test_drawn_machines_run_as_stock_transitions_runs_them(machine: Machine) -> None:
    """For any machine both executors agree over the whole product."""
    assert agree(machine) > 0


def insides(executor: Executor) -> Any:
    """Return all that the executor keeps: its machine's events and states, and each event's rows by source."""
    # Under transition coverage the triggers are wrapped.
    lean = {inspect.unwrap(trigger).__self__.machine for trigger in executor.triggers.values()}
    (kept,) = lean
    rows = {
        name: {source: list(found) for source, found in event.transitions.items()}
        for name, event in kept.events.items()
    }
    return rows, list(kept.states), list(kept.models), dict(executor.triggers)


@settings(max_examples=30, deadline=None)
@given(machines())
def test_an_event_changes_nothing_in_the_executor(machine: Machine) -> None:
    """No event, legal or not, leaves anything behind in the executor, not even an empty entry."""
    executor = Executor(machine.table)
    before = insides(executor)
    for one, event in product([*(s.name for s in machine.states), "nowhere"], machine.events):
        for answers in cases(FACT_NAMES):
            question = Question(one, answers)
            if not executor.triggers[event](question):
                assert question.arrow is None
                assert question.state == one
    assert insides(executor) == before
    assert before[2] == [], "no execution is ever registered"


@SHIPPED
def test_a_refused_event_changes_nothing_in_the_shipped_executors(machine: Machine) -> None:
    """Every illegal event of the shipped machines leaves state, question and executor as they were."""
    before = insides(machine.executor)
    refused = 0
    for one, event in product(machine.states, machine.events):
        if event in machine.by_source[one.name]:
            continue
        question = Question(one.name, {})
        assert machine.executor.triggers[event](question) is False
        assert (question.state, question.arrow, question.asked) == (one.name, None, set())
        refused += 1
    assert refused > 0
    assert insides(machine.executor) == before


def test_only_the_facts_of_the_rows_that_are_tried_are_asked() -> None:
    """A fact of a row below the one that is taken is never asked, nor one after the first that fails."""
    machine = Machine(
        name="m",
        initial="a",
        states=(state("a", "running"), state("b", "terminal")),
        facts=tuple(Fact(name=name) for name in ("one", "two", "three")),
        transitions=(
            row("a", "go", "b", "one and two"),
            row("a", "go", "b", "three"),
            row("a", "go", "b"),
        ),
    )
    trigger = Executor(machine.table).triggers["go"]
    for answers, asked in (
        ({"one": True, "two": True}, {"one", "two"}),
        ({"one": False, "three": True}, {"one", "three"}),
        ({"one": True, "two": False, "three": False}, {"one", "two", "three"}),
    ):
        question = Question("a", answers)
        assert trigger(question)
        assert question.asked == asked


@pytest.mark.parametrize(
    "name", ["state", "trigger", "initial", "model", "models", "events", "to_b", "is_a", "b"]
)
def test_an_event_may_have_any_name_of_the_grammar(name: str) -> None:
    """An event's name never collides with a name that the executor uses for itself."""
    machine = Machine(
        name="m",
        initial="a",
        states=(state("a", "running"), state("b", "terminal")),
        transitions=(row("a", name, "b"),),
    )
    question = Question("a", {})
    assert machine.executor.triggers[name](question)
    assert question.arrow is machine.arrows[0]


def test_a_guard_that_fails_with_an_error_moves_nothing() -> None:
    """An error while a fact is asked comes through as it is, and no row is taken."""

    class Broken(Question):
        def ask(self, fact: str) -> bool:
            raise ZeroDivisionError(fact)

    question = Broken("calling_model", {})
    with pytest.raises(ZeroDivisionError, match="model_attempts_left"):
        EXECUTION.executor.triggers["back_off"](question)
    assert (question.state, question.arrow) == ("calling_model", None)


def test_only_the_executor_imports_transitions() -> None:
    """No other module of the library knows by what the table is executed."""
    importers = set()
    package = Path(fsm.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "transitions" for name in names):
                importers.add(path.relative_to(package).as_posix())
    assert importers == {"machine/executor.py"}
