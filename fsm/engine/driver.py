"""The life of one execution, from its place in the queue to its end: whatever its agent does, the table has a row.

    queue -> claim -> the agent runs -> its end is said
      ^                                    |
      +---- fail [an attempt is left] -----+

An end is said once: by the agent's return or exception, by a deadline, by a cancel, or by whoever took the execution
away. The agent's task is told to stop as soon as anything else than its own return has ended the run, and what it
still says then is `RunOver` for it and late for the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Mapping
from contextvars import copy_context
from typing import Any

from fsm.concurrency.supervised import one_line
from fsm.core.results import described
from fsm.engine.connection import Link, RunOver
from fsm.engine.ending import FEW_TRIES, Ending, Leaves, came_to, few_tries
from fsm.engine.functions import Agent, Emit
from fsm.engine.outcome import Outcome, outcome_of
from fsm.engine.policy import Conduct, Value, ask
from fsm.engine.run import Run, _current
from fsm.engine.runtime import Home, Seat
from fsm.engine.tasks import Dismissible, Undisturbed
from fsm.errors import (
    FsmError,
    LeaseLost,
    Refused,
    StoreUnavailable,
)

logger = logging.getLogger(__name__)


class Drive(Ending):
    """Drives one execution."""

    def __init__(  # noqa: PLR0913, PLR0917 - an execution and all that belongs to it
        self,
        home: Home,
        link: Link,
        seat: Seat,
        run: Run,
        agent: Agent,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        conduct: Conduct,
        emit: Emit | None = None,
    ) -> None:
        """Prepare; the engine does."""
        super().__init__(home, link, run, agent, conduct)
        self.seat = seat
        self.followed = False
        self._claiming = False
        self._alive = False
        self._args = args
        self._kwargs = kwargs
        self._emit = emit

    # --- the whole life -----------------------------------------------------------------------------------------

    async def life(self) -> Outcome:
        """Drive it to its end, and leave nothing behind: no task, no slot, no listener."""
        self._alive, torn = True, False
        try:
            try:
                await self._live()
            except asyncio.CancelledError:
                await self.leave("the engine was closed")
        except Exception as error:
            logger.exception("%s: it could not be driven any more", self.link.id)
            await Undisturbed(self._broken(error))
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            # Its loop was closed under it, or is about to be: whoever speaks at exit needs its link.
            torn = True
            raise
        finally:
            if not torn:
                self.finish()
        if self.link.machine.outcomes.get(self.link.snapshot.state) == "cancelled":
            with contextlib.suppress(FsmError, asyncio.CancelledError):
                await self.link.why_called_off()
        if isinstance(self.error, (SystemExit, KeyboardInterrupt)):
            raise self.error  # it is recorded; now it does what it would do without an engine
        return outcome_of(self)

    def finish(self) -> None:
        """Leave nothing behind: no slot, no listener."""
        self.run.end()
        self.seat.close()
        self.link.close()

    def never_begun(self) -> None:
        """Clean up after a life that was cancelled before its first step, when nothing of it could run."""
        if self._alive:
            return
        link, registry = self.link, self.home.registry
        leaves = self.agent.resumable
        event, payload = (
            ("enqueue", {}) if leaves else ("cancel", {"reason": "it was not begun", "by": "engine"})
        )
        try:
            if not leaves or event in link.machine.by_source[link.snapshot.state]:
                registry.carry_all([registry.order(link.id, event, payload)])
        except Exception as error:  # noqa: BLE001 - a callback of the event loop: nothing else would clean up
            logger.warning("%s: it was not begun, and could not be ended: %s", link.id, one_line(error))
        finally:
            self.finish()

    async def _broken(self, error: Exception) -> None:
        """End what cannot be driven: a defect of ours, or a machine that is not made for an engine."""
        self.error = error
        await self._quiet()
        with contextlib.suppress(Exception):
            await self._say("fail", described(error))

    async def _live(self) -> None:
        link = self.link
        while await self.begin():
            context = copy_context()
            context.run(_current.set, self.run)
            self._task = task = self.home.loop.create_task(
                self._call(), name=f"fsm-{self.agent.name}", context=context
            )
            await asyncio.wait({task, link.stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await self._stop(task)
            if not task.done() or not await self.close(*came_to(task)):
                return
            self._task = None
            self.run = self.run.anew()
            await self._pause()

    # --- the beginning ------------------------------------------------------------------------------------------

    async def begin(self) -> bool:
        """Wait for a slot and claim the execution; return whether there is anything to be done."""
        link = self.link
        if link.gone.done():
            return False
        try:
            if not self.seat.take_now():
                if "enqueue" in link.machine.by_source[link.state]:
                    await link.fire("enqueue")
                await self._unless_gone(self.seat.take())
            if link.gone.done():
                return False
            await self._claim("validate" if self._conduct.before else "start")
        except (RunOver, Refused) as refused:
            # It was called off, or somebody else has claimed it: the link has heard of it, or will in a moment.
            logger.debug("%s: not begun: %s", link.id, refused)
            await self._follow()
            return False
        except FsmError as error:
            self.error = error
            logger.exception("%s: could not be begun", link.id)
            return False
        return not link.gone.done()

    async def _follow(self) -> None:
        """Wait for the end of an execution that another engine has claimed: whoever waits here wants to know it."""
        link = self.link
        with contextlib.suppress(StoreUnavailable):
            await link.refresh()
        if link.snapshot.owner is not None and not link.gone.done():
            self.followed = True
            self.seat.give()
            await asyncio.wait({link.gone})

    async def _claim(self, event: str) -> None:
        link = self.link
        before = link.snapshot.fence
        self._claiming = True
        for tried, wait_s in few_tries():
            try:
                link.fence = (await link.fire(event)).fence
                break
            except LeaseLost:
                if tried == FEW_TRIES:
                    raise
                self.home.register_anew()
            except StoreUnavailable as error:
                if tried == FEW_TRIES:
                    raise
                logger.warning("%s: %r was not taken (%d of %d): %s", link.id, event, tried, FEW_TRIES, error)
                await asyncio.wait({link.gone}, timeout=wait_s)
                if await self._claimed(before):
                    break
            if link.gone.done():
                break
        self._claiming = False
        link.look()  # somebody may have taken it away between the commit and now

    async def _claimed(self, before: int) -> bool:
        """Whether a claim of which nobody can tell was committed after all."""
        link = self.link
        with contextlib.suppress(StoreUnavailable):
            await link.refresh()
        snapshot = link.snapshot
        if (
            snapshot.owner is None
            or snapshot.owner != self.home.registry.worker_id
            or snapshot.fence == before
        ):
            return False
        link.fence = snapshot.fence
        return True

    async def _unless_gone(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Wait for something, but not beyond the execution's end."""
        task = self.home.loop.create_task(coroutine)
        try:
            await asyncio.wait({task, self.link.gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    async def _pause(self) -> None:
        """Wait, without a slot, until the next attempt may begin."""
        self.seat.give()
        snapshot = self.link.snapshot
        if snapshot.not_before is not None:
            delay_s = snapshot.not_before - self.home.registry.now()
            await asyncio.wait({self.link.gone}, timeout=max(0.0, delay_s))

    # --- the agent ----------------------------------------------------------------------------------------------

    async def _call(self) -> Any:
        """Run the agent, and keep what would end the event loop until its execution has ended."""
        try:
            self._working = working = Dismissible(self._work(), self._told)
            return await working
        except (SystemExit, KeyboardInterrupt) as error:
            raise Leaves from error

    async def _work(self) -> Any:
        """Run the agent with its hooks, and what takes its place if it fails for good."""
        await self.check_before()
        try:
            result = await self.agent.call(self.run, self._args, self._kwargs, self._emit)
            await self._check(result)
        except Exception as error:
            if not self._falls_back(error):
                raise
            result = await self._fall_back(error)
        return result

    async def check_before(self) -> None:
        """Ask the checks that stand before the agent, and start."""
        for hook in self._conduct.before:
            await ask(hook, self.run)
        if "start" in self.link.machine.by_source[self.link.state]:
            await self.link.fire("start")

    async def _check(self, result: Any) -> None:
        for hook in self._conduct.after:
            await ask(hook, self.run, result)

    def _falls_back(self, error: Exception) -> bool:
        again = self._retryable(error) and self.link.attempts_left
        return self._conduct.fallback is not None and not self.link.stop.done() and not again

    async def _fall_back(self, error: Exception) -> Any:
        fallback = self._conduct.fallback
        assert fallback is not None  # noqa: S101 - the caller has looked
        name = fallback.name if isinstance(fallback, Agent) else "result"
        run = self.run = self.run.anew()
        _current.set(run)
        await self.link.fire("fall_back", {**described(error), "to": name})
        self.fell_back, self.error = True, error
        if isinstance(fallback, Value):
            return fallback.value
        await run.ready()
        result = await fallback.call(run, self._args, self._kwargs, self._emit)
        await self._check(result)
        return result

    # --- from outside -------------------------------------------------------------------------------------------

    async def call_off(self, reason: str | None, by: str | None) -> None:
        """Fire ``cancel``; nothing happens if it is over."""
        link = self.link
        said = (("reason", reason), ("by", by))
        payload: dict[str, Any] = {name: value for name, value in said if value is not None}
        try:
            await link.order("cancel", payload)
        except Refused:
            link.look()

    async def call_off_surely(self, reason: str, by: str | None = None) -> None:
        """Do the same, again if the store does not answer; after a few tries its deadline is left to end it."""
        await self._surely(lambda: self.call_off(reason, by))

    async def leave(self, reason: str) -> None:
        """Leave, although somebody cancels again meanwhile: a caller gives up, and then the engine is closed.

        What has been done of it is passed over
        (`tests/test_engine_leftovers.py::test_whoever_is_cancelled_again_while_it_leaves_leaves_all_the_same`).
        """
        self._leaving = True
        await Undisturbed(self._leave(reason))
        if not (self.link.ended or self.followed or self.home.elsewhere):
            self.home.left_open(self.link)

    async def _leave(self, reason: str) -> None:
        """Stop because the process or the engine stops: hand the execution back if another may go on, else end it."""
        link, task = self.link, self._task
        self.run.end()
        if self.followed or self.home.elsewhere:
            return  # another engine drives it, or this is a forked child
        if task is not None and task.done() and not task.cancelled():
            await self.close(*came_to(task))  # it had come to its end by itself
        await link.settled()
        if self._claiming:
            await self._claimed(link.fence or -1)  # it was claimed, and nobody has been told
        back = link.fence is not None and link.can_go_on
        if link.gone.done() or link.ended:
            await self._quiet()
        elif link.fence is None and self.agent.resumable:
            if "enqueue" in link.machine.by_source[link.state]:
                await self._say("enqueue", {}, key=False)  # in the queue any other engine finds it
        elif back:
            link.letting_go = True
            await self._quiet()
            await self._surely(lambda: self.home.hand_back(link))
        else:
            await self.call_off_surely(reason, "engine")
            await self._quiet()
            await self._say("stopped", {})
