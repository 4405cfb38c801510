"""What stands behind every face of the tracker: the store, its committer, the machines, the clock.

The faces (`fsm.tracker`, `fsm.aio`) turn calls into commands here and outcomes into results; whether a caller blocks
or awaits between the two is all in which they differ.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

from fsm import ids
from fsm.clock import Clock
from fsm.committer import Command, Committer, Law
from fsm.decide import CHANGES, DERIVED, create
from fsm.errors import (
    BadPayload,
    ConfigurationError,
    FsmError,
    MalformedId,
    Refusal,
    Refused,
    StoreUnavailable,
    UnknownExecution,
    UnknownMachine,
)
from fsm.machine import CREATE, Category, Machine
from fsm.payloads import MAX_BYTES, Codec
from fsm.records import Execution, Identity, Receipt, Retry, Snapshot, legal_rows, view
from fsm.stores.base import MachineRecord, Query, Store
from fsm.timeouts import Timeouts

logger = logging.getLogger(__name__)

MAX_TEXT = 500
"""Names of agents, users and threads, and keys, are at most so many characters."""
MAX_PAGE = 10_000
"""So many executions at most come in one page."""

_METADATA = TypeAdapter(dict[str, JsonValue])
_Model = TypeVar("_Model", bound=BaseModel)


class Registry:
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
        self.store = store
        self.clock = clock
        self.closed = False
        self._by_name: dict[str, Machine] = {}
        self._laws: dict[str, Law] = {}
        self._lock = threading.Lock()
        self._worker: tuple[int, str] = (0, "")
        self.listeners: set[Callable[[], None]] = set()
        self.committer = Committer(store, self.law_of)
        for machine in machines:
            self.add(machine)

    # --- machines ---------------------------------------------------------------------------------------------

    def add(self, machine: Machine) -> Machine:
        """Make a machine known here and to the store.

        Raises:
            ConfigurationError: Another machine has its name, or it is not made for executions.
        """
        known = self._by_name.get(machine.name)
        if known is not None and known != machine:
            raise ConfigurationError(
                f"two different machines are called {machine.name!r}: give one of them another name"
            )
        if machine.content_hash not in self._laws:
            self._laws[machine.content_hash] = _law(machine)
            self.store.register(record_of(machine))
        self._by_name[machine.name] = machine
        return machine

    def machine_for(self, wanted: Machine | str | None) -> Machine:
        """Return a machine by name or by itself; the first one that was configured if nothing is said."""
        if wanted is None:
            return next(iter(self._by_name.values()))
        if isinstance(wanted, Machine):
            return (
                self._by_name[wanted.name] if self._by_name.get(wanted.name) is wanted else self.add(wanted)
            )
        if wanted not in self._by_name:
            raise UnknownMachine(str(wanted), tuple(self._by_name))
        return self._by_name[wanted]

    def law_of(self, content_hash: str) -> Law:
        """Return a machine and its codec by hash; one that another process registered is read from the store."""
        law = self._laws.get(content_hash)
        if law is None:
            self.learn()
            law = self._laws.get(content_hash)
            if law is None:
                raise UnknownMachine(content_hash, tuple(self._laws))
        return law

    def learn(self) -> None:
        """Read the machines that other processes registered."""
        for content_hash, document in self.store.machines().items():
            if content_hash not in self._laws:
                self._laws[content_hash] = _law(Machine.from_json(document))

    def machines(self) -> tuple[Machine, ...]:
        """Return every machine that is known, the store's included."""
        self.learn()
        return tuple(law.machine for law in self._laws.values())

    # --- commands ---------------------------------------------------------------------------------------------

    @property
    def worker_id(self) -> str:
        """The id under which this process claims executions; a forked child gets its own."""
        pid = os.getpid()
        if self._worker[0] != pid:
            self._worker = (pid, ids.worker_id())
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
        chosen = self.machine_for(machine)
        limits = _model(Timeouts, timeouts, "timeouts")
        if limits is not None:
            for name, _ in limits.phases:
                if name not in chosen.by_name:
                    raise BadPayload(
                        f"timeouts.phases names {name!r}, which is no state of machine {chosen.name!r}"
                    )
        tries = _model(Retry, retry, "retry") or Retry()
        user_id = text("user_id", user_id)
        if parent_id is not None:
            self._parent(parent_id, user_id)
        if retry_of is not None:
            self.load(retry_of, user_id)
        at = self.clock.wall()
        identity = Identity(
            ids.execution_id(),
            chosen.content_hash,
            text("agent", agent),
            user_id,
            text("thread_id", thread_id),
            parent_id,
            retry_of,
            at,
            tries.attempts_max,
            tries.model_attempts_max,
            _metadata(metadata),
            limits.model_dump_json(exclude_unset=True) if limits is not None else None,
        )
        return Command(identity.id, CREATE, at=at, born=create(chosen, identity))

    def _parent(self, parent_id: str, user_id: str) -> None:
        parent = self.load(parent_id, user_id)
        machine = self.law_of(parent.identity.machine).machine
        if machine.by_name[parent.state].category in {Category.TERMINAL, Category.STOPPING}:
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
            raise BadPayload(f"an event is a name, as 'start', not {event!r}")
        if fence is not None and (type(fence) is not int):
            raise BadPayload(f"a fence is the number from a claim's receipt, not {fence!r}")
        if key is not None:
            text("key", key)
        if not isinstance(execution_id, str):
            raise unknown(execution_id)
        return Command(
            execution_id,
            event,
            at=self.clock.wall(),
            payload=payload,
            fence=fence,
            key=key,
            worker=self.worker_id,
            user_id=user_id,
        )

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
        if self.listeners:
            for listener in tuple(self.listeners):
                listener()
        return outcome

    def created(self, command: Command) -> Execution:
        """Return the execution that a command created; raises as `receipt` does."""
        self.receipt(command)
        assert command.born is not None  # noqa: S101 - only births come here
        return self.show(command.born.after)

    def carry_out(self, command: Command) -> None:
        """Carry out the effects of a committed command. They are orders: a failure is logged, never lost silently."""
        for effect in command.effects:
            if effect == "cancel_children":
                self._cancel_children(command)
            else:
                logger.debug("%s: the effect %r is for the engine", command.execution_id, effect)

    def _cancel_children(self, command: Command) -> None:
        after: str | None = None
        while True:
            page = self.store.find(Query(parent_id=command.execution_id, after=after))
            for child in page:
                machine = self.law_of(child.identity.machine).machine
                if child.state in machine.terminal or "cancel" not in machine.by_source[child.state]:
                    continue
                reason = f"its parent was ended by {command.event!r}"
                # A machine of the user's own may give its cancel another payload; every payload has a note.
                plain = machine.payload_names.get("cancel") != "cancel"
                order = self.event(
                    child.identity.id,
                    "cancel",
                    {"note": reason} if plain else {"reason": reason, "by": command.execution_id},
                    fence=None,
                    key=None,
                    user_id=None,
                )
                self.committer.commit(order)
                try:
                    self.receipt(order)
                except Refused:
                    continue  # it ended by itself meanwhile
                except FsmError:
                    logger.exception(
                        "%s: could not cancel the child %s", command.execution_id, child.identity.id
                    )
                    continue
                self.carry_out(order)
            if len(page) < Query().limit:
                return
            after = page[-1].identity.id

    # --- reads ------------------------------------------------------------------------------------------------

    def load(self, execution_id: str, user_id: str | None) -> Snapshot:
        """Return a record.

        Raises:
            UnknownExecution: There is none, or it is another user's.
        """
        snapshot = self.store.load(execution_id) if isinstance(execution_id, str) else None
        if snapshot is None or (user_id is not None and snapshot.identity.user_id != user_id):
            raise unknown(execution_id)
        return snapshot

    def show(self, snapshot: Snapshot) -> Execution:
        """Return the public view of a record."""
        return view(snapshot, self.law_of(snapshot.identity.machine).machine)

    def query(
        self,
        *,
        state: str | Iterable[str] | None,
        category: str | None,
        agent: str | None,
        user_id: str | None,
        thread_id: str | None,
        parent_id: str | None,
        limit: int,
        after: str | None,
    ) -> Query:
        """Return the store's question; see `Tracker.find` for the arguments."""
        if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
            raise BadPayload(f"limit is a number from 1 to {MAX_PAGE}, not {limit!r}; page with after=")
        for name, value in (("agent", agent), ("user_id", user_id), ("thread_id", thread_id)):
            if value is not None:
                text(name, value)
        states = self._states(state, category)
        return Query(states, agent, user_id, thread_id, parent_id, limit, after)

    def _states(self, state: str | Iterable[str] | None, category: str | None) -> frozenset[str] | None:
        if state is None and category is None:
            return None
        machines = self.machines()
        known = frozenset(name for machine in machines for name in machine.by_name)
        wanted = known if state is None else frozenset([state] if isinstance(state, str) else state)
        if strange := wanted - known:
            raise BadPayload(
                f"no such state: {', '.join(sorted(map(str, strange)))}. Known: {', '.join(sorted(known))}"
            )
        if category is None:
            return wanted
        if category not in set(Category):
            raise BadPayload(f"no such category: {category!r}. Known: {', '.join(Category)}")
        return wanted & {name for machine in machines for name in machine.of(category)}

    def find(self, query: Query, category: str | None) -> list[Execution]:
        """Return a page of executions.

        Two machines may put one state name into different categories; such executions are sorted out here, and
        the page is filled up again.
        """
        out: list[Execution] = []
        while True:
            page = self.store.find(query)
            shown = [self.show(snapshot) for snapshot in page]
            out += [one for one in shown if category is None or one.category == category]
            if len(page) < query.limit or len(out) >= query.limit:
                return out[: query.limit]
            query = query._replace(after=page[-1].identity.id)

    def close(self) -> None:
        """Commit what is queued and close the store."""
        if not self.closed:
            self.closed = True
            self.committer.close()
            self.store.close()
            for listener in tuple(self.listeners):
                listener()


