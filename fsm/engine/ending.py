"""How an execution's end is said: once, whatever comes in between, and nothing is left open behind it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import Any

from fsm.core.records import Receipt
from fsm.core.results import clipped, described, jsonable, why
from fsm.engine.connection import Link, RunOver
from fsm.engine.functions import Agent
from fsm.engine.policy import Conduct
from fsm.engine.run import UNHEARD, Run
from fsm.engine.runtime import Home, Late
from fsm.engine.tasks import Dismissible
from fsm.errors import BadPayload, BreakerOpen, LimitReached, PrerequisiteFailed, Refused, StoreUnavailable

logger = logging.getLogger(__name__)

END_TRIES = 40
"""So often an end is handed in while the store does not answer, some five minutes long; what an agent has worked out is
not thrown away sooner. Then the execution's deadline is left to end it."""
FEW_TRIES = 6
"""So often, some six seconds long, what a new attempt or another process can do as well, or when the engine closes."""
END_WAIT_S = 0.1
"""The first wait between two tries, in seconds; it doubles."""
END_WAIT_MAX_S = 10.0
"""The longest wait between two tries, in seconds."""
DISMISSED = "went on after every cancellation, and was closed"
MAX_LEFT_OPEN = 1_000
"""So many forgotten tools are closed at the end; a table does not let more be open."""


