"""``fsm doctor`` and `tracker.health()`: what is wrong is said, with what to do next, and nothing is changed."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError, model_validator
from typer.testing import CliRunner

from fsm import EXECUTION
from fsm.cli import doctor
from fsm.cli.app import app
from fsm.clock import ManualClock, SystemClock
from fsm.core.payloads import PAYLOADS, Payload, TimeOut
from fsm.registry import registry as registries
from fsm.registry.pulse import BEAT_EVERY_S
from fsm.registry.steady import SteadyClock
from fsm.stores.sqlite import connect
from fsm.stores.sqlite import database as stores
from fsm.tracker import health, process
from fsm.tracker.process import configure, fresh_tracker, get_tracker
from fsm.tracker.sweeper import SWEEPER
from fsm.tracker.worker import Worker
from tests.support.tracker_tools import begun


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture(autouse=True)
def _one_tracker_each():
    """The command sets the process's tracker up, which another one finds closed."""
    yield
    if _configured():
        get_tracker().close()


def _configured():
    return any(not one.closed for one in process._trackers)


def examined(url, *options):
    """Run the command; return its exit code, what it said, and its checks by name."""
    done = CliRunner().invoke(app, ["doctor", "--store", url, "--json", *options])
    if _configured():
        get_tracker().close()
    if not done.stdout.startswith("{"):
        return done.exit_code, done.output, {}
    said = json.loads(done.stdout)
    checks: dict[str, list[dict[str, str]]] = {}
    for check in said["checks"]:
        checks.setdefault(check["name"], []).append(check)
    return done.exit_code, said, checks


def verdicts(checks):
    return {name: [one["verdict"] for one in found] for name, found in checks.items()}


@contextmanager
def elsewhere(url, *, clock=None, machines=()):
    """The tracker of another process, of which this one knows nothing."""
    tracker = process._build(url, clock, machines)
    try:
        yield tracker
    finally:
        tracker.close()


def reports(tracker, name=SWEEPER, *, running=True, error=None, succeeded=True):
    """Let a process say of one of its loops how it is."""
    registry = tracker._registry
    registry.health.stirred = None
    loop = registry.health.loop(name)
    loop.running = running
    if succeeded:
        loop.succeeded()
    if error is not None:
        loop.failed(error)
    registry.pulse.beat()
    return loop


# --- health as data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory://", "sqlite"])
def test_health_says_how_the_registry_is(store, url, clock):
    """Health is a frozen record of loops, leases, what is overdue, ordered and set aside, and of the clocks."""
    with fresh_tracker(url if store == "sqlite" else store, clock=clock) as tracker:
        empty = tracker.health()
        assert (empty.overdue.count, empty.overdue.longest_id, empty.workers, empty.orders) == (
            0,
            None,
            (),
            0,
        )
        assert (empty.sweeping, empty.queued, empty.aside) == (False, 0, ())
        registry = tracker._registry
        registry.worker = Worker(registry, 5.0, "one")
        late = tracker.create("a", user_id="u", thread_id="t", timeouts={"queue_s": 1.0})
        tracker.create("a", user_id="u", thread_id="t", timeouts={"queue_s": 2.0})
        Worker(registry, 50.0, "two")
        clock.advance(7.0)
        clock.jump(-100.0)
        report = tracker.health()
        assert (report.overdue.count, report.overdue.longest_id, report.overdue.longest_s) == (
            2,
            late.id,
            6.0,
        )
        assert {(one.name, one.state, one.overdue_s) for one in report.workers} == {
            ("one", "overdue", 2.0), ("two", "alive", 0.0),
        }  # fmt: skip
        assert report.clock_offset_s == 100.0
        assert report.store == tracker.store_url
        tracker.sweep()
        report = tracker.health()
        assert (report.overdue.count, [one.state for one in report.workers]) == (0, ["lost", "alive"])
        with pytest.raises(ValidationError):
            report.orders = 7
        assert json.loads(report.model_dump_json())["workers"][0]["state"] == "lost"
        assert asyncio.run(tracker.aio.health()) == report
        registry.worker = None


