"""``fsm copy``: moves a registry whole from one store to another one, and compares both afterwards.

A copy is made of the same steps as the original: the source's journal is read in its order, and each of its rows is
committed to the target, whose own law checks it. What a journal does not record (deadlines, open tools, an ending)
comes with the last step of each execution. A copy that was interrupted goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from fsm.cli.common import FOUND, fail, out, print_json, store_url, teaching
from fsm.cli.options import JsonOption, located
from fsm.core.decide import create, decide
from fsm.core.journal import fold, record_of
from fsm.core.records import CANCEL_CHILDREN, Identity, Receipt, Snapshot, Step
from fsm.core.request import Request
from fsm.lifecycles.execution import EXECUTION
from fsm.machine.machine import Machine
from fsm.stores import Order, Query, Store, open_store
from fsm.stores.base import Conflict
from fsm.stores.breakers import LAST, BreakerEntry, BreakerRow, BreakerStore

PAGE = 500
"""Number of rows of the journal that are copied in one transaction."""
STAND_IN = "fsm copy: a parent that was deleted"
"""The agent of what stands in for a deleted parent until its children are there."""
MAX_SHOWN = 20
"""Maximum number of differences that are shown."""


@teaching
def copy_command(
    to: Annotated[str, typer.Option("--to", callback=located, help="The store that is filled.")],
    source: Annotated[
        str | None,
        typer.Option("--from", callback=located, help="The store that is read. (default: $FSM_STORE)"),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Copy a registry to another store, and compare both: every record, every journal, folded on either side.

    Nothing is changed in the source; no process may write to either of them. It may be repeated: what is
    there is passed over. Workers and their leases are not copied. Ends with 1 if the stores differ.
    """
    url = store_url(source)
    if url == to:
        fail("--from and --to are the same store")
    here = open_store(url)
    try:
        there = open_store(to)
        try:
            copied = Copy(here, there)
            copied.run()
            differences = list(copied.differences())
        finally:
            there.close()
    finally:
        here.close()
    found = {
        "executions": copied.executions,
        "rows": copied.rows,
        "breakers": copied.breakers,
        "differences": differences,
    }
    if json:
        print_json(found)
    else:
        out.print(
            f"{copied.rows} rows of the journal and {copied.breakers} breakers were copied; "
            f"{copied.executions} executions were compared, {len(differences)} differ"
        )
        for one in differences[:MAX_SHOWN]:
            out.print(f"  {one}")
    if differences:
        raise typer.Exit(FOUND)


