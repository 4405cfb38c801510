"""The connections of one process to one database: a pool, bounded waiting, and none across a fork."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg.types.string import TextLoader
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from fsm.concurrency.forks import anew_after_fork
from fsm.concurrency.locks import Lock, inside
from fsm.errors import FsmError, StoreUnavailable
from fsm.stores.postgres.explain import explain, kind_of
from fsm.stores.postgres.place import Place

logger = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")

MAX_WAITING = 1_000
"""Maximum number of threads that wait for a connection; a further one is turned away."""
FIRST_WAIT_S = 0.002
LONGEST_WAIT_S = 0.25
"""The pauses between the attempts of one call, drawn at random up to this, in seconds."""
CLOSE_S = 5.0
"""How long `Connections.close` waits for the pool's threads, in seconds."""

_inherited: list[object] = []
"""The pools of a forked child's parent: to close or collect one here would end the parent's sessions."""


def prepare(connection: Connection) -> None:
    """Set up a connection: JSON is text here, and is decoded where it is looked at."""
    connection.adapters.register_loader("json", TextLoader)


class Connections:
    """Lends connections to calls, and repeats a call whose connection was lost or that met a race."""

    def __init__(self, place: Place) -> None:
        """Describe them; the first call connects."""
        self.place = place
        self.closed = False
        self.troubled = False
        """Whether the database could not be reached for a while; set here, and cleared by `Upkeep.lose`."""
        self._opening = Lock("a pool that is opened")
        self._mine = threading.local()
        self._pool: ConnectionPool[Connection] | None = None
        anew_after_fork(self)

    def after_fork(self) -> None:
        """Begin with a pool of its own in a forked child."""
        _inherited.append(self._pool)
        self._pool = None
        self._mine = threading.local()

    def run(
        self,
        work: Callable[[Connection], T],
        *,
        limit_s: float | None = None,
        lost: Callable[[], None] | None = None,
    ) -> T:
        """Let `work` use a connection; it is repeated while that may help, until the place's limit.

        Args:
            work: Asks one statement, which is a transaction of its own and may be repeated.
            limit_s: How long to go on, in seconds; defaults to the place's `wait_s`.
            lost: Called when a connection was lost in the middle: the statement may have been committed.

        Raises:
            StoreUnavailable: The database did not answer in time. `committed` is ``None`` if `work` may have been
                committed.
            Reentered: A handler interrupted this thread in the middle of a call.
            psycopg.Error: The statement was refused, by its law or for its values.
        """
        lock: Lock | None = getattr(self._mine, "lock", None)
        if lock is None:
            lock = self._mine.lock = Lock("a call of the store")
        return lock.run(self._run, work, self.place.wait_s if limit_s is None else limit_s, lost)

    def _run(self, work: Callable[[Connection], T], limit_s: float, lost: Callable[[], None] | None) -> T:
        until = time.monotonic() + limit_s
        pause_s = FIRST_WAIT_S
        committed: bool | None = False
        while True:
            try:
                return self._once(work, until)
            except (psycopg.Error, UnicodeError, OverflowError) as error:
                kind = kind_of(error)
                if kind in {"law", "question"}:
                    raise
                in_pool = isinstance(error, (PoolTimeout, TooManyRequests, PoolClosed))
                if kind == "gone" and not in_pool:
                    committed = None
                    if lost is not None:
                        lost()
                if kind == "other" or in_pool or time.monotonic() + pause_s > until:
                    raise self._failed(error, committed) from error
                logger.debug("%s: tried again after %s", self.place.shown, type(error).__name__)
            time.sleep(random.uniform(0, pause_s))  # noqa: S311 - jitter, not a secret
            pause_s = min(2 * pause_s, LONGEST_WAIT_S)

    def _failed(self, error: Exception, committed: bool | None) -> FsmError:  # noqa: FBT001 - as in `explain`
        if self.closed:
            return StoreUnavailable("the store is closed: configure() a new one")
        self.troubled = True
        return explain(error, self.place.shown, committed=committed)

    def _once(self, work: Callable[[Connection], T], until: float) -> T:
        pool = self._pool or self._opened()
        connection = pool.getconn(timeout=max(FIRST_WAIT_S, until - time.monotonic()))
        try:
            return work(connection)
        except psycopg.Error as error:
            # A session that was told that its server ends, or became a standby, is of no use any more.
            if kind_of(error) in {"gone", "again"} and getattr(error, "sqlstate", None) not in {
                "40001",
                "40P01",
            }:
                connection.close()
            raise
        finally:
            pool.putconn(connection)

    def _opened(self) -> ConnectionPool[Connection]:
        if self.closed:
            raise StoreUnavailable("the store is closed: configure() a new one")
        return self._opening.run(self._open)

    def _open(self) -> ConnectionPool[Connection]:
        if self._pool is None:
            pool = ConnectionPool(
                self.place.conninfo,
                connection_class=Connection,
                kwargs={"autocommit": True},
                configure=prepare,
                min_size=1,
                max_size=self.place.pool_max,
                max_waiting=MAX_WAITING,
                reconnect_timeout=self.place.wait_s,
                num_workers=1,
                open=False,
            )
            pool.open()
            self._pool = pool
        return self._pool

    def apart(self) -> Connection:
        """Return a connection of the caller's own, outside of the pool."""
        if self.closed:
            raise StoreUnavailable("the store is closed: configure() a new one")
        connection = Connection.connect(self.place.conninfo, autocommit=True)
        prepare(connection)
        return connection

    def close(self) -> None:
        """Close the pool; calls under way end with the statement that they are at."""
        self.closed = True
        pool = self._pool
        if pool is not None:
            # A handler that interrupts a call cannot wait for the pool's threads.
            self._pool = None
            pool.close(timeout=0.0 if inside() else CLOSE_S)
