"""How breakers are, as data for people and programs."""

from __future__ import annotations

from typing import Literal, NamedTuple

from fsm.breakers.permit import ABreaker
from fsm.lifecycles.breaker import PASSING

Known = Literal["stored", "used", "declared", "unknown"]


class BreakerStatus(NamedTuple):
    """A breaker as this process sees it. Instants are seconds since the epoch.

    Attributes:
        key: What it protects.
        state: Its state.
        generation: How often it changed its state, from 1 on.
        changed_at: When it last did.
        retry_after_s: In how many seconds a permit may be given; 0 while calls go through.
        retry_at: The same as an instant, ``None`` while calls go through.
        openings: How many probes have failed since it was last closed.
        probes: How many probes are in flight, over all processes.
        failures: How many calls of this process failed in a row.
        calls: How many calls of this process got each verdict; ``late`` are those of an old generation,
            ``refused`` those that got no permit, ``misjudged`` those on which a classifier raised or returned no
            verdict.
        local: Whether the store has not seen all of this yet.
        known: What is known of the key: ``stored`` if it ever changed its state, ``used`` if this process made calls
            with it, ``declared`` if only a policy names it, ``unknown`` otherwise: closed then means no more than that
            a first call would go through.
    """

    key: str
    state: str
    generation: int
    changed_at: float | None
    retry_after_s: float
    retry_at: float | None
    openings: int
    probes: int
    failures: int
    calls: dict[str, int]
    local: bool
    known: Known


class BreakersStatus(NamedTuple):
    """How the breakers of a registry are.

    Attributes:
        shared: Whether changes are shared with other processes now.
        error: Why they are not, ``None`` if they are or need not be.
        breakers: Every breaker that this process or the store knows, by key.
    """

    shared: bool
    error: str | None
    breakers: tuple[BreakerStatus, ...]


def status_of(breaker: ABreaker, *, declared: bool) -> BreakerStatus:
    """Return how a breaker is, as this process sees it; `declared` is whether a policy names its key."""
    breaker.reap()
    row = breaker.row
    known: Known = "declared" if declared else "unknown"
    if row.version:
        known = "stored"
    elif breaker.calls:
        known = "used"
    seconds = breaker.retry_after_s()
    calls = {"success": breaker.succeeded}
    calls.update((str(kind), count) for kind, count in breaker.tally.items() if count)
    return BreakerStatus(
        row.key,
        row.state,
        row.generation,
        row.changed_at or None,
        seconds,
        None if row.state in PASSING else breaker.clock.wall() + seconds,
        row.openings,
        len(row.probes),
        breaker.failures,
        calls,
        bool(breaker.pending),
        known,
    )
