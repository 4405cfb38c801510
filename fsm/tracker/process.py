"""The process's one tracker: set up once, found from everywhere, and replaced for the length of a test."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import islice
from typing import NamedTuple

from fsm.clock import Clock, SystemClock
from fsm.concurrency.locks import Lock
from fsm.concurrency.supervised import one_line
from fsm.core.arguments import seconds
from fsm.errors import ConfigurationError, FsmError, NotAStore, StoreUnavailable
from fsm.errors.shown import shown
from fsm.lifecycles.execution import EXECUTION
from fsm.machine.machine import Machine
from fsm.registry.registry import Registry
from fsm.stores.base import Store
from fsm.stores.opening import open_store
from fsm.tracker.retention import Retention
from fsm.tracker.sweeper import Sweeper
from fsm.tracker.tracker import Tracker

logger = logging.getLogger(__name__)

DEFAULT_STORE = "sqlite:///fsm.db"
"""Where executions are kept when neither `configure` nor FSM_STORE says anything."""
MAX_MACHINES = 1_000
"""Maximum number of machines that one process declares."""
MAX_URL = 4_096
"""Maximum number of characters of a store's URL."""

_lock = Lock("the set-up of the tracker")
# The last one is the process's tracker. There is more than one only while tests have fresh ones. It is replaced and
# never changed, so that a thread that looks without the lock sees one that was true.
_trackers: tuple[Tracker, ...] = ()


class _Fresh(NamedTuple):
    """The fresh tracker of a context, and what the context had before."""

    tracker: Tracker
    before: _Fresh | None


_mine: ContextVar[_Fresh | None] = ContextVar("fsm_tracker", default=None)


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
        ConfigurationError: There is a tracker already, an argument is none of its kind, or the machines do not go
            together.
        InvalidArgument: `sweep_every_s` is not a positive number.
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
    global _trackers  # noqa: PLW0603 - the process has one
    _forget_closed()
    if _trackers:
        raise ConfigurationError(
            f"the tracker is already set up, on {_trackers[-1].store_url}: call configure() once, before anything "
            "calls get_tracker(); in tests use fsm.testing.fresh_tracker()"
        )
    if retention is not None and not isinstance(retention, Retention):
        raise ConfigurationError(f"retention is a fsm.Retention, not {shown(retention)}")
    if retention is not None and sweep_every_s is None:
        raise ConfigurationError("retention is what the sweeper deletes: give sweep_every_s as well")
    if sweep_every_s is not None:
        sweep_every_s = seconds("sweep_every_s", sweep_every_s)
    tracker = _build(store, clock, machines)
    try:
        if sweep_every_s is not None:
            sweeper = Sweeper(tracker._registry, sweep_every_s, retention)
            tracker._registry.closing.append(sweeper.stop)
            sweeper.start()
        _trackers = (*_trackers, tracker)
    except BaseException:
        _trackers = tuple(one for one in _trackers if one is not tracker)
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
    while mine is not None:  # one that was closed in another context is still noted in this one
        if not mine.tracker.closed:
            return mine.tracker
        mine = mine.before
    trackers = _trackers
    if trackers and not trackers[-1].closed:
        return trackers[-1]
    return _lock.run(_found)


def _found() -> Tracker:
    _forget_closed()
    return _trackers[-1] if _trackers else _configure()


def _forget_closed() -> None:
    global _trackers  # noqa: PLW0603 - see above
    _trackers = tuple(tracker for tracker in _trackers if not tracker.closed)


def _build(store: str | Store | None, clock: Clock | None, machines: Iterable[Machine]) -> Tracker:
    if clock is not None and not _has(clock, "wall", "monotonic", "era"):
        raise ConfigurationError(f"clock is a fsm.clock.Clock, not {shown(clock)}")
    try:
        declared = (EXECUTION, *islice(machines, MAX_MACHINES + 1))
    except Exception:  # noqa: BLE001 - a caller's own iterator may raise anything
        raise ConfigurationError(f"machines is a list of machines, not {shown(machines)}") from None
    if len(declared) > MAX_MACHINES:
        raise ConfigurationError(f"{MAX_MACHINES} machines at most")
    for machine in declared:
        if not isinstance(machine, Machine):
            raise ConfigurationError(f"machines is a list of machines, and {shown(machine)} is none")
    opened = _opened(os.environ.get("FSM_STORE") or DEFAULT_STORE if store is None else store)
    try:
        return Tracker._of(Registry(opened, clock or SystemClock(), declared))
    except BaseException:
        opened.close()
        raise


def _opened(store: str | Store) -> Store:
    if not isinstance(store, str):
        if not _has(store, "append", "load", "timeline", "close"):
            raise ConfigurationError(
                f"store is a URL, as 'sqlite:///fsm.db', or an open store, not {shown(store)}"
            )
        return store
    url = str.__str__(store)
    if len(url) > MAX_URL:
        raise NotAStore(f"a store's URL has {MAX_URL} characters at most, {shown(url)} has {len(url)}")
    try:
        return open_store(url)
    except FsmError:
        raise
    except (OSError, ValueError) as error:  # a name that the file system refuses: too long, with a NUL
        raise StoreUnavailable(f"the store {shown(url)} cannot be opened: {one_line(error)}") from error


def _has(one: object, *names: str) -> bool:
    try:
        return all(callable(getattr(one, name, None)) for name in names) and not isinstance(one, type)
    except Exception:  # noqa: BLE001 - a caller's own object may raise anything
        return False


@contextmanager
def fresh_tracker(
    store: str | Store = "memory://", *, clock: Clock | None = None, machines: Iterable[Machine] = ()
) -> Iterator[Tracker]:
    """Put a fresh tracker in the place of the process's one, for the length of a ``with`` block in a test.

    Threads and tasks that each open a block of their own each get their own; threads that a block starts get the
    one of the block that was opened last. A block may end in another context, thread or task than it began in, as
    those of asynchronous fixtures do: its tracker is closed, and `get_tracker()` returns it nowhere any more.

    Args:
        store: As for `configure`, in memory if nothing is said.
        clock: As for `configure`.
        machines: As for `configure`.

    Yields:
        The tracker that `get_tracker()` returns inside.
    """
    global _trackers  # noqa: PLW0603 - see above
    tracker = _build(store, clock, machines)
    with _lock:
        _trackers = (*_trackers, tracker)
    token = _mine.set(_Fresh(tracker, _mine.get()))
    try:
        yield tracker
    finally:
        with suppress(ValueError):  # it ends in another context: in this one it was never noted
            _mine.reset(token)
        try:
            tracker.close()
        finally:
            with _lock:
                _forget_closed()


@atexit.register
def _close_all() -> None:
    for tracker in _trackers:
        try:
            tracker.close()
        except Exception:  # the others are closed all the same
            logger.exception("the tracker on %s could not be closed", tracker.store_url)
