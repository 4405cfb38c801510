"""Time comes from outside: the manual clock moves only when it is told to, the system's clock is the system's."""

from __future__ import annotations

import threading
import time

import pytest

from fsm.clock import Clock, ManualClock, SystemClock


def test_the_manual_clock_stands_still() -> None:
    """A manual clock shows the same instant until it is moved."""
    clock: Clock = ManualClock(5.0)
    assert (clock.wall(), clock.monotonic()) == (5.0, 0.0)
    assert (clock.wall(), clock.monotonic()) == (5.0, 0.0)


def test_time_passes_on_both_clocks() -> None:
    """Advancing moves wall and monotonic time alike, by the fraction that was asked for."""
    clock = ManualClock(5.0)
    clock.advance(0.5)
    clock.advance(0.0)
    assert (clock.wall(), clock.monotonic()) == (5.5, 0.5)


def test_a_jump_moves_the_wall_clock_alone() -> None:
    """The wall clock can be set forth and back; what waits is not disturbed."""
    clock = ManualClock(5.0)
    clock.jump(3_600.0)
    clock.jump(-7_200.0)
    assert (clock.wall(), clock.monotonic()) == (5.0 - 3_600.0, 0.0)


def test_time_does_not_go_back() -> None:
    """A negative advance is refused, with what to call instead, and moves nothing."""
    clock = ManualClock(5.0)
    with pytest.raises(ValueError, match=r"jump\(\)"):
        clock.advance(-0.1)
    assert (clock.wall(), clock.monotonic()) == (5.0, 0.0)


def test_a_manual_sleep_takes_no_time() -> None:
    """Sleeping on a manual clock moves it and returns at once; a negative sleep is none."""
    clock = ManualClock(5.0)
    clock.sleep(3_600.0)
    clock.sleep(-1.0)
    assert (clock.wall(), clock.monotonic()) == (3_605.0, 3_600.0)


def test_no_advance_is_lost_between_threads() -> None:
    """Threads that advance one clock at once lose nothing."""
    clock = ManualClock(0.0)
    threads = [threading.Thread(target=lambda: [clock.advance(1.0) for _ in range(1_000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (clock.wall(), clock.monotonic()) == (8_000.0, 8_000.0)


def test_the_system_clock_is_the_systems() -> None:
    """The system's clock shows the system's two times, and its monotonic time never goes back."""
    clock: Clock = SystemClock()
    before, after = time.time(), clock.wall()
    assert abs(after - before) < 60
    first = clock.monotonic()
    clock.sleep(0.0)
    assert clock.monotonic() >= first
    assert abs(clock.monotonic() - time.monotonic()) < 60


def test_clocks_of_one_era_can_be_compared() -> None:
    """The system's clocks of one boot share an era, which no manual clock is of."""
    assert SystemClock().era() == SystemClock().era() != ""
    assert ManualClock().era() == ManualClock(7.0).era() != SystemClock().era()
