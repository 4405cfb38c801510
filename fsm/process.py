"""The process's one tracker: set up once, found from everywhere, and replaced for the length of a test."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fsm.clock import Clock, SystemClock
from fsm.errors import ConfigurationError
from fsm.lifecycles.execution import EXECUTION
from fsm.locks import Lock
from fsm.machine import Machine
from fsm.registry import Registry
from fsm.retention import Retention
from fsm.stores.base import Store, open_store
from fsm.sweeper import Sweeper
from fsm.tracker import Tracker

DEFAULT_STORE = "sqlite:///fsm.db"
"""Where executions are kept when neither `configure` nor FSM_STORE says anything."""

_lock = Lock("the set-up of the tracker")
# The last one is the process's tracker. There is more than one only while tests have fresh ones.
_trackers: list[Tracker] = []
_mine: ContextVar[Tracker | None] = ContextVar("fsm_tracker", default=None)


def configure(
    store: str | Store | None = None,
    *,
    clock: Clock | None = None,
    machines: Iterable[Machine] = (),
    sweep_every_s: float | None = None,
    retention: Retention | None = None,
) -> Tracker:
    """Set the process's tracker up, once, before its first use.

    Args:
        store: A URL (see `fsm.stores.open_store`) or an open store; FSM_STORE, else ``sqlite:///fsm.db``.
        clock: Where time comes from; the system's clocks if nothing is said.
        machines: Machines of your own, beside the execution machine.
        sweep_every_s: Sweep from a thread of this process, at least so often, in seconds; ``None`` if others do
            (`fsm sweep`, another process).
        retention: What the sweeper deletes of what has ended.

    Returns:
        The tracker, as `get_tracker()` returns it from now on.

    Raises:
        ConfigurationError: There is a tracker already, or the machines do not go together.
        BadPayload: `sweep_every_s` is not a positive number of seconds, or longer than `fsm.timeouts.MAX_SECONDS`.
        NotAStore: The URL names no store.
        StoreUnavailable: The store cannot be opened.
    """
    return _lock.run(_configure, store, clock, machines, sweep_every_s, retention)


def _configure(
    store: str | Store | None = None,
    clock: Clock | None = None,
    machines: Iterable[Machine] = (),
    sweep_every_s: float | None = None,
    retention: Retention | None = None,
) -> Tracker:
    _forget_closed()
    if _trackers:
        raise ConfigurationError(
            f"the tracker is already set up, on {_trackers[-1].store_url}: call configure() once, before anything "
            "calls get_tracker(); in tests use fsm.testing.fresh_tracker()"
        )
    tracker = _build(store, clock, machines)
    try:
        if sweep_every_s is not None:
            sweeper = Sweeper(tracker._registry, sweep_every_s, retention)
            tracker._registry.closing.append(sweeper.stop)
            sweeper.start()
        _trackers.append(tracker)
    except BaseException:
        _trackers[:] = [one for one in _trackers if one is not tracker]
        tracker.close()
        raise
    return tracker


def get_tracker() -> Tracker:
    """Return the process's one tracker, set up with the defaults if `configure` was not called.

    Raises:
        NotAStore: FSM_STORE names no store.
        StoreUnavailable: The store cannot be opened.
    """
    mine = _mine.get()
    if mine is not None:
        return mine
    trackers = _trackers
    if trackers and not trackers[-1].closed:
        return trackers[-1]
    return _lock.run(_found)


def _found() -> Tracker:
    _forget_closed()
    return _trackers[-1] if _trackers else _configure()


def _forget_closed() -> None:
    _trackers[:] = [tracker for tracker in _trackers if not tracker.closed]


def _build(store: str | Store | None, clock: Clock | None, machines: Iterable[Machine]) -> Tracker:
    if store is None:
        store = os.environ.get("FSM_STORE") or DEFAULT_STORE
    opened = open_store(store) if isinstance(store, str) else store
    if not (callable(getattr(opened, "append", None)) and callable(getattr(opened, "timeline", None))):
        raise ConfigurationError(f"store is a URL, as 'sqlite:///fsm.db', or an open store, not {store!r}")
    try:
        return Tracker._of(Registry(opened, clock or SystemClock(), (EXECUTION, *machines)))
    except BaseException:
        opened.close()
        raise


@contextmanager
def fresh_tracker(
    store: str | Store = "memory://", *, clock: Clock | None = None, machines: Iterable[Machine] = ()
) -> Iterator[Tracker]:
    """Put a fresh tracker in the place of the process's one, for the length of a ``with`` block in a test.

    Threads and tasks that each open a block of their own each get their own; threads that a block starts get the
    one of the block that was opened last.

    Args:
        store: As for `configure`, in memory if nothing is said.
        clock: As for `configure`.
        machines: As for `configure`.

    Yields:
        The tracker that `get_tracker()` returns inside.
    """
    tracker = _build(store, clock, machines)
    with _lock:
        _trackers.append(tracker)
    token = _mine.set(tracker)
    try:
        yield tracker
    finally:
        _mine.reset(token)
        tracker.close()
        with _lock:
            _forget_closed()


@atexit.register
def _close_all() -> None:
    for tracker in _trackers:
        tracker.close()
