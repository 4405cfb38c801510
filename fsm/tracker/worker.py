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

from fsm.concurrency.supervised import keep_going
from fsm.core.arguments import seconds
from fsm.errors import FsmError, LeaseLost
from fsm.registry.registry import Registry
from fsm.stores.base import WorkerRow

logger = logging.getLogger(__name__)

RENEWALS_PER_LEASE = 3
"""A lease is renewed so many times before it would run out: two renewals may be lost."""
PAGE = 500
"""So many executions are handed back at a time."""
MAX_PAGES = 10_000
"""Maximum number of pages at once; a later sweep goes on with what is left."""
JOIN_S = 30.0
"""How long the end of a worker waits for a renewal that is under way, in seconds."""
LEASE = "lease"
"""The name of the loop that renews."""
LAPSE = "lapse"
"""The event by which an execution is taken away from its worker."""


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
            BadPayload: `ttl_s` is not a positive number of seconds, or longer than `fsm.machine.timeouts.MAX_SECONDS`.
            StoreUnavailable: The store did not take it.
        """
        self.ttl_s = seconds("ttl_s", ttl_s)
        self.id: str = registry.ids.make("worker")
        self._registry = registry
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self.lost = False
        """Whether the lease ran out: everything that it owned belongs to others now, or will in a moment."""
        self.name = name or f"{socket.gethostname()}:{self._pid}"
        row = WorkerRow(
            self.id,
            self.name,
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
        """Whether this is a forked child of the process that is the worker (`tests/concurrency/test_forks.py`)."""
        return os.getpid() != self._pid

    def _renew_for_ever(self) -> None:
        """Renew until the worker is closed; of all errors the lease's loss alone ends it, and is the loop's last."""
        loop = self._registry.health.loop(LEASE, expected=(FsmError,))
        if self._pause(self.ttl_s):  # it was registered a moment ago
            return
        try:
            keep_going(loop, self._turn, self._pause, ends=(LeaseLost,))
        except LeaseLost:
            logger.critical("worker %s lost its lease: what it owned is taken over by others", self.id)

    def _turn(self) -> float:
        self._registry.steady.measure()
        self.renew()
        return self.ttl_s

    def _pause(self, pause_s: float) -> bool:
        """Wait for the next renewal: a failure is no reason to wait longer than the lease can bear."""
        return self._stop.wait(min(pause_s, self.ttl_s / RENEWALS_PER_LEASE))

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
            self._thread.join(timeout=min(self.ttl_s, JOIN_S))
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
    that has moved on to another owner is left alone, and one that cannot be taken away by this process is
    set aside and passed over.

    Args:
        registry: The registry.
        worker_id: The worker.

    Returns:
        How many executions were taken away.
    """
    taken = 0
    after: tuple[str, ...] = ()
    for _ in range(MAX_PAGES):
        owned = registry.store.owned(worker_id, PAGE, *after)
        now = registry.now()
        taken += registry.carry_all(
            [
                registry.order(execution_id, LAPSE, {"worker": worker_id}, holder=worker_id)
                for execution_id, version in owned
                if not registry.health.skips(execution_id, version, now, event=LAPSE)
            ]
        )
        if len(owned) < PAGE:
            break
        after = (owned[-1][0],)
    return taken
