"""What a caller asks of an execution: one record, from the call to the decision."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, Self


class Request:
    """One event for one execution, and what the caller says with it.

    Attributes:
        event: The event.
        at: The instant of the call, in seconds since the epoch.
        payload: What comes with the event; with its defaults once it is checked.
        payload_json: The given part of it as text, once it is checked.
        checked: Whether the payload was checked.
        execution_id: The execution.
        fence: The caller's fence; ``None`` for a caller that owns nothing.
        key: The idempotency key, which goes into the journal.
        worker: Who becomes the owner if the event claims the execution and the payload names no owner.
        now: The instant of the call on the steady timeline, where deadlines lie; `at` stands for ``None``.
        version: Refuse as stale unless this is still the record's version; ``None`` for any.
        holder: Refuse as stale unless this worker still owns it; ``None`` for any.
        jitter: A number from 0 to 1, drawn at random by the caller; it shortens a backoff.
        user_id: The user who asks: another user's execution is unknown to them, and the system's rows are not theirs.
            ``None`` for the platform itself.
        ordered: Whether the library itself asks (a sweeper, a parent's end): the owner's rows need no fence.
    """

    __slots__ = (
        "at", "checked", "event", "execution_id", "fence", "holder", "jitter", "key", "now", "ordered", "payload",
        "payload_json", "user_id", "version", "worker",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913 - a caller's whole wish
        self,
        event: str,
        at: float,
        payload: Mapping[str, Any] | None = None,
        payload_json: str | None = None,
        *,
        execution_id: str = "",
        fence: int | None = None,
        key: str | None = None,
        worker: str | None = None,
        now: float | None = None,
        version: int | None = None,
        holder: str | None = None,
        jitter: float = 0.0,
        user_id: str | None = None,
        ordered: bool = False,
    ) -> None:
        self.event = event
        self.at = at
        self.payload = {} if payload is None else payload
        self.payload_json = payload_json
        self.checked = False
        self.execution_id = execution_id
        self.fence = fence
        self.key = key
        self.worker = worker
        self.now = now
        self.version = version
        self.holder = holder
        self.jitter = jitter
        self.user_id = user_id
        self.ordered = ordered

    def but(self, **changes: Any) -> Self:
        """Return a copy with some attributes changed."""
        other = copy(self)
        for name, value in changes.items():
            setattr(other, name, value)
        return other
