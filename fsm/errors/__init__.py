"""Every error that the library raises, each with what went wrong and what to do next.

All of them are `FsmError`, so one `except` catches the library and nothing else. A refusal is data first
(`Refusal`) and an exception second (`Refused`): the caller decides whether it is exceptional.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fsm.errors.shown import MAX_SHOWN, shown


class FsmError(Exception):
    """The base of every error of this library."""

    def __reduce__(self) -> tuple[object, ...]:
        # Exception would call the class with the finished text again, which most errors here do not take; an
        # error that cannot be unpickled breaks whole process pools.
        return _rebuild, (type(self), self.args), vars(self)


def _rebuild(kind: type[FsmError], args: tuple[object, ...]) -> FsmError:
    return kind.__new__(kind, *args)


def _brief(reason: str) -> str:
    return reason if len(reason) <= 2 * MAX_SHOWN else reason[: 2 * MAX_SHOWN - 1] + "…"


class Finding(NamedTuple):
    """One thing that is wrong with a machine's declaration, or with what a store holds (`fsm.tracker.verify`).

    Attributes:
        code: A stable, short name of the rule that was broken, such as ``unreachable_state``.
        row: What is at fault: the row or state, as it is written in the table; the record in the store.
        message: What is wrong.
        fix: What to do about it.
    """

    code: str
    row: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.code}: {self.row}: {self.message}. {self.fix}."


class InvalidMachine(FsmError):
    """A machine's declaration does not hold together; `findings` lists everything that is wrong with it."""

    def __init__(self, machine: str, findings: Sequence[Finding]) -> None:
        self.machine = machine
        self.findings = tuple(findings)
        lines = "\n".join(f"  - {finding}" for finding in self.findings)
        super().__init__(f"machine {shown(machine)} has {len(self.findings)} finding(s):\n{lines}")


class Refusal(NamedTuple):
    """The reason why an event was not carried out; nothing was changed.

    Attributes:
        execution_id: The execution that the event was meant for.
        state: The state that it was in.
        event: The event that was refused.
        reason: One of ``not_allowed``, ``unknown_event``, ``guard``, ``terminal``, ``fenced``, ``forbidden``,
            ``duplicate``, ``stale``, ``limit``.
        allowed: The events that the execution would accept now.
        version: The version of the execution that the answer is about.
        detail: One sentence for the person who reads it.
    """

    execution_id: str
    state: str
    event: str
    reason: str
    allowed: tuple[str, ...]
    version: int
    detail: str


class Refused(FsmError):
    """An event that the table, a guard, a fence or a key refused. The `refusal` holds it as data."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        allowed = ", ".join(refusal.allowed) or "nothing"
        super().__init__(
            f"{shown(refusal.event)} refused for {refusal.execution_id} in state {refusal.state!r} "
            f"(version {refusal.version}): {refusal.reason}: {refusal.detail}. Allowed now: {allowed}."
        )

    @property
    def reason(self) -> str:
        """The machine-readable reason, as in `Refusal`."""
        return self.refusal.reason

    @property
    def execution_id(self) -> str:
        """The execution that the event was meant for."""
        return self.refusal.execution_id

    @property
    def state(self) -> str:
        """The state that the execution was in, and still is."""
        return self.refusal.state

    @property
    def event(self) -> str:
        """The event that was refused."""
        return self.refusal.event

    @property
    def allowed(self) -> tuple[str, ...]:
        """The events that the execution would accept now."""
        return self.refusal.allowed

    @property
    def version(self) -> int:
        """The version of the execution that the answer is about."""
        return self.refusal.version


class UnknownExecution(FsmError):
    """No execution of that id exists for the one who asks. Another user's execution is as unknown as none."""

    def __init__(self, execution_id: object, why: str = "") -> None:
        self.execution_id = execution_id
        hint = f" ({_brief(why)})" if why else ""
        super().__init__(
            f"unknown execution {shown(execution_id)}{hint}: take the id from tracker.create() or tracker.find()"
        )


