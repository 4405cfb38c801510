"""The one decision: given a record, an event and facts, what follows from the table?

`decide` is pure. It knows no clock, no store and no randomness; time is a fact. It returns a `Step` (what shall be
committed, as data) or a `Refusal` (why nothing is), and changes nothing (after xstate's pure transition function).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from fsm.core.records import Identity, Snapshot, Step
from fsm.core.request import Request
from fsm.errors import Refusal
from fsm.machine.expressions import Compiled, Vocabulary, compiled
from fsm.machine.grammar import CREATE, Arrow
from fsm.machine.machine import Machine
from fsm.machine.timeouts import Limits

UNDERCUT = "undercut"
"""The key under which the journal says of a question that it cannot be answered as long as its expiry promises."""
MAX_OPEN_TOOLS = 1000
"""Maximum number of open tool calls for which the fact ``tools_left`` holds."""


# --- facts that the record itself answers -----------------------------------------------------------------


def _find_tool(snapshot: Snapshot, payload: Mapping[str, Any]) -> int | None:
    """Return the index of the open call that a close means: by call id, by name, else the oldest."""
    name, call_id = payload.get("name"), payload.get("call_id")
    for index, (open_name, open_id) in enumerate(snapshot.tools):
        if (call_id is None or open_id == call_id) and (name is None or open_name == name):
            return index
    return None


FACTS: dict[str, str] = {
    "owned": "owner is not none",
    "attempts_left": "attempt < attempts_max",
    "model_attempts_left": "model_attempt < model_attempts_max",
    "tools_left": "open_tools < tools_max",
    "tools_open": "open_tools > 0",
}
"""The facts that the record alone answers, as expressions."""
_RECORD = {
    "attempts_max": "record.identity.attempts_max",
    "model_attempts_max": "record.identity.model_attempts_max",
    "tools_max": "tools_max()",
    "open_tools": "len(record.tools)",
} | {
    word: f"record.{word}"
    for word in "version attempt owner fence tools model_attempt not_before breaker limit_s suspended".split()
}
"""How Python gets at the words of a record in expressions (`fsm.machine.expressions`)."""
DERIVED: dict[str, Callable[[Snapshot, Mapping[str, Any]], bool]] = {
    name: compiled(text, Compiled("record, _", _RECORD, {"tools_max": lambda: MAX_OPEN_TOOLS}))
    for name, text in FACTS.items()
} | {"tool_known": lambda snapshot, payload: _find_tool(snapshot, payload) is not None}
"""The facts that need no payload field of their own; any machine may ask them."""


class _Question:
    """What the executor is asked; it stands in for a model and is thrown away afterwards."""

    __slots__ = ("arrow", "defaults", "payload", "snapshot", "state")

    def __init__(self, snapshot: Snapshot, payload: Mapping[str, Any], defaults: Mapping[str, bool]) -> None:
        self.state = snapshot.state
        self.snapshot = snapshot
        self.payload = payload
        self.defaults = defaults
        self.arrow: Arrow | None = None

    def ask(self, fact: str) -> bool:
        derive = DERIVED.get(fact)
        if derive is not None:
            return derive(self.snapshot, self.payload)
        answer = self.payload.get(fact)
        return self.defaults[fact] if answer is None else answer is True


# --- changes of the record that commit with the state ---------------------------------------------------------

# What a row does to the record is data: an expression over the record before for each field. `decide` compiles it, the
# proof and the exports read it; `tests/proof/test_symbolic.py` holds the two together over random records.

CHANGES: dict[str, Mapping[str, str]] = {
    # An attempt that was suspended is the same attempt: it did not fail, its worker left while a person was asked.
    "claim": {
        "owner": "claimant",
        "attempt": "attempt if suspended else attempt + 1",
        "fence": "fence + 1",
        "tools": "()",
        "suspended": "false",
    },
    # The fence grows here too: between release and the next claim the old worker must already be a stranger.
    "release": {
        "owner": "none", "fence": "fence + 1", "tools": "()", "model_attempt": "0", "suspended": "false",
    },
    "suspend": {
        "owner": "none", "fence": "fence + 1", "tools": "()", "model_attempt": "0", "suspended": "true",
    },
    "wait": {"not_before": "said_wait", "breaker": "said_breaker"},
    "pause": {"not_before": "model_backoff"},
    "retry_later": {"not_before": "backoff"},
    "new_call": {"model_attempt": "0"},  # a call that the breaker did not let through was not tried
    "first_call": {"model_attempt": "1"},
    "next_call": {"model_attempt": "model_attempt + 1"},
    "open_tool": {"tools": "tools_and_this"},
    "close_tool": {"tools": "tools_without"},
    "drop_tools": {"tools": "()"},  # what opened them was cancelled: no code waits for them
    "ask": {"limit_s": "said_expiry"},
}  # fmt: skip
"""What a row's `assign` can name in a machine whose instances are executions."""
FRAME: dict[str, Mapping[str, str]] = {
    "always": {"version": "version + 1"},
    "moved": {"not_before": "none", "breaker": "none", "limit_s": "none"},
    "ended": {"tools": "()"},
}
"""What a row changes beside what it assigns: each one, one that leads to a state, one that ends the execution."""


