"""All breakers of a registry; get them from ``tracker.breakers``."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple, TypeVar

from fsm.breakers.breaker import Breaker, Call
from fsm.breakers.faces import Steps, later, now
from fsm.breakers.foreign import say, storable
from fsm.breakers.guard import Guard, stream_async, stream_sync
from fsm.breakers.keys import key_of
from fsm.breakers.permit import ABreaker, Permit, finish, take
from fsm.breakers.policy import Policy
from fsm.breakers.retry import Backoff, Tries
from fsm.breakers.shared import Shared
from fsm.breakers.status import BreakersStatus, BreakerStatus, status_of
from fsm.breakers.verdicts import FAILURE, Classifier, Verdict, has_content, sound
from fsm.clock import Clock, SystemClock
from fsm.concurrency.forks import anew_after_fork
from fsm.concurrency.locks import Lock
from fsm.concurrency.supervised import Health, Loop, keep_going
from fsm.core.arguments import MAX_NUMBER, MAX_TEXT, model, seconds, whole
from fsm.errors import BadPayload, ConfigurationError
from fsm.stores.base import Store
from fsm.stores.breakers import BreakerEntry

POLL_S = 0.5
"""The interval, in seconds, at which changes of other processes are polled: an opened breaker is known everywhere
within a second."""
LOOP = "breakers"
"""The name of the loop that polls, in `Health`."""
MAX_BREAKERS = 4_096
"""Maximum number of breakers that a process keeps: those that have not been used lately go first."""
MAX_DECLARED = 10_000
"""Maximum number of declarations; a later one that says all that an earlier one of its pattern said replaces it."""
MAX_LINES = 1_000_000
"""Maximum number of lines that can be asked of a breaker's journal at once."""
CLOSE_S = 5.0
"""How long `Breakers.close` waits for the thread that polls, in seconds."""

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Permits(dict[str, Callable[[], Permit]]):
    """What makes the permits of each key: a look-up without a frame of its own, since every call takes this way."""

    def __init__(self, get: Callable[[str], ABreaker]) -> None:
        super().__init__()
        self._get = get

    def __missing__(self, key: str) -> Callable[[], Permit]:
        return self._get(key).permit


class _Declared(NamedTuple):
    """What was said of the keys that fit a pattern."""

    pattern: str
    policy: Policy | None
    classifier: Classifier | None

    def replaces(self, earlier: _Declared) -> bool:
        """Whether nothing is left of an earlier one."""
        return (
            self.pattern == earlier.pattern
            and (self.policy is not None or earlier.policy is None)
            and (self.classifier is not None or earlier.classifier is None)
        )


