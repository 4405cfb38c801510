"""What a process writes of its own loops into the store, so that others can see how it is.

A thread of its own writes: a store that hangs holds up nothing but the reports, and a loop on an event loop has no
thread to write from. It begins with the first loop that is started, and a process without loops writes nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable

from fsm.clock import Clock
from fsm.concurrency.supervised import Health, LoopReport, keep_going
from fsm.errors import FsmError
from fsm.stores.base import Beat, Store

logger = logging.getLogger(__name__)

BEAT_EVERY_S = 5.0
"""Time between two reports of a process, in seconds; the first failure of a loop is reported at once."""
BEAT_PAUSE_S = 1.0
"""Least time between two reports, in seconds, however many loops fail."""
JOIN_S = 5.0
"""How long the end of a process waits for a report that is being written, in seconds."""
NAME = "reports"
"""The name of the loop that writes."""


class Pulse:
    """Writes the reports of one process's loops."""

    def __init__(
        self,
        store: Store,
        health: Health,
        clock: Clock,
        now: Callable[[], float],
        worker: Callable[[], str | None],
    ) -> None:
        """Describe it; nothing is started.

        Args:
            store: Where the reports go.
            health: The loops.
            clock: Where time comes from.
            now: Returns the instant on the steady timeline.
            worker: Returns the name of the worker that this process is, if it is one.
        """
        self._store = store
        self._health = health
        self._clock = clock
        self._now = now
        self._worker = worker
        self._starting = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._wake = threading.Event()
        self._started_at = self._clock.wall()
        self.process = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        """The name of this process in its reports; no other one has it, nor a later one with the same id."""

    def after_fork(self) -> None:
        """Begin again in a forked child, which reports under a name of its own."""
        self._starting = threading.Lock()
        self._begin()

    def stirred(self, urgent: bool) -> None:  # noqa: FBT001 - as `Health.stirred` calls it
        """Begin to report, or report sooner: a loop was started, or has failed for the first time in a row."""
        if self._store.instant or self._over.is_set():
            return  # what no other process can see needs no report
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    thread = threading.Thread(target=self._report, name="fsm-reports", daemon=True)
                    thread.start()
                    self._thread = thread
        if urgent:
            self._wake.set()

    def stop(self) -> None:
        """Report once more, that no loop runs here, and stop; a store that hangs is waited for up to `JOIN_S`."""
        self._over.set()
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=JOIN_S)

    def _report(self) -> None:
        keep_going(self._health.loop(NAME, expected=(FsmError,)), self._turn, self._pause)
        try:
            self.beat(last=True)
        except Exception:
            logger.debug("the last report of this process was not written", exc_info=True)

    def _turn(self) -> float:
        self._wake.clear()
        self.beat()
        return BEAT_EVERY_S

    def _pause(self, pause_s: float) -> bool:
        if not self._over.wait(BEAT_PAUSE_S):
            self._wake.wait(max(pause_s, BEAT_EVERY_S) - BEAT_PAUSE_S)
        return self._over.is_set()

    def beat(self, *, last: bool = False) -> None:
        """Write the reports of all loops now.

        Args:
            last: The process ends: no loop runs any more.

        Raises:
            StoreUnavailable: The store did not take them.
        """
        self._store.beat([self._of(one, last=last) for one in self._health.loops()])

    @property
    def worker_name(self) -> str:
        """The name of the worker that this process is, or host and process id."""
        return self._worker() or f"{socket.gethostname()}:{os.getpid()}"

    def _of(self, one: LoopReport, *, last: bool) -> Beat:
        return Beat(
            self.process, one.name, self.worker_name, socket.gethostname(), os.getpid(), one.running and not last,
            one.turns, one.failures, one.failing, one.last_error, one.failed_at, one.succeeded_at, one.alive_at,
            self._started_at, self._now(),
        )  # fmt: skip
