"""The only module that imports `transitions`: it executes the table.

One model-less `transitions.Machine` is built per declaration, once, and never shown to anybody. The execution is not
a model of it: a throw-away question (`Question`) stands in for one, so nothing is ever registered, and an event that
is not carried out has nothing to undo. The subclasses below leave out what the core has no use for (callbacks,
queues, event data), which makes a step several times cheaper than a stock trigger; that both agree on every state,
event and guard value is shown by `tests/machine/test_executor.py`, with stock `transitions` as the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import transitions

from fsm.machine.grammar import Arrow
from fsm.machine.table import Table


class Question(Protocol):
    """What the executor asks and answers: where are we, which facts hold; and then which arrow was taken."""

    state: str
    arrow: Arrow | None

    def ask(self, fact: str) -> bool:
        """Return whether a fact holds; called only for the facts of the guards that are tried."""
        ...


class _LeanTransition(transitions.Transition):
    """A row that answers with itself instead of moving a model."""

    def __init__(self, *args: Any, arrow: Arrow, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.arrow = arrow
        self.literals = tuple((str(condition.func), condition.target) for condition in self.conditions)

    def execute(self, event_data: Question) -> bool:  # type: ignore[override]
        for fact, wanted in self.literals:
            if event_data.ask(fact) is not wanted:
                return False
        event_data.arrow = self.arrow
        return True


class _LeanEvent(transitions.Event):
    """An event that tries its rows in order and knows no callbacks."""

    def trigger(self, model: Question, *_args: Any, **_kwargs: Any) -> bool:  # type: ignore[override]
        # .get, not []: the mapping is a defaultdict, and a refused event must not leave an entry behind.
        # A loop, not any(): a generator would cost as much as the rest of the step.
        for transition in self.transitions.get(model.state, ()):  # noqa: SIM110
            if transition.execute(model):  # type: ignore[arg-type]
                return True
        return False


class _LeanMachine(transitions.Machine):
    event_cls = _LeanEvent
    transition_cls = _LeanTransition


class Executor:
    """One declaration, ready to run.

    Attributes:
        triggers: For each event the function that carries it out on a `Question`: it returns whether a row was
            taken, and leaves that row in ``question.arrow``.
    """

    def __init__(self, table: Table) -> None:
        lean = _LeanMachine(
            model=None,
            model_attribute="-",  # there is no model; an event may be called "state", and none can be called "-"
            states=[state.name for state in table.declared.states],
            initial=table.declared.initial,
            auto_transitions=False,
            send_event=False,
            queued=False,
        )
        for arrow in table.arrows:
            lean.add_transition(
                arrow.event,
                arrow.source,
                None if arrow.internal else arrow.target,
                conditions=[fact for fact, wanted in arrow.literals if wanted],
                unless=[fact for fact, wanted in arrow.literals if not wanted],
                arrow=arrow,
            )
        self.triggers: dict[str, Callable[[Question], bool]] = {
            name: event.trigger for name, event in lean.events.items()
        }
