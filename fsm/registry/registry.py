"""What stands behind every face of the tracker: the store, its committer, the machines, the clock.

The faces (`fsm.tracker.tracker`, `fsm.tracker.aio`) turn calls into commands here and outcomes into results; whether
a caller blocks or awaits between the two is all in which they differ.
"""

from __future__ import annotations

import logging
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, ParamSpec, Protocol, TypeVar

from fsm import ids
from fsm.clock import Clock
from fsm.concurrency.forks import anew_after_fork
from fsm.concurrency.locks import inside
from fsm.concurrency.supervised import UNREADABLE, Health, one_line
from fsm.concurrency.threads import Threads
from fsm.core.arguments import (
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
from fsm.core.decide import childless, create
from fsm.core.records import CANCEL_CHILDREN, Execution, Identity, Receipt, Retry, Snapshot, view
from fsm.core.request import Request
from fsm.errors import (
    FsmError,
    InvalidArgument,
    KeyTaken,
    LeaseLost,
    Refusal,
    Refused,
    StoreUnavailable,
    UnknownExecution,
)
from fsm.errors.shown import shown
from fsm.machine.grammar import CREATE, Category
from fsm.machine.machine import Machine
from fsm.machine.timeouts import Timeouts
from fsm.registry.aftermath import Aftermath
from fsm.registry.catalog import LawBook
from fsm.registry.command import Command
from fsm.registry.committer import Committer
from fsm.registry.ear import Ear
from fsm.registry.pulse import Pulse
from fsm.registry.reader import Reader
from fsm.registry.steady import SteadyClock
from fsm.stores.base import Order, Query, Store

logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

MAX_DEPTH = 1_000
"""Maximum number of parents above an execution. No agent that means it starts children of children a thousand deep; one
that starts itself does, and each level costs a row, a slot's wait and a commit at the end."""
MAX_PAGES = 10_000
"""Maximum number of pages of children that are cancelled by one order; a sweeper goes on with what is left."""
MAX_ORDERS = 100_000
"""Maximum number of orders that are carried out because of one; a sweeper goes on with what is left."""

_OVER = frozenset({Category.TERMINAL, Category.STOPPING})
_TOO_LATE = frozenset({"stale", "terminal"})
_TOO_LATE_TO_CANCEL = _TOO_LATE | {"not_allowed"}  # somebody else has told it to stop


_STUCK: Literal["stuck"] = "stuck"


class _Carried(NamedTuple):
    """What became of orders: those that were committed, how many are set aside, and the error of an absent store."""

    done: list[Command]
    stuck: int
    unavailable: StoreUnavailable | None


def _order_of(command: Command) -> tuple[Order, ...]:
    """Return the order to cancel children that a committed command has left with the store, if any."""
    if CANCEL_CHILDREN not in command.effects or not isinstance(command.outcome, Receipt):
        return ()
    return (Order(command.request.execution_id, command.outcome.version, command.request.event),)


class Leaseholder(Protocol):
    """What the registry needs to know of the worker that this process is (`fsm.tracker.worker.Worker`)."""

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
        self._over = False
        self.ids = ids.MAKER
        self.steady = SteadyClock(store, clock)
        self.now = self.steady.now
        """Returns the instant on the steady timeline, where deadlines and leases lie (`fsm.core.timeline`)."""
        self.health = Health(clock.wall, self.now)
        self.sweep_from: tuple[float, str] | None = None
        """Where the next sweep of deadlines goes on; ``None`` for the beginning."""
        self.orders_from = ""
        """Where the next sweep of orders goes on."""
        self.threads = Threads("fsm-store")
        self.reader = Reader(store)
        self._worker: tuple[int, str] = (0, "")
        anew_after_fork(self)
        self.worker: Leaseholder | None = None
        self.closing: list[Callable[[], None]] = []
        self.parts: dict[type, object] = {}
        """What the layers above made for this registry, by its type; it lives as long as the registry."""
        self.listeners: dict[Callable[[], None], None] = {}  # a set that keeps its order, so that runs replay
        self.rng = random.Random()  # noqa: S311 - jitter, not a secret
        self.aftermath = Aftermath(self.health.loop("aftermath"))
        self.committer = Committer(
            store, self.law_of, loop=self.health.loop("committer"), later=self.aftermath.later
        )
        self.committer.misheard = self.health.failed
        self.pulse = Pulse(store, self.health, clock, self.now, self._named)
        self.ear = Ear(store, self.health, self._announce)
        self.health.stirred = self.pulse.stirred
        for machine in machines:
            self.add(machine)

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
        timeouts: Timeouts | Mapping[str, Any] | None = None,
        retry: Retry | Mapping[str, Any] | None = None,
        parent_id: str | None = None,
        retry_of: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        machine: Machine | str | None = None,
        key: str | None = None,
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
        key = optional_text("key", key)
        repeated = key is not None and self.store.born(user_id, key) is not None
        depth = 0
        if parent_id is not None and not repeated:  # what it leaned on then may have ended since
            parent = self._parent(parent_id, user_id)
            depth = parent.identity.depth + 1
            if depth > MAX_DEPTH:
                detail = (
                    f"it has {MAX_DEPTH} parents above it, and no more are allowed: let the agent that starts itself "
                    "come to an end"
                )
                raise Refused(Refusal(parent_id, parent.state, CREATE, "limit", (), parent.version, detail))
        if retry_of is not None and not repeated:
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
            key,
            depth,
        )
        return Command(Request(CREATE, at, execution_id=identity.id), create(chosen, identity))

    def _parent(self, parent_id: str, user_id: str | None) -> Snapshot:
        parent = self.load(parent_id, user_id)
        machine = self.law_of(parent.identity.machine).machine
        if machine.by_name[parent.state].category in _OVER:
            raise Refused(childless(parent))
        return parent

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
            raise InvalidArgument(f"an event is a name, as 'start', not {shown(event)}")
        if fence is not None and not (type(fence) is int and 0 <= fence <= MAX_NUMBER):
            whole("fence, from a claim's receipt,", fence, 0, MAX_NUMBER)  # it says what is wrong
        if key is not None:
            key = text("key", key)
        if type(execution_id) is not str:
            execution_id = self._id(execution_id)
        worker = self.worker
        if worker is not None and worker.lost and fence is None and event in self._claims:
            # Nothing would watch over what a lost worker claims. Its other writes meet their stale fences.
            raise LeaseLost(worker.id)
        request = Request(
            event,
            self.clock.wall(),
            payload,
            execution_id=execution_id,
            now=self.now(),
            fence=fence,
            key=key,
            worker=self.worker_id if event in self._claims else None,
            user_id=user_id,
            jitter=self.rng.random(),
        )
        return Command(request, None, self._unheard)

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
        request = Request(
            event,
            self.clock.wall(),
            payload,
            execution_id=execution_id,
            now=self.now(),
            version=version,
            holder=holder,
            jitter=self.rng.random(),
            ordered=True,
        )
        return Command(request)

    def carry_all(self, commands: Sequence[Command]) -> int:
        """Carry out orders and their effects; those that came too late are passed over.

        What cannot be carried out in this process is set aside (`Registry.health`) and keeps none of the others.

        Args:
            commands: From `order`.

        Returns:
            How many were committed.

        Raises:
            StoreUnavailable: The store did not answer; what was committed has had its effects all the same.
        """
        carried = self._carry(commands)
        for command in carried.done:
            if command.effects:
                self.carry_out(command)
        if carried.unavailable is not None:
            raise carried.unavailable
        return len(carried.done)

    def _carry(self, commands: Sequence[Command]) -> _Carried:
        """Commit orders, and set aside what cannot be carried out here."""
        self._commit_apart(commands)
        done: list[Command] = []
        stuck = 0
        unavailable: StoreUnavailable | None = None
        for command in commands:
            try:
                self.receipt(command)
            except StoreUnavailable as error:
                unavailable = unavailable or error
            except UnknownExecution:
                continue  # it was pruned in between
            except Refused as error:
                if error.reason not in (
                    _TOO_LATE_TO_CANCEL if command.request.event == "cancel" else _TOO_LATE
                ):
                    stuck += 1
                    self.health.set_aside(
                        command.request.execution_id,
                        error.version,
                        str(error),
                        self.now(),
                        event=command.request.event,
                    )
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                stuck += 1
                self._set_aside(command, error)
            else:
                done.append(command)
                self.health.take_back(command.request.execution_id, event=command.request.event)
        return _Carried(done, stuck, unavailable)

    def _commit_apart(self, commands: Sequence[Command]) -> None:
        """Commit orders, and once more one by one those that another one's error has torn down with it.

        An order is bound to what it was decided on, so that a repetition of one that was committed comes too late.
        """
        torn = False
        try:
            self.committer.commit_all(commands)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            logger.debug("a batch of orders was torn down: %s", one_line(error))
            torn = True  # a validator that calls sys.exit, say
        for command in commands if len(commands) > 1 else ():
            if command.outcome is None and (torn or not isinstance(command.error, FsmError)):
                command.error = None
                try:
                    self.committer.commit(command)
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    command.error = error

    def _set_aside(self, command: Command, error: BaseException) -> None:
        version = command.request.version
        if version is None:
            version = self._version_of(command.request.execution_id)
        # An error of this library says by itself what is wrong; any other one is logged with its traceback.
        said = one_line(error) if isinstance(error, FsmError) else error
        self.health.set_aside(
            command.request.execution_id, version, said, self.now(), event=command.request.event
        )

    def _version_of(self, execution_id: str) -> int:
        """Return the version that an execution is at, or -1 if even that cannot be read."""
        try:
            snapshot = self.store.load(execution_id)
        except FsmError:
            return UNREADABLE
        return UNREADABLE if snapshot is None else snapshot.version

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
                raise unknown(error.execution_id)
            raise error or StoreUnavailable("the command was given up", committed=None)
        if isinstance(outcome, Refusal):
            raise Refused(outcome)
        if self.listeners:
            self._announce()
        return outcome

    def _announce(self) -> None:
        for listener in tuple(self.listeners):
            self.health.call("a listener", listener)

    def _unheard(self, command: Command) -> None:
        """Make up for a cancelled caller: what may wait for a disk is done on another thread.

        If no thread can be had, a sweeper finds the order to cancel children in the store.
        """
        if CANCEL_CHILDREN in command.effects:
            self.aftermath.later(partial(self._make_up, command))
        else:
            self._announce()

    def _make_up(self, command: Command) -> None:
        """Do for a caller that was cancelled while its command was committed what it would have done itself."""
        self._announce()
        self.carry_out(command)

    def created(self, command: Command) -> Execution:
        """Return the execution that a command created; raises as `receipt` does."""
        assert command.born is not None  # noqa: S101 - only births come here
        try:
            self.receipt(command)
        except KeyTaken as taken:
            return self._repeated(command.born.after.identity, taken.execution_id)
        return self.show(command.born.after)

    def _repeated(self, identity: Identity, first_id: str) -> Execution:
        """Return what an earlier creation with the same key made, if it was the same creation."""
        first = self.load(first_id, identity.user_id)
        made = first.identity._replace(
            id=identity.id, created_at=identity.created_at, born_at=identity.born_at, depth=identity.depth
        )
        if made == identity:
            return self.show(first)
        different = ", ".join(
            name.removesuffix("_json")
            for name, one, other in zip(Identity._fields, made, identity, strict=True)
            if one != other
        )
        detail = f"the key {identity.key!r} created it with another {different}: take a new key"
        raise Refused(Refusal(first_id, first.state, CREATE, "duplicate", (), first.version, detail))

    def carry_out(self, command: Command) -> None:
        """Carry out the effects of a committed command. They are orders: a failure is logged, never lost silently.

        The transition stands whatever becomes of them, so nothing is raised that would say otherwise. An order to
        cancel children stays with the store until it is carried out; a sweeper repeats what was left undone.
        """
        for effect in command.effects:
            if effect != CANCEL_CHILDREN or not isinstance(command.outcome, Receipt):
                logger.debug("%s: the effect %r is for the engine", command.request.execution_id, effect)
                continue
            try:
                self.call_off(
                    Order(command.request.execution_id, command.outcome.version, command.request.event)
                )
            except Exception:
                logger.exception("%s: could not carry out %r", command.request.execution_id, effect)

    def call_off(self, order: Order) -> int:
        """Cancel the children of an execution through the table, and theirs, however deep and wide the tree is.

        A list of what is left to do takes the place of a recursion; each order on it is in the store as well, so that
        whatever ends this early leaves nothing undone for good. What has ended or is stopping is passed over, so any
        process may do it, again and again.

        Args:
            order: Whose children, and why.

        Returns:
            How many of its own children were told to stop.

        Raises:
            StoreUnavailable: The store did not answer; what is left stays with it.
        """
        todo: deque[Order] = deque()
        done = self._call_off(order, todo)
        for _ in range(MAX_ORDERS):
            if not todo:
                break
            below = todo.popleft()
            try:
                self._call_off(below, todo)
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - one family's error is not another one's
                self.health.set_aside(
                    below.execution_id, below.version, error, self.now(), event=CANCEL_CHILDREN
                )
        else:
            logger.warning(
                "%s: %d orders to cancel children were carried out at once; the sweeper goes on with the rest",
                order.execution_id, MAX_ORDERS,
            )  # fmt: skip
        return done

    def _call_off(self, order: Order, todo: deque[Order]) -> int:
        """Cancel the children of one execution, page by page, and add what their ends order to what is to be done."""
        done = 0
        failed = False
        after: str | None = None
        for _ in range(MAX_PAGES):
            page = self.store.find(Query(parent_id=order.execution_id, after=after))
            looked = [self._cancel(child, order) for child in page]
            carried = self._carry([one for one in looked if isinstance(one, Command)])
            for one in carried.done:
                todo.extend(_order_of(one))
            if carried.unavailable is not None:
                raise carried.unavailable
            done += len(carried.done)
            failed = failed or carried.stuck > 0 or _STUCK in looked
            if len(page) < Query().limit:
                break
            after = page[-1].identity.id
        else:
            return done  # no child is added any more: the next sweep passes over those that were cancelled
        if failed:  # what this process cannot cancel, another one may
            why = "a child of it cannot be cancelled by this process"
            self.health.set_aside(order.execution_id, order.version, why, self.now(), event=CANCEL_CHILDREN)
        else:
            self.store.carried(order)
            self.health.take_back(order.execution_id, event=CANCEL_CHILDREN)
        return done

    def _cancel(self, child: Snapshot, order: Order) -> Command | Literal["over", "stuck"]:
        """Return the command that cancels a child, or why there is none."""
        execution_id, now = child.identity.id, self.now()
        if self.health.skips(execution_id, child.version, now, event="cancel"):
            return _STUCK
        try:
            machine = self.law_of(child.identity.machine).machine
            if (
                machine.by_name[child.state].category in _OVER
                or "cancel" not in machine.by_source[child.state]
            ):
                self.health.take_back(execution_id, event="cancel")
                return "over"
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - a machine that cannot be read keeps no other child
            self.health.set_aside(execution_id, child.version, error, now, event="cancel")
            return _STUCK
        payload = {"reason": f"its parent was ended by {order.event!r}", "by": order.execution_id}
        if machine.payload_names.get("cancel", "cancel") != "cancel":
            # A payload of the user's own; each has a note.
            payload = {"note": f"its parent {order.execution_id} was ended by {order.event!r}"}
        return self.order(execution_id, "cancel", payload)

    # --- reads ------------------------------------------------------------------------------------------------

    async def off_loop(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call at once what never waits; let one of the registry's own threads wait for a disk.

        Neither face for asyncio uses asyncio's default executor, which others may have filled with calls that block
        (`tests/engine/test_hostile_engine.py::test_blocking_calls_of_agents_do_not_stand_before_the_store`).
        """
        if self.store.instant:
            return function(*args, **kwargs)
        return await self.threads.run(function, *args, **kwargs)

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
        """Commit what is queued and close the store; it may be called again, from a handler and from any thread.

        Each part is closed whatever becomes of the others; a call that was interrupted is completed by the next. A
        handler that interrupts a call of this library cannot wait for other threads: what it begins is complete when
        the interrupted call has returned and ``close`` is called again, at exit say.
        """
        if self._over:
            return
        whole = not inside()
        for stop in tuple(self.closing) if whole else ():
            self.health.call("the end of the tracker", stop)
        if whole:
            self.ear.stop()
            self.pulse.stop()
        self.closed = True
        self.committer.close()
        self.aftermath.close(wait=whole)
        self.threads.close()
        self.store.close()
        self.reader.close()
        for listener in tuple(self.listeners):
            self.health.call("a listener", listener)
        self._over = whole

    def _named(self) -> str | None:
        return getattr(self.worker, "name", None)

    def after_fork(self) -> None:
        """Begin again in a forked child: the worker is its parent, which alone renews the lease, and sweeps."""
        self.worker = None
        self.health.after_fork()
        self.pulse.after_fork()
        self.ear.after_fork()
