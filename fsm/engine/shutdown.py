"""The end of the process: what still runs is ended or handed back, not left to its deadline.

- The event loop is closed (``asyncio.run`` returns or is interrupted): it cancels the engine's tasks, and each
  deals with its execution.
- SIGTERM: if nobody else handles it (its handler is the system's own, which would end the process at once), the
  engine closes itself and then lets the signal do what it does.
- The interpreter exits with a loop that was left standing still: `atexit` speaks for the executions.
- The process forks: the child drives nothing of its parent's and says nothing for it, whatever signal it gets and
  however it ends (`tests/test_forks.py`). It may run agents of its own.
- ``kill -9``, ``os._exit`` and power loss say nothing to anybody: the lease runs out, and the sweeper finds it.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import signal
import threading
import time
import weakref
from typing import TYPE_CHECKING

from fsm.concurrency.forks import at_fork
from fsm.errors import FsmError

if TYPE_CHECKING:
    from fsm.engine.connection import Link
    from fsm.engine.launch import Launcher

logger = logging.getLogger(__name__)

_engines: weakref.WeakSet[Launcher] = weakref.WeakSet()
EXIT_S = 10.0
"""How long, in seconds, a SIGTERM waits for the agents (a second one waits for nothing), and how long the end of the
process waits for the store."""


def watch_exit(engine: Launcher) -> None:
    """Let an engine hear of the end of its process. Call it on its event loop."""
    _engines.add(engine)
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    try:
        loop.add_signal_handler(signal.SIGTERM, _on_sigterm, loop)
        _listening.add(loop)
    except (NotImplementedError, RuntimeError, FsmError):
        logger.debug("this event loop handles no signals")


def _on_sigterm(loop: asyncio.AbstractEventLoop) -> None:
    loop.remove_signal_handler(signal.SIGTERM)  # the next one ends the process at once
    _listening.discard(loop)
    logger.warning("SIGTERM: the engine ends or hands back what runs")
    task = loop.create_task(_terminate())
    _terminating.add(task)


_terminating: set[asyncio.Task[None]] = set()
_listening: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
"""Loops that hear of SIGTERM for us."""


_masks: dict[int, set[int]] = {}
"""What a thread that forks listened to before."""


def _before_fork() -> None:
    # The child has the parent's wake-up socket: a SIGTERM for the child would be the parent's, and the child would not
    # end (python/cpython issue 66285). None may come before the child listens by itself.
    if any(not loop.is_closed() for loop in _listening):
        _masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _after_fork_in_parent() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    _masks.clear()
    _listening.clear()
    for engine in list(_engines):
        engine._after_fork()
    _engines.clear()


at_fork(_after_fork_in_child, before=_before_fork, in_parent=_after_fork_in_parent)


async def _terminate() -> None:
    loop = asyncio.get_running_loop()
    mine = [engine for engine in list(_engines) if engine._lives_on(loop)]
    try:
        async with asyncio.timeout(EXIT_S):
            await asyncio.gather(*(engine.close() for engine in mine))
    except Exception:
        logger.exception("not everything could be ended")
    finally:
        for engine in mine:
            _speak_for(engine)
            if not engine.tracker.closed:
                engine.tracker.close()
        os.kill(os.getpid(), signal.SIGTERM)


@atexit.register
def _at_exit() -> None:
    for engine in list(_engines):
        _speak_for(engine)


def _speak_for(engine: Launcher) -> None:
    """End or hand back, from outside of any loop, what an engine left open."""
    until, left = time.monotonic() + EXIT_S, 0
    for link in engine._links():
        if link.ended or link.home.registry.closed:
            continue
        if time.monotonic() > until:
            left += 1
            continue
        try:
            _let_go(link)
        except Exception:
            logger.exception("%s: could not be ended; its lease or its deadline will", link.id)
    if left:
        logger.error(
            "%d executions could not be ended within %g s; their leases or deadlines will", left, EXIT_S
        )


def _let_go(link: Link) -> None:
    registry, owner = link.home.registry, link.snapshot.owner
    lapse = link.lapse_order()
    if lapse is not None and link.can_go_on:
        registry.carry_all([lapse])
        return
    orders = [registry.order(link.id, "cancel", {"reason": "the process ended", "by": "engine"})]
    if owner is not None:
        orders.append(registry.order(link.id, "stopped", {}, holder=owner))
    registry.carry_all(orders)
