"""All breakers of a registry; get them from ``tracker.breakers``."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

from fsm.breakers.breaker import Breaker, Call
from fsm.breakers.guard import Guard, stream_async, stream_sync
from fsm.breakers.permit import Permit, finish_async, take_async
from fsm.breakers.policy import Policy
from fsm.breakers.retry import Calling
from fsm.breakers.shared import Shared
from fsm.breakers.status import BreakersStatus, BreakerStatus, status_of
from fsm.breakers.verdicts import Classifier, Verdict, has_content
from fsm.checks import text
from fsm.clock import Clock, SystemClock
from fsm.forks import anew_after_fork, at_fork
from fsm.locks import Lock
from fsm.registry import Registry
from fsm.stores.base import BreakerEntry, Store

POLL_S = 0.5
"""So often, in seconds, other processes' changes are looked for: an opened breaker is known everywhere well within
a second."""

T = TypeVar("T")


class _Permits(dict[str, Callable[[], Permit]]):
    """What makes the permits of each key: a look-up without a frame of its own, since every call takes this way."""

    def __init__(self, get: Callable[[str], Breaker]) -> None:
        super().__init__()
        self._get = get

    def __missing__(self, key: str) -> Callable[[], Permit]:
        return self._get(key).permit


class Breakers(Calling):
    """The breakers of one registry, one per key."""

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
    ) -> None:
        """Set up; `Tracker.breakers` does.

        Args:
            store: Where changes are shared.
            clock: Where time comes from.
            policy: How a breaker behaves for which nothing was declared.
            classifier: Who pronounces the verdicts for it.
            poll_s: How often, in seconds, other processes' changes are looked for, in a thread of its own that
                starts with the first key; ``None`` for never: call `poll` yourself.
            draw: The dice of the jitter, from 0 to 1.
            worker: Returns this process's id, for the journal.
        """
        self.clock = clock or SystemClock()
        self._shared = Shared(store, self.clock, draw, worker)
        self._default = (policy or Policy(), classifier or Classifier())
        self._declared: list[tuple[str, Policy | None, Classifier | None]] = []
        self._by_key: dict[str, Breaker] = {}
        self._permits = _Permits(self.get)
        self._poll_s = poll_s
        self.instant = self._shared.instant
        self._stop: threading.Event | None = None
        self._creating = Lock("the breakers")
        anew_after_fork(self)

    def declare(
        self, pattern: str, policy: Policy | None = None, *, classifier: Classifier | None = None
    ) -> None:
        """Say how the breakers of some keys behave, before their first use.

        Args:
            pattern: A key, or a pattern with ``*``, as ``"openai:*"``; of several that fit, the last one counts.
            policy: How they behave.
            classifier: Who pronounces their verdicts.
        """
        self._declared.append((text("pattern", pattern), policy, classifier))

    def poll_every(self, poll_s: float | None) -> None:
        """Change how often other processes' changes are looked for.

        Args:
            poll_s: In seconds; ``None`` for never: call `poll` yourself.
        """
        with self._creating:
            self._stop_polling()
            self._poll_s = poll_s
            if self._by_key:
                self._start_polling()

    def get(self, key: str) -> Breaker:
        """Return the breaker of a key; it is made at its first use, which costs no store access.

        Args:
            key: What it protects: provider, model, credential, tenant, in your own words.

        Raises:
            BadPayload: The key is no usable name.
        """
        breaker = self._by_key.get(key)
        if breaker is not None:
            return breaker
        text("key", key)
        with self._creating:
            breaker = self._by_key.get(key)
            if breaker is None:
                policy, classifier = self._default
                for pattern, own_policy, own_classifier in self._declared:
                    if fnmatchcase(key, pattern):
                        policy, classifier = own_policy or policy, own_classifier or classifier
                breaker = Breaker(key, policy, classifier, self._shared)
                self._permits[key] = breaker.permit = partial(Permit, breaker)
                self._by_key[key] = breaker
                self._start_polling()
        return breaker

    # --- calls ------------------------------------------------------------------------------------------------

    def permit(self, key: str) -> Permit:
        """Return what a call runs inside: ``with breakers.permit(key):`` or ``async with …``.

        Args:
            key: The breaker.

        Returns:
            A permit to enter; entering raises `BreakerOpen` if the call must not be made.
        """
        return self._permits[key]()

    def acquire(self, key: str) -> Call:
        """Take a permit by hand; give it to `release` in a ``finally``.

        Raises:
            BreakerOpen: There is none.
        """
        return self.get(key).take()

    def release(self, key: str, call: Call, verdict: Verdict, *, why: str | None = None) -> None:
        """Say what the call of a permit came to.

        Args:
            key: The breaker.
            call: What `acquire` returned.
            verdict: What the call came to.
            why: For the journal.
        """
        self.get(key).finish(call, verdict, why)

    async def acquire_async(self, key: str) -> Call:
        """Do the same as `acquire` without blocking the event loop."""
        return await take_async(self.get(key))

    async def release_async(self, key: str, call: Call, verdict: Verdict, *, why: str | None = None) -> None:
        """Do the same as `release` without blocking the event loop."""
        await finish_async(self.get(key), call, verdict, why)

    def guard(self, key: str | Callable[..., str], *, stall_s: float | None = None) -> Guard:
        """Return a decorator for functions, coroutine functions, generators and async generators.

        Args:
            key: The breaker, or a function of the call's arguments that returns it.
            stall_s: For generators: so many seconds between two items are a failure.
        """
        return Guard(self, key, stall_s)

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
            content: Returns whether an item is content.
            stall_s: So many seconds between two items are a failure.

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
            key: The breaker; it is asked when the first item is.
            items: The stream, or a function (it may be a coroutine function) that opens it.
            content: Returns whether an item is content.
            first_s: So many seconds until the first content are a failure: the stream is ended with TimeoutError.
            stall_s: So many seconds between two items after it are a failure: likewise.
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
        breaker.order(event, by, why)
        return status_of(breaker)

    # --- looking ----------------------------------------------------------------------------------------------

    def status(self) -> BreakersStatus:
        """Return how all breakers are: those of this process and those that only others have used."""
        for row in tuple(self._shared.rows.values()):
            self.get(row.key)
        every = tuple(status_of(self._by_key[key]) for key in sorted(self._by_key))
        error = self._shared.error
        return BreakersStatus(not self.instant and error is None, error, every)

    def status_of(self, key: str) -> BreakerStatus:
        """Return how one breaker is."""
        return status_of(self.get(key))

    def history(self, key: str, limit: int = 1000) -> list[BreakerEntry]:
        """Return the journal of a breaker's changes, oldest first, `limit` lines at the most.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        return self._shared.history(key, limit)

    # --- other processes --------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Learn what other processes changed, and bring a store up to date that was down."""
        for row in self._shared.poll():
            breaker = self._by_key.get(row.key)
            if breaker is not None:
                breaker.learn(row)
        for breaker in tuple(self._by_key.values()):
            if breaker.pending:
                breaker.catch_up()

    def _start_polling(self) -> None:
        """Start the one thread that looks for others' changes; a store of this process alone needs none."""
        if self._stop is not None or self.instant or self._poll_s is None:
            return
        self._stop = threading.Event()
        threading.Thread(
            target=_poll_for_ever,
            args=(weakref.ref(self), self._stop, self._poll_s),
            name="fsm-breakers",
            daemon=True,
        ).start()

    def _stop_polling(self) -> None:
        if self._stop is not None:
            self._stop.set()
            self._stop = None

    def close(self) -> None:
        """Stop the thread."""
        with self._creating:
            self._poll_s = None
            self._stop_polling()

    def after_fork(self) -> None:
        """Begin anew in a forked child: the parent's threads are not here."""
        self._creating = Lock("the breakers")
        self._shared.renew_locks()
        for breaker in self._by_key.values():
            breaker.renew_locks()
        self._stop = None
        if self._by_key:
            self._start_polling()


