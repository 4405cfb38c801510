"""What is left to do when callers have been told: it is done in one thread, so that no caller waits for it.

The committer's thread neither logs nor carries out effects itself. A caller may wait for it while it holds a lock of
the logging module or of its own, which a log handler would then wait for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from fsm.concurrency.forks import anew_after_fork
from fsm.concurrency.locks import Lock
from fsm.concurrency.supervised import Loop, keep_going

MAX_JOBS = 10_000
"""Maximum number of jobs that wait; a further one is dropped and counted. An order to cancel children is kept by the
store as well, where a sweeper finds it."""
CLOSE_S = 30.0
"""How long `close` waits for the jobs under way, in seconds."""


class Aftermath:
    """A queue of jobs and the one thread that does them.

    Attributes:
        dropped: Number of jobs that were dropped, because of the limit or because the thread could not be started.
    """

    def __init__(self, loop: Loop) -> None:
        """Begin without a thread; the first job starts it.

        Args:
            loop: What notes successes and failures.
        """
        self._loop = loop
        self.dropped = 0
        self._starting = Lock("the start of a thread")
        self._closed = False
        self.after_fork()
        anew_after_fork(self)

    def after_fork(self) -> None:
        """Begin without a thread, as in a forked child; its parent does the parent's jobs."""
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def later(self, job: Callable[[], object]) -> None:
        """Do something soon, on another thread. It never blocks and never raises; what cannot be queued is dropped."""
        if self._closed or self._jobs.qsize() >= MAX_JOBS:
            self.dropped += 1
            return
        self._jobs.put(job)
        if self._thread is None and not self._starting.mine():  # otherwise the interrupted call starts it
            try:
                self._starting.run(self._start)
            except RuntimeError:
                self.dropped += 1  # no thread can be had; the job waits for the next one that can

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name="fsm-aftermath", daemon=True)
            thread.start()
            self._thread = thread

    def _serve(self) -> None:
        try:
            keep_going(self._loop, self._turn, self._over)
        finally:
            self._thread = None  # something worse than an error ended it: the next job starts another one

    def _turn(self) -> float:
        job = self._jobs.get()
        if job is not None:
            job()
        return 0.0

    def _over(self, pause_s: float) -> bool:
        """Return whether it is closed and all is done; a job that failed delays no other one."""
        del pause_s
        return self._closed and self._jobs.empty()

    def close(self, *, wait: bool = True) -> None:
        """Do what is queued, then stop the thread.

        Args:
            wait: Return when it has stopped.
        """
        self._closed = True
        thread = self._thread
        self._jobs.put(None)
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join(timeout=CLOSE_S)
