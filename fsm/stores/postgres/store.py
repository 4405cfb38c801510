"""Executions in PostgreSQL, for any number of machines.

A call is one statement, and a statement is one transaction. What must be decided between reading and writing is
decided in the database (``0003_functions.sql``), so that a batch costs one round trip; what must hold for every writer,
is its law (``0002_law.sql``).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import psycopg

from fsm.concurrency.forks import anew_after_fork
from fsm.core.records import MachineRecord, Receipt, Snapshot, Step, receipt_of
from fsm.core.timeline import Era, Known, Mark
from fsm.errors import StoreUnavailable
from fsm.stores.base import (
    BEAT_KEPT_S,
    FUTURE_S,
    MAX_BEATS,
    MAX_ERAS,
    SPARED_MAX,
    Barred,
    Beat,
    Conflict,
    Damage,
    Due,
    Order,
    Query,
    WorkerRow,
)
from fsm.stores.breakers import BreakerEntry, BreakerRow
from fsm.stores.postgres import rows as shapes
from fsm.stores.postgres.connections import Connection, Connections
from fsm.stores.postgres.explain import LEASE, PARENT, explain, kind_of, one_line
from fsm.stores.postgres.inspection import QUESTIONS
from fsm.stores.postgres.place import parse_url
from fsm.stores.postgres.schema import bring_up, named
from fsm.stores.postgres.settled import Sample, Settled

logger = logging.getLogger(__name__)
T = TypeVar("T")

NOTIFY_EVERY_S = 0.02
"""A process tells the others of its commits this often at most, in seconds, and once a batch at most. What is left out
is found by polling; each notification costs every listener a wake-up."""
SWAP_LIMIT_S = 2.0
"""How long a breaker waits for the database, in seconds; then it goes on alone rather than stop its callers."""
HUSH_S = 0.5
"""How long the end of a process waits to wake the thread that listens, in seconds."""
_MOST = 2**63 - 1
_FILTERS = ("thread_id", "parent_id", "user_id", "agent")
_ENTRIES = f"SELECT {shapes.RECEIPT} FROM fsm.journal"
_PLACE = """
    SELECT coalesce(
        (SELECT born FROM fsm.identities WHERE id = %(id)s),
        (SELECT born FROM fsm.tombstones WHERE id = %(id)s),
        (SELECT born FROM fsm.identities WHERE id < %(id)s ORDER BY id DESC LIMIT 1),
        0
    )
"""
# One look into the index of the states for each state that there is: it is not walked as a whole to find them.
_COUNTS = """
    WITH RECURSIVE known (state) AS (
        (SELECT state FROM fsm.executions ORDER BY state LIMIT 1)
        UNION ALL
        SELECT (SELECT e.state FROM fsm.executions AS e WHERE e.state > known.state ORDER BY e.state LIMIT 1)
        FROM known WHERE known.state IS NOT NULL
    )
    SELECT state, (SELECT count(*) FROM fsm.executions AS e WHERE e.state = known.state) FROM known
    WHERE state IS NOT NULL
"""
_SWAP = """
    UPDATE fsm.breakers SET state = %s, version = %s, generation = %s, changed_at = %s, since = %s, until = %s,
        openings = %s, probes = %s, successes = %s, abandoned = %s, event = %s, at = %s, actor = %s, reason = %s,
        machine = m.id
    FROM fsm.machines AS m WHERE m.content_hash = %s AND key = %s AND version = %s
"""
_BEGIN = """
    INSERT INTO fsm.breakers (state, version, generation, changed_at, since, until, openings, probes, successes,
        abandoned, event, at, actor, reason, machine, key)
    SELECT %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, m.id, %s
    FROM fsm.machines AS m WHERE m.content_hash = %s ON CONFLICT (key) DO NOTHING
"""
_MARK = """
    INSERT INTO fsm.mark (steady_at, wall_at, monotonic_s) VALUES (%s, %s, %s) ON CONFLICT (one) DO UPDATE SET
        steady_at = excluded.steady_at, wall_at = excluded.wall_at, monotonic_s = excluded.monotonic_s
    WHERE excluded.steady_at > mark.steady_at