def _claimant(_snapshot: Snapshot, facts: Request) -> str | None:
    return facts.payload.get("owner") or facts.worker


def _said_wait(_snapshot: Snapshot, facts: Request) -> float | None:
    delay_s: float | None = facts.payload.get("retry_in_s")
    return None if delay_s is None else _now(facts) + delay_s


def _backoff(snapshot: Snapshot, facts: Request) -> float:
    return _now(facts) + _backoff_s(snapshot, facts, snapshot.attempt)


def _model_backoff(snapshot: Snapshot, facts: Request) -> float:
    return _now(facts) + _backoff_s(snapshot, facts, snapshot.model_attempt)


def _backoff_s(snapshot: Snapshot, facts: Request, attempt: int) -> float:
    """Return the wait before the next attempt, in seconds: what the payload says, else the execution's policy."""
    said: float | None = facts.payload.get("retry_in_s")
    if said is not None:
        return said
    identity = snapshot.identity
    doublings = min(max(attempt - 1, 0), 64)  # more would only overflow: the cap has long been reached
    return min(identity.backoff_cap_s, identity.backoff_s * 2.0**doublings) * (1.0 - facts.jitter / 2)


def _now(facts: Request) -> float:
    return facts.at if facts.now is None else facts.now


def _tools_and_this(snapshot: Snapshot, facts: Request) -> tuple[tuple[str, str | None], ...]:
    return (*snapshot.tools, (facts.payload.get("name") or "", facts.payload.get("call_id")))


def _tools_without(snapshot: Snapshot, facts: Request) -> tuple[tuple[str, str | None], ...]:
    index = _find_tool(snapshot, facts.payload)
    return snapshot.tools if index is None else snapshot.tools[:index] + snapshot.tools[index + 1 :]


INPUTS: dict[str, Callable[[Snapshot, Request], Any]] = {
    "claimant": _claimant,
    "said_wait": _said_wait,
    "said_breaker": lambda _, facts: facts.payload.get("breaker"),
    "said_expiry": lambda _, facts: facts.payload.get("expires_s"),
    "backoff": _backoff,
    "model_backoff": _model_backoff,
    "tools_and_this": _tools_and_this,
    "tools_without": _tools_without,
}
"""What a change takes from outside the record: from the payload, the clock and the caller."""

