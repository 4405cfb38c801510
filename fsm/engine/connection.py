"""The wire between one execution and whoever drives it: events in, commits out, deadlines met.

It keeps no state of its own. What it knows is the last committed record, handed over by the committer on whatever
thread it was committed, and where the events that are under way will lead, so that several branches of an agent can
hand in events without waiting for one another's disk flush.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from fsm.concurrency.locks import Lock
from fsm.concurrency.supervised import one_line
from fsm.core.decide import DERIVED
from fsm.core.records import Receipt, Snapshot, Step
from fsm.errors import FsmError, Refused, StoreUnavailable
from fsm.machine.machine import Machine
from fsm.registry.command import Command

if TYPE_CHECKING:
    from fsm.engine.runtime import Home

logger = logging.getLogger(__name__)


def unknown_failure(error: BaseException) -> StoreUnavailable:
    """Return an error that no layer below the engine expected, as one that callers know how to deal with."""
    return StoreUnavailable(f"an unexpected error below the engine: {one_line(error)}", committed=None)


class RunOver(asyncio.CancelledError):
    """The execution has ended, is being cancelled, or belongs to another worker: this run of the agent is over.

    It is a cancellation: an agent that swallowed the first one meets the next at its next step.
    """


class _Sent(NamedTuple):
    """An event that was handed in."""

    command: Command
    future: asyncio.Future[None] | None


class Link:
    """One execution, as its driver sees it. It lives on one event loop; commits may come from any thread.

    Attributes:
        snapshot: The last committed record.
        called_off: The payload of the event that told it to stop, as JSON text: the end that follows says no reason.
        fence: The fence of the claim; ``None`` while nobody here owns the execution.
        stop: Done when the agent has to stop: cancelled, ended, or taken away.
        gone: Done when there is nothing left to say: ended, or taken away.
    """

    def __init__(self, home: Home, snapshot: Snapshot, machine: Machine) -> None:
        """Begin to listen.

        Args:
            home: What all executions of an engine share.
            snapshot: The record as it is, or will be once its creation is committed.
            machine: Its machine.
        """
        self.home = home
        self.id = snapshot.identity.id
        self.machine = machine
        self.ways = home.ways_of(machine)
        self.snapshot = snapshot
        self._ahead = snapshot.state
        self.fence: int | None = None
        self.letting_go = False
        self.called_off: str | None = None
        self.stop: asyncio.Future[None] = home.loop.create_future()
        self.gone: asyncio.Future[None] = home.loop.create_future()
        self._asked: str | None = None
        self._answer: asyncio.Future[None] | None = None
        self._pending = 0
        self._idle: asyncio.Future[None] | None = None
        self._telling = Lock("what an engine hears of a commit")
        self._timer: asyncio.TimerHandle | None = None
        self._armed_at = float("inf")
        home.listen(self)

    def close(self) -> None:
        """Stop listening. Whoever still uses the run is told that it is over, however that came about."""
        self.home.forget(self)
        self._disarm()
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

    @property
    def category(self) -> str:
        """The category of the state it is in."""
        return self.machine.by_name[self.snapshot.state].category

    @property
    def attempts_left(self) -> bool:
        """Whether it may be tried again, as the table asks it."""
        return DERIVED["attempts_left"](self.snapshot, {})

    def lapse_order(self) -> Command | None:
        """Return the order that lets go of it, so that another worker can go on; ``None`` if nobody owns it."""
        owner = self.snapshot.owner
        if owner is None:
            return None
        return self.home.registry.order(self.id, "lapse", {"worker": owner}, holder=owner)

    @property
    def can_go_on(self) -> bool:
        """Whether another worker may go on with it once it is let go of: the table says where that leads.

        A call that backs off waits too, but without an attempt left it would be dead and not called off
        (`tests/test_hostile_engine.py::test_what_backs_off_is_called_off_with_its_engine`).
        """
        snapshot, defaults = self.snapshot, self.machine.fact_defaults
        for arrow in self.machine.by_source[snapshot.state].get("lapse", ()):
            if all(
                (DERIVED[fact](snapshot, {}) if fact in DERIVED else defaults.get(fact, False)) is wanted
                for fact, wanted in arrow.literals
            ):
                return arrow.target not in self.machine.terminal
        return False

    def waits(self, state: str) -> bool:
        """Whether a state is one in which the execution waits."""
        return self.machine.by_name[state].category == "waiting"

    @property
    def taken(self) -> bool:
        """Whether the execution was taken away from whoever claimed it here."""
        return self.fence is not None and self.snapshot.fence != self.fence and not self.letting_go

    def committed(self, step: Step) -> None:
        """Hear of a commit, on any thread, in the order of the versions."""
        self.heard(step.after.state, step.payload_json)
        self.news(step.after, born=step.source is None)

    def heard(self, target: str, payload_json: str | None) -> None:
        """Keep what was said when it was told to stop.

        Args:
            target: Where a commit led to.
            payload_json: What came with it.
        """
        if self.machine.by_name[target].category == "stopping":
            self.called_off = payload_json

    async def why_called_off(self) -> None:
        """Look in the journal for what nobody has told us of."""
        if self.called_off is None and self.ended:
            for row in await self.home.read(self.home.registry.store.history, self.id):
                self.heard(row.target, row.payload_json)

    def news(self, after: Snapshot, *, born: bool = False) -> None:
        """Take note of a committed record, on any thread.

        Args:
            after: The record.
            born: It is the first.
        """
        if self._telling.mine():  # a handler fires in the middle of this: the loop takes note of it
            self.home.call(partial(self.news, after, born=born))
            return
        with self._telling:  # the committer's thread and the one that reads the journal
            if after.version <= self.snapshot.version and not born:
                return  # heard of before: its own commits come directly, others by way of the journal
            self.snapshot = after
        left = self._asked is not None and after.state != self._asked
        if left or self.taken or self.machine.by_name[after.state].category in _LOUD:
            self.home.call(self._look)
        elif after.due_at is not None and after.due_at < self._armed_at:
            self.home.call(self._arm)

    async def refresh(self) -> None:
        """Read the record: a commit of which nobody can tell whether it happened is told by nobody."""
        snapshot = await self.home.read(self.home.registry.store.load, self.id)
        if snapshot is not None:
            self.news(snapshot)
            self.look()

    def _look(self) -> None:
        if self._answer is not None and not self._answer.done() and self.snapshot.state != self._asked:
            self._answer.set_result(None)
        self.look()

    def look(self) -> None:
        """See whether it is over."""
        if self.ended or self.taken:
            self._disarm()
            self._over()
            return
        if self.category == "stopping" and not self.stop.done():
            self.stop.set_result(None)
        self._arm()

    def _over(self) -> None:
        for future in (self.gone, self.stop):
            if not future.done():
                future.set_result(None)

    # --- what is handed in --------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `RunOver` if the run is over."""
        if self.stop.done():
            raise RunOver(f"{self.id} is {self.snapshot.state}: this run of the agent is over")

    def _command(self, event: str, payload: Mapping[str, Any], key: str | None) -> Command:
        fence = self.fence
        if fence is None and self.snapshot.owner is None:
            fence = self.snapshot.fence  # between two claims no worker has it: what was seen is what is meant
        return self.home.registry.event(self.id, event, payload, fence=fence, key=key, user_id=None)

    def _submit(self, event: str, payload: Mapping[str, Any], key: str | None) -> _Sent:
        command = self._command(event, payload, key)
        future = self.home.registry.committer.submit(command)
        self._ahead = self._leads_to(event, payload)
        self._pending += 1
        return _Sent(command, future)

    def _leads_to(self, event: str, payload: Mapping[str, Any]) -> str:
        """Return the state that an event will lead to, as far as it can be known before it is decided."""
        for arrow in self.machine.by_source[self.state].get(event, ()):
            if all(
                fact in DERIVED
                or bool(payload.get(fact, self.machine.fact_defaults.get(fact, False))) is wanted
                for fact, wanted in arrow.literals
            ):
                return arrow.target
        return self.state

    async def fire(
        self, event: str, payload: Mapping[str, Any] | None = None, *, key: str | None = None
    ) -> Receipt:
        """Hand in an event, with the way that leads to where it is in the table, in one go.

        Args:
            event: The event.
            payload: What comes with it.
            key: An idempotency key.

        Returns:
            The event's receipt.

        Raises:
            RunOver: The execution is over, for this run.
            Refused: The table says no.
            StoreUnavailable: The store did not answer.
        """
        way = self.ways.to_event(self.state, event) or ()
        return await self.fire_all([*((one, {}) for one in way), (event, payload or {})], key=key)

    async def fire_all(
        self, orders: Sequence[tuple[str, Mapping[str, Any]]], *, key: str | None = None
    ) -> Receipt:
        """Hand in several events in one go, so that they share a commit; return the last one's receipt.

        What becomes of the last one counts. A refused step of the way there means that somebody else has taken it.

        Args:
            orders: Events with their payloads, one at least; each leans on the one before it.
            key: An idempotency key for the last one.
        """
        last = len(orders) - 1
        registry = self.home.registry
        if registry.store.instant and not registry.closed:
            return self._at_once(orders, key)
        sent: list[_Sent] = []
        try:
            for index, (event, payload) in enumerate(orders):
                sent.append(self._submit(event, payload, key if index == last else None))
            for one in sent:
                if one.future is not None:
                    await asyncio.shield(one.future)
        except BaseException:
            for one in sent:
                self._leave_behind(one)
            raise
        self._landed(len(sent))
        ordered = [one.command for one in sent if one.command.effects]
        if ordered:
            await self.home.through(self._carry_out(ordered), "fsm-effects")
        return self._receipt(sent[-1].command)

    async def _carry_out(self, commands: Sequence[Command]) -> None:
        for command in commands:
            await self.home.read(self.home.registry.carry_out, command)

    async def order(self, event: str, payload: Mapping[str, Any]) -> Receipt:
        """Fire an event as somebody from outside does, who owns nothing; where the execution is now is not looked at.

        A caller that is cancelled during it does not undo it.

        Raises:
            Refused: The table says no.
            StoreUnavailable: The store did not answer.
        """
        registry = self.home.registry
        command = registry.event(self.id, event, payload, fence=None, key=None, user_id=None)
        await registry.committer.commit_async(command)
        receipt = self._came_to(command)
        if command.effects:
            await self.home.through(self._carry_out([command]), "fsm-effects")
        return receipt

    def _at_once(self, orders: Sequence[tuple[str, Mapping[str, Any]]], key: str | None) -> Receipt:
        """Hand in events that are committed on the spot: nothing is ever under way."""
        registry, last = self.home.registry, len(orders) - 1
        commands = [
            self._command(event, payload, key if index == last else None)
            for index, (event, payload) in enumerate(orders)
        ]
        registry.committer.commit_all(commands)
        for command in commands:
            if command.effects:
                registry.carry_out(command)
        return self._receipt(commands[-1])

    def _landed(self, count: int) -> None:
        """Take note that so many events are decided; when none is under way, the record says where it is."""
        self._pending -= count
        if not self._pending and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _leave_behind(self, one: _Sent) -> None:
        """Let an event come to its end whose caller was cancelled: until then it counts for where this leads to."""

        def landed(_: object = None) -> None:
            command = one.command
            self._landed(1)
            if command.unheard is not None and isinstance(command.outcome, Receipt):
                command.unheard(command)

        if one.future is None or one.future.done():
            landed()
        else:
            one.future.add_done_callback(landed)

    async def settled(self) -> None:
        """Wait until no event is under way, but not for ever."""
        if self._pending:
            self._idle = self.home.loop.create_future()
            await asyncio.wait({self._idle}, timeout=SETTLE_S)

    def _receipt(self, command: Command) -> Receipt:
        try:
            return self._came_to(command)
        except Refused as refused:
            self.look()
            stopping = self.machine.by_name[refused.state].category in _LOUD
            if self.fence is not None and (stopping or refused.reason == "fenced"):
                raise RunOver(str(refused)) from None
            raise

    def _came_to(self, command: Command) -> Receipt:
        """Return the outcome of a command; an error that no layer below expected is one of the store."""
        try:
            return self.home.registry.receipt(command)
        except FsmError:
            raise
        except Exception as error:
            raise unknown_failure(error) from error

    # --- a person's answer --------------------------------------------------------------------------------------

    async def answered(self, asked: Receipt) -> str | None:
        """Wait until the execution leaves the state in which it waits for a person.

        Args:
            asked: The receipt of the event that led there.

        Returns:
            The payload of the event that led out of it, as JSON text.

        Raises:
            RunOver: It ended, or was called off, instead.
        """
        state = asked.target
        self._answer = answer = self.home.loop.create_future()
        self._asked = state
        try:
            if self.snapshot.state == state:  # otherwise somebody was faster than we could begin to listen
                either: set[asyncio.Future[Any]] = {answer, self.stop}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            self.check()
        finally:
            if self._answer is answer:
                self._asked = self._answer = None
        # The journal knows which row it was; whoever told us may have told us of a later one.
        rows = await self.home.read(self.home.registry.store.history, self.id)
        left = (row for row in rows if row.version > asked.version and row.source == state != row.target)
        row = next(left, None)
        return row.payload_json if row is not None else None

    # --- deadlines ----------------------------------------------------------------------------------------------

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._armed_at = None, float("inf")

    def _arm(self) -> None:
        """Wake up at the deadline. A later one is not news: the timer that wakes up early looks again."""
        due_at = self.snapshot.due_at
        if due_at is None or due_at >= self._armed_at or self.gone.done() or self.letting_go:
            return  # a deadline does not overtake an end that is on its way, here at least
        self._disarm()
        self._armed_at = due_at
        self._timer = self.home.loop.call_later(max(0.0, due_at - self.home.registry.now()), self._due)

    def _due(self) -> None:
        self._timer, self._armed_at = None, float("inf")
        snapshot, now = self.snapshot, self.home.registry.now()
        if snapshot.due_at is None or self.gone.done() or self.letting_go:
            return
        if snapshot.due_at > now:
            self._arm()
            return
        self.home.spawn(self._time_out(snapshot, now), "fsm-time-out")

    async def _time_out(self, snapshot: Snapshot, now: float) -> None:
        """Say that a deadline has passed, unless the execution has moved on meanwhile."""
        registry = self.home.registry
        late_s = max(0.0, now - (snapshot.due_at or now))
        order = registry.order(
            self.id, "time_out", {"kind": snapshot.due_kind, "late_s": late_s}, version=snapshot.version
        )
        try:
            await registry.committer.commit_async(order)
            self._came_to(order)
        except Refused:
            # It has moved on, perhaps in another process, of which we have not heard yet: its new deadline counts.
            await self._look_again()
            return
        except FsmError as error:
            logger.warning("%s: its deadline could not be recorded, will try again: %s", self.id, error)
            self._later()
            return
        except Exception:
            logger.exception("%s: its deadline could not be recorded, will try again", self.id)
            self._later()
            return
        if order.effects:
            await self._carry_out([order])

    async def _look_again(self) -> None:
        before = self.snapshot.version
        try:
            await self.refresh()
        except FsmError as error:
            logger.warning("%s: its record could not be read, will try again: %s", self.id, error)
        if self.snapshot.version == before:
            self._later()
        else:
            self._arm()

    def _later(self) -> None:
        """Try again in a while; a deadline that has passed must not be handed in again and again without a pause."""
        if not self.gone.done():
            self._disarm()
            self._timer = self.home.loop.call_later(RETRY_S, self._due)


SETTLE_S = 10.0
"""So long, in seconds, an end waits for events that were handed in before it."""
RETRY_S = 1.0
"""After so many seconds a deadline that the store did not take is tried again."""
_LOUD = frozenset({"stopping", "terminal"})
