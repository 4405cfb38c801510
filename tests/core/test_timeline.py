"""The steady timeline over boots, wrong clocks, corrections, namespaces and processes."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsm import clock as clocks
from fsm.clock import ALONE, SystemClock
from fsm.core.timeline import (
    COUNTED_S,
    HELD_S,
    SETTLE_S,
    TRUSTED_S,
    Era,
    Known,
    Mark,
    Reading,
    begin,
    met_until,
    observe,
)
from fsm.stores import open_store
from fsm.stores.base import MAX_ERAS
from fsm.testing import fresh_tracker
from tests.support.inside import registry_of

TRUE = 1_790_000_000.0
HOUR, DAY, YEAR = 3600.0, 86_400.0, 365 * 86_400.0


class Machine:
    """A host with a true time, a wall clock that may be wrong, and a monotonic clock that begins with each boot."""

    def __init__(self) -> None:
        self.true, self.error, self.up, self.boots = TRUE, 0.0, 5000.0, 1

    def go(self, seconds: float) -> None:
        self.true += seconds
        self.up += seconds

    def boot(self, down_s: float, error: float) -> None:
        self.true += down_s
        self.error, self.up, self.boots = error, 3.0, self.boots + 1

    def reading(self) -> Reading:
        return Reading(self.true + self.error, self.up)

    # --- as a clock of the library

    def wall(self) -> float:
        return self.true + self.error

    def monotonic(self) -> float:
        return self.up

    def era(self) -> str:
        return f"boot-{self.boots}"

    def sleep(self, seconds: float) -> None:
        self.go(seconds)


# --- the calculation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("down_s", "error", "counted_s", "held"),
    [
        (60.0, 0.0, 60.0, False),
        (TRUSTED_S, 0.0, TRUSTED_S, False),
        (HOUR, 0.0, HOUR, True),
        (3 * DAY, 0.0, 3 * DAY, True),
        (60.0, 2 * HOUR, 2 * HOUR + 60.0, True),
        (COUNTED_S + 1.0, 0.0, 0.0, False),
        (60.0, YEAR, 0.0, False),
        (60.0, -TRUE, 0.0, False),
        (60.0, -60.0, 0.0, False),
    ],
)
def test_a_boot_counts_the_downtime_that_can_be_believed(down_s, error, counted_s, held):
    """A new era begins at the mark, later by the downtime that the wall clock claims if it can be believed."""
    host = Machine()
    mark = Mark(TRUE, host.wall(), host.up)
    host.boot(down_s, error)
    era = begin(Known(None, mark, None), host.reading())
    assert era.offset_s + host.up == TRUE + counted_s
    assert era.held_at == (TRUE if held else None)
    assert met_until(era, era.offset_s + host.up) == (TRUE if held else TRUE + counted_s)


def test_a_new_store_begins_with_the_wall_clock():
    """Where nothing was ever seen, the timeline begins with what the wall clock says."""
    assert begin(Known(None, None, None), Reading(70.0, 5.0)) == Era(65.0)
    assert begin(Known(None, None, 90.0), Reading(70.0, 5.0)) == Era(85.0)


def test_an_instant_that_was_reached_is_not_reached_again():
    """A new era begins no earlier than any instant that the store holds, whatever the mark says."""
    era = begin(Known(None, Mark(100.0, 100.0), 130.0), Reading(120.0, 5.0))
    assert era.offset_s + 5.0 == 130.0


@pytest.mark.parametrize("error", [HOUR, 14 * HOUR, DAY, 6 * DAY])
def test_a_clock_that_is_set_back_soon_after_the_boot_takes_the_claimed_downtime_back(error):
    """The difference is taken back, nothing was timed out on its account, and then the era is settled."""
    host = Machine()
    mark = Mark(TRUE, host.wall(), host.up)
    host.boot(2 * HOUR, error)
    era = begin(Known(None, mark, None), host.reading())
    host.go(5.0)
    host.error = 0.0
    era = observe(era, host.reading())
    assert era.offset_s + host.up == pytest.approx(TRUE + 2 * HOUR + 5.0)
    assert met_until(era, TRUE + 9 * DAY) == TRUE
    host.go(SETTLE_S - 1.0)
    assert observe(era, host.reading()) is era
    host.go(1.0)
    settled = observe(era, host.reading())
    assert settled == Era(era.offset_s)
    host.error = -DAY
    assert observe(settled, host.reading()) is settled


def test_a_clock_that_jumps_to_and_fro_changes_nothing():
    """A jump ahead is not followed, and its end does not take back what was counted before."""
    host = Machine()
    mark = Mark(TRUE, host.wall(), host.up)
    host.boot(2 * HOUR, 0.0)
    first = era = begin(Known(None, mark, None), host.reading())
    for error in (DAY, 0.0, YEAR, 0.0):
        host.go(1.0)
        host.error = error
        era = observe(era, host.reading())
        assert era.offset_s == pytest.approx(first.offset_s)


def test_a_clock_that_never_rests_does_not_hold_the_deadlines_for_ever():
    """An era is settled after `HELD_S` at the latest."""
    host = Machine()
    mark = Mark(TRUE, host.wall(), host.up)
    host.boot(2 * HOUR, 0.0)
    era = begin(Known(None, mark, None), host.reading())
    for _ in range(int(HELD_S)):
        host.go(1.0)
        host.error += 5.0
        era = observe(era, host.reading())
    assert era.held_at is None


def test_processes_without_a_boot_id_take_the_smaller_claim():
    """A process that may be of the mark's boot counts what both clocks claim; a boot is proved by a younger clock."""
    mark = Mark(1000.0, 1000.0, 500.0)
    same = begin(Known(None, mark, None), Reading(1000.0 + HOUR, 510.0), alone=True)
    assert same.offset_s + 510.0 == 1010.0, "the wall clock jumped an hour ahead, ten seconds passed"
    other = begin(Known(None, mark, None), Reading(1000.0 + HOUR, 60.0), alone=True)
    assert other.offset_s + 60.0 == 1000.0 + HOUR
    assert other.held_at is None


