"""Slots: how many executions of an engine may run at once, and who is next.

`Admission` is pure bookkeeping on one thread: no clock, no I/O, no asyncio. What gets no slot waits with a `Ticket`;
when a slot is given back, the next ticket's `granted` is called. It is fair between users: the queue is served by
start tags, as in start-time fair queueing (Goyal, Vin, Cheng 1996), so that a user with a thousand waiting executions
delays another user's first one by no more than one slot. A tag is a user's and not a ticket's: a ticket that leaves
has used nothing. Among one user's tickets for one agent the first is served first. A `Seat` is one execution's slot.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from fsm.engine.errors import RunOver
from fsm.errors import EngineFull

MANY = 1_000
"""From this number of entries on, what is remembered of those who are gone is tidied up."""

Count = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]


class Slots(BaseModel):
    """How many executions of one engine may run at once. One that waits (queue, backoff, a person) takes no slot.

    Attributes:
        total: In all.
        per_user: Of one user; ``None`` for no limit of its own.
        per_agent: Of one agent; a number for each of them, or a number by the agent's name.
        queued_max: How many may wait for a slot; the next one is refused with `EngineFull`.
        queued_per_user: How many of one user may wait; ``None`` for no limit of its own, and then one user can fill
            the queue.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    total: Count = 1_000
    per_user: Count | None = None
    per_agent: Count | dict[str, Count] | None = None
    queued_max: Count = 100_000
    queued_per_user: Count | None = None

    def of_agent(self, agent: str) -> int | None:
        """Return the limit of an agent, or ``None``."""
        return self.per_agent.get(agent) if isinstance(self.per_agent, dict) else self.per_agent


class Ticket:
    """A place in the queue; `granted` is called once, when there is a slot."""

    __slots__ = ("granted", "line", "number")

    def __init__(self, line: _Line, number: int, granted: Callable[[], None]) -> None:
        self.line = line
        self.number = number
        self.granted = granted


Key = tuple[int, float, int]
"""Who is first: those who resume, then by the user's tag, then by the number of the ticket."""


class _Party:
    """A user or an agent: how many slots it has, how many it may have, and who waits until it has fewer.

    Each line waits in one place only, so that nobody is looked at again and again: among the ready, or parked with
    the user or the agent that is full. What is parked is let out one line at a time (`Admission._let_out`).
    """

    __slots__ = ("limit", "lines", "parked", "running", "tags", "waiting")

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.running = 0
        self.waiting = [0, 0]  # resuming, and not
        self.tags = [0.0, 0.0]
        self.lines: dict[tuple[str, int], _Line] = {}
        self.parked: list[tuple[Key, _Line]] = []

    @property
    def full(self) -> bool:
        return self.limit is not None and self.running >= self.limit

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting[0] and not self.waiting[1]


class _Line:
    """The tickets of one user for one agent, the first come first: of those who resume, or of those who do not."""

    __slots__ = ("agent", "rank", "tickets", "to", "user", "who")

    def __init__(self, user: str, agent: str, rank: int, who: _Party, to: _Party) -> None:
        self.user = user
        self.agent = agent
        self.rank = rank
        self.who = who
        self.to = to
        self.tickets: OrderedDict[int, Ticket] = OrderedDict()

    def key(self) -> Key:
        return (self.rank, self.who.tags[self.rank], next(iter(self.tickets)))


