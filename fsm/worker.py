"""A worker and its one lease.

A worker registers, and renews ONE lease from a thread of its own; everything that it owns lives by it. So a blocked
event loop is not a dead worker, and a hundred thousand executions cost one write per heartbeat. A process that is
stopped, or cut off from the store, does not renew: it is marked as lost, for good, before anything is taken away from
it, and its fences are stale by the time it comes back (the idea is the Lease of Kubernetes, with fencing tokens).
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from types import TracebackType
from typing import Self

from fsm.errors import BadPayload, FsmError, LeaseLost
from fsm.registry import Registry
from fsm.stores.base import WorkerRow

logger = logging.getLogger(__name__)

RENEWALS_PER_LEASE = 3
"""A lease is renewed so many times before it would run out: two renewals may be lost."""
PAGE = 500
"""So many executions are handed back at a time."""


class Worker:
    """A registered worker; get one from ``tracker.worker()``, best in a ``with`` block.

    While it is registered, the executions that this process claims are its own.
    """

    def __init__(self, registry: Registry, ttl_s: float, name: str | None = None) -> None:
        """Register.

        Args:
            registry: The registry.
            ttl_s: The worker is lost if it does not renew for so long, in seconds.
            name: What people call it; host and process id if nothing is said.

        Raises:
            BadPayload: `ttl_s` is not a positive number.
            StoreUnavailable: The store did not take it.
        """
        if not isinstance(ttl_s, (int, float)) or isinstance(ttl_s, bool) or not 0 < ttl_s < float("inf"):
            raise BadPayload(f"ttl_s is a positive number of seconds, not {ttl_s!r}")
        self.id: str = registry.ids.make("worker")
        self.ttl_s = float(ttl_s)
        self._registry = registry
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self.lost = False
        """Whether the lease ran out: everything that it owned belongs to others now, or will in a moment."""
        row = WorkerRow(
            self.id,
            name or f"{socket.gethostname()}:{self._pid}",
            self.ttl_s,
            registry.clock.wall(),
            registry.now(),
            False,
        )
        registry.store.worker_add(row)

    def start(self) -> Self:
        """Begin to renew from a thread of its own."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew_for_ever, name="fsm-lease", daemon=True)
            self._thread.start()
        return self

    def renew(self) -> None:
        """Renew the lease now: one write, whatever the worker owns.

        Raises:
            LeaseLost: It ran out before; stop working on everything that was claimed under this id.
            StoreUnavailable: The store did not answer; try again before the lease runs out.
        """
        if self._elsewhere:
            raise LeaseLost(self.id)  # the parent lives by it, and a child must not speak for it
        if self.lost or not self._registry.store.worker_renew(self.id, self._registry.now):
            self.lost = True
            raise LeaseLost(self.id)

    @property
    def _elsewhere(self) -> bool:
        """Whether this is a forked child of the process that is the worker (`tests/test_forks.py`)."""
        return os.getpid() != self._pid

    def _renew_for_ever(self) -> None:
        while not self._stop.wait(self.ttl_s / RENEWALS_PER_LEASE):
            try:
                self.renew()
            except LeaseLost:
                logger.critical("worker %s lost its lease: what it owned is taken over by others", self.id)
                return
            except FsmError as error:
                logger.warning("worker %s could not renew its lease, will try again: %s", self.id, error)

    def close(self, *, hand_back: bool = True) -> None:
        """Stop renewing and unregister.

        Args:
            hand_back: Let go at once of what it still owns (another attempt, or dead if none is left); otherwise
                others find out when the lease runs out.

        In a forked child nothing happens: the worker is its parent.
        """
        if self._elsewhere:
            return
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=self.ttl_s)
        if self._registry.worker is self:
            self._registry.worker = None
        if hand_back and not self.lost and not self._registry.closed:
            lapse(self._registry, self.id)
            self._registry.store.worker_remove(self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lapse(registry: Registry, worker_id: str) -> int:
    """Take everything away from a worker that is lost or leaves.

    Each execution goes back to the queue for its next attempt, or is dead if none is left: the table decides. One
    that has moved on to another owner meanwhile is left alone.

    Args:
        registry: The registry.
        worker_id: The worker.

    Returns:
        How many executions were taken away.
    """
    taken = 0
    while True:
        owned = registry.store.owned(worker_id, PAGE)
        commands = [
            registry.order(execution_id, "lapse", {"worker": worker_id}, holder=worker_id)
            for execution_id, _ in owned
        ]
        done = registry.carry_all(commands)
        taken += done
        if len(owned) < PAGE or not done:
            return taken
