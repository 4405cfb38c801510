"""How fast a registry in PostgreSQL is, against what one would write by hand on the same server, in one run.

    python tests/bench/postgres.py [--quick] [--json] [--rows N] [--chaos]

The server syncs every commit. Both sides of a ratio take turns and the medians are compared. ``--rows`` fills the
journal before the plans are looked at; ``--chaos`` plays the test of `tests/postgres/test_postgres_chaos.py` in full.
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fsm.core.journal import record_of
from fsm.core.records import Step
from fsm.lifecycles.execution import EXECUTION
from fsm.stores import Query, open_store
from fsm.testing import fresh_tracker
from fsm.testing.conformance.steps import birth, committed, move, walk
from tests.support.postgres import Server, own_server

CALLERS = 32
PAYLOAD = '{"name":"search"}'
RAW_TABLES = """
    CREATE SCHEMA raw;
    CREATE TABLE raw.executions (
        id text PRIMARY KEY, state text NOT NULL, version bigint NOT NULL, updated_at double precision NOT NULL,
        due_at double precision
    );
    CREATE INDEX ON raw.executions (state);
    CREATE INDEX ON raw.executions (due_at);
    CREATE TABLE raw.journal (
        position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, execution_id text NOT NULL, version bigint NOT NULL,
        event text NOT NULL, source text NOT NULL, target text NOT NULL, at double precision NOT NULL, payload json,
        UNIQUE (execution_id, version)
    );
"""
RAW = """
    WITH batch AS (
        SELECT * FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::float8[], %s::text[])
            AS t (id, version, event, source, target, at, payload)
    ), moved AS (
        UPDATE raw.executions AS e SET state = b.target, version = b.version, updated_at = b.at, due_at = b.at + 60
        FROM batch AS b WHERE e.id = b.id AND e.version = b.version - 1 RETURNING b.*
    )
    INSERT INTO raw.journal (execution_id, version, event, source, target, at, payload)
    SELECT id, version, event, source, target, at, payload::json FROM moved RETURNING position, execution_id
