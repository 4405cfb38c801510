"""The guarantees, checked against the journal while a simulation runs and once more at its end.

The checker stands outside: it is told of every commit at the moment when it happens in the store, of every receipt
that a caller got, and it reads the store itself. It keeps its own small model of every execution (state, version,
attempt, fence, as the journal tells them) and shares no code with what it checks beyond the declared table.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from fsm.core.journal import legal_rows
from fsm.core.records import Receipt, Snapshot, Step
from fsm.core.timeline import Era
from fsm.machine.grammar import CREATE
from fsm.machine.machine import Machine
from fsm.registry.command import Command
from fsm.simulation.families import Families
from fsm.simulation.handles import Process
from fsm.simulation.loop import SteppedLoop
from fsm.simulation.observed import EPOCH_S, Broken, Commit, Lease, Model, Sweep
from fsm.stores.base import Store

_ROUNDING_S = 1e-6
_PAGE = 10_000
_Law = tuple[Machine, frozenset[tuple[str | None, str, str]]]


class Checker:
    """Holds a store to the guarantees.

    Attributes:
        commits: Every commit that was made through the simulation, in order.
        receipts: Every receipt that a caller got, with the name of its process.
    """

    def __init__(self, store: Store, loop: SteppedLoop) -> None:
        """Watch a store.

        Args:
            store: The one that all workers share, without any faults in between.
            loop: Where time comes from.
        """
        self._store = store
        self._time = loop.time
        self._offset_s = store.timeline_set("simulated", None, Era(EPOCH_S)).offset_s
        self._leases: dict[str, Lease] = {}
        self._owned: dict[str, dict[str, int]] = {}
        self._due: dict[str, tuple[float, int]] = {}
        self._nearest: list[
            tuple[float, int, str]
        ] = []  # the same as a heap, with entries that were overtaken
        self._laws: dict[str, _Law] = {}
        self._models: dict[str, Model] = {}
        self._open: dict[str, None] = {}
        self._families = Families(self._models)
        self._seen: list[Receipt] = []
        self._checked_commits = 0
        self._checked_receipts = 0
        self.commits: list[Commit] = []
        self.receipts: list[tuple[str, Command, Receipt]] = []
        self.checks = 0

    # --- what it is told --------------------------------------------------------------------------------------

    def committed(self, process: Process, command: Command, step: Step, receipt: Receipt) -> None:
        """Take note of a commit; see `fsm.simulation.faults.Observer`."""
        self.commits.append(Commit(self._time(), process.name, command, step, receipt))

    def acknowledged(self, process: Process, command: Command, receipt: Receipt) -> None:
        """Take note of a receipt that a caller was given."""
        self.receipts.append((process.name, command, receipt))

    def registered(self, worker_id: str, process: Process, ttl_s: float) -> None:
        """Take note of a new worker and the length of its lease in seconds."""
        self._leases[worker_id] = Lease(process.name, ttl_s, self._time())

    def renewed(self, worker_id: str) -> None:
        """Take note of a lease that was renewed."""
        self._leases[worker_id].renewed_s = self._time()

    def sweep_begins(self, now: float) -> Sweep:
        """Take note of a sweep that begins.

        Args:
            now: The instant on the steady timeline.

        Returns:
            What to hand to `sweep_ends` when it has gone through without an error.
        """
        return Sweep(len(self.commits), self._time(), now)

    def sweep_ends(self, begun: Sweep) -> None:
        """Hold a whole sweep to its purpose: what was late or lost when it began is so no more.

        Raises:
            Broken: It is.
        """
        self.check()
        for worker_id, held in self._owned.items():
            lease = self._leases.get(worker_id)
            if lease is None or lease.renewed_s + lease.ttl_s >= begun.at_s:
                continue
            for execution_id, since in held.items():
                if since < begun.commits:
                    raise Broken(
                        "a lost execution is found within lease and sweep",
                        f"{execution_id} is still of {worker_id}, which renewed at {lease.renewed_s:.6g} s for "
                        f"{lease.ttl_s:.6g} s, after a sweep that began at {begun.at_s:.6g} s",
                    )
        later: list[tuple[float, int, str]] = []
        nearest = self._nearest
        while nearest and nearest[0][0] < begun.now:
            due_at, number, execution_id = one = heapq.heappop(nearest)
            if self._due.get(execution_id) != (due_at, number):
                continue  # it has moved on
            if number < begun.commits:
                raise Broken(
                    "a deadline that passed is met by the next sweep",
                    f"{self._models[execution_id].rows[-1]} was due {begun.now - due_at:.6g} s before a sweep began",
                )
            later.append(one)
        for one in later:
            heapq.heappush(nearest, one)
        self._families.swept(begun)

    def pruned(self, execution_ids: Sequence[str]) -> None:
        """Take note of executions that are about to be deleted; what the journal says of them is read before.

        Raises:
            Broken: One is still open.
        """
        self.check()
        for execution_id in execution_ids:
            model = self._models.get(execution_id)
            if model is None or model.gone:
                continue  # another worker was faster
            if model.state not in model.terminal:
                raise Broken("what is open is never pruned", f"{model.rows[-1]}")
            model.gone = True

    # --- what it finds ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Check what happened since the last time.

        Raises:
            Broken: A guarantee does not hold.
        """
        self.checks += 1
        begin = len(self._seen)
        while True:
            page = self._store.journal(len(self._seen), _PAGE)
            for row in page:
                self._row(row)
            if len(page) < _PAGE:
                break
        if self._store.position() != len(self._seen):
            raise Broken(
                "journal positions have no gap",
                f"the store says {self._store.position()}, the journal has {len(self._seen)} rows",
            )
        self._commits()
        self._acknowledgements()
        for execution_id in dict.fromkeys(row.execution_id for row in self._seen[begin:]):
            self._agree(execution_id)

    def check_all(self) -> None:
        """Check everything from the beginning: also that nothing changed after it was looked at.

        Raises:
            Broken: A guarantee does not hold.
        """
        self.check()
        again: list[Receipt] = []
        while page := self._store.journal(again[-1].position if again else 0, _PAGE):
            again += page
            if len(page) < _PAGE:
                break
        kept = [row for row in self._seen if not self._models[row.execution_id].gone]
        if again != kept:
            at = next(i for i, pair in enumerate(zip(again, kept, strict=False)) if pair[0] != pair[1])
            raise Broken("a journal never changes", f"{kept[at]} became {again[at]}")
        for _, _, receipt in self.receipts:
            self._is_there(receipt)
        for execution_id, model in self._models.items():
            self._agree(execution_id)
            if self._store.history(execution_id) != ([] if model.gone else model.rows):
                raise Broken(
                    "both views of a journal agree", f"{execution_id}: its history is not its journal"
                )
        found = sum(self._store.counts().values())
        known = sum(not model.gone for model in self._models.values())
        if found != known:
            raise Broken("no execution is lost", f"the store counts {found}, the journal knows {known}")

    def _row(self, row: Receipt) -> None:
        """Take a row of the journal into the model."""
        if row.position != len(self._seen) + 1:
            raise Broken(
                "journal positions have no gap", f"{row.position} comes after {len(self._seen)}: {row}"
            )
        self._seen.append(row)
        model = self._models.get(row.execution_id)
        if model is None:
            model = self._models[row.execution_id] = self._born(row)
        self._follows(model, row)
        if row.key is not None:
            if row.key in model.keys:
                raise Broken("a key is used once", f"{row.key!r} again: {row}")
            model.keys.add(row.key)
        self._one_claimer(model, row)
        if row.event == "cancel" and "cancelled" in model.terminal:
            model.called_off = True
        elif model.called_off and row.target in model.terminal and row.target != "cancelled":
            raise Broken("a cancel ends cancelled", f"it was called off before: {row}")
        model.rows.append(row)
        if row.fence > model.fence:
            model.suspended = row.owner is None and row.source == row.target
        model.state, model.attempt, model.fence, model.owner = row.target, row.attempt, row.fence, row.owner
        if row.target in model.terminal:
            self._open.pop(row.execution_id, None)
        elif row.source is None:
            self._open[row.execution_id] = None

    def _follows(self, model: Model, row: Receipt) -> None:
        """Hold a row to beginning where the last one ended, and to the table."""
        if row.version != len(model.rows):
            raise Broken(
                "versions have no gap", f"version {row.version} comes after {len(model.rows) - 1}: {row}"
            )
        if model.state in model.terminal:
            raise Broken("a terminal state is final", f"{model.state!r} was left: {row}")
        if row.source != model.state:
            raise Broken("journal and state agree", f"the last row ended in {model.state!r}: {row}")
        if (row.source, row.event, row.target) not in model.legal:
            raise Broken("the table is law", f"no row of it says {row}")
        if model.rows and row.at < model.rows[-1].at:
            raise Broken("a journal does not run backwards", f"{row.at} after {model.rows[-1].at}: {row}")

    def _one_claimer(self, model: Model, row: Receipt) -> None:
        """Hold attempts and fences to growing one by one, and owners to changing with the fence only."""
        if (
            not model.fence <= row.fence <= model.fence + 1
            or not model.attempt <= row.attempt <= model.attempt + 1
        ):
            raise Broken("exactly one claimer", f"attempt {model.attempt}, fence {model.fence} became {row}")
        resumes = model.suspended and row.owner is not None and row.fence > model.fence
        claims = row.attempt > model.attempt or resumes
        if claims and (row.fence == model.fence or row.owner is None):
            raise Broken("exactly one claimer", f"claimed without a new fence, or by nobody: {row}")
        if row.owner != model.owner and (row.fence == model.fence or (row.owner is not None and not claims)):
            raise Broken(
                "exactly one claimer", f"after {model.owner!r}, without a new fence or attempt: {row}"
            )

    def _born(self, row: Receipt) -> Model:
        snapshot = self._store.load(row.execution_id)
        if snapshot is None:
            raise Broken("journal and state agree", f"there is no record for {row}")
        if row.event != CREATE:
            raise Broken("versions have no gap", f"a journal begins with its creation, not with {row}")
        content_hash = snapshot.identity.machine
        law = self._laws.get(content_hash)
        if law is None:
            law = self._laws[content_hash] = _read_law(self._store.machines()[content_hash])
        return Model(*law)

    def _commits(self) -> None:
        """Hold every commit to what its writer believed in: its fence, its timer, its lease."""
        commits = self.commits
        for index in range(self._checked_commits, len(commits)):
            _, who, command, step, receipt = commit = commits[index]
            self._is_there(receipt)
            if command.request.execution_id != receipt.execution_id or (
                command.born is None and command.request.event != receipt.event
            ):
                raise Broken(
                    "a receipt is of what was asked",
                    f"{who} asked for {command.request.event!r}, got {receipt}",
                )
            after = step.after
            if after.version != receipt.version or after.state != receipt.target:
                raise Broken("a receipt is of what was asked", f"{after} was committed as {receipt}")
            model = self._models[receipt.execution_id]
            before = model.last
            if before is not None:
                self._believed(commit, before)
            elif after.identity.parent_id is not None:
                self._families.born(after.identity.parent_id, receipt)
            model.last = step
            if step.effects:
                self._families.ordered(step, index)
            self._book(model, step, index)
        self._checked_commits = len(commits)

    def _believed(self, commit: Commit, last: Step) -> None:
        at_s, who, command, _, receipt = commit
        before = last.after
        if command.request.fence is not None and command.request.fence != before.fence:
            raise Broken(
                "a zombie cannot write",
                f"{who} wrote with fence {command.request.fence} over {before.fence}: {receipt}",
            )
        # What the sweeper asks for is known by its payload: whether it says what it leans on is what is in question.
        if command.request.event == "time_out" and command.request.payload.get("late_s") is not None:
            now = at_s + self._offset_s + _ROUNDING_S
            if (
                before.due_at is None
                or before.due_at > now
                or command.request.payload.get("kind") != before.due_kind
            ):
                raise Broken(
                    "a stale timer is harmless",
                    f"{who} found {before.due_kind!r} due at {before.due_at}, it was {now}: {receipt}",
                )
        holder = command.request.payload.get("worker") if command.request.event == "lapse" else None
        if holder is not None:
            lease = self._leases.get(holder)
            if before.owner != holder:
                raise Broken(
                    "a healthy execution is never declared dead", f"it is of {before.owner!r}: {receipt}"
                )
            if lease is not None and lease.who != who and at_s < lease.renewed_s + lease.ttl_s:
                raise Broken(
                    "a healthy execution is never declared dead",
                    f"{lease.who} renewed at {lease.renewed_s:.6g} s for {lease.ttl_s:.6g} s, at {at_s:.6g}: {receipt}",
                )

    def _book(self, model: Model, step: Step, index: int) -> None:
        """Keep who owns what since when, and what is due."""
        after = step.after
        execution_id = after.identity.id
        open_ = after.state not in model.terminal
        if after.due_at is not None and open_:
            self._due[execution_id] = (after.due_at, index)
            heapq.heappush(self._nearest, (after.due_at, index, execution_id))
        else:
            self._due.pop(execution_id, None)
        owner = after.owner if open_ else None
        if owner != model.holder:
            if model.holder is not None:
                del self._owned[model.holder][execution_id]
            if owner is not None:
                self._owned.setdefault(owner, {})[execution_id] = index
            model.holder = owner

    def _acknowledgements(self) -> None:
        """Hold every receipt that somebody got to the journal."""
        receipts = self.receipts
        for index in range(self._checked_receipts, len(receipts)):
            who, command, receipt = receipts[index]
            self._is_there(receipt)
            if receipt.key != command.request.key or (
                command.born is None and receipt.event != command.request.event
            ):
                raise Broken(
                    "a receipt is of what was asked",
                    f"{who} asked for {command.request.event!r}, got {receipt}",
                )
        self._checked_receipts = len(receipts)

    def _is_there(self, receipt: Receipt) -> None:
        position = receipt.position
        if not 0 < position <= len(self._seen) or self._seen[position - 1] != receipt:
            raise Broken("no acknowledged transition is lost", f"the journal does not have {receipt}")

    def _agree(self, execution_id: str) -> None:
        """Hold an execution's record to its journal, and its clocks to running."""
        snapshot = self._store.load(execution_id)
        model = self._models[execution_id]
        if model.gone:
            if snapshot is not None:
                raise Broken("what was pruned is gone", f"{execution_id}")
            return
        if snapshot is None:
            raise Broken("journal and state agree", f"{execution_id} has a journal and no record")
        told = (model.state, len(model.rows) - 1, model.attempt, model.fence, model.owner, model.rows[-1].at)
        kept = _kept(snapshot)
        if told != kept:
            raise Broken(
                "journal and state agree", f"{execution_id}: the journal tells {told}, the record says {kept}"
            )
        if snapshot.state in model.terminal:
            if snapshot.due_at is not None:
                raise Broken(
                    "a terminal state is final", f"{execution_id} ended {snapshot.state} and has a deadline"
                )
        elif (
            snapshot.due_at is None
            and snapshot.owner is None
            and "time_out" in model.machine.by_source[snapshot.state]
        ):
            raise Broken(
                "every open execution has a deadline or a lease", f"{execution_id} in {snapshot.state}"
            )

    # --- what it knows ----------------------------------------------------------------------------------------

    def rows(self, execution_id: str) -> tuple[Receipt, ...]:
        """Return an execution's journal as far as it was checked."""
        return tuple(self._models[execution_id].rows)

    def journal(self) -> Iterable[Receipt]:
        """Return the whole journal as far as it was checked."""
        return iter(self._seen)

    def known(self) -> list[str]:
        """Return every execution, in the order of their first row."""
        return list(self._models)

    def open_ids(self) -> list[str]:
        """Return the executions that have not ended, in the order of their first row."""
        return list(self._open)


@lru_cache(maxsize=64)
def _read_law(document: str) -> _Law:
    machine = Machine.from_json(document)
    return machine, legal_rows(machine)


def _kept(snapshot: Snapshot) -> tuple[Any, ...]:
    return (
        snapshot.state, snapshot.version, snapshot.attempt, snapshot.fence, snapshot.owner, snapshot.updated_at,
    )  # fmt: skip
