"""What the table says, worked out a second time.

The tests that `fsm.testing.machine.machines` makes compare the tracker with this module, so it shares no code with the
decision that it judges (`fsm.core.decide`): it reads the same declaration, and computes facts, changes and deadlines in
its own words. It is written to be read, not to be fast.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fsm.core.payloads import PAYLOADS, Payload
from fsm.errors import ConfigurationError
from fsm.machine.grammar import Arrow
from fsm.machine.machine import Machine
from fsm.machine.timeouts import Timeouts

NOBODY = "no-such-call"
"""The id of a tool call that no test ever opens."""


class Moment(NamedTuple):
    """When an event comes, and from whom.

    Attributes:
        wall: The wall clock, in seconds since the epoch.
        steady: The instant on the timeline of the deadlines if the registry has one of its own, else ``None``.
        worker: Who claims an execution if the payload names nobody.
    """

    wall: float
    steady: float | None = None
    worker: str | None = None

    @property
    def now(self) -> float:
        """The instant from which waits count, in seconds since the epoch."""
        return self.wall if self.steady is None else self.steady


class Twin(NamedTuple):
    """What the record of an execution must be; the names are those of `fsm.core.records.Snapshot`."""

    state: str
    created_at: float = 0.0
    born_at: float = 0.0
    entered_at: float = 0.0
    since_at: float = 0.0
    updated_at: float = 0.0
    seen_at: float = 0.0
    version: int = 0
    attempt: int = 0
    attempts_max: int = 1
    owner: str | None = None
    fence: int = 0
    tools: tuple[tuple[str, str | None], ...] = ()
    model_attempt: int = 0
    model_attempts_max: int = 1
    not_before: float | None = None
    drawn_wait: bool = False
    limit_s: float | None = None
    suspended: bool = False
    paused_s: float = 0.0
    total_given: bool = False


def _meant(twin: Twin, payload: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Return the open call that a close means: the oldest that has the name and the id, where these are said."""
    fits = [
        call
        for call in twin.tools
        if payload.get("name") in {None, call[0]} and payload.get("call_id") in {None, call[1]}
    ]
    return fits[0] if fits else None


FACTS: dict[str, Callable[[Twin, Mapping[str, Any]], bool]] = {
    "owned": lambda twin, _: twin.owner is not None,
    "attempts_left": lambda twin, _: twin.attempts_max - twin.attempt > 0,
    "model_attempts_left": lambda twin, _: twin.model_attempts_max - twin.model_attempt > 0,
    "tools_left": lambda twin, _: len(twin.tools) < 1000,  # noqa: PLR2004 - the limit, said independently
    "tools_open": lambda twin, _: len(twin.tools) > 0,
    "tool_known": lambda twin, payload: _meant(twin, payload) is not None,
}
"""What the record itself answers."""


def _close(twin: Twin, payload: Mapping[str, Any]) -> dict[str, Any]:
    tools = list(twin.tools)
    call = _meant(twin, payload)
    if call is not None:
        tools.remove(call)
    return {"tools": tuple(tools)}


def _wait(payload: Mapping[str, Any], moment: Moment, *, drawn: bool = False) -> dict[str, Any]:
    wait_s = payload.get("retry_in_s")
    if wait_s is not None:
        return {"not_before": moment.now + wait_s}
    return {"not_before": None, "drawn_wait": drawn}


def _unowned(twin: Twin, *, suspended: bool) -> dict[str, Any]:
    return {"owner": None, "fence": twin.fence + 1, "tools": (), "model_attempt": 0, "suspended": suspended}