"""


class PostgresStore:
    """A registry in one schema of a PostgreSQL database.

    A receipt is returned when the server has committed it, as its `synchronous_commit` promises.
    """

    instant = False

    def __init__(self, url: str) -> None:
        """Connect, and create the schema or bring it up to date.

        Args:
            url: ``postgresql://USER@HOST/DATABASE``; see `fsm.stores.postgres.place.parse_url`.

        Raises:
            NotAStore: The URL, the server or the schema is none of ours.
            StoreTooNew: A newer version of the library wrote the schema.
            StoreUnavailable: The database cannot be reached, or the role may not create the schema.
        """
        self._place = parse_url(url)
        self.url = self._place.shown
        bring_up(self._place)
        self._connections = Connections(self._place)
        self._settled = Settled(self._sample)
        self._machines: set[str] = set()
        self._told_s = float("-inf")
        self._channel = f"fsm_{self._place.schema}"
        self._sql: dict[str, bytes] = {}
        self._ear: Connection | None = None
        self._ears: list[
            Connection | None
        ] = []  # of a forked child's parent: to close one would end its session
        anew_after_fork(self)

    def after_fork(self) -> None:
        """Begin without the parent's connection for listening in a forked child."""
        self._ears.append(self._ear)
        self._ear = None

    # --- calls ------------------------------------------------------------------------------------------------

    def _named(self, sql: str) -> bytes:
        text = self._sql.get(sql)
        if text is None:
            text = self._sql[sql] = named(sql, self._place.schema).encode()
        return text

    def _rows(
        self, sql: str, values: Sequence[Any] | dict[str, Any] = (), *, limit_s: float | None = None
    ) -> list[tuple[Any, ...]]:
        """Ask a question; one with a text in it that no database can hold has no answer."""
        text = self._named(sql)
        try:
            return self._connections.run(
                lambda connection: connection.execute(text, values).fetchall(), limit_s=limit_s
            )
        except (psycopg.Error, UnicodeError, OverflowError) as error:
            if (
                isinstance(error, (UnicodeError, psycopg.DataError))
                and getattr(error, "sqlstate", None) is None
            ):
                return []
            self._refused(error)

    def _do(
        self,
        sql: str,
        values: Sequence[Any] = (),
        *,
        limit_s: float | None = None,
        lost: Callable[[], None] | None = None,
    ) -> int:
        """Carry out one statement, which may be repeated; return the number of rows that it wrote."""
        text = self._named(sql)
        try:
            return self._connections.run(
                lambda connection: connection.execute(text, values).rowcount, limit_s=limit_s, lost=lost
            )
        except (psycopg.Error, UnicodeError, OverflowError) as error:
            self._refused(error)

    def _refused(self, error: Exception) -> NoReturn:
        raise explain(error, self.url) from error

    def identity(self) -> str:
        """Return what tells this store from another one, for people."""
        return f"{self.url}, schema {self._place.schema}"

    def close(self) -> None:
        """Close every connection."""
        self._connections.close()
        self._hang_up()

    def heard(self, timeout_s: float) -> bool:
        """Wait until another process says that it has committed."""
        try:
            if self._ear is None or self._connections.closed:
                self._ear = self._connections.apart()
                self._ear.execute(f'LISTEN "{self._channel}"'.encode())
                return True  # what was committed before is not told
            return any(True for _ in self._ear.notifies(timeout=timeout_s, stop_after=1))
        except psycopg.Error as error:
            self._hang_up()
            self._refused(error)

    def hush(self) -> None:
        """Let `heard` return at once."""
        self._rows("SELECT pg_notify(%s, '')", (self._channel,), limit_s=HUSH_S)

    def _hang_up(self) -> None:
        ear, self._ear = self._ear, None
        if ear is not None:
            ear.close()

    # --- machines ---------------------------------------------------------------------------------------------

    def register(self, record: MachineRecord) -> None:
        """Write a machine's rows as law, unless they are there."""
        if record.content_hash in self._machines and not self._connections.closed:
            return
        known = self._rows("SELECT FROM fsm.machines WHERE content_hash = %s", (record.content_hash,))
        if not known:
            values = (
                record.content_hash, record.name, record.document, json.dumps(record.states), json.dumps(record.rows),
            )  # fmt: skip
            self._rows("SELECT fsm.register(%s, %s, %s, %s, %s)", values)
        self._machines.add(record.content_hash)

    def machines(self) -> dict[str, str]:
        """Return every registered machine."""
        return dict(self._rows("SELECT content_hash, document FROM fsm.machines WHERE sealed"))

    def machine_count(self) -> int:
        """Return how many machines are registered."""
        count: int = self._rows("SELECT count(*) FROM fsm.machines WHERE sealed")[0][0]
        return count

    # --- write ------------------------------------------------------------------------------------------------

    def append(self, steps: Sequence[Step]) -> list[Receipt | Conflict | Barred]:
        """Commit a batch: one statement, one transaction.

        A batch in which the law refuses a step, which takes a defect or another program, is taken step by step.
        """
        if not steps:
            return []
        try:
            return self._append(steps)
        except (psycopg.Error, UnicodeError, ValueError, OverflowError) as error:
            if kind_of(error) not in {"law", "question"}:
                self._refused(error)
            if len(steps) == 1:
                return [_barred(steps[0].after, error)]
        outcomes: list[Receipt | Conflict | Barred] = []
        lost: dict[str, Conflict] = {}
        for step in steps:
            outcome = lost.get(step.after.identity.id) or self._alone(step, outcomes)
            if isinstance(outcome, Conflict):
                lost[outcome.execution_id] = outcome
            outcomes.append(outcome)
        return outcomes

    def _alone(self, step: Step, before: Sequence[object]) -> Receipt | Conflict | Barred:
        try:
            return self.append([step])[0]
        except StoreUnavailable as error:
            if before:
                error.committed = None  # those before it were
            raise

    def _append(self, steps: Sequence[Step]) -> list[Receipt | Conflict | Barred]:
        batch = shapes.sent(steps)
        statement = self._named("SELECT place, why, met, who FROM fsm.append(%s)")
        doubtful: list[bool] = []

        def call(connection: Connection) -> list[tuple[Any, ...]]:
            rows = connection.execute(statement, (batch,)).fetchall()
            self._tell(connection)
            return rows

        rows = self._connections.run(call, lost=lambda: doubtful.append(True))
        outcomes: list[Receipt | Conflict | Barred] = []
        for step, (place, why, met, who) in zip(steps, rows, strict=True):
            if place is not None:
                outcomes.append(receipt_of(step, place))
            elif why == "conflict":
                outcomes.append(Conflict(step.after.identity.id, met))
            else:
                outcomes.append(Barred(step.after.identity.id, why, who))
        return self._resolved(steps, outcomes) if doubtful else outcomes

    def _resolved(
        self, steps: Sequence[Step], outcomes: list[Receipt | Conflict | Barred]
    ) -> list[Receipt | Conflict | Barred]:
        """Return the outcome of the first time for a batch that was sent twice.

        A connection was lost before the answer came, and the batch was sent again. If the first one was committed,
        the second one met its own steps: each of those is in the journal, at its version, exactly as it was sent.
        """
        unsure = [one.execution_id for one in outcomes if not isinstance(one, Receipt)]
        if not unsure:
            return outcomes
        rows = self._rows(
            f"{_ENTRIES} WHERE (execution_id, version) IN (SELECT * FROM unnest(%s::text[], %s::bigint[]))",
            ([one.after.identity.id for one in steps], [one.after.version for one in steps]),
        )
        found = {(row[1], row[2]): shapes.receipt(row) for row in rows}
        for index, (step, outcome) in enumerate(zip(steps, outcomes, strict=True)):
            mine = found.get((step.after.identity.id, step.after.version))
            if (
                not isinstance(outcome, Receipt)
                and mine is not None
                and mine == receipt_of(step, mine.position)
            ):
                outcomes[index] = mine
        return outcomes

    def _tell(self, connection: Connection) -> None:
        """Tell other processes of a commit; they poll as well, so that an error here is none of the commit."""
        now_s = time.monotonic()
        if now_s >= self._told_s + NOTIFY_EVERY_S:
            self._told_s = now_s
            # After the commit: a NOTIFY inside would make commits of all sessions wait for each other.
            with suppress(psycopg.Error):
                connection.execute("SELECT pg_notify(%s, '')", (self._channel,))

    # --- read -------------------------------------------------------------------------------------------------

    def load(self, execution_id: str) -> Snapshot | None:
        """Return an execution's record."""
        rows = self._rows(f"SELECT {shapes.SNAPSHOT} FROM {shapes.TABLES} WHERE e.id = %s", (execution_id,))
        return shapes.snapshot(rows[0]) if rows else None

    def keyed(self, execution_id: str, key: str) -> Receipt | None:
        """Return the receipt of an idempotency key."""
        rows = self._rows(f"{_ENTRIES} WHERE execution_id = %s AND key = %s", (execution_id, key))
        return shapes.receipt(rows[0]) if rows else None

    def history(self, execution_id: str) -> list[Receipt]:
        """Return an execution's journal."""
        rows = self._rows(f"{_ENTRIES} WHERE execution_id = %s ORDER BY version", (execution_id,))
        receipts = [shapes.receipt(row) for row in rows]
        shapes.chained(execution_id, receipts)
        return receipts

    def journal(
        self, after: int, limit: int, execution_id: str | None = None, user_id: str | None = None
    ) -> list[Receipt]:
        """Return the registry's journal after a position, as far as it is settled."""
        where = ["position > %s"]
        values: list[Any] = [_whole(after)]
        if execution_id is not None:
            # The rows of one execution are committed in the order of their positions.
            where, values = [*where, "execution_id = %s"], [*values, execution_id]
            order = "version"
        else:
            where, values = [*where, "position <= %s"], [*values, self._settled.reach()]
            order = "position"
        if user_id is not None:
            where.append(
                "EXISTS (SELECT FROM fsm.identities AS i WHERE i.id = execution_id AND i.user_id = %s)"
            )
            values.append(user_id)
        sql = f"{_ENTRIES} WHERE {' AND '.join(where)} ORDER BY {order} LIMIT %s"
        return [shapes.receipt(row) for row in self._rows(sql, (*values, _limit(limit)))]

    def position(self) -> int:
        """Return the position up to which the journal is settled; what is under way comes after it."""
        return self._settled.reach()

    def _sample(self) -> Sample:
        [(last, writers)] = self._rows("SELECT last, writers FROM fsm.sample()")
        return Sample(last, frozenset(writers or ()))

    def find(self, query: Query) -> list[Snapshot]:
        """Return the executions that fit, in the order of their births.

        A page that holds births which are not settled is read again when they are: one that was under way beside
        them may stand before them.
        """
        if query.states is not None and not query.states:
            self._rows("SELECT 1")
            return []
        where: list[str] = []
        values: list[Any] = []
        for name in _FILTERS:
            value = getattr(query, name)
            if value is not None:
                where, values = [*where, f"i.{name} = %s"], [*values, value]
        # The order is that of the index which the narrowest filter has; without one the states' index is walked.
        born = "e.born" if query.states is not None and not where else "i.born"
        if query.after is not None:
            place = self._rows(_PLACE, {"id": query.after})
            where, values = [*where, f"{born} > %s"], [*values, place[0][0] if place else 0]
        known = self._settled.known
        rows = self._page(query, born, where, values)
        if rows and rows[-1][-1] > known:
            self._settled.reach(rows[-1][-1])
            rows = self._page(query, born, where, values)
        return [shapes.snapshot(row[:-1]) for row in rows]

    def _page(self, query: Query, born: str, where: list[str], values: list[Any]) -> list[tuple[Any, ...]]:
        select = f"SELECT {shapes.SNAPSHOT}, {born} AS place FROM {shapes.TABLES}"
        limit = _limit(query.limit)
        states = sorted(query.states or ())
        if born == "e.born":
            # One sorted stretch of the index for each state, then merged.
            inner = f"({select} WHERE {' AND '.join([*where, 'e.state = %s'])} ORDER BY {born} LIMIT %s)"
            sql = (
                f"SELECT * FROM ({' UNION ALL '.join([inner] * len(states))}) AS page ORDER BY place LIMIT %s"
            )
            return self._rows(sql, (*(one for state in states for one in (*values, state, limit)), limit))
        if states:
            where, values = [*where, "e.state = ANY (%s)"], [*values, states]
        condition = f" WHERE {' AND '.join(where)}" if where else ""
        return self._rows(f"{select}{condition} ORDER BY {born} LIMIT %s", (*values, limit))

    def born(self, user_id: str, key: str) -> str | None:
        """Return the execution that was created with a key."""
        rows = self._rows(
            "SELECT id FROM fsm.identities WHERE user_id = %s AND born_key = %s", (user_id, key)
        )
        return rows[0][0] if rows else None

    def counts(self, user_id: str | None = None) -> dict[str, int]:
        """Return how many executions there are by state."""
        if user_id is None:
            return dict(self._rows(_COUNTS))
        sql = f"SELECT e.state, count(*) FROM {shapes.TABLES} WHERE i.user_id = %s GROUP BY e.state"
        return dict(self._rows(sql, (user_id,)))

    def schema_version(self) -> int:
        """Return the version that the migrations have brought the schema to."""
        version: int = self._rows("SELECT version FROM fsm.layout")[0][0]
        return version

    # --- orders -----------------------------------------------------------------------------------------------

    def orders(self, after: str, limit: int) -> list[Order]:
        """Return orders that are not known to be carried out."""
        sql = (
            "SELECT execution_id, version, event FROM fsm.orders WHERE execution_id > %s "
            "ORDER BY execution_id LIMIT %s"
        )
        return [Order._make(row) for row in self._rows(sql, (after, _limit(limit)))]

    def carried(self, order: Order) -> None:
        """Take note that an order is carried out."""
        self._do("DELETE FROM fsm.orders WHERE execution_id = %s AND version = %s AND event = %s", order)

    # --- time -------------------------------------------------------------------------------------------------

    def clock(self) -> float:
        """Return the instant of the database's clock, which decides for all machines."""
        instant: float = self._rows("SELECT extract(epoch FROM clock_timestamp())::float8")[0][0]
        return instant

    def timeline(self, era: str) -> Known:
        """Return what is known of the steady timeline."""
        rows = self._rows(
            "SELECT offset_s, held_at, begun_s, lag_s, drift_s, even_s FROM fsm.eras WHERE era = %s", (era,)
        )
        if rows:
            return Known(Era._make(rows[0]), None, None)
        marks = [
            Mark._make(row) for row in self._rows("SELECT steady_at, wall_at, monotonic_s FROM fsm.mark")
        ]
        last = (
            "SELECT since_at, entered_at FROM fsm.executions WHERE since_at > 0 AND id = "
            "(SELECT execution_id FROM fsm.journal ORDER BY position DESC LIMIT 1)"
        )
        marks += [Mark(*row) for row in self._rows(last)]
        # A process that is an era of its own needs the monotonic clock's reading, which commits do not tell.
        mark = max(marks[:1] if not era else marks, key=lambda one: one.steady_at, default=None)
        instants = [one.steady_at for one in marks]
        instants += [row[0] for row in self._rows("SELECT renewed_at FROM fsm.workers")]
        return Known(None, mark, max(instants, default=None))

    def timeline_set(self, era: str, before: Era | None, after: Era) -> Era:
        """Write an era's row, if it is as expected."""
        is_as = None if before is None else json.dumps(before)
        rows = self._rows("SELECT fsm.settle(%s, %s, %s, %s)", (era, is_as, json.dumps(after), MAX_ERAS))
        return Era._make(json.loads(rows[0][0]))

    def timeline_mark(self, mark: Mark) -> None:
        """Keep a mark."""
        self._do(_MARK, mark)

    def due(self, now: float, limit: int, after: tuple[float, str] | None = None) -> list[Due]:
        """Return executions whose deadline has passed."""
        place, values = ("", ()) if after is None else (" AND (due_at, id) > (%s, %s)", after)
        sql = (
            f"SELECT id, version, due_at, due_kind FROM fsm.executions WHERE due_at <= %s{place} "
            "ORDER BY due_at, id LIMIT %s"
        )
        return [Due._make(row) for row in self._rows(sql, (now, *values, _limit(limit)))]

    def next_due(self, after: float = float("-inf")) -> float | None:
        """Return the nearest deadline after an instant."""
        due_at: float | None = self._rows(
            "SELECT min(due_at) FROM fsm.executions WHERE due_at > %s", (after,)
        )[0][0]
        return due_at

    # --- workers ----------------------------------------------------------------------------------------------

    def worker_add(self, worker: WorkerRow) -> None:
        """Register a worker."""
        sql = (
            "INSERT INTO fsm.workers (id, name, ttl_s, started_at, renewed_at, lost) VALUES (%s, %s, %s, %s, %s, %s) "
            "ON CONFLICT (id) DO NOTHING"
        )
        self._do(sql, worker)

    def worker_renew(self, worker_id: str, now: Callable[[], float]) -> bool:
        """Renew a lease; its time is taken when a connection is there."""
        sql = self._named("UPDATE fsm.workers SET renewed_at = %s, spared = 0 WHERE id = %s AND NOT lost")
        try:
            return self._connections.run(lambda one: one.execute(sql, (now(), worker_id)).rowcount) == 1
        except psycopg.Error as error:
            self._refused(error)

    def worker_remove(self, worker_id: str) -> None:
        """Forget a worker."""
        self._do("DELETE FROM fsm.workers WHERE id = %s", (worker_id,))

    def workers(self) -> list[WorkerRow]:
        """Return every registered worker."""
        sql = "SELECT id, name, ttl_s, started_at, renewed_at, lost FROM fsm.workers ORDER BY id"
        return [WorkerRow._make(row) for row in self._rows(sql)]

    def lose(self, now: float, *, spare: bool = False) -> list[str]:
        """Mark the workers whose lease ran out, and return all that are lost.

        Renewals do not wait for each other here. What keeps workers from renewing is a database that is down or cut
        off, and this process then could not reach it either.
        """
        spare = spare or self._connections.troubled
        rows = self._rows("SELECT fsm.lose(%s, %s, %s, %s)", (now, spare, SPARED_MAX, FUTURE_S))
        self._connections.troubled = False
        return [row[0] for row in rows]

    def owned(self, worker_id: str, limit: int, after: str = "") -> list[tuple[str, int]]:
        """Return what a worker owns and has not ended."""
        sql = "SELECT id, version FROM fsm.executions WHERE owner = %s AND NOT ended AND id > %s ORDER BY id LIMIT %s"
        return [(row[0], row[1]) for row in self._rows(sql, (worker_id, after, _limit(limit)))]

    # --- what processes say of themselves -------------------------------------------------------------------------

    def beat(self, beats: Sequence[Beat]) -> None:
        """Keep reports of loops."""
        reports = json.dumps([one._asdict() for one in beats])
        self._rows("SELECT fsm.beat(%s, %s, %s)", (reports, BEAT_KEPT_S, MAX_BEATS))

    def beats(self) -> list[Beat]:
        """Return the reports of loops that are kept."""
        sql = f"SELECT {', '.join(Beat._fields)} FROM fsm.beats ORDER BY process, loop"
        return [Beat._make(row) for row in self._rows(sql)]

    # --- retention --------------------------------------------------------------------------------------------

    def ended(self, before_at: float, limit: int) -> list[str]:
        """Return executions that ended before an instant."""
        sql = "SELECT id FROM fsm.executions WHERE ended AND since_at < %s ORDER BY since_at, id LIMIT %s"
        return [row[0] for row in self._rows(sql, (before_at, _limit(limit)))]

    def ended_count(self) -> int:
        """Return how many ended executions are kept."""
        count: int = self._rows("SELECT count(*) FROM fsm.executions WHERE ended")[0][0]
        return count

    def forget(self, execution_ids: Sequence[str], keep: int = 0) -> int:
        """Delete ended executions with their journals."""
        if not execution_ids:
            return 0
        done: int = self._rows("SELECT fsm.forget(%s, %s)", (list(execution_ids), keep))[0][0]
        return done

    # --- breakers ---------------------------------------------------------------------------------------------

    def breaker_load(self, key: str) -> BreakerRow | None:
        """Return a breaker's row."""
        rows = self._rows(
            f"SELECT {shapes.BREAKER} FROM fsm.breakers WHERE key = %s", (key,), limit_s=SWAP_LIMIT_S
        )
        return shapes.breaker(rows[0]) if rows else None

    def breaker_swap(
        self, machine: str, expected_version: int, row: BreakerRow, entry: BreakerEntry | None
    ) -> bool:
        """Write a row if no other writer was faster."""
        probes = json.dumps(row.probes) if row.probes else None
        event, by, why = (None, None, None) if entry is None else (entry.event, entry.by, entry.why)
        at = row.changed_at if entry is None else entry.at
        values = (*row[1:8], probes, row.successes, row.abandoned, event, at, by, why)
        doubtful: list[bool] = []
        sql, more = (
            (_SWAP, (machine, row.key, expected_version))
            if expected_version
            else (_BEGIN, (row.key, machine))
        )
        written = self._do(sql, (*values, *more), limit_s=SWAP_LIMIT_S, lost=lambda: doubtful.append(True))
        # One that was sent twice may have met its own row.
        return written == 1 or bool(doubtful and self.breaker_load(row.key) == row)

    def breaker_list(self) -> list[BreakerRow]:
        """Return every row, by key."""
        return [
            shapes.breaker(row)
            for row in self._rows(f"SELECT {shapes.BREAKER} FROM fsm.breakers ORDER BY key")
        ]

    def breaker_changes(
        self, after: int, limit: int, key: str | None = None, before: int | None = None
    ) -> list[BreakerEntry]:
        """Return lines of the breakers' journal between two positions."""
        where = ["position > %s"]
        values: list[Any] = [_whole(after)]
        if before is not None:
            where, values = [*where, "position < %s"], [*values, before]
        if key is not None:
            where, values = [*where, "key = %s"], [*values, key]
        direction = "" if before is None else " DESC"
        sql = (
            f"SELECT {shapes.BREAKER_ENTRY} FROM fsm.breaker_journal WHERE {' AND '.join(where)} "
            f"ORDER BY position{direction} LIMIT %s"
        )
        entries = [shapes.breaker_entry(row) for row in self._rows(sql, (*values, _limit(limit)))]
        return entries if before is None else entries[::-1]

    def breaker_position(self) -> int:
        """Return the journal's last position."""
        position: int = self._rows("SELECT coalesce(max(position), 0) FROM fsm.breaker_journal")[0][0]
        return position

    # --- damage -----------------------------------------------------------------------------------------------

    def damaged(self) -> list[Damage]:
        """Return nothing: the database's types and its law keep each row whole."""
        self._rows("SELECT 1")  # a store that is closed, or gone, says so
        return []

    def inspect(self) -> list[Damage]:
        """Look for law that was switched off, and for what no single record shows."""
        return [
            Damage(table, str(row[0]), column, why)
            for table, column, why, question in QUESTIONS
            for row in self._rows(question)
        ]


def _whole(number: int) -> int:
    return max(-_MOST, min(number, _MOST))


def _limit(limit: int) -> int | None:
    """Return a limit as SQL takes it: any number below 0 stands for all."""
    return None if limit < 0 else _whole(limit)


def _barred(after: Snapshot, error: Exception) -> Barred:
    identity, state = after.identity, getattr(error, "sqlstate", None)
    if state == LEASE:
        return Barred(identity.id, "lease", after.owner or "")
    if state == PARENT:
        return Barred(identity.id, "parent", identity.parent_id or "")
    return Barred(identity.id, "law", one_line(error))
