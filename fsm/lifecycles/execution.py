"""The execution machine: what an agent's run may be, and what may happen to it.

This table is the only place that knows. The runtime check, the database's law, the deadlines, the drawings, the
lists of allowed events and the generated tests are all made from it.
"""

from __future__ import annotations

from fsm.machine.grammar import Fact, invariant, row, state
from fsm.machine.machine import Machine
from fsm.machine.timeouts import Timeouts

_CALLERS = "starting thinking preparing_tools running_tools processing_results"
_ASKERS = "thinking calling_model running_tools processing_results"
_THINKERS = "starting preparing_tools calling_model running_tools processing_results backing_off circuit_open"
_OPEN = "@pending @running @waiting"
_DRIVEN = "@running @waiting !awaiting_input"
_UNOWNED = "no worker owns it, so none can be lost"
_NOT_DRIVEN = "no worker owns it, so none can go on with it"
_NO_CALL_LEFT = "no attempt of this model call is left: fail, or think about a fallback"
_NO_TOOL_LEFT = "no worker owns it, or as many tools are open as may be at once: close one first"
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
    state("completed", "terminal", doc="Ended as it should", outcome="success"),
    state("failed", "terminal", doc="Ended with an error", outcome="error"),
    state("timed_out", "terminal", doc="Ran out of time, turns or patience", outcome="timeout"),
    state("cancelled", "terminal", doc="Was cancelled", outcome="cancelled"),
    state("dead", "terminal", doc="Its worker was lost and no attempt is left", outcome="lost"),
)

FACTS = (
    Fact(name="owned", doc="a worker drives this attempt"),
    Fact(name="attempts_left", doc="attempt < attempts_max"),
    Fact(name="model_attempts_left", doc="this model call may be tried again"),
    Fact(name="tools_left", doc="another tool may be opened beside those that are open"),
    Fact(name="tools_open", doc="a tool was opened and not closed"),
    Fact(name="tool_known", doc="the tool to close is open"),
    Fact(name="retryable", doc="the error may go away by itself (payload of fail)"),
    Fact(name="permit", default=True, doc="the breaker lets the call through (payload of call_model)"),
)

TRANSITIONS = (
    row("created", "enqueue", "queued", by="owner"),
    row("created queued", "connect", "connecting", assign="claim"),
    row("created queued", "validate", "validating", assign="claim"),
    row("created queued", "start", "starting", assign="claim", implicit=True),
    row("connecting", "validate", "validating", by="owner"),
    row("connecting validating", "start", "starting", by="owner", implicit=True),

    row(_THINKERS, "think", "thinking", by="owner", implicit=True),
    row("thinking", "prepare_tools", "preparing_tools", by="owner"),
    row(_CALLERS, "call_model", "calling_model", "permit", assign="first_call", by="owner"),
    row(_CALLERS, "call_model", "circuit_open", assign="new_call wait", by="owner"),
    row("thinking preparing_tools calling_model", "run_tools", "running_tools", by="owner", implicit=True),
    row("thinking calling_model running_tools", "process_results", "processing_results", by="owner", implicit=True),
    row("processing_results", "finish", "completing", "not tools_open", otherwise=_CLOSE_FIRST, by="owner",
        implicit=True),
    row("completing", "complete", "completed", "not tools_open", otherwise=_CLOSE_FIRST, by="owner"),

    row(_ASKERS, "await_input", "awaiting_input", assign="ask", by="owner"),
    row("awaiting_input", "receive_input", "thinking", "owned"),
    row("awaiting_input", "receive_input", "queued"),
    row("awaiting_input", "withdraw", "thinking", "owned", by="owner",
        otherwise="no worker owns it: the worker that goes on with it may still need the answer"),
    row("calling_model", "back_off", "backing_off", "model_attempts_left", assign="pause", by="owner",
        otherwise=_NO_CALL_LEFT),
    row("calling_model", "trip", "circuit_open", assign="wait", by="owner"),
    row("backing_off", "call_model", "calling_model", "permit", assign="next_call", by="owner"),
    row("backing_off", "call_model", "circuit_open", assign="wait", by="owner"),
    row("circuit_open", "call_model", "calling_model", "permit and model_attempts_left", assign="next_call",
        by="owner"),
    row("circuit_open", "call_model", None, "model_attempts_left", assign="wait", by="owner",
        otherwise=_NO_CALL_LEFT),

    row("@running @waiting", "open_tool", None, "owned and tools_left", assign="open_tool", by="owner",
        otherwise=_NO_TOOL_LEFT),
    row("@running @waiting", "close_tool", None, "tool_known", assign="close_tool", by="owner",
        otherwise="no such tool is open"),
    row("@running @waiting", "progress", None, "owned", by="owner", otherwise=_NOT_DRIVEN),
    row("@running @waiting", "fall_back", "thinking", "owned", assign="drop_tools", by="owner", otherwise=_NOT_DRIVEN),

    row(_OPEN, "fail", "queued", "retryable and attempts_left", assign="release retry_later", by="owner"),
    row(_OPEN, "fail", "failed", effects="cancel_children", by="owner"),
    row(_OPEN, "time_out", "timed_out", effects="cancel_children", by="system"),
    row(_DRIVEN, "lapse", "queued", "owned and attempts_left", assign="release retry_later", by="system"),
    row(_DRIVEN, "lapse", "dead", "owned", effects="cancel_children", by="system", otherwise=_UNOWNED),
    row("awaiting_input", "lapse", None, "owned", assign="suspend", by="system", otherwise=_UNOWNED),
    row("@running @waiting", "cancel", "cancelling", "owned", effects="cancel_children"),
    row(_OPEN, "cancel", "cancelled", effects="cancel_children"),
    row("cancelling", "stopped", "cancelled", by="owner"),
    row("cancelling", "time_out", "cancelled", by="system"),
    row("cancelling", "lapse", "cancelled", by="system"),
    row("cancelling", "fail", "cancelled", by="owner"),
)

