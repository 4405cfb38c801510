"""What tests need, this library's own and yours: a fresh tracker, a clock that obeys, and suites to inherit.

- ``fresh_tracker()`` puts a tracker of its own in the place of the process's one, for a ``with`` block.
- ``ManualClock`` goes on only when it is told to.
- ``machine_test(machine)`` makes a property-based test of any machine that you declare (`fsm.testing.machines`).
- The pytest options ``--fsm-cover`` and its kin say which rows of a table the tests took (`fsm.testing.coverage`).
"""

from typing import TYPE_CHECKING, Any

from fsm.clock import ManualClock
from fsm.tracker import fresh_tracker

if TYPE_CHECKING:
    from fsm.testing.machines import machine_test

__all__ = ["ManualClock", "fresh_tracker", "machine_test"]


def __getattr__(name: str) -> Any:
    """Load hypothesis for those who use it: pytest imports this package in every run."""
    if name == "machine_test":
        from fsm.testing.machines import machine_test  # noqa: PLC0415 - as said above

        return machine_test
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
