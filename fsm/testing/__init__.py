"""What tests need, this library's own and yours: a fresh tracker, a clock that obeys, and suites to inherit.

- ``fresh_tracker()`` puts a tracker of its own in the place of the process's one, for a ``with`` block.
- ``ManualClock`` goes on only when it is told to.
- The pytest fixtures ``tracker`` and ``clock`` are there as soon as the package is installed (`fsm.testing.plugin`).
- `fsm.simulation.simulation.Simulation` runs your agents on several workers in virtual time, with every fault that a
  seed can think of, and holds the journal to the guarantees; `fsm.simulation.plans` lets hypothesis draw the faults.
- `fsm.simulation.loop.SteppedLoop` is the event loop below it, for asyncio code of any kind.
- `fsm.testing.conformance.suite.StoreConformance` holds a store of your own to what every store must do.
- ``machine_test(machine)`` makes a property-based test of any machine that you declare
(`fsm.testing.machine.machines`).
- The pytest options ``--fsm-cover`` and its kin say which rows of a table the tests took (`fsm.testing.coverage`).
"""

from typing import TYPE_CHECKING, Any

from fsm.clock import ManualClock
from fsm.tracker.process import fresh_tracker

if TYPE_CHECKING:
    from fsm.testing.machine.machines import machine_test

__all__ = ["ManualClock", "fresh_tracker", "machine_test"]


def __getattr__(name: str) -> Any:
    """Load hypothesis for those who use it: pytest imports this package in every run."""
    if name == "machine_test":
        from fsm.testing.machine.machines import machine_test  # noqa: PLC0415 - as said above

        return machine_test
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
