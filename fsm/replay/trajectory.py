"""Recorded runs of agents, and the way from a recording to the execution machine's events. Pure, no I/O.

A trajectory is one JSON object a line: ``{"id", "source", "agent", "events": [{"kind", ...}]}``. It says what
happened (a model answered, a tool opened), not which transitions to take; which ones lead there is read off the
table, as the shortest way over implicit rows (`fsm.machine.paths`). So no rule about states stands here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fsm.errors import FsmError
from fsm.lifecycles.execution import EXECUTION
from fsm.machine.grammar import Category
from fsm.machine.paths import Ways

Outcome = Literal["completed", "failed", "limit", "cancelled", "handoff"]


class MalformedLine(FsmError):
    """A line that is no trajectory; the message says why, the caller knows file and line."""


class _Recorded(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Event(_Recorded):
    """One thing that happened.

    Attributes:
        kind: What it was.
        name: The model, tool or child agent.
        ok: Whether it went well.
        outcome: How the run ended; only for ``end``.
        t: Seconds since the start.
        message: What an error said, where the recording kept it.
    """

    kind: Literal["start", "user", "model", "tool_start", "tool_end", "subagent", "error", "cancel", "end"]
    name: Annotated[str, Field(max_length=500)] | None = None
    ok: bool | None = None
    outcome: Outcome | None = None
    t: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    message: str | None = None


class Trajectory(_Recorded):
    """One recorded run.

    Attributes:
        id: Its name where it was recorded.
        source: Where that was.
        agent: The agent's name.
        events: What happened, in order.
    """

    id: Annotated[str, Field(min_length=1, max_length=500)]
    source: str | None = None
    agent: Annotated[str, Field(min_length=1, max_length=500)] = "agent"
    events: tuple[Event, ...]

    @property
    def length_s(self) -> float | None:
        """How long the run took, in seconds; ``None`` if the recording has no times."""
        times = [event.t for event in self.events if event.t is not None]
        return max(times) if times else None


def read_line(line: str | bytes) -> Trajectory | None:
    """Read one line of a recording.

    Args:
        line: The line; an empty one is none.

    Returns:
        The trajectory, or ``None`` for an empty line.

    Raises:
        MalformedLine: It is no trajectory.
    """
    if isinstance(line, bytes):
        try:
            line = line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise MalformedLine(f"not UTF-8: {error.reason} at byte {error.start}") from None
    if not line.strip():
        return None
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedLine(f"not JSON: {error}") from None
    try:
        return Trajectory.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the line"
        raise MalformedLine(f"no trajectory: {where}: {first['msg']}") from None


class Order(NamedTuple):
    """One event to fire.

    Attributes:
        event: The event of the execution machine.
        payload: What comes with it.
        t: When, in seconds since the start; ``None`` for now.
    """

    event: str
    payload: dict[str, Any]
    t: float | None


_WAYS = Ways(EXECUTION)


def route(source: str, goal: str) -> tuple[str, ...] | None:
    """Return the events that lead from one state to another: implicit ones, and the one that the goal means.

    Returns:
        The events to fire, none if it is there already; ``None`` if no way leads there.
    """
    return _WAYS.onto(source, goal)


class Driver:
    """Turns one trajectory into orders, following the state that each order led to.

    Iterate over `steps()`: it yields the orders of one recorded event after another. After each order that was
    carried out call `went` with the state; after a refused one leave the rest of that step out.
    """

    def __init__(self, trajectory: Trajectory) -> None:
        """Begin at the trajectory's first event."""
        self._events = trajectory.events
        self._state = EXECUTION.initial
        self._tools: list[str] = []
        self._failure = ""
        self._asked = False  # whether a model was called yet: a user's message before that is the prompt
        self._before: float | None = None
        self._following = ""

    def steps(self) -> Iterator[Iterator[Order]]:
        """Yield the orders of each recorded event."""
        for index, event in enumerate(self._events):
            self._following = self._events[index + 1].kind if index + 1 < len(self._events) else ""
            yield getattr(self, f"_on_{event.kind}")(event)
            if event.t is not None:
                self._before = event.t

    def went(self, state: str) -> None:
        """Note the state that the last order led to."""
        self._state = state

    def _to(self, goal: str, t: float | None, **payload: Any) -> Iterator[Order]:
        """Go to a phase; the payload comes with the last event of the way."""
        if self._state != goal and EXECUTION.by_name[self._state].deadline == "input":
            yield Order("receive_input", {}, t)  # the recording goes on: a person has answered
        events = route(self._state, goal)
        if events is None:
            events = ("think",)  # no way leads there, from an end for instance: let the table say why
        for index, event in enumerate(events):
            yield Order(event, payload if index == len(events) - 1 else {}, t)

    def _begin(self, t: float | None) -> Iterator[Order]:
        if self._state == EXECUTION.initial:
            yield from self._to("starting", t)

    def _close_all(self, t: float | None, note: str) -> Iterator[Order]:
        while self._tools:
            self._tools.pop(0)
            yield Order("close_tool", {"ok": False, "note": note}, t)

    # --- one method per kind of event -------------------------------------------------------------------------

    def _on_start(self, event: Event) -> Iterator[Order]:
        yield from self._begin(event.t)

    def _on_user(self, event: Event) -> Iterator[Order]:
        if not self._asked and self._state != "awaiting_input":
            yield from self._begin(event.t)
            yield Order("progress", {"note": "the user's prompt"}, event.t)
            return
        yield from self._to("awaiting_input", event.t)
        yield Order("receive_input", {"verdict": "text", "by": "user"}, event.t)

    def _on_model(self, event: Event) -> Iterator[Order]:
        self._asked = True
        # The call began when the event before was over; the recording only knows its end.
        began = event.t if self._before is None else self._before
        payload = {} if event.name is None else {"name": event.name}
        if self._state == "calling_model":
            yield Order("think", {}, began)
        yield from self._to("calling_model", began, **payload)
        if event.ok is False:
            self._failure = event.message or "the model call failed"
            yield Order("back_off", {"error": self._failure}, event.t)
            return
        onward = {"tool_start": "run_tools", "user": "await_input", "end": "process_results"}
        yield Order(onward.get(self._following, "think"), {}, event.t)

    def _on_tool_start(self, event: Event) -> Iterator[Order]:
        if EXECUTION.by_name[self._state].category is not Category.WAITING:
            yield from self._to("running_tools", event.t)
        yield Order("open_tool", {"name": event.name or ""}, event.t)
        self._tools.append(event.name or "")

    def _on_tool_end(self, event: Event) -> Iterator[Order]:
        name = event.name
        if name is not None and name not in self._tools and "" in self._tools:
            name = ""  # it was opened without a name
        payload: dict[str, Any] = {"ok": event.ok is not False}
        if name is not None:
            payload["name"] = name
        if event.message is not None:
            payload["error"] = event.message
        yield Order("close_tool", payload, event.t)
        if self._tools:
            self._tools.remove(self._tools[0] if name is None else name)

    def _on_subagent(self, event: Event) -> Iterator[Order]:
        yield from self._begin(event.t)
        yield Order("progress", {"data": {"subagent": event.name}, "ok": event.ok is not False}, event.t)

    def _on_error(self, event: Event) -> Iterator[Order]:
        self._failure = event.message or event.name or "the provider or the harness failed"
        if (
            self._state != EXECUTION.initial
        ):  # before the first step there is nothing to go on; the end will tell
            yield Order("progress", {"ok": False, "note": self._failure}, event.t)

    def _on_cancel(self, event: Event) -> Iterator[Order]:
        yield from self._begin(event.t)
        yield from self._close_all(event.t, "interrupted by the user")
        yield from self._to("awaiting_input", event.t)

    def _on_end(self, event: Event) -> Iterator[Order]:
        outcome = event.outcome or ("failed" if self._failure else "completed")
        if outcome == "failed":
            yield Order("fail", {"error": self._failure or "the recording gives no reason"}, event.t)
        elif outcome == "limit":
            yield Order("time_out", {"kind": "limit", "outcome": outcome}, event.t)
        elif outcome == "cancelled":
            yield Order("cancel", {"by": "user"}, event.t)
            if self._state not in EXECUTION.terminal:
                yield Order("stopped", {"outcome": outcome}, event.t)
        else:
            yield from self._close_all(event.t, "still open when the run ended")
            yield from self._to("completing", event.t)
            yield Order("complete", {"outcome": outcome}, event.t)