INVARIANTS = (
    invariant("attempts_bounded", "It is never tried more often than it may be", "attempt <= attempts_max"),
    invariant("attempt_free", "What waits for a worker has an attempt left, or goes on with a suspended one",
              "@pending and not suspended implies attempt < attempts_max"),
    invariant("attempts_only_grow", "An attempt that was counted stays counted", "attempt never falls"),
    invariant("calls_bounded", "A model call is never tried more often than it may be",
              "model_attempt <= model_attempts_max"),
    invariant("call_free", "A pause leads to another try", "backing_off implies model_attempt < model_attempts_max"),
    invariant("call_counted", "A call that runs has been counted", "calling_model implies model_attempt >= 1"),
    invariant("fence_only_grows", "A stale worker's fence never becomes valid again", "fence never falls"),
    invariant("fence_tells_owners_apart", "No two owners have one fence",
              "owner == before.owner or fence > before.fence"),
    invariant("fence_tells_attempts_apart", "No two attempts have one fence",
              "attempt == before.attempt or fence > before.fence"),
    invariant("fence_covers_attempts", "Every attempt has raised the fence", "fence >= attempt"),
    invariant("driven", "What runs, pauses or is stopping has an owner",
              "@running or @stopping or backing_off or circuit_open implies owned"),
    invariant("free", "What waits for a worker has no owner", "@pending implies not owned"),
    invariant("owner_has_claimed", "An owner has claimed it, and has a fence",
              "owned implies attempt >= 1 and fence >= 1"),
    invariant("suspended_was_tried", "What is suspended has been tried", "suspended implies attempt >= 1"),
    invariant("suspended_free", "What is suspended has no owner", "suspended implies not owned"),
    invariant("asked_without_owner", "A question without an owner belongs to a suspended attempt",
              "awaiting_input and not owned implies suspended"),
    invariant("suspended_where", "Only what waits for a person, for a worker or has ended is suspended",
              "suspended implies awaiting_input or @pending or @terminal"),
    invariant("tools_have_owner", "The worker that opened a tool still owns the execution", "tools_open implies owned"),
    invariant("tools_bounded", "No more tools are open than may be at once", "open_tools <= tools_max"),
    invariant("no_tools_while_pending", "What waits for a worker has no tool open", "@pending implies not tools_open"),
    invariant("no_tools_after_the_end", "What has ended has no tool open", "@terminal implies not tools_open"),
    invariant("tools_closed_first", "What begins to write its result down has closed every tool",
              "completing and not before.completing implies not tools_open"),
    invariant("stop_is_obeyed", "What was told to stop ends cancelled, and nothing else",
              "before.@stopping implies @stopping or cancelled"),
    invariant("success_is_written_down", "Only what has written its result down is a success",
              "completed implies before.completing"),
    invariant("waits_where", "Only a queue, a pause and a breaker make it wait until an instant",
              "not_before is not none implies queued or backing_off or circuit_open"),
    invariant("breaker_where", "Only behind a breaker the record names one",
              "breaker is not none implies circuit_open"),
    invariant("expiry_where", "Only a question has an expiry of its own", "limit_s is not none implies awaiting_input"),
    invariant("every_step_counts", "Each step makes the next version", "version == before.version + 1"),
)
# fmt: on

EXECUTION = Machine(
    name="execution",
    doc="One run of an AI agent",
    initial="created",
    states=STATES,
    transitions=TRANSITIONS,
    facts=FACTS,
    invariants=INVARIANTS,
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
