"""How long an execution may stay where it is: durations in, instants out.

A timeout is a duration (``_s``, a float in seconds: 0.5 is half a second, nothing is rounded). A deadline is an
instant (``_at``). `Limits` joins the two for one machine, so that the deadline of a state is one look-up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

MAX_SECONDS = 1_000_000_000.0
"""The longest duration that is accepted from a caller, in seconds: about 31 years. Clocks, dates and the waits of the
operating system take it on every platform, and so they take the sum of an instant of today and it."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
"""A duration in seconds. Zero, negative, NaN and infinite values are refused; ``None`` means no such limit. What is
longer than `MAX_SECONDS` is refused where a limit is handed in, and not here: a store may hold such limits already."""

Span = Annotated[float, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False, strict=True)]
"""A duration in seconds that no store holds: up to `MAX_SECONDS`."""


class Timeouts(BaseModel):
    """The time limits of an execution. ``None`` means that there is no such limit.

    Attributes:
        total_s: From creation to the end. Where the machine sets it, the time spent waiting for a person does not
            count, so that neither a question's own expiry nor the run that follows a late answer is cut short. Where
            the execution brings it, it is a limit on everything: a question that outlives it is noted as such in the
            log and the journal when it is asked.
        queue_s: In a pending state, counted from the moment when the execution may start.
        phase_s: In any one running phase, and in a wait between two calls.
        idle_s: Without any event while it runs (heartbeat by progress).
        input_s: Waiting for a person.
        grace_s: Between the order to stop and the end.
        phases: Limits of single states, by name; each takes the place of the general one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    total_s: Seconds | None = None
    queue_s: Seconds | None = None
    phase_s: Seconds | None = None
    idle_s: Seconds | None = None
    input_s: Seconds | None = None
    grace_s: Seconds | None = None
    phases: tuple[tuple[str, Seconds], ...] = ()

    @field_validator("phases", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        """Take a dict or pairs, and keep them sorted so that equal limits are equal texts."""
        try:
            pairs = dict(value)
        except (TypeError, ValueError):
            raise ValueError("phases is a dict of seconds by state") from None
        return tuple(sorted(pairs.items(), key=lambda pair: str(pair[0])))

    @field_serializer("phases")
    def _as_dict(self, value: tuple[tuple[str, float], ...]) -> dict[str, float]:
        return dict(value)

    def over(self, base: Timeouts) -> Timeouts:
        """Return `base` with every limit that was given here in its place, an explicit ``None`` included.

        Args:
            base: The limits to fall back to, usually those that the machine declares.

        Returns:
            The merged limits; single phases are merged by name.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set if name != "phases"}
        phases = dict(base.phases) | dict(self.phases)
        return base.model_copy(update={**given, "phases": tuple(sorted(phases.items()))})

    def effective(self, base: Timeouts) -> Timeouts:
        """Return the limits that apply, as `over`; `model_fields_set` of it names those that were given here."""
        merged = self.over(base)
        values = {name: getattr(merged, name) for name in type(self).model_fields}
        return Timeouts.model_construct(_fields_set=set(self.model_fields_set), **values)

    @property
    def too_long(self) -> tuple[str, ...]:
        """The limits that are longer than `MAX_SECONDS`, by name."""
        limits = {name: getattr(self, name) for name in type(self).model_fields if name != "phases"}
        limits |= {f"phases[{name!r}]": seconds for name, seconds in self.phases}
        return tuple(
            name for name, seconds in limits.items() if seconds is not None and seconds > MAX_SECONDS
        )

    @property  # not cached: model_copy would carry the cache of the old limits over into the new ones
    def by_kind(self) -> dict[str, float | None]:
        """The general limit in seconds of each kind of deadline that a state can declare."""
        return {"queue": self.queue_s, "phase": self.phase_s, "input": self.input_s, "grace": self.grace_s}


class Limits(NamedTuple):
    """The limits of one machine and one `Timeouts`, resolved: one look-up gives a state's deadline.

    Attributes:
        by_state: For each state the kind of its deadline and its limit in seconds, or ``None``.
        total_s: The limit in seconds from creation to the end.
        idle_s: The limit in seconds without an event, for the states in `idle_states`.
        idle_states: The states in which silence counts.
        input_states: The states that wait for a person.
        total_given: Whether the execution brought `total_s` itself: waiting for a person then counts.
    """

    by_state: Mapping[str, tuple[str, float] | None]
    total_s: float | None
    idle_s: float | None
    idle_states: frozenset[str]
    input_states: frozenset[str] = frozenset()
    total_given: bool = False
