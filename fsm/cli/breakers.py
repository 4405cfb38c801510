"""``fsm breakers`` and ``fsm breaker``: the circuit breakers of a store, and orders to one of them."""

from __future__ import annotations

import getpass
from enum import StrEnum, auto
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
from fsm.lifecycles.breaker import BREAKER, CLOSED, FORCED_OPEN, OPEN
from fsm.stores.breakers import BreakerEntry

HISTORY = 20
"""Number of a breaker's last changes that are shown."""


class Order(StrEnum):
    """What a person may tell a breaker."""

    OPEN = auto()
    DISABLE = auto()
    RESET = auto()


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
            f"in {seconds_text(one.retry_after_s)}" if one.state == OPEN else "",
            str(one.probes or ""),
            str(one.openings or ""),
        )
    out.print(table)


@teaching
def breaker_command(
    key: Annotated[str, typer.Argument(metavar="KEY", help="What the breaker protects.")],
    order: Annotated[
        Order | None,
        typer.Argument(
            metavar="[open|disable|reset]", help="What it is to do; leave it out to show the breaker."
        ),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who gives the order; your login by default.")] = None,
    why: Annotated[str | None, typer.Option(help="Why; it is noted in the journal.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show one breaker, hold it open, switch it off or reset it.

    A key that the store does not know can be held open or switched off in advance, and the output says so; to show or
    to reset such a key is an error (exit code 2).

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
            fail(f"the order did not reach the store: {problem}")
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
    """Stop the polls: a command looks once."""
    breakers.poll_every(None)
    return breakers


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "unknown user"


def _as_data(one: BreakerStatus) -> dict[str, Any]:
    data = one._asdict()
    # This process has made no call, so it has counted nothing.
    for name in ("failures", "calls", "local", "known"):
        del data[name]
    return data


def _state_text(state: str) -> Text:
    style = {CLOSED: "green", OPEN: "red", FORCED_OPEN: "red"}.get(state)
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