errors = st.sampled_from(
    [0.0, -TRUE, -YEAR, -DAY, -HOUR, -0.5, 0.5, 30.0, HOUR, DAY, 6 * DAY, YEAR, 10 * YEAR]
)
spans = st.sampled_from([0.0, 1.0, 30.0, 59.0, 61.0, 700.0, HOUR, DAY, 30 * DAY])


class Life(NamedTuple):
    """One boot: how long the machine was off, its clock's error, and what happens: time passes, the error changes."""

    down_s: float
    error: float
    acts: list[tuple[float, float | None]]


lives = st.lists(
    st.builds(Life, spans, errors, st.lists(st.tuples(spans, st.none() | errors), max_size=8)), max_size=6
)


@settings(max_examples=400)
@given(lives)
def test_over_any_life_the_timeline_is_safe(lives_) -> None:
    """It starts where it was, goes on with the monotonic clock alone, and back by what was counted at most."""
    host = Machine()
    seen = TRUE
    mark = Mark(TRUE, host.wall(), host.up)
    for life in lives_:
        host.boot(life.down_s, life.error)
        era = begin(Known(None, mark, None), host.reading())
        start = era.offset_s + host.up
        assert seen <= start <= seen + COUNTED_S
        for passes_s, error in [*life.acts, (HELD_S, None), (0.0, None)]:
            host.go(passes_s)
            if error is not None:
                host.error = error
            before, era = era, observe(era, host.reading())
            now = era.offset_s + host.up
            assert before.offset_s - (start - seen) - 1e-3 <= era.offset_s <= before.offset_s
            assert now >= seen - 1e-3
            assert met_until(era, now) <= now
            if era.held_at is not None:
                assert met_until(era, now) <= seen + 1e-3, (
                    "what was not overdue before is met while it is unsettled"
                )
                assert host.up < era.begun_s + HELD_S + HOUR * 24 * 31
        assert era.held_at is None
        seen = era.offset_s + host.up
        mark = Mark(seen, host.wall(), host.up)


# --- over a store ---------------------------------------------------------------------------------------------


def wrecked(url: str, host: Machine) -> dict[str, str]:
    """Leave a queued execution, one that asks, and one whose worker is gone with the power."""
    with fresh_tracker(url, clock=host) as tracker:
        queued = tracker.create("a", user_id="u", thread_id="t", timeouts={"queue_s": 60.0})
        lost = tracker.create("a", user_id="u", thread_id="t", retry={"attempts_max": 2})
        fired = tracker.worker(ttl_s=15.0)
        fired._stop.set()
        tracker.fire(lost.id, "start")
        registry_of(tracker).worker = None
        long = tracker.create(
            "a", user_id="u", thread_id="t", timeouts={"queue_s": 30 * DAY, "total_s": 30 * DAY}
        )
        tracker.sweep()
    return {"queued": queued.id, "lost": lost.id, "long": long.id}


