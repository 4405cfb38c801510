"""What one registry shows of its executions, and takes for them: to everybody, or to one user.

`Scope` holds what can be narrowed to one user. The process's tracker and the tracker of one user
(``tracker.for_user(user_id)``) are scopes; what cannot be narrowed is a method of the process's tracker alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fsm.core.arguments import flag
from fsm.core.decide import allowed as allowed_events
from fsm.core.journal import durations
from fsm.core.records import Execution, Receipt, Retry
from fsm.machine.machine import Machine
from fsm.machine.timeouts import Timeouts
from fsm.registry.registry import Registry
from fsm.tracker import queries, stream


class Scope:
    """One registry as it is seen by one user, or by all.

    Every read and every write names whom it is for: `_user_id` is ``None`` for all, and what is another user's is as
    unknown as if it did not exist (tests/tracker/test_isolation.py).
    """

    _registry: Registry
    _user_id: str | None

    def _sees(self, user_id: str | None) -> bool:
        """Return whether any execution of that user may be shown; ``None`` names no user in particular."""
        raise NotImplementedError

    def _filter(self, user_id: str | None) -> str | None:
        """Return whose executions are looked for."""
        raise NotImplementedError

    # --- write ------------------------------------------------------------------------------------------------

    def _create(  # noqa: PLR0913 - what an execution is born with
        self,
        agent: str,
        *,
        user_id: str,
        thread_id: str,
        timeouts: Timeouts | Mapping[str, Any] | None,
        retry: Retry | Mapping[str, Any] | None,
        parent_id: str | None,
        retry_of: str | None,
        metadata: Mapping[str, Any] | None,
        machine: Machine | str | None,
        key: str | None,
    ) -> Execution:
        command = self._registry.birth(
            agent,
            user_id=user_id,
            thread_id=thread_id,
            timeouts=timeouts,
            retry=retry,
            parent_id=parent_id,
            retry_of=retry_of,
            metadata=metadata,
            machine=machine,
            key=key,
        )
        self._registry.committer.commit(command)
        return self._registry.created(command)

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
            InvalidArgument: The payload does not fit the event.
            StoreUnavailable: The store did not answer; ``committed`` says what is known.
        """
        registry = self._registry
        command = registry.event(execution_id, event, payload, fence=fence, key=key, user_id=self._user_id)
        registry.committer.commit(command)
        receipt = registry.receipt(command)
        if command.effects:
            registry.carry_out(command)
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

    def find(
        self,
        *,
        state: str | Iterable[str] | None = None,
        category: str | None = None,
        agent: str | None = None,
        user_id: str | None = None,
        thread_id: str | None = None,
        parent_id: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Execution]:
        """Return a page of executions in the order of their creation.

        Paging is stable: pass the last id of a page as `after` and nothing is seen twice or missed, whatever is
        created in between.

        Args:
            state: A state, or several.
            category: pending, running, waiting, stopping or terminal.
            agent: The agent's name.
            user_id: Whose they are.
            thread_id: The conversation.
            parent_id: The execution that started them.
            limit: How many at the most.
            after: The id after which to go on.

        Raises:
            InvalidArgument: A state or category does not exist, or the limit is out of range.
        """
        question = queries.query(
            self._registry,
            state=state,
            category=category,
            agent=agent,
            user_id=user_id,
            thread_id=thread_id,
            parent_id=parent_id,
            limit=limit,
            after=after,
        )
        if not self._sees(question.user_id):
            return []
        question = question._replace(user_id=self._filter(question.user_id))
        return queries.find(self._registry, question, category)

    def counts(self) -> dict[str, int]:
        """Return how many executions there are by state; states without any are left out."""
        return self._registry.store.counts(self._user_id)

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
        wanted = stream.wanted(after, execution_id, user_id)
        if not self._sees(wanted.user_id):
            return iter(())
        wanted = wanted._replace(user_id=self._filter(wanted.user_id))
        return stream.follow(self._registry, wanted, wait=follow)
