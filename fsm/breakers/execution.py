"""A model call of an execution, behind a breaker: what the breaker says and what the execution's journal says.

Entering asks the breaker and fires ``call_model`` with its answer: with a permit the execution is calling_model,
without one it is circuit_open, shows the key, and knows when to try again (``not_before``). An error that leaves the
breaker open fires ``trip``. From circuit_open an execution goes on with ``call_model`` again, or with ``think`` as
its fallback; both are rows of the table.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from fsm.breakers.core import PASSING
from fsm.breakers.foreign import say, why_of
from fsm.breakers.permit import Permit, finish_async
from fsm.breakers.verdicts import CANCELLED
from fsm.errors import BreakerOpen, Refused

if TYPE_CHECKING:
    from fsm.breakers.breaker import Breaker
    from fsm.core.records import Receipt


class AsyncFires(Protocol):
    """What a model call needs of ``tracker.aio``."""

    async def fire(
        self, execution_id: str, event: str, /, *, fence: int | None = None, **payload: Any
    ) -> Receipt:
        """Hand an event to an execution; see `Tracker.fire`."""
        ...


class Fires(Protocol):
    """What a model call needs of a tracker."""

    def fire(self, execution_id: str, event: str, /, *, fence: int | None = None, **payload: Any) -> Receipt:
        """Hand an event to an execution; see `Tracker.fire`."""
        ...

    @property
    def aio(self) -> AsyncFires:
        """The same for asyncio."""
        ...


logger = logging.getLogger(__name__)


class ModelCall:
    """One try of one model call; use it with ``with`` or ``async with``. It yields the `Permit`.

    Attributes:
        tripped: Whether this try ended with the breaker open, so that the execution is circuit_open.
    """

    def __init__(
        self,
        breaker: Breaker,
        tracker: Fires,
        execution_id: str,
        *,
        name: str | None = None,
        fence: int | None = None,
    ) -> None:
        """Prepare; `Breakers.model_call` does.

        Args:
            breaker: Who is asked.
            tracker: Where the execution is found; it may be narrowed to a user.
            execution_id: Whose call it is.
            name: The model's name, for the journal.
            fence: The worker's fence.
        """
        self._tracker = tracker
        self._execution_id = execution_id
        self._key = breaker.key
        self._name = name or breaker.key
        self._fence = fence
        self._breaker = breaker
        self._permit = breaker.permit()
        self.tripped = False

    # --- with -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Permit:
        try:
            self._permit.__enter__()
        except BreakerOpen as refused:
            self._fire("call_model", **self._without(refused))
            raise
        try:
            self._fire("call_model", name=self._name, breaker=self._key)
        except BaseException:
            self._breaker.give_back(self._permit.call)
            raise
        return self._permit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._permit.__exit__(kind, error, trace)
        if error is not None and self._opened_by(error):
            try:
                self._fire("trip", **self._with(error))
            except Exception as refused:  # noqa: BLE001 - the call's own error goes first
                self._say(refused)
            else:
                self.tripped = True

    def _fire(self, event: str, **payload: Any) -> None:
        self._tracker.fire(self._execution_id, event, fence=self._fence, **payload)

    # --- async with -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Permit:
        try:
            await self._permit.__aenter__()
        except BreakerOpen as refused:
            await self._fire_async("call_model", **self._without(refused))
            raise
        try:
            await self._fire_async("call_model", name=self._name, breaker=self._key)
        except BaseException as error:
            closing = isinstance(error, GeneratorExit)
            await finish_async(self._breaker, self._permit.call, CANCELLED, None, closing=closing)
            raise
        return self._permit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._permit.__aexit__(kind, error, trace)
        if error is not None and self._opened_by(error):
            try:
                await self._fire_async("trip", **self._with(error))
            except Exception as refused:  # noqa: BLE001 - the call's own error goes first
                self._say(refused)
            else:
                self.tripped = True

    async def _fire_async(self, event: str, **payload: Any) -> None:
        await self._tracker.aio.fire(self._execution_id, event, fence=self._fence, **payload)

    # --- what both say ----------------------------------------------------------------------------------------

    def _without(self, refused: BreakerOpen) -> dict[str, Any]:
        return {
            "permit": False,
            "breaker": self._key,
            "name": self._name,
            "retry_in_s": refused.retry_after_s,
        }

    def _with(self, error: BaseException) -> dict[str, Any]:
        return {"breaker": self._key, "retry_in_s": self._breaker.retry_after_s(), "error": why_of(error)}

    def _opened_by(self, error: BaseException) -> bool:
        return self._breaker.row.state not in PASSING and self._breaker.verdict(error).retryable

    def _say(self, why_not: Exception) -> None:
        """Note that the execution is not circuit_open: it moved on, or the store did not answer."""
        level = logging.DEBUG if isinstance(why_not, Refused) else logging.WARNING
        say(logger, level, "%s: no trip: %s", self._execution_id, why_of(why_not))