class Breakers:
    """The breakers of one registry, one per key.

    A process keeps `MAX_BREAKERS` of them. One that is dropped begins again at its next use, with the store's row and
    nothing counted; a reference to it (a permit, a decorator, a variable) keeps it, so no key ever has two.

    Args:
        store: Where changes are shared.
        clock: Where time comes from.
        policy: How a breaker behaves for which nothing was declared.
        classifier: Gives the verdicts for it.
        poll_s: The interval, in seconds, at which changes of other processes are polled, in a thread of its own that
            starts with the first key; ``None`` for never: call `poll` yourself.
        draw: Returns the random numbers of the jitter, from 0 to 1.
        worker: Returns this process's id, for the journal.
        health: Where the thread is reported.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock | None = None,
        *,
        policy: Policy | None = None,
        classifier: Classifier | None = None,
        poll_s: float | None = POLL_S,
        draw: Callable[[], float] = random.random,
        worker: Callable[[], str] = lambda: "",
        health: Health | None = None,
    ) -> None:
        self.clock = clock or SystemClock()
        self._poll_s = _interval(poll_s)
        self._default = (_policy(policy) or Policy(), _classifier(classifier) or Classifier())
        self._shared = Shared(store, self.clock, draw, worker)
        self._health = health or Health(self.clock.wall)
        self._declared: list[_Declared] = []
        self._kept: dict[str, ABreaker] = {}
        self._alive: weakref.WeakValueDictionary[str, ABreaker] = weakref.WeakValueDictionary()
        self._permits = _Permits(self.get)
        self.instant = self._shared.instant
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._creating = Lock("a breaker that is made")
        anew_after_fork(self)

    def declare(
        self, pattern: str, policy: Policy | None = None, *, classifier: Classifier | None = None
    ) -> None:
        """Say how the breakers of some keys behave; those that are in use behave so from their next call on.

        One that changes its policy forgets what it counted and keeps its state: an open breaker stays open until its
        cooldown ends, and what is decided after that goes by the new policy. A declaration holds in this process.

        The pattern is a key, or holds ``*``, as ``"openai:*"``; of several that fit, the last one counts.
        """
        said = _Declared(key_of(pattern, "pattern"), _policy(policy), _classifier(classifier))
        self._creating.run_nested(self._declare, said)

    def _declare(self, said: _Declared) -> None:
        declared = [one for one in self._declared if not said.replaces(one)]
        if len(declared) >= MAX_DECLARED:
            raise ConfigurationError(
                f"{MAX_DECLARED} declarations of breakers are enough: declare patterns, as 'openai:*', not every key"
            )
        self._declared = [*declared, said]
        for breaker in self._every():
            if fnmatchcase(breaker.key, said.pattern):
                policy, classifier = self._behaviour(breaker.key)
                if policy != breaker.policy or classifier is not breaker.classifier:
                    breaker.govern(policy, classifier)

    def _behaviour(self, key: str) -> tuple[Policy, Classifier]:
        policy, classifier = self._default
        for one in self._declared:
            if fnmatchcase(key, one.pattern):
                policy, classifier = one.policy or policy, one.classifier or classifier
        return policy, classifier

    def _every(self) -> list[ABreaker]:
        """Every breaker of this process, the dropped ones that are still referred to included."""
        return [breaker for one in self._alive.valuerefs() if (breaker := one()) is not None]

    def poll_every(self, poll_s: float | None) -> None:
        """Change the interval of the polls, in seconds; ``None`` for never: call `poll` yourself."""
        self._creating.run_nested(self._poll_every, _interval(poll_s))

    def _poll_every(self, poll_s: float | None) -> None:
        self._stop.set()
        self._thread = None
        self._poll_s = poll_s
        if self._kept:
            self._start_polling()

    def get(self, key: str) -> ABreaker:
        """Return the breaker of a key (provider, model, credential, tenant, in your own words).

        It is made at its first use, which costs no store access. A key that is no usable name is a `BadPayload`.
        """
        breaker = self._kept.get(key) if type(key) is str else None
        return breaker or self._creating.run_nested(self._make, key_of(key))

    def _make(self, key: str) -> ABreaker:
        if key not in self._kept and len(self._kept) >= MAX_BREAKERS:
            self._make_room()
        breaker = self._kept.setdefault(key, self._alive.get(key) or self._new(key))
        self._alive[key] = breaker
        self._permits[key] = breaker.permit
        self._start_polling()
        return breaker

    def _new(self, key: str) -> ABreaker:
        return Breaker(key, *self._behaviour(key), self._shared, Permit)

    def _make_room(self) -> None:
        """Drop a quarter of the breakers: first those that are idle and were not used since the last time.

        If that is not enough, idle ones that were, then those of which a row or counted failures are all there is to
        know (the row is remembered, the count is not), the oldest first.
        """
        kept = list(self._kept.values())
        left = len(kept) - MAX_BREAKERS * 3 // 4
        idle = [breaker for breaker in kept if breaker.idle]
        unused = [breaker for breaker in idle if breaker.calls == breaker.seen]
        for breaker in dict.fromkeys((*unused, *idle, *(one for one in kept if not one.pending), *kept)):
            if left <= 0:
                break
            self._shared.remember(breaker.row)
            self._permits.pop(breaker.key, None)
            self._kept.pop(breaker.key, None)
            left -= 1
        for breaker in self._kept.values():
            breaker.seen = breaker.calls

    # --- calls ------------------------------------------------------------------------------------------------

    def permit(self, key: str) -> Permit:
        """Return what a call runs inside: ``with breakers.permit(key):`` or ``async with …``.

        Entering it raises `BreakerOpen` if the call must not be made.
        """
        try:
            make = self._permits[key]
        except Exception:  # noqa: BLE001 - a key whose hash raises anything: asked for properly, it says why
            make = None
        return (make or self.get(key).permit)()

    def acquire(self, key: str) -> Call:
        """Take a permit by hand, or raise `BreakerOpen`; give it to `release` in a ``finally``."""
        return now(take(self.get(key)))

    async def acquire_async(self, key: str) -> Call:
        """Do the same as `acquire` without blocking the event loop."""
        return await later(take(self.get(key)))

    def release(self, key: str, call: Call, verdict: Verdict, *, why: str | None = None) -> None:
        """Give back what `acquire` returned, with the call's verdict, and for the journal why.

        Raises:
            BadPayload: The verdict is none, and was noted as a FAILURE; or the call is none.
        """
        now(self._release(key, call, verdict, why))

    async def release_async(self, key: str, call: Call, verdict: Verdict, *, why: str | None = None) -> None:
        """Do the same as `release` without blocking the event loop."""
        await later(self._release(key, call, verdict, why))

    def _release(self, key: str, call: Call, verdict: Verdict, why: str | None) -> Steps[None]:
        breaker = self.get(key)
        refused = _unsound(call, verdict)
        yield from finish(breaker, call, FAILURE if refused else verdict, _text(why))
        if refused is not None:
            raise refused

    def call(self, key: str, function: Callable[[], T], *, backoff: Backoff | None = None) -> T:
        """Call a function behind a breaker, and again if it may help; its own timeout belongs inside it.

        Raises:
            BreakerOpen: There is no permit.
        """
        breaker = self.get(key)
        return Tries(breaker, backoff, breaker.permit).run(function, self.clock.sleep)

    async def call_async(
        self,
        key: str,
        function: Callable[[], Awaitable[T]],
        *,
        backoff: Backoff | None = None,
        timeout_s: float | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> T:
        """Do the same as `call` for a coroutine function.

        Each try has a limit of `timeout_s` seconds; running out of it is a FAILURE.
        """
        breaker = self.get(key)
        return await Tries(breaker, backoff, breaker.permit).run_async(function, sleep, timeout_s)

    def guard(self, key: str | Callable[..., str], *, stall_s: float | None = None) -> Guard:
        """Return a decorator for functions, coroutine functions, generators and async generators; see `Guard`."""
        return Guard(self.get, key, stall_s)

    __call__ = guard

    def stream(
        self,
        key: str,
        items: Iterable[T] | Callable[[], Iterable[T]],
        *,
        content: Callable[[Any], bool] = has_content,
        stall_s: float | None = None,
    ) -> Iterator[T]:
        """Pass a stream on; its verdict falls at the first content item.

        Args:
            key: The breaker; it is asked when the first item is.
            items: The stream, or a function that opens it once the permit is given.
            content: Tells whether an item is content.
            stall_s: This many seconds between two items are a failure.

        Raises:
            BreakerOpen: At the first item: there is no permit.
        """
        return stream_sync(self.permit(key), items, content, stall_s, self.clock)

    def stream_async(
        self,
        key: str,
        items: AsyncIterable[T] | Callable[[], Any],
        *,
        content: Callable[[Any], bool] = has_content,
        first_s: float | None = None,
        stall_s: float | None = None,
    ) -> AsyncIterator[T]:
        """Pass an asynchronous stream on; see `stream`.

        Args:
            key: The breaker.
            items: The stream, or a function (it may be a coroutine function) that opens it.
            content: Tells whether an item is content.
            first_s: This many seconds until the first content are a failure: the stream ends with TimeoutError.
            stall_s: This many seconds between two items after it are a failure: likewise.
        """
        return stream_async(self.permit(key), items, content, first_s, stall_s)

    # --- by hand ----------------------------------------------------------------------------------------------

    def force_open(self, key: str, *, by: str | None = None, why: str | None = None) -> BreakerStatus:
        """Hold a breaker open until `reset`; in the journal with who and why."""
        return self._order(key, "force_open", by, why)

    def disable(self, key: str, *, by: str | None = None, why: str | None = None) -> BreakerStatus:
        """Let every call through and judge none until `reset`; in the journal with who and why."""
        return self._order(key, "disable", by, why)

    def reset(self, key: str, *, by: str | None = None, why: str | None = None) -> BreakerStatus:
        """Close a breaker and forget what it saw; in the journal with who and why."""
        return self._order(key, "reset", by, why)

    def _order(self, key: str, event: str, by: str | None, why: str | None) -> BreakerStatus:
        breaker = self.get(key)
        breaker.order(event, _text(by), _text(why))
        return self._status(breaker)

    # --- looking ----------------------------------------------------------------------------------------------

    def status(self) -> BreakersStatus:
        """Return how all breakers are: those of this process and those that only others have used.

        Of those that this process has dropped, all that changed their state at some time are among them.
        """
        found = {breaker.key: breaker for breaker in self._every()}
        for key in tuple(self._shared.rows):
            if key not in found:
                found[key] = self._new(key)
        error = self._shared.error
        every = tuple(self._status(found[key]) for key in sorted(found))
        return BreakersStatus(not self.instant and error is None, error, every)

    def status_of(self, key: str) -> BreakerStatus:
        """Return how one breaker is; `BreakerStatus.known` tells one that is closed from one that never was."""
        key = key_of(key)
        return self._status(self._alive.get(key) or self._new(key))  # looking keeps no breaker

    def _status(self, breaker: ABreaker) -> BreakerStatus:
        declared = any(fnmatchcase(breaker.key, one.pattern) for one in self._declared)
        return status_of(breaker, declared=declared)

    def history(self, key: str, limit: int = 1000, *, before: int | None = None) -> list[BreakerEntry]:
        """Return the newest lines of the journal of a breaker's changes, oldest first.

        The store keeps the newest `fsm.stores.breakers.BREAKER_LINES` of each key. `before` is a position: that of
        the first line of the page that is known already.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        whole("limit", limit, 1, MAX_LINES)
        if before is not None:
            whole("before", before, 0, MAX_NUMBER)
        return self._shared.history(key_of(key), limit, before)

    # --- other processes --------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Learn what other processes changed, bring a store up to date that was down, give back forgotten probes.

        An error with one breaker (a row that its machine does not know, say) is logged and stops none of the others.
        """
        for row in self._shared.poll():
            known = self._alive.get(row.key)
            if known is not None:
                self._try(row.key, partial(known.learn, row))
        for breaker in self._every():
            self._try(breaker.key, breaker.catch_up)

    def _try(self, key: str, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - the others are to be looked at as well
            self._shared.complain(key, "catching up with the store", error)

    def _start_polling(self) -> None:
        """Start the one thread that polls; a store of this process alone needs none.

        Where no thread can be started, the next key tries again.
        """
        if self.instant or self._poll_s is None or (self._thread is not None and self._thread.is_alive()):
            return
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_keep_polling,
            args=(weakref.ref(self), self._stop, self._poll_s, self._health.loop(LOOP)),
            name="fsm-breakers",
            daemon=True,
        )
        try:
            self._thread.start()
        except RuntimeError as error:
            self._thread = None
            say(logger, logging.WARNING, "breakers: no thread can be started to poll for changes: %s", error)

    def close(self) -> None:
        """Stop the thread, and wait for it for `CLOSE_S` at the most."""
        thread = self._creating.run_nested(self._close)
        if thread is not None and thread is not threading.current_thread() and thread.ident is not None:
            thread.join(CLOSE_S)

    def _close(self) -> threading.Thread | None:
        self._poll_s = None
        self._stop.set()
        thread, self._thread = self._thread, None
        return thread

    def after_fork(self) -> None:
        """Start over in a forked child: the parent's threads and probes are not here."""
        for breaker in self._every():
            breaker.after_fork()
        self._thread = None
        if self._kept:
            self._start_polling()