def test_what_is_overdue_is_counted_up_to_a_limit(clock, monkeypatch):
    """Counting what is overdue has a limit, and says when it was reached."""
    monkeypatch.setattr(health, "PAGE", 2)
    monkeypatch.setattr(health, "MAX_COUNTED", 4)
    with fresh_tracker(clock=clock) as tracker:
        for count in range(1, 7):
            tracker.create("a", user_id="u", thread_id="t", timeouts={"queue_s": 1.0})
            clock.advance(0.001)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tracker._registry, "now", lambda: clock.monotonic() + 1_700_000_100.0)
                overdue = tracker.health().overdue
            assert (overdue.count, overdue.more) == (min(count, 4), count > 4)


# --- the command ------------------------------------------------------------------------------------------------


def test_a_healthy_store(url):
    """Where everything runs every check is ok, and the exit code is 0."""
    with elsewhere(url) as tracker:
        reports(tracker)
        begun(tracker)
        code, said, checks = examined(url)
    assert {verdict for found in verdicts(checks).values() for verdict in found} == {"ok"}, checks
    assert (code, said["verdict"], said["stuck"]) == (0, "ok", [])
    assert set(checks) == {
        "disk", "store", "schema", "file", "records", "sweeper", "leases", "loops", "orders", "clock",
    }  # fmt: skip
    assert set(said["versions"]) == {"python", "sqlite", "fsm", "pydantic", "transitions"}
    assert said["health"]["sweeping"] is True


def test_an_empty_store(url):
    """A store without executions needs nobody who sweeps."""
    with elsewhere(url):
        pass
    code, said, checks = examined(url)
    assert (code, said["verdict"]) == (0, "ok"), checks


def test_a_store_that_is_not_there_is_not_made(url, tmp_path):
    """A file that is missing, empty or another program's fails, with what to do; nothing is created or changed."""
    code, said, checks = examined(url)
    assert (code, said["health"]) == (1, None)
    assert "no file" in checks["store"][0]["said"]
    assert "--store" in checks["store"][0]["next"]
    assert list(tmp_path.iterdir()) == []
    path = Path(url.removeprefix("sqlite:///"))
    for content in (b"", b"just a text, of some length, in a file that has nothing to do with it"):
        path.write_bytes(content)
        assert examined(url)[0] == 1
        assert path.read_bytes() == content
    assert examined(f"sqlite:///{tmp_path}")[0] == 1
    path.unlink()
    sqlite3.connect(path).execute("CREATE TABLE mine (x)").connection.close()
    assert "another program" in examined(url)[2]["store"][0]["said"]


def test_a_url_that_is_none_is_a_mistake_of_the_caller():
    """What is no URL of a store is a usage error, as for other commands."""
    for url in ("bogus://x", "sqlite://two.db", "sqlite:///x.db?speed=high"):
        code, said, _ = examined(url)
        assert code == 2, said


def test_an_older_store_is_not_migrated(url, monkeypatch):
    """A file of an older version is reported and left as it is; one of a newer version fails."""
    scripts = connect._scripts()
    with monkeypatch.context() as patch:
        patch.setattr(connect, "_scripts", lambda: scripts[:-1])
        raw = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        connect._migrate(raw, Path("x"))
        raw.close()
    code, _, checks = examined(url)
    assert (code, verdicts(checks)["schema"], set(checks)) == (0, ["warn"], {"disk", "schema"})
    raw = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    assert raw.execute("PRAGMA user_version").fetchone()[0] == len(scripts) - 1
    raw.execute(f"PRAGMA user_version = {len(scripts) + 1}")
    raw.close()
    code, _, checks = examined(url)
    assert (code, verdicts(checks)["store"]) == (1, ["fail"])


def test_a_store_in_memory(clock):
    """A store in memory lives with the command alone, which is said."""
    code, _, checks = examined("memory://")
    assert code == 0
    assert "lives and ends" in checks["store"][0]["said"]


def test_a_full_disk_is_seen_before_it_is_full(url, monkeypatch):
    """Little free space is a warning, almost none a failure."""
    with elsewhere(url):
        pass
    for free, verdict in ((5e8, "warn"), (5e7, "fail")):
        monkeypatch.setattr(
            doctor.shutil, "disk_usage", lambda _path, free=free: type("U", (), {"free": int(free)})
        )
        _, _, checks = examined(url)
        assert verdicts(checks)["disk"] == [verdict]


