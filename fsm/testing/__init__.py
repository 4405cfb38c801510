"""What tests need, this library's own and yours: a fresh tracker, a clock that obeys, and suites to inherit.

- ``fresh_tracker()`` puts a tracker of its own in the place of the process's one, for a ``with`` block.
- ``ManualClock`` goes on only when it is told to.
- The pytest fixtures ``tracker`` and ``clock`` are there as soon as the package is installed (`fsm.testing.plugin`).
- `fsm.testing.simulation.Simulation` runs your agents on several workers in virtual time, with every fault that a
  seed can think of, and holds the journal to the guarantees; `fsm.testing.plans` lets hypothesis draw the faults.
- `fsm.testing.loop.SteppedLoop` is the event loop below it, for asyncio code of any kind.
- `fsm.testing.conformance.StoreConformance` holds a store of your own to what every store must do.
- `fsm.testing.machines.machine_test` makes a test of any machine that you declare.
- The pytest options ``--fsm-cover`` and its kin say which rows of a table the tests took (`fsm.testing.coverage`).
"""

from fsm.clock import ManualClock
from fsm.tracker import fresh_tracker

__all__ = ["ManualClock", "fresh_tracker"]
