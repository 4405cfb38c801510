"""The one way into a store: every change of every execution is decided and committed here, in order.

Group commit. A caller that finds nobody else here commits on its own thread: no hop, no queue. Callers that come
while a commit is under way queue up, and the committer's thread takes all of them into the next transaction, so a
disk's flush is shared. Decisions are made inside, one after another, on the record as it will be when the step before
is committed; so callers of one process never conflict, and another process's write shows as a conflict of versions,
upon which the step is decided anew on what is there now.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from fsm.concurrency.forks import anew_after_fork
from fsm.concurrency.locks import Bell, Lock, inside
from fsm.concurrency.supervised import BACKOFF_S, Loop
from fsm.core.decide import UNDERCUT, childless, decide, refuse
from fsm.core.records import Receipt, Snapshot, Step
from fsm.core.request import Request
from fsm.errors import (
    BadPayload,
    DamagedRecord,
    FsmError,
    KeyTaken,
    LeaseLost,
    Reentered,
    Refusal,
    Refused,
    StoreUnavailable,
    UnknownExecution,
)
from fsm.registry.catalog import Law
from fsm.registry.command import Command, make_up, tell
from fsm.stores.base import Barred, Conflict, Store

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)

MAX_BATCH = 512
"""So many steps at the most share a transaction."""
MAX_ROUNDS = 100
"""So often a step is decided anew because another process was faster; each time somebody got on."""
MAX_KNOWN = 20_000
"""So many open executions are remembered, to save the read before each write of a store on disk."""
CLOSE_S = 30.0
"""How long `Committer.close` waits for the commit under way, in seconds."""


class _Round:
    """One pass over a batch: what was decided, and what has to be decided again."""

    __slots__ = ("again", "ahead", "commands", "error", "keys", "leaning", "outcomes", "steps")

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.commands: list[Command] = []
        self.ahead: dict[str, Snapshot] = {}  # records as they will be once the steps are committed
        self.keys: set[tuple[str, str]] = set()
        self.leaning: list[Command] = []  # refusals that lean on a step of this round
        self.again: list[Command] = []
        self.outcomes: Sequence[Receipt | Conflict | Barred] = ()
        self.error: BaseException | None = None


class Committer:
    """Decides and commits, for one store."""

    def __init__(
        self,
        store: Store,
        law_of: Callable[[str], Law],
        *,
        loop: Loop | None = None,
        later: Callable[[Callable[[], object]], None] | None = None,
    ) -> None:
        """Stand in front of a store.

        Args:
            store: The store.
            law_of: Returns the machine of a content hash, with the codec of its payloads.
            loop: What notes the turns of its thread.
            later: Does something on another thread (`fsm.registry.aftermath`). This one does not log: a caller may
                wait for it while it holds a lock of the logging module.
        """
        self._store = store
        self._law_of = law_of
        self._laws: dict[str, Law] = {}
        self._instant = store.instant
        # Records of open executions as last seen. They may be stale when other processes write too: a stale one
        # cannot be committed on (the version conflicts), and a refusal is only given on a fresh one.
        self._known: dict[str, Snapshot] = {}
        # The sweeper's alarm: a commit that is due before `wake_at` calls `on_earlier`.
        self.wake_at = float("-inf")
        self.on_earlier: Callable[[float], None] = _nobody
        # Who drives an execution of this process hears of each of its commits, on the thread that committed, whoever
        # asked for it. It must neither block nor raise.
        self.watchers: dict[str, Callable[[Step], None]] = {}
        self._turns = loop or Loop("committer", time.time)
        self._later = later or _at_once
        self._ailing = False
        # Notes the error of a watcher or of the alarm, which is not one of the commit: that has happened.
        self.misheard: Callable[[str, BaseException], object] = _misheard
        self._closed = False
        self._leading = Lock("a commit")
        self._starting = Lock("the start of a thread")
        self._reset()
        anew_after_fork(self)

    def _reset(self) -> None:
        self._queue: deque[Command] = deque()
        self._wake = Bell()
        self._thread: threading.Thread | None = None
        # Where a caller goes, no more than that: to the queue while another caller or the thread is at work.
        self._alone = False
        self._busy = False

    def after_fork(self) -> None:
        """Begin anew in a forked child: the parent's thread and its callers are not here."""
        self._reset()
        self._known.clear()
        self.watchers.clear()

    # --- in ---------------------------------------------------------------------------------------------------

    def commit(self, command: Command) -> None:
        """Carry a command out and return when it is done; blocks for the disk.

        Args:
            command: Its outcome or error is set on return.

        Raises:
            Reentered: A handler or a finaliser calls this, and its thread is in the middle of a commit.
        """
        if self._closed:
            command.error = _closed()
            return
        leading = self._leading
        if self._instant:
            # As `Lock.run`, written out: every event of a store in memory takes this way.
            if leading.mine():
                raise Reentered(leading.what)
            try:
                with leading.mutex:
                    if not self._run_alone(command):
                        self._run((command,), tried=1)
            except BaseException:
                leading.free()
                raise
            return
        if self._leading.mine() or self._starting.mine():
            raise Reentered(self._leading.what)
        # The thread cannot wait for itself: a finaliser may run on it.
        if (self._alone or self._busy) and threading.current_thread() is not self._thread:
            gate = command.gate = threading.Lock()
            gate.acquire()  # noqa: SIM115, RUF100 - a gate: the committer's thread opens it
            if self._enqueue(command):
                gate.acquire()
                return
        self._leading.run(self._lead, (command,))

    def _lead(self, batch: Sequence[Command]) -> None:
        self._alone = True
        try:
            self._run(batch)
        finally:
            self._alone = False

    def commit_all(self, commands: Sequence[Command]) -> None:
        """Carry several commands out in as few transactions as `MAX_BATCH` allows.

        Args:
            commands: Each has its outcome or error on return.
        """
        for begin in range(0, len(commands), MAX_BATCH):
            self._leading.run(self._lead, commands[begin : begin + MAX_BATCH])

    async def commit_async(self, command: Command) -> None:
        """Carry a command out without blocking the event loop.

        A caller that is cancelled meanwhile does not call the command back: it may be committed all the same, and
        is then handed to its `unheard`.

        Args:
            command: Its outcome or error is set on return.
        """
        future = self.submit(command)
        if future is None:
            return
        try:
            await future
        except BaseException:
            # A cancel may come when the future is done and before its caller has gone on, unnoticed.
            if not future.cancel() and not future.cancelled():
                make_up([command])
            raise

    def submit(self, command: Command) -> asyncio.Future[None] | None:
        """Hand a command in without waiting, from an event loop: what is handed in first is decided first.

        Args:
            command: Its outcome or error is set when the future is done.

        Returns:
            The future, or ``None`` if the command was carried out, or could not be queued.
        """
        if self._instant:
            self.commit(command)
            return None
        import asyncio  # noqa: PLC0415 - loaded by those who use it; it brings the half of a web client along

        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        command.later = (loop, future)
        if self._enqueue(command):
            return future
        command.error = StoreUnavailable(
            "no thread could be started to commit on, nothing was written: let threads end, or raise the process's "
            "limit (ulimit -u, the container's pids limit), and try again"
        )
        return None

    def _enqueue(self, command: Command) -> bool:
        """Leave a command to the committer's thread; return whether there is one."""
        command.freeze()
        self._queue.append(command)
        if self._closed:
            self._turn_away()  # looked at after append(): close() looks at the queue after it has closed
            return True
        if self._thread is None and not self._starting.mine():  # otherwise the interrupted call starts it
            try:
                self._starting.run(self._start)
            except RuntimeError:
                if self._take_back(command):
                    return False
        if not self._wake.is_set():
            self._wake.set()
        return True

    def _take_back(self, command: Command) -> bool:
        """Return whether the command is still in the queue."""
        try:
            self._queue.remove(command)
        except (ValueError, IndexError):
            return False
        return True

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name="fsm-committer", daemon=True)
            thread.start()
            self._thread = thread

    def _serve(self) -> None:
        """Commit what queues up, for ever. While there is more than one caller, nobody else commits."""
        me = threading.current_thread()
        try:
            if self._thread is None:
                self._thread = me  # its start was interrupted
            self._turns.running = True
            while self._thread is me and not (self._closed and not self._queue):
                self._one_turn()
        except BaseException as error:  # noqa: BLE001 - it came between two turns
            self._later(partial(self._turns.failed, error))
        finally:
            self._turns.running = self._busy = False
            if self._thread is me:
                self._thread = None
                if self._queue and not self._closed:
                    self._starting.run(self._start)

    def _one_turn(self) -> None:
        batch: list[Command] = []
        try:
            self._turn(batch)
        except BaseException as error:  # noqa: BLE001 - whatever it is, this thread goes on
            self._failed(error, taken=len(batch))

    def _turn(self, batch: list[Command]) -> None:
        """Wait for commands and commit a batch of them. Every caller of it is told, whatever happens."""
        if not self._queue:
            self._busy = False
            self._wake.clear()
            if not self._queue:  # looked at again after clear(): an append in between would be missed
                if self._closed:
                    return
                self._wake.wait()
        self._busy = True
        try:
            self._leading.run(self._take, batch)
            tell(batch)
        except BaseException as error:
            for command in batch:
                if command.outcome is None and command.error is None:
                    command.error = _own(error, command)
            tell(batch)
            raise
        if self._ailing:
            self._ailing = False
            self._later(self._turns.succeeded)  # it logs
        else:
            self._turns.succeeded()
        # The callers that were just served come back at once if there is load; letting them in first makes
        # the next batch a full one instead of a batch of the first who was awake.
        if len(batch) > 1:
            time.sleep(0)

    def _take(self, batch: list[Command]) -> None:
        self._alone = False  # as it is: this thread leads
        batch += (self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH)))
        self._run(batch)

    def _failed(self, error: BaseException, *, taken: int) -> None:
        self._ailing = True
        self._later(partial(self._turns.failed, error))
        if not taken:
            time.sleep(BACKOFF_S)  # the next turn may meet the same

    @property
    def waiting(self) -> int:
        """Number of commands that are queued for the next transaction."""
        return len(self._queue)

    def close(self) -> None:
        """Commit what is queued, then stop the thread; a later call is turned away at once.

        A handler may call it: what its own thread is in the middle of is finished when the handler has returned.
        """
        self._closed = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and not inside():
            thread.join(timeout=CLOSE_S)
        self._turn_away()

    def _turn_away(self) -> None:
        while self._queue:
            try:
                command = self._queue.popleft()
            except IndexError:
                return  # another thread turned the last one away
            command.error = _closed()
            tell([command])

    # --- one batch --------------------------------------------------------------------------------------------

    def _run_alone(self, command: Command) -> bool:
        """Decide and commit one command without a round; return whether it has an outcome or an error now.

        What does not end here (a key that may have been used, another writer of the same store) goes through the
        rounds, which decide it once more.
        """
        request = command.request
        try:
            step = command.born
            if step is None:
                if request.key is not None:
                    return False
                snapshot = self._store.load(request.execution_id)
                if snapshot is None:
                    raise UnknownExecution(request.execution_id)  # noqa: TRY301 - the caller's error, like any other
                decided = self._answer(request, snapshot)
                if isinstance(decided, Refusal):
                    command.outcome = decided
                    return True
                step = decided
            (outcome,) = self._store.append((step,))
            if not isinstance(outcome, Receipt):
                return not self._once_more(command, outcome)
            self._committed(command, step, outcome)
        except BaseException as error:
            if command.outcome is None:
                command.error = _own(error, command)
            if not isinstance(error, Exception):
                raise
        return True

    def _run(self, batch: Sequence[Command], tried: int = 0) -> None:
        """Decide and commit a batch. Every command has an outcome or an error afterwards, whatever happens."""
        for this in self._rounds(batch, tried):
            try:
                this.outcomes = self._store.append(this.steps)
            except BaseException as error:  # noqa: BLE001 - the round says what becomes of it
                this.error = error

    def _rounds(self, batch: Sequence[Command], tried: int = 0) -> Iterator[_Round]:
        """Decide a batch, round by round, and stop wherever the store has its turn.

        Whoever drives this takes each round's steps to the store and notes its outcomes or the error there, before
        the next one is asked for. Here a thread waits for the store; in a simulation virtual time goes by.
        """
        todo = batch
        try:
            for _ in range(tried, MAX_ROUNDS):
                this = self._plan(todo)
                if this.steps:
                    yield this
                    if this.error is not None:
                        self._doubt(this)
                        raise this.error  # noqa: TRY301 - as if the store had been called here
                    self._settle(this, this.outcomes)
                todo = this.again
                if not todo:
                    return
            for command in todo:
                command.error = StoreUnavailable(
                    f"{command.request.execution_id}: other processes were faster {MAX_ROUNDS} times in a row: "
                    "try again"
                )
        except BaseException as error:
            for command in batch:
                if command.outcome is None and command.error is None:
                    command.error = _own(error, command)
                self._known.pop(command.request.execution_id, None)
            if not isinstance(error, Exception):
                raise

    def _plan(self, todo: Sequence[Command]) -> _Round:
        this = _Round()
        for command in todo:
            try:
                self._decide(command, this)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this caller's alone
                del this.steps[len(this.commands) :]  # it may have come between the two
                command.error = error
        return this

    def _doubt(self, this: _Round) -> None:
        """Take back the refusals that lean on a round that failed: perhaps it was committed, perhaps not."""
        for command in this.leaning:
            command.outcome = None

    def _settle(self, this: _Round, outcomes: Sequence[Receipt | Conflict | Barred]) -> None:
        lost: set[str] = set()
        for command, step, outcome in zip(this.commands, this.steps, outcomes, strict=True):
            if not isinstance(outcome, Receipt):
                lost.add(outcome.execution_id)
                if self._once_more(command, outcome):
                    this.again.append(command)
                continue
            self._committed(command, step, outcome)
        for execution_id in lost:
            self._known.pop(execution_id, None)
        for command in this.leaning:
            if command.request.execution_id in lost:
                command.outcome = None
                this.again.append(command)

    def _once_more(self, command: Command, outcome: Conflict | Barred) -> bool:
        """Return whether a step that the store kept out is decided again; otherwise the command gets its error."""
        if isinstance(outcome, Conflict) and command.born is None:
            return True
        command.error = self._barred(outcome)  # another round would meet the same
        return False

    def _barred(self, outcome: Conflict | Barred) -> FsmError:
        if isinstance(outcome, Conflict):
            there = "was deleted" if outcome.version is None else "is there already"
            return BadPayload(
                f"an execution of the id {outcome.execution_id} {there}: no id is given out twice, so make a new one"
            )
        if outcome.why == "lease":
            return LeaseLost(outcome.who)
        if outcome.why == "key":
            return KeyTaken(outcome.who)
        if outcome.why == "law":
            return DamagedRecord(
                "executions",
                outcome.execution_id,
                "the step",
                f"is refused by the store's own law ({outcome.who})",
            )
        try:
            parent = self._store.load(outcome.who)
        except FsmError as error:
            return error  # the child is kept out all the same
        return UnknownExecution(outcome.who) if parent is None else Refused(childless(parent))

    def _committed(self, command: Command, step: Step, receipt: Receipt) -> None:
        """Note a commit, and tell those who hear of it."""
        command.outcome = receipt
        command.effects = step.effects
        after = step.after
        due_at = after.due_at
        if due_at is not None and due_at < self.wake_at:
            self._let_hear("the alarm of the sweeper", self.on_earlier, due_at)
        if after.limit_s is not None and after.due_kind == "total" and step.source != after.state:
            # A question was asked whose execution ends before it expires. This thread itself never logs.
            self._later(partial(_warn, step))
        if not self._instant:
            self._remember(after)
        if self.watchers and (watch := self.watchers.get(receipt.execution_id)) is not None:
            self._let_hear("a watcher of commits", watch, step)

    def _let_hear(self, name: str, function: Callable[..., object], *args: object) -> None:
        """Call a function that hears of a commit. An error of its own is noted later: this thread never logs."""
        try:
            function(*args)
        except Exception as error:  # noqa: BLE001 - it is committed, whatever a listener makes of it
            self._later(partial(self.misheard, name, error))

    def _remember(self, snapshot: Snapshot) -> None:
        execution_id = snapshot.identity.id
        if snapshot.state in self._law(snapshot).machine.terminal:
            self._known.pop(execution_id, None)
            return
        if len(self._known) >= MAX_KNOWN:
            self._known.pop(next(iter(self._known)), None)
        self._known[execution_id] = snapshot

    def _law(self, snapshot: Snapshot) -> Law:
        content_hash = snapshot.identity.machine
        law = self._laws.get(content_hash)
        if law is None:
            law = self._laws[content_hash] = self._law_of(content_hash)
        return law

    def _decide(self, command: Command, this: _Round) -> None:
        """Decide one command: note its step in the round, or set its outcome, or put it off to the next round."""
        if command.born is not None:
            this.steps.append(command.born)
            this.commands.append(command)
            return
        request = command.request
        execution_id = request.execution_id
        ahead = this.ahead.get(execution_id)
        snapshot = ahead or self._known.get(execution_id)
        fresh = snapshot is None
        if snapshot is None:
            snapshot = self._load(execution_id)
        if request.key is not None and self._seen(command, snapshot, this):
            return
        decided = self._answer(request, snapshot)
        if isinstance(decided, Refusal) and not fresh and ahead is None:
            decided = self._answer(request, self._load(execution_id))
        if isinstance(decided, Refusal):
            command.outcome = decided
            if ahead is not None:
                this.leaning.append(command)
            return
        this.steps.append(decided)
        this.commands.append(command)
        this.ahead[execution_id] = decided.after

    def _answer(self, request: Request, snapshot: Snapshot) -> Step | Refusal:
        """Check a request, and return what follows from it for a record."""
        machine, codec = self._law_for(request, snapshot)
        if not request.checked:
            empty = None if request.payload else codec.empty.get(request.event)
            if empty is None:
                request.payload, request.payload_json = codec.encode(request.event, request.payload)
            else:
                request.payload = empty
            request.checked = True
        return decide(machine, snapshot, request)

    def _law_for(self, request: Request, snapshot: Snapshot) -> Law:
        """Return the law of an execution, for those who may know of it."""
        if request.user_id is not None and snapshot.identity.user_id != request.user_id:
            raise UnknownExecution(request.execution_id)
        return self._laws.get(snapshot.identity.machine) or self._law(snapshot)

    def _seen(self, command: Command, snapshot: Snapshot, this: _Round) -> bool:
        """Return whether the command's key was used before, and if so answer it or put it off."""
        request = command.request
        machine = self._law_for(request, snapshot).machine
        key = request.key or ""
        if (request.execution_id, key) in this.keys:
            this.again.append(command)  # its twin is being committed: next time there is a receipt to return
            return True
        first = self._store.keyed(request.execution_id, key)
        if first is None:
            this.keys.add((request.execution_id, key))
            return False
        if first.event == request.event:
            command.outcome = first
        else:
            detail = (
                f"the key {key!r} was used for {first.event!r} at version {first.version}: take a new key"
            )
            command.outcome = refuse(machine, snapshot, request, "duplicate", detail)
        return True

    def _load(self, execution_id: str) -> Snapshot:
        snapshot = self._store.load(execution_id)
        if snapshot is None:
            raise UnknownExecution(execution_id)
        return snapshot


def _misheard(name: str, error: BaseException) -> None:
    """Log the error of a function that hears of commits."""
    logger.error("%s failed", name, exc_info=error)


def _nobody(_due_at: float) -> None:
    """Nobody sweeps in this process."""


def _at_once(job: Callable[[], object]) -> None:
    job()


def _closed() -> StoreUnavailable:
    return StoreUnavailable("the tracker is closed: configure() a new one")


def _warn(step: Step) -> None:
    payload = json.loads(step.payload_json) if step.payload_json else {}
    logger.warning("%s: %s", step.after.identity.id, payload.get(UNDERCUT))


def _own(error: BaseException, command: Command) -> BaseException:
    """Return an error for one of several callers: raised in several threads, one object would mix their traces.

    What is no `Exception` would end the event loop of an asyncio caller, and a ``GeneratorExit`` came outside of the
    store: it is nobody's own.
    """
    if isinstance(error, StoreUnavailable):
        own = StoreUnavailable(str(error), committed=error.committed)
    elif isinstance(error, GeneratorExit) or (command.later is not None and not isinstance(error, Exception)):
        own = StoreUnavailable(f"the commit was interrupted by {type(error).__name__}", committed=None)
    else:
        return error
    own.__cause__ = error
    return own
