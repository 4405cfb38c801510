"""What a caller wants of the committer, and how it is told what became of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fsm.errors import Refusal
from fsm.records import Receipt, Step

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)


class Command:
    """One change that somebody wants, and what became of it. Exactly one of outcome and error is set at the end."""

    __slots__ = (
        "at", "born", "effects", "error", "event", "execution_id", "fence", "gate", "holder", "jitter", "key", "later",
        "now", "ordered", "outcome", "payload", "unheard", "user_id", "version", "worker",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913 - a caller's whole wish
        self,
        execution_id: str,
        event: str,
        *,
        at: float,
        now: float | None = None,
        payload: Mapping[str, Any] | None = None,
        fence: int | None = None,
        key: str | None = None,
        worker: str | None = None,
        user_id: str | None = None,
        version: int | None = None,
        holder: str | None = None,
        jitter: float = 0.0,
        ordered: bool = False,
        born: Step | None = None,
    ) -> None:
        """Note what is wanted.

        Args:
            execution_id: The execution.
            event: The event.
            at: The instant at which the caller asked, in seconds since the epoch.
            now: The same instant on the steady timeline.
            payload: What comes with the event, not checked yet.
            fence: The caller's fence, ``None`` for one who owns nothing.
            key: The idempotency key.
            worker: Who becomes the owner if the event claims the execution and its payload names nobody.
            user_id: Whoever asks; another user's execution is unknown to them. ``None`` for the platform itself.
            version: Refuse unless the execution is still at this version.
            holder: Refuse unless this worker still owns it.
            jitter: A number from 0 to 1 that shortens a backoff.
            ordered: Whether the library itself asks: the owner's rows need no fence.
            born: The step that creates the execution, in place of an event.
        """
        self.execution_id = execution_id
        self.event = event
        self.at = at
        self.now = now
        self.payload = payload or {}
        self.fence = fence
        self.key = key
        self.worker = worker
        self.user_id = user_id
        self.version = version
        self.holder = holder
        self.jitter = jitter
        self.ordered = ordered
        self.born = born
        self.outcome: Receipt | Refusal | None = None
        self.effects: tuple[str, ...] = ()
        self.error: BaseException | None = None
        self.gate: threading.Lock | None = None
        self.later: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
        self.unheard: Callable[[Command], None] | None = None


def tell(batch: Sequence[Command]) -> None:
    """Let the callers of a batch go on: one wake-up per thread, and one per event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[Command]] = {}
    for command in batch:
        if command.gate is not None:
            command.gate.release()
        elif command.later is not None:
            loops.setdefault(command.later[0], []).append(command)
    for loop, commands in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve, commands)
        except RuntimeError:
            logger.warning("an event loop was closed while %d commits were under way", len(commands))
            for command in commands:
                _unheard(command)


def _resolve(commands: Sequence[Command]) -> None:
    for command in commands:
        future = command.later[1] if command.later is not None else None
        if future is None or future.cancelled():
            _unheard(command)
        elif not future.done():
            future.set_result(None)


def _unheard(command: Command) -> None:
    """Do what the caller would have done, had it not been cancelled: its effects are due all the same."""
    if command.unheard is not None and isinstance(command.outcome, Receipt):
        command.unheard(command)
