"""How a registry is: its loops and those of other processes, what is set aside, leases, what is overdue, clocks.

`examine` only reads, and `stuck` decides without committing: asking changes nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fsm.concurrency.supervised import Aside, LoopReport, one_line
from fsm.core.decide import decide
from fsm.core.request import Request
from fsm.errors import Refusal, StoreUnavailable
from fsm.machine.timeouts import MAX_SECONDS
from fsm.registry.pulse import BEAT_EVERY_S
from fsm.registry.registry import Registry
from fsm.stores.base import Beat, Due, WorkerRow
from fsm.tracker.sweeper import SWEEP, TIME_OUT

PAGE = 500
"""Number of records that are read at a time."""
MAX_COUNTED = 10_000
"""Maximum number of overdue executions, and of orders, that are counted; `Overdue.more` says that there are more."""
GONE_S = 3 * BEAT_EVERY_S
"""A process that has written no report for this long, in seconds, is gone, stopped, or cut off from the store."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class LoopHealth(_Record):
    """A loop of this process or of another one.

    Attributes:
        name: The loop's name.
        process: The process, under a name that no other one has.
        worker: The name of the worker that the process is, or host and process id.
        host: The host's name.
        pid: The process id.
        here: Whether it is a loop of this process.
        running: Whether it was being driven when this was said.
        turns: Number of turns that ended without an error.
        failures: Number of turns that failed.
        failing: Number of failures since the last turn that succeeded.
        last_error: The last error, on one line; ``None`` if there was none.
        failed_at: When the last turn failed, in seconds since the epoch.
        succeeded_at: When the last turn succeeded, in seconds since the epoch.
        silent_s: How long ago the last turn succeeded, in seconds on the steady timeline; ``None`` if none has.
        seen_s: How long ago the process said this, in seconds; 0 for this process.
    """

    name: str
    process: str
    worker: str
    host: str
    pid: int
    here: bool
    running: bool
    turns: int
    failures: int
    failing: int
    last_error: str | None
    failed_at: float | None
    succeeded_at: float | None
    silent_s: float | None
    seen_s: float

    @property
    def alive(self) -> bool:
        """Whether it was driven a moment ago."""
        return self.running and self.seen_s <= GONE_S

    @property
    def sweeps(self) -> bool:
        """Whether its turns meet deadlines and take work from lost workers."""
        return SWEEP in self.name


class AsideHealth(_Record):
    """A record that this process does not work on for the time being.

    Attributes:
        execution_id: The record.
        event: What could not be carried out; empty for all of it.
        version: Its version when it failed; a later one is tried at once.
        reason: Why, on one line.
        since_at: When it was first set aside, in seconds since the epoch.
        failures: Number of failures in a row.
        retry_in_s: In how many seconds it is tried again.
    """

    execution_id: str
    event: str
    version: int
    reason: str
    since_at: float
    failures: int
    retry_in_s: float


class WorkerHealth(_Record):
    """A worker and its lease.

    Attributes:
        id: The worker.
        name: What people call it.
        state: ``alive``; ``overdue``: its lease ran out, and no sweeper has said so yet; ``lost``.
        ttl_s: The length of its lease, in seconds.
        overdue_s: How long ago its lease ran out, in seconds; 0 while it runs.
    """

    id: str
    name: str
    state: Literal["alive", "overdue", "lost"]
    ttl_s: float
    overdue_s: float


class Overdue(_Record):
    """Executions whose deadline has passed.

    Attributes:
        count: How many.
        more: Whether there are more than were counted.
        longest_s: How long ago the first of the deadlines passed, in seconds; 0 if none has.
        longest_id: The execution that waits longest.
    """

    count: int
    more: bool
    longest_s: float
    longest_id: str | None


class Stuck(_Record):
    """An overdue execution that this process cannot time out.

    Attributes:
        execution_id: The execution.
        version: Its version.
        overdue_s: How long ago its deadline passed, in seconds.
        reason: Why it cannot, on one line.
    """

    execution_id: str
    version: int
    overdue_s: float
    reason: str


class HealthReport(_Record):
    """How a registry is, as data. ``model_dump(mode="json")`` gives it as JSON.

    Attributes:
        store: Where executions are kept.
        schema_version: The version of the store's layout; 0 where there is none to migrate.
        at: When this was looked at, in seconds since the epoch.
        clock_offset_s: By how many seconds the steady timeline is ahead of the wall clock.
        worker_id: The id under which this process claims executions.
        loops: This process's loops, then those that other processes have reported.
        aside: What this process has set aside.
        workers: The registered workers.
        overdue: Executions whose deadline has passed.
        orders: Number of orders to cancel children that are not carried out.
        queued: Number of commands that wait for this process's committer.
        sweeping: Whether any process sweeps.
    """

    store: str
    schema_version: int
    at: float
    clock_offset_s: float
    worker_id: str
    loops: tuple[LoopHealth, ...]
    aside: tuple[AsideHealth, ...]
    workers: tuple[WorkerHealth, ...]
    overdue: Overdue
    orders: int
    queued: int
    sweeping: bool


