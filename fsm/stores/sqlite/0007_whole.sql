-- Whole records: the file has an id of its own, what was deleted is not born again, and every column holds what it is
-- declared to hold, whoever writes. Where no trigger can judge, `fsm.verify` folds the journals.
--
-- `x BETWEEN a AND b` is false for text and blobs, which SQLite sorts after every number; `IS NOT 0` lets NULL pass.

-- --- the file -----------------------------------------------------------------------------------------------------

-- One row that never changes. A connection that finds another token is on another file (`identity.py`).
CREATE TABLE store (
    id INTEGER PRIMARY KEY,
    token TEXT NOT NULL
);
INSERT INTO store (id, token) VALUES (1, lower(hex(randomblob(16))));

CREATE TRIGGER store_begins BEFORE INSERT ON store
BEGIN
    SELECT RAISE (ABORT, 'fsm: a store has one id');
END;

CREATE TRIGGER store_stays BEFORE UPDATE ON store
BEGIN
    SELECT RAISE (ABORT, 'fsm: a store has one id');
END;

CREATE TRIGGER store_kept BEFORE DELETE ON store
BEGIN
    SELECT RAISE (ABORT, 'fsm: a store has one id');
END;

-- --- what was deleted ---------------------------------------------------------------------------------------------

CREATE TABLE tombstones (
    id TEXT NOT NULL PRIMARY KEY
) WITHOUT ROWID;

-- Of more than a million tombstones the smallest, which are the oldest ids, are kept as one range only: no id between
-- `first` and `last` is born any more. New ids are greater; only a wall clock that is set back by more than a million
-- deletions makes ids in there, and is refused until it is right again.
CREATE TABLE bygone (
    id INTEGER PRIMARY KEY,
    kept INTEGER NOT NULL,
    first TEXT,
    last TEXT
);

-- What was deleted before there were tombstones is known where another execution names it.
INSERT INTO tombstones (id)
SELECT named.id FROM (
    SELECT parent_id AS id FROM executions WHERE parent_id IS NOT NULL
    UNION
    SELECT retry_of FROM executions WHERE retry_of IS NOT NULL
) AS named
WHERE NOT EXISTS (SELECT 1 FROM executions WHERE executions.id = named.id);
INSERT INTO bygone (id, kept) SELECT 1, count(*) FROM tombstones;

CREATE TRIGGER execution_buried AFTER DELETE ON executions
BEGIN
    INSERT INTO tombstones (id)
    SELECT OLD.id WHERE NOT EXISTS (SELECT 1 FROM bygone WHERE OLD.id BETWEEN first AND last);
END;

CREATE TRIGGER tombstone_once BEFORE INSERT ON tombstones
WHEN EXISTS (SELECT 1 FROM tombstones WHERE id = NEW.id)
BEGIN
    SELECT RAISE (IGNORE);
END;

CREATE TRIGGER tombstone_begins BEFORE INSERT ON tombstones
WHEN typeof(NEW.id) <> 'text' OR EXISTS (SELECT 1 FROM executions WHERE id = NEW.id)
BEGIN
    SELECT RAISE (ABORT, 'fsm: what is there has no tombstone');
END;

CREATE TRIGGER tombstone_counts AFTER INSERT ON tombstones
BEGIN
    UPDATE bygone SET kept = kept + 1;
    UPDATE bygone SET
        kept = kept - 1,
        first = min(coalesce(first, (SELECT min(id) FROM tombstones)), (SELECT min(id) FROM tombstones)),
        last = max(coalesce(last, ''), (SELECT min(id) FROM tombstones))
    WHERE kept > 1000000;
    DELETE FROM tombstones
    WHERE id BETWEEN (SELECT first FROM bygone) AND (SELECT last FROM bygone);
END;

CREATE TRIGGER tombstone_stays BEFORE UPDATE ON tombstones
BEGIN
    SELECT RAISE (ABORT, 'fsm: what was deleted stays so');
END;

CREATE TRIGGER tombstone_kept BEFORE DELETE ON tombstones
WHEN NOT EXISTS (SELECT 1 FROM bygone WHERE OLD.id BETWEEN first AND last)
BEGIN
    SELECT RAISE (ABORT, 'fsm: what was deleted stays so');
END;

CREATE TRIGGER bygone_begins BEFORE INSERT ON bygone
BEGIN
    SELECT RAISE (ABORT, 'fsm: what was deleted stays so');
END;

