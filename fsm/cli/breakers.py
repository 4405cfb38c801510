"""``fsm breakers`` and ``fsm breaker``: the circuit breakers of a store, and orders to one of them."""

from __future__ import annotations

import getpass
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fsm.breakers import Breakers, BreakerStatus
from fsm.cli.common import (
    COLOURS,
    JsonOption,
    StoreOption,
    ago_text,
    clock_text,
    fail,
    open_tracker,
    out,
    print_json,
    seconds_text,
    teaching,
)
from fsm.errors import UnknownBreaker
from fsm.lifecycles.breaker import BREAKER
from fsm.stores.breakers import BreakerEntry

HISTORY = 20
"""So many of a breaker's last changes are shown."""


class Order(StrEnum):
    """What a person may tell a breaker."""

    OPEN = "open"
    DISABLE = "disable"
    RESET = "reset"


@teaching
def breakers_command(store: StoreOption = None, json: JsonOption = False) -> None:
    """List the circuit breakers that ever opened.

    With --json one object: breakers (one per key: key, state, generation, changed_at, retry_after_s, retry_at,
    openings, probes), error (why the store could not be asked, or null).
    """
    tracker = open_tracker(store, must_exist=True)
    breakers = _looked_at(tracker.breakers)
    status = breakers.status()
    if json:
        print_json({"breakers": [_as_data(one) for one in status.breakers], "error": status.error})
        return
    if status.error is not None:
        fail(f"the breakers could not be read: {status.error}")
    now = tracker.clock.wall()
    if not status.breakers:
        out.print(Text("no breaker has ever opened here", style="dim"))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("key", "state", "since", "next try", "probes", "openings"):
        table.add_column(name, no_wrap=name != "key")
    for one in status.breakers:
        table.add_row(
            one.key,
            _state_text(one.state),
            ago_text(one.changed_at, now) if one.changed_at else "",
            f"in {seconds_text(one.retry_after_s)}" if one.state == "open" else "",
            str(one.probes or ""),
            str(one.openings or ""),
        )
    out.print(table)


@teaching
def breaker_command(
    key: Annotated[str, typer.Argument(metavar="KEY", help="What the breaker protects.")],
    order: Annotated[
        Order | None,
        typer.Argument(metavar="[open|disable|reset]", help="What it shall do; nothing to look at it."),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who says so; your login if nothing is said.")] = None,
    why: Annotated[str | None, typer.Option(help="What for; it is noted in the journal.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show one breaker, hold it open, switch it off or reset it.

    A key of which the store knows nothing can be held open or switched off in advance, which is said; to look at it or
    to reset it is a mistake (exit code 2).

    With --json one object: breaker (as in fsm breakers), new (whether the store knew nothing of the key before this
    order), history (its last changes: position, key, version, event, source, target, generation, at, by, why).
    """
    tracker = open_tracker(store, must_exist=True)
    breakers = _looked_at(tracker.breakers)
    status = breakers.status_of(key)
    new = status.known != "stored"
    unknown = UnknownBreaker(status.key, [one.key for one in breakers.status().breakers])
    if new:
        if (problem := breakers.status().error) is not None:
            fail(f"the breakers could not be read: {problem}")
        if order in {None, Order.RESET}:
            raise unknown
    if order is not None:
        carry_out = {
            Order.OPEN: breakers.force_open,
            Order.DISABLE: breakers.disable,
            Order.RESET: breakers.reset,
        }
        carry_out[order](key, by=by or _login(), why=why)
        if (problem := breakers.status().error) is not None:
            fail(f"the order reached nobody: {problem}")
    status, history = breakers.status_of(key), breakers.history(key, HISTORY)
    if json:
        print_json(
            {"breaker": _as_data(status), "new": new, "history": [entry._asdict() for entry in history]}
        )
        return
    now = tracker.clock.wall()
    if new:
        hint = f"; did you mean {' or '.join(map(repr, unknown.near))}?" if unknown.near else ""
        out.print(Text(f"new: the store knew no breaker of this key before{hint}", style="yellow"))
    out.print(Text.assemble((status.key, "bold"), "  ", _state_text(status.state)))
    out.print(_timeline(history, now))


def _looked_at(breakers: Breakers) -> Breakers:
    """One look is enough for a command: nobody has to go on looking for changes."""
    breakers.poll_every(None)
    return breakers


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "somebody at the command line"


def _as_data(one: BreakerStatus) -> dict[str, Any]:
    data = one._asdict()
    # What this process saw is nothing: it has made no call.
    for name in ("failures", "calls", "local", "known"):
        del data[name]
    return data


def _state_text(state: str) -> Text:
    style = {"closed": "green", "open": "red", "forced_open": "red"}.get(state)
    return Text(state, style=style or COLOURS[BREAKER.by_name[state].category])


def _timeline(history: list[BreakerEntry], now: float) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for entry in history:
        table.add_row(
            clock_text(entry.at),
            Text(ago_text(entry.at, now), style="dim"),
            entry.event,
            Text.assemble("→ ", _state_text(entry.target)) if entry.source != entry.target else Text("·"),
            Text(" ".join(part for part in (entry.by, entry.why) if part), style="dim"),
        )
    return table
