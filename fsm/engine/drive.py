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

from fsm.engine.agents import Agent, Emit
from fsm.engine.conduct import Conduct, Value, ask
from fsm.engine.home import Home, Late, Seat
from fsm.engine.link import Link, RunOver
from fsm.engine.outcome import Outcome, outcome_of
from fsm.engine.results import clipped, described, jsonable, why
from fsm.engine.run import Run, _current
from fsm.errors import (
    BadPayload,
    BreakerOpen,
    FsmError,
    LeaseLost,
    LimitReached,
    PrerequisiteFailed,
    Refused,
    StoreUnavailable,
)
from fsm.records import Receipt

logger = logging.getLogger(__name__)

END_TRIES = 6
"""So often an end is handed in, if the store does not answer; then the execution's deadline is left to end it."""
END_WAIT_S = 0.1
"""The first wait between two tries, in seconds; it doubles."""
MAX_LEFT_OPEN = 1_000
"""So many forgotten tools are closed at the end; a table does not let more be open."""


class Drive:
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
        self.home = home
        self.link = link
        self.seat = seat
        self.run = run
        self.agent = agent
        self.result: Any = None
        self.error: BaseException | None = None
        self.fell_back = False
        self.followed = False
        self._claiming = False
        self._said = False
        self._args = args
        self._kwargs = kwargs
        self._conduct = conduct
        self._emit = emit
        self._task: asyncio.Task[Any] | None = None

    # --- the whole life -----------------------------------------------------------------------------------------

    async def life(self) -> Outcome:
        """Drive it to its end, and leave nothing behind: no task, no slot, no listener."""
        try:
            await self._live()
        except asyncio.CancelledError:
            await self._leave("the engine was closed")
        except Exception as error:
            logger.exception("%s: it could not be driven any more", self.link.id)
            await self._broken(error)
        finally:
            self.finish()
        if self.link.snapshot.state == "cancelled":
            with contextlib.suppress(FsmError):
                await self.link.why_called_off()
        if isinstance(self.error, (SystemExit, KeyboardInterrupt)):
            raise self.error  # it is recorded; now it does what it would do without an engine
        return outcome_of(self)

    def finish(self) -> None:
        """Leave nothing behind: no slot, no listener."""
        self.run.end()
        self.seat.close()
        self.link.close()

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
            if not task.done() or not await self.close(*_what(task)):
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
        wait_s = END_WAIT_S
        for tried in range(1, END_TRIES + 1):
            try:
                link.fence = (await link.fire(event)).fence
                break
            except LeaseLost:
                if tried == END_TRIES:
                    raise
                self.home.register_anew()
            except StoreUnavailable as error:
                if tried == END_TRIES:
                    raise
                logger.warning("%s: %r was not taken (%d of %d): %s", link.id, event, tried, END_TRIES, error)
                await asyncio.wait({link.gone}, timeout=wait_s)
                wait_s *= 2.0
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
            return await self._work()
        except (SystemExit, KeyboardInterrupt) as error:
            raise _Leaves from error

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
        identity = self.link.snapshot.identity
        again = self._retryable(error) and self.link.snapshot.attempt < identity.attempts_max
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
        home, link, name = self.home, self.link, self.agent.name
        ended_at = home.registry.now()
        self.run.abandoned = True
        home.stragglers[link.id] = name
        logger.warning(
            "%s: the agent %r did not stop although its execution is %s; it goes on without one",
            link.id, name, link.snapshot.state,
        )  # fmt: skip

        def late(done: asyncio.Task[Any]) -> None:
            home.stragglers.pop(link.id, None)
            self._late(*_what(done), late_s=home.registry.now() - ended_at)

        task.add_done_callback(late)
        if leaving or self.agent.inline:
            task.cancel()  # a thread cannot be cancelled; its task stays, to hear how it ends, while there is a loop

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
        await self.run.take_back()
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
        wait_s = END_WAIT_S
        failure: StoreUnavailable | None = None
        for tried in range(1, END_TRIES + 1):
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
                logger.warning("%s: %r was not taken (%d of %d): %s", link.id, event, tried, END_TRIES, error)
                await asyncio.sleep(wait_s)
                wait_s *= 2.0
            else:
                self._said = self._said or key
                return receipt
        logger.error("%s: %r could not be recorded; its deadline will end it", link.id, event)
        self.error = self.error or failure
        return None

    # --- from outside -------------------------------------------------------------------------------------------

    async def call_off(self, reason: str | None, by: str | None) -> None:
        """Fire ``cancel``; nothing happens if it is over."""
        link = self.link
        said = (("reason", reason), ("by", by))
        payload: dict[str, Any] = {name: value for name, value in said if value is not None}
        try:
            await self.home.tracker.aio.fire(link.id, "cancel", **payload)
        except Refused:
            link.look()

    async def _leave(self, reason: str) -> None:
        """Stop because the process or the engine stops: hand the execution back if another may go on, else end it."""
        link, task = self.link, self._task
        self.run.end()
        if self.followed:
            return  # another engine drives it
        if task is not None and task.done() and not task.cancelled():
            await self.close(*_what(task))  # it had come to its end by itself
        await link.settled()
        if self._claiming:
            await self._claimed(link.fence or -1)  # it was claimed, and nobody has been told
        snapshot = link.snapshot
        back = link.fence is not None and (
            link.waits(snapshot.state) or snapshot.attempt < snapshot.identity.attempts_max
        )
        if link.gone.done() or link.ended:
            await self._quiet()
        elif link.fence is None and self.agent.resumable:
            if "enqueue" in link.machine.by_source[link.state]:
                await self._say("enqueue", {}, key=False)  # in the queue any other engine finds it
        elif back:
            link.letting_go = True
            await self._quiet()
            await self.home.hand_back(link)
        else:
            await self.call_off(reason, "engine")
            await self._quiet()
            await self._say("stopped", {})

    async def _quiet(self) -> None:
        """Let the agent stop, within the patience."""
        task = self._task
        if task is None or task.done():
            return
        task.cancel()
        await asyncio.wait({task}, timeout=self._conduct.patience_s)
        if not task.done():
            self._abandon(task, leaving=True)


class _Leaves(Exception):
    """Carries SystemExit and KeyboardInterrupt out of an agent's task: asyncio would end the loop at once."""


def _what(task: asyncio.Task[Any]) -> tuple[Any, BaseException | None]:
    """Return what a task came to: its result, or its error."""
    if task.cancelled():
        return None, asyncio.CancelledError("the agent was cancelled from inside")
    error = task.exception()
    if isinstance(error, _Leaves):
        error = error.__cause__
    return (None, error) if error is not None else (task.result(), None)