@pytest.mark.parametrize("error", [0.0, -TRUE, -HOUR, HOUR, 12 * HOUR, 6 * DAY, YEAR, 30 * YEAR])
def test_a_wrong_clock_at_boot_neither_kills_nor_hides(url, error):
    """Whatever the clock says at boot, what has time left lives, and what is overdue or lost is found."""
    host = Machine()
    ids = wrecked(url, host)
    host.boot(600.0, error)
    with fresh_tracker(url, clock=host) as tracker:
        fresh = tracker.create("a", user_id="u", thread_id="t", timeouts={"queue_s": 2 * HOUR}).id
        tracker.sweep()
        host.go(5.0)
        host.error = 0.0
        tracker.sweep()
        assert tracker.get(ids["long"]).state == tracker.get(fresh).state == "created"
        for _ in range(3):
            host.go(61.0)
            tracker.sweep()
        assert tracker.get(ids["queued"]).state == "timed_out"
        assert tracker.get(ids["lost"]).attempt == 1
        assert tracker.get(ids["lost"]).owner is None, "the lost worker's work is found"
        assert tracker.get(ids["long"]).state == tracker.get(fresh).state == "created"
        host.go(HOUR)
        tracker.sweep()
        assert tracker.get(fresh).state == "created"
        host.go(30 * DAY)
        tracker.sweep()
        assert tracker.get(ids["long"]).state == "timed_out"


def test_a_leases_time_does_not_depend_on_a_clock_that_was_set_back(url):
    """A worker that renewed while the timeline was ahead and died then is found within its lease, not days later."""
    host = Machine()
    wrecked(url, host)
    host.boot(60.0, 6 * DAY)
    with fresh_tracker(url, clock=host) as tracker:
        worker = tracker.worker(ttl_s=15.0)
        worker._stop.set()
        started = tracker.create("a", user_id="u", thread_id="t", retry={"attempts_max": 2})
        tracker.fire(started.id, "start")
        registry_of(tracker).worker = None
        host.go(5.0)
        host.error = 0.0
        tracker.sweep()
        tracker.sweep()
        assert tracker.get(started.id).owner == worker.id, "it may still live"
        host.go(16.0)
        assert tracker.sweep().lapsed == 1


def test_all_processes_of_a_boot_follow_one_correction(url):
    """One process finds that the clock was set back; another one has the same time a second later."""
    host = Machine()
    wrecked(url, host)
    host.boot(HOUR, DAY)
    with ExitStack() as stack:
        one, two = (stack.enter_context(fresh_tracker(url, clock=host)) for _ in range(2))
        assert registry_of(one).now() == registry_of(two).now()
        assert not registry_of(two).steady.settled
        host.go(5.0)
        host.error = 0.0
        one.sweep()
        host.go(1.0)
        assert registry_of(one).now() == registry_of(two).now() == pytest.approx(TRUE + HOUR + 6.0)
        host.go(SETTLE_S)
        one.sweep()
        host.go(1.0)
        registry_of(two).now()
        assert registry_of(two).steady.settled


def test_downtime_counts_when_the_clock_is_right(url):
    """After an hour without power an hour has passed: what became due is timed out once the clock has proved even."""
    host = Machine()
    ids = wrecked(url, host)
    host.boot(HOUR, 0.0)
    with fresh_tracker(url, clock=host) as tracker:
        assert registry_of(tracker).now() == TRUE + HOUR
        assert tracker.sweep().timed_out == 0
        host.go(SETTLE_S)
        assert tracker.sweep().timed_out >= 1
        assert tracker.get(ids["queued"]).state == "timed_out"


def test_a_jump_within_a_boot_changes_nothing(url):
    """Within a settled era the wall clock may jump as it likes, for this process and for those that begin later."""
    host = Machine()
    with fresh_tracker(url, clock=host) as tracker:
        for error in (HOUR, -HOUR, YEAR, -TRUE):
            host.error = error
            host.go(1.0)
            tracker.sweep()
            with fresh_tracker(url, clock=host) as later:
                assert registry_of(later).now() == registry_of(tracker).now() == host.true


