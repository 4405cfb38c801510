"""The agents of ``fsm demo``: simulated ones of every kind, and a real one where its framework is installed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, NamedTuple

from fsm.breakers import Backoff, Consecutive, Policy
from fsm.core.records import Receipt, Retry
from fsm.engine import Engine, Handle, Run, Slots, SyncRun
from fsm.errors import BreakerOpen, Refused
from fsm.ids import execution_id
from fsm.machine.timeouts import Timeouts
from fsm.tracker.tracker import Tracker

FLEET = 30
"""So many executions are started, spread over the first half of the time; sub-agents come on top."""
AT_ONCE = 9
"""So many run at once: some have to queue, so that a queue can be seen."""
TOOLS = ("search", "read_file", "run_sql", "send_mail", "fetch_page")
QUESTION = "Refund 120 EUR to the customer?"
DOWN = "demo:provider-that-is-down"
FLAKY = "demo:provider-that-hiccups"


class ProviderError(Exception):
    """What a provider's client raises."""

    def __init__(self, message: str, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code


class Cast(NamedTuple):
    """One part in the show: an agent, whose it is, and how it is run."""

    agent: Callable[..., Any]
    user: str
    options: dict[str, Any]


class Show:
    """One show: its pace, its dice, and the parts."""

    def __init__(self, tracker: Tracker, seconds: float, seed: int) -> None:
        """Set the stage.

        Args:
            tracker: The tracker.
            seconds: How long it takes, about.
            seed: Another number, another show.
        """
        self.tracker = tracker
        self.rng = Random(seed)  # noqa: S311 - a show, not a secret
        self.seconds = seconds
        self.pace_s = seconds / 24
        self.engine = Engine(
            tracker, slots=Slots(total=AT_ONCE, per_user=4), patience_s=0.2, sweep_every_s=None
        )
        self.handles: list[Handle] = []
        self.mark = execution_id()[-6:]
        self.threads = {self.thread(number) for number in range(FLEET)}
        """The conversations of this show; another one on the same store has its own."""
        self._answers: set[asyncio.Task[None]] = set()
        self.real = _real_agent(self.pace_s)
        down = Policy(trip=(Consecutive(failures=1),), cooldown_s=max(0.05, 4 * self.pace_s))
        tracker.breakers.declare(DOWN, down)
        tracker.breakers.declare(FLAKY, Policy(trip=(Consecutive(failures=1_000),)))

    def thread(self, number: int) -> str:
        """Return the name of a conversation."""
        return f"thread-{number}-{self.mark}"

    async def work(self, share: float = 1.0) -> None:
        """Take some time, as a model or a tool would."""
        await asyncio.sleep(self.pace_s * share * self.rng.uniform(0.5, 1.5))

    def parts(self) -> list[Cast]:
        """Return the parts, in the order in which they come on."""
        patient = Retry(attempts_max=2, backoff_s=self.pace_s)
        hurried = Timeouts(phase_s=round(self.pace_s * 2, 3))
        return [
            Cast(self.support, "ada", {}),
            Cast(self.researcher, "grace", {"metadata": {"topic": "state machines"}}),
            Cast(self.refunds, "ada", {}),
            Cast(self.summarizer, "linus", {}),
            Cast(
                self.real or self.support,
                "barbara",
                {"agent_name": "researcher (pydantic-ai)"} if self.real else {},
            ),
            Cast(self.deep_research, "grace", {}),
            Cast(self.crawler, "grace", {"retry": patient}),
            Cast(self.translator, "linus", {}),
            Cast(self.coordinator, "margaret", {}),
            Cast(self.planner, "edsger", {"timeouts": hurried}),
            Cast(self.flight_finder, "margaret", {"fallback": "No flight today. Ask again tomorrow."}),
            Cast(self.billing, "edsger", {}),
        ]

    async def run(self) -> list[Handle]:
        """Let all of them play, and leave nothing open, even if the show is stopped halfway."""
        parts = self.parts()
        audience = asyncio.create_task(self._audience())
        try:
            async with self.engine, asyncio.TaskGroup() as group:
                for number in range(FLEET):
                    group.create_task(self._one(number, parts[number % len(parts)]))
        finally:
            audience.cancel()
            await asyncio.gather(audience, return_exceptions=True)
        return self.handles

    async def _one(self, number: int, part: Cast) -> None:
        await asyncio.sleep(number / FLEET * self.seconds * 0.5)
        args = ("How many people live in Oslo, and where is it?",) if part.agent is self.real else ()
        handle = await self.engine.submit(
            part.agent, *args, user_id=part.user, thread_id=self.thread(number), **part.options
        )
        self.handles.append(handle)
        if part.agent == self.deep_research:
            await asyncio.sleep(self.pace_s * 4)
            await handle.cancel("found it myself", by="grace")
        await handle.outcome()

    async def _audience(self) -> None:
        """Be the people who answer, from outside: over the tracker, as a web page would."""
        async for receipt in self.tracker.aio.subscribe():
            if receipt.event == "await_input":
                self._answers.add(task := asyncio.create_task(self._answer(receipt)))
                task.add_done_callback(self._answers.discard)

    async def _answer(self, asked: Receipt) -> None:
        await self.work(2.5)  # somebody reads the question and makes up their mind
        verdict = self.rng.choice(("approved", "approved", "refused"))
        try:
            await self.tracker.aio.fire(asked.execution_id, "receive_input", verdict=verdict, by="margaret")
        except Refused:
            return  # somebody else was faster: 'fsm answer' in another terminal, say

    # --- the parts ----------------------------------------------------------------------------------------------

    async def model(self, run: Run, name: str = "gpt-5") -> None:
        """Call a model that answers."""
        async with run.model(name, breaker=f"demo:{name}") as call:
            await self.work()
            call.usage(input_tokens=self.rng.randrange(200, 4000), output_tokens=self.rng.randrange(20, 400))

    async def tools(self, run: Run, count: int) -> None:
        """Run several tools side by side; they end in whatever order they please."""

        async def one(name: str) -> None:
            async with run.tool(name) as call:
                await self.work(1.2)
                if self.rng.random() < 0.15:  # noqa: PLR2004 - some fail, and the agent goes on
                    call.failed("502 from the server")

        await asyncio.gather(*(one(self.rng.choice(TOOLS)) for _ in range(count)))

    async def support(self, run: Run) -> str:
        """Answer a customer."""
        await self.model(run)
        await self.tools(run, 1)
        await self.model(run)
        return "Your parcel arrives on Tuesday."

    async def researcher(self, run: Run) -> dict[str, int]:
        """Use many tools at once."""
        await self.model(run)
        await self.tools(run, self.rng.randint(2, 5))
        await self.model(run, "claude")
        await self.tools(run, 2)
        return {"sources": 7}

    async def refunds(self, run: Run) -> dict[str, bool]:
        """Ask a person first."""
        await self.model(run)
        answer = await run.ask(QUESTION, expires_s=3600.0)
        await self.tools(run, 1)
        return {"refunded": answer.approved}

    async def summarizer(self, run: Run) -> str:
        """Meet a provider that hiccups, and back off."""
        tries = 0

        async def ask() -> str:
            nonlocal tries
            tries += 1
            await self.work(0.5)
            if tries < 3:  # noqa: PLR2004 - the third try
                raise ProviderError("502 from the provider", 502)
            return "Three bullet points."

        pauses = Backoff(attempts=3, initial_s=max(0.001, self.pace_s), max_s=max(0.002, 2 * self.pace_s))
        return await run.call_model("gpt-5", ask, breaker=FLAKY, backoff=pauses)

    async def translator(self, run: Run) -> str:
        """Meet a provider that is down, and take a smaller model."""
        try:
            async with run.model("gpt-5", breaker=DOWN):
                await self.work(0.5)
                raise ProviderError("503 from the provider", 503)  # noqa: TRY301 - to be caught here
        except (BreakerOpen, ProviderError):
            await self.work(0.5)
        await self.model(run, "llama-local")
        return "Guten Tag."

    async def crawler(self, run: Run) -> list[str]:
        """Fail once, and sometimes twice."""
        await self.model(run)
        await self.work(0.5)
        if run.attempt == 1 or self.rng.random() < 0.5:  # noqa: PLR2004 - half of them fail for good
            raise ConnectionError("connection reset by peer")
        return ["page-1", "page-2"]

    async def deep_research(self, run: Run) -> str:
        """Take too long for the one who waits."""
        await self.model(run)
        async with run.tool("fetch_page"):
            await asyncio.sleep(self.seconds)
        return "a report"

    async def planner(self, run: Run) -> str:
        """Take too long for its limit."""
        async with run.model("gpt-5", breaker="demo:gpt-5"):
            await asyncio.sleep(self.seconds)
        return "a plan"

    async def coordinator(self, run: Run) -> str:
        """Let two others work."""
        await self.model(run)
        await asyncio.gather(*(run.child(self.support, agent_name=name) for name in ("reader", "writer")))
        return "Both are done."

    async def flight_finder(self, run: Run) -> str:
        """Fail, and have an answer ready for it."""
        await self.model(run)
        raise LookupError("the airline's server sent a page of advertisements")

    def billing(self, run: SyncRun) -> float:
        """Be a plain function, in a thread."""
        with run.model("gpt-5", breaker="demo:gpt-5"):
            time.sleep(self.pace_s)
        with run.tool("run_sql", arguments={"sql": "SELECT sum(amount) FROM invoices"}) as call:
            time.sleep(self.pace_s)
            call.result = 1204.5
        return 1204.5


def _real_agent(pace_s: float) -> Callable[..., Coroutine[Any, Any, Any]] | None:
    """Return a pydantic-ai agent that needs no network, if pydantic-ai is installed."""
    os.environ.setdefault("PYDANTIC_AI_NO_BANNER", "1")  # on a terminal it would be drawn over the fleet
    try:
        from fsm.integrations.demo_agent import researcher  # noqa: PLC0415 - an extra
        from fsm.integrations.pydantic_ai import tracked  # noqa: PLC0415
    except ImportError:
        return None

    async def real(run: Run, question: str) -> Any:
        return await tracked(researcher(pace_s))(run, question)

    return real