EXECUTIONS = Vocabulary(
    words={
        "version": "count", "attempt": "count", "fence": "count", "model_attempt": "count", "tools": "count",
        "owner": "thing", "not_before": "thing", "breaker": "thing", "limit_s": "thing",
        "suspended": "flag",
    },
    constants={"attempts_max": 1, "model_attempts_max": 1, "tools_max": 1},
    facts=FACTS,
    inputs={
        "claimant": "present", "said_wait": "thing", "said_breaker": "thing", "said_expiry": "thing",
        "backoff": "present", "model_backoff": "present",
        "tool_known": "flag",
    },
    assume=("tool_known implies tools > 0",),
    # Of the list of open tools a proof knows the length.
    defined={
        "open_tools": "tools",
        "tools_and_this": "tools + 1",
        "tools_without": "tools - 1 if tool_known else tools",
    },
    begins={
        "version": "0", "attempt": "0", "fence": "0", "model_attempt": "0", "tools": "()", "owner": "none",
        "not_before": "none", "breaker": "none", "limit_s": "none", "suspended": "false",
    },
    changes=CHANGES,
    frame=FRAME,
    python=_RECORD | {"tools_max": str(MAX_OPEN_TOOLS)},
)  # fmt: skip
"""What the words of a machine mean whose instances are executions."""
CHANGED = tuple(EXECUTIONS.begins)
"""The fields of a record that expressions change, in the order in which `assigned` returns them."""


@lru_cache(maxsize=1024)
def assigned(
    assign: tuple[str, ...], *, internal: bool, ends: bool
) -> Callable[[Snapshot, Request], tuple[Any, ...]]:
    """Return the function that yields the fields of the record after a row, in the order of `CHANGED`.

    Args:
        assign: What the row notes.
        internal: Whether the state stays by declaration.
        ends: Whether it leads to an end.
    """
    (texts,) = EXECUTIONS.assigned(assign, internal=internal, ends=ends)
    terms = _RECORD | {name: f"{name}(record, given)" for name in INPUTS}
    return compiled(
        [texts.get(name, name) for name in CHANGED], Compiled("record, given", terms, dict(INPUTS))
    )


# --- deadlines ------------------------------------------------------------------------------------------------


def deadline(
    limits: Limits,
    state: str,
    born_at: float,
    since_at: float,
    now: float,
    not_before: float | None = None,
    limit_s: float | None = None,
    paused_s: float = 0.0,
) -> tuple[float | None, str | None]:
    """Return the nearest deadline of an open execution, and its kind. All instants are of the steady timeline.

    Args:
        limits: The resolved limits.
        state: The state that it is in.
        born_at: When it was created; `total` counts from here.
        since_at: When it entered the state; the state's own limit counts from here.
        now: When it last did something, which is now; `idle` counts from here.
        not_before: A wait that was ordered; it does not count against the state's limit.
        limit_s: A limit of its own for this stay, in seconds.
        paused_s: The time spent waiting for a person before this stay, in seconds; `total` does not count it, unless
            the execution brought that limit itself.

    Returns:
        The instant and the kind, or ``(None, None)`` if nothing limits it.
    """
    due_at: float | None = None
    kind: str | None = None
    entry = limits.by_state[state]
    if entry is not None:
        kind, seconds = entry
        # Whoever was told to wait is not late: the limit counts from the moment when the wait is over.
        begins_at = not_before if not_before is not None and not_before > since_at else since_at
        due_at = begins_at + (seconds if limit_s is None else limit_s)
    elif limit_s is not None:
        due_at, kind = since_at + limit_s, "input"
    if limits.total_s is not None and (
        limits.total_given or due_at is None or state not in limits.input_states
    ):
        total_at = born_at + limits.total_s + (0.0 if limits.total_given else paused_s)
        if due_at is None or total_at < due_at:
            due_at, kind = total_at, "total"
    if (
        limits.idle_s is not None
        and state in limits.idle_states
        and (due_at is None or now + limits.idle_s < due_at)
    ):
        due_at, kind = now + limits.idle_s, "idle"
    return due_at, kind


# --- the decision ---------------------------------------------------------------------------------------------


def create(machine: Machine, identity: Identity) -> Step:
    """Return the step that brings an execution into being, in the machine's initial state, at version 0."""
    at, now = identity.created_at, identity.born_at
    due_at, kind = deadline(machine.limits_for(identity.timeouts_json), machine.initial, now, now, now)
    after = Snapshot(
        identity, machine.initial, 0, at, at, due_at, kind, 0, None, 0, (), 0, None, None, None, None, now
    )
    return Step(after, None, CREATE, None, None, ())


