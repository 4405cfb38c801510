"""One driver drives one execution, from its place in the queue to its end: for all that happens the table has a row.

    queued -> claiming -> running -> (stopping ->) closing -> over
      ^                                               |
      +------------ another attempt is left ----------+

Theory of operation.

*Who owns what.* Everything here belongs to the event loop of one `Runtime`. A driver is one task, `Driver.life`; its
agent is another one, which the driver starts, tells to stop and waits for; a plain function has a thread besides, and
its steps are coroutines of the same loop. Commits happen on the committer's thread and are noted by the loop before
the caller that waits for them goes on. The last committed record is the only truth about the execution; what the
driver itself does is its `Stage`, declared with its moves in `fsm.engine.stages`.

*Why there are predictions.* An event that is handed in is decided later, on a disk's time. Branches of an agent do not
wait for one another, so the connection says where the events that are under way will lead, and the next branch chooses
its way from there. A prediction that turns out wrong costs a refusal; it is never written down.

*How it ends.* `Connection.stop` is done as soon as anything but the agent's own return has ended its run: a cancel, a
deadline, another worker; `Connection.gone` when nothing is left to say. The agent's end is said once, by `_close`,
under a key of its attempt, and again while the store does not answer. What the agent still says after that is
`RunOver` for it and late for its callers.

*What releasing means.* An engine that closes, or whose loop ends, gives the execution up with `Connection.parting`:
what another worker can go on with lapses or is queued, all else is cancelled. The task of a driver is `Undisturbed`:
a cancellation does not end it, it sets `leaving`, at which every wait below looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from typing import Any, TypeVar

from fsm.core.decide import DERIVED
from fsm.core.records import Receipt
from fsm.core.results import clipped, described, jsonable, why
from fsm.engine.admission import Seat
from fsm.engine.connection import Connection
from fsm.engine.errors import RunOver
from fsm.engine.functions import Agent, Emit
from fsm.engine.inflight import UNHEARD
from fsm.engine.outcome import Late, Outcome
from fsm.engine.policy import RunPolicy, Value, ask
from fsm.engine.retries import MANY_TRIES, surely
from fsm.engine.run import CURRENT, Run
from fsm.engine.stages import Stage
from fsm.engine.tasks import Dismissible, Undisturbed, came_to
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

logger = logging.getLogger(__name__)
T = TypeVar("T")

DISMISSED = "went on after every cancellation, and was closed"
MAX_LEFT_OPEN = 1_000
"""Maximum number of forgotten tools that are closed at the end; the table does not let more be open."""


class Driver:
    """Drives one execution.

    Attributes:
        leaving: Done when the engine closes or its loop ends: the execution is released.
        result: What the agent returned.
        error: What it raised, or what kept it from being driven.
        fell_back: Whether the fallback has taken the agent's place.
    """

    def __init__(
        self,
        connection: Connection,
        run: Run,
        agent: Agent,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        policy: RunPolicy,
        emit: Emit | None = None,
    ) -> None:
        self.connection = connection
        self.runtime = connection.runtime
        self.run = run
        self.agent = agent
        self.seat: Seat = run.inflight.seat
        self.leaving: asyncio.Future[None] = self.runtime.loop.create_future()
        self.result: Any = None
        self.error: BaseException | None = None
        self.fell_back = False
        self._reason = "the engine was closed"
        self._args = args
        self._kwargs = kwargs
        self._policy = policy
        self._emit = emit
        self._task: asyncio.Task[Any] | None = None
        self._working: Dismissible[Any] | None = None
        self._own_cancels = 0

    # --- the whole life -----------------------------------------------------------------------------------------

    def begin(self) -> asyncio.Task[Outcome]:
        """Start the task that drives it to its end; a cancellation of that task releases the execution."""
        return self.runtime.spawn(Undisturbed(self.life(), self.leave), f"fsm-drive-{self.agent.name}")

    def leave(self, reason: str | None = None) -> None:
        """Release the execution: its driver stops as soon as it can."""
        if not self.leaving.done():
            self._reason = reason or self._reason
            self.leaving.set_result(None)

    async def life(self) -> Outcome:
        """Drive it to its end, and leave nothing behind: no task, no slot, no listener."""
        connection = self.connection
        try:
            await self._live()
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            raise  # its loop was closed under it, or is about to be: what ends it at exit needs its connection
        except BaseException as error:  # a defect of ours, or a machine that is not made for an engine
            logger.exception("%s: it could not be driven any more", connection.id)
            self.error = error
            await self._stop()
            with contextlib.suppress(Exception):
                await self._say("fail", described(error))
        self.run.end()
        self.seat.close()
        connection.close()
        outcome = self.outcome()
        if outcome.ended_as == "cancelled" and connection.told is None:
            with contextlib.suppress(FsmError):
                await connection.why_cancelled()
            outcome = self.outcome()
        if isinstance(self.error, (SystemExit, KeyboardInterrupt)) and not self.agent.once:
            raise self.error  # it is recorded; now it does what it would do without an engine
        return outcome

    async def _live(self) -> None:
        connection = self.connection
        while await self._claimed():
            task = self._start()
            await self._first(task, connection.stop)
            told = not task.done()
            if told:
                connection.move(Stage.STOPPING)
                await self._stop()
            if not task.done():
                break  # it is abandoned
            if self.leaving.done() and not connection.stop.done() and (told or task.cancelled()):
                break  # it was only told to stop because this has to leave, or by the end of the loop
            connection.move(Stage.CLOSING)
            if not await self._close(*came_to(task)) or self.leaving.done():
                break
            self.run = self.run.again()
            connection.move(Stage.QUEUED)
            await self._pause()
        here = connection.stage is not Stage.FOLLOWING and not self.runtime.elsewhere
        if here and self.leaving.done() and not connection.gone.done():
            await self._release()

    async def _first(self, *futures: asyncio.Future[Any], within_s: float | None = None) -> None:
        """Wait for the first of these, for the execution's end, or until the driver has to leave."""
        waited = {*futures, self.connection.gone, self.leaving}
        await asyncio.wait(waited, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)

    async def _surely(self, do: Callable[[], Awaitable[T]], what: str) -> T:
        """Do what may be done twice until the store takes it: for minutes, or a few times once it has to leave."""

        async def sleep(seconds: float) -> None:
            await asyncio.wait({self.leaving}, timeout=seconds)

        if not self.leaving.done():
            try:
                return await surely(do, what, tries=MANY_TRIES, sleep=sleep, enough=self.leaving.done)
            except StoreUnavailable:
                if not self.leaving.done():
                    raise
        return await surely(do, what)

    # --- the beginning ------------------------------------------------------------------------------------------

    async def _claimed(self) -> bool:
        """Wait for a slot and claim the execution; return whether there is anything to be done."""
        connection = self.connection
        try:
            if not self.seat.held and not self.seat.queue_up() and not self.leaving.done():
                if "enqueue" in connection.table[connection.state]:
                    await connection.fire("enqueue")
                await self.seat.take(connection.gone, self.leaving)
            if connection.gone.done() or self.leaving.done():
                return False
            connection.move(Stage.CLAIMING)
            await self._claim("validate" if self._policy.before else "start")
        except (RunOver, Refused) as refused:
            # It was cancelled, or another engine has claimed it: the connection has heard of it, or will in a moment.
            logger.debug("%s: not begun: %s", connection.id, refused)
            await self._follow()
            return False
        except FsmError as error:
            self.error = error
            logger.exception("%s: could not be begun", connection.id)
            return False
        if connection.gone.done():
            return False
        connection.move(Stage.RUNNING)
        return True

    async def _claim(self, event: str) -> None:
        connection, before, unsure = self.connection, self.connection.snapshot.fence, False

        async def claim() -> None:
            nonlocal unsure
            if unsure:  # perhaps it was committed, and no caller was told
                self.runtime.register_again()
                await connection.refresh()
                snapshot = connection.snapshot
                if snapshot.fence != before and snapshot.owner == self.runtime.registry.worker_id:
                    connection.fence = snapshot.fence
                if connection.gone.done() or connection.fence is not None:
                    return
            unsure = True
            connection.fence = (await connection.fire(event)).fence

        async def sleep(seconds: float) -> None:
            await asyncio.wait({connection.gone}, timeout=seconds)

        await surely(
            claim, f"{connection.id}: {event!r}", retry_on=(StoreUnavailable, LeaseLost), sleep=sleep
        )
        connection.look()  # another worker may have taken it between the commit and now

    async def _follow(self) -> None:
        """Wait for the end of an execution that another engine has claimed: its callers here want to know it."""
        connection = self.connection
        with contextlib.suppress(StoreUnavailable):
            await connection.refresh()
        if connection.snapshot.owner is not None and not connection.gone.done():
            connection.move(Stage.FOLLOWING)
            self.seat.give()
            await self._first()

    async def _pause(self) -> None:
        """Wait, without a slot, until the next attempt may begin."""
        self.seat.give()
        not_before = self.connection.snapshot.not_before
        if not_before is not None:
            await self._first(within_s=max(0.0, not_before - self.runtime.registry.now()))

    # --- the agent ----------------------------------------------------------------------------------------------

    def _start(self) -> asyncio.Task[Any]:
        """Start the agent, in a task and a context of its own."""
        context = copy_context()
        context.run(CURRENT.set, self.run)
        self._working = Dismissible(self._work(), self._cancelled)
        name = f"fsm-{self.agent.name}"
        self._task = self.runtime.loop.create_task(self._working, name=name, context=context)
        return self._task

    async def _work(self) -> Any:
        """Run the agent with its hooks, and what takes its place if it fails for good."""
        connection, policy = self.connection, self._policy
        for hook in policy.before:
            await ask(hook, self.run)
        if "start" in connection.table[connection.state]:
            await connection.fire("start")
        try:
            return await self._checked(self.agent)
        except Exception as error:
            again = self._retryable(error) and DERIVED["attempts_left"](connection.snapshot, {})
            if policy.fallback is None or connection.stop.done() or again:
                raise
            return await self._fall_back(policy.fallback, error)

    async def _checked(self, agent: Agent) -> Any:
        result = await agent.call(self.run, self._args, self._kwargs, self._emit)
        for hook in self._policy.after:
            await ask(hook, self.run, result)
        return result

    async def _fall_back(self, fallback: Agent | Value, error: Exception) -> Any:
        name = fallback.name if isinstance(fallback, Agent) else "result"
        run = self.run = self.run.again()
        CURRENT.set(run)
        await self.connection.fire("fall_back", {**described(error), "to": name})
        self.fell_back, self.error = True, error
        if isinstance(fallback, Value):
            return fallback.value
        await run.inflight.ready()
        return await self._checked(fallback)

    def _retryable(self, error: BaseException) -> bool:
        if self.fell_back or isinstance(error, (PrerequisiteFailed, LimitReached)):
            return False
        return isinstance(error, self._policy.retry_on)

    # --- an agent that has to stop ------------------------------------------------------------------------------

    async def _stop(self) -> None:
        """Tell the agent to stop, and wait: as long as its grace allows, then its patience; then go on without it."""
        task, patience_s = self._task, self._policy.patience_s
        if task is None or task.done():
            return
        if self.leaving.done():
            self.run.end()
        task.cancel()
        await self._first(task)
        if not task.done():
            await asyncio.wait({task}, timeout=patience_s)
        if not task.done():
            self._abandon(task)

    def _abandon(self, task: asyncio.Task[Any]) -> None:
        connection, runtime, name, run = self.connection, self.runtime, self.agent.name, self.run
        abandoned_at = runtime.registry.now()
        connection.move(Stage.CLOSING)
        runtime.stragglers[connection.id] = name
        logger.warning(
            "%s: the agent %r did not stop although its execution is %s; it goes on without one",
            connection.id, name, connection.snapshot.state,
        )  # fmt: skip

        def late(done: asyncio.Task[Any]) -> None:
            working, late_s = self._working, runtime.registry.now() - abandoned_at
            if working is None or not working.ignored:
                runtime.stragglers.pop(connection.id, None)
            if run.thread is not None and run.thread.is_alive():
                runtime.goes_on(connection.id, name, run.thread)
            dismissed = working is not None and working.dismissed
            result, error = (None, RuntimeError(DISMISSED)) if dismissed else came_to(done)
            self._late(result, error, late_s)

        task.add_done_callback(late)
        if self.leaving.done() or self.agent.inline:
            # A thread cannot be cancelled; its task stays, to hear how it ends, while there is a loop.
            self._own_cancels = 0 if self.leaving.done() else task.cancelling() + 1
            task.cancel()

    def _cancelled(self) -> None:
        """Hear of a cancellation that the agent is about to be given.

        One that goes on without an execution is told to end by the end of the event loop, which would wait for it for
        ever. It has the patience once more, and then it is closed
        (`tests/engine/test_hostile_engine.py::test_an_agent_that_swallows_every_cancellation_does_not_keep_the_loop`).
        What it takes back itself, as `asyncio.timeout` does, counts as obeyed.
        """
        task = self._task
        if task is None or not self.connection.closing:
            return
        asked, own, self._own_cancels = task.cancelling(), self._own_cancels, 0
        if not own or asked > own:
            self.runtime.loop.call_later(self._policy.patience_s, self._dismiss, task, asked)

    def _dismiss(self, task: asyncio.Task[Any], asked: int) -> None:
        working = self._working
        if task.done() or task.cancelling() < asked or working is None or working.dismissed:
            return
        logger.error("%s: the agent %r %s", self.connection.id, self.agent.name, DISMISSED)
        working.dismissed = True
        task.cancel()

    def _late(self, result: Any, error: BaseException | None, late_s: float = 0.0) -> None:
        """Remember the result or error of an agent that ended after its record was closed."""
        if isinstance(error, asyncio.CancelledError):
            return
        said = None if error is None else why(error)
        late = Late(self.connection.id, self.agent.name, late_s, jsonable(result), said)
        self.runtime.late.append(late)
        logger.warning("%s: the agent %r came to an end %.3g s late: %s", *late[:3], said or "it returned")

    # --- the end ------------------------------------------------------------------------------------------------

    async def _close(self, result: Any, error: BaseException | None) -> bool:
        """Say how the agent ended; return whether it is to be tried again."""
        connection = self.connection
        self.run.end()
        await connection.settled()
        connection.look()
        if connection.gone.done():
            self._late(result, error)
            return False
        if error is None and not connection.stop.done():
            await self._tidy()
        event, payload = self._end(result, error)
        try:
            said = await self._say(event, payload, strict=event == "complete")
        except Refused as refused:  # the table does not take the result
            event, payload = self._end(None, refused)
            said = await self._say(event, payload)
        if said is None and not connection.gone.done():
            # It was cancelled while the end was on its way: now that is what has to be ended.
            with contextlib.suppress(StoreUnavailable):
                await connection.refresh()
            if connection.stop.done() and not connection.gone.done():
                await self._say(*self._end(result, error))
        if event != "fail" or connection.gone.done() or connection.snapshot.owner is not None:
            if isinstance(self.error, Exception):
                with contextlib.suppress(Exception):
                    self.error.add_note(f"execution {connection.id}")
            return False
        connection.fence = None
        return True

    def _end(self, result: Any, error: BaseException | None) -> tuple[str, dict[str, Any]]:
        """Return the event that says how the agent ended, with its payload; the one place that knows them all."""
        self.result = result if error is None else None
        stopped = self.connection.stop.done()
        if stopped and isinstance(error, asyncio.CancelledError):
            return "stopped", {}
        self.error = error or self.error
        if error is None:
            kept = {"result": jsonable(result) if self._policy.record else None}
            if stopped:
                return "stopped", {**kept, "outcome": "late"}
            return "complete", {**kept, "outcome": "fallback"} if self.fell_back else kept
        if stopped:
            return "fail", described(error)
        if isinstance(error, LimitReached):
            return "time_out", {"kind": "limit", "note": str(error), "outcome": "limit"}
        payload = {**described(error), "retryable": self._retryable(error)}
        if isinstance(error, PrerequisiteFailed):
            payload["outcome"] = "refused"
        if isinstance(error, BreakerOpen):
            payload["retry_in_s"] = error.retry_after_s
        return "fail", payload

    async def _tidy(self) -> None:
        """Take back and close what the agent left open."""
        connection = self.connection
        if "withdraw" in connection.table[connection.state]:
            await self._say("withdraw", UNHEARD, once=False)
        for name, call_id in connection.snapshot.tools[:MAX_LEFT_OPEN]:
            logger.warning("%s: the agent left the tool %r open; it is closed now", connection.id, name)
            which = {"name": name} if call_id is None else {"call_id": call_id}
            note = {"ok": False, "note": "still open when the agent returned"}
            await self._say("close_tool", {**which, **note}, once=False)

    async def _say(
        self, event: str, payload: dict[str, Any], *, once: bool = True, strict: bool = False
    ) -> Receipt | None:
        """Hand in what must not be lost, again while the store does not answer; return its receipt.

        What is said `once` is said at most once in this attempt. There is no receipt if the execution was ended
        otherwise; a `strict` refusal is raised if it was not.
        """
        connection, unsure = self.connection, False
        key = f"{event}:{connection.snapshot.fence}" if once else None

        async def say() -> Receipt:
            nonlocal unsure, payload
            if unsure:
                await connection.refresh()  # perhaps it was committed, in part or all of it
            unsure = True
            try:
                return await connection.fire(event, payload, key=key)
            except BadPayload as error:
                logger.warning("%s: what comes with %r is left out: %s", connection.id, event, error)
                payload = {"note": clipped(str(error))}
                return await connection.fire(event, payload, key=key)

        try:
            return await self._surely(say, f"{connection.id}: {event!r}")
        except RunOver:
            return None
        except Refused as refused:
            connection.look()
            if strict and not connection.stop.done():
                raise
            logger.debug("%s: %s", connection.id, refused)
            return None
        except StoreUnavailable as error:
            logger.error("%s: %r could not be recorded; its deadline will end it", connection.id, event)  # noqa: TRY400
            self.error = self.error or error
            return None

    async def _release(self) -> None:
        """Give the execution up: another worker goes on with it, or it ends."""
        connection, runtime = self.connection, self.runtime
        self.run.end()
        await connection.settled()
        connection.move(Stage.CLOSING)

        async def part() -> None:
            agent = self.agent
            orders = connection.parting(self._reason, resumable=agent.resumable, once=agent.once)
            await runtime.read(runtime.registry.carry_all, orders)

        try:
            await surely(part, f"{connection.id}: its release")
        except StoreUnavailable as error:
            logger.error("%s: could not be released; its deadline will end it: %s", connection.id, error)  # noqa: TRY400
        if not connection.ended:
            runtime.left_open(connection.snapshot)

    # --- what its callers learn ---------------------------------------------------------------------------------

    def outcome(self) -> Outcome:
        """Return how the execution ended, as far as it has."""
        connection, snapshot = self.connection, self.connection.snapshot
        ended_as = connection.machine.outcomes.get(snapshot.state)
        end: dict[str, Any] = {}
        if ended_as is not None:
            told, last = connection.told, snapshot.end_json
            end = {**(json.loads(told) if told else {}), **(json.loads(last) if last else {})}
        # Of what another engine has brought to its end there is the record's result alone.
        result = self.result if self.result is not None else end.get("result")
        fell_back = self.fell_back or end.get("outcome") == "fallback"
        return Outcome(
            connection.id, snapshot.state, result, self.error, fell_back, snapshot.attempt, end, ended_as
        )
