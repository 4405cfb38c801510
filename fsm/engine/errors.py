"""What ends an agent's run, and what any error below the engine becomes."""

from __future__ import annotations

import asyncio

from fsm.concurrency.supervised import one_line
from fsm.errors import StoreUnavailable


class RunOver(asyncio.CancelledError):
    """The execution has ended, is being cancelled, or belongs to another worker: this run of the agent is over.

    It is a cancellation: an agent that swallowed the first one meets the next at its next step.
    """


def unknown_failure(error: BaseException) -> StoreUnavailable:
    """Return an error that no layer below the engine expected, as one that callers know how to handle."""
    return StoreUnavailable(f"an unexpected error below the engine: {one_line(error)}", committed=None)
