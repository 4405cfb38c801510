"""When a breaker opens, how long it stays open, and how it finds its way back: all of it as frozen pydantic models.

Every duration is a float in seconds and has ``_s`` at the end of its name. A rate is a share from 0 to 1. The rules
judge what this process has seen since the breaker last closed; the change of state that follows is shared.

The count window, the time window and the slow-call rate are those of resilience4j; the growing cooldown with a cap
and jitter is the "full outage" advice of the AWS Builders' Library on retries.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fsm.machine.timeouts import Span

Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Consecutive(_Frozen):
    """Open after so many failures in a row; a success in between begins the count anew.

    Attributes:
        failures: How many, without a success in between. Cancelled and ignored calls neither count nor erase.
    """

    kind: Literal["consecutive"] = "consecutive"
    failures: Count = 5


class CountWindow(_Frozen):
    """Open when too many of the last calls failed.

    Attributes:
        calls: How many of the last calls are looked at.
        failure_rate: The share of them that has to have failed.
        minimum_calls: How many calls there must have been before the share means anything.
    """

    kind: Literal["count"] = "count"
    calls: Count = 20
    failure_rate: Rate = 0.5
    minimum_calls: Count = 10

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if self.minimum_calls > self.calls:
            raise ValueError(
                f"minimum_calls={self.minimum_calls} is more than the {self.calls} calls of the window: "
                "it could never open"
            )
        return self


class TimeWindow(_Frozen):
    """Open when too many of the calls of the last seconds failed.

    Attributes:
        window_s: How far back is looked, in seconds; it moves on in tenths of itself.
        failure_rate: The share of the calls that has to have failed.
        minimum_calls: How many calls the window must hold before the share means anything.
    """

    kind: Literal["time"] = "time"
    window_s: Span = 60.0
    failure_rate: Rate = 0.5
    minimum_calls: Count = 10


class SlowCalls(_Frozen):
    """Open when too many of the last calls were slow, whether they succeeded or not.

    Attributes:
        slow_call_s: From how many seconds on a call is slow; of a stream, the time to its first content.
        slow_rate: The share of the calls that has to have been slow.
        calls: How many of the last calls are looked at.
        minimum_calls: How many calls there must have been before the share means anything.
    """

    kind: Literal["slow"] = "slow"
    slow_call_s: Span = 10.0
    slow_rate: Rate = 0.5
    calls: Count = 20
    minimum_calls: Count = 10

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if self.minimum_calls > self.calls:
            raise ValueError(
                f"minimum_calls={self.minimum_calls} is more than the {self.calls} calls of the window: "
                "it could never open"
            )
        return self


Rule = Annotated[Consecutive | CountWindow | TimeWindow | SlowCalls, Field(discriminator="kind")]


def _several(value: Any) -> Any:
    """Let one rule stand where several may."""
    return (value,) if isinstance(value, (BaseModel, dict)) else value


class Policy(_Frozen):
    """How one breaker behaves.

    Attributes:
        trip: The rules of which any one opens a closed breaker.
        cooldown_s: How long it first stays open, in seconds.
        cooldown_factor: By how much the cooldown grows with each probe that failed.
        cooldown_max_s: What the cooldown never exceeds, in seconds.
        jitter: By what share at the most the cooldown is shortened at random, so that breakers of many processes
            do not come back together. 0 for none.
        throttle_max_s: What a server's Retry-After is cut to, in seconds. It is not shortened by the jitter.
        probes_at_once: How many probes may be in flight while it is half open, over all processes.
        successes_needed: How many probes have to succeed before it closes.
        abandoned_limit: After so many cancelled probes it opens again for the same cooldown.
        probe_lease_s: After so many seconds a probe that nobody gave back counts as lost; choose it longer than the
            timeout of the call.
    """

    trip: Annotated[tuple[Rule, ...], BeforeValidator(_several), Field(min_length=1)] = (Consecutive(),)
    cooldown_s: Span = 30.0
    cooldown_factor: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False, strict=True)] = 2.0
    cooldown_max_s: Span = 600.0
    jitter: Share = 0.1
    throttle_max_s: Span = 600.0
    probes_at_once: Count = 1
    successes_needed: Count = 1
    abandoned_limit: Count = 3
    probe_lease_s: Span = 120.0

    @model_validator(mode="after")
    def _cap_above_start(self) -> Self:
        if self.cooldown_max_s < self.cooldown_s:
            raise ValueError(
                f"cooldown_max_s={self.cooldown_max_s:g} is below cooldown_s={self.cooldown_s:g}: raise the cap"
            )
        return self

    def cooldown(self, openings: int, draw: float) -> float:
        """Return how long a breaker stays open.

        Args:
            openings: How many probes have failed since it was last closed.
            draw: A number from 0 to 1, drawn at random by the caller.

        Returns:
            Seconds, at most `cooldown_max_s`.
        """
        try:
            grown = self.cooldown_s * self.cooldown_factor**openings
        except OverflowError:
            grown = self.cooldown_max_s
        return min(grown, self.cooldown_max_s) * (1.0 - self.jitter * draw)
