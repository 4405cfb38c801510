"""The workers and their leases in memory. The store holds its lock during each call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fsm.stores.base import BEAT_KEPT_S, DEPARTED, FUTURE_S, MAX_BEATS, SPARED_MAX, Beat, WorkerRow


class Workers:
    """The registered workers, those that have left, and what processes report of their loops.

    Attributes:
        departed: The workers that were removed, the latest `DEPARTED` of them.
    """

    def __init__(self) -> None:
        self._rows: dict[str, WorkerRow] = {}
        self.departed: dict[str, None] = {}
        self._spared: dict[str, int] = {}
        self._beats: dict[tuple[str, str], Beat] = {}

    def add(self, worker: WorkerRow) -> None:
        """Register a worker."""
        self._rows[worker.id] = worker

    def renew(self, worker_id: str, now: Callable[[], float]) -> bool:
        """Renew a lease."""
        worker = self._rows.get(worker_id)
        if worker is None or worker.lost:
            return False
        self._rows[worker_id] = worker._replace(renewed_at=now())
        self._spared.pop(worker_id, None)
        return True

    def remove(self, worker_id: str) -> None:
        """Forget a worker."""
        self._spared.pop(worker_id, None)
        if worker_id in self._rows:
            self.departed[worker_id] = None  # first: a worker is never neither here nor there
            self._rows.pop(worker_id, None)
            if len(self.departed) > DEPARTED:
                del self.departed[next(iter(self.departed))]

    def left(self, worker_id: str) -> bool:
        """Return whether a worker was registered, and is lost or removed."""
        worker = self._rows.get(worker_id)
        return worker_id in self.departed if worker is None else worker.lost

    def rows(self) -> list[WorkerRow]:
        """Return every registered worker."""
        return sorted(self._rows.values())

    def lose(self, now: float, *, spare: bool) -> list[str]:
        """Mark the workers whose lease ran out, and return all that are lost."""
        for worker in list(self._rows.values()):
            if worker.lost:
                continue
            if worker.renewed_at > now + FUTURE_S:
                self._rows[worker.id] = worker._replace(renewed_at=now)
            elif worker.renewed_at + worker.ttl_s < now:
                self._end(worker, now, spare=spare)
        return sorted(worker.id for worker in self._rows.values() if worker.lost)

    def _end(self, worker: WorkerRow, now: float, *, spare: bool) -> None:
        """End a lease that ran out, or give it another term."""
        spared = self._spared.get(worker.id, 0)
        if spare and spared < SPARED_MAX:
            self._spared[worker.id] = spared + 1
            self._rows[worker.id] = worker._replace(renewed_at=now)
        else:
            self._rows[worker.id] = worker._replace(lost=True)

    def beat(self, beats: Sequence[Beat]) -> None:
        """Keep reports of loops."""
        self._beats |= {(one.process, one.loop): one for one in beats}
        since = max((one.seen_at for one in beats), default=0.0) - BEAT_KEPT_S
        newest = sorted(self._beats.values(), key=lambda one: -one.seen_at)[:MAX_BEATS]
        self._beats = {(one.process, one.loop): one for one in newest if one.seen_at >= since}

    def beats(self) -> list[Beat]:
        """Return the reports of loops that are kept."""
        return [self._beats[key] for key in sorted(self._beats)]
