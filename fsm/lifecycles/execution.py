"""The execution machine: what an agent's run may be, and what may happen to it.

This table is the only place that knows. The runtime check, the database's law, the deadlines, the drawings, the
lists of allowed events and the generated tests are all made from it.
"""

from __future__ import annotations

from fsm.machine import Fact, Machine, row, state
from fsm.timeouts import Timeouts

_CALLERS = "starting thinking preparing_tools running_tools processing_results"
_ASKERS = "thinking calling_model running_tools processing_results"
_THINKERS = "starting preparing_tools calling_model running_tools processing_results backing_off circuit_open"
_OPEN = "@pending @running @waiting"
_DRIVEN = "@running @waiting !awaiting_input"
_UNOWNED = "no worker owns it, so none can be lost"
_CLOSE_FIRST = "a tool is still open: close it first"

# fmt: off
STATES = (
    state("created", "pending", "queue", "Registered; nobody works on it yet"),
    state("queued", "pending", "queue", "Waits for a slot, or for not_before"),
    state("connecting", "running", "phase", "Sets up the way back to the user"),
    state("validating", "running", "phase", "Checks the request and its context"),
    state("starting", "running", "phase", "Sets up the agent"),
    state("thinking", "running", "phase", "Decides what to do next"),
    state("preparing_tools", "running", "phase", "Chooses tools and their arguments"),
    state("calling_model", "running", "phase", "Waits for a language model's answer"),
    state("running_tools", "running", "phase", "Runs one tool or several"),
    state("processing_results", "running", "phase", "Makes something of what came back"),
    state("completing", "running", "phase", "Writes the result down"),
    state("awaiting_input", "waiting", "input", "Waits for a person"),
    state("backing_off", "waiting", "phase", "Pauses between two model calls"),
    state("circuit_open", "waiting", "phase", "Waits behind a breaker that lets no call through"),
    state("cancelling", "stopping", "grace", "Was told to stop, and has a little time to do so"),
    state("completed", "terminal", doc="Ended as it should"),
    state("failed", "terminal", doc="Ended with an error"),
    state("timed_out", "terminal", doc="Ran out of time, turns or patience"),
    state("cancelled", "terminal", doc="Was called off"),
    state("dead", "terminal", doc="Its worker was lost and no attempt is left"),
)

FACTS = (
    Fact(name="owned", doc="a worker drives this attempt"),
    Fact(name="attempts_left", doc="attempt < attempts_max"),
    Fact(name="model_attempts_left", doc="this model call may be tried again"),
    Fact(name="tools_open", doc="a tool was opened and not closed"),
    Fact(name="tool_known", doc="the tool to close is open"),
    Fact(name="retryable", doc="the error may go away by itself (payload of fail)"),
    Fact(name="permit", default=True, doc="the breaker lets the call through (payload of call_model)"),
)

TRANSITIONS = (
    row("created", "enqueue", "queued"),
    row("created queued", "connect", "connecting", assign="claim"),
    row("created queued", "validate", "validating", assign="claim"),
    row("created queued", "start", "starting", assign="claim"),
    row("connecting", "validate", "validating"),
    row("connecting validating", "start", "starting"),

    row(_THINKERS, "think", "thinking"),
    row("thinking", "prepare_tools", "preparing_tools"),
    row(_CALLERS, "call_model", "calling_model", "permit", assign="first_call"),
    row(_CALLERS, "call_model", "circuit_open", assign="new_call wait"),
    row("thinking preparing_tools calling_model", "run_tools", "running_tools"),
    row("thinking calling_model running_tools", "process_results", "processing_results"),
    row("processing_results", "finish", "completing", "not tools_open", otherwise=_CLOSE_FIRST),
    row("completing", "complete", "completed", "not tools_open", otherwise=_CLOSE_FIRST),

    row(_ASKERS, "await_input", "awaiting_input", assign="ask"),
    row("awaiting_input", "receive_input", "thinking", "owned"),
    row("awaiting_input", "receive_input", "queued"),
    row("awaiting_input", "withdraw", "thinking", "owned",
        otherwise="no worker owns it: whoever goes on with it may still need the answer"),
    row("calling_model", "back_off", "backing_off", "model_attempts_left", assign="pause",
        otherwise="no attempt of this model call is left: fail, or think about a fallback"),
    row("calling_model", "trip", "circuit_open", assign="wait"),
    row("backing_off", "call_model", "calling_model", "permit", assign="next_call"),
    row("backing_off", "call_model", "circuit_open", assign="wait"),
    row("circuit_open", "call_model", "calling_model", "permit", assign="next_call"),
    row("circuit_open", "call_model", assign="wait"),

    row("@running @waiting", "open_tool", assign="open_tool"),
    row("@running @waiting", "close_tool", guard="tool_known", assign="close_tool",
        otherwise="no such tool is open"),
    row("@running @waiting", "progress"),
    row("@running @waiting", "fall_back", "thinking", "owned", assign="drop_tools",
        otherwise="no worker owns it, so none can go on with it"),

    row(_OPEN, "fail", "queued", "retryable and attempts_left", assign="release retry_later"),
    row(_OPEN, "fail", "failed", effects="cancel_children"),
    row(_OPEN, "time_out", "timed_out", effects="cancel_children"),
    row(_DRIVEN, "lapse", "queued", "owned and attempts_left", assign="release retry_later"),
    row(_DRIVEN, "lapse", "dead", "owned", effects="cancel_children", otherwise=_UNOWNED),
    row("awaiting_input", "lapse", guard="owned", assign="release", otherwise=_UNOWNED),
    row("@running @waiting", "cancel", "cancelling", "owned", effects="cancel_children"),
    row(_OPEN, "cancel", "cancelled", effects="cancel_children"),
    row("cancelling", "stopped", "cancelled"),
    row("cancelling", "time_out", "cancelled"),
    row("cancelling", "lapse", "cancelled"),
    row("cancelling", "fail", "cancelled"),
)
# fmt: on

EXECUTION = Machine(
    name="execution",
    doc="One run of an AI agent",
    initial="created",
    states=STATES,
    transitions=TRANSITIONS,
    facts=FACTS,
    payloads=tuple(
        (event, event)
        for event in (
            "connect validate start call_model back_off trip await_input receive_input open_tool close_tool "
            "progress fall_back fail time_out lapse cancel stopped complete"
        ).split()
    ),
    timeouts=Timeouts(
        total_s=86_400.0, queue_s=3_600.0, phase_s=1_800.0, idle_s=None, input_s=86_400.0, grace_s=30.0
    ),
)
"""The machine of every agent's execution, unless its creator names another."""
