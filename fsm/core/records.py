"""The records: what is kept of an execution, and what is shown of it.

Inside, a record is a tuple with names: immutable, so that it can be handed between threads without a copy, and
small. At the edge stands `Execution`, a frozen pydantic model. JSON (metadata, payloads, results) is kept as text
and decoded at each look: whoever gets one has a copy of his own.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from fsm.errors import DamagedRecord
from fsm.machine.timeouts import MAX_SECONDS, Timeouts

if TYPE_CHECKING:
    from fsm.machine.machine import Machine


class Retry(BaseModel):
    """How often an execution and its model calls may be tried, and how long to wait in between.

    The n-th wait is ``backoff_s`` times two to the power of n-1, at most ``backoff_cap_s``, and shortened by up to
    half at random, so that what failed together does not come back together.

    Attributes:
        attempts_max: Attempts of the whole execution; the first is 1.
        model_attempts_max: Attempts of one model call before it counts as failed.
        backoff_s: The first wait, in seconds; 0 for none.
        backoff_cap_s: The longest wait, in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts_max: int = Field(default=1, ge=1, le=1000, strict=True)
    model_attempts_max: int = Field(default=5, ge=1, le=1000, strict=True)
    backoff_s: float = Field(default=1.0, ge=0, le=MAX_SECONDS, allow_inf_nan=False, strict=True)
    backoff_cap_s: float = Field(default=60.0, ge=0, le=MAX_SECONDS, allow_inf_nan=False, strict=True)


class Identity(NamedTuple):
    """What an execution is born with and keeps for ever.

    `created_at` is for people, on the wall clock. `born_at` is the same instant on the registry's steady timeline,
    on which deadlines are laid (see `Registry.now`). `key` makes its creation safe to repeat. `depth` is the number of
    parents above it, as far as they were counted: one that was created before they were counts as a root.
    """

    id: str
    machine: str
    agent: str
    user_id: str
    thread_id: str
    parent_id: str | None
    retry_of: str | None
    created_at: float
    attempts_max: int
    model_attempts_max: int
    metadata_json: str | None
    timeouts_json: str | None
    born_at: float = 0.0
    backoff_s: float = 1.0
    backoff_cap_s: float = 60.0
    key: str | None = None
    depth: int = 0


class Snapshot(NamedTuple):
    """What an execution is at one version.

    Attributes:
        identity: What it was born with.
        state: Its state; the category and the phase follow from it.
        version: How many transitions it has made.
        entered_at: Since when it is in its state, in seconds since the epoch.
        updated_at: When the last transition was made.
        due_at: When its nearest deadline passes, on the steady timeline, or ``None``.
        due_kind: The kind of that deadline.
        attempt: Which try this is, the first is 1; 0 before anybody claimed it.
        owner: The worker that drives this attempt.
        fence: The token that a stale worker fails on; it grows with every claim and release.
        tools: The open tool calls, oldest first, each as (name, call id).
        model_attempt: Which try of the current model call this is.
        not_before: When a wait is over, on the steady timeline, or ``None``.
        breaker: The key of the breaker that it waits behind.
        limit_s: A limit of its own for the stay in the current state, in seconds.
        end_json: The payload of the event that ended it.
        since_at: Since when it is in its state, on the steady timeline.
        paused_s: The time that it spent waiting for a person and has left behind, in seconds.
        suspended: Whether its worker was lost while it waited for a person: the next claim goes on with this attempt.
    """

    identity: Identity
    state: str
    version: int
    entered_at: float
    updated_at: float
    due_at: float | None
    due_kind: str | None
    attempt: int
    owner: str | None
    fence: int
    tools: tuple[tuple[str, str | None], ...]
    model_attempt: int
    not_before: float | None
    breaker: str | None
    limit_s: float | None
    end_json: str | None
    since_at: float = 0.0
    paused_s: float = 0.0
    suspended: bool = False