def decide(machine: Machine, snapshot: Snapshot, request: Request) -> Step | Refusal:
    """Return what follows from a request: a `Step` to commit, or a `Refusal`. Nothing is changed either way."""
    fence = request.fence
    if fence is not None and fence != snapshot.fence:
        return refuse(machine, snapshot, request, "fenced")
    if (request.version is not None and request.version != snapshot.version) or (
        request.holder is not None and request.holder != snapshot.owner
    ):
        return refuse(machine, snapshot, request, "stale")
    question = _Question(snapshot, request.payload, machine.fact_defaults)
    trigger = machine.executor.triggers.get(request.event)
    if trigger is None or not trigger(question):
        return refuse(machine, snapshot, request, _why_not(machine, snapshot, request.event))
    arrow = question.arrow
    assert arrow is not None  # noqa: S101 - the executor sets it whenever it returns True
    if arrow.by == "owner":
        # A fence of 0 was never given to a worker. A given one was compared above: it is the current one.
        if fence is None and snapshot.fence != 0 and not request.ordered:
            return refuse(machine, snapshot, request, "fenced")
    elif arrow.by == "system" and request.user_id is not None:
        return refuse(machine, snapshot, request, "forbidden")
    return _take(machine, snapshot, arrow, request)


def _take(machine: Machine, snapshot: Snapshot, arrow: Arrow, facts: Request) -> Step:
    identity = snapshot.identity
    state = arrow.target
    if facts.at < snapshot.updated_at:
        # A wall clock that jumped back must not make a journal run backwards, nor cut a wait short.
        facts = facts.but(at=snapshot.updated_at)
    at = facts.at
    now = at if facts.now is None else facts.now  # as `_now`, written out: every event takes this way
    ends = state in machine.terminal
    (
        version, attempt, fence, model_attempt, tools, owner, not_before, breaker, limit_s, suspended,
    ) = assigned(arrow.assign, internal=arrow.internal, ends=ends)(snapshot, facts)  # fmt: skip
    if arrow.internal:
        entered_at, since_at = snapshot.entered_at, snapshot.since_at
    else:
        entered_at, since_at = at, now
    limits = machine.limits_known.get(identity.timeouts_json) or machine.limits_for(identity.timeouts_json)
    paused_s = snapshot.paused_s
    if not arrow.internal and snapshot.state in limits.input_states:
        paused_s += max(0.0, now - snapshot.since_at)
    payload_json = facts.payload_json
    if ends:
        due_at, kind, end_json = None, None, payload_json
    else:
        end_json = None
        due_at, kind = deadline(limits, state, identity.born_at, since_at, now, not_before, limit_s, paused_s)
        if kind == "total" and due_at is not None and limit_s is not None and not arrow.internal:
            payload_json = _undercut(payload_json, due_at - now, limit_s)
    after = Snapshot(
        identity, state, version, entered_at, at, due_at, kind, attempt, owner, fence, tools,
        model_attempt, not_before, breaker, limit_s, end_json, since_at, paused_s, suspended,
    )  # fmt: skip
    return Step(after, snapshot.state, arrow.event, facts.key, payload_json, arrow.effects, snapshot)


def _undercut(payload_json: str | None, left_s: float, expires_s: float) -> str:
    """Return the payload of a question with a note that the execution ends before the question expires."""
    payload: dict[str, Any] = json.loads(payload_json) if payload_json else {}
    payload[UNDERCUT] = f"its total_s ends in {left_s:g} s, before the question expires after {expires_s:g} s"
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"))


# --- refusals -------------------------------------------------------------------------------------------------


def _why_not(machine: Machine, snapshot: Snapshot, event: str) -> str:
    if event not in machine.executor.triggers:
        return "unknown_event"
    if snapshot.state in machine.terminal:
        return "terminal"
    return "guard" if event in machine.by_source[snapshot.state] else "not_allowed"