class Copy:
    """A copy of one registry.

    Attributes:
        rows: Number of rows of the journal that were copied.
        breakers: Number of breakers that were copied.
        executions: Number of executions that were compared.
    """

    def __init__(self, source: Store, target: Store) -> None:
        """Describe it.

        Args:
            source: Where to read.
            target: Where to write; it is empty, or an earlier copy.
        """
        self._source = source
        self._target = target
        self._machines = {hash_: Machine.from_json(text) for hash_, text in source.machines().items()}
        self._ahead: dict[str, Snapshot] = {}  # records of the target as they are, or will be with the batch
        self.rows = self.breakers = self.executions = 0

    def run(self) -> None:
        """Copy what is missing."""
        for machine in (*self._machines.values(), EXECUTION):
            self._target.register(record_of(machine))
        mark = self._source.timeline("").mark
        if mark is not None:
            self._target.timeline_mark(mark)
        orders = set(_orders(self._source))
        after = 0
        while page := self._source.journal(after, PAGE):
            after = page[-1].position
            self._append(self._missing(page, orders))
            self._ahead.clear()
        self._dismiss()
        if isinstance(self._source, BreakerStore) and isinstance(self._target, BreakerStore):
            self._copy_breakers(self._source, self._target)

    # --- executions -------------------------------------------------------------------------------------------

    def _missing(self, page: Sequence[Receipt], orders: set[Order]) -> list[Step]:
        """Return the steps of a page that the target has not."""
        finals = {one: self._source.load(one) for one in {receipt.execution_id for receipt in page}}
        steps: list[Step] = []
        for receipt in page:
            final = finals[receipt.execution_id]
            before = self._ahead.get(receipt.execution_id) or self._target.load(receipt.execution_id)
            if final is None or (before is not None and before.version >= receipt.version):
                continue
            if before is None:
                self._check_parent(final.identity)
            after = final if final.version == receipt.version else _between(before, receipt, final)
            order = Order(receipt.execution_id, receipt.version, receipt.event)
            effects = (CANCEL_CHILDREN,) if order in orders else ()
            steps.append(
                Step(after, receipt.source, receipt.event, receipt.key, receipt.payload_json, effects, before)
            )
            self._ahead[receipt.execution_id] = after
        return steps

    def _append(self, steps: Sequence[Step]) -> None:
        for step, outcome in zip(steps, self._target.append(steps), strict=True):
            if not isinstance(outcome, Receipt):
                said = (
                    f"is at version {outcome.version} there"
                    if isinstance(outcome, Conflict)
                    else f"is refused by its law ({outcome.why}: {outcome.who})"
                )
                fail(
                    f"{step.after.identity.id}, version {step.after.version}, cannot be copied: it {said}. Copy into "
                    "an empty store, or one that holds an earlier copy and nothing else"
                )
            self.rows += 1

    def _check_parent(self, identity: Identity) -> None:
        """Let something stand in for a parent that was deleted: no execution is born under one that is not there."""
        parent_id = identity.parent_id
        if parent_id is None or parent_id in self._ahead or self._target.load(parent_id) is not None:
            return
        if self._source.load(parent_id) is None:
            born = identity._replace(
                id=parent_id, parent_id=None, key=None, machine=EXECUTION.content_hash, agent=STAND_IN
            )
            step = create(EXECUTION, born)
            # It waits for its children's copies, and for no deadline.
            self._target.append([step._replace(after=step.after._replace(due_at=None, due_kind=None))])

    def _dismiss(self) -> None:
        """Delete what stood in, as its original was: its id is not born again there either."""
        while page := self._target.find(Query(agent=STAND_IN, limit=PAGE)):
            ends = [
                decide(EXECUTION, one, Request("cancel", one.updated_at)) for one in page if one.version == 0
            ]
            # Its children are copies, and stay as they are: nothing cancels them.
            self._target.append([end._replace(effects=()) for end in ends if isinstance(end, Step)])
            if not self._target.forget([one.identity.id for one in page]):
                fail(f"{page[0].identity.id} cannot be deleted in the target")

    # --- breakers ---------------------------------------------------------------------------------------------

    def _copy_breakers(self, source: BreakerStore, target: BreakerStore) -> None:
        for row in source.breaker_list():
            if target.breaker_load(row.key) is None and self._copy_breaker(source, target, row):
                self.breakers += 1

    def _copy_breaker(self, source: BreakerStore, target: BreakerStore, row: BreakerRow) -> bool:
        """Write a breaker's lines again from the last one that left its first state, then its row as it is."""
        lines = source.breaker_changes(0, PAGE, row.key, LAST)
        machine, first = next(
            (
                (machine, index)
                for index in range(len(lines) - 1, -1, -1)
                for machine in self._machines.values()
                if lines[index].source == machine.initial and _leads(machine, lines[index])
            ),
            (None, 0),
        )
        if machine is None:
            return False
        for version, line in enumerate(lines[first:], 1):
            made = BreakerRow(row.key, line.target, version, line.generation, line.at)
            target.breaker_swap(machine.content_hash, version - 1, made, line._replace(version=version))
        version = len(lines) - first
        return target.breaker_swap(machine.content_hash, version, row._replace(version=version + 1), None)

    # --- the comparison ---------------------------------------------------------------------------------------

    def differences(self) -> Iterator[str]:
        """Yield what differs: a record, a journal, a journal that does not fold to its record."""
        after: str | None = None
        while page := self._source.find(Query(limit=PAGE, after=after)):
            after = page[-1].identity.id
            for record in page:
                self.executions += 1
                yield from self._compare(record)
        one, other = sum(self._source.counts().values()), sum(self._target.counts().values())
        if one != other:
            yield f"the source has {one} executions, the target {other}"
        if set(_orders(self._source)) != set(_orders(self._target)):
            yield "the orders that are not carried out differ"

    def _compare(self, record: Snapshot) -> Iterator[str]:
        execution_id = record.identity.id
        if self._target.load(execution_id) != record:
            yield f"{execution_id}: the record differs"
        here, there = (
            [receipt._replace(position=0) for receipt in store.history(execution_id)]
            for store in (self._source, self._target)
        )
        if here != there:
            yield f"{execution_id}: the journal differs"
        elif fold(there, self._machines[record.identity.machine]) != record.state:
            yield f"{execution_id}: the journal does not fold to the record"


def _orders(store: Store) -> Iterator[Order]:
    after = ""
    while page := store.orders(after, PAGE):
        yield from page
        after = page[-1].execution_id


def _leads(machine: Machine, line: BreakerEntry) -> bool:
    return any(
        (source, event, target) == (line.source, line.event, line.target)
        for source, event, target in record_of(machine).rows
    )


def _between(before: Snapshot | None, receipt: Receipt, final: Snapshot) -> Snapshot:
    """Return a record for a version that is not the last one: as the journal tells it, and nothing else of it kept."""
    enters = before is None or receipt.source != receipt.target or receipt.at == final.entered_at
    since_at = final.identity.born_at if before is None else before.since_at
    return final._replace(
        state=receipt.target,
        version=receipt.version,
        entered_at=receipt.at if before is None or enters else before.entered_at,
        updated_at=receipt.at,
        due_at=None,
        due_kind=None,
        attempt=receipt.attempt,
        owner=receipt.owner,
        fence=receipt.fence,
        tools=(),
        # It rises one by one, and the last record has its final value.
        model_attempt=0 if before is None else min(final.model_attempt, before.model_attempt + 1),
        not_before=None,
        breaker=None,
        limit_s=None,
        end_json=None,
        since_at=final.since_at if enters and receipt.at == final.entered_at else since_at,
        paused_s=0.0 if before is None else before.paused_s,
        suspended=False,
    )
