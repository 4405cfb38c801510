"""``fsm watch``: the registry, live, from any terminal."""

from __future__ import annotations

import time
from collections import deque
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fsm.cli.common import (
    COLOURS,
    narrow,
    open_tracker,
    out,
    print_json_line,
    state_text,
    teaching,
)
from fsm.cli.inspect import executions_table
from fsm.cli.options import JsonOption, StoreOption, UserOption, finite
from fsm.core.records import Receipt
from fsm.machine.grammar import Category
from fsm.machine.machine import Machine
from fsm.tracker.scope import Scope
from fsm.tracker.tracker import Tracker

OPEN = (Category.PENDING, Category.RUNNING, Category.WAITING, Category.STOPPING)
MAX_BAR = 40
"""The longest bar of the overview, in characters."""


@teaching
def watch_command(
    store: StoreOption = None,
    interval: Annotated[
        float, typer.Option(min=0.05, max=60.0, callback=finite, help="Seconds between two looks.")
    ] = 0.5,
    once: Annotated[bool, typer.Option("--once", help="Look once and leave.")] = False,
    user: UserOption = None,
    rows: Annotated[int, typer.Option(min=1, max=200, help="How many open executions to show.")] = 15,
    json: JsonOption = False,
) -> None:
    """Watch executions as they happen, in this process or any other on the same store; Ctrl-C leaves.

    With --json a stream of journal rows as they are committed, one JSON object a line.
    """
    tracker = open_tracker(store, must_exist=True)
    narrowed = narrow(tracker, user)
    try:
        if json:
            for receipt in narrowed.subscribe(after=0 if once else None, follow=not once):
                print_json_line(receipt.as_dict())
            return
        if once or not out.is_terminal:
            out.print(frame(tracker, narrowed, deque(), rows))
            return
        recent: deque[Receipt] = deque(maxlen=8)
        cursor = max(0, tracker.position() - 8)
        with Live(
            frame(tracker, narrowed, recent, rows), console=out, screen=True, auto_refresh=False
        ) as live:
            while True:
                for receipt in narrowed.subscribe(after=cursor, follow=False):
                    recent.append(receipt)
                    cursor = receipt.position
                live.update(frame(tracker, narrowed, recent, rows), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        return


def frame(tracker: Tracker, narrowed: Scope, recent: deque[Receipt], rows: int) -> Group:
    """Return one picture of the registry: how many are where, who is open, what just happened."""
    counts = narrowed.counts()
    machines = {state: machine for machine in tracker.machines() for state in machine.by_name}
    parts: list[Table | Text] = [_head(tracker, counts, machines), _overview(counts, machines), Text()]
    open_states = [state for state in counts if machines[state].by_name[state].category in OPEN]
    found = narrowed.find(state=open_states, limit=rows) if open_states else []
    if found:
        parts += [Text("open, oldest first", style="bold"), executions_table(found, tracker.clock.wall())]
    if recent:
        parts += [Text("\njust happened", style="bold"), _recent(recent, machines)]
    return Group(*parts)


def _head(tracker: Tracker, counts: dict[str, int], machines: dict[str, Machine]) -> Text:
    total = sum(counts.values())
    ended = sum(count for state, count in counts.items() if state in machines[state].terminal)
    text = Text("fsm watch  ", style="bold")
    text.append(
        f"{tracker.store_url}   {total} executions, {total - ended} open, {ended} ended", style="not bold dim"
    )
    return text


def _overview(counts: dict[str, int], machines: dict[str, Machine]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    most = max(counts.values(), default=1)
    order = {state: index for machine in machines.values() for index, state in enumerate(machine.by_name)}
    for state, count in sorted(counts.items(), key=lambda item: order[item[0]]):
        category = machines[state].by_name[state].category
        bar = Text("█" * max(1, round(count / most * MAX_BAR)), style=state_text(state, category).style)
        table.add_row(state_text(state, category), str(count), bar)
    return table


def _recent(recent: deque[Receipt], machines: dict[str, Machine]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(4):
        table.add_column(no_wrap=True)
    for receipt in reversed(recent):
        category = machines[receipt.target].by_name[receipt.target].category
        style = COLOURS.get(category, "")
        table.add_row(
            Text(time.strftime("%H:%M:%S", time.localtime(receipt.at)), style="dim"),
            receipt.execution_id,
            receipt.event,
            Text("→ ", style=style).append_text(state_text(receipt.target, category)),
        )
    return table