def test_permissions_are_named(url, monkeypatch):
    """A file, or a folder, that may not be written fails with its name."""
    with elsewhere(url):
        pass
    path = Path(url.removeprefix("sqlite:///"))
    for closed in (path, path.parent):
        monkeypatch.setattr(doctor.os, "access", lambda one, _mode, closed=closed: one != closed)
        code, _, checks = examined(url)
        assert code == 1
        assert str(closed) in checks["store"][0]["said"]


def test_a_store_that_cannot_be_written_fails(url, monkeypatch):
    """A store that others keep busy opens, and fails all the same."""
    with elsewhere(url):
        pass
    raw = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    real = stores.patiently
    monkeypatch.setattr(stores, "patiently", lambda call, what: real(call, what, 0.05))
    code, _, checks = examined(url)
    raw.close()
    assert (code, verdicts(checks)["store"]) == (1, ["fail"])
    assert "busy" in checks["store"][0]["said"]


def test_nobody_sweeps(url):
    """Without a sweeper deadlines are a warning, and a failure once one has not been met for long."""
    with elsewhere(url) as tracker:
        tracker.create("a", user_id="u", thread_id="t", timeouts={"queue_s": 1000.0})
        code, _, checks = examined(url)
        assert (code, verdicts(checks)["sweeper"]) == (0, ["warn"])
        assert "fsm sweep" in checks["sweeper"][0]["next"]
    with elsewhere(url, clock=Slow(300.0)) as tracker:
        tracker.create("a", user_id="u", thread_id="t", timeouts={"queue_s": 1.0})
    code, _, checks = examined(url)
    assert (code, verdicts(checks)["sweeper"]) == (1, ["fail"])


class Slow:
    """The system's clocks, some seconds ago."""

    def __init__(self, ago_s):
        self._clock, self._ago_s = SystemClock(), ago_s

    def wall(self):
        return self._clock.wall() - self._ago_s

    def monotonic(self):
        return self._clock.monotonic() - self._ago_s

    def era(self):
        return self._clock.era()

    def sleep(self, seconds):
        self._clock.sleep(seconds)


def test_a_sweeper_that_is_gone_or_failing(url):
    """A process that reports no more is named as the last one that swept; one whose turns fail fails the check."""
    with elsewhere(url, clock=Slow(4 * BEAT_EVERY_S)) as tracker:
        begun(tracker)
        reports(tracker)
        _, _, checks = examined(url)
        assert verdicts(checks)["sweeper"] == ["warn"]
        assert "the last was" in checks["sweeper"][0]["said"]
        assert "killed, stopped, or cut off" in checks["loops"][0]["said"]
    with elsewhere(url) as tracker:
        reports(tracker, error=KeyError("a bug\nof two lines"))
        code, _, checks = examined(url)
        assert (code, verdicts(checks)["sweeper"]) == (1, ["fail"])
        assert "KeyError" in checks["loops"][0]["said"]


def test_errors_of_loops_that_go_on_are_shown_for_a_while(url):
    """A loop that failed and goes on is a warning with its last error."""
    with elsewhere(url) as tracker:
        reports(tracker, error=KeyError("once")).succeeded()
        tracker._registry.pulse.beat()
        code, _, checks = examined(url)
        assert (code, verdicts(checks)["loops"]) == (0, ["warn"])
        assert "once" in checks["loops"][0]["said"]


def test_leases_that_nobody_takes_away(url):
    """A lease that ran out and that no sweeper has noticed is a warning, and a failure after a while."""
    for ago_s, verdict in ((20.0, "warn"), (300.0, "fail")):
        with elsewhere(url, clock=Slow(ago_s)) as tracker:
            worker = Worker(tracker._registry, 5.0, "somebody")
            _, _, checks = examined(url)
            assert verdicts(checks)["leases"] == [verdict]
            assert "somebody" in checks["leases"][0]["said"]
            tracker._registry.store.worker_remove(worker.id)


