"""``fsm doctor``: what a support engineer asks first, with a verdict and what to do next."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer
from rich.table import Table
from rich.text import Text

from fsm.cli.common import (
    FOUND,
    JsonOption,
    StoreOption,
    open_tracker,
    out,
    print_json,
    seconds_text,
    store_url,
    teaching,
)
from fsm.concurrency.supervised import one_line
from fsm.errors import FsmError
from fsm.tracker.health import HealthReport, LoopHealth, Stuck, stuck
from fsm.tracker.tracker import Tracker

WIDTH = 80
"""Number of columns that the report takes at most."""
MAX_SHOWN = 5
"""Number of records of one kind that are named."""
MAX_REASON = 200
"""Number of characters of a reason that are shown; --json has all of it."""
MAX_STUCK = 1_000
"""Maximum number of records that cannot be decided which are looked for."""
OVERDUE_S = 60.0
"""A deadline that passed longer ago than this, in seconds, was not met by anybody."""
RECENT_S = 3_600.0
"""A loop's error is worth a warning for this long, in seconds."""
OFFSET_S = 5.0
"""A wall clock that differs from the steady timeline by more than this, in seconds, is worth a warning."""
OFFSET_MAX_S = 3_600.0
"""A wall clock that differs by more than this, in seconds, is wrong, or was when the machine started."""
FREE_BYTES = 1_000_000_000
"""Less free disk space than this, in bytes, is worth a warning."""
FREE_MIN_BYTES = 100_000_000
"""Less free disk space than this, in bytes, ends soon."""
PACKAGES = (("fsm", "agent-fsm"), ("pydantic", "pydantic"), ("transitions", "transitions"))

