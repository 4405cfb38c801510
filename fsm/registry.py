"""What stands behind every face of the tracker: the store, its committer, the machines, the clock.

The faces (`fsm.tracker`, `fsm.aio`) turn calls into commands here and outcomes into results; whether a caller blocks
or awaits between the two is all in which they differ.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from fsm import ids
from fsm.checks import (
    MAX_NUMBER,
    check_limits,
    exact,
    metadata_json,
    model,
    optional_text,
    text,
    unknown,
    whole,
)
from fsm.clock import Clock
from fsm.command import Command
from fsm.committer import Committer
from fsm.decide import create
from fsm.errors import (
    BadPayload,
    ConfigurationError,
    FsmError,
    LeaseLost,
    Refusal,
    Refused,
    StoreUnavailable,
    UnknownExecution,
)
from fsm.forks import anew_after_fork
from fsm.laws import LawBook
from fsm.machine import CREATE, Category, Machine
from fsm.reader import Reader
from fsm.records import CANCEL_CHILDREN, Execution, Identity, Receipt, Retry, Snapshot, view
from fsm.shown import shown
from fsm.stores.base import Order, Query, Store
from fsm.supervised import Health
from fsm.timeouts import Timeouts

logger = logging.getLogger(__name__)

_OVER = frozenset({Category.TERMINAL, Category.STOPPING})
_TOO_LATE = frozenset({"stale", "terminal"})
_TOO_LATE_TO_CANCEL = _TOO_LATE | {"not_allowed"}  # somebody else has told it to stop


class Leaseholder(Protocol):
    """What the registry needs to know of the worker that this process is (`fsm.worker.Worker`)."""

    id: str
    lost: bool


class Registry(LawBook):
    """One store and all that is needed to drive it."""

    def __init__(self, store: Store, clock: Clock, machines: Iterable[Machine]) -> None:
        """Set up.

        Args:
            store: An open store; it is closed with the registry.
            clock: Where time comes from.
            machines: The machines that executions can be created on.

        Raises:
            ConfigurationError: Two machines share a name, or one names a change that executions do not have.
        """
        super().__init__(store)
        self.clock = clock
        self.closed = False
        self.ids = ids.MAKER
        self.health = Health(clock.wall)
        self.reader = Reader(store)
        self._worker: tuple[int, str] = (0, "")
        anew_after_fork(self)
        self.worker: Leaseholder | None = None
        self.closing: list[Callable[[], None]] = []
        self.listeners: dict[Callable[[], None], None] = {}  # a set that keeps its order, so that runs replay
        self.rng = random.Random()  # noqa: S311 - jitter, not a secret
        self._offset_s = store.timeline(clock.era(), clock.wall() - clock.monotonic())
        self.committer = Committer(store, self.law_of)
        for machine in machines:
            self.add(machine)

    def now(self) -> float:
        """Return the instant on the steady timeline, in seconds since the epoch, near enough.

        Deadlines and leases live here. It is the monotonic clock, shifted by an offset that the first process of a
        boot wrote into the store: the same for all processes, and a wall clock that jumps does not move it.
        """
        return self.clock.monotonic() + self._offset_s

    # --- commands ---------------------------------------------------------------------------------------------

    @property
    def worker_id(self) -> str:
        """The id under which this process claims executions; a forked child gets its own.

        It is that of the registered worker if there is one; otherwise no lease watches over what is claimed, and
        deadlines alone end it.
        """
        worker = self.worker
        if worker is not None:
            return worker.id
        pid = os.getpid()
        if self._worker[0] != pid:
            self._worker = (pid, self.ids.make("worker"))
        return self._worker[1]

    def birth(  # noqa: PLR0913 - what an execution is born with
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
    ) -> Command:
        """Return the command that creates an execution; see `Tracker.create` for the arguments."""
        if machine is not None and not isinstance(machine, Machine):
            machine = text("machine", machine)
        chosen = self.machine_for(machine)
        limits = model(Timeouts, timeouts, "timeouts")
        if limits is not None:
            check_limits(chosen, limits)
        tries = model(Retry, retry, "retry") or Retry()
        user_id = text("user_id", user_id)
        if parent_id is not None:
            self._parent(parent_id, user_id)
        if retry_of is not None:
            self.load(retry_of, user_id)
        at = self.clock.wall()
        identity = Identity(
            self.ids.make("exec"),
            chosen.content_hash,
            text("agent", agent),
            user_id,
            text("thread_id", thread_id),
            parent_id,
            retry_of,
            at,
            tries.attempts_max,
            tries.model_attempts_max,
            metadata_json(metadata),
            limits.model_dump_json(exclude_unset=True) if limits is not None else None,
            self.now(),
            tries.backoff_s,
            tries.backoff_cap_s,
        )
        return Command(identity.id, CREATE, at=at, born=create(chosen, identity))

    def _parent(self, parent_id: str, user_id: str | None) -> None:
        parent = self.load(parent_id, user_id)
        machine = self.law_of(parent.identity.machine).machine
        if machine.by_name[parent.state].category in _OVER:
            detail = "the parent has ended or is about to: it cannot start children any more"
            raise Refused(Refusal(parent_id, parent.state, CREATE, "terminal", (), parent.version, detail))

    def event(
        self,
        execution_id: str,
        event: str,
        payload: Mapping[str, Any],
        *,
        fence: int | None,
        key: str | None,
        user_id: str | None,
    ) -> Command:
        """Return the command that fires an event; see `Tracker.fire` for the arguments."""
        if type(event) is not str:
            raise BadPayload(f"an event is a name, as 'start', not {shown(event)}")
        if fence is not None:
            whole("fence, from a claim's receipt,", fence, 0, MAX_NUMBER)
        key = optional_text("key", key)
        execution_id = self._id(execution_id)
        worker = self.worker
        if worker is not None and worker.lost and fence is None and event in self._claims:
            # Nothing would watch over what a lost worker claims. Its other writes meet their stale fences.
            raise LeaseLost(worker.id)
        command = Command(
            execution_id,
            event,
            at=self.clock.wall(),
            now=self.now(),
            payload=payload,
            fence=fence,
            key=key,
            worker=self.worker_id,
            user_id=user_id,
            jitter=self.rng.random(),
        )
        command.unheard = self._unheard
        return command

    def order(
        self,
        execution_id: str,
        event: str,
        payload: Mapping[str, Any],
        *,
        version: int | None = None,
        holder: str | None = None,
    ) -> Command:
        """Return a command of the library itself, bound to what it was decided on.

        Args:
            execution_id: The execution.
            event: The event.
            payload: What comes with it.
            version: It is stale unless the execution is still at this version.
            holder: It is stale unless this worker still owns the execution.
        """
        return Command(
            execution_id,
            event,
            at=self.clock.wall(),
            now=self.now(),
            payload=payload,
            version=version,
            holder=holder,
            jitter=self.rng.random(),
        )

    def carry_all(self, commands: Sequence[Command]) -> int:
        """Carry out orders and their effects; those that came too late are passed over.

        Args:
            commands: From `order`.

        Returns:
            How many were committed.

        Raises:
            StoreUnavailable: The store did not answer.
        """
        self.committer.commit_all(commands)
        done = 0
        for command in commands:
            try:
                self.receipt(command)
            except StoreUnavailable:
                raise
            except Refused as error:
                if error.reason not in (_TOO_LATE_TO_CANCEL if command.event == "cancel" else _TOO_LATE):
                    logger.warning("%s", error)
                continue
            except UnknownExecution:
                continue  # it was pruned meanwhile
            except FsmError:
                logger.exception("%s: %r could not be carried out", command.execution_id, command.event)
                continue
            done += 1
            if command.effects:
                self.carry_out(command)
        return done

    def receipt(self, command: Command) -> Receipt:
        """Return what a command came to.

        Raises:
            Refused: The table, a guard, a fence or a key refused it.
            FsmError: Whatever else kept it from being carried out.
        """
        outcome = command.outcome
        if outcome is None:
            error = command.error
            if isinstance(error, UnknownExecution):
                raise unknown(command.execution_id)
            raise error or StoreUnavailable("the command was given up", committed=None)
        if isinstance(outcome, Refusal):
            raise Refused(outcome)
        self._announce()
        return outcome

    def _announce(self) -> None:
        if self.listeners:
            for listener in tuple(self.listeners):
                listener()

    def _unheard(self, command: Command) -> None:
        """Make up for a cancelled caller, in a thread of its own: whoever commits does not wait for it."""
        threading.Thread(target=self._make_up, args=(command,), name="fsm-unheard", daemon=True).start()

    def _make_up(self, command: Command) -> None:
        """Do for a caller that was cancelled while its command was committed what it would have done itself."""
        self._announce()
        self.carry_out(command)

    def created(self, command: Command) -> Execution:
        """Return the execution that a command created; raises as `receipt` does.

        Its parent may have ended between the check and the commit: then the store has kept the child out.
        """
        assert command.born is not None  # noqa: S101 - only births come here
        try:
            self.receipt(command)
        except Refused:
            parent_id = command.born.after.identity.parent_id
            if parent_id is not None:
                self._parent(parent_id, None)  # says how it ended
            raise
        return self.show(command.born.after)

    def carry_out(self, command: Command) -> None:
        """Carry out the effects of a committed command. They are orders: a failure is logged, never lost silently.

        The transition stands whatever becomes of them, so nothing is raised that would say otherwise. An order to
        cancel children stays with the store until it is carried out; a sweeper repeats what was left undone.
        """
        for effect in command.effects:
            if effect != CANCEL_CHILDREN or not isinstance(command.outcome, Receipt):
                logger.debug("%s: the effect %r is for the engine", command.execution_id, effect)
                continue
            try:
                self.call_off(Order(command.execution_id, command.outcome.version, command.event))
            except Exception:
                logger.exception("%s: could not carry out %r", command.execution_id, effect)

    def call_off(self, order: Order) -> int:
        """Cancel the children of an execution through the table, and theirs, page by page.

        Whatever has ended or is stopping is passed over, so any process may do it, again and again.

        Args:
            order: Whose children, and why.

        Returns:
            How many children were told to stop.

        Raises:
            StoreUnavailable: The store did not answer; the order stays.
        """
        done = 0
        failed = False
        after: str | None = None
        while True:  # no child is added any more, so the pages come to an end
            page = self.store.find(Query(parent_id=order.execution_id, after=after))
            cancels = [one for child in page if (one := self._cancel(child, order)) is not None]
            done += self.carry_all(cancels)
            failed = failed or any(isinstance(one.error, ConfigurationError) for one in cancels)
            if len(page) < Query().limit:
                break
            after = page[-1].identity.id
        if not failed:  # what this process has no payload for, another one may have
            self.store.carried(order)
        return done

    def _cancel(self, child: Snapshot, order: Order) -> Command | None:
        machine = self.law_of(child.identity.machine).machine
        if machine.by_name[child.state].category in _OVER or "cancel" not in machine.by_source[child.state]:
            return None
        payload = {"reason": f"its parent was ended by {order.event!r}", "by": order.execution_id}
        if machine.payload_names.get("cancel", "cancel") != "cancel":
            # A payload of the user's own; each has a note.
            payload = {"note": f"its parent {order.execution_id} was ended by {order.event!r}"}
        return self.order(child.identity.id, "cancel", payload)

    # --- reads ------------------------------------------------------------------------------------------------

    def load(self, execution_id: str, user_id: str | None) -> Snapshot:
        """Return a record.

        Raises:
            UnknownExecution: There is none, or it is another user's.
        """
        snapshot = self.store.load(self._id(execution_id))
        if snapshot is None or (user_id is not None and snapshot.identity.user_id != user_id):
            raise unknown(execution_id)
        return snapshot

    def known(self) -> tuple[Machine, ...]:
        """Return the machines that this process has met so far; the store is not asked for others'."""
        return tuple(law.machine for law in self._laws.values())

    @staticmethod
    def _id(execution_id: object) -> str:
        """Return an id as plain text; what is no text is the id of nothing."""
        plain = exact(execution_id)
        if not isinstance(plain, str):
            raise unknown(execution_id)
        return plain

    def show(self, snapshot: Snapshot) -> Execution:
        """Return the public view of a record."""
        return view(snapshot, self.law_of(snapshot.identity.machine).machine)

    def close(self) -> None:
        """Commit what is queued and close the store."""
        if not self.closed:
            for stop in self.closing:
                stop()
            self.closed = True
            self.committer.close()
            self.store.close()
            self.reader.close()
            for listener in tuple(self.listeners):
                listener()

    def after_fork(self) -> None:
        """Begin anew in a forked child: the worker is its parent, which alone renews the lease."""
        self.worker = None
