"""The steady timeline, on which deadlines and leases lie: the calculation, without any store or clock.

An instant of the timeline is the monotonic clock's reading plus an offset. The monotonic clock counts from the boot, so
each boot (an *era*) has an offset of its own, which its first process lays down in the store for all others. Within an
era a wall clock that jumps changes nothing. At the beginning of an era the only witness of how long the machine was
off is the wall clock, which may be wrong at that very moment (no battery, a virtual machine before NTP, local time in
the hardware clock). So the timeline goes on where it was last seen (the *mark*), and the downtime that the wall clock
claims is believed only as far as an error can be made good:

===========================  ================================================================================
claimed downtime             what is done
===========================  ================================================================================
negative                     Nothing is counted: the wall clock is wrong, or was.
up to `TRUSTED_S`            It is counted at once.
up to `COUNTED_S`            It is counted, but nothing is timed out that was not overdue before, until the wall
                             clock has run evenly for `SETTLE_S`. If it is set back before that, the difference is
                             taken back.
more                         Nothing is counted: a year of power-off cannot be told from a wrong clock.
===========================  ================================================================================

Three properties follow. The timeline never moves forward but with the monotonic clock once an era has begun, so no
correction can time out what runs in it. It never starts before the mark, so what was overdue stays overdue. And
whatever is not counted only gives what was open its remaining time again, counted from the boot: a lost worker is found
within its lease, an execution ends within its own limits. Deadlines that were laid in the seconds before a clock was
set back are late by the difference, at most `COUNTED_S`; leases are not (see `Store.lose`).

The price: a correction never moves the timeline to the wall clock's time, so after uncounted downtime it lags behind by
that much. Nothing but the display of a deadline depends on the difference.

A suspended machine does not run: Linux and macOS stop the monotonic clock, so the time of the suspension counts for
nothing, neither for deadlines nor for leases. (CLOCK_BOOTTIME would count it, and every lease would have run out
whenever a laptop is opened.)

Where there is no boot id, an era is one process, and its offset is written down nowhere. Processes of one boot share
the monotonic clock without being able to know it: the time since the mark is then the smaller one of what the two
clocks claim, unless the monotonic clock stands before the mark's, which proves a boot.
"""

from __future__ import annotations

from typing import NamedTuple

TRUSTED_S = 900.0
"""Downtime up to this, in seconds, is counted at once: a restart takes no longer, and no time zone differs by less."""
COUNTED_S = 7 * 86_400.0
"""Downtime beyond this, in seconds, is not counted."""
SETTLE_S = 60.0
"""How long the wall clock must run evenly before longer downtime counts, in seconds."""
HELD_S = 600.0
"""The longest time, in seconds, for which an era can be unsettled, however the wall clock behaves."""
TOLERANCE_S = 1.0
"""Seconds by which the wall clock may drift while it still counts as even."""


class Reading(NamedTuple):
    """Both clocks at one moment.

    Attributes:
        wall: Seconds since the epoch.
        monotonic: Seconds since the era's origin.
    """

    wall: float
    monotonic: float


class Mark(NamedTuple):
    """The latest instant at which the timeline was seen together with the clocks.

    Attributes:
        steady_at: The instant on the timeline.
        wall_at: The wall clock's reading.
        monotonic_s: The monotonic clock's reading; ``None`` if it is not known.
    """

    steady_at: float
    wall_at: float
    monotonic_s: float | None = None


class Era(NamedTuple):
    """What the processes of one boot agree on.

    Attributes:
        offset_s: What makes an instant of the timeline of the monotonic clock's reading, in seconds.
        held_at: While the era is unsettled, only deadlines up to this instant are met; ``None`` once it is settled.
        begun_s: The monotonic clock's reading at its beginning.
        lag_s: By how many seconds the timeline is behind the wall clock if the whole downtime counts.
        drift_s: The wall clock minus the monotonic clock, as last noted.
        even_s: The monotonic clock's reading since which the wall clock has run evenly.
    """

    offset_s: float
    held_at: float | None = None
    begun_s: float = 0.0
    lag_s: float = 0.0
    drift_s: float = 0.0
    even_s: float = 0.0


class Known(NamedTuple):
    """What a store knows when a process begins.

    Attributes:
        era: The era's row, if another process has laid it down.
        mark: The latest mark; ``None`` in a store that is new.
        floor_at: An instant that the timeline has certainly reached; ``None`` if there is none.
    """

    era: Era | None
    mark: Mark | None
    floor_at: float | None


def begin(known: Known, now: Reading, *, alone: bool = False) -> Era:
    """Return the era that begins with this reading.

    Args:
        known: What the store knows.
        now: Both clocks.
        alone: Whether the era is one process: nothing proves then that the machine was off.
    """
    mark = known.mark
    if mark is None:
        return Era(_from(now.wall, known.floor_at) - now.monotonic)
    gap_s = now.wall - mark.wall_at
    if alone and mark.monotonic_s is not None and now.monotonic >= mark.monotonic_s:
        gap_s = min(gap_s, now.monotonic - mark.monotonic_s)
    counted_s = gap_s if 0.0 < gap_s <= COUNTED_S else 0.0
    offset_s = _from(mark.steady_at + counted_s, known.floor_at) - now.monotonic
    if alone or counted_s <= TRUSTED_S:
        return Era(offset_s)
    return Era(
        offset_s,
        held_at=_from(mark.steady_at, known.floor_at),
        begun_s=now.monotonic,
        lag_s=mark.wall_at - mark.steady_at,
        drift_s=now.wall - now.monotonic,
        even_s=now.monotonic,
    )


def observe(era: Era, now: Reading) -> Era:
    """Return the era as it is after both clocks were read again; the same object if nothing is new."""
    if era.held_at is None:
        return era
    drift_s = now.wall - now.monotonic
    if abs(drift_s - era.drift_s) > TOLERANCE_S and now.monotonic < era.begun_s + HELD_S:
        uncounted_s = era.held_at - era.begun_s
        return era._replace(
            offset_s=min(era.offset_s, max(drift_s - era.lag_s, uncounted_s)),
            drift_s=drift_s,
            even_s=now.monotonic,
        )
    if now.monotonic >= min(era.even_s + SETTLE_S, era.begun_s + HELD_S):
        return Era(era.offset_s)
    return era


def met_until(era: Era, now: float) -> float:
    """Return the instant up to which deadlines are met at `now`."""
    return now if era.held_at is None else min(now, era.held_at)


def _from(at: float, floor_at: float | None) -> float:
    return at if floor_at is None else max(at, floor_at)