CHANGES: dict[str, Callable[[Twin, Mapping[str, Any], Moment], dict[str, Any]]] = {
    "claim": lambda twin, payload, moment: {
        "owner": payload.get("owner") or moment.worker,
        "attempt": twin.attempt + (not twin.suspended),
        "fence": twin.fence + 1,
        "tools": (),
        "suspended": False,
    },
    "release": lambda twin, *_: _unowned(twin, suspended=False),
    "suspend": lambda twin, *_: _unowned(twin, suspended=True),
    "wait": lambda _, payload, moment: _wait(payload, moment),
    "pause": lambda _, payload, moment: _wait(payload, moment, drawn=True),
    "retry_later": lambda _, payload, moment: _wait(payload, moment, drawn=True),
    "new_call": lambda *_: {"model_attempt": 0},
    "first_call": lambda *_: {"model_attempt": 1},
    "next_call": lambda twin, *_: {"model_attempt": twin.model_attempt + 1},
    "open_tool": lambda twin, payload, _: {
        "tools": (*twin.tools, (payload.get("name") or "", payload.get("call_id")))
    },
    "close_tool": lambda twin, payload, _: _close(twin, payload),
    "drop_tools": lambda *_: {"tools": ()},
    "ask": lambda _, payload, __: {"limit_s": payload.get("expires_s")},
}
"""What the names in a row's `assign` do to a record."""


