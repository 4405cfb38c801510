"""The names of the older trackers, and the way from them into the execution machine.

The older phase tracker knew fourteen phases and thirty-five edges between them; it logged a forbidden edge and took
it all the same. Here every legal one has its event, and every other pair is refused.
"""

from __future__ import annotations

from fsm.errors import FsmError
from fsm.lifecycles.execution import EXECUTION

LEGACY_PHASES: dict[str, str] = {
    "created": "created",
    "websocket_setup": "connecting",
    "context_validation": "validating",
    "starting": "starting",
    "thinking": "thinking",
    "tool_preparation": "preparing_tools",
    "llm_interaction": "calling_model",
    "tool_execution": "running_tools",
    "result_processing": "processing_results",
    "completing": "completing",
    "completed": "completed",
    "failed": "failed",
    "timeout": "timed_out",
    "circuit_breaker_open": "circuit_open",
}
"""Each legacy phase and the state that it is here."""

LEGACY_STATES: dict[str, str] = {
    "pending": "created",
    "starting": "starting",
    "running": "thinking",
    "completing": "completing",
    "completed": "completed",
    "failed": "failed",
    "timeout": "timed_out",
    "dead": "dead",
    "cancelled": "cancelled",
}
"""Each value of the legacy status enum and the state that it is here. ``running`` named no phase."""

_EDGES: dict[str, str] = {
    "created": "websocket_setup failed",
    "websocket_setup": "context_validation failed",
    "context_validation": "starting failed",
    "starting": "thinking failed timeout",
    "thinking": "tool_preparation llm_interaction failed timeout",
    "tool_preparation": "tool_execution llm_interaction failed timeout",
    "llm_interaction": "thinking tool_execution result_processing failed timeout circuit_breaker_open",
    "tool_execution": "thinking llm_interaction result_processing failed timeout",
    "result_processing": "completing thinking failed timeout",
    "completing": "completed failed timeout",
}

LEGACY_EDGES: frozenset[tuple[str, str]] = frozenset(
    (source, target) for source, targets in _EDGES.items() for target in targets.split()
)
"""The thirty-five pairs of legacy phases between which the older tracker allowed a step."""


class IllegalLegacyEdge(FsmError):
    """The older tracker did not allow a step between these two phases, or knew no such phase."""


def legacy_event(source: str, target: str) -> str:
    """Return the event that makes a legacy step here.

    Args:
        source: The legacy phase that the execution is in.
        target: The legacy phase that it goes to.

    Returns:
        The event of the execution machine.

    Raises:
        IllegalLegacyEdge: The older tracker's rules forbid the step, or one of the names is none of its phases.
    """
    for name in (source, target):
        if name not in LEGACY_PHASES:
            known = ", ".join(LEGACY_PHASES)
            raise IllegalLegacyEdge(f"{name!r} is no legacy phase; they are: {known}")
    if (source, target) not in LEGACY_EDGES:
        allowed = _EDGES.get(source, "nothing, it is an end").replace(" ", ", ")
        raise IllegalLegacyEdge(f"{source!r} -> {target!r} is no legacy step; from {source!r}: {allowed}")
    here = LEGACY_PHASES[source]
    return next(
        event
        for event, arrows in EXECUTION.by_source[here].items()
        for arrow in arrows
        if arrow.target == LEGACY_PHASES[target]
    )
