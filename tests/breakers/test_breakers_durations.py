"""Every duration that a breaker is given is one that clocks, dates and waits can take."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from fsm import InvalidArgument
from fsm.breakers import Backoff, Breakers, Policy
from fsm.breakers.policy import Consecutive, SlowCalls, TimeWindow
from fsm.machine.timeouts import MAX_SECONDS
from fsm.stores import open_store
from fsm.testing import ManualClock

OPTIONS: tuple[type[BaseModel], ...] = (Policy, Backoff)
RULES = (TimeWindow, SlowCalls)
DURATIONS = [(kind, name) for kind in OPTIONS for name in kind.model_fields if name.endswith("_s")] + [
    (TimeWindow, "window_s"),
    (SlowCalls, "slow_call_s"),
]


def made(kind: Any, name: str, value: float) -> BaseModel:
    """Options with one duration; the cap of a cooldown is raised with it."""
    if kind in RULES:
        return kind(**{name: value})
    given: dict[str, Any] = {name: value}
    if name == "cooldown_s":
        given["cooldown_max_s"] = max(value, 600.0)
    return kind(**given)


def test_every_duration_is_looked_at():
    """The options of a breaker have the durations that this file knows."""
    assert len(DURATIONS) == 10


@pytest.mark.parametrize(("kind", "name"), DURATIONS, ids=lambda value: getattr(value, "__name__", value))
def test_a_duration_has_an_end(kind, name):
    """A policy takes up to `MAX_SECONDS` and refuses what is longer, by the duration's name."""
    assert getattr(made(kind, name, MAX_SECONDS), name) == MAX_SECONDS
    for odd in (MAX_SECONDS * 1.001, 1e10, 1e300, float("inf"), float("nan"), -1.0):
        with pytest.raises(ValidationError, match=name):
            made(kind, name, odd)


def test_a_poll_has_an_end():
    """The pause between two looks at other processes' breakers is at most `MAX_SECONDS`."""
    with pytest.raises(InvalidArgument, match="at most 1000000000"):
        Breakers(open_store("memory://"), ManualClock(), poll_s=1e10)


def test_the_longest_cooldown_opens_and_shows():
    """A breaker that stays open for `MAX_SECONDS` opens, refuses and shows itself without an error."""
    policy = Policy(
        cooldown_s=MAX_SECONDS, cooldown_max_s=MAX_SECONDS, jitter=0.0, trip=Consecutive(failures=1)
    )
    breakers = Breakers(open_store("memory://"), ManualClock(), policy=policy, poll_s=None)
    with pytest.raises(OSError, match="down"), breakers.permit("openai:gpt-5"):
        raise OSError("down")
    status = breakers.status_of("openai:gpt-5")
    assert status.state == "open"
    assert status.retry_after_s == pytest.approx(MAX_SECONDS)
