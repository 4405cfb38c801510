"""One execution as its driver sees it: events in, commits out, deadlines met.

It keeps no execution state of its own: it holds the last committed record, and where the events that are under way
will lead, so that several branches of an agent can hand in events without waiting for one another's disk flush.
Everything here belongs to the event loop of its runtime. A commit may be told on any thread; what another thread tells
is noted by the loop, before the caller that waits for that commit goes on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fsm.core.decide import DERIVED
from fsm.core.records import Receipt, Snapshot, Step
from fsm.core.request import Request
from fsm.engine.errors import RunOver, unknown_failure
from fsm.engine.runtime import Runtime
from fsm.engine.stages import MOVES, Stage
from fsm.errors import FsmError, Refused
from fsm.machine.grammar import Category
from fsm.machine.machine import Machine
from fsm.registry.command import Command, make_up

logger = logging.getLogger(__name__)

SETTLE_S = 10.0
"""How long an end waits for events that were handed in before it, in seconds."""
RETRY_S = 1.0
"""After how many seconds a deadline that the store did not take is handed in again."""
_LOUD = frozenset({Category.STOPPING, Category.TERMINAL})
_NEVER = float("inf")
Orders = Sequence[tuple[str, Mapping[str, Any]]]
"""Events with their payloads, each leaning on the one before it."""


class Connection:
    """One execution, as its driver sees it.

    Attributes:
        snapshot: The last committed record.
        stage: What its driver does with it; `move` changes it.
        closing: Whether its driver says its end or releases it, so that a fence that changes is no loss.
        fence: The fence of the claim; ``None`` while this process owns nothing.
        told: The payload of the event that told it to stop, as JSON text: the end that follows says no reason.
        stop: Done when the agent has to stop: cancelled, ended, or taken away.
        gone: Done when there is nothing left to say: ended, or taken away.
    """

    def __init__(self, runtime: Runtime, snapshot: Snapshot, machine: Machine) -> None:
        """Begin to listen to an execution that exists, or whose creation is about to be committed."""
        self.runtime = runtime
        self.id = snapshot.identity.id
        self.machine = machine
        self.ways = runtime.ways_of(machine)
        self.table = machine.by_source
        self.states = machine.by_name
        self.snapshot = snapshot
        self.stage = Stage.QUEUED
        self.closing = False
        self.fence: int | None = None
        self.told: str | None = None
        self.stop: asyncio.Future[None] = runtime.loop.create_future()
        self.gone: asyncio.Future[None] = runtime.loop.create_future()
        self._ahead = snapshot.state
        self._pending = 0
        self._idle: asyncio.Future[None] | None = None
        self._asked: tuple[str, asyncio.Future[None]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._armed_at = _NEVER
        runtime.listen(self)

    def move(self, stage: Stage) -> None:
        """Go to another stage; what is in it stays there."""
        if stage is not self.stage:
            assert stage in MOVES[self.stage], f"{self.id}: {self.stage} does not lead to {stage}"  # noqa: S101
            self.stage = stage
            self.closing = stage is Stage.CLOSING

    def close(self) -> None:
        """Stop listening: whatever still uses the run is told that it is over."""
        self.stage, self.closing = Stage.OVER, True
        self.runtime.forget(self)
        if not self.gone.done():
            self._over()

    # --- what was committed -------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """Where the events that are under way lead to; without any, the state of the last commit."""
        return self._ahead if self._pending else self.snapshot.state

    @property
    def ended(self) -> bool:
        """Whether the execution has ended."""
        return self.snapshot.state in self.machine.terminal

    def waits(self) -> bool:
        """Return whether it is, or is about to be, in a state in which it waits."""
        return self.states[self.state].category is Category.WAITING

    def _leads_to(self, event: str, payload: Mapping[str, Any]) -> str:
        """Return the state that an event leads to, as far as it can be known before it is decided."""
        state, defaults = self.state, self.machine.fact_defaults
        for arrow in self.table[state].get(event, ()):
            if all(
                fact in DERIVED or bool(payload.get(fact, defaults.get(fact, False))) is wanted
                for fact, wanted in arrow.literals
            ):
                return arrow.target
        return state

    def committed(self, step: Step) -> None:
        """Hear of a commit of this process, on any thread, in the order of the versions."""
        after = step.after
        category = self.states[after.state].category
        if category is Category.STOPPING:
            self.told = step.payload_json
        if threading.get_ident() != self.runtime.thread_id:
            self.runtime.call(self._note, after)
            return
        self.snapshot = after
        taken = self.fence is not None and self.fence != after.fence
        sooner = after.due_at is not None and after.due_at < self._armed_at
        if taken or sooner or self._asked is not None or category in _LOUD:
            self.look()

    def heard(self, target: str, payload_json: str | None) -> None:
        """Keep what was said when it was told to stop."""
        if self.states[target].category is Category.STOPPING:
            self.told = payload_json

    def news(self, snapshot: Snapshot) -> None:
        """Take note of a committed record, on any thread."""
        self.runtime.call(self._note, snapshot)

    def _note(self, after: Snapshot) -> None:
        """Take note of a record that may be older than the one that is known."""
        # No call stands between the comparison and the assignment: a signal's handler that commits comes before both
        # or after both.
        if after.version >= self.snapshot.version:
            self.snapshot = after
        self.look()

    async def refresh(self) -> None:
        """Read the record: no listener is told of a commit whose outcome is unknown."""
        snapshot = await self.runtime.read(self.runtime.registry.store.load, self.id)
        if snapshot is not None:
            self._note(snapshot)

    def look(self) -> None:
        """See whether it is over, or has to stop, or a question is answered."""
        snapshot = self.snapshot
        if self._asked is not None and snapshot.state != self._asked[0] and not self._asked[1].done():
            self._asked[1].set_result(None)
        category = self.states[snapshot.state].category
        taken = self.fence is not None and snapshot.fence != self.fence and not self.closing
        if taken or category is Category.TERMINAL:
            self._over()
            return
        if category is Category.STOPPING and not self.stop.done():
            self.stop.set_result(None)
        if snapshot.due_at is not None and snapshot.due_at < self._armed_at:
            self._arm()

    def _over(self) -> None:
        if self._timer is not None:
            self._disarm()
        for future in (self.gone, self.stop):
            if not future.done():
                future.set_result(None)

    async def why_cancelled(self) -> None:
        """Look in the journal for a cancel that no listener was told of."""
        for row in await self.runtime.read(self.runtime.registry.store.history, self.id):
            self.heard(row.target, row.payload_json)

    # --- what is handed in --------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `RunOver` if the run is over."""
        if self.stop.done():
            raise RunOver(f"{self.id} is {self.snapshot.state}: this run of the agent is over")

    async def fire(
        self, event: str, payload: Mapping[str, Any] | None = None, *, key: str | None = None
    ) -> Receipt:
        """Hand in an event, with the way that leads to where it is in the table, in one go.

        Raises:
            RunOver: The execution is over, for this run.
            Refused: The table says no.
            StoreUnavailable: The store did not answer.
        """
        state = self._ahead if self._pending else self.snapshot.state
        order = (event, payload or {})
        if event in self.table[state]:
            return await self.fire_all((order,), key=key)
        way = self.ways.to_event(state, event) or ()
        return await self.fire_all([*[(one, {}) for one in way], order], key=key)

    async def fire_all(self, orders: Orders, *, key: str | None = None) -> Receipt:
        """Hand in several events in one go, so that they share a commit; return the last one's receipt.

        What becomes of the last one counts, and `key` makes that one safe to repeat. A refused step of the way there
        means that another worker has taken the execution.
        """
        command = await self._commit(self._commands(orders, key))
        try:
            return self.receipt(command)
        except Refused as refused:
            self.look()
            loud = self.states[refused.state].category in _LOUD
            if self.fence is not None and (loud or refused.reason == "fenced"):
                raise RunOver(str(refused)) from None
            raise

    def _commands(self, orders: Orders, key: str | None) -> list[Command]:
        registry, fence = self.runtime.registry, self.fence
        if fence is None and self.snapshot.owner is None:
            fence = self.snapshot.fence  # between two claims no worker has it: what was seen is what is meant
        at, now, worker = registry.clock.wall(), registry.now(), registry.worker_id
        commands: list[Command] = []
        for event, payload in orders:
            jitter = registry.rng.random()
            request = Request(
                event, at, payload, execution_id=self.id, now=now, fence=fence, worker=worker, jitter=jitter
            )
            commands.append(Command(request))
        commands[-1].request.key = key
        return commands

    async def cancel(self, reason: str | None, by: str | None) -> None:
        """Fire ``cancel`` as any caller may, who owns nothing; nothing happens if it is over."""
        said = (("reason", reason), ("by", by))
        payload = {name: value for name, value in said if value is not None}
        registry = self.runtime.registry
        command = registry.event(self.id, "cancel", payload, fence=None, key=None, user_id=None)
        try:
            self.receipt(await self._commit([command]))
        except Refused:
            self.look()

    def parting(self, reason: str, *, resumable: bool, once: bool = False) -> list[Command]:
        """Return the orders that release it, or end it if no other worker can go on with it.

        What is owned here lapses, where the table gives it another attempt or keeps it waiting for a person. What is
        not owned is put into the queue, if it is `resumable`: there any engine finds it. All else is cancelled, and
        so is what can run only `once`.
        """
        registry, snapshot = self.runtime.registry, self.snapshot
        owner, table = snapshot.owner, self.table[snapshot.state]
        if owner is None and resumable:
            return [registry.order(self.id, "enqueue", {})] if "enqueue" in table else []
        if owner is not None and not once and self._can_lapse():
            return [registry.order(self.id, "lapse", {"worker": owner}, holder=owner)]
        orders = [registry.order(self.id, "cancel", {"reason": reason, "by": "engine"})]
        if owner is not None:
            orders.append(registry.order(self.id, "stopped", {}, holder=owner))
        return orders

    def _can_lapse(self) -> bool:
        """Return whether another worker may go on with it once its lease is given up: the table says where that leads.

        A call that backs off waits too, but without an attempt left it would be lost and not cancelled
        (`tests/engine/test_hostile_engine.py::test_what_backs_off_is_called_off_with_its_engine`).
        """
        snapshot, defaults = self.snapshot, self.machine.fact_defaults
        for arrow in self.table[snapshot.state].get("lapse", ()):
            if all(
                (DERIVED[fact](snapshot, {}) if fact in DERIVED else defaults.get(fact, False)) is wanted
                for fact, wanted in arrow.literals
            ):
                return arrow.target not in self.machine.terminal
        return False

    async def _commit(self, commands: list[Command]) -> Command:
        """Hand commands in so that they share a commit, carry out their effects, and return the last one.

        A caller that is cancelled during it undoes nothing: until they are decided, they count for where this leads.
        """
        registry = self.runtime.registry
        if registry.store.instant and not registry.closed:
            registry.committer.commit_all(commands)
            for command in commands:
                if command.effects:
                    registry.carry_out(command)
            return commands[-1]
        sent: list[tuple[Command, asyncio.Future[None]]] = []
        try:
            for command in commands:
                command.unheard = registry._unheard
                future = registry.committer.submit(command)
                if future is not None:
                    self._ahead = self._leads_to(command.request.event, command.request.payload)
                    self._pending += 1
                    future.add_done_callback(self._landed)
                    sent.append((command, future))
            for _, future in sent:
                await asyncio.shield(future)
        except BaseException:
            for command, future in sent:
                future.add_done_callback(partial(make_up, [command]))
            raise
        if any(command.effects for command in commands):
            await self.runtime.through(self._carry_out(commands), "fsm-effects")
        return commands[-1]

    async def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            if command.effects:
                await self.runtime.read(self.runtime.registry.carry_out, command)

    def _landed(self, _: object) -> None:
        """Take note that an event is decided; when none is under way, the record says where it is."""
        self._pending -= 1
        if not self._pending and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def settled(self) -> None:
        """Wait until no event is under way, but not for ever."""
        if self._pending:
            self._idle = self.runtime.loop.create_future()
            await asyncio.wait({self._idle}, timeout=SETTLE_S)

    def receipt(self, command: Command) -> Receipt:
        """Return the outcome of a command; an error that no layer below expected is one of the store."""
        try:
            return self.runtime.registry.receipt(command)
        except FsmError:
            raise
        except Exception as error:
            raise unknown_failure(error) from error

    # --- a person's answer --------------------------------------------------------------------------------------

    async def answered(self, asked: Receipt) -> str | None:
        """Wait until the execution leaves the state to which a question led; return what came with the answer.

        Raises:
            RunOver: It ended, or was cancelled, instead.
        """
        state = asked.target
        self._asked = mine = (state, self.runtime.loop.create_future())
        try:
            if self.snapshot.state == state:  # otherwise the answer came before this began to listen
                await asyncio.wait({mine[1], self.stop}, return_when=asyncio.FIRST_COMPLETED)
            self.check()
        finally:
            if self._asked is mine:
                self._asked = None
        # The journal knows which row it was; what was heard may be a later one.
        for row in await self.runtime.read(self.runtime.registry.store.history, self.id):
            if row.version > asked.version and row.source == state != row.target:
                return row.payload_json
        return None

    # --- deadlines ----------------------------------------------------------------------------------------------

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._armed_at = None, _NEVER

    def _arm(self, *, in_s: float | None = None) -> None:
        """Wake up at the deadline. A later one is not news: the timer that wakes up early looks again."""
        due_at = self.snapshot.due_at
        if due_at is None or self.gone.done() or self.closing:
            return  # a deadline does not overtake an end that is on its way, here at least
        if in_s is None:
            if due_at >= self._armed_at:
                return
            in_s = max(0.0, due_at - self.runtime.registry.now())
        if self._timer is not None:
            self._timer.cancel()
        self._armed_at = due_at
        self._timer = self.runtime.loop.call_later(in_s, self._due)

    def _due(self) -> None:
        self._timer, self._armed_at = None, _NEVER
        snapshot, now = self.snapshot, self.runtime.registry.now()
        if snapshot.due_at is None or self.gone.done() or self.closing:
            return
        if snapshot.due_at > now:
            self._arm()
            return
        late_s = max(0.0, now - snapshot.due_at)
        self.runtime.spawn(self._time_out(snapshot, late_s), "fsm-time-out")

    async def _time_out(self, snapshot: Snapshot, late_s: float) -> None:
        """Say that a deadline has passed, unless the execution has moved on; try again until it is known."""
        payload = {"kind": snapshot.due_kind, "late_s": late_s}
        order = self.runtime.registry.order(self.id, "time_out", payload, version=snapshot.version)
        try:
            try:
                self.receipt(await self._commit([order]))
            except Refused:
                # It has moved on, perhaps in another process of which this one has not heard: the new deadline counts.
                await self.refresh()
                if self.snapshot.version == snapshot.version:
                    self._arm(in_s=RETRY_S)
        except FsmError as error:
            logger.warning("%s: its deadline could not be recorded, will try again: %s", self.id, error)
            self._arm(in_s=RETRY_S)
        except Exception:
            logger.exception("%s: its deadline could not be recorded, will try again", self.id)
            self._arm(in_s=RETRY_S)
