"""Time limits: what is refused, what is kept, and how an execution's own limits go over its machine's."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fsm import EXECUTION, Machine, Timeouts
from fsm.machine.grammar import row, state
from fsm.machine.machine import MAX_LIMITS
from tests.support.strategies import limits

FIELDS = ("total_s", "queue_s", "phase_s", "idle_s", "input_s", "grace_s")
BAD = (
    0,
    0.0,
    -0.0,
    -1,
    -0.001,
    math.nan,
    math.inf,
    -math.inf,
    "5",
    "0.5",
    b"5",
    True,
    False,
    [],
    {},
    10**400,
)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("bad", BAD)
def test_a_limit_that_is_no_duration_is_refused(field: str, bad: Any) -> None:
    """Zero, negative, endless, NaN, text and booleans are no durations, for any limit."""
    with pytest.raises(ValidationError, match=field):
        Timeouts(**{field: bad})


@pytest.mark.parametrize("bad", BAD)
def test_a_limit_of_one_phase_is_checked_as_strictly(bad: Any) -> None:
    """The limits of single phases are refused for the same reasons."""
    with pytest.raises(ValidationError, match="phases"):
        Timeouts(phases={"thinking": bad})


@pytest.mark.parametrize(
    "bad", [5, None, "thinking", [5], [("thinking",)], [("a", 1.0, 2.0)], {1: 1.0}, [[], []]]
)
def test_phases_of_a_wrong_shape_are_a_validation_error(bad: Any) -> None:
    """Whatever stands where the limits by phase belong, the answer is a validation error that names the field."""
    with pytest.raises(ValidationError, match="phases"):
        Timeouts(phases=bad)


def test_an_unknown_limit_is_refused() -> None:
    """A misspelt limit is refused, not ignored."""
    with pytest.raises(ValidationError, match="totals"):
        Timeouts(totals=1.0)  # type: ignore[call-arg]


def test_half_a_second_stays_half_a_second() -> None:
    """Nothing is rounded: not on the way in, not in JSON, not in the resolved limits."""
    timeouts = Timeouts(phase_s=0.5, phases={"thinking": 0.25})
    assert timeouts.phase_s == 0.5
    again = Timeouts.model_validate_json(timeouts.model_dump_json(exclude_unset=True))
    assert again == timeouts
    assert EXECUTION.limits(again).by_state["starting"] == ("phase", 0.5)
    assert EXECUTION.limits(again).by_state["thinking"] == ("phase", 0.25)


def test_limits_are_frozen_and_hashable() -> None:
    """Limits cannot be changed, and equal ones are one key."""
    timeouts = Timeouts(phases={"b": 1.0, "a": 2.0})
    with pytest.raises(ValidationError):
        timeouts.phase_s = 1.0  # type: ignore[misc]
    assert hash(timeouts) == hash(Timeouts(phases=(("a", 2.0), ("b", 1.0))))


def test_own_limits_take_the_place_of_the_inherited_ones() -> None:
    """What is given replaces, what is not given is inherited, and phases are merged by name."""
    base = Timeouts(total_s=10.0, phase_s=5.0, phases={"a": 1.0, "b": 2.0})
    over = Timeouts(phase_s=0.5, idle_s=3.0, phases={"b": 4.0, "c": 6.0}).over(base)
    assert over == Timeouts(total_s=10.0, phase_s=0.5, idle_s=3.0, phases={"a": 1.0, "b": 4.0, "c": 6.0})
    assert base == Timeouts(total_s=10.0, phase_s=5.0, phases={"a": 1.0, "b": 2.0}), "the base is unchanged"


@pytest.mark.parametrize("field", FIELDS)
def test_an_explicit_none_lifts_a_limit(field: str) -> None:
    """None that was given lifts the inherited limit; None that was not given inherits it, also through JSON."""
    base = Timeouts(**dict.fromkeys(FIELDS, 9.0))
    lifted = Timeouts(**{field: None})
    assert getattr(lifted.over(base), field) is None
    assert getattr(Timeouts().over(base), field) == 9.0
    again = Timeouts.model_validate_json(lifted.model_dump_json(exclude_unset=True))
    assert again.over(base) == lifted.over(base)


@settings(max_examples=100)
@given(limits(), limits(), limits())
def test_merging_limits_is_associative(first: Timeouts, second: Timeouts, third: Timeouts) -> None:
    """It does not matter in which order three layers of limits are laid over each other."""
    assert first.over(second.over(third)) == first.over(second).over(third)


def test_own_limits_count_also_after_the_machines_were_asked() -> None:
    """An execution's own limits are in force whether or not the machine's own were resolved before."""
    EXECUTION.limits()
    limits = EXECUTION.limits(Timeouts(phase_s=5.0, queue_s=6.0, input_s=7.0, grace_s=8.0))
    found = [limits.by_state[name] for name in ("thinking", "created", "awaiting_input", "cancelling")]
    assert found == [("phase", 5.0), ("queue", 6.0), ("input", 7.0), ("grace", 8.0)]


def test_limits_by_state() -> None:
    """A state is bounded by its own limit, else by that of its kind; an end by none."""
    limits = EXECUTION.limits(Timeouts(phase_s=None, input_s=2.0, phases={"thinking": 1.5, "completed": 1.0}))
    assert limits.by_state["thinking"] == ("phase", 1.5)
    assert limits.by_state["starting"] is None
    assert limits.by_state["awaiting_input"] == ("input", 2.0)
    assert limits.by_state["completed"] is None
    assert limits.idle_states == EXECUTION.of("running"), "waiting is not silence"
    assert set(limits.by_state) == set(EXECUTION.by_name)


def test_a_state_without_a_kind_can_have_a_limit_of_its_own() -> None:
    """A limit by name bounds also a state that declares no deadline."""
    machine = Machine(
        name="m",
        initial="a",
        states=(state("a", "running"), state("b", "terminal")),
        transitions=(row("a", "time_out", "b"),),
    )
    assert machine.limits(Timeouts(phases={"a": 3.0})).by_state["a"] == ("phase", 3.0)
    assert machine.limits(Timeouts(phase_s=3.0)).by_state["a"] is None


def test_resolved_limits_are_kept_by_text_and_not_for_ever() -> None:
    """The same text gives the same object, other texts other limits, and the cache stays bounded."""
    machine = EXECUTION.extend(name="bounded")
    text = Timeouts(phase_s=0.5).model_dump_json(exclude_unset=True)
    assert machine.limits_for(text) is machine.limits_for(text)
    assert machine.limits_for(text).by_state["thinking"] == ("phase", 0.5)
    assert machine.limits_for(None).by_state["thinking"] == ("phase", 1800.0)
    for n in range(MAX_LIMITS + 10):
        machine.limits_for(Timeouts(phase_s=n + 1.0).model_dump_json(exclude_unset=True))
    assert len(machine.limits_known) <= MAX_LIMITS
    assert machine.limits_for(text).by_state["thinking"] == ("phase", 0.5)


@settings(max_examples=60)
@given(st.floats(min_value=1e-300, max_value=1e300))
def test_any_positive_duration_survives_json(seconds: float) -> None:
    """Every positive finite duration comes back from JSON as the same number."""
    timeouts = Timeouts(total_s=seconds, phases={"thinking": seconds})
    assert Timeouts.model_validate_json(timeouts.model_dump_json()) == timeouts


@given(limits(), limits())
def test_effective_limits_say_which_were_brought(own: Timeouts, base: Timeouts) -> None:
    """Effective limits equal the merged ones, and name exactly the fields that were given."""
    shown = own.effective(base)
    assert shown == own.over(base)
    assert shown.model_fields_set == own.model_fields_set
    assert Timeouts().effective(base) == base
