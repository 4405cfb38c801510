"""``fsm replay``: recorded runs of real agents through the execution machine."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from fsm import ids
from fsm.cli.common import (
    FOUND,
    call_off,
    err,
    fail,
    made_since,
    open_tracker,
    out,
    print_json,
    say_stopped,
    state_text,
    store_url,
    teaching,
)
from fsm.cli.options import JsonOption, StoreOption, finite, usable
from fsm.lifecycles.execution import EXECUTION
from fsm.replay.events import MAX_JOBS, ReplayClock, Replayed, Summary, replay
from fsm.replay.trajectory import MalformedLine, Trajectory, read_line
from fsm.tracker.process import configure

MAX_AGENTS = 10_000
"""Maximum number of recordings that agents play at once; the same as `fsm.replay.agents.MAX_AT_ONCE`."""
SHOWN = 10
"""So many malformed lines, refusals and open executions are listed on a terminal; the JSON has more."""


class _Reader:
    """Reads trajectories from files; malformed lines are noted and passed over."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.malformed: list[dict[str, str | int]] = []

    def __iter__(self) -> Iterator[Trajectory]:
        for path in self.files:
            if str(path) == "-":
                yield from self._lines("<stdin>", sys.stdin.buffer)
            else:
                with path.open("rb") as stream:
                    yield from self._lines(str(path), stream)

    def _lines(self, name: str, stream: BinaryIO) -> Iterator[Trajectory]:
        for number, line in enumerate(stream, 1):
            try:
                trajectory = read_line(line)
            except MalformedLine as error:
                self.malformed.append({"file": name, "line": number, "reason": str(error)})
                continue
            if trajectory is not None:
                yield trajectory

    def count(self) -> int | None:
        """Return how many lines there are; unknown for standard input."""
        if any(str(path) == "-" for path in self.files):
            return None
        total = 0
        for path in self.files:
            with path.open("rb") as stream:
                total += sum(1 for line in stream if line.strip())
        return total