CANCEL_CHILDREN = "cancel_children"
"""The effect that cancels the children of an execution through the table."""
EFFECTS = frozenset({CANCEL_CHILDREN})
"""What a row's `effects` can name: every one is carried out by the registry, after the commit."""


class Step(NamedTuple):
    """What a decision comes to: the record after it, and the journal's row. Nothing has happened yet.

    Attributes:
        after: The record after it.
        source: The state before; ``None`` for a creation.
        event: The event.
        key: The idempotency key that came with it.
        payload_json: What came with it, as JSON text.
        effects: The orders that are carried out after the commit.
        before: The record that was decided on, which tells a store what need not be written again.
    """

    after: Snapshot
    source: str | None
    event: str
    key: str | None
    payload_json: str | None
    effects: tuple[str, ...]
    before: Snapshot | None = None


class Receipt(NamedTuple):
    """The committed record of one transition: a row of the journal.

    Attributes:
        position: Its place in the journal of the whole registry; the cursor of every subscription.
        execution_id: Whose transition it is.
        version: The version that it made; creation is 0, and there is no gap.
        event: The event.
        source: The state before; ``None`` for the creation.
        target: The state after.
        at: When it happened, in seconds since the epoch.
        attempt: The attempt after it.
        fence: The fence after it: what a claimer passes with every later write.
        owner: The owner after it.
        key: The idempotency key that came with it.
        payload_json: What came with it, as JSON text.
    """

    position: int
    execution_id: str
    version: int
    event: str
    source: str | None
    target: str
    at: float
    attempt: int
    fence: int
    owner: str | None
    key: str | None
    payload_json: str | None

    @property
    def payload(self) -> dict[str, Any]:
        """What came with the event: a fresh dict at every look."""
        return decoded(self.payload_json, "journal", self.position, "payload")

    @property
    def state(self) -> str:
        """The state after the transition; the same as `target`."""
        return self.target

    def as_dict(self) -> dict[str, Any]:
        """Return the receipt as JSON-ready data, with the payload decoded."""
        data = self._asdict()
        del data["payload_json"]
        data["payload"] = self.payload
        return data


def decoded(text: str | None, table: str, key: object, column: str) -> dict[str, Any]:
    """Return kept JSON as fresh data; empty if nothing was kept.

    Raises:
        DamagedRecord: The text is no JSON object any more.
    """
    if not text:
        return {}
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise DamagedRecord(table, key, column, "is no JSON object that can be read")
    return data


def receipt_of(step: Step, position: int) -> Receipt:
    """Return the receipt of a step that was committed at `position`."""
    after = step.after
    return Receipt(
        position,
        after.identity.id,
        after.version,
        step.event,
        step.source,
        after.state,
        after.updated_at,
        after.attempt,
        after.fence,
        after.owner,
        step.key,
        step.payload_json,
    )


class MachineRecord(NamedTuple):
    """A machine as data, for the store's own law.

    Attributes:
        content_hash: Its identity.
        name: Its name.
        document: The declaration as JSON text.
        states: Each state, whether it is terminal, and whether it is stopping.
        rows: Every (source, event, target) that a journal may hold; the creation has no source.
    """

    content_hash: str
    name: str
    document: str
    states: tuple[tuple[str, bool, bool], ...]
    rows: tuple[tuple[str | None, str, str], ...]


