"""A model call of an execution, behind a breaker: what the breaker says, as events of the execution's journal.

Entering asks the breaker and fires ``call_model`` with its answer: with a permit the execution is calling_model,
without one it is circuit_open, shows the key, and knows when to try again (``not_before``). An error that leaves the
breaker open fires ``trip``. From circuit_open an execution goes on with ``call_model`` again, or with ``think`` as
its fallback; both are rows of the table.

    breakers = tracker.breakers
    answer = call_model(breakers, tracker, execution.id, "openai:gpt-5", ask, fence=fence)
    answer = await call_model_async(breakers, tracker, execution.id, "openai:gpt-5", ask, fence=fence, timeout_s=60.0)
    with model_call(breakers, tracker, execution.id, "openai:gpt-5", fence=fence):   # or: async with
        ...

The tracker may be one that is narrowed to a user. Both faces share one implementation; the function that fires is a
plain one in one and a coroutine function in the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fsm.breakers.faces import Steps, later, now
from fsm.breakers.foreign import say, why_of
from fsm.breakers.permit import ABreaker, Permit, finish
from fsm.breakers.retry import Backoff, Tries
from fsm.breakers.verdicts import CANCELLED
from fsm.errors import BreakerOpen, Refused
from fsm.lifecycles.breaker import PASSING

if TYPE_CHECKING:
    from fsm.breakers.registry import Breakers
    from fsm.tracker.tracker import Tracker, UserTracker

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Fire(Protocol):
    """Hands an event to the execution; returns its receipt, or an awaitable of it for ``async with``."""

    def __call__(self, event: str, /, **payload: Any) -> Any:
        """Hand an event over."""
        ...


class ModelCall:
    """One try of one model call; use it with ``with`` or ``async with``. It yields the `Permit`.

    Attributes:
        tripped: Whether this try ended with the breaker open, so that the execution is circuit_open.
    """

    def __init__(
        self, breaker: ABreaker, fire: Fire, fire_async: Fire | None = None, *, name: str | None = None
    ) -> None:
        """Prepare to ask; `name` is the model's name for the journal, the breaker's key if there is none.

        With `fire_async`, ``with`` uses the one and ``async with`` the other.
        """
        self._fire = fire
        self._fire_async = fire_async or fire
        self._name = name or breaker.key
        self._breaker = breaker
        self._permit = breaker.permit()
        self.tripped = False

    def __enter__(self) -> Permit:
        return now(self._enter(self._fire))

    async def __aenter__(self) -> Permit:
        return await later(self._enter(self._fire_async))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._permit.__exit__(kind, error, trace)
        now(self._trip(self._fire, error))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._permit.__aexit__(kind, error, trace)
        await later(self._trip(self._fire_async, error))

    def _enter(self, fire: Fire) -> Steps[Permit]:
        said = {"name": self._name, "breaker": self._breaker.key}
        try:
            yield from self._permit.enter()
        except BreakerOpen as refused:
            without = {"permit": False, "retry_in_s": refused.retry_after_s}
            yield partial(fire, "call_model", **said, **without)
            raise
        try:
            yield partial(fire, "call_model", **said)
        except BaseException as error:
            given_back = finish(self._breaker, self._permit.call, CANCELLED)
            if issubclass(type(error), GeneratorExit):
                now(given_back)  # steps that are being closed yield no more
            else:
                yield from given_back
            raise
        return self._permit

    def _trip(self, fire: Fire, error: BaseException | None) -> Steps[None]:
        breaker = self._breaker
        if error is None or breaker.row.state in PASSING or not breaker.verdict(error).retryable:
            return
        said = {"breaker": breaker.key, "retry_in_s": breaker.retry_after_s(), "error": why_of(error)}
        try:
            yield partial(fire, "trip", **said)
        except Exception as refused:  # noqa: BLE001 - the call's own error goes first
            _say(f"no trip of {breaker.key}", refused)
        else:
            self.tripped = True


class ModelTries:
    """One model call of an execution with all its tries: backing_off or circuit_open in between.

    How many tries there are is the smaller of the backoff's and what the execution was created with
    (``model_attempts_max``).
    """

    def __init__(
        self, breaker: ABreaker, fire: Fire, *, name: str | None = None, backoff: Backoff | None = None
    ) -> None:
        self._make = partial(ModelCall, breaker, fire, name=name)
        self._fire = fire
        self._tries = Tries(breaker, backoff, self._begin, self._back_off)
        self._last: ModelCall | None = None
        self.run = self._tries.run
        self.run_async = self._tries.run_async

    def _begin(self) -> ModelCall:
        self._last = self._make()
        return self._last

    def _back_off(self, error: BaseException, seconds: float) -> Steps[bool]:
        """Note the wait; one behind an open breaker is noted already. ``False`` if the execution does not back off."""
        if self._tries.refused(error) or (self._last is not None and self._last.tripped):
            return True
        try:
            yield partial(self._fire, "back_off", retry_in_s=seconds, error=why_of(error))
        except Exception as refused:  # noqa: BLE001 - the call's own error goes first
            _say("not tried again", refused)
            return False
        return True


def _say(what: str, why_not: Exception) -> None:
    """Log that an event was not taken: the execution moved on, no attempt is left, or the store did not answer."""
    level = logging.DEBUG if isinstance(why_not, Refused) else logging.WARNING
    say(logger, level, "%s: %s", what, why_of(why_not))


def model_call(
    breakers: Breakers,
    tracker: Tracker | UserTracker,
    execution_id: str,
    key: str,
    *,
    name: str | None = None,
    fence: int | None = None,
) -> ModelCall:
    """Return one try of an execution's model call, for ``with`` or ``async with``; it yields the permit.

    Entering takes a permit and fires ``call_model``; without a permit the execution is circuit_open afterwards and
    `BreakerOpen` is raised. An error that leaves the breaker open fires ``trip``.
    """
    breaker = breakers.get(key)
    fires = [partial(one.fire, execution_id, fence=fence) for one in (tracker, tracker.aio)]
    return ModelCall(breaker, *fires, name=name)


def call_model(
    breakers: Breakers,
    tracker: Tracker | UserTracker,
    execution_id: str,
    key: str,
    function: Callable[[], T],
    *,
    name: str | None = None,
    fence: int | None = None,
    backoff: Backoff | None = None,
) -> T:
    """Make a model call of an execution, with retries that its journal shows; see `ModelTries`.

    Between two tries the execution is backing_off, with the error and the time of the next try; behind an open
    breaker it is circuit_open, with the breaker's key and the time when it may be probed. A timeout of the call's
    own belongs inside the function. When it has returned, the execution is calling_model: say what follows.

    Raises:
        BreakerOpen: There is no permit, and `backoff.open_wait_s` does not reach as far: the execution is
            circuit_open; go on with ``call_model`` later, or with ``think`` now.
        Refused: The execution is where no model can be called.
    """
    fire = partial(tracker.fire, execution_id, fence=fence)
    tries = ModelTries(breakers.get(key), fire, name=name, backoff=backoff)
    return tries.run(function, breakers.clock.sleep)


async def call_model_async(  # noqa: PLR0913 - a model call, whole
    breakers: Breakers,
    tracker: Tracker | UserTracker,
    execution_id: str,
    key: str,
    function: Callable[[], Awaitable[T]],
    *,
    name: str | None = None,
    fence: int | None = None,
    backoff: Backoff | None = None,
    timeout_s: float | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Do the same as `call_model` for a coroutine function, with a limit of seconds for each try."""
    fire = partial(tracker.aio.fire, execution_id, fence=fence)
    tries = ModelTries(breakers.get(key), fire, name=name, backoff=backoff)
    return await tries.run_async(function, sleep, timeout_s)