class Admission:
    """Gives slots out.

    Invariants (tests/test_engine_admission.py): no limit is passed; while a slot is free, nobody waits who could
    have it; while nobody runs or waits, nothing is remembered.

    A call costs O(k log n), amortised: n tickets wait, and k is the number of agents that one user waits for.

    Attributes:
        running: How many slots are taken.
        waiting: How many tickets wait.
    """

    def __init__(self, slots: Slots) -> None:
        """Begin with all slots free."""
        self.slots = slots
        self.running = 0
        self.waiting = 0
        self._users: dict[str, _Party] = {}
        self._agents: dict[str, _Party] = {}
        # A key in a heap may be older than its line: then it is too small, and is corrected when it comes first.
        self._ready: list[tuple[Key, _Line]] = []
        self._parks: set[_Party] = set()
        self._empty: set[_Line] = set()  # lines whose tickets have all left; they go when their turn comes
        self._now = [0.0, 0.0]  # virtual time: of those who resume, and of those who begin
        self._active = [0, 0]  # how many users wait
        self._ahead: dict[str, list[float]] = {}  # tags of users who are gone and were served ahead of time
        self._ahead_max = MANY
        self._number = 0

    # --- in and out ---------------------------------------------------------------------------------------------

    def free(self, user: str, agent: str) -> bool:
        """Return whether there is a slot for this user and agent."""
        if self.running >= self.slots.total:
            return False
        who, to = self._users.get(user), self._agents.get(agent)
        return not ((who is not None and who.full) or (to is not None and to.full))

    def full(self, user: str) -> bool:
        """Return whether the queue takes no more tickets of this user."""
        most, who = self.slots.queued_per_user, self._users.get(user)
        return self.waiting >= self.slots.queued_max or (
            most is not None and who is not None and sum(who.waiting) >= most
        )

    def take(self, user: str, agent: str) -> bool:
        """Take a slot if there is one; nobody is passed by, since nobody waits who could have it."""
        if not self.free(user, agent):
            return False
        who, to = self._user(user), self._agent(agent)
        self.running += 1
        who.running += 1
        to.running += 1
        return True

    def wait(self, user: str, agent: str, granted: Callable[[], None], *, resumes: bool = False) -> Ticket:
        """Wait for a slot: `granted` is called when it is taken on behalf of the ticket.

        What `resumes` ran before, and goes on before those that have not begun. Give the ticket to `leave` if the
        slot is not wanted any more.
        """
        who, rank = self._user(user), 0 if resumes else 1
        line = who.lines.get((agent, rank))
        new = line is None
        if line is None:
            line = who.lines[agent, rank] = _Line(user, agent, rank, who, self._agent(agent))
        if not line.tickets:
            self._empty.discard(line)
            line.to = self._agent(agent)  # while nobody waited, the agent may have been forgotten
        self._number += 1
        ticket = line.tickets[self._number] = Ticket(line, self._number, granted)
        self.waiting += 1
        line.to.waiting[rank] += 1
        who.waiting[rank] += 1
        if who.waiting[rank] == 1:
            self._active[rank] += 1
            who.tags[rank] = max(who.tags[rank], self._now[rank])
        if new:
            heappush(self._ready, (line.key(), line))
        self._admit()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give up waiting. Nothing happens if the slot was granted already."""
        line = ticket.line
        if line.tickets.pop(ticket.number, None) is None:
            return
        self._gone(line)
        if not line.tickets:
            self._empty.add(line)
        if not self.waiting:
            self._rest()
        self._forget(line.user, line.agent)
        if len(self._empty) > MANY + self.waiting + len(self._users) + len(self._agents):
            self._tidy()

    def give_back(self, user: str, agent: str) -> None:
        """Give a slot back; the next ticket is granted at once."""
        who, to = self._users[user], self._agents[agent]
        self.running -= 1
        who.running -= 1
        to.running -= 1
        if self.waiting:
            self._let_out(who)
            self._let_out(to)
            self._admit()
        elif self._ready or self._parks or self._empty or self._ahead:
            self._rest()
        self._forget(user, agent)

    def _gone(self, line: _Line) -> None:
        """Count a ticket that waits no more."""
        rank = line.rank
        self.waiting -= 1
        line.to.waiting[rank] -= 1
        line.who.waiting[rank] -= 1
        if not line.who.waiting[rank]:
            self._active[rank] -= 1

    # --- the queue ----------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Grant what can be granted."""
        # Who is full stays full meanwhile: each line is corrected, parked or served, and let out of a park once at
        # most, so the loop ends.
        ready = self._ready
        while ready and self.running < self.slots.total:
            key, line = heappop(ready)
            who, to = line.who, line.to
            if not line.tickets:
                self._drop(line)
            elif key != (now := line.key()):
                heappush(ready, (now, line))
            elif who.full:
                self._park(who, key, line)
            elif to.full:
                self._park(to, key, line)
            else:
                self._grant(line)
                continue
            self._let_out(who)
            self._let_out(to)
        if not self.waiting:
            self._rest()

    def _grant(self, line: _Line) -> None:
        who, rank, now = line.who, line.rank, self._now
        ticket = line.tickets.popitem(last=False)[1]
        # Virtual time goes on by one while each user who waits gets one slot: so nobody who came before is overtaken
        # for ever by users who keep coming.
        tag = who.tags[rank]
        now[rank] = max(now[rank], tag) + 1.0 / self._active[rank]
        who.tags[rank] = max(now[rank], tag + 1.0)
        self._gone(line)
        self.running += 1
        who.running += 1
        line.to.running += 1
        if line.tickets:
            heappush(self._ready, (line.key(), line))
        else:
            self._drop(line)
        self._let_out(who)
        self._let_out(line.to)
        ticket.granted()

    def _park(self, party: _Party, key: Key, line: _Line) -> None:
        heappush(party.parked, (key, line))
        self._parks.add(party)

    def _let_out(self, party: _Party) -> None:
        """Let the first line that waited for a user or an agent try again, unless it would wait there again."""
        parked = party.parked
        if not parked or party.full:
            return
        while parked:
            entry = heappop(parked)
            if entry[1].tickets:
                heappush(self._ready, entry)
                break
            self._drop(entry[1])
        if not parked:
            self._parks.discard(party)

    def _drop(self, line: _Line) -> None:
        """Forget a line that has no tickets and is in no heap."""
        self._empty.discard(line)
        line.who.lines.pop((line.agent, line.rank), None)

    # --- who is known -------------------------------------------------------------------------------------------

    def _user(self, name: str) -> _Party:
        party = self._users.get(name)
        if party is None:
            party = self._users[name] = _Party(self.slots.per_user)
            party.tags = self._ahead.pop(name, party.tags)
        return party

    def _agent(self, name: str) -> _Party:
        party = self._agents.get(name)
        if party is None:
            party = self._agents[name] = _Party(self.slots.of_agent(name))
        return party

    def _forget(self, user: str, agent: str) -> None:
        """Forget a user and an agent that neither run nor wait."""
        who, to = self._users.get(user), self._agents.get(agent)
        if who is not None and who.idle:
            del self._users[user]
            if who.parked:
                self._clear(who)
            if self.waiting and self._is_ahead(who.tags):
                self._ahead[user] = who.tags
                if len(self._ahead) > self._ahead_max:
                    self._ahead = {name: tags for name, tags in self._ahead.items() if self._is_ahead(tags)}
                    self._ahead_max = 2 * len(self._ahead) + MANY
        if to is not None and to.idle:
            del self._agents[agent]
            if to.parked:
                self._clear(to)

    def _rest(self) -> None:
        """Forget all queues: nobody waits."""
        self._ready.clear()
        for party in tuple(self._parks):
            self._clear(party)
        for line in tuple(self._empty):
            self._drop(line)
        self._ahead.clear()

    def _clear(self, party: _Party) -> None:
        """Drop the lines that are parked with somebody for whom nobody waits any more: they are empty."""
        for _, line in party.parked:
            self._drop(line)
        party.parked.clear()
        self._parks.discard(party)

    def _is_ahead(self, tags: list[float]) -> bool:
        """Return whether tags say more than none would."""
        return tags[0] > self._now[0] or tags[1] > self._now[1]

    def _tidy(self) -> None:
        """Drop the lines of those who left; what waited behind them is let out."""
        for heap in (self._ready, *(party.parked for party in self._parks)):
            heap[:] = [entry for entry in heap if entry[1].tickets]
            heapify(heap)
        for line in tuple(self._empty):
            self._drop(line)
        for party in tuple(self._parks):
            self._let_out(party)
            if not party.parked:
                self._parks.discard(party)


