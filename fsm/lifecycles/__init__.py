"""The shipped machines, one table each, and the names that older trackers used for their states."""

from fsm.lifecycles.breaker import BREAKER
from fsm.lifecycles.execution import EXECUTION
from fsm.lifecycles.legacy import (
    LEGACY_EDGES,
    LEGACY_PHASES,
    LEGACY_STATES,
    IllegalLegacyEdge,
    legacy_event,
)

__all__ = [
    "BREAKER",
    "EXECUTION",
    "LEGACY_EDGES",
    "LEGACY_PHASES",
    "LEGACY_STATES",
    "IllegalLegacyEdge",
    "legacy_event",
]