def refuse(machine: Machine, snapshot: Snapshot, request: Request, reason: str, detail: str = "") -> Refusal:
    """Return the refusal of a request, with the events that are allowed instead.

    Args:
        machine: The machine.
        snapshot: The record, which stays as it is.
        request: The request; one without a fence is told which events need none.
        reason: Why, in one word; see `Refusal`.
        detail: One sentence; defaults to what the table says.
    """
    event = request.event
    if not detail:
        fenceless = reason == "fenced" and request.fence is None
        detail = _FENCELESS if fenceless else _DETAILS[reason](machine, snapshot, event)
    fenced = reason == "fenced" and snapshot.fence > 0
    return Refusal(
        snapshot.identity.id,
        snapshot.state,
        event,
        reason,
        allowed(machine, snapshot, narrowed=request.user_id is not None, fenced=fenced),
        snapshot.version,
        detail,
    )


def childless(parent: Snapshot) -> Refusal:
    """Return the refusal of a child whose parent has ended or is about to; no event helps it."""
    detail = "the parent has ended or is about to: it cannot start children any more"
    return Refusal(parent.identity.id, parent.state, CREATE, "terminal", (), parent.version, detail)


def _unknown_event(machine: Machine, _snapshot: Snapshot, event: str) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - for the one who mistyped

    near = get_close_matches(str(event), machine.events, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"machine {machine.name!r} has no such event{hint}"


def _guard(machine: Machine, snapshot: Snapshot, event: str) -> str:
    arrows = machine.by_source[snapshot.state][event]
    said = [arrow.otherwise for arrow in arrows if arrow.otherwise]
    return said[-1] if said else f"none of its guards holds: {', '.join(arrow.guard for arrow in arrows)}"


_FENCELESS = (
    "only its owner may fire this, and says so with a fence: pass fence= from the receipt of the claim; "
    "an operator passes fence=tracker.get(id).fence"
)
_DETAILS: dict[str, Callable[[Machine, Snapshot, str], str]] = {
    "unknown_event": _unknown_event,
    "guard": _guard,
    "terminal": lambda _, snapshot, __: (
        f"it has already ended {snapshot.state}, and an end is final; "
        f"for a rerun create an execution with retry_of={snapshot.identity.id!r}"
    ),
    "not_allowed": lambda _, snapshot, event: (
        f"the table has no row for {event!r} in state {snapshot.state!r}"
    ),
    "fenced": lambda _, snapshot, __: (
        f"the fence is {snapshot.fence} by now: this attempt was taken away, stop working on it"
    ),
    "forbidden": lambda _, __, event: (
        f"{event!r} is the system's: the platform's own tracker and its sweepers fire it, not a user's"
    ),
    "stale": lambda _, snapshot, __: (
        f"it has moved on to version {snapshot.version} meanwhile: what was observed is no longer so"
    ),
}


def allowed(
    machine: Machine, snapshot: Snapshot, *, narrowed: bool = False, fenced: bool = False
) -> tuple[str, ...]:
    """Return the events that an execution would accept now: those that some payload could make succeed.

    Request that only a payload answers may come out either way; facts of the record are asked.

    Args:
        machine: Its machine.
        snapshot: Its record.
        narrowed: Whether the caller is a user, for whom the system's rows are not.
        fenced: Whether the caller has no current fence: the owner's rows are not for it.

    Returns:
        Event names in the order of the table.
    """
    kept_out = {by for by, out in (("system", narrowed), ("owner", fenced)) if out}
    return tuple(
        event
        for event, arrows in machine.by_source[snapshot.state].items()
        if any(
            arrow.by not in kept_out
            and all(wanted in _answers(snapshot, fact) for fact, wanted in arrow.literals)
            for arrow in arrows
        )
    )


def _answers(snapshot: Snapshot, fact: str) -> tuple[bool, ...]:
    """Return the answers that payloads can bring about."""
    if fact == "tool_known":  # a payload may always name a tool that is not open
        return (False, True) if snapshot.tools else (False,)
    return (DERIVED[fact](snapshot, {}),) if fact in DERIVED else (False, True)
