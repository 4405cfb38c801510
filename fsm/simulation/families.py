"""Parents and children in a simulation, as the commits tell them: no child outlives the order to cancel it."""

from __future__ import annotations

from collections.abc import Mapping

from fsm.core.records import CANCEL_CHILDREN, Receipt, Step
from fsm.machine.grammar import Category
from fsm.simulation.observed import Broken, Model, Sweep

_OVER = frozenset({Category.TERMINAL, Category.STOPPING})


class Families:
    """Watches births and orders."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        """Begin with nobody.

        Args:
            models: Every execution, kept up to date by whoever has it.
        """
        self._models = models
        self._children: dict[str, list[str]] = {}
        self._ordered: dict[str, int] = {}  # the parent, and the number of the commit that ordered it

    def born(self, parent_id: str, receipt: Receipt) -> None:
        """Take note of a child's birth.

        Raises:
            Broken: Its parent had ended, or was about to.
        """
        parent = self._models.get(parent_id)
        if parent is None or parent.gone or _is_over(parent):
            raise Broken("nothing starts under a parent that has ended", f"{receipt} under {parent_id}")
        self._children.setdefault(parent_id, []).append(receipt.execution_id)

    def ordered(self, step: Step, number: int) -> None:
        """Take note of a step with effects.

        Args:
            step: The step.
            number: How many commits there were before it.
        """
        execution_id = step.after.identity.id
        if CANCEL_CHILDREN in step.effects and execution_id in self._children:
            self._ordered[execution_id] = number

    def swept(self, begun: Sweep) -> None:
        """Hold a whole sweep to its purpose: what had been ordered when it began is carried out.

        Raises:
            Broken: A child is still at work.
        """
        for parent_id in [one for one, number in self._ordered.items() if number < begun.commits]:
            for child_id in self._children[parent_id]:
                if not _is_over(self._models[child_id]):
                    raise Broken(
                        "children end with their parent",
                        f"{child_id} is {self._models[child_id].state} after a sweep that began at {begun.at_s:.6g} s, "
                        f"and its parent was ended before: {self._models[parent_id].rows[-1]}",
                    )
            del self._ordered[parent_id]  # no child is born there any more


def _is_over(model: Model) -> bool:
    last = model.last
    return last is not None and model.machine.by_name[last.after.state].category in _OVER