def _poll_for_ever(owner: weakref.ref[Breakers], stop: threading.Event, poll_s: float) -> None:
    while not stop.wait(poll_s):
        breakers = owner()
        if breakers is None:
            return
        breakers.poll()
        del breakers


def breakers_of(registry: Registry) -> Breakers:
    """Return a registry's breakers: one `Breakers` for all its faces, made at the first use, closed with it.

    Args:
        registry: The registry.
    """
    breakers = _by_registry.get(registry)
    if breakers is None:
        with _founding:
            breakers = _by_registry.get(registry)
            if breakers is None:
                # By a weak reference: the breakers must not keep the registry alive that they are found by.
                owner = weakref.ref(registry)
                breakers = Breakers(registry.store, registry.clock, worker=lambda: _worker_of(owner()))
                _by_registry[registry] = breakers
                registry.closing.append(breakers.close)
    return breakers


def _worker_of(registry: Registry | None) -> str:
    return "" if registry is None else registry.worker_id


_by_registry: weakref.WeakKeyDictionary[Registry, Breakers] = weakref.WeakKeyDictionary()
_founding = Lock("the breakers")


def _after_fork() -> None:
    global _founding  # noqa: PLW0603 - another thread of the parent may have held it
    _founding = Lock("the breakers")


at_fork(_after_fork)