def examine(registry: Registry) -> HealthReport:
    """Say how a registry is.

    Raises:
        StoreUnavailable: The store did not answer.
    """
    store = registry.store
    at, now = registry.clock.wall(), registry.now()
    loops = (
        *(_here(registry, one, now) for one in registry.health.loops()),
        *(_elsewhere(one, now) for one in store.beats() if one.process != registry.pulse.process),
    )
    return HealthReport(
        store=store.url,
        schema_version=store.schema_version(),
        at=at,
        clock_offset_s=now - at,
        worker_id=registry.worker_id,
        loops=loops,
        aside=tuple(_aside(one, now) for one in registry.health.aside()),
        workers=tuple(_worker(one, now) for one in store.workers()),
        overdue=_overdue(registry, now),
        orders=_orders(registry),
        queued=registry.committer.waiting,
        sweeping=any(one.sweeps and one.alive for one in loops),
    )


def stuck(registry: Registry) -> Iterator[Stuck]:
    """Yield the overdue executions that this process cannot time out, the longest overdue first.

    Each is decided as the sweeper decides it, and nothing is committed.

    Raises:
        StoreUnavailable: The store did not answer.
    """
    now = registry.now()
    for one in _due(registry, now):
        reason = _why_not(registry, one, now)
        if reason is not None:
            yield Stuck(
                execution_id=one.execution_id,
                version=one.version,
                overdue_s=max(0.0, now - one.due_at),
                reason=reason,
            )


def _why_not(registry: Registry, one: Due, now: float) -> str | None:
    """Return why an execution cannot be timed out here; ``None`` if it can, or has moved on."""
    try:
        snapshot = registry.store.load(one.execution_id)
        if snapshot is None or snapshot.version != one.version:
            return None
        machine, codec = registry.law_of(snapshot.identity.machine)
        late_s = min(MAX_SECONDS, max(0.0, now - one.due_at))
        payload, text = codec.encode(TIME_OUT, {"kind": one.kind, "late_s": late_s})
        request = Request(TIME_OUT, registry.clock.wall(), payload, text, now=now, version=one.version)
        decided = decide(machine, snapshot, request)
    except StoreUnavailable:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return one_line(error)  # a validator that calls sys.exit is a reason like any other
    return decided.detail if isinstance(decided, Refusal) else None


def _due(registry: Registry, now: float) -> Iterator[Due]:
    """Yield what is overdue, up to one more than `MAX_COUNTED`."""
    after: tuple[float, str] | None = None
    for _ in range(MAX_COUNTED // PAGE + 1):
        page = registry.store.due(now, PAGE, after)
        yield from page
        if len(page) < PAGE:
            return
        after = (page[-1].due_at, page[-1].execution_id)


def _overdue(registry: Registry, now: float) -> Overdue:
    found = list(_due(registry, now))
    first = found[0] if found else None
    return Overdue(
        count=min(len(found), MAX_COUNTED),
        more=len(found) > MAX_COUNTED,
        longest_s=max(0.0, now - first.due_at) if first is not None else 0.0,
        longest_id=first.execution_id if first is not None else None,
    )


def _orders(registry: Registry) -> int:
    count, after = 0, ""
    for _ in range(MAX_COUNTED // PAGE):
        page = registry.store.orders(after, PAGE)
        count += len(page)
        if len(page) < PAGE:
            break
        after = page[-1].execution_id
    return count


def _here(registry: Registry, one: LoopReport, now: float) -> LoopHealth:
    host, pid = socket.gethostname(), os.getpid()
    return LoopHealth(
        **one._asdict(),
        process=registry.pulse.process,
        worker=registry.pulse.worker_name,
        host=host,
        pid=pid,
        here=True,
        silent_s=None if one.alive_at is None else max(0.0, now - one.alive_at),
        seen_s=0.0,
    )


def _elsewhere(one: Beat, now: float) -> LoopHealth:
    data = one._asdict()
    return LoopHealth(
        **data,
        name=one.loop,
        here=False,
        silent_s=None if one.alive_at is None else max(0.0, now - one.alive_at),
        seen_s=max(0.0, now - one.seen_at),
    )


def _aside(one: Aside, now: float) -> AsideHealth:
    return AsideHealth(**one._asdict(), retry_in_s=max(0.0, one.retry_at - now))


def _worker(one: WorkerRow, now: float) -> WorkerHealth:
    overdue_s = max(0.0, now - one.renewed_at - one.ttl_s)
    return WorkerHealth(
        id=one.id,
        name=one.name,
        state="lost" if one.lost else "overdue" if overdue_s else "alive",
        ttl_s=one.ttl_s,
        overdue_s=overdue_s,
    )
