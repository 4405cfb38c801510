"""When a breaker opens, how long it stays open, and how it closes again: frozen pydantic models.

Every duration is a float in seconds and has ``_s`` at the end of its name. A rate is a share from 0 to 1. The rules
judge what this process has seen since the breaker last closed; the change of state that follows is shared.

The windows and the slow-call rate are those of resilience4j; the growing cooldown with a cap and jitter is the "full
outage" advice of the AWS Builders' Library on retries.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fsm.machine.timeouts import Span

Factor = Annotated[float, Field(ge=1, le=100, allow_inf_nan=False, strict=True)]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]

_KINDS: dict[Any, dict[str, Any]] = {
    "consecutive": {"failures": 5},
    "count": {"calls": 20, "failure_rate": 0.5, "minimum_calls": 10},
    "time": {"window_s": 60.0, "failure_rate": 0.5, "minimum_calls": 10},
    "slow": {"slow_call_s": 10.0, "slow_rate": 0.5, "calls": 20, "minimum_calls": 10},
}
"""What a rule that is written with the name of a kind may say, and what it says where it is silent."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(_Frozen):
    """Open when enough of the calls in a window are bad: the two axes are what is bad, and what the window is.

    `Consecutive`, `CountWindow`, `TimeWindow` and `SlowCalls` make the usual rules. As data, a rule may also be
    written with their names: ``{"kind": "count", "calls": 20, "failure_rate": 0.5}``.

    Attributes:
        slow_call_s: A call is bad if it takes at least this long (of a stream: until its first content). ``None``: a
            call is bad if it fails. Cancelled and ignored calls are not counted.
        calls: The window is this many of the last calls.
        window_s: The window is the calls of the last seconds; it moves on in tenths of itself.
        rate: The share of the calls in the window that has to be bad.
        minimum_calls: The number of calls that the window has to hold before the share means anything.
    """

    slow_call_s: Span | None = None
    calls: Count | None = None
    window_s: Span | None = None
    rate: Rate = 0.5
    minimum_calls: Count = 10

    @property
    def in_a_row(self) -> bool:
        """Whether a single good call empties the window: all of its calls have to be bad."""
        return self.rate == 1 and self.minimum_calls == self.calls

    @model_validator(mode="before")
    @classmethod
    def _by_kind(cls, value: Any) -> Any:
        """Read a rule that is written with the name of its kind."""
        if not isinstance(value, dict) or "kind" not in value:
            return value
        kind, said = value["kind"], {name: one for name, one in value.items() if name != "kind"}
        known = _KINDS.get(kind) if isinstance(kind, str) else None
        if known is None or not said.keys() <= known.keys():
            says = "; ".join(f"{name}: {', '.join(fields)}" for name, fields in _KINDS.items())
            raise ValueError(f"a rule with a kind says no more than this ({says})")
        said = {**known, **said}
        if "failures" in said:
            return {"calls": said["failures"], "minimum_calls": said["failures"], "rate": 1.0}
        said["rate"] = said.pop("slow_rate" if "slow_rate" in said else "failure_rate")
        return said

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if (self.calls is None) == (self.window_s is None):
            raise ValueError("a rule has one window: calls=<number of the last calls> or window_s=<seconds>")
        if self.calls is not None and self.minimum_calls > self.calls:
            raise ValueError(
                f"minimum_calls={self.minimum_calls} is more than the {self.calls} calls of the window: "
                "it could never open"
            )
        return self


def Consecutive(*, failures: int = 5) -> Rule:  # noqa: N802 - it reads as what it makes
    """Open after this many failures in a row; a success in between starts the count again."""
    return Rule(calls=failures, rate=1.0, minimum_calls=failures)


def CountWindow(  # noqa: N802
    *, calls: int = 20, failure_rate: float = 0.5, minimum_calls: int = 10
) -> Rule:
    """Open when too many of the last calls failed."""
    return Rule(calls=calls, rate=failure_rate, minimum_calls=minimum_calls)


def TimeWindow(  # noqa: N802
    *, window_s: float = 60.0, failure_rate: float = 0.5, minimum_calls: int = 10
) -> Rule:
    """Open when too many of the calls of the last seconds failed."""
    return Rule(window_s=window_s, rate=failure_rate, minimum_calls=minimum_calls)


def SlowCalls(  # noqa: N802
    *, slow_call_s: float = 10.0, slow_rate: float = 0.5, calls: int = 20, minimum_calls: int = 10
) -> Rule:
    """Open when too many of the last calls were slow, whether they succeeded or not."""
    return Rule(slow_call_s=slow_call_s, calls=calls, rate=slow_rate, minimum_calls=minimum_calls)


def _several(value: Any) -> Any:
    """Let one rule stand where several may."""
    return (value,) if isinstance(value, (BaseModel, dict)) else value


class Policy(_Frozen):
    """How one breaker behaves.

    Attributes:
        trip: The rules, any one of which opens a closed breaker.
        cooldown_s: How long it first stays open, in seconds.
        cooldown_factor: By how much the cooldown grows with each probe that failed.
        cooldown_max_s: What the cooldown never exceeds, in seconds.
        jitter: The largest share by which the cooldown is shortened at random, so that breakers of many processes
            do not come back together. 0 for none.
        throttle_max_s: What a server's Retry-After is cut to, in seconds. It is not shortened by the jitter.
        probes_at_once: How many probes may be in flight while it is half open, over all processes.
        successes_needed: How many probes have to succeed before it closes.
        abandoned_limit: After this many cancelled probes it opens again for the same cooldown.
        probe_lease_s: After this many seconds a probe that was not given back counts as lost; choose it longer than
            the timeout of the call.
    """

    trip: Annotated[tuple[Rule, ...], BeforeValidator(_several), Field(min_length=1)] = (Consecutive(),)
    cooldown_s: Span = 30.0
    cooldown_factor: Factor = 2.0
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
        """Return how long a breaker stays open, in seconds, at most `cooldown_max_s`.

        Args:
            openings: How many probes have failed since it was last closed.
            draw: A random number from 0 to 1.
        """
        try:
            grown = self.cooldown_s * self.cooldown_factor**openings
        except OverflowError:
            grown = self.cooldown_max_s
        return min(grown, self.cooldown_max_s) * (1.0 - self.jitter * draw)
