"""The circuit breaker's machine: one breaker per key, shared by every execution.

It never ends, so it is declared perpetual. While it is closed and all is well no call runs it: only changes of
state go through the table.
"""

from __future__ import annotations

from fsm.machine.grammar import Fact, row, state
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
# fmt: on

BREAKER = Machine(
    name="breaker",
    doc="One circuit breaker",
    initial="closed",
    states=STATES,
    transitions=TRANSITIONS,
    facts=FACTS,
    perpetual=True,
)
"""The machine of every circuit breaker."""
