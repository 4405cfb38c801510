"""The circuit breaker's machine: one breaker per key, shared by every execution.

It never ends, so it is declared perpetual. While it is closed and all is well no call runs it: only changes of
state go through the table.
"""

from __future__ import annotations

from fsm.machine.grammar import Fact, invariant, row, state
from fsm.machine.machine import Machine

# fmt: off
STATES = (
    state("closed", "running", doc="Calls go through"),
    state("open", "waiting", "cooldown", "No call goes through until the cooldown is over"),
    state("half_open", "running", doc="A few probes go through"),
    state("forced_open", "stopping", doc="Held open by hand"),
    state("disabled", "stopping", doc="Switched off by hand: calls go through, nothing is judged"),
)

CLOSED, OPEN, HALF_OPEN, FORCED_OPEN, DISABLED = (one.name for one in STATES)
PASSING = frozenset({CLOSED, DISABLED})
"""The states in which calls go through without asking."""

FACTS = (
    Fact(name="policy_met", doc="the policy's threshold of failures or slow calls is reached"),
    Fact(name="enough_calls", doc="the policy has seen its minimum number of calls"),
    Fact(name="until_passed", doc="the cooldown is over"),
    Fact(name="probe_free", doc="fewer probes are in flight than the policy allows"),
    Fact(name="enough_successes", doc="as many probes succeeded as the policy asks for"),
    Fact(name="enough_abandoned", doc="as many probes of this generation were cancelled as the policy bears"),
)

TRANSITIONS = (
    row("closed", "trip", "open", "policy_met and enough_calls", assign="next_generation open_until",
        otherwise="the policy is not met"),
    row("closed half_open", "throttle", "open", assign="next_generation open_until"),
    row("open", "throttle", assign="extend_until"),
    row("open", "acquire", "half_open", "until_passed", assign="next_generation take_probe",
        otherwise="the cooldown is not over: try again after retry_after_s"),
    row("half_open", "acquire", None, "probe_free", assign="take_probe",
        otherwise="all probes are in flight: try again after retry_after_s"),
    row("half_open", "probes_ok", "closed", "enough_successes", assign="next_generation reset_cooldown",
        otherwise="more probes have to succeed first"),
    row("half_open", "probe_failed", "open", assign="next_generation longer_cooldown open_until"),
    row("half_open", "lease_expired", "open", assign="next_generation longer_cooldown open_until"),
    row("half_open", "abandoned", "open", "enough_abandoned", assign="next_generation open_until",
        otherwise="the next caller takes the probe that was given back"),
    row("@running @waiting @stopping", "force_open", "forced_open", assign="next_generation"),
    row("@running @waiting @stopping", "disable", "disabled", assign="next_generation"),
    row("@running @waiting @stopping", "reset", "closed", assign="next_generation reset_cooldown"),
)

INVARIANTS = (
    invariant("generation_only_grows", "A verdict of an old generation never counts again", "generation never falls"),
    invariant("every_step_counts", "Each write makes the next version", "version == before.version + 1"),
    invariant("half_open_is_new", "Who probes knows that it is a new generation",
              "half_open and not before.half_open implies generation > before.generation"),
    invariant("left_is_old", "What leaves a state leaves its generation",
              "(closed and not before.closed) or (open and not before.open) or (disabled and not before.disabled)"
              " or (forced_open and not before.forced_open) implies generation > before.generation"),
    invariant("generations_are_written", "Every generation was written", "generation <= version + 1"),
    invariant("probes_where", "Only what is half open has probes in flight", "probes > 0 implies half_open"),
    invariant("probes_bounded", "No more probes are in flight than the policy allows", "probes <= probes_at_once"),
    invariant("probe_after_cooldown", "What is half open has taken a probe, or given one back",
              "half_open and not before.half_open implies probes == 1"),
    invariant("successes_where", "Only what is half open counts successes", "successes > 0 implies half_open"),
    invariant("abandoned_where", "Only what is half open counts probes that were cancelled",
              "abandoned > 0 implies half_open"),
    invariant("cooldown_where", "Only what is open cools down", "until is not none implies open"),
    invariant("open_ends", "What is open says until when", "open implies until is not none"),
    invariant("cooldown_bounded", "A cooldown says since when, so that a clock set back cannot stretch it",
              "until is none or since is not none"),
    invariant("closed_forgets", "What is closed has forgotten the probes that failed", "closed implies openings == 0"),
)
# fmt: on

BREAKER = Machine(
    name="breaker",
    doc="One circuit breaker",
    initial="closed",
    states=STATES,
    transitions=TRANSITIONS,
    facts=FACTS,
    invariants=INVARIANTS,
    perpetual=True,
)
"""The machine of every circuit breaker."""
