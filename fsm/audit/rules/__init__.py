"""The rules: each module finds one kind of second source of truth in one file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fsm.audit.rules import breakers, ids, shared, tables, trackers, writes
from fsm.audit.rules.context import FileContext

Check = Callable[[FileContext], None]

# FSM001 is not here: it needs all modules, and runs in a second pass. The writes come after the trackers,
# since what a second tracker does inside itself is reported once, as the tracker.
LOCAL_RULES: Final[tuple[tuple[tuple[str, ...], Check], ...]] = (
    ((ids.CODE,), ids.check),
    ((trackers.TRACKER, trackers.ENGINE), trackers.check),
    ((tables.CODE,), tables.check),
    ((writes.CODE,), writes.check),
    ((breakers.CODE,), breakers.check),
    ((shared.CODE,), shared.check),
)
