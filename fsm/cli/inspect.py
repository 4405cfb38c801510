"""``fsm list`` and ``fsm show``: what is in the registry."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fsm.cli.common import (
    ago_text,
    as_json,
    clock_text,
    open_tracker,
    out,
    print_json,
    print_table,
    seconds_text,
    state_text,
    teaching,
)
from fsm.cli.options import (
    AfterOption,
    AgentOption,
    IdArgument,
    JsonOption,
    StoreOption,
    ThreadOption,
    UserOption,
    usable,
)
from fsm.core.records import Execution, Receipt
from fsm.machine.machine import Machine

ID_WIDTH = 31
"""An id is never cut off: it is what people copy."""
MAX_DETAIL = 100
"""So many characters of a payload are shown on a line of the timeline."""


@teaching
def list_command(
    state: Annotated[
        list[str] | None,
        typer.Option(callback=usable, help="Only in this state; may be given several times."),
    ] = None,
    category: Annotated[
        str | None, typer.Option(callback=usable, help="pending, running, waiting, stopping or terminal.")
    ] = None,
    agent: AgentOption = None,
    user: UserOption = None,
    thread: ThreadOption = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at the most.")] = 50,
    after: AfterOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """List executions, oldest first.

    With --json one object: executions (each with all fields of the record), next (the id to give as --after for the
    next page, or null), counts (state -> number, of the whole registry).
    """
    tracker = open_tracker(store, must_exist=True)
    found = tracker.find(
        state=state or None,
        category=category,
        agent=agent,
        user_id=user,
        thread_id=thread,
        limit=limit,
        after=after,
    )
    following = found[-1].id if len(found) == limit else None
    if json:
        print_json({"executions": as_json(found), "next": following, "counts": tracker.counts()})
        return
    now = tracker.clock.wall()
    print_table(executions_table(found, now))
    counts = ", ".join(f"{count} {name}" for name, count in sorted(tracker.counts().items()))
    out.print(Text(f"in the registry: {counts or 'nothing yet'}", style="dim"))
    if following:
        out.print(Text(f"more: fsm list --after {following}", style="dim"))


def executions_table(executions: list[Execution], now: float) -> Table:
    """Return executions as a table for people."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", no_wrap=True, min_width=ID_WIDTH)
    table.add_column("agent", overflow="ellipsis", min_width=8, max_width=24, no_wrap=True)
    table.add_column("user", overflow="ellipsis", min_width=6, max_width=16, no_wrap=True)
    table.add_column("state", no_wrap=True, min_width=max((len(one.state) for one in executions), default=5))
    table.add_column("for", justify="right", no_wrap=True, min_width=7)
    table.add_column("try", justify="right", min_width=3)
    table.add_column("detail", overflow="ellipsis", no_wrap=True)
    for one in executions:
        until = one.ended_at if one.ended_at is not None else now
        since = one.created_at if one.ended else one.entered_at
        table.add_row(
            one.id,
            one.agent,
            one.user_id,
            state_text(one.state, one.category),
            seconds_text(max(0.0, until - since)),
            str(one.attempt),
            Text(_detail(one), style="dim"),
        )
    return table


def _detail(one: Execution) -> str:
    if one.error:
        return one.error.splitlines()[0][:MAX_DETAIL]
    if one.ended:
        return "" if one.outcome in {None, one.state} else str(one.outcome)
    parts = []
    if one.open_tools:
        parts.append("tools: " + ", ".join(name or "?" for name in one.open_tools))
    if one.breaker:
        parts.append(f"behind {one.breaker}")
    return "; ".join(parts)


