"""The face of a scope for asyncio: the same names, over the same committer; nothing here blocks the event loop."""

from __future__ import annotations

from fsm.tracker.scope import Scope
from fsm.tracker.waiting import awaited, iterated


class AsyncScope:
    """A scope's face for asyncio. Each method is that of `Scope`, awaited (tests/tracker/test_aio.py)."""

    def __init__(self, scope: Scope) -> None:
        """Wrap a scope."""
        self._scope = scope
        self._loop = scope._on_loop()

    def __repr__(self) -> str:
        return f"{self._scope!r}.aio"

    fire = awaited(Scope.fire)
    get = awaited(Scope.get)
    history = awaited(Scope.history)
    durations = awaited(Scope.durations)
    allowed = awaited(Scope.allowed)
    machine_of = awaited(Scope.machine_of)
    find = awaited(Scope.find)
    counts = awaited(Scope.counts)
    subscribe = iterated(Scope.subscribe)