class Execution(BaseModel):
    """An execution as it was when somebody looked. Instants are seconds since the epoch.

    Attributes:
        id: Its id.
        machine: The name of its machine.
        machine_hash: The content hash of exactly the machine that it is an instance of.
        agent: The agent's name.
        user_id: Whose it is.
        thread_id: The conversation that it belongs to.
        parent_id: The execution that started it.
        retry_of: The execution that it is a rerun of.
        state: Its state.
        category: What the state means: pending, running, waiting, stopping or terminal.
        version: How many transitions it has made.
        attempt: Which try this is; 0 before anybody claimed it.
        attempts_max: How many tries it may have.
        owner: The worker that drives it.
        fence: The token of the current attempt.
        created_at: When it was created.
        entered_at: Since when it is in its state.
        updated_at: When it last changed.
        ended_at: When it ended.
        due_at: When its nearest deadline passes.
        due_kind: Which deadline that is.
        not_before: When a wait is over.
        open_tools: The names of the tools that are open, oldest first.
        model_attempt: Which try of the current model call this is.
        breaker: The key of the breaker that it waits behind.
        timeouts: The limits that apply; ``timeouts.model_fields_set`` names those that it brought, the others are the
            machine's.
        metadata: What its creator noted; a copy of its own.
        ended_as: What kind of end it reached, as its machine declares: success, error, timeout, cancelled or lost;
            ``None`` while it is open.
        outcome: Why it ended, in one word, kept apart from the state.
        result: What it returned.
        error: What went wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    id: str
    machine: str
    machine_hash: str
    agent: str
    user_id: str
    thread_id: str
    parent_id: str | None
    retry_of: str | None
    state: str
    category: str
    version: int
    attempt: int
    attempts_max: int
    owner: str | None
    fence: int
    created_at: float
    entered_at: float
    updated_at: float
    ended_at: float | None
    due_at: float | None
    due_kind: str | None
    not_before: float | None
    open_tools: tuple[str, ...]
    model_attempt: int
    breaker: str | None
    timeouts: Timeouts | None
    metadata: dict[str, Any]
    ended_as: str | None
    outcome: str | None
    result: Any
    error: str | None

    @property
    def ended(self) -> bool:
        """Whether it reached a terminal state."""
        return self.ended_at is not None

    @property
    def succeeded(self) -> bool:
        """Whether it ended as its machine declares a success."""
        return self.ended_as == "success"


def view(snapshot: Snapshot, machine: Machine) -> Execution:
    """Show a snapshot.

    Args:
        snapshot: What is kept.
        machine: The machine that it is an instance of.

    Returns:
        A frozen model that shares nothing with the registry.
    """
    identity = snapshot.identity
    if snapshot.state not in machine.by_name:
        raise DamagedRecord("executions", identity.id, "state", f"is no state of machine {machine.name!r}")
    ended = snapshot.state in machine.terminal
    end = decoded(snapshot.end_json, "executions", identity.id, "ending")
    return Execution.model_construct(
        id=identity.id,
        machine=machine.name,
        machine_hash=identity.machine,
        agent=identity.agent,
        user_id=identity.user_id,
        thread_id=identity.thread_id,
        parent_id=identity.parent_id,
        retry_of=identity.retry_of,
        state=snapshot.state,
        category=machine.by_name[snapshot.state].category.value,
        version=snapshot.version,
        attempt=snapshot.attempt,
        attempts_max=identity.attempts_max,
        owner=snapshot.owner,
        fence=snapshot.fence,
        created_at=identity.created_at,
        entered_at=snapshot.entered_at,
        updated_at=snapshot.updated_at,
        ended_at=snapshot.updated_at if ended else None,
        due_at=snapshot.due_at,
        due_kind=snapshot.due_kind,
        not_before=snapshot.not_before,
        open_tools=tuple(name for name, _ in snapshot.tools),
        model_attempt=snapshot.model_attempt,
        breaker=snapshot.breaker,
        timeouts=_effective(machine, identity.timeouts_json),
        metadata=decoded(identity.metadata_json, "executions", identity.id, "metadata"),
        ended_as=machine.outcomes.get(snapshot.state),
        outcome=(end.get("outcome") or end.get("kind") or snapshot.state) if ended else None,
        result=end.get("result"),
        error=end.get("error"),
    )


@lru_cache(maxsize=1024)
def _effective(machine: Machine, brought_json: str | None) -> Timeouts:
    """Return the limits that apply to an execution; they are frozen, so that all who look share them."""
    brought = Timeouts.model_validate_json(brought_json) if brought_json else Timeouts()
    return brought.effective(machine.timeouts)