class Oracle:
    """One machine, and what must come of every event in every situation."""

    def __init__(
        self, machine: Machine, payloads: Mapping[str, Mapping[str, Any]] | None = None, *, bare: bool = False
    ) -> None:
        """Read a declaration.

        Args:
            machine: The machine.
            payloads: What an event's payload holds beside the facts, where its model asks for more.
            bare: Whether the machine is run without a record: every fact is then answered by the test.

        Raises:
            ConfigurationError: A payload model has a required field that `payloads` does not give.
        """
        self.machine = machine
        self.bare = bare
        self.terminal = {one.name for one in machine.states if one.category == "terminal"}
        self._enabled: dict[object, tuple[tuple[Arrow, dict[str, Any]], ...]] = {}
        self._forbidden: dict[object, dict[str, tuple[tuple[str, dict[str, Any]], ...]]] = {}
        self._extra = {event: dict((payloads or {}).get(event, {})) for event in machine.events}
        self._models = {
            event: PAYLOADS.get(machine.payload_names.get(event, event), Payload) for event in machine.events
        }
        for event, model in self._models.items():
            needed = {name for name, field in model.model_fields.items() if field.is_required()}
            if missing := needed - self._extra[event].keys() - set(self.asked(event)):
                raise ConfigurationError(
                    f"the payload of {event!r} needs {', '.join(sorted(missing))}: say what the tests shall send, "
                    f"payloads={{{event!r}: {{...}}}}"
                )

    # --- one event --------------------------------------------------------------------------------------------

    def asked(self, event: str) -> tuple[str, ...]:
        """Return the facts of an event's guards that come with its payload."""
        arrows = [arrow for arrow in self.machine.arrows if arrow.event == event]
        facts = dict.fromkeys(fact for arrow in arrows for fact, _ in arrow.literals)
        return tuple(fact for fact in facts if not self._on_record(fact))

    def fields(self, event: str) -> frozenset[str]:
        """Return the names of the fields of an event's payload, the facts of its guards not counted."""
        return frozenset(self._models[event].model_fields)

    def least(self, event: str) -> dict[str, Any]:
        """Return the least payload that fits an event, wherever it is fired."""
        return self._extra[event] | {fact: False for fact in self.asked(event) if self._required(event, fact)}

    def _required(self, event: str, name: str) -> bool:
        field = self._models[event].model_fields.get(name)
        return field is not None and field.is_required()

    def _on_record(self, fact: str) -> bool:
        return not self.bare and fact in FACTS

    def holds(self, twin: Twin, event: str, payload: Mapping[str, Any], fact: str) -> bool:
        """Answer a fact for an event with a payload."""
        if self._on_record(fact):
            return FACTS[fact](twin, payload)
        field = self._models[event].model_fields.get(fact)
        answer = payload.get(fact, None if field is None else field.default)
        return self.machine.fact_defaults[fact] if answer is None else bool(answer)

    def resolve(self, twin: Twin, event: str, payload: Mapping[str, Any]) -> Arrow | None:
        """Return the row that an event takes, or ``None`` if it must be refused."""
        for arrow in self.machine.by_source[twin.state].get(event, ()):
            if all(self.holds(twin, event, payload, fact) == wanted for fact, wanted in arrow.literals):
                return arrow
        return None

    def payload_for(self, twin: Twin, event: str, arrow: Arrow | None) -> dict[str, Any] | None:
        """Return a payload with which an event takes a row.

        Args:
            twin: The record.
            event: The event.
            arrow: The row; ``None`` for a payload with which the event has rows, and none of their guards holds.

        Returns:
            The payload, or ``None`` if the record allows none.
        """
        arrows = self.machine.by_source[twin.state].get(event, ())
        for extra in self._extras(twin, event, arrows):
            known = {
                fact: FACTS[fact](twin, extra)
                for one in arrows
                for fact, _ in one.literals
                if self._on_record(fact)
            }
            earlier = arrows if arrow is None else arrows[: arrows.index(arrow)]
            answers = _merged(known, () if arrow is None else arrow.literals)
            solved = None if answers is None else _avoid(earlier, answers)
            if solved is not None and arrows:
                return extra | {fact: answer for fact, answer in solved.items() if fact not in known}
        return None

    def _extras(self, twin: Twin, event: str, arrows: Sequence[Arrow]) -> Iterator[dict[str, Any]]:
        """Yield the payloads, facts aside, that are worth trying: one may name a tool that is not open."""
        yield dict(self._extra[event])
        asks = any(fact == "tool_known" for arrow in arrows for fact, _ in arrow.literals)
        if asks and not self.bare and twin.tools and "call_id" in self.fields(event):
            yield self._extra[event] | {"call_id": NOBODY}

    def enabled(self, twin: Twin) -> tuple[tuple[Arrow, dict[str, Any]], ...]:
        """Return every row that can be taken now, each with a payload that takes it."""
        key = (_situation(twin), twin.tools if any(self._extra.values()) else ())
        if key not in self._enabled:
            found = [
                (arrow, self.payload_for(twin, arrow.event, arrow))
                for arrows in self.machine.by_source[twin.state].values()
                for arrow in arrows
            ]
            self._enabled[key] = tuple((arrow, payload) for arrow, payload in found if payload is not None)
        return self._enabled[key]

    def forbidden(self, twin: Twin) -> dict[str, tuple[tuple[str, dict[str, Any]], ...]]:
        """Return, by the reason of the refusal, the events that must be refused now, each with its payload."""
        key = (_situation(twin), twin.tools if any(self._extra.values()) else ())
        if key not in self._forbidden:
            events = self.machine.by_source[twin.state]
            unknown = next(name for name in ("no_such_event", "no_such_event_either") if name not in events)
            unmet = [(event, self.payload_for(twin, event, None)) for event in events]
            found = {
                "unknown_event": ((unknown, {}),),
                "terminal" if twin.state in self.terminal else "not_allowed": tuple(
                    (event, self.least(event)) for event in self.machine.events if event not in events
                ),
                "guard": tuple((event, payload) for event, payload in unmet if payload is not None),
            }
            self._forbidden[key] = {reason: choices for reason, choices in found.items() if choices}
        return self._forbidden[key]

    def allowed(self, twin: Twin, *without: str) -> tuple[str, ...]:
        """Return the events that must be listed as allowed: those that some payload makes possible.

        Args:
            twin: The record.
            *without: Rows that are by these are not the caller's.
        """
        return tuple(dict.fromkeys(arrow.event for arrow, _ in self.enabled(twin) if arrow.by not in without))

    def needs_fence(self, twin: Twin, arrow: Arrow) -> bool:
        """Return whether a row is taken with the current fence only."""
        return not self.bare and arrow.by == "owner" and twin.fence > 0

    def take(self, twin: Twin, arrow: Arrow, payload: Mapping[str, Any], moment: Moment) -> Twin:
        """Return what the record must be after a row was taken."""
        at = max(moment.wall, twin.updated_at)
        now = at if moment.steady is None else moment.steady
        after = twin._replace(
            state=arrow.target, version=twin.version + 1, updated_at=at, seen_at=now, drawn_wait=False
        )
        if not arrow.internal and self.machine.by_name[twin.state].deadline == "input":
            after = after._replace(paused_s=twin.paused_s + max(0.0, now - twin.since_at))
        if not arrow.internal:
            after = after._replace(entered_at=at, since_at=now, not_before=None, limit_s=None)
        if not self.bare:
            for name in arrow.assign:
                after = after._replace(**CHANGES[name](twin, payload, moment))
            if arrow.target in self.terminal:
                after = after._replace(tools=())
        return after

    # --- deadlines --------------------------------------------------------------------------------------------

    def limits(self, timeouts: Timeouts | None) -> Timeouts:
        """Return the limits of an execution: its own, and the machine's where it has none."""
        return self.machine.timeouts if timeouts is None else timeouts.over(self.machine.timeouts)

    def due(self, twin: Twin, limits: Timeouts) -> tuple[float, str] | None:
        """Return the nearest deadline and its kind; the state's own goes first, then total, then idle."""
        if twin.state in self.terminal:
            return None
        state = self.machine.by_name[twin.state]
        general = getattr(limits, f"{state.deadline}_s", None) if state.deadline is not None else None
        seconds = dict(limits.phases).get(state.name, general)
        kind = (state.deadline or "phase") if seconds is not None else "input"
        stay_s = seconds if twin.limit_s is None else twin.limit_s
        found: list[tuple[float, int, str]] = []
        if stay_s is not None:
            found.append((max(twin.since_at, twin.not_before or 0.0) + stay_s, 0, kind))
        if limits.total_s is not None and twin.total_given:
            found.append((twin.born_at + limits.total_s, 1, "total"))
        elif limits.total_s is not None and (state.deadline != "input" or not found):
            found.append((twin.born_at + twin.paused_s + limits.total_s, 1, "total"))
        if limits.idle_s is not None and state.category == "running":
            found.append((twin.seen_at + limits.idle_s, 2, "idle"))
        return (min(found)[0], min(found)[2]) if found else None

    def bounded(self) -> bool:
        """Return whether the machine declares a limit for every stay, so that no execution stays for ever."""
        open_states = [one.name for one in self.machine.states if one.name not in self.terminal]
        return all(self.due(Twin(name), self.machine.timeouts) is not None for name in open_states)

    # --- ways -------------------------------------------------------------------------------------------------

    def ways(self, twin: Twin) -> dict[Arrow, tuple[Arrow, ...]]:
        """Return a shortest way to every row that can be reached from a record; the row itself comes last."""
        todo: deque[tuple[Twin, tuple[Arrow, ...]]] = deque([(twin, ())])
        seen = {_situation(twin)}
        ways: dict[Arrow, tuple[Arrow, ...]] = {}
        while todo:
            here, way = todo.popleft()
            for arrow, payload in self.enabled(here):
                ways.setdefault(arrow, (*way, arrow))
                there = self.take(here, arrow, payload, Moment(0.0, worker="somebody"))
                if _situation(there) not in seen:
                    seen.add(_situation(there))
                    todo.append((there, (*way, arrow)))
        return ways


def _situation(twin: Twin) -> tuple[object, ...]:
    """What guards can tell two records apart by."""
    return (
        twin.state,
        twin.owner is None,
        max(0, twin.attempts_max - twin.attempt),
        max(0, twin.model_attempts_max - twin.model_attempt),
        bool(twin.tools),
        twin.suspended,
        twin.fence > 0,
    )


def _merged(known: Mapping[str, bool], literals: Sequence[tuple[str, bool]]) -> dict[str, bool] | None:
    """Return the answers with which a guard holds, or ``None`` if what is known contradicts it."""
    answers = dict(known)
    for fact, wanted in literals:
        if answers.setdefault(fact, wanted) != wanted:
            return None
    return answers


def _avoid(arrows: Sequence[Arrow], answers: dict[str, bool]) -> dict[str, bool] | None:
    """Return more answers, with which none of these guards holds, or ``None`` if there are none."""
    if not arrows:
        return answers
    for fact, wanted in arrows[0].literals:
        if answers.get(fact, not wanted) != wanted:
            found = _avoid(arrows[1:], answers | {fact: not wanted})
            if found is not None:
                return found
    return None