CREATE TRIGGER bygone_grows BEFORE UPDATE ON bygone
WHEN NEW.id IS NOT OLD.id OR NOT (NEW.kept BETWEEN OLD.kept - 1 AND OLD.kept + 1)
    OR NEW.first IS NOT OLD.first AND (NEW.first IS NOT (SELECT min(id) FROM tombstones) OR NEW.first > OLD.first)
    OR NEW.last IS NOT OLD.last AND (NEW.last IS NOT (SELECT min(id) FROM tombstones) OR NEW.last < OLD.last)
BEGIN
    SELECT RAISE (ABORT, 'fsm: what was deleted stays so');
END;

CREATE TRIGGER bygone_stays BEFORE DELETE ON bygone
BEGIN
    SELECT RAISE (ABORT, 'fsm: what was deleted stays so');
END;

-- --- executions ---------------------------------------------------------------------------------------------------

CREATE TRIGGER execution_born_once BEFORE INSERT ON executions
WHEN EXISTS (SELECT 1 FROM tombstones WHERE id = NEW.id)
    OR EXISTS (SELECT 1 FROM bygone WHERE NEW.id BETWEEN first AND last)
BEGIN
    SELECT RAISE (ABORT, 'fsm: an execution of this id was deleted, and is not born again');
END;

CREATE TRIGGER execution_born_whole BEFORE INSERT ON executions
WHEN NOT (
    typeof(NEW.id) = 'text' AND typeof(NEW.agent) = 'text' AND typeof(NEW.user_id) = 'text'
    AND typeof(NEW.thread_id) = 'text' AND typeof(NEW.parent_id) <> 'blob' AND typeof(NEW.retry_of) <> 'blob'
    AND NEW.created_at BETWEEN -1e12 AND 1e12 AND NEW.born_at BETWEEN -1e12 AND 1e12
    AND NEW.entered_at BETWEEN -1e12 AND 1e12 AND NEW.since_at BETWEEN -1e12 AND 1e12
    AND NEW.updated_at BETWEEN -1e12 AND 1e12
    AND typeof(NEW.attempts_max) = 'integer' AND NEW.attempts_max > 0
    AND typeof(NEW.model_attempts_max) = 'integer' AND NEW.model_attempts_max > 0
    AND NEW.backoff_s BETWEEN 0 AND 1.7976931348623157e308
    AND NEW.backoff_cap_s BETWEEN 0 AND 1.7976931348623157e308
    AND NEW.attempt IS 0 AND NEW.fence IS 0 AND NEW.model_attempt IS 0
    AND NEW.owner IS NULL AND NEW.tools IS NULL AND NEW.not_before IS NULL AND NEW.breaker IS NULL
    AND NEW.limit_s IS NULL AND NEW.ending IS NULL
    AND (NEW.due_at BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308) IS NOT 0
    AND (NEW.due_at IS NULL) = (NEW.due_kind IS NULL) AND typeof(NEW.due_kind) <> 'blob'
    AND typeof(NEW.key) <> 'blob'
    AND (NEW.metadata IS NULL
        OR typeof(NEW.metadata) = 'text' AND substr(NEW.metadata, 1, 1) = '{' AND json_valid(NEW.metadata))
    AND (NEW.timeouts IS NULL
        OR typeof(NEW.timeouts) = 'text' AND substr(NEW.timeouts, 1, 1) = '{' AND json_valid(NEW.timeouts))
    AND (NEW.payload IS NULL
        OR typeof(NEW.payload) = 'text' AND substr(NEW.payload, 1, 1) = '{' AND json_valid(NEW.payload))
)
BEGIN
    SELECT RAISE (ABORT, 'fsm: an execution is born whole: every column of its type, nothing claimed, JSON where JSON is kept');
END;

-- What every transition names.
CREATE TRIGGER execution_moves_whole BEFORE UPDATE OF due_at, due_kind, model_attempt, key, payload ON executions
WHEN NOT (
    (NEW.due_at BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308) IS NOT 0
    AND (NEW.due_at IS NULL) = (NEW.due_kind IS NULL) AND typeof(NEW.due_kind) <> 'blob'
    AND (NEW.model_attempt IS OLD.model_attempt
        OR typeof(NEW.model_attempt) = 'integer' AND NEW.model_attempt BETWEEN 0 AND OLD.model_attempt + 1)
    AND typeof(NEW.key) <> 'blob'
    AND (NEW.payload IS NULL
        OR typeof(NEW.payload) = 'text' AND substr(NEW.payload, 1, 1) = '{' AND json_valid(NEW.payload))
)
BEGIN
    SELECT RAISE (ABORT, 'fsm: a record stays whole: a deadline has a kind, model attempts go up one by one, a payload is JSON');
END;