@teaching
def replay_command(
    files: Annotated[
        list[Path],
        typer.Argument(help="Trajectories, one JSON object a line; - for standard input.", allow_dash=True),
    ],
    jobs: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_AGENTS, help="How many side by side. (default: 8, as agents 100)"),
    ] = None,
    as_agents: Annotated[
        bool,
        typer.Option("--as-agents", help="Play them by agents on the engine, instead of firing the events."),
    ] = False,
    speed: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=1e9,
            callback=finite,
            help="As agents: so many recorded seconds pass in one second.",
        ),
    ] = 60.0,
    virtual: Annotated[
        bool, typer.Option("--virtual", help="As agents: let no time pass at all between two events.")
    ] = False,
    seed: Annotated[int, typer.Option(help="As agents: decides the latencies that a recording lacks.")] = 7,
    user: Annotated[str, typer.Option(callback=usable, help="Whose executions they become.")] = "replay",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Drive recorded trajectories through the execution machine.

    Prints what became of them. --as-agents lets agents do what the recordings tell of, on the engine, and counts as
    found what ended otherwise than recorded (strays).

    With --json one object: executions, transitions, refused, malformed (numbers), by_state (state -> number), open
    (ids without an end), refusals, malformed_lines, seconds, transitions_per_second, store; as agents: children,
    strays, most_at_once instead of refused and open. Exit code 1 if a line was malformed, an event refused, or an
    end astray.
    """
    for path in files:
        if str(path) != "-" and not path.is_file():
            fail(f"{path}: no such file. A trajectory file has one JSON object a line.")
    reader = _Reader(files)
    if as_agents:
        _as_agents(reader, jobs or 100, (speed, seed), user, store, virtual=virtual, json=json)
        return
    jobs = jobs or 8
    if jobs > MAX_JOBS:
        fail(f"--jobs {jobs}: {MAX_JOBS} threads at most; with --as-agents up to {MAX_AGENTS}")
    clock = ReplayClock()
    tracker = open_tracker(store, clock=clock)
    started, first = time.perf_counter(), ids.execution_id()
    with _progress("replaying") as progress:
        task = progress.add_task("replay", total=reader.count() if err.is_terminal else None)

        def on_done(_: Replayed) -> None:
            progress.advance(task)

        try:
            summary = replay(tracker, reader, jobs=jobs, on_done=on_done, user_id=user, clock=clock)
        except KeyboardInterrupt:
            progress.stop()
            say_stopped(made_since(tracker, first, user))
    seconds = time.perf_counter() - started
    if json:
        print_json(
            {
                "executions": summary.executions,
                "transitions": summary.transitions,
                "refused": summary.refused,
                "malformed": len(reader.malformed),
                "by_state": dict(sorted(summary.by_state.items())),
                "open": summary.still_open,
                "refusals": [refusal._asdict() for refusal in summary.refusals],
                "malformed_lines": reader.malformed,
                "seconds": round(seconds, 3),
                "transitions_per_second": round(summary.transitions / seconds, 1) if seconds else None,
                "store": tracker.store_url,
            }
        )
    else:
        _print(summary, reader, seconds, tracker.store_url)
    tracker.close()
    if reader.malformed or summary.refused:
        raise typer.Exit(FOUND)


def _progress(what: str) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=err, transient=True, disable=not err.is_terminal,
    )  # fmt: skip


def _as_agents(
    reader: _Reader,
    jobs: int,
    pace: tuple[float, int],
    user: str,
    store: str | None,
    *,
    virtual: bool,
    json: bool,
) -> None:
    from fsm.cli.reenact import Stage  # noqa: PLC0415 - it brings the engine along
    from fsm.replay.agents import Pace  # noqa: PLC0415 - as above

    stage = Stage(virtual=virtual)
    tracker = configure(stage.store(store_url(store)), clock=stage.clock)
    begin, started, first = tracker.position(), time.perf_counter(), ids.execution_id()
    try:
        with _progress("playing") as progress:
            task = progress.add_task("play", total=reader.count() if err.is_terminal else None)
            played = stage.play(
                tracker,
                reader,
                at_once=jobs,
                pace=Pace(*pace),
                user_id=user,
                on_done=lambda _: progress.advance(task),
            )
    except KeyboardInterrupt:
        call_off(tracker, made_since(tracker, first, user))
        say_stopped(made_since(tracker, first, user))
    seconds, transitions = time.perf_counter() - started, tracker.position() - begin
    if json:
        print_json(
            {
                "executions": played.executions,
                "children": played.children,
                "transitions": transitions,
                "by_state": dict(sorted(played.by_state.items())),
                "strays": [dict(zip(("id", "recorded", "found"), one, strict=True)) for one in played.strays],
                "most_at_once": played.most_at_once,
                "malformed": len(reader.malformed),
                "malformed_lines": reader.malformed,
                "seconds": round(seconds, 3),
                "store": tracker.store_url,
            }
        )
    else:
        out.print(
            f"[bold]{played.executions}[/] executions and [bold]{played.children}[/] of sub-agents, at most "
            f"[bold]{played.most_at_once}[/] at once, [bold]{transitions}[/] transitions, "
            f"[bold]{len(played.strays)}[/] ended otherwise than recorded, "
            f"[bold]{len(reader.malformed)}[/] malformed lines in {seconds:.1f} s into {escape(tracker.store_url)}",
            markup=True,
        )
        out.print(_states(played.by_state))
        for execution_id, recorded, found in played.strays[:SHOWN]:
            err.print(f"{execution_id}: recorded as {recorded}, ended {found}")
        _print_malformed(reader)
    tracker.close()
    if played.strays or reader.malformed:
        raise typer.Exit(FOUND)


def _states(by_state: Counter[str]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    table.add_column()
    for state, count in by_state.most_common():
        table.add_row(str(count), state_text(state, EXECUTION.by_name[state].category))
    return table


def _print_malformed(reader: _Reader) -> None:
    for line in reader.malformed[:SHOWN]:
        err.print(f"{line['file']}:{line['line']}: {line['reason']}")
    hidden = max(0, len(reader.malformed) - SHOWN)
    if hidden:
        err.print(f"… and {hidden} more malformed lines: --json lists all")


def _print(summary: Summary, reader: _Reader, seconds: float, store_url: str) -> None:
    rate = summary.transitions / seconds if seconds else 0.0
    out.print(
        f"[bold]{summary.executions}[/] executions, [bold]{summary.transitions}[/] transitions, "
        f"[bold]{summary.refused}[/] refused, [bold]{len(reader.malformed)}[/] malformed lines "
        f"in {seconds:.1f} s ({rate:,.0f} transitions/s) into {escape(store_url)}",
        markup=True,
    )
    out.print(_states(summary.by_state))
    if summary.still_open:
        out.print(
            f"[yellow]{len(summary.still_open)} left open: nobody ever said how they ended[/]", markup=True
        )
        for execution_id in summary.still_open[:SHOWN]:
            out.print(f"  {execution_id}")
        if len(summary.still_open) > SHOWN:
            out.print(f"  … and {len(summary.still_open) - SHOWN} more: fsm list --category running")
    for refusal in summary.refusals[:SHOWN]:
        err.print(
            f"refused: {refusal.execution_id}: {refusal.event} in {refusal.state}: {refusal.detail}",
        )
    _print_malformed(reader)
