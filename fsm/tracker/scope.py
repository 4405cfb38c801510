"""What one registry shows of its executions, and takes for them: to everybody, or to one user.

`Scope` holds what can be narrowed to one user. The process's tracker and the tracker of one user
(``tracker.for_user(user_id)``) are scopes; what cannot be narrowed is a method of the process's tracker alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Self, Unpack

from fsm.core.arguments import flag
from fsm.core.decide import allowed as allowed_events
from fsm.core.journal import durations
from fsm.core.records import Execution, Receipt
from fsm.machine.machine import Machine
from fsm.registry.registry import Registry
from fsm.tracker import queries, stream
from fsm.tracker.options import CreateOptions, Filters, known, spelled
from fsm.tracker.waiting import ON_LOOP, ON_THREAD, Waiting, waits


class Scope:
    """One registry as it is seen by one user, or by all.

    Every read and every write names whom it is for: `_user_id` is ``None`` for all, and what is another user's is as
    unknown as if it did not exist (tests/tracker/test_isolation.py).
    """

    _registry: Registry
    _user_id: str | None
    _waiting: Waiting = ON_THREAD

    @classmethod
    def _of(cls, registry: Registry, user_id: str | None = None) -> Self:
        self = object.__new__(cls)
        self._registry = registry
        self._user_id = user_id
        return self

    def _on_loop(self) -> Self:
        """Return the same scope for an event loop: what it writes and follows is awaited."""
        twin = self._of(self._registry, self._user_id)
        twin._waiting = ON_LOOP
        return twin

    def _sees(self, user_id: str | None) -> bool:
        """Return whether any execution of that user may be shown; ``None`` names no user in particular."""
        return user_id is None or self._user_id is None or user_id == self._user_id

    # --- write ------------------------------------------------------------------------------------------------

    def _create(self, agent: str, user_id: str, thread_id: str, options: CreateOptions) -> Execution:
        known("create", options, CreateOptions)
        birth = partial(self._registry.birth, agent, user_id=user_id, thread_id=thread_id, **options)
        created: Execution = self._waiting.write(self._registry, birth, self._registry.created)
        return created

    @waits
    def fire(
        self,
        execution_id: str,
        event: str,
        /,
        *,
        fence: int | None = None,
        key: str | None = None,
        **payload: Any,
    ) -> Receipt:
        """Hand an event to an execution and return when the transition is committed.

        For asyncio: a caller that is cancelled while it waits does not undo the transition; it may be committed all
        the same.

        Args:
            execution_id: The execution.
            event: The event, as in the table.
            fence: For a worker: the fence from the receipt of its claim; a stale one is refused.
            key: Makes the call idempotent: the same key again returns the first receipt.
            **payload: What comes with the event; see `fsm.core.payloads`.

        Returns:
            The receipt of the committed transition.

        Raises:
            Refused: Nothing was changed; the refusal says why, and what is allowed.
            UnknownExecution: There is no such execution, or it is another user's.
            BadPayload: The payload does not fit the event.
            StoreUnavailable: The store did not answer; ``committed`` says what is known.
        """
        registry = self._registry
        command = registry.event(execution_id, event, payload, fence=fence, key=key, user_id=self._user_id)
        receipt: Receipt = self._waiting.write(registry, command, registry.receipt)
        return receipt

    # --- read -------------------------------------------------------------------------------------------------

    def get(self, execution_id: str) -> Execution:
        """Return an execution as it is now.

        Raises:
            UnknownExecution: There is no such execution, or it is another user's.
        """
        return self._registry.show(self._registry.load(execution_id, self._user_id))

    def history(self, execution_id: str) -> list[Receipt]:
        """Return the journal of an execution: its creation, then every transition.

        Raises:
            UnknownExecution: There is no such execution, or it is another user's.
        """
        self._registry.load(execution_id, self._user_id)
        return self._registry.store.history(execution_id)

    def durations(self, execution_id: str) -> dict[str, float]:
        """Return the seconds that an execution spent in each state so far; an ended one's stand still.

        Raises:
            UnknownExecution: There is no such execution, or it is another user's.
        """
        machine = self.machine_of(execution_id)
        history = self._registry.store.history(execution_id)
        return durations(history, machine.terminal, self._registry.clock.wall())

    def allowed(self, execution_id: str) -> tuple[str, ...]:
        """Return the events that an execution would accept now, in the order of the table.

        Those of its owner, which need a fence, are among them; those of the system are not for a user's tracker.

        Raises:
            UnknownExecution: There is no such execution, or it is another user's.
        """
        snapshot = self._registry.load(execution_id, self._user_id)
        machine = self._registry.law_of(snapshot.identity.machine).machine
        return allowed_events(machine, snapshot, narrowed=self._user_id is not None)

    def machine_of(self, execution_id: str) -> Machine:
        """Return the machine that an execution is an instance of.

        Raises:
            UnknownExecution: There is no such execution, or it is another user's.
        """
        snapshot = self._registry.load(execution_id, self._user_id)
        return self._registry.law_of(snapshot.identity.machine).machine

    @spelled(Filters)
    def find(
        self, *, limit: int = 100, after: str | None = None, **filters: Unpack[Filters]
    ) -> list[Execution]:
        """Return a page of executions in the order of their creation.

        Paging is stable: pass the last id of a page as `after` and nothing is seen twice or missed, whatever is
        created in between.

        Args:
            limit: Maximum number of executions.
            after: The id after which to go on.
            **filters: What must be true of them:
                ``state``: a state, or several; ``category``: pending, running, waiting, stopping or terminal;
                ``agent``: the agent's name; ``user_id``: whose they are; ``thread_id``: the conversation;
                ``parent_id``: the execution that started them.

        Raises:
            InvalidArgument: A state or category does not exist, or the limit is out of range.
        """
        known("find", filters, Filters)
        question = queries.query(self._registry, limit=limit, after=after, **filters)
        if not self._sees(question.user_id):
            return []
        question = question._replace(user_id=self._user_id or question.user_id)
        return queries.find(self._registry, question, filters.get("category"))

    def counts(self) -> dict[str, int]:
        """Return how many executions there are by state; states without any are left out."""
        return self._registry.store.counts(self._user_id)

    @waits
    def subscribe(
        self,
        *,
        after: int | None = None,
        execution_id: str | None = None,
        user_id: str | None = None,
        follow: bool = True,
    ) -> Iterator[Receipt]:
        """Yield receipts as they are committed, by this process and by others on the same store.

        Args:
            after: The last position that was seen; 0 for the beginning, ``None`` for from now on.
            execution_id: Only this execution's; the stream then ends with the execution.
            user_id: Only this user's.
            follow: Wait for more; otherwise stop at the end of what there is.

        Raises:
            InvalidArgument: An argument has a wrong type or value.
            UnknownExecution: There is no such execution, or it is another user's.
        """
        flag("follow", follow)
        want = stream.wanted(after, execution_id, user_id)
        mine = want._replace(user_id=self._user_id or want.user_id) if self._sees(want.user_id) else None
        receipts: Iterator[Receipt] = self._waiting.follow(self._registry, mine, wait=follow)
        return receipts
