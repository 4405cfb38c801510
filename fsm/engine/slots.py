"""Slots: how many executions of an engine may run at once, and who is next.

Pure bookkeeping on one thread: no clock, no I/O, no asyncio. Whoever gets no slot waits with a `Ticket`; when a slot
is given back, the next ticket's `granted` is called. Between users it is fair: the queue is served by start tags, as
in start-time fair queueing (Goyal, Vin, Cheng 1996), so that a user with a thousand waiting executions delays
another user's first one by no more than one slot. Among one user's tickets the first come is the first served.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MANY = 10_000
"""From so many entries on, what is remembered of users and of those who left is tidied up."""

Count = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]


class Slots(BaseModel):
    """How many executions of one engine may run at once. Whoever waits (queue, backoff, a person) takes no slot.

    Attributes:
        total: In all.
        per_user: Of one user; ``None`` for no limit of its own.
        per_agent: Of one agent; a number for each of them, or a number by the agent's name.
        queued_max: So many may wait for a slot; the next one is refused with `EngineFull`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    total: Count = 1_000
    per_user: Count | None = None
    per_agent: Count | dict[str, Count] | None = None
    queued_max: Count = 100_000

    def of_agent(self, agent: str) -> int | None:
        """Return the limit of an agent, or ``None``."""
        return self.per_agent.get(agent) if isinstance(self.per_agent, dict) else self.per_agent


class Ticket:
    """A place in the queue; `granted` is called once, when there is a slot."""

    __slots__ = ("agent", "granted", "key", "user", "void")

    def __init__(self, user: str, agent: str, granted: Callable[[], None]) -> None:
        self.user = user
        self.agent = agent
        self.granted = granted
        self.key: tuple[int, float, int] = (0, 0.0, 0)
        self.void = False

    def __lt__(self, other: Ticket) -> bool:
        return self.key < other.key


class Admission:
    """Gives slots out.

    Invariant (tests/test_engine_slots.py): while a slot is free, nobody waits who could have it.

    Attributes:
        running: How many slots are taken.
        waiting: How many tickets wait.
    """

    def __init__(self, slots: Slots) -> None:
        """Begin with all slots free."""
        self.slots = slots
        self.running = 0
        self.waiting = 0
        self._by_user: dict[str, int] = {}
        self._by_agent: dict[str, int] = {}
        self._heap: list[Ticket] = []
        # Tickets whose user or agent is at the limit wait here, so that they are not looked at again and again.
        self._of_user: dict[str, list[Ticket]] = {}
        self._of_agent: dict[str, list[Ticket]] = {}
        self._now = 0.0  # virtual time: the start tag of the ticket that was served last
        self._last: dict[str, float] = {}  # the start tag of each user's last ticket, while the user has any
        self._number = 0
        self._left = 0  # tickets that were given up and are still somewhere in the queues

    # --- who is full --------------------------------------------------------------------------------------------

    def _user_full(self, user: str) -> bool:
        limit = self.slots.per_user
        return limit is not None and self._by_user.get(user, 0) >= limit

    def _agent_full(self, agent: str) -> bool:
        limit = self.slots.of_agent(agent)
        return limit is not None and self._by_agent.get(agent, 0) >= limit

    # --- in and out ---------------------------------------------------------------------------------------------

    def take(self, user: str, agent: str) -> bool:
        """Take a slot if there is one; nobody is passed by, since nobody waits who could have it."""
        if self.running >= self.slots.total or self._user_full(user) or self._agent_full(agent):
            return False
        self._count(user, agent, 1)
        return True

    def wait(self, user: str, agent: str, granted: Callable[[], None], *, resumes: bool = False) -> Ticket:
        """Wait for a slot.

        Args:
            user: The user.
            agent: The agent's name.
            granted: Called when the slot is taken on behalf of the ticket.
            resumes: It ran before, and goes on before those that have not begun.

        Returns:
            The ticket; give it to `leave` if it is not wanted any more.
        """
        ticket = Ticket(user, agent, granted)
        self._number += 1
        if resumes:
            ticket.key = (0, 0.0, self._number)
        else:
            tag = max(self._now, self._last.get(user, self._now) + 1.0)
            if len(self._last) >= MANY:  # a tag that has passed says no more than none
                self._last = {one: last for one, last in self._last.items() if last > self._now}
            self._last[user] = tag
            ticket.key = (1, tag, self._number)
        self.waiting += 1
        heappush(self._heap, ticket)
        self._admit()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give up waiting. Nothing happens if the slot was granted already."""
        if not ticket.void:
            ticket.void = True
            self.waiting -= 1
            self._left += 1
            if self._left > self.waiting + MANY:
                self._tidy()

    def _tidy(self) -> None:
        """Drop the tickets of those who left; otherwise they go when their turn comes."""
        self._left = 0
        queues = [self._heap, *self._of_user.values(), *self._of_agent.values()]
        for queue in queues:
            queue[:] = [ticket for ticket in queue if not ticket.void]
            heapify(queue)

    def give_back(self, user: str, agent: str) -> None:
        """Give a slot back; the next ticket is granted at once."""
        self._count(user, agent, -1)
        self._unpark(user, agent)
        self._admit()

    def _count(self, user: str, agent: str, change: int) -> None:
        self.running += change
        for counts, name in ((self._by_user, user), (self._by_agent, agent)):
            left = counts.get(name, 0) + change
            if left:
                counts[name] = left
            else:
                del counts[name]

    # --- the queue ----------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Grant what can be granted. Each turn takes a ticket out of the heap, so the loop ends."""
        heap = self._heap
        while heap and self.running < self.slots.total:
            ticket = heappop(heap)
            user, agent = ticket.user, ticket.agent
            if ticket.void:
                self._unpark(user, agent)
            elif self._user_full(user):
                heappush(self._of_user.setdefault(user, []), ticket)
                self._unpark(user, agent)
            elif self._agent_full(agent):
                heappush(self._of_agent.setdefault(agent, []), ticket)
                self._unpark(user, agent)
            else:
                ticket.void = True
                self.waiting -= 1
                self._now = max(self._now, ticket.key[1])
                self._count(user, agent, 1)
                self._unpark(user, agent)
                ticket.granted()
        if not self.waiting:
            self._last.clear()
            self._heap.clear()
            self._of_user.clear()
            self._of_agent.clear()

    def _unpark(self, user: str, agent: str) -> None:
        """Let the next ticket that waited for this user or agent try again, unless it would wait there again."""
        for parked, name, full in (
            (self._of_user, user, self._user_full),
            (self._of_agent, agent, self._agent_full),
        ):
            tickets = parked.get(name)
            if tickets and not full(name):
                heappush(self._heap, heappop(tickets))
                if not tickets:
                    del parked[name]
