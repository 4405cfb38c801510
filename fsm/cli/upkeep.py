"""``fsm sweep`` and ``fsm prune``: what keeps a registry in order."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Annotated

import typer

from fsm.cli.common import (
    fail,
    open_tracker,
    out,
    print_json,
    print_json_line,
    teaching,
)
from fsm.cli.options import JsonOption, StoreOption, file_path, finite, usable
from fsm.concurrency.supervised import BACKOFF_S, keep_going
from fsm.errors import FsmError
from fsm.tracker.retention import Retention, archive_to, would_prune
from fsm.tracker.tracker import Tracker

MIN_AGE_S = 3600.0
"""What ended less long ago, in seconds, is deleted with --yes alone."""
MIN_KEPT = 1
"""Fewer ended executions than this are kept with --yes alone."""
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


@teaching
def sweep_command(
    once: Annotated[bool, typer.Option("--once", help="Sweep once and leave.")] = False,
    every: Annotated[
        float, typer.Option(min=0.05, max=3600.0, callback=finite, help="Seconds between two sweeps.")
    ] = 1.0,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Time out what is overdue, and take work away from workers whose lease ran out; Ctrl-C leaves.

    Any number of these may run on one store. With --json one object a sweep that did something (with --once always):
    timed_out, lapsed, workers, pruned, orphans.
    """
    tracker = open_tracker(store, must_exist=True)
    if once:
        _sweep(tracker, json=json, always=True)
        return
    over = threading.Event()

    def turn() -> float:
        _sweep(tracker, json=json, always=False)
        return every

    def wait(pause_s: float) -> bool:
        return over.wait(min(pause_s, max(every, BACKOFF_S)))

    # A store that does not answer, or a record that cannot be worked on, is logged and does not end it.
    loop = tracker._registry.health.loop("fsm sweep", expected=(FsmError,))
    try:
        keep_going(loop, turn, wait, ends=(BrokenPipeError,))
    except KeyboardInterrupt:
        return


def _sweep(tracker: Tracker, *, json: bool, always: bool) -> None:
    swept = tracker.sweep()
    if not any(swept) and not always:
        return
    if json:
        print_json_line(swept._asdict())
    else:
        out.print(
            f"{swept.timed_out} timed out, {swept.lapsed} taken from {swept.workers} lost workers, "
            f"{swept.orphans} orphans cancelled, {swept.pruned} pruned"
        )


@teaching
def prune_command(
    older_than: Annotated[
        str | None,
        typer.Option(callback=usable, help="Delete what ended longer ago: 90s, 15m, 12h, 30d, 8w."),
    ] = None,
    keep: Annotated[int | None, typer.Option(min=0, help="Keep so many ended executions at most.")] = None,
    archive: Annotated[
        Path | None,
        typer.Option(
            parser=file_path,
            metavar="FILE",
            help="Append each one with its history to this file first, one JSON object a line.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many would be deleted, and delete nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete what ended less than an hour ago, too.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Delete ended executions with their journals. Open ones are never touched.

    With --json one object: pruned (how many), dry_run (whether they are still there).
    """
    if older_than is None and keep is None:
        fail("say what to prune: --older-than 30d, or --keep 100000, or both")
    older_than_s = None if older_than is None else _seconds(older_than)
    recent = (keep is not None and keep < MIN_KEPT) or (older_than_s is not None and older_than_s < MIN_AGE_S)
    if recent and not (yes or dry_run):
        fail(
            f"this deletes what has only just ended: give --older-than {MIN_AGE_S / 3600:.0f}h or more, --keep "
            f"{MIN_KEPT} or more, or say --yes; --dry-run says how many it would be"
        )
    tracker = open_tracker(store, must_exist=True)
    if dry_run:
        policy = Retention(max_age_s=older_than_s, max_count=keep)
        pruned = would_prune(tracker._registry, policy)
        if json:
            print_json({"pruned": pruned, "dry_run": True})
        else:
            out.print(f"{pruned} ended executions would be pruned; nothing was deleted")
        return
    if archive is None:
        pruned = tracker.prune(older_than_s=older_than_s, keep=keep)
    else:
        with archive.open("a", encoding="utf-8") as stream:
            pruned = tracker.prune(older_than_s=older_than_s, keep=keep, archive=archive_to(stream))
    if json:
        print_json({"pruned": pruned, "dry_run": False})
    else:
        out.print(f"{pruned} ended executions pruned" + (f", archived in {archive}" if archive else ""))


def _seconds(text: str) -> float:
    """Return a duration like ``30d`` in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip())
    if found is None:
        fail(f"{text!r} is no duration: write 90s, 15m, 12h, 30d or 8w")
    return float(found[1]) * _UNITS[found[2]]
