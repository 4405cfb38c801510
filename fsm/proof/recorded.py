"""What a new machine makes of what was recorded under an old one: illegal journals, stranded executions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from fsm.core.decide import DERIVED, allowed, create, deadline, decide
from fsm.core.payloads import Codec
from fsm.core.records import Receipt, Snapshot, Step
from fsm.core.request import Request
from fsm.machine.grammar import CREATE
from fsm.machine.machine import Machine

SHOWN = 20
"""Maximum number of executions that a report names for each kind of loss; all of them are counted."""


class Reader(Protocol):
    """What is read of a store."""

    def history(self, execution_id: str) -> Sequence[Receipt]:
        """Return the journal of an execution."""
        ...


class Loss(NamedTuple):
    """One execution that a new machine does not bear.

    Attributes:
        kind: ``illegal`` (its journal), ``stranded`` (its state is gone), ``moves`` (it loses events) or ``deadline``.
        execution_id: Which one.
        state: The state that it is in.
        why: What is lost, in words.
    """

    kind: str
    execution_id: str
    state: str
    why: str


class Judge:
    """Looks at executions of the old machine, one by one."""

    def __init__(self, old: Machine, new: Machine) -> None:
        """Prepare.

        Raises:
            BadPayload: The new machine names a payload model that is not registered in this process.
        """
        self.old = old
        self.new = new
        self._codec = Codec(new, frozenset(DERIVED))

    def losses(self, record: Snapshot, reader: Reader) -> Iterator[Loss]:
        """Yield what one execution would lose."""
        execution_id, state = record.identity.id, record.state
        broken = self.broken(record, reader.history(execution_id))
        if broken:
            yield Loss("illegal", execution_id, state, broken)
        if state in self.old.terminal:
            return
        if state not in self.new.by_name:
            yield Loss("stranded", execution_id, state, f"the new machine has no state {state!r}")
            return
        kept = set(allowed(self.new, record))
        lost = [event for event in allowed(self.old, record) if event not in kept]
        if lost:
            yield Loss("moves", execution_id, state, f"it can no longer {', '.join(lost)}")
        due_at, kind = self._due(self.new, record)
        if (due_at, kind) != self._due(self.old, record):
            was = "no deadline" if record.due_at is None else f"{record.due_kind} at {record.due_at:.0f}"
            is_ = "no deadline" if due_at is None else f"{kind} at {due_at:.0f}"
            yield Loss("deadline", execution_id, state, f"{was} becomes {is_}")

    @staticmethod
    def _due(machine: Machine, record: Snapshot) -> tuple[float | None, str | None]:
        identity = record.identity
        return deadline(
            machine.limits_for(identity.timeouts_json), record.state, identity.born_at, record.since_at,
            record.since_at, record.not_before, record.limit_s, record.paused_s,
        )  # fmt: skip

    def broken(self, record: Snapshot, history: Sequence[Receipt]) -> str:
        """Return why a journal is illegal under the new machine; empty if it is legal."""
        if not history:
            return ""
        first = history[0]
        now = create(self.new, record.identity).after
        if first.event == CREATE and first.target != now.state:
            return f"it begins in {first.target!r}, and not in {now.state!r}"
        for one in history[1:]:
            payload = self._codec.decode(one.event, one.payload_json)
            request = Request(
                one.event, one.at, payload, one.payload_json, fence=now.fence, worker=one.owner, ordered=True
            )
            step = decide(self.new, now, request)
            if not isinstance(step, Step):
                return f"version {one.version}: {one.event!r} in {now.state!r}: {step.reason}: {step.detail}"
            if step.after.state != one.target:
                return f"version {one.version}: {one.event!r} leads to {step.after.state!r}, and not to {one.target!r}"
            now = step.after
        return ""