class UnknownMachine(FsmError):
    """The store names a machine that neither this process nor the store's own table knows."""

    def __init__(self, name: str, known: Sequence[str] = ()) -> None:
        self.name = name
        from difflib import get_close_matches  # noqa: PLC0415 - for the one who mistyped

        near = get_close_matches(name[:MAX_SHOWN], known, n=1) if type(name) is str else []
        hint = f"; did you mean {near[0]!r}?" if near else "."
        super().__init__(f"unknown machine {shown(name)}{hint} Known: {', '.join(known) or 'none'}")


class UnknownBreaker(FsmError):
    """No breaker of that key has ever changed its state here; `near` are known keys that are written alike."""

    def __init__(self, key: str, known: Sequence[str] = ()) -> None:
        self.key = key
        from difflib import get_close_matches  # noqa: PLC0415 - for the one who mistyped

        self.near = tuple(get_close_matches(key, known))
        hint = f"; did you mean {' or '.join(map(repr, self.near))}?" if self.near else ""
        super().__init__(
            f"unknown breaker {key!r}: none of that key has ever opened in this store (one that never did leaves no "
            f"trace in it){hint}"
        )


class InvalidArgument(FsmError, ValueError):
    """An argument has a wrong name, type or value. Nothing was changed."""


class BadPayload(InvalidArgument):
    """An event's payload has a wrong name, type or value. Nothing was changed."""


class MalformedId(FsmError, ValueError):
    """A text that is no id of the kind that was asked for; `reason` says why."""

    def __init__(self, text: object, reason: str) -> None:
        self.text = text
        self.reason = _brief(reason)
        super().__init__(f"malformed id {shown(text)}: {self.reason}")


class LeaseLost(FsmError):
    """A worker's lease ran out before it was renewed: what it owned belongs to others. Register anew."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        super().__init__(
            f"worker {worker_id} lost its lease: stop working on everything that it claimed, and call tracker.worker() "
            "for a new one"
        )


class KeyTaken(FsmError):
    """A creation's key has created an execution before: the registry returns that one, or says what is different."""

    def __init__(self, execution_id: str) -> None:
        self.execution_id = execution_id
        super().__init__(f"the key has created {execution_id} already: take a new key for another execution")


class ConfigurationError(FsmError):
    """The registry was configured twice, too late, with bad options, or built by hand."""


class Reentered(FsmError):
    """A call from a signal handler or a finaliser that interrupted this thread inside the library; nothing was changed.

    `what` says what the thread was at work on. The same call succeeds once the interrupted one has returned.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"this thread is at work on {what} and was interrupted by a signal handler or a finaliser, which calls the "
            "library again: set a flag in the handler and call when it has returned, or let another thread make the "
            "call; nothing was changed"
        )


class StoreUnavailable(FsmError):
    """The store did not answer, is full, locked or closed.

    `committed` says what is known of the write: ``False`` when nothing was written, ``None`` when nobody can tell
    (repeat the call with the same ``key=``; the first receipt comes back if it was written after all).
    """

    def __init__(self, message: str, *, committed: bool | None = False) -> None:
        self.committed = committed
        super().__init__(message)


class NotAStore(FsmError):
    """The file or URL is no store of this library: another program's database, a text file, a damaged file."""


class DamagedRecord(FsmError):
    """A record in the store cannot be read: a value is missing, or is not what its column holds.

    Attributes:
        table: What the record is part of, such as ``executions``.
        key: Which record: an execution's id, a position in the journal, a breaker's key.
        column: The value that cannot be read.
    """

    def __init__(self, table: str, key: object, column: str, why: str) -> None:
        self.table = table
        self.key = str(key)
        self.column = column
        self.why = why
        super().__init__(
            f"{table} {self.key}: {column} {why}. The record is damaged and nothing was changed: restore the store "
            "from a backup, or leave the record alone; `fsm doctor --verify` lists all of them"
        )