def _keep_polling(owner: weakref.ref[Breakers], stop: threading.Event, poll_s: float, loop: Loop) -> None:
    def turn() -> float:
        breakers = owner()
        if breakers is not None:
            breakers.poll()
        return poll_s

    keep_going(loop, turn, lambda wait_s: stop.wait(wait_s) or owner() is None)


# --- what callers may pass -------------------------------------------------------------------------------------


def _policy(value: Policy | Mapping[str, Any] | None) -> Policy | None:
    return model(Policy, value, "policy")


def _classifier(value: Classifier | None) -> Classifier | None:
    if value is not None and not issubclass(type(value), Classifier):
        raise BadPayload(
            f"classifier is a fsm.breakers.Classifier, or derived from it, not a {type(value).__name__}"
        )
    return value


def _interval(poll_s: float | None) -> float | None:
    return None if poll_s is None else seconds("poll_s", poll_s)


def _text(value: str | None) -> str | None:
    """Return a text for the journal; anything else is written down as it prints."""
    return None if value is None else storable(value)[:MAX_TEXT]


def _unsound(call: object, verdict: object) -> BadPayload | None:
    """Return why a call cannot be released with a verdict."""
    if type(call) is not Call:
        raise BadPayload(f"release takes what acquire returned, not a {type(call).__name__}")
    try:
        sound(verdict)
    except BadPayload as error:
        return error
    return None
