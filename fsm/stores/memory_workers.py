"""The workers and their leases in memory; see `fsm.stores.base.Store`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fsm.concurrency.locks import Lock
from fsm.stores.base import BEAT_KEPT_S, DEPARTED, FUTURE_S, MAX_BEATS, SPARED_MAX, Beat, WorkerRow


class MemoryWorkers:
    """The part of the memory store that keeps workers."""

    def __init__(self) -> None:
        """Begin with nobody."""
        super().__init__()
        self._workers: dict[str, WorkerRow] = {}
        self._departed: dict[str, None] = {}
        self._spared: dict[str, int] = {}
        self._beats: dict[tuple[str, str], Beat] = {}

    def _check_open(self) -> None:
        raise NotImplementedError

    @property
    def _lock(self) -> Lock:
        raise NotImplementedError

    def worker_add(self, worker: WorkerRow) -> None:
        """Register a worker."""
        with self._lock:
            self._check_open()
            self._workers[worker.id] = worker

    def worker_renew(self, worker_id: str, now: Callable[[], float]) -> bool:
        """Renew a lease."""
        with self._lock:
            self._check_open()
            worker = self._workers.get(worker_id)
            if worker is None or worker.lost:
                return False
            self._workers[worker_id] = worker._replace(renewed_at=now())
            self._spared.pop(worker_id, None)
            return True

    def worker_remove(self, worker_id: str) -> None:
        """Forget a worker."""
        with self._lock:
            self._spared.pop(worker_id, None)
            if worker_id in self._workers:
                self._departed[worker_id] = None  # first: a worker is never neither here nor there
                self._workers.pop(worker_id, None)
                if len(self._departed) > DEPARTED:
                    del self._departed[next(iter(self._departed))]

    def _end(self, worker: WorkerRow, now: float, *, spare: bool) -> None:
        """End a lease that ran out, or give it another term."""
        spared = self._spared.get(worker.id, 0)
        if spare and spared < SPARED_MAX:
            self._spared[worker.id] = spared + 1
            self._workers[worker.id] = worker._replace(renewed_at=now)
        else:
            self._workers[worker.id] = worker._replace(lost=True)

    def _left(self, worker_id: str) -> bool:
        """Return whether a worker was registered, and is lost or removed."""
        worker = self._workers.get(worker_id)
        return worker_id in self._departed if worker is None else worker.lost

    def workers(self) -> list[WorkerRow]:
        """Return every registered worker."""
        with self._lock:
            self._check_open()
            return sorted(self._workers.values())

    def beat(self, beats: Sequence[Beat]) -> None:
        """Keep reports of loops."""
        with self._lock:
            self._check_open()
            self._beats |= {(one.process, one.loop): one for one in beats}
            since = max((one.seen_at for one in beats), default=0.0) - BEAT_KEPT_S
            newest = sorted(self._beats.values(), key=lambda one: -one.seen_at)[:MAX_BEATS]
            self._beats = {(one.process, one.loop): one for one in newest if one.seen_at >= since}

    def beats(self) -> list[Beat]:
        """Return the reports of loops that are kept."""
        with self._lock:
            self._check_open()
            return [self._beats[key] for key in sorted(self._beats)]

    def lose(self, now: float, *, spare: bool = False) -> list[str]:
        """Mark the workers whose lease ran out, and return all that are lost."""
        with self._lock:
            self._check_open()
            for worker in list(self._workers.values()):
                if worker.lost:
                    continue
                if worker.renewed_at > now + FUTURE_S:
                    self._workers[worker.id] = worker._replace(renewed_at=now)
                elif worker.renewed_at + worker.ttl_s < now:
                    self._end(worker, now, spare=spare)
            return sorted(worker.id for worker in self._workers.values() if worker.lost)