class StoreTooNew(FsmError):
    """The store was written by a newer version of the library, which may know states that this one does not."""

    def __init__(self, where: str, found: int, known: int) -> None:
        self.found = found
        self.known = known
        super().__init__(
            f"{where} has schema version {found}, this library knows {known} at most: "
            "upgrade agent-fsm; nothing was changed in the store"
        )


class NotCompleted(FsmError):
    """An execution that an engine drove came to an end other than its result.

    Attributes:
        execution_id: The execution.
        state: The state that it ended in, or is in.
    """

    def __init__(self, execution_id: str, state: str, message: str) -> None:
        self.execution_id = execution_id
        self.state = state
        super().__init__(f"{execution_id} is {state}: {message}")


class ExecutionTimedOut(NotCompleted, TimeoutError):
    """A deadline of the execution passed; `kind` says which, and `late_s` by how many seconds it was seen late.

    The kind ``limit`` is no deadline: the agent used up what it was given, turns or tokens say.
    """

    def __init__(self, execution_id: str, state: str, kind: str, late_s: float | None) -> None:
        self.kind = kind
        self.late_s = late_s
        hint = "" if kind == "limit" else "; raise it with timeouts=Timeouts(…)"
        super().__init__(execution_id, state, f"its {kind} limit was reached{hint}")

    def __reduce__(self) -> tuple[type[ExecutionTimedOut], tuple[str, str, str, float | None]]:
        # An OSError, which a TimeoutError is, keeps its text elsewhere than other exceptions.
        return type(self), (self.execution_id, self.state, self.kind, self.late_s)


class ExecutionCancelled(NotCompleted):
    """The execution was called off; `reason` and `by` say why and by whom, `result` is what it still returned."""

    def __init__(
        self, execution_id: str, state: str, reason: str | None, by: str | None, result: object = None
    ) -> None:
        self.reason = reason
        self.by = by
        self.result = result
        said = f" by {by}" if by else ""
        super().__init__(execution_id, state, f"it was called off{said}{f': {reason}' if reason else ''}")


class ExecutionLost(NotCompleted):
    """The execution was taken away from this process: its lease ran out, or another worker goes on with it."""

    def __init__(self, execution_id: str, state: str) -> None:
        super().__init__(
            execution_id, state, "it is not this process's any more; tracker.get() tells how it goes on"
        )


class ExecutionFailed(NotCompleted):
    """The execution failed in another process, whose exception is not here; the message is what it said."""


class PrerequisiteFailed(FsmError):
    """A check before the agent began, or of what it returned, refused; `reason` says why. It is not tried again."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class LimitReached(FsmError):
    """An agent used up what it was given (turns, tokens, money): the execution ends timed_out, of the kind limit."""


class EngineFull(FsmError):
    """So many executions wait for a slot that the engine takes no more; nothing was created. Try again later."""

    def __init__(self, queued: int) -> None:
        self.queued = queued
        super().__init__(
            f"{queued} executions wait for a slot already: try again later, or raise Slots.queued_max"
        )


class BreakerOpen(FsmError):
    """A circuit breaker gave no permit: the call was not made.

    Attributes:
        key: The breaker's key.
        retry_after_s: In how many seconds it is worth asking again, as a float.
        retry_at: The same as an instant, in seconds since the epoch.
        state: The breaker's state: open, half_open (all probes are in flight) or forced_open.
    """

    def __init__(self, key: str, retry_after_s: float, retry_at: float, state: str) -> None:
        self.key = key
        self.retry_after_s = retry_after_s
        self.retry_at = retry_at
        self.state = state
        super().__init__(
            f"the breaker {shown(key)} is {state} and lets no call through: try again in {retry_after_s:.3g} s, "
            "or fall back to something else"
        )

    def __reduce__(self) -> tuple[type[BreakerOpen], tuple[str, float, float, str]]:
        return type(self), (self.key, self.retry_after_s, self.retry_at, self.state)
