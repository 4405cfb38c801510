"""What tests need, this library's own and yours: a fresh tracker, a clock that obeys, and suites to inherit.

- ``fresh_tracker()`` puts a tracker of its own in the place of the process's one, for a ``with`` block.
- ``ManualClock`` goes on only when it is told to.
- `fsm.testing.machines.machine_test` makes a test of any machine that you declare.
- The pytest options ``--fsm-cover`` and its kin say which rows of a table the tests took (`fsm.testing.coverage`).
"""

from fsm.clock import ManualClock
from fsm.tracker import fresh_tracker

__all__ = ["ManualClock", "fresh_tracker"]