@teaching
def show_command(
    execution_id: IdArgument,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show one execution: what it is, its timeline, and where its time went.

    With --json one object: execution (all fields of the record), history (one object per journal row: position,
    version, event, source, target, at, attempt, fence, owner, key, payload), durations (state -> seconds), allowed
    (events that it would accept now).
    """
    tracker = open_tracker(store, must_exist=True)
    execution = tracker.get(execution_id)
    history = tracker.history(execution_id)
    durations = tracker.durations(execution_id)
    allowed = tracker.allowed(execution_id)
    if json:
        print_json(
            {
                "execution": execution.model_dump(mode="json"),
                "history": [receipt.as_dict() for receipt in history],
                "durations": {state: round(seconds, 6) for state, seconds in durations.items()},
                "allowed": list(allowed),
            }
        )
        return
    machine = tracker.machine_of(execution_id)
    now = tracker.clock.wall()
    _print_head(execution, now)
    _print_timeline(history, machine, execution.created_at)
    _print_durations(durations, machine)
    if allowed:
        out.print(Text.assemble(("\nallowed now  ", "bold"), ", ".join(allowed)))


def _print_head(one: Execution, now: float) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    state = state_text(one.state, one.category)
    state.append(f"  ({one.category}, version {one.version})", style="dim")
    table.add_row("execution", one.id)
    table.add_row("state", state)
    table.add_row("agent", one.agent)
    table.add_row("user", f"{one.user_id}, thread {one.thread_id}")
    table.add_row("created", f"{clock_text(one.created_at)}, {ago_text(one.created_at, now)}")
    for name, value in (*_course(one, now), *_ties(one)):
        if value:
            table.add_row(name, value)
    print_table(table)


def _course(one: Execution, now: float) -> list[tuple[str, str | Text]]:
    """What became of it so far."""
    ended = due = attempt = ""
    if one.ended_at is not None:
        ended = f"{clock_text(one.ended_at)}, after {seconds_text(one.ended_at - one.created_at)}"
    if one.due_at is not None:
        left_s = one.due_at - now
        due = f"{one.due_kind}, {'in ' + seconds_text(left_s) if left_s >= 0 else 'passed'}"
    if one.attempt:
        owner = one.owner or "nobody"
        attempt = f"{one.attempt} of {one.attempts_max}, fence {one.fence}, owner {owner}"
    return [
        ("ended", ended),
        ("outcome", one.outcome or ""),
        ("error", Text(one.error or "", style="red")),
        ("result", Text("" if one.result is None else repr(one.result)[:1000])),
        ("attempt", attempt),
        ("deadline", due),
    ]


def _ties(one: Execution) -> list[tuple[str, str | Text]]:
    """What it is connected with."""
    return [
        ("open tools", ", ".join(name or "(nameless)" for name in one.open_tools)),
        ("parent", one.parent_id or ""),
        ("rerun of", one.retry_of or ""),
        ("breaker", one.breaker or ""),
        ("metadata", Text(str(one.metadata) if one.metadata else "", style="dim")),
    ]


def _print_timeline(history: list[Receipt], machine: Machine, created_at: float) -> None:
    out.print(Text("\ntimeline", style="bold"))
    rows: list[tuple[str, str, str, Text]] = []
    for receipt in history:
        moved = receipt.source != receipt.target
        target = state_text(receipt.target, machine.by_name[receipt.target].category)
        to = Text("→ ").append_text(target) if moved else Text("  ·", style="dim")
        rows.append((str(receipt.version), "+" + seconds_text(receipt.at - created_at), receipt.event, to))
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1))
    # On a narrow terminal the payload alone gives way.
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table.add_column(justify="right", style="dim", no_wrap=True, min_width=widths[0])
    table.add_column(justify="right", no_wrap=True, min_width=widths[1])
    table.add_column(no_wrap=True, min_width=widths[2])
    table.add_column(no_wrap=True, min_width=widths[3])
    table.add_column(overflow="ellipsis", no_wrap=True, style="dim")
    for row, receipt in zip(rows, history, strict=True):
        table.add_row(*row, _payload_text(receipt.payload))
    print_table(table)


def _payload_text(payload: dict[str, Any]) -> str:
    text = ", ".join(
        f"{name}={value if isinstance(value, str) else repr(value)}" for name, value in payload.items()
    )
    text = " ".join(text.split())
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"


def _print_durations(durations: dict[str, float], machine: Machine) -> None:
    total = sum(durations.values())
    out.print(Text("\ntime by phase", style="bold"))
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for state, seconds in sorted(durations.items(), key=lambda item: -item[1]):
        share = seconds / total if total else 0.0
        category = machine.by_name[state].category
        bar = Text("█" * max(round(share * 30), 1 if seconds else 0), style=state_text(state, category).style)
        bar.append(f" {share:.0%}", style="dim")
        table.add_row(state_text(state, category), seconds_text(seconds), bar)
    print_table(table)