Verdict = Literal["ok", "warn", "fail"]
_COLOURS: dict[Verdict, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: What.
        verdict: ok, warn (somebody should look), or fail (something does not work).
        said: What was found.
        next: What to do; empty where there is nothing to do.
    """

    name: str
    verdict: Verdict
    said: str
    next: str = ""


class Patient(NamedTuple):
    """An open store, and what it says of itself."""

    tracker: Tracker
    report: HealthReport


VerifyOption = Annotated[
    bool,
    typer.Option("--verify", help="Fold every journal through the table as well; it may take minutes."),
]


@teaching
def doctor_command(store: StoreOption = None, verify: VerifyOption = False, json: JsonOption = False) -> None:
    """Examine a store and the processes that work on it; say what is wrong and what to do next.

    Nothing is changed: a file that is not there is not created, and an older one is not migrated. The exit code is 0
    if all is well, 1 if a check fails. With --json one object: verdict, checks (name, verdict, said, next), versions,
    stuck (overdue executions that cannot be timed out from here) and health (as Tracker.health; null if the store
    cannot be opened).
    """
    url = store_url(store)
    checks: list[Check] = []
    patient: Patient | None = None
    poisoned: tuple[Stuck, ...] = ()
    checks += _before_opening(url)
    if not any(check.verdict == "fail" or check.name == "schema" for check in checks):
        patient = _opened(url, checks)
    if patient is not None:
        poisoned = tuple(islice(stuck(patient.tracker._registry), MAX_STUCK))
        checks.append(_poisoned(patient, poisoned))
        for look in (*CHECKS, *((_verified,) if verify else ())):
            checks += _looked(look, patient)
    verdict = _worst(checks)
    if json:
        print_json(_as_json(verdict, checks, patient, poisoned))
    else:
        _print(url, verdict, checks)
    if verdict == "fail":
        raise typer.Exit(FOUND)


def _verified(patient: Patient) -> Iterator[Check]:
    """Fold every journal, and name the first records that do not fit."""
    from fsm.tracker.verify import verify  # noqa: PLC0415 - only when it is asked for

    found = 0
    for finding in verify(patient.tracker._registry):
        found += 1
        if found <= MAX_SHOWN:
            yield Check("verify", "fail", f"{finding.code}: {finding.row}: {finding.message}", finding.fix)
    if found > MAX_SHOWN:
        yield Check("verify", "fail", f"{found - MAX_SHOWN} more findings", "restore the store from a backup")
    if not found:
        yield Check("verify", "ok", "every journal folds to its record", "")


# --- before anything is opened ------------------------------------------------------------------------------------


def _before_opening(url: str) -> Iterator[Check]:
    """Look at the file itself: opening a store creates or migrates it, and a doctor does neither."""
    if not url.startswith("sqlite:"):
        return
    from fsm.stores.sqlite.connect import known_version, parse_url, peek  # noqa: PLC0415 - only for this store

    path, _ = parse_url(url)
    path = path.absolute()
    if not path.exists():
        what = "name another with --store URL or FSM_STORE; 'fsm demo' fills one"
        yield Check("store", "fail", f"there is no file {path}", what)
        return
    if not path.is_file() or not path.stat().st_size:
        kind = "is an empty file" if path.is_file() else "is no file"
        yield Check(
            "store", "fail", f"{path} {kind}", "name the store's own file with --store URL or FSM_STORE"
        )
        return
    yield from _disk(path)
    closed = [str(one) for one in (path, path.parent) if not os.access(one, os.R_OK | os.W_OK)]
    if closed:
        what = "give the user that runs this write access to the file and to its folder, which holds -wal and -shm"
        yield Check("store", "fail", f"no permission to write {' and '.join(closed)}", what)
        return
    try:
        found = peek(path)
    except FsmError as error:
        yield Check(
            "store", "fail", str(error), "restore the file from a backup, or name another with --store URL"
        )
        return
    if found < known_version():
        yield Check(
            "schema", "warn",
            f"version {found}; this version of fsm works with {known_version()}, and the rest cannot be examined yet",
            "back the file up, then let any other command bring it up to date: fsm list",
        )  # fmt: skip


def _disk(path: Path) -> Iterator[Check]:
    free = shutil.disk_usage(path.parent).free
    said = f"{_bytes_text(free)} free"
    if free < FREE_BYTES:
        verdict: Verdict = "fail" if free < FREE_MIN_BYTES else "warn"
        yield Check("disk", verdict, said, "free space, or prune: fsm prune --older-than 30d")
    else:
        yield Check("disk", "ok", said)


def _opened(url: str, checks: list[Check]) -> Patient | None:
    """Open the store and write nothing in a transaction, as the cheapest proof that it could be written to."""
    try:
        tracker = open_tracker(url, must_exist=True)
        store = tracker._registry.store
        store.worker_remove("fsm doctor")  # there is none of that name
        report = tracker.health()
    except FsmError as error:
        if not url.startswith(("sqlite:", "postgres")):
            raise  # no URL of a store: the command was not used as it is meant to be
        checks.append(
            Check("store", "fail", str(error), "see what the message asks for; then run this again")
        )
        return None
    if store.instant:
        checks.append(Check("store", "ok", f"{url}, which lives and ends with this process"))
        return Patient(tracker, report)
    checks.append(Check("store", "ok", "opens, and can be written to"))
    checks.append(Check("schema", "ok", f"version {report.schema_version}"))
    identity = getattr(store, "identity", None)  # what tells this file from another one of its name
    if callable(identity):
        checks.append(Check("file", "ok", str(identity())))
    return Patient(tracker, report)


# --- the checks of an open store ----------------------------------------------------------------------------------


def _looked(look: Callable[[Patient], Iterable[Check]], patient: Patient) -> list[Check]:
    """Return what a check found; one that cannot be made fails, and the others are made all the same."""
    try:
        return list(look(patient))
    except Exception as error:  # noqa: BLE001 - one failed check must not hide the others
        return [Check(look.__name__.strip("_"), "fail", f"could not be examined: {one_line(error)}")]


def _sweeper(patient: Patient) -> Iterator[Check]:
    report = patient.report
    sweepers = [one for one in report.loops if one.sweeps and one.alive and not one.here]
    late = report.overdue
    count = f"{late.count}{'+' if late.more else ''}"
    said = f"; {count} overdue, the first by {seconds_text(late.longest_s)}" if late.count else ""
    unmet = late.longest_s > OVERDUE_S
    if sweepers:
        one = min(sweepers, key=lambda loop: loop.failing)
        when = (
            "has not finished a turn yet"
            if one.silent_s is None
            else f"last turn {seconds_text(one.silent_s)} ago"
        )
        hangs = unmet and (one.silent_s is None or one.silent_s > OVERDUE_S)
        verdict: Verdict = "fail" if one.failing or hangs else "warn" if unmet else "ok"
        what = "see the errors of its loop and the records below" if verdict != "ok" else ""
        yield Check("sweeper", verdict, f"{one.worker} sweeps, {when}{said}", what)
        return
    what = "start one: fsm sweep, or configure(…, sweep_every_s=1.0) in a process that runs all the time"
    gone = [one for one in report.loops if one.sweeps and not one.here]
    last = ""
    if gone:
        latest = min(gone, key=lambda loop: loop.seen_s)
        last = f"; the last was {latest.worker}, {seconds_text(latest.seen_s)} ago"
    if unmet:
        yield Check("sweeper", "fail", f"nobody sweeps{said}{last}", what)
    elif _waits(patient):
        yield Check("sweeper", "warn", f"nobody sweeps, and deadlines are set{said}{last}", what)
    else:
        yield Check("sweeper", "ok", f"nobody sweeps, and no deadline is set{last}")


def _waits(patient: Patient) -> bool:
    return patient.tracker._registry.store.next_due() is not None


def _leases(patient: Patient) -> Iterator[Check]:
    workers = patient.report.workers
    overdue = [one for one in workers if one.state == "overdue"]
    lost = [one for one in workers if one.state == "lost"]
    alive = len(workers) - len(overdue) - len(lost)
    said = (
        f"{alive} alive, {len(overdue)} overdue, {len(lost)} lost" if workers else "no worker is registered"
    )
    store = patient.tracker._registry.store
    holding = [one for one in lost if store.owned(one.id, 1)]
    if overdue:
        names = _some([f"{one.name} by {seconds_text(one.overdue_s)}" for one in overdue])
        verdict: Verdict = "fail" if max(one.overdue_s for one in overdue) > OVERDUE_S else "warn"
        yield Check(
            "leases", verdict, f"{said}: {names}", "a sweeper takes their work away: see the sweeper above"
        )
    elif holding:
        names = _some([one.name for one in holding])
        yield Check("leases", "warn", f"{said}; still owners: {names}", "see the sweeper and the records")
    else:
        yield Check("leases", "ok", said)


def _loops(patient: Patient) -> Iterator[Check]:
    loops = [one for one in patient.report.loops if not one.here]
    alive = [one for one in loops if one.alive]
    failing = [one for one in alive if one.failing]
    for one in failing[:MAX_SHOWN]:
        said = f"{_of(one)} has failed {one.failing} times in a row: {_short(one.last_error or '')}"
        yield Check("loops", "fail", said, "the log of that process has the traceback of the first one")
    cut: dict[str, list[LoopHealth]] = {}
    for one in loops:
        if one.running and not one.alive:
            cut.setdefault(one.process, []).append(one)
    for group in islice(cut.values(), MAX_SHOWN):
        one = group[0]
        said = (
            f"process {one.pid} on {one.host} ({one.worker}) has reported nothing for {seconds_text(one.seen_s)}: "
            f"killed, stopped, or cut off. It ran: {', '.join(each.name for each in group)}"
        )
        yield Check("loops", "warn", said, "look whether that process runs, and in its log")
    at = patient.report.at
    ended = [one for one in loops if one.failures and not (one.alive and one.failing)]
    recent = [one for one in ended if one.failed_at is not None and at - one.failed_at < RECENT_S]
    for one in recent[:MAX_SHOWN]:
        ago = seconds_text(max(0.0, at - (one.failed_at or at)))
        goes_on = "it goes on" if one.alive or not one.turns else "it has ended"
        yield Check(
            "loops",
            "warn",
            f"{_of(one)} failed {one.failures} times, {ago} ago last, and {goes_on}: {_short(one.last_error or '')}",
        )
    if not (failing or cut or recent):
        processes = len({one.process for one in alive})
        of = "1 process" if processes == 1 else f"{processes} processes"
        yield Check(
            "loops",
            "ok",
            f"{len(alive)} loops of {of} run" if alive else "none has reported",
        )


def _of(one: LoopHealth) -> str:
    return f"{one.name} of {one.worker}" + ("" if str(one.pid) in one.worker else f" (process {one.pid})")


def _poisoned(patient: Patient, poisoned: tuple[Stuck, ...]) -> Check:
    broken = patient.tracker._registry.store.damaged()
    if broken:
        names = _some([f"{one.table} {one.key} ({one.column} {one.why})" for one in broken])
        return Check(
            "records", "fail", f"cannot be read: {names}", "restore them from a backup, or leave them alone"
        )
    if not poisoned:
        return Check("records", "ok", "every overdue execution can be timed out from here")
    ids: dict[str, list[str]] = {}
    for one in poisoned:
        ids.setdefault(one.reason, []).append(one.execution_id)
    names = _some(
        [
            one[0] + (f" and {len(one) - 1} more" if len(one) > 1 else "") + f": {_short(reason)}"
            for reason, one in ids.items()
        ]
    )
    count = f"{len(poisoned)}{'+' if len(poisoned) == MAX_STUCK else ''}"
    verdict: Verdict = "fail" if max(one.overdue_s for one in poisoned) > OVERDUE_S else "warn"
    what = "sweep from a process that has their machine's payload models, or see: fsm show ID"
    return Check("records", verdict, f"{count} overdue ones cannot be timed out from here: {names}", what)


def _orders(patient: Patient) -> Iterator[Check]:
    count = patient.report.orders
    if count:
        said = f"{count} ended parents whose children are still to be cancelled"
        yield Check(
            "orders", "warn", said, "a sweeper repeats what a dead process left undone: see the sweeper"
        )
    else:
        yield Check("orders", "ok", "every order to cancel children is carried out")


def _clock(patient: Patient) -> Iterator[Check]:
    offset_s = patient.report.clock_offset_s
    size_s = abs(offset_s)
    where = "behind" if offset_s > 0 else "ahead of"
    said = f"the wall clock is {seconds_text(size_s)} {where} the steady timeline"
    if size_s <= OFFSET_S:
        yield Check("clock", "ok", said if size_s >= 1 else "the wall clock and the steady timeline agree")
        return
    verdict: Verdict = "fail" if size_s > OFFSET_MAX_S else "warn"
    yield Check(
        "clock",
        verdict,
        said,
        "deadlines are met all the same; set the clock right: timedatectl, chronyc tracking",
    )


CHECKS: tuple[Callable[[Patient], Iterable[Check]], ...] = (_sweeper, _leases, _loops, _orders, _clock)
"""The checks of an open store, in the order in which they are printed. A further one is a function in this tuple."""


# --- the report ---------------------------------------------------------------------------------------------------


def _worst(checks: Iterable[Check]) -> Verdict:
    found = {check.verdict for check in checks}
    return "fail" if "fail" in found else "warn" if "warn" in found else "ok"


def versions() -> dict[str, str]:
    """Return the versions of what this runs on."""
    found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for name, package in PACKAGES:
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _as_json(
    verdict: Verdict, checks: list[Check], patient: Patient | None, poisoned: tuple[Stuck, ...]
) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "checks": [check._asdict() for check in checks],
        "versions": versions(),
        "stuck": [one.model_dump(mode="json") for one in poisoned],
        "health": None if patient is None else patient.report.model_dump(mode="json"),
    }


def _print(url: str, verdict: Verdict, checks: list[Check]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False, width=min(WIDTH, out.width))
    table.add_column(no_wrap=True, width=4)
    table.add_column(no_wrap=True, width=8, style="bold")
    table.add_column(overflow="fold")
    for check in checks:
        said = Text(check.said)
        if check.next:
            said.append(f"\n→ {check.next}", style="dim")
        table.add_row(Text(check.verdict, style=_COLOURS[check.verdict]), check.name, said)
    running = "  ".join(f"{name} {number}" for name, number in versions().items())
    table.add_row("", "versions", Text(running, style="dim"))
    table.add_row("", "store at", Text(url, style="dim"))
    out.print(table)
    count = sum(check.verdict == verdict for check in checks)
    summary = {
        "ok": "healthy",
        "warn": f"works; {count} {'thing' if count == 1 else 'things'} to look at",
        "fail": f"{count} {'check' if count == 1 else 'checks'} failed",
    }
    out.print(Text(summary[verdict], style=_COLOURS[verdict]))


def _short(text: str) -> str:
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"


def _some(texts: list[str]) -> str:
    more = len(texts) - MAX_SHOWN
    return "; ".join(texts[:MAX_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _bytes_text(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"  # noqa: PLR2004 - a gigabyte
