"""The end of the process: what still runs is ended or released, not left to its deadline.

- The event loop is closed (``asyncio.run`` returns or is interrupted): it cancels the engine's tasks, and each
  releases its execution.
- A signal: only if the program asks for it (`Engine.run_until_signal`); the library installs no handler of its own.
- The interpreter exits with a loop that was left standing still: `atexit` ends the executions.
- The process forks: the child drives nothing of its parent's and ends nothing of it, whatever signal it gets and
  however it ends (`tests/concurrency/test_forks.py`). It may run agents of its own.
- ``kill -9``, ``os._exit`` and power loss are not announced: the lease runs out, and the sweeper finds it.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import signal
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Protocol

from fsm.concurrency.forks import at_fork
from fsm.engine.connection import Connection
from fsm.errors import ConfigurationError

logger = logging.getLogger(__name__)

EXIT_S = 10.0
"""How long a signal waits for the agents (a second one waits for nothing), and how long the end of the process waits
for the store, in seconds."""


class Exits(Protocol):
    """What hears of the end of its process (`fsm.engine.engine.Engine`)."""

    def _after_fork(self) -> None:
        """Begin again in a forked child."""
        ...

    def _connections(self) -> list[Connection]:
        """Return the connections to the executions that are open here."""
        ...


_engines: weakref.WeakSet[Exits] = weakref.WeakSet()
_listening: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
"""Loops that hear of signals for an engine."""
_masks: dict[int, set[int]] = {}
"""What a thread that forks listened to before."""


def watch(engine: Exits) -> None:
    """Let an engine hear of the end of its process."""
    _engines.add(engine)


@asynccontextmanager
async def listening(signals: Iterable[signal.Signals]) -> AsyncIterator[asyncio.Future[signal.Signals]]:
    """Yield a future that the first of these signals resolves; a second one does what it does without this.

    Raises:
        ConfigurationError: This loop cannot handle signals: it is not the main thread's.
    """
    loop = asyncio.get_running_loop()
    first: asyncio.Future[signal.Signals] = loop.create_future()
    handled = tuple(signals)

    def take(one: signal.Signals) -> None:
        let_go()
        logger.warning("%s: the engine ends or releases what runs", one.name)
        if not first.done():
            first.set_result(one)

    def let_go() -> None:
        for one in handled:
            loop.remove_signal_handler(one)
        _listening.discard(loop)

    try:
        for one in handled:
            loop.add_signal_handler(one, take, one)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        let_go()
        raise ConfigurationError(
            f"this event loop handles no signals ({error}): wait for them on the main thread, or close() the engine"
        ) from None
    _listening.add(loop)
    try:
        yield first
    finally:
        let_go()


def end_all(connections: Iterable[Connection]) -> None:
    """End or release, from outside of any loop, what an engine left open, within `EXIT_S`."""
    until, left = time.monotonic() + EXIT_S, 0
    for connection in connections:
        registry = connection.runtime.registry
        if connection.ended or registry.closed:
            continue
        if time.monotonic() > until:
            left += 1
            continue
        try:
            # No listener noted what was committed after the loop stood still.
            connection.snapshot = registry.store.load(connection.id) or connection.snapshot
            if not connection.ended:
                registry.carry_all(connection.parting("the process ended", resumable=False))
        except Exception:
            logger.exception("%s: could not be ended; its lease or its deadline will", connection.id)
    if left:
        logger.error(
            "%d executions could not be ended within %g s; their leases or deadlines will", left, EXIT_S
        )


@atexit.register
def _at_exit() -> None:
    for engine in list(_engines):
        end_all(engine._connections())


def _before_fork() -> None:
    # The child has the parent's wake-up socket: a signal for the child would be the parent's, and the child would not
    # end (python/cpython issue 66285). None may come before the child listens by itself.
    if any(not loop.is_closed() for loop in _listening):
        _masks[threading.get_ident()] = signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT}
        )


def _after_fork_in_parent() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    _masks.clear()
    _listening.clear()
    for engine in list(_engines):
        engine._after_fork()
    _engines.clear()


at_fork(_after_fork_in_child, before=_before_fork, in_parent=_after_fork_in_parent)
