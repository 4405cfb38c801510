"""Fault plans that hypothesis draws and shrinks: which fault, at which step, on which worker, for how long.

    @given(simulation_plans())
    def test_my_scenario(plan):
        plan.simulation(clock_skew_s=10.0).run(my_scenario)

A failing plan shrinks to the few faults that matter, and the error prints the `Simulation(...)` that replays it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

try:
    from hypothesis import strategies as st
except ImportError as missing:
    raise ImportError(
        "drawn fault plans need hypothesis: pip install 'agent-fsm[testing]'", name=missing.name
    ) from missing

from fsm.simulation.faults import PROCESS_FAULTS, STORE_FAULTS, Fault, FaultKind
from fsm.simulation.simulation import Simulation

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


class Plan(NamedTuple):
    """A seed for the order of things, and the faults at their steps.

    Attributes:
        seed: The schedule's seed.
        workers: How many workers there are.
        faults: What goes wrong, in the order of the steps.
    """

    seed: int
    workers: int
    faults: tuple[Fault, ...]

    def simulation(self, **options: Any) -> Simulation:
        """Return the simulation that carries the plan out.

        Args:
            **options: Further arguments of `Simulation`.
        """
        return Simulation(seed=self.seed, workers=self.workers, faults=self.faults, **options)


def simulation_plans(
    *,
    workers: int = 3,
    max_faults: int = 12,
    max_step: int = 5_000,
    max_s: float = 120.0,
    kinds: Sequence[FaultKind] = (*STORE_FAULTS, *PROCESS_FAULTS),
) -> SearchStrategy[Plan]:
    """Return a strategy that draws fault plans.

    Args:
        workers: The largest number of workers.
        max_faults: So many faults at most.
        max_step: The last step of the loop at which one may begin.
        max_s: The longest hang, pause, downtime or jump, in virtual seconds.
        kinds: The kinds of faults to draw from.

    Returns:
        The strategy. Plans shrink to fewer faults, at earlier steps, shorter, of the kinds that are named first.
    """
    faults = st.builds(
        Fault,
        step=st.integers(1, max_step),
        kind=st.sampled_from(list(kinds)),
        worker=st.integers(0, workers - 1),
        for_s=st.integers(1, max(1, int(max_s))).map(float),
    )
    return st.builds(
        Plan,
        seed=st.integers(0, 2**32 - 1),
        workers=st.integers(1, workers),
        faults=st.lists(faults, max_size=max_faults).map(lambda drawn: tuple(sorted(drawn))),
    )
