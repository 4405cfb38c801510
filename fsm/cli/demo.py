"""``fsm demo``: a small fleet of simulated agents, live, into a store that you can look at afterwards."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.text import Text

from fsm.cli.common import StoreOption, open_tracker, out, teaching
from fsm.cli.watch import frame
from fsm.errors import Refused
from fsm.records import Receipt, Retry
from fsm.timeouts import Timeouts
from fsm.tracker import Tracker

FLEET = 30
"""So many executions are started, spread over the first two thirds of the time."""
TOOLS = ("search", "read_file", "run_sql", "send_mail", "fetch_page")
QUESTION = "Refund 120 EUR to the customer?"


class _Agent:
    """One simulated agent: it drives its own execution through the table, with the fence of its claim."""

    def __init__(self, tracker: Tracker, rng: random.Random, pace_s: float) -> None:
        self.aio = tracker.aio
        self.rng = rng
        self.pace_s = pace_s
        self.id = ""
        self.fence: int | None = None

    async def create(self, name: str, user: str, **options: Any) -> None:
        execution = await self.aio.create(
            name, user_id=user, thread_id=f"{name}-{self.rng.randrange(1000)}", **options
        )
        self.id = execution.id

    async def fire(self, event: str, **payload: Any) -> Receipt:
        return await self.aio.fire(self.id, event, fence=self.fence, **payload)

    async def work(self, share: float = 1.0) -> None:
        """Take some time, as a model or a tool would."""
        await asyncio.sleep(self.pace_s * share * self.rng.uniform(0.5, 1.5))

    async def claim(self) -> None:
        await self.aio.fire(self.id, "enqueue")
        await self.work(0.4)
        await self.start()

    async def start(self) -> None:
        self.fence = (await self.aio.fire(self.id, "start")).fence
        await self.work(0.3)

    async def model(self, *, name: str = "gpt-5", onward: str = "think") -> None:
        await self.fire("call_model", name=name)
        await self.work()
        await self.fire(onward)

    async def tools(self, count: int) -> None:
        """Run several tools side by side; they end in whatever order they please."""

        async def one(name: str, number: int) -> None:
            await self.fire("open_tool", name=name, call_id=f"call-{number}")
            await self.work(1.2)
            await self.fire("close_tool", call_id=f"call-{number}", ok=self.rng.random() > 0.15)  # noqa: PLR2004

        await asyncio.gather(*(one(self.rng.choice(TOOLS), number) for number in range(count)))

    async def finish(self, result: Any) -> None:
        await self.fire("process_results")
        await self.work(0.4)
        await self.fire("finish")
        await self.work(0.2)
        await self.fire("complete", result=result)


async def _chat(agent: _Agent) -> None:
    await agent.create("support", "ada")
    await agent.claim()
    await agent.model(onward="run_tools")
    await agent.tools(1)
    await agent.model()
    await agent.finish("Your parcel arrives on Tuesday.")


async def _parallel_tools(agent: _Agent) -> None:
    await agent.create("researcher", "grace", metadata={"topic": "state machines"})
    await agent.claim()
    await agent.model(onward="run_tools")
    await agent.tools(agent.rng.randint(2, 5))
    await agent.model(name="claude", onward="run_tools")
    await agent.tools(2)
    await agent.finish({"sources": 7})


async def _model_that_fails(agent: _Agent) -> None:
    await agent.create("summarizer", "linus")
    await agent.claim()
    await agent.fire("call_model", name="gpt-5")
    for wait in (0.5, 1.0):
        await agent.work(0.5)
        await agent.fire("back_off", error="502 from the provider", retry_in_s=wait * agent.pace_s)
        await asyncio.sleep(wait * agent.pace_s)
        await agent.fire("call_model", name="gpt-5")
    await agent.work()
    await agent.fire("think")
    await agent.finish("Three bullet points.")


async def _provider_down(agent: _Agent) -> None:
    await agent.create("translator", "linus")
    await agent.claim()
    await agent.fire(
        "call_model", name="gpt-5", permit=False, breaker="openai:gpt-5", retry_in_s=3 * agent.pace_s
    )
    await agent.work(1.5)
    await agent.fire("think", note="falls back to the smaller model")
    await agent.model(name="llama-local")
    await agent.finish("Guten Tag.")


async def _retried(agent: _Agent) -> None:
    await agent.create("crawler", "grace", retry=Retry(attempts_max=2))
    await agent.claim()
    await agent.model(onward="run_tools")
    await agent.work(0.5)
    await agent.fire(
        "fail",
        error="connection reset by peer",
        retryable=True,
        retry_in_s=agent.pace_s,
        error_type="ConnectionError",
    )
    await asyncio.sleep(agent.pace_s)
    await agent.start()
    await agent.model()
    if agent.rng.random() > 0.5:  # noqa: PLR2004 - half of them fail for good
        await agent.finish(["page-1", "page-2"])
    else:
        await agent.fire("fail", error="connection reset by peer", error_type="ConnectionError")


async def _asks(agent: _Agent) -> None:
    await agent.create("refunds", "ada")
    await agent.claim()
    await agent.model()
    await agent.fire("await_input", question=QUESTION, expires_s=3600.0)
    await agent.work(2.5)  # somebody reads the question and makes up their mind
    verdict = agent.rng.choice(("approved", "approved", "refused"))
    await agent.aio.fire(agent.id, "receive_input", verdict=verdict, by="margaret")
    await agent.model(onward="run_tools")
    await agent.tools(1)
    await agent.finish({"refunded": verdict == "approved"})


async def _called_off(agent: _Agent) -> None:
    await agent.create("deep-research", "grace")
    await agent.claim()
    await agent.model(onward="run_tools")
    await agent.fire("open_tool", name="fetch_page")
    await agent.work(1.5)
    await agent.aio.fire(agent.id, "cancel", by="grace", reason="found it myself")
    await agent.work(0.5)
    await agent.fire("stopped", result="half a report")


async def _too_slow(agent: _Agent) -> None:
    limit_s = round(agent.pace_s * 2, 3)
    await agent.create("planner", "edsger", timeouts=Timeouts(phase_s=limit_s))
    await agent.claim()
    await agent.fire("call_model", name="gpt-5")
    await asyncio.sleep(limit_s)
    await agent.fire("time_out", kind="phase", late_s=0.0)


_SCRIPTS: tuple[Callable[[_Agent], Awaitable[None]], ...] = (
    _chat, _parallel_tools, _asks, _model_that_fails, _chat, _called_off, _retried, _provider_down,
    _parallel_tools, _too_slow,
)  # fmt: skip


async def _fleet(tracker: Tracker, seconds: float, seed: int) -> list[_Agent]:
    rng = random.Random(seed)  # noqa: S311 - a show, not a secret
    agents: list[_Agent] = []

    async def one(number: int) -> None:
        agent = _Agent(tracker, random.Random(rng.random()), seconds / 22)  # noqa: S311
        agents.append(agent)
        await asyncio.sleep(number / FLEET * seconds * 0.6)
        await _SCRIPTS[number % len(_SCRIPTS)](agent)

    try:
        await asyncio.gather(*(one(number) for number in range(FLEET)))
    except BaseException:
        await _call_off(tracker, agents)
        raise
    return agents


async def _call_off(tracker: Tracker, agents: list[_Agent]) -> None:
    """Leave nothing open when the show is stopped halfway."""
    for agent in agents:
        for event in ("cancel", "stopped"):
            try:
                if agent.id:
                    await tracker.aio.fire(agent.id, event)
            except Refused:
                break


async def _with_picture(tracker: Tracker, seconds: float, seed: int) -> list[_Agent]:
    recent: deque[Receipt] = deque(maxlen=6)
    with Live(frame(tracker, recent, 14), console=out, auto_refresh=False, transient=True) as live:

        async def paint() -> None:
            async for receipt in tracker.aio.subscribe(after=None):
                recent.append(receipt)

        async def refresh() -> None:
            while True:
                picture = await asyncio.to_thread(frame, tracker, recent, 14)
                live.update(picture, refresh=True)
                await asyncio.sleep(0.15)

        helpers = [asyncio.create_task(paint()), asyncio.create_task(refresh())]
        try:
            return await _fleet(tracker, seconds, seed)
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
    """Run a small fleet of simulated agents: models fail, tools run in parallel, people answer and cancel.

    Everything goes into the store (./fsm.db), so that the other commands have something to show.
    """
    tracker = open_tracker(store)
    begin = tracker.position()
    run = _with_picture if out.is_terminal else _fleet
    try:
        agents = asyncio.run(run(tracker, seconds, seed))
    except KeyboardInterrupt:
        out.print("Stopped; what was open was called off.")
        raise typer.Exit(130) from None
    transitions = sum(1 for row in tracker.subscribe(after=begin, follow=False) if row.version)
    _print_end(tracker, agents, transitions)


def _print_end(tracker: Tracker, agents: list[_Agent], transitions: int) -> None:
    ends: dict[str, int] = {}
    for agent in agents:
        state = tracker.get(agent.id).state
        ends[state] = ends.get(state, 0) + 1
    said = ", ".join(f"{count} {state}" for state, count in sorted(ends.items(), key=lambda item: -item[1]))
    out.print(
        f"[bold]{len(agents)}[/] agents made [bold]{transitions}[/] transitions: {said}. "
        f"All of it is in {tracker.store_url}\n"
    )
    one = next((agent.id for agent in agents if tracker.get(agent.id).agent == "refunds"), agents[0].id)
    store = "" if tracker.store_url == "sqlite:///fsm.db" else f" --store {tracker.store_url}"
    out.print(Text("What to type next", style="bold"))
    for what, command in (
        ("every execution", f"fsm list{store}"),
        ("one of them, step by step", f"fsm show {one}{store}"),
        ("the way that it took, drawn", f"fsm diagram execution --execution {one}{store} -o way.svg"),
        ("the registry, live: start another fsm demo beside it", f"fsm watch{store}"),
    ):
        out.print(Text.assemble((f"  # {what}\n", "dim"), (f"  {command}", "bold cyan")), soft_wrap=True)
