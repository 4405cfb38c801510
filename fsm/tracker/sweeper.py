"""The sweeper: turns passed deadlines and lost leases into events of the table.

Any number of processes may sweep one store at the same time. A sweeper only proposes: each event names the version (or
the owner) that it was decided on, so that one which comes too late is refused as stale and does no harm. What is not
due is not looked at: deadlines come from an index, leases from one small table.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import NamedTuple

from fsm.concurrency.supervised import BACKOFF_S, keep_going
from fsm.core.arguments import seconds
from fsm.core.records import CANCEL_CHILDREN
from fsm.errors import FsmError, StoreUnavailable
from fsm.machine.timeouts import MAX_SECONDS
from fsm.registry.registry import Registry
from fsm.stores.base import WorkerRow
from fsm.tracker.retention import Retention, prune
from fsm.tracker.worker import LAPSE, lapse

SWEEP = "sweep"
"""What stands in the name of every loop that sweeps; by it others know that somebody does."""
SWEEPER = "sweeper"
"""The name of the loop of the sweeper's own thread."""
TIME_OUT = "time_out"
"""The event that a passed deadline becomes."""
BATCH = 500
"""So many passed deadlines are handled in one transaction."""
MAX_BATCHES = 2_000
"""Maximum number of batches in one sweep; where it stops, the next one goes on."""
JOIN_S = 30.0
"""How long the end of a process waits for a sweep that is under way, in seconds."""

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
            BadPayload: `every_s` is not a positive number of seconds, or longer than
            `fsm.machine.timeouts.MAX_SECONDS`.
        """
        self._registry = registry
        self._every_s = seconds("sweep_every_s", every_s)
        self._retention = retention
        self._wakes_at: float | None = None
        self._seen_at = float("-inf")
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def sweep(self) -> Swept:
        """Sweep once.

        What cannot be worked on in this process is set aside (`Registry.health`): it keeps neither another execution
        nor another part of the sweep from its turn.

        Returns:
            What was done. Events that came too late are not counted: somebody else has dealt with them.

        Raises:
            StoreUnavailable: The store did not answer; the next sweep goes on where this one ended.
        """
        self._registry.steady.keep()
        counts: Counter[str] = Counter()
        failed: Exception | None = None
        for part in (self._deadlines, self._leases, self._orphans, self._prune):
            try:
                part(counts)
            except Exception as error:  # noqa: BLE001 - raised below, after the other parts have had their turn
                failed = failed or error
        if failed is not None:
            raise failed
        return Swept(*(counts[name] for name in Swept._fields))

    def _deadlines(self, counts: Counter[str]) -> None:
        """Time out what is overdue, page by page; where a sweep reaches its limit the next one goes on."""
        registry = self._registry
        after = registry.sweep_from
        for _ in range(MAX_BATCHES):
            self._seen_at = now = registry.now()
            if self._thread is not None:
                # A commit that is overdue by the time at which it is made is not on the page that is read now.
                registry.committer.wake_at = now
            due = registry.store.due(registry.steady.met_until(), BATCH, *(() if after is None else (after,)))
            carried = registry.carry_all(
                [
                    registry.order(
                        one.execution_id,
                        TIME_OUT,
                        {"kind": one.kind, "late_s": min(MAX_SECONDS, max(0.0, now - one.due_at))},
                        version=one.version,
                    )
                    for one in due
                    if not registry.health.skips(one.execution_id, one.version, now, event=TIME_OUT)
                ]
            )
            counts["timed_out"] += carried
            if len(due) < BATCH:
                after = None
                break
            if after is not None or carried < len(due):  # what is still there is passed over
                after = (due[-1].due_at, due[-1].execution_id)
        registry.sweep_from = after

    def _leases(self, counts: Counter[str]) -> None:
        """Take everything away from lost workers; count as well how many were not known as lost."""
        registry = self._registry
        now = registry.now()
        rows = {row.id: row for row in registry.store.workers()}
        stopped = self._wakes_at is not None and now > self._wakes_at + STOPPED_S
        for worker_id in registry.store.lose(now, spare=stopped):
            if registry.health.skips(worker_id, 0, now, event=LAPSE):
                continue
            try:
                self._lost(worker_id, rows.get(worker_id), now, counts)
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - one worker's error is not another one's
                registry.health.set_aside(worker_id, 0, error, now, event=LAPSE)

    def _lost(self, worker_id: str, row: WorkerRow | None, now: float, counts: Counter[str]) -> None:
        store = self._registry.store
        taken = lapse(self._registry, worker_id)
        counts["lapsed"] += taken
        if row is None or not row.lost:
            counts["workers"] += 1
        elif not taken and row.renewed_at + row.ttl_s + REMEMBER_S < now and not store.owned(worker_id, 1):
            store.worker_remove(worker_id)

    def _orphans(self, counts: Counter[str]) -> None:
        """Repeat the orders to cancel children that nobody has carried out: a process died, or its store failed.

        Each order is tried once in a sweep. One that is being carried out at this moment does no harm here.
        """
        registry = self._registry
        after = registry.orders_from
        for _ in range(MAX_BATCHES):
            orders = registry.store.orders(after, BATCH)
            for order in orders:
                now = registry.now()
                if registry.health.skips(order.execution_id, order.version, now, event=CANCEL_CHILDREN):
                    continue
                try:
                    counts["orphans"] += registry.call_off(order)
                except StoreUnavailable:
                    raise
                except Exception as error:  # noqa: BLE001 - one order's error is not another one's
                    registry.health.set_aside(
                        order.execution_id, order.version, error, now, event=CANCEL_CHILDREN
                    )
            after = orders[-1].execution_id if len(orders) == BATCH else ""
            if not after:
                break
        registry.orders_from = after

    def _prune(self, counts: Counter[str]) -> None:
        if self._retention is not None:
            counts["pruned"] += prune(self._registry, self._retention)

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
        keep_going(self._registry.health.loop(SWEEPER, expected=(FsmError,)), self._turn, self._pause)

    def _turn(self) -> float:
        self._wake.clear()
        self.sweep()
        return self._pause_s()

    def _pause(self, pause_s: float) -> bool:
        """Wait as long as a turn says, or after a failure no longer than the pause between two sweeps."""
        if not self._stopped:
            self._wake.wait(min(pause_s, max(self._every_s, BACKOFF_S)))
        return self._stopped

    def _pause_s(self) -> float:
        """Return how long to sleep, and tell the committer from when on an earlier deadline is news.

        What was overdue when this sweep looked and still is could not be moved: it waits for its next turn like
        everything else, and shortens no pause.
        """
        committer = self._registry.committer
        now = self._registry.now()
        committer.wake_at = now + self._every_s
        # After wake_at is set: a commit in between wakes us up.
        next_due = self._registry.store.next_due(self._seen_at)
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
            self._thread.join(timeout=JOIN_S)