class Seat:
    """An execution's slot. A child has none of its own (`free`): it runs in its parent's."""

    def __init__(self, admission: Admission, user: str, agent: str, *, free: bool = False) -> None:
        self._admission = admission
        self._user = user
        self._agent = agent
        self._free = free
        self._closed = False
        self._ticket: Ticket | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self.held = free

    def give(self) -> None:
        """Give the slot back, if it is held."""
        if self.held and not self._free:
            self.held = False
            self._admission.give_back(self._user, self._agent)

    def close(self) -> None:
        """Give the slot back for good: what still waits for one learns that the execution is over."""
        self._closed = True
        self.give()
        if self._ticket is not None:
            self._leave()
        if self._waiting:
            self._wake()

    def queue_up(self, *, resumes: bool = False, bounded: bool = False) -> bool:
        """Take a slot if there is one, else a place in the queue; return whether it has the slot.

        Raises:
            EngineFull: The place is `bounded` by the queue's limits, and too many wait already.
        """
        if not self.held and not self._closed and self._ticket is None:
            admission, user, agent = self._admission, self._user, self._agent
            self.held = admission.take(user, agent)
            if not self.held:
                if bounded and admission.full(user):
                    raise EngineFull(admission.waiting)
                ticket = admission.wait(user, agent, self._granted, resumes=resumes)
                self._ticket = None if self.held else ticket
        return self.held

    async def take(self, *until: asyncio.Future[None], resumes: bool = False) -> None:
        """Wait for a slot, or `until` something else is done; a wait that the last waiter leaves leaves nothing behind.

        However many branches of an agent wait, it is one slot that they wait for.

        Raises:
            RunOver: The execution is over.
        """
        if not self.queue_up(resumes=resumes) and not self._closed:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            try:
                await asyncio.wait({future, *until}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._waiting.remove(future)
                if not self._waiting and self._ticket is not None:
                    self._leave()
        if self._closed:
            raise RunOver("the execution is over: it gets no slot any more")

    def _granted(self) -> None:
        self._ticket, self.held = None, True
        self._wake()

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def _leave(self) -> None:
        if self._ticket is not None:
            self._admission.leave(self._ticket)
            self._ticket = None
