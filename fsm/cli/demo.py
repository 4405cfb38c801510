"""``fsm demo``: a small fleet of agents on the engine, live, into a store that you can look at afterwards."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from fsm.cli.common import StoreOption, open_tracker, out, teaching
from fsm.cli.watch import frame
from fsm.records import Receipt

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
        float, typer.Option(min=0.1, max=600.0, help="How long the show takes, about.")
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Another number, another show.")] = 7,
    store: StoreOption = None,
) -> None:
    """Run a small fleet of agents: models fail, tools run in parallel, people answer and cancel, some must queue.

    They are simulated, but for one of pydantic-ai (where that is installed), and all of them run on the engine.
    Everything goes into the store (./fsm.db), so that the other commands have something to show.
    """
    tracker = open_tracker(store)
    begin = tracker.position()
    from fsm.cli.show import Show  # noqa: PLC0415 - it brings the engine along

    logging.getLogger("fsm").addHandler(logging.NullHandler())
    show = Show(tracker, seconds, seed)
    try:
        asyncio.run(_with_picture(show) if out.is_terminal else show.run())
    except KeyboardInterrupt:
        out.print("Stopped; what was open was called off.")
        raise typer.Exit(130) from None
    transitions = sum(1 for row in tracker.subscribe(after=begin, follow=False) if row.version)
    _print_end(show, transitions)


def _print_end(show: Show, transitions: int) -> None:
    tracker, handles = show.tracker, show.handles
    ends: dict[str, int] = {}
    for handle in handles:
        ends[handle.state] = ends.get(handle.state, 0) + 1
    said = ", ".join(f"{count} {state}" for state, count in sorted(ends.items(), key=lambda item: -item[1]))
    out.print(
        f"[bold]{len(handles)}[/] agents made [bold]{transitions}[/] transitions: {said}. "
        f"All of it is in {escape(tracker.store_url)}\n",
        markup=True,
    )
    if show.real is None:
        out.print("All of them were simulated: pip install 'agent-fsm[pydantic-ai]' adds a real one.\n")
    wanted = "refunds" if show.real is None else "researcher (pydantic-ai)"
    one = next((handle.id for handle in handles if tracker.get(handle.id).agent == wanted), handles[0].id)
    store = "" if tracker.store_url == "sqlite:///fsm.db" else f" --store {tracker.store_url}"
    out.print(Text("What to type next", style="bold"))
    for what, command in (
        ("every execution", f"fsm list{store}"),
        ("one of them, step by step", f"fsm show {one}{store}"),
        ("the way that it took, drawn", f"fsm diagram execution --execution {one}{store} -o way.svg"),
        ("the registry, live: start another fsm demo beside it", f"fsm watch{store}"),
    ):
        out.print(Text.assemble((f"  # {what}\n", "dim"), (f"  {command}", "bold cyan")), soft_wrap=True)
