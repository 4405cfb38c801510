"""Tools of the hostile tests: locks that are held elsewhere, exceptions injected at every line, forks that may hang."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def held(lock: Any) -> Iterator[None]:
    """Hold a lock on another thread for the length of a block."""
    taken, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            let_go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(60)
    try:
        yield
    finally:
        let_go.set()
        thread.join(60)
