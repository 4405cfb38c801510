"""Commits of this process and of others, handed to those who listen for an execution."""

from __future__ import annotations

from typing import Protocol

from fsm.core.records import Snapshot, Step
from fsm.registry.registry import Registry

PAGE = 2_000
"""Number of the journal's rows that are read at a time."""


class Listener(Protocol):
    """What hears of one execution's commits, on any thread (`fsm.engine.connection.Connection`)."""

    id: str
    snapshot: Snapshot

    def committed(self, step: Step) -> None:
        """Hear of a commit of this process."""

    def heard(self, target: str, payload_json: str | None) -> None:
        """Hear where another process's commit led, and what came with it."""

    def news(self, snapshot: Snapshot) -> None:
        """Hear of the record as it is now."""


class Feed:
    """Tells listeners of commits: the committer tells of this process's, the journal of all others."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.listeners: dict[str, Listener] = {}

    def listen(self, listener: Listener) -> None:
        """Begin to tell it. No store is asked here."""
        self.listeners[listener.id] = listener
        self._registry.committer.watchers[listener.id] = listener.committed

    def forget(self, listener: Listener) -> None:
        """Tell it no more."""
        if self.listeners.get(listener.id) is listener:
            del self.listeners[listener.id]
            self._registry.committer.watchers.pop(listener.id, None)

    def read_on(self, after: int | None) -> int:
        """Read what is new in the journal, page by page up to its end, and return where that is.

        Without `after`, each record is read as it is now, which is as good as every row before.
        """
        store = self._registry.store
        if after is None:
            after = store.position()
            for listener in list(self.listeners.values()):
                self._refresh(listener)
        while True:
            rows = store.journal(after, PAGE)
            for row in rows:
                known = self.listeners.get(row.execution_id)
                if known is not None:
                    known.heard(row.target, row.payload_json)
                    if row.version > known.snapshot.version:
                        self._refresh(known)
            if rows:
                after = rows[-1].position
            if len(rows) < PAGE:
                return after

    def _refresh(self, listener: Listener) -> None:
        snapshot = self._registry.store.load(listener.id)
        if snapshot is not None:
            listener.news(snapshot)
