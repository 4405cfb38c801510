"""What tests need, this library's own and yours: a fresh tracker, a clock that obeys, and suites to inherit.

- ``fresh_tracker()`` puts a tracker of its own in the place of the process's one, for a ``with`` block.
- ``ManualClock`` goes on only when it is told to.
- The pytest fixtures ``tracker`` and ``clock`` are there as soon as the package is installed (`fsm.testing.plugin`).
- `fsm.testing.conformance.StoreConformance` holds a store of your own to what every store must do.
"""

from fsm.clock import ManualClock
from fsm.tracker import fresh_tracker

__all__ = ["ManualClock", "fresh_tracker"]
