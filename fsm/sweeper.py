"""The sweeper: turns passed deadlines and lost leases into events of the table.

Any number of processes may sweep one store at the same time. A sweeper only proposes: each event names the version (or
the owner) that it was decided on, so that one which comes too late is refused as stale and does no harm. What is not
due is not looked at: deadlines come from an index, leases from one small table.
"""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple

from fsm.errors import BadPayload, FsmError
from fsm.registry import Registry
from fsm.retention import Retention, prune
from fsm.worker import lapse

logger = logging.getLogger(__name__)

BATCH = 500
"""So many passed deadlines are handled in one transaction."""
MAX_BATCHES = 2_000
"""So many batches at most in one sweep; what is left is found by the next."""

STOPPED_S = 1.0
"""A sweeper that wakes up later than this, in seconds, was stopped, perhaps with the whole machine: the workers whose
lease ran out get another term (see `fsm.stores.base.Store.lose`)."""
REMEMBER_S = 3_600.0
"""A lost worker that owns nothing any more is listed for so long, in seconds, for people to see. That it may never
claim again is remembered beyond (`fsm.stores.base.DEPARTED`)."""


class Swept(NamedTuple):
    """What one sweep did.

    Attributes:
        timed_out: Executions whose deadline had passed.
        lapsed: Executions that were taken away from lost workers.
        workers: Workers that were found lost.
        pruned: Ended executions that were deleted by the policy.
        orphans: Children that were cancelled because whoever ended their parent did not get to it.
    """

    timed_out: int
    lapsed: int
    workers: int
    pruned: int
    orphans: int


class Sweeper:
    """Sweeps one registry, once or from a thread of its own."""

    def __init__(self, registry: Registry, every_s: float = 1.0, retention: Retention | None = None) -> None:
        """Set up.

        Args:
            registry: The registry.
            every_s: The longest pause between two sweeps, in seconds. A deadline that this process commits is met
                on time all the same: the sweeper sleeps no longer than to the nearest one.
            retention: What to delete, if anything.

        Raises:
            BadPayload: `every_s` is not a positive number.
        """
        if (
            isinstance(every_s, bool)
            or not isinstance(every_s, (int, float))
            or not 0 < every_s < float("inf")
        ):
            raise BadPayload(f"sweep_every_s is a positive number of seconds, not {every_s!r}")
        self._registry = registry
        self._every_s = float(every_s)
        self._retention = retention
        self._wakes_at: float | None = None
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def sweep(self) -> Swept:
        """Sweep once.

        Returns:
            What was done. Events that came too late are not counted: somebody else has dealt with them.

        Raises:
            StoreUnavailable: The store did not answer; the next sweep goes on where this one ended.
        """
        self._registry.steady.keep()
        timed_out = self._deadlines()
        lapsed, lost = self._leases()
        orphans = self._orphans()
        pruned = prune(self._registry, self._retention) if self._retention is not None else 0
        return Swept(timed_out, lapsed, lost, pruned, orphans)

    def _orphans(self) -> int:
        """Repeat the orders to cancel children that nobody has carried out: a process died, or its store failed.

        Each order is tried once in a sweep. One that is being carried out at this moment does no harm here.
        """
        done = 0
        after = ""
        for _ in range(MAX_BATCHES):
            orders = self._registry.store.orders(after, BATCH)
            done += sum(self._registry.call_off(order) for order in orders)
            if len(orders) < BATCH:
                break
            after = orders[-1].execution_id
        return done

    def _leases(self) -> tuple[int, int]:
        """Take everything away from lost workers; return how much, and how many workers were not known as lost."""
        store = self._registry.store
        now = self._registry.now()
        rows = {row.id: row for row in store.workers()}
        lapsed = found = 0
        stopped = self._wakes_at is not None and now > self._wakes_at + STOPPED_S
        for worker_id in store.lose(now, spare=stopped):
            taken = lapse(self._registry, worker_id)
            lapsed += taken
            row = rows.get(worker_id)
            if row is None or not row.lost:
                found += 1
            elif not taken and row.renewed_at + row.ttl_s + REMEMBER_S < now:
                store.worker_remove(worker_id)
        return lapsed, found

    def _deadlines(self) -> int:
        done = 0
        for _ in range(MAX_BATCHES):
            now = self._registry.now()
            due = self._registry.store.due(self._registry.steady.met_until(), BATCH)
            commands = [
                self._registry.order(
                    one.execution_id,
                    "time_out",
                    {"kind": one.kind, "late_s": max(0.0, now - one.due_at)},
                    version=one.version,
                )
                for one in due
            ]
            carried = self._registry.carry_all(commands)
            done += carried
            if len(due) < BATCH or not carried:
                break
        return done

    # --- in the background ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Sweep from a thread of its own until `stop`."""
        self._registry.committer.on_earlier = self._earlier
        self._thread = threading.Thread(target=self._sweep_for_ever, name="fsm-sweeper", daemon=True)
        self._thread.start()

    def _earlier(self, due_at: float) -> None:
        """A commit of this process is due before the sweeper would wake up."""
        self._registry.committer.wake_at = due_at
        self._wake.set()

    def _sweep_for_ever(self) -> None:
        while not self._stopped:
            self._wake.clear()
            try:
                self.sweep()
                pause_s = self._pause_s()
            except FsmError as error:
                if self._stopped:
                    return
                logger.warning("a sweep failed, the next one follows in %g s: %s", self._every_s, error)
                pause_s = self._every_s
            self._wake.wait(pause_s)

    def _pause_s(self) -> float:
        """Return how long to sleep, and tell the committer from when on an earlier deadline is news."""
        committer = self._registry.committer
        now = self._registry.now()
        committer.wake_at = now + self._every_s
        next_due = self._registry.store.next_due()  # after wake_at is set: a commit in between wakes us up
        if next_due is not None and next_due < committer.wake_at:
            committer.wake_at = next_due
        pause_s = max(0.0, min(self._every_s, committer.wake_at - now))
        self._wakes_at = now + pause_s
        return pause_s

    def stop(self) -> None:
        """Stop the thread; a sweep that is under way is finished."""
        self._stopped = True
        self._registry.committer.wake_at = float("-inf")
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=30.0)
