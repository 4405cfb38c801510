"""Hears of other processes' commits, where the store tells of them, so that readers of the journal wake up at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from fsm.concurrency.locks import Lock
from fsm.concurrency.supervised import Health, keep_going
from fsm.errors import FsmError
from fsm.stores.base import Store
from fsm.stores.shared import Announcing

LISTEN_S = 0.5
"""How long one turn listens, in seconds; the end of the registry waits for it as long."""
NAME = "ear"
"""The name of the loop that listens."""


class Ear:
    """A thread that listens, from the first reader on."""

    def __init__(self, store: Store, health: Health, wake: Callable[[], None]) -> None:
        """Describe it; nothing is started.

        Args:
            store: The store.
            health: Where the loop is noted.
            wake: Called when another process may have committed.
        """
        self._store = store
        self._health = health
        self._wake = wake
        self._over = threading.Event()
        self.after_fork()

    def after_fork(self) -> None:
        """Begin without a thread, as in a forked child."""
        self._thread: threading.Thread | None = None
        self._starting = Lock("the start of a thread")

    def start(self) -> None:
        """Listen from now on, if the store tells anything."""
        if self._thread is not None or self._over.is_set() or not isinstance(self._store, Announcing):
            return
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(
                    target=self._listen, args=(self._store,), name="fsm-ear", daemon=True
                )
                thread.start()
                self._thread = thread

    def _listen(self, store: Announcing) -> None:
        def turn() -> float:
            if store.heard(LISTEN_S):
                self._wake()
            return 0.0

        keep_going(self._health.loop(NAME, expected=(FsmError,)), turn, self._over.wait)

    def stop(self) -> None:
        """Stop listening."""
        self._over.set()
        thread = self._thread
        if (
            thread is not None
            and thread is not threading.current_thread()
            and isinstance(self._store, Announcing)
        ):
            with suppress(FsmError):  # otherwise its turn is over in a moment
                self._store.hush()
            thread.join(timeout=2 * LISTEN_S)