def test_eras_are_kept_under_a_limit(url):
    """A store keeps the latest eras only, and none that is one process."""
    with closing(open_store(url)) as store:
        for number in range(MAX_ERAS + 50):
            store.timeline_set(f"boot-{number}", None, Era(float(number)))
        assert store.timeline("boot-49").era is None
        assert store.timeline("boot-50").era == Era(50.0)
    host = Machine()
    host.era = lambda: f"{ALONE}7-abc"  # type: ignore[method-assign]
    with fresh_tracker(url, clock=host):
        pass
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        assert connection.execute("SELECT count(*) FROM eras").fetchone() == (MAX_ERAS,)


# --- the system's clock ---------------------------------------------------------------------------------------


@pytest.fixture
def fresh_caches():
    for cached in (clocks._boot_id, clocks._time_namespace):
        cached.cache_clear()
    yield
    for cached in (clocks._boot_id, clocks._time_namespace):
        cached.cache_clear()


def test_without_a_boot_id_an_era_is_one_process(fresh_caches, monkeypatch):
    """Where there is no boot id, no other process can have the name of this one's era, though it has its process id."""

    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    names = set()
    for _ in range(3):
        clocks._boot_id.cache_clear()
        names.add(SystemClock().era())
        assert SystemClock().era() == SystemClock().era()
    assert len(names) == 3
    assert all(re.fullmatch(rf"{ALONE}{os.getpid()}-[0-9a-f]{{16}}", name) for name in names)


def test_a_process_id_that_is_given_out_again_takes_over_nothing(url):
    """Two boots whose processes have one name by chance: the second one's time goes on from the first one's."""
    host = Machine()
    host.era = lambda: f"{ALONE}7-abc"  # type: ignore[method-assign]
    host.up = 20 * DAY
    with fresh_tracker(url, clock=host) as tracker:
        overdue = tracker.create("a", user_id="u", thread_id="t", timeouts={"queue_s": 1.0})
    host.boot(600.0, 0.0)
    with fresh_tracker(url, clock=host) as tracker:
        assert registry_of(tracker).now() == TRUE + 600.0
        assert tracker.sweep().timed_out == 1
        assert tracker.get(overdue.id).state == "timed_out"


@pytest.mark.parametrize(
    ("own", "children", "offsets", "shift_s", "suffix"),
    [
        (
            0xEFFFFFFA,
            0xEFFFFFFA,
            "monotonic           0         0\nboottime            0         0\n",
            0.0,
            "",
        ),
        (4711, 4711, "monotonic       86400 250000000\nboottime            0         0\n", 86_400.25, ""),
        (4711, 4711, "monotonic         -10         0\nboottime            0         0\n", -10.0, ""),
        (0xEFFFFFFA, 4711, "monotonic       86400         0\n", 0.0, ""),
        (4711, 4712, "monotonic       86400         0\n", 0.0, "+time-4711"),
        (4711, 4711, "gibberish", 0.0, ""),
    ],
)
def test_the_shift_of_a_time_namespace_is_taken_out(
    own, children, offsets, shift_s, suffix, fresh_caches, monkeypatch
):
    """The monotonic clock is that of the boot, in whatever namespace; one of an unknown shift is an era of its own."""

    class Stat(NamedTuple):
        st_ino: int

    monkeypatch.setattr(Path, "stat", lambda path, **_: Stat(children if "children" in path.name else own))
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: offsets)
    assert clocks._time_namespace() == (shift_s, suffix)


NAMESPACED = """
import sys
from fsm.testing import fresh_tracker
with fresh_tracker(sys.argv[1]) as tracker:
    print(tracker.sweep().timed_out, tracker._registry.now())
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-T", "--monotonic", "1", "--fork", "true"], capture_output=True).returncode
    if Path("/usr/bin/unshare").exists()
    else True,
    reason="needs time namespaces and the right to make them",
)
def test_a_sweep_from_a_time_namespace_times_out_nothing(url):
    """A process whose monotonic clock is shifted by a day has the same time as all others."""
    with fresh_tracker(url) as tracker:
        tracker.create("a", user_id="u", thread_id="t")
        now = registry_of(tracker).now()
    told = subprocess.run(
        [
            "unshare", "-T", "--monotonic", "86400", "--fork", sys.executable, "-c",
            NAMESPACED,
            url,
        ],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert told[0] == "0"
    assert 0.0 <= float(told[1]) - now < 600.0
