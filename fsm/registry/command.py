"""What a caller asks of the committer, and how it is told what became of it."""

from __future__ import annotations

import copy
import logging
import marshal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fsm.core.records import Receipt, Step
from fsm.core.request import Request
from fsm.errors import BadPayload, Refusal

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Command:
    """A request under way, and what became of it. Exactly one of outcome and error is set at the end.

    Attributes:
        request: What is asked.
        born: The step that creates the execution, in place of an event.
        outcome: The receipt or the refusal.
        effects: What the committed step orders.
        error: Why there is no outcome.
        gate: What the calling thread waits for, while it waits.
        later: What the calling coroutine waits for, while it waits.
        unheard: Told of the command if its caller was cancelled while it was committed.
    """

    __slots__ = ("born", "effects", "error", "gate", "later", "outcome", "request", "unheard")

    def __init__(
        self, request: Request, born: Step | None = None, unheard: Callable[[Command], None] | None = None
    ) -> None:
        self.request = request
        self.born = born
        self.unheard = unheard
        self.outcome: Receipt | Refusal | None = None
        self.effects: tuple[str, ...] = ()
        self.error: BaseException | None = None
        self.gate: threading.Lock | None = None
        self.later: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def freeze(self) -> None:
        """Take a copy of the payload, before the command is queued: what the caller changes later changes nothing."""
        if not self.request.checked:
            self.request.payload = frozen(self.request.payload)


_CHANGED = "a payload was changed by another thread while it was read ({}): hand in a copy"
_SCALARS = frozenset({str, int, float, bool, type(None)})


def frozen(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a payload that its caller cannot change any more.

    What JSON cannot say is kept as it is: the codec refuses it, with the same words as if it had come directly.

    Raises:
        BadPayload: Another thread changes it at this moment.
    """
    try:
        fields = dict(payload)
    except RuntimeError as error:
        raise BadPayload(_CHANGED.format(error)) from None
    if all(type(value) in _SCALARS for value in fields.values()):
        return fields
    try:
        # A copy of JSON values in one call of the interpreter's: no other thread runs in between.
        copied: dict[str, Any] = marshal.loads(marshal.dumps(fields))  # noqa: S302 - nothing comes from outside
    except ValueError:
        return {name: _copied(value) for name, value in fields.items()}
    return copied


def own(option: T) -> T:
    """Return an option that its caller cannot change any more; it may be read on another thread.

    Raises:
        BadPayload: Another thread changes it at this moment.
    """
    return cast("T", frozen(option)) if isinstance(option, dict) else option


def _copied(value: Any) -> Any:
    """Return a copy of what is not plain JSON: a model, a dict of a class of its own."""
    try:
        return copy.deepcopy(value)
    except RecursionError:
        return value
    except RuntimeError as error:
        raise BadPayload(_CHANGED.format(error)) from None
    except Exception:  # noqa: BLE001 - any object may stand here; the codec says what is wrong with it
        return value


def tell(batch: Sequence[Command]) -> None:
    """Let the callers of a batch go on, again if need be: one wake-up per thread, and one per event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[Command]] = {}
    for command in batch:
        if command.gate is not None:
            with suppress(RuntimeError):  # it is open: an interrupt ended the first call of this function
                command.gate.release()
        elif command.later is not None:
            loops.setdefault(command.later[0], []).append(command)
    for loop, commands in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve, commands)
        except RuntimeError:  # the loop was closed while the commit was under way
            make_up(commands)


def _resolve(commands: Sequence[Command]) -> None:
    left: list[Command] = []
    for command in commands:
        future = command.later[1] if command.later is not None else None
        if future is None or future.cancelled():
            left.append(command)
        elif not future.done():
            future.set_result(None)
    make_up(left)


def make_up(commands: Sequence[Command], _done: object = None) -> None:
    """Do what the callers would have done, had they not been cancelled: the effects are due all the same.

    What another thread has begun to do may be done twice, which changes nothing. A future may call it when it is done.
    """
    for command in commands:
        if command.unheard is None or not isinstance(command.outcome, Receipt):
            continue
        try:
            command.unheard(command)
        except Exception:  # the next one is another caller's
            logger.exception(
                "%s: the effects of %r are left undone", command.request.execution_id, command.outcome.event
            )