class Ending:
    """The part of a drive that ends its execution."""

    def __init__(self, home: Home, link: Link, run: Run, agent: Agent, conduct: Conduct) -> None:
        """Prepare; `Drive` does."""
        self.home = home
        self.link = link
        self.run = run
        self.agent = agent
        self.result: Any = None
        self.error: BaseException | None = None
        self.fell_back = False
        self._said = False
        self._leaving = False
        self._conduct = conduct
        self._task: asyncio.Task[Any] | None = None
        self._working: Dismissible[Any] | None = None
        self._own_cancels = 0

    def _retryable(self, error: BaseException) -> bool:
        if self.fell_back or isinstance(error, (PrerequisiteFailed, LimitReached)):
            return False
        return isinstance(error, self._conduct.retry_on)

    # --- the end ------------------------------------------------------------------------------------------------

    async def _stop(self, task: asyncio.Task[Any]) -> None:
        """Cancel the agent, wait for it as long as its grace allows, and then go on without it."""
        task.cancel()
        await asyncio.wait({task, self.link.gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await asyncio.wait({task}, timeout=self._conduct.patience_s)
        if not task.done():
            self._abandon(task)

    def _abandon(self, task: asyncio.Task[Any], *, leaving: bool = False) -> None:
        home, link, name, run = self.home, self.link, self.agent.name, self.run
        ended_at = home.registry.now()
        run.abandoned = True
        home.stragglers[link.id] = name
        logger.warning(
            "%s: the agent %r did not stop although its execution is %s; it goes on without one",
            link.id, name, link.snapshot.state,
        )  # fmt: skip

        def late(done: asyncio.Task[Any]) -> None:
            late_s = home.registry.now() - ended_at
            if self._working is None or not self._working.ignored:
                home.stragglers.pop(link.id, None)
            if run.thread is not None and run.thread.is_alive():
                home.goes_on(link.id, name, run.thread)
            if self._working is not None and self._working.dismissed:
                self._late(None, RuntimeError(DISMISSED), late_s=late_s)
            else:
                self._late(*came_to(done), late_s=late_s)

        task.add_done_callback(late)
        if leaving or self.agent.inline:
            # A thread cannot be cancelled; its task stays, to hear how it ends, while there is a loop.
            self._own_cancels = 0 if leaving else task.cancelling() + 1
            task.cancel()

    def _told(self) -> None:
        """Hear of a cancellation that the agent is about to be given.

        One that goes on without an execution is told to end by whoever ends the event loop, which would wait for it
        for ever. It has the patience once more, and then it is closed
        (`tests/test_hostile_engine.py::test_an_agent_that_swallows_every_cancellation_does_not_keep_the_loop`). What it
        takes back itself, as `asyncio.timeout` does, counts as obeyed.
        """
        task = self._task
        if task is None or not self.run.abandoned:
            return
        asked, own, self._own_cancels = task.cancelling(), self._own_cancels, 0
        if own and asked <= own:
            return
        self.home.loop.call_later(self._conduct.patience_s, self._dismiss, task, asked)

    def _dismiss(self, task: asyncio.Task[Any], asked: int) -> None:
        working = self._working
        if task.done() or task.cancelling() < asked or working is None or working.dismissed:
            return
        logger.error("%s: the agent %r %s", self.link.id, self.agent.name, DISMISSED)
        working.dismiss()
        task.cancel()

    def _late(self, result: Any, error: BaseException | None, late_s: float = 0.0) -> None:
        """Remember what an agent came to after the end; its record is closed."""
        if isinstance(error, asyncio.CancelledError):
            return
        said = None if error is None else why(error)
        late = Late(self.link.id, self.agent.name, late_s, jsonable(result), said)
        self.home.late.append(late)
        logger.warning("%s: the agent %r came to an end %.3g s late: %s", *late[:3], said or "it returned")

    async def close(self, result: Any, error: BaseException | None) -> bool:
        """Say how the agent ended.

        Args:
            result: What it returned.
            error: What it raised, a cancellation included; ``None`` if it returned.

        Returns:
            Whether it is to be tried again.
        """
        link = self.link
        self.run.end()
        await link.settled()
        link.look()
        if link.gone.done():
            if not self._said:
                self._late(result, error)
            return False
        link.letting_go = True  # from here on it is us who let go of it
        if link.stop.done():
            await self._stopped(result, error)
            return False
        again = await (self._completed(result) if error is None else self._failed(error))
        if not again and not self._said and not link.gone.done():
            # It was called off while the end was on its way: now that is what has to be ended.
            with contextlib.suppress(StoreUnavailable):
                await link.refresh()
            if link.stop.done() and not link.gone.done():
                await self._stopped(result, error)
        return again

    async def _stopped(self, result: Any, error: BaseException | None) -> None:
        if error is None:
            self.result = result
            await self._say("stopped", {"result": self._kept(result), "outcome": "late"})
        elif isinstance(error, asyncio.CancelledError):
            await self._say("stopped", {})
        else:
            self.error = error
            await self._say("fail", described(error))

    async def _completed(self, result: Any) -> bool:
        if "withdraw" in self.link.machine.by_source[self.link.state]:
            await self._say("withdraw", UNHEARD, key=False)
        for name, call_id in self.link.snapshot.tools[:MAX_LEFT_OPEN]:
            logger.warning("%s: the agent left the tool %r open; it is closed now", self.link.id, name)
            note = {"ok": False, "note": "still open when the agent returned"}
            which = {"name": name} if call_id is None else {"call_id": call_id}
            await self._say("close_tool", {**which, **note}, key=False)
        payload: dict[str, Any] = {"result": self._kept(result)}
        if self.fell_back:
            payload["outcome"] = "fallback"
        self.result = result
        try:
            await self._say("complete", payload, strict=True)
        except Refused as refused:
            self.result = None
            return await self._failed(refused)
        return False

    async def _failed(self, error: BaseException) -> bool:
        self.error = error
        if isinstance(error, LimitReached):
            await self._say("time_out", {"kind": "limit", "note": str(error), "outcome": "limit"})
            return False
        payload = {**described(error), "retryable": self._retryable(error)}
        if isinstance(error, PrerequisiteFailed):
            payload["outcome"] = "refused"
        if isinstance(error, BreakerOpen):
            payload["retry_in_s"] = error.retry_after_s
        await self._say("fail", payload)
        link = self.link
        if link.ended or link.gone.done():
            if isinstance(error, Exception):
                with contextlib.suppress(Exception):
                    error.add_note(f"execution {link.id}")
            return False
        again = link.snapshot.owner is None
        link.fence, link.letting_go, self._said = None, False, False
        link.look()
        return again

    def _kept(self, result: Any) -> Any:
        return jsonable(result) if self._conduct.record else None

    async def _say(
        self, event: str, payload: dict[str, Any], *, key: bool = True, strict: bool = False
    ) -> Receipt | None:
        """Hand in what must not be lost, again and again if the store does not answer.

        Args:
            event: The event.
            payload: What comes with it.
            key: Whether it is said at most once in this attempt.
            strict: Whether to raise a refusal; otherwise somebody else has said the end, and that is that.
        """
        link = self.link
        once = f"{event}:{link.snapshot.fence}" if key else None
        failure: StoreUnavailable | None = None
        for tried, wait_s in enumerate(_pauses(), start=1):
            if tried > self._tries:
                break
            try:
                if failure is not None:
                    await link.refresh()  # perhaps it was committed, in part or all of it
                receipt = await link.fire(event, payload, key=once)
            except RunOver:
                return None
            except Refused as refused:
                link.look()
                if strict and not link.stop.done():
                    raise
                logger.debug("%s: %s", link.id, refused)
                return None
            except BadPayload as error:
                logger.warning("%s: what comes with %r is left out: %s", link.id, event, error)
                payload = {"note": clipped(str(error))}
            except StoreUnavailable as error:
                failure = error
                logger.warning(
                    "%s: %r was not taken (%d of %d): %s", link.id, event, tried, self._tries, error
                )
                await asyncio.sleep(wait_s)
            else:
                self._said = self._said or key
                return receipt
        logger.error("%s: %r could not be recorded; its deadline will end it", link.id, event)
        self.error = self.error or failure
        return None

    @property
    def _tries(self) -> int:
        """How often an end is handed in; fewer as soon as the engine is closed."""
        return FEW_TRIES if self._leaving else END_TRIES

    async def _surely(self, do: Callable[[], Awaitable[None]]) -> None:
        """Do what may be done twice, again if the store does not answer."""
        for tried, wait_s in few_tries():
            try:
                await do()
            except StoreUnavailable as error:
                logger.warning("%s: not let go of (%d of %d): %s", self.link.id, tried, FEW_TRIES, error)
                await asyncio.sleep(wait_s)
            else:
                return

    async def _quiet(self) -> None:
        """Let the agent stop, within the patience."""
        task = self._task
        if task is None or task.done():
            return
        task.cancel()
        await asyncio.wait({task}, timeout=self._conduct.patience_s)
        if not task.done():
            self._abandon(task, leaving=True)


def _pauses() -> Iterator[float]:
    """Yield the waits between tries, in seconds."""
    wait_s = END_WAIT_S
    while True:  # whoever draws has a limit of its own
        yield wait_s
        wait_s = min(2.0 * wait_s, END_WAIT_MAX_S)


def few_tries() -> Iterator[tuple[int, float]]:
    """Return the numbers of a few tries, from 1, each with the wait after it, in seconds."""
    return enumerate(islice(_pauses(), FEW_TRIES), start=1)


class Leaves(Exception):
    """Carries SystemExit and KeyboardInterrupt out of an agent's task: asyncio would end the loop at once."""


def came_to(task: asyncio.Task[Any]) -> tuple[Any, BaseException | None]:
    """Return what a task came to: its result, or its error."""
    if task.cancelled():
        return None, asyncio.CancelledError("the agent was cancelled from inside")
    error = task.exception()
    if isinstance(error, Leaves):
        error = error.__cause__
    return (None, error) if error is not None else (task.result(), None)
