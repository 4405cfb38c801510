"""``fsm demo``: a small fleet of agents on the engine, live, into a store that you can look at afterwards."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from fsm import ids as ids_made
from fsm.cli.common import call_off, made_since, open_tracker, out, say_stopped, teaching
from fsm.cli.options import StoreOption, finite
from fsm.cli.watch import frame
from fsm.core.records import Execution, Receipt

if TYPE_CHECKING:
    from fsm.cli.show import Show
    from fsm.engine import Handle


async def _with_picture(show: Show) -> list[Handle]:
    tracker = show.tracker
    recent: deque[Receipt] = deque(maxlen=6)
    with Live(frame(tracker, tracker, recent, 14), console=out, auto_refresh=False, transient=True) as live:

        async def paint() -> None:
            async for receipt in tracker.aio.subscribe(after=None):
                recent.append(receipt)

        async def refresh() -> None:
            while True:
                picture = await asyncio.to_thread(frame, tracker, tracker, recent, 14)
                live.update(picture, refresh=True)
                await asyncio.sleep(0.15)

        helpers = [asyncio.create_task(paint()), asyncio.create_task(refresh())]
        try:
            return await show.run()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)


@teaching
def demo_command(
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600.0, callback=finite, help="How long the show takes, about.")
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Another number, another show.")] = 7,
    store: StoreOption = None,
) -> None:
    """Run a small fleet of agents: models fail, tools run in parallel, people answer and cancel, some must queue.

    They are simulated, but for one of pydantic-ai (where that is installed), and all of them run on the engine.
    Everything goes into the store (./fsm.db), so that the other commands have something to show.
    """
    tracker = open_tracker(store)
    begin, first = tracker.position(), ids_made.execution_id()
    from fsm.cli.show import Show  # noqa: PLC0415 - it brings the engine along
    from fsm.cli.terminated import ended_by_sigterm  # noqa: PLC0415 - as above

    logging.getLogger("fsm").addHandler(logging.NullHandler())
    show = Show(tracker, seconds, seed)
    try:
        work = _with_picture(show) if out.is_terminal else show.run()
        asyncio.run(ended_by_sigterm(show.engine, work))
    except KeyboardInterrupt:
        call_off(tracker, _mine(show, first))
        say_stopped(_mine(show, first))
    mine = list(_mine(show, first))
    ids = {one.id for one in mine}
    rows = tracker.subscribe(after=begin, follow=False)
    _print_end(show, mine, sum(1 for row in rows if row.version and row.execution_id in ids))


def _mine(show: Show, first: str) -> Iterator[Execution]:
    """Yield this show's executions, sub-agents' included; another show on the same store has its own."""
    return (one for one in made_since(show.tracker, first) if one.thread_id in show.threads)


def _print_end(show: Show, mine: list[Execution], transitions: int) -> None:
    tracker = show.tracker
    ends = Counter(one.state for one in mine)
    said = ", ".join(f"{count} {state}" for state, count in ends.most_common())
    children = sum(one.parent_id is not None for one in mine)
    out.print(
        f"[bold]{len(mine) - children}[/] agents and [bold]{children}[/] sub-agents made [bold]{transitions}[/] "
        f"transitions: {said}. All of it is in {escape(tracker.store_url)}\n",
        markup=True,
    )
    if show.real is None:
        out.print("All of them were simulated: pip install 'agent-fsm[pydantic-ai]' adds a real one.\n")
    wanted = "refunds" if show.real is None else "researcher (pydantic-ai)"
    one = next((one.id for one in mine if one.agent == wanted), mine[0].id)
    store = "" if tracker.store_url == "sqlite:///fsm.db" else f" --store {tracker.store_url}"
    out.print(Text("What to type next", style="bold"))
    for what, command in (
        ("every execution", f"fsm list{store}"),
        ("one of them, step by step", f"fsm show {one}{store}"),
        ("the way that it took, drawn", f"fsm diagram execution --execution {one}{store} -o way.svg"),
        ("the registry, live: start another fsm demo beside it", f"fsm watch{store}"),
    ):
        out.print(Text.assemble((f"  # {what}\n", "dim"), (f"  {command}", "bold cyan")), soft_wrap=True)