CREATE TRIGGER execution_enters BEFORE UPDATE OF entered_at, since_at ON executions
WHEN NOT (
    (NEW.entered_at IS OLD.entered_at OR NEW.entered_at IS NEW.updated_at)
    AND (NEW.since_at IS OLD.since_at
        OR NEW.entered_at IS NEW.updated_at AND NEW.since_at BETWEEN -1e12 AND 1e12)
)
BEGIN
    SELECT RAISE (ABORT, 'fsm: a state is entered when a transition is made');
END;

-- What few transitions name: a claim, a release, tools, waits, an end.
CREATE TRIGGER execution_changes BEFORE UPDATE OF
    attempt, owner, fence, tools, not_before, breaker, limit_s, ending
ON executions
WHEN NOT (
    typeof(NEW.fence) = 'integer' AND NEW.fence BETWEEN OLD.fence AND OLD.fence + 1
    AND typeof(NEW.attempt) = 'integer' AND NEW.attempt BETWEEN OLD.attempt AND OLD.attempt + 1
    AND (NEW.fence > OLD.fence OR NEW.attempt IS OLD.attempt AND NEW.owner IS OLD.owner)
    AND typeof(NEW.owner) <> 'blob' AND typeof(NEW.breaker) <> 'blob'
    AND (NEW.not_before BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308) IS NOT 0
    AND (NEW.limit_s BETWEEN 0 AND 1.7976931348623157e308) IS NOT 0
    AND (NEW.tools IS NULL OR typeof(NEW.tools) = 'text' AND substr(NEW.tools, 1, 1) = '[' AND json_valid(NEW.tools))
    AND (NEW.ending IS NULL
        OR typeof(NEW.ending) = 'text' AND substr(NEW.ending, 1, 1) = '{' AND json_valid(NEW.ending)
        AND EXISTS (SELECT 1 FROM states WHERE machine = NEW.machine AND name = NEW.state AND terminal))
)
BEGIN
    SELECT RAISE (ABORT, 'fsm: a record stays whole: the fence rises by one with every change of owner or attempt, and never falls; tools and endings are JSON');
END;

-- --- orders: what a committed step ordered ------------------------------------------------------------------------

CREATE TRIGGER order_follows BEFORE INSERT ON orders
WHEN NOT EXISTS (
    SELECT 1 FROM executions AS given
    JOIN machines ON machines.id = given.machine
    JOIN json_each(machines.document, '$.transitions') AS step
    JOIN json_each(step.value, '$.effects') AS effect
    WHERE given.id = NEW.execution_id AND given.version = NEW.version AND given.event = NEW.event
        AND json_extract(step.value, '$.event') = NEW.event AND effect.value = 'cancel_children'
        AND coalesce(json_extract(step.value, '$.target'), given.state) = given.state
)
BEGIN
    SELECT RAISE (ABORT, 'fsm: an order follows from a transition');
END;

CREATE TRIGGER order_stays BEFORE UPDATE ON orders
BEGIN
    SELECT RAISE (ABORT, 'fsm: an order follows from a transition');
END;

-- --- time and workers ---------------------------------------------------------------------------------------------

-- An era's offset is written once; the first who asks decides.
CREATE TRIGGER era_begins BEFORE INSERT ON eras
BEGIN
    SELECT CASE
        WHEN EXISTS (SELECT 1 FROM eras WHERE era = NEW.era) THEN RAISE (IGNORE)
        WHEN NOT (typeof(NEW.era) = 'text' AND NEW.offset_s BETWEEN -1e12 AND 1e12)
            THEN RAISE (ABORT, 'fsm: an offset is a number of seconds')
    END;
END;

CREATE TRIGGER era_stays BEFORE UPDATE ON eras
BEGIN
    SELECT RAISE (ABORT, 'fsm: the timeline of a boot stays where it is');
END;

CREATE TRIGGER era_kept BEFORE DELETE ON eras
BEGIN
    SELECT RAISE (ABORT, 'fsm: the timeline of a boot stays where it is');
END;

CREATE TRIGGER worker_begins BEFORE INSERT ON workers
WHEN EXISTS (SELECT 1 FROM workers WHERE id = NEW.id) OR EXISTS (SELECT 1 FROM departed WHERE id = NEW.id)
    OR NOT (
        typeof(NEW.id) = 'text' AND typeof(NEW.name) = 'text' AND NEW.lost IN (0, 1)
        AND NEW.ttl_s BETWEEN 0 AND 1.7976931348623157e308
        AND NEW.started_at BETWEEN -1e12 AND 1e12 AND NEW.renewed_at BETWEEN -1e12 AND 1e12
    )