# --- helpers --------------------------------------------------------------------------------------------------


def unknown(execution_id: object) -> UnknownExecution:
    """Return the error for an id that nothing is known of, with what is wrong with the id itself, if anything."""
    try:
        ids.parse(execution_id, "exec")
    except MalformedId as error:
        return UnknownExecution(execution_id, error.reason)
    return UnknownExecution(execution_id)


def text(name: str, value: object) -> str:
    """Return `value` if it is a usable name.

    Raises:
        BadPayload: It is no text, empty, too long, or cannot be written as UTF-8.
    """
    if not isinstance(value, str) or not value:
        raise BadPayload(f"{name} is a text that is not empty, not {value!r}")
    if len(value) > MAX_TEXT:
        raise BadPayload(f"{name} has {len(value)} characters, {MAX_TEXT} at most")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadPayload(f"{name} holds characters that no encoding knows: {value!r}") from None
    if "\0" in value:
        raise BadPayload(f"{name} holds a NUL character: {value!r}")
    return value


def _model(kind: type[_Model], value: _Model | Mapping[str, Any] | None, name: str) -> _Model | None:
    if value is None or isinstance(value, kind):
        return value
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise BadPayload(f"{name} does not fit: {problems}") from None


def _metadata(value: Mapping[str, Any] | None) -> str | None:
    if value is None:
        return None
    try:
        checked = _METADATA.validate_python(value, strict=True)
        written = _METADATA.dump_json(checked)
    except (ValidationError, ValueError, RecursionError) as error:
        raise BadPayload(f"metadata is a dict of JSON values with text keys: {error}") from None
    if len(written) > MAX_BYTES:
        raise BadPayload(f"metadata is {len(written)} bytes, {MAX_BYTES} at most: store a reference instead")
    return written.decode() if checked else None


def _law(machine: Machine) -> Law:
    strange = {name for row in machine.transitions for name in row.assign} - CHANGES.keys()
    if strange:
        raise ConfigurationError(
            f"machine {machine.name!r} assigns {', '.join(sorted(strange))}, which executions do not have; "
            f"they have: {', '.join(CHANGES)}"
        )
    return Law(machine, Codec(machine, frozenset(DERIVED)))


def record_of(machine: Machine) -> MachineRecord:
    """Return a machine as the data that a store keeps its law by."""
    return MachineRecord(
        machine.content_hash,
        machine.name,
        machine.to_json(),
        tuple((state.name, state.name in machine.terminal) for state in machine.states),
        tuple(sorted(legal_rows(machine), key=lambda row: (row[0] or "", row[1], row[2]))),
    )