def test_records_that_this_process_cannot_decide(url, monkeypatch):
    """Overdue executions are decided dry: which ones cannot be timed out is said, with the reason, once a reason."""

    class Mine(Payload):
        score: int | None = None

    class Judged(TimeOut):
        @model_validator(mode="after")
        def judge(self):
            return {"phase": self}[self.kind]

    with monkeypatch.context() as patch:
        patch.setitem(PAYLOADS, "mine", Mine)
        strange = EXECUTION.extend(name="strange", payloads={"progress": "mine"})
        patch.setitem(PAYLOADS, "judged", Judged)
        judged = EXECUTION.extend(name="judged", payloads={"time_out": "judged"})
        with elsewhere(url, clock=Slow(10.0), machines=[strange, judged]) as tracker:
            options = {"user_id": "u", "thread_id": "t", "timeouts": {"queue_s": 1.0}}
            ids = {tracker.create("a", machine="strange", **options).id for _ in range(3)}
            tracker.create("a", **options)
    code, said, checks = examined(url)
    assert (code, verdicts(checks)["records"]) == (0, ["warn"])
    assert {one["execution_id"] for one in said["stuck"]} == ids
    assert "register_payload" in said["stuck"][0]["reason"]
    assert "and 2 more" in checks["records"][0]["said"]
    with elsewhere(url) as tracker:
        assert {one.state for one in tracker.find()} == {"created"}, "nothing was committed"


def test_a_damaged_record_is_named(url):
    """A record that cannot be read fails the check, by its name."""
    with elsewhere(url, clock=Slow(10.0)) as tracker:
        one = tracker.create("a", user_id="u", thread_id="t", timeouts={"queue_s": 1.0})
    raw = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        raw.execute(f"DROP TRIGGER {name}")
    raw.execute("UPDATE executions SET tools = '[' WHERE id = ?", (one.id,))
    raw.close()
    _, said, checks = examined(url)
    assert "DamagedRecord" in said["stuck"][0]["reason"] or one.id in checks["records"][0]["said"]


def test_orders_that_are_not_carried_out(url, monkeypatch):
    """Children that are still to be cancelled are a warning."""
    with elsewhere(url) as tracker:
        parent = begun(tracker)
        begun(tracker, parent_id=parent)
        monkeypatch.setattr(registries.Registry, "carry_out", lambda _registry, _command: None)
        tracker.fire(parent, "fail", fence=1)
    _, _, checks = examined(url)
    assert verdicts(checks)["orders"] == ["warn"]


def test_a_wrong_clock(url, monkeypatch):
    """A wall clock that is far from the steady timeline is a warning, and a failure when it is hours."""
    for offset_s, verdict in ((0.5, "ok"), (60.0, "warn"), (-86_400.0, "fail")):
        monkeypatch.setattr(SteadyClock, "now", lambda self, by=offset_s: self._clock.wall() + by)
        with elsewhere(url):
            pass
        _, _, checks = examined(url)
        assert verdicts(checks)["clock"] == [verdict]


def test_a_check_that_fails_is_one_check(url, monkeypatch):
    """A check that cannot be made fails by name, and the others are made."""

    def _odd(_patient):
        raise ZeroDivisionError

    with elsewhere(url):
        pass
    monkeypatch.setattr(doctor, "CHECKS", (_odd, *doctor.CHECKS))
    code, _, checks = examined(url)
    assert (code, verdicts(checks)["odd"], verdicts(checks)["clock"]) == (1, ["fail"], ["ok"])


def test_the_report_fits_a_terminal(url, monkeypatch):
    """For people every line has 80 columns at most, a verdict for each check, and what to do next."""
    with elsewhere(url, clock=Slow(100.0)) as tracker:
        tracker.create("a", user_id="u", thread_id="t", timeouts={"queue_s": 1.0})
        Worker(
            tracker._registry, 1.0, "a worker with a name that is far longer than any terminal is wide " * 3
        )
        reports(tracker, error=KeyError("x" * 400))
    done = CliRunner().invoke(app, ["doctor", "--store", url])
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("→ start one: fsm sweep" in line for line in lines)
    assert "failed" in lines[-1]


def test_the_doctor_leaves_no_trace(url):
    """Examining a store adds no report, no worker and no row of the journal."""
    with elsewhere(url) as tracker:
        begun(tracker)
        before = (tracker.position(), tracker._registry.store.beats(), tracker._registry.store.workers())
        examined(url)
        assert (
            tracker.position(),
            tracker._registry.store.beats(),
            tracker._registry.store.workers(),
        ) == before


def test_configure_after_the_doctor(url):
    """The command's tracker is closed like any other."""
    assert examined(url)[0] == 1
    configure(url).close()