"""


class Row(NamedTuple):
    """One line of the table."""

    what: str
    value: float
    unit: str
    target: str = ""
    met: bool | None = None


class Raw:
    """A batcher by hand: callers queue up, one thread sends all that is there as one statement."""

    def __init__(self, server: Server) -> None:
        self.connection = psycopg.connect(server.conninfo, autocommit=True)
        self.queue: queue.SimpleQueue[tuple[str, int, Future[int]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def send(self, batch: list[tuple[str, int]]) -> list[tuple[int, str]]:
        ids, versions = [one for one, _ in batch], [version for _, version in batch]
        count, now = len(batch), time.time()
        values = (
            ids,
            versions,
            ["go"] * count,
            ["a"] * count,
            ["b"] * count,
            [now] * count,
            [PAYLOAD] * count,
        )
        return self.connection.execute(RAW, values).fetchall()

    def _serve(self) -> None:
        while first := self.queue.get():
            batch = [first]
            while not self.queue.empty() and len(batch) < 512:
                more = self.queue.get()
                if more is not None:
                    batch.append(more)
            found = {
                one: position for position, one in self.send([(one, version) for one, version, _ in batch])
            }
            for one, _, future in batch:
                future.set_result(found[one])

    def fire(self, execution_id: str, version: int) -> int:
        future: Future[int] = Future()
        self.queue.put((execution_id, version, future))
        return future.result()


def rate(work: Callable[[], int]) -> float:
    started = time.perf_counter()
    return work() / (time.perf_counter() - started)


def versus(ours: Callable[[], int], theirs: Callable[[], int], rounds: int) -> tuple[float, float]:
    ours()
    theirs()
    pairs = [(rate(ours), rate(theirs)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def compared(what: str, ours: float, theirs: float, against: str) -> list[Row]:
    return [
        Row(what, ours, "events/s"),
        Row(against, theirs, "events/s"),
        Row(f"{what}, of that", ours / theirs, "", ">= 0.6", ours / theirs >= 0.6),
    ]


def throughput(server: Server, count: int, rounds: int) -> list[Row]:  # noqa: C901 - three comparisons
    """Compare single callers, many callers and whole batches with the same by hand."""
    rows: list[Row] = []
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        connection.execute(RAW_TABLES)
        connection.execute(
            "INSERT INTO raw.executions SELECT 'e' || i, 'a', 0, 0 FROM generate_series(0, 511) AS i"
        )
    raw = Raw(server)
    versions = dict.fromkeys((f"e{number}" for number in range(512)), 0)
    with fresh_tracker(server.url("bench")) as tracker, ThreadPoolExecutor(CALLERS) as threads:
        made = [tracker.create("a", user_id="u", thread_id="t").id for _ in range(CALLERS)]
        fences = {one: tracker.fire(one, "start").fence for one in made}

        def fire(one: str, times: int) -> int:
            for _ in range(times):
                tracker.fire(one, "progress", fence=fences[one], note="step")
            return times

        def raw_fire(one: str, times: int) -> int:
            for _ in range(times):
                versions[one] += 1
                raw.fire(one, versions[one])
            return times

        def raw_alone() -> int:
            for _ in range(count // 10):
                versions["e0"] += 1
                raw.send([("e0", versions["e0"])])
            return count // 10

        each = max(1, count // CALLERS)
        many = versus(
            lambda: sum(threads.map(lambda one: fire(one, each), made)),
            lambda: sum(threads.map(lambda number: raw_fire(f"e{number}", each), range(CALLERS))),
            rounds,
        )
        rows += compared(f"{CALLERS} callers", *many, "unnest batcher by hand")
        rows += compared(
            "one caller", *versus(lambda: fire(made[0], count // 10), raw_alone, rounds), "CTE by hand"
        )

    store = open_store(server.url("bench"))
    store.register(record_of(EXECUTION))
    lives = [walk(birth(), "start") for _ in range(512)]
    committed(store, *(step for life in lives for step in life))
    heads = [life[-1].after for life in lives]

    ready: list[list[Step]] = []  # decided beforehand: what is compared is what the store does
    for _ in range(rounds + 1):
        ready.append([move(before, "progress") for before in heads])
        heads = [step.after for step in ready[-1]]

    def ours() -> int:
        return len(committed(store, *ready.pop(0)))

    def theirs() -> int:
        for one in versions:
            versions[one] += 1
        return len(raw.send(list(versions.items())))

    rows += compared("a batch of 512", *versus(ours, theirs, rounds), "unnest by hand")
    store.close()
    raw.queue.put(None)
    return rows


def plans(server: Server, journal_rows: int) -> list[Row]:
    """Look at the plans of what trackers, sweepers and pages ask; none of them walks through a table."""
    store = open_store(server.url("plans"))
    store.register(record_of(EXECUTION))
    committed(store, *walk(birth(id="seed", thread_id="t0"), "start"))
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("SET search_path TO plans; SET session_replication_role = replica")
        made = journal_rows // 10
        connection.execute(
            "INSERT INTO identities SELECT 'exec_' || lpad(i::text, 26, '0'), machine, 'a' || i %% 7, "
            "'u' || i %% 1000, 't' || i, NULL, NULL, 1, 1, 1, NULL, NULL, 1, 1, 1, NULL, 0, i + 10 "
            "FROM generate_series(1, %s) AS i, identities WHERE id = 'seed'",
            (made,),
        )
        connection.execute(
            "INSERT INTO executions SELECT i.id, i.machine, i.born, CASE WHEN i.born % 10 = 0 THEN 'thinking' ELSE "
            "'completed' END, i.born % 10 <> 0, 9, 1, 1, CASE WHEN i.born % 10 = 0 THEN 1e9 + i.born END, "
            "CASE WHEN i.born % 10 = 0 THEN 'phase' END, 1, 'w', 1, NULL, 0, NULL, NULL, NULL, NULL, i.born, 0, false, "
            "i.born * 10, 'think' FROM identities AS i WHERE i.id <> 'seed'"
        )
        connection.execute(
            "INSERT INTO journal SELECT i.born * 10 + n, i.id, n, i.machine, 'progress', 'thinking', 'thinking', "
            "1, 1, 1 FROM identities AS i, generate_series(0, 9) AS n WHERE i.id <> 'seed'"
        )
        connection.execute("SELECT setval('positions', (SELECT max(position) FROM journal)); ANALYZE")
    asked: list[tuple[bytes, object]] = []
    inner = store._connections.run

    class Noting:
        def __init__(self, connection) -> None:
            self._connection = connection

        def execute(self, text, values=()):
            asked.append((text, values))
            return self._connection.execute(text, values)

        def __getattr__(self, name):
            return getattr(self._connection, name)

    store._connections.run = lambda work, **more: inner(lambda one: work(Noting(one)), **more)
    some = f"exec_{made // 2:026}"
    store.load(some)
    store.history(some)
    store.keyed(some, "k")
    store.journal(journal_rows // 2, 100)
    store.journal(journal_rows, 100, None, "u7")
    for query in (
        Query(), Query(frozenset({"thinking"})), Query(frozenset({"thinking", "completed"})), Query(user_id="u7"),
        Query(user_id="u7", states=frozenset({"thinking"})), Query(agent="a1", after=some), Query(thread_id="t5"),
        Query(parent_id=some),
    ):  # fmt: skip
        store.find(query)
    store.counts()
    store.counts("u7")
    store.due(1e9 + 500, 100)
    store.next_due(1e9)
    store.owned("w", 100)
    store.ended(50.0, 100)
    store.born("u7", "k")
    store.orders("", 10)
    walks: list[str] = []
    slowest = 0.0
    for text, values in asked:
        if b".sample()" in text:
            continue
        rows = inner(
            lambda one, text=text, values=values: one.execute(b"EXPLAIN ANALYZE " + text, values).fetchall()
        )
        plan = "\n".join(row[0] for row in rows)
        if any(f"Seq Scan on {table}" in plan for table in ("journal", "executions", "identities")):
            walks.append(f"{text.decode()}\n{plan}")
        slowest = max(slowest, float(plan.rsplit("Execution Time: ", 1)[1].split()[0]))
    store.close()
    for one in walks:
        print(one, file=sys.stderr)
    return [
        Row(f"queries at {journal_rows} rows", len(asked), ""),
        Row("of them walk through a table", len(walks), "", "0", not walks),
        Row("the slowest of them", slowest, "ms"),
    ]


def bloat(server: Server, rounds: int) -> list[Row]:
    """Run lives and prune them, with the server's own vacuum in between: dead rows do not add up."""
    sizes: list[float] = []
    store = open_store(server.url("bloat"))
    store.register(record_of(EXECUTION))
    with psycopg.connect(server.url(), autocommit=True) as connection:
        for _ in range(rounds):
            lives = [
                walk(birth(), "start", "think", "process_results", "finish", "complete") for _ in range(200)
            ]
            for life in lives:
                committed(store, *life)
            store.forget([life[0].after.identity.id for life in lives])
            connection.execute("VACUUM bloat.executions, bloat.identities, bloat.journal")
            sql = (
                "SELECT sum(pg_total_relation_size(c.oid))::float8 FROM pg_class AS c "
                "WHERE relnamespace = 'bloat'::regnamespace"
            )
            sizes.append(
                connection.execute(sql + " AND relkind = 'r' AND relname <> 'tombstones'").fetchall()[0][0]
            )
    store.close()
    grown = sizes[-1] / sizes[len(sizes) // 2]
    return [Row("size after all rounds, of that at half time", grown, "", "<= 1.2", grown <= 1.2)]


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--chaos", action="store_true")
    given = arguments.parse_args()
    if given.chaos:
        from tests.postgres.chaos import play  # noqa: PLC0415 - only when asked for

        print(play(executions=2_000, restarts=3, log=lambda line: print(line, file=sys.stderr)))
        return
    server = own_server(durable=True)
    try:
        rows = throughput(server, 320 if given.quick else 6_400, 1 if given.quick else 5)
        rows += plans(server, 1_000 if given.quick else given.rows)
        rows += bloat(server, 3 if given.quick else 12)
    finally:
        server.close()
    if given.json:
        print(json.dumps([row._asdict() for row in rows]))
        return
    for row in rows:
        met = {None: "", True: "met", False: "MISSED"}[row.met]
        print(f"{row.what:48} {row.value:12,.2f} {row.unit:10} {row.target:8} {met}")


if __name__ == "__main__":
    main()