BEGIN
    SELECT RAISE (ABORT, 'fsm: a worker registers once');
END;

CREATE TRIGGER worker_stays BEFORE UPDATE ON workers
WHEN NEW.id IS NOT OLD.id OR NEW.name IS NOT OLD.name OR NEW.ttl_s IS NOT OLD.ttl_s
    OR NEW.started_at IS NOT OLD.started_at OR NEW.lost NOT IN (0, 1)
    OR NOT (NEW.renewed_at BETWEEN -1e12 AND 1e12)
BEGIN
    SELECT RAISE (ABORT, 'fsm: a worker renews its lease, and nothing else of it changes');
END;

CREATE TRIGGER departed_begins BEFORE INSERT ON departed
BEGIN
    SELECT CASE
        WHEN EXISTS (SELECT 1 FROM departed WHERE id = NEW.id) THEN RAISE (IGNORE)
        WHEN typeof(NEW.id) <> 'text' OR EXISTS (SELECT 1 FROM workers WHERE id = NEW.id)
            OR EXISTS (SELECT 1 FROM departed WHERE number = NEW.number)
            THEN RAISE (ABORT, 'fsm: a worker departs once')
    END;
END;

-- A number far ahead would make the older ones be forgotten.
CREATE TRIGGER departed_in_order AFTER INSERT ON departed
WHEN NEW.number IS NOT coalesce((SELECT max(number) FROM departed WHERE number <> NEW.number), 0) + 1
BEGIN
    SELECT RAISE (ABORT, 'fsm: a worker departs once');
END;

CREATE TRIGGER departed_stays BEFORE UPDATE ON departed
BEGIN
    SELECT RAISE (ABORT, 'fsm: a worker that has left stays away');
END;

CREATE TRIGGER departed_kept BEFORE DELETE ON departed
WHEN OLD.number > (SELECT max(number) FROM departed) - 10000
BEGIN
    SELECT RAISE (ABORT, 'fsm: a worker that has left stays away');
END;

-- --- machines and breakers ----------------------------------------------------------------------------------------

CREATE TRIGGER machine_whole BEFORE INSERT ON machines
WHEN NOT (
    typeof(NEW.content_hash) = 'text' AND typeof(NEW.name) = 'text' AND typeof(NEW.document) = 'text'
    AND json_valid(NEW.document)
)
BEGIN
    SELECT RAISE (ABORT, 'fsm: a machine is a JSON document');
END;

CREATE TRIGGER breaker_begins_whole BEFORE INSERT ON breakers
WHEN NOT (
    typeof(NEW.key) = 'text' AND typeof(NEW.generation) = 'integer' AND typeof(NEW.openings) = 'integer'
    AND typeof(NEW.successes) = 'integer' AND typeof(NEW.abandoned) = 'integer'
    AND NEW.changed_at BETWEEN -1e12 AND 1e12 AND NEW.at BETWEEN -1e12 AND 1e12
    AND (NEW.since BETWEEN -1e12 AND 1e12) IS NOT 0
    AND (NEW.until BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308) IS NOT 0
    AND (NEW.probes IS NULL
        OR typeof(NEW.probes) = 'text' AND substr(NEW.probes, 1, 1) = '[' AND json_valid(NEW.probes))
    AND typeof(NEW.actor) <> 'blob' AND typeof(NEW.reason) <> 'blob'
)
BEGIN
    SELECT RAISE (ABORT, 'fsm: a breaker is whole: every column of its type, JSON where JSON is kept');
END;

CREATE TRIGGER breaker_moves_whole BEFORE UPDATE ON breakers
WHEN NOT (
    typeof(NEW.generation) = 'integer' AND typeof(NEW.openings) = 'integer'
    AND typeof(NEW.successes) = 'integer' AND typeof(NEW.abandoned) = 'integer'
    AND NEW.changed_at BETWEEN -1e12 AND 1e12 AND NEW.at BETWEEN -1e12 AND 1e12
    AND (NEW.since BETWEEN -1e12 AND 1e12) IS NOT 0
    AND (NEW.until BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308) IS NOT 0
    AND (NEW.probes IS NULL
        OR typeof(NEW.probes) = 'text' AND substr(NEW.probes, 1, 1) = '[' AND json_valid(NEW.probes))
    AND typeof(NEW.actor) <> 'blob' AND typeof(NEW.reason) <> 'blob'
)
BEGIN
    SELECT RAISE (ABORT, 'fsm: a breaker stays whole: every column of its type, JSON where JSON is kept');
END;
