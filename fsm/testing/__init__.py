"""What tests need, this library's own and yours: a fresh tracker, a manual clock, and suites to inherit.

- ``fresh_tracker()`` puts a tracker of its own in the place of the process's one, for a ``with`` block.
- ``ManualClock`` goes on only when it is told to.
- The pytest fixtures ``fsm_tracker`` and ``fsm_clock`` are there as soon as the package is installed.
- ``StoreConformance`` holds a store of your own to what every store must do.
- ``machine_test(machine)`` makes a property-based test of any machine that you declare.
- The pytest options ``--fsm-cover`` and its kin say which rows of a table the tests took (`fsm.testing.coverage`).
- `fsm.simulation` runs agents on several workers in virtual time, with every fault that a seed can draw.

The suites need the extra ``agent-fsm[testing]``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fsm.clock import ManualClock
from fsm.tracker.process import fresh_tracker

if TYPE_CHECKING:
    from fsm.testing.conformance.suite import StoreConformance
    from fsm.testing.machine.machines import machine_test

__all__ = ["ManualClock", "StoreConformance", "fresh_tracker", "machine_test"]

_SUITES = {
    "StoreConformance": "fsm.testing.conformance.suite",
    "machine_test": "fsm.testing.machine.machines",
}


def __getattr__(name: str) -> Any:
    """Load a suite, and hypothesis with it, when it is asked for: pytest imports this package in every run."""
    if name in _SUITES:
        return getattr(import_module(_SUITES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
