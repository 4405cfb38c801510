-- Time: eras that are settled later, the mark from which the next boot goes on, ends that age on the steady timeline,
-- terms that are given to workers while nobody could renew; births in the order of their commits, and their keys.

-- An era is one boot. Until it is settled (`held_at` is null) its offset may be lowered; see fsm/timeline.py. A row is
-- replaced as a whole, and eras that are long over are deleted.
DROP TRIGGER era_kept;
ALTER TABLE eras ADD COLUMN held_at REAL;
ALTER TABLE eras ADD COLUMN begun_s REAL NOT NULL DEFAULT 0;
ALTER TABLE eras ADD COLUMN lag_s REAL NOT NULL DEFAULT 0;
ALTER TABLE eras ADD COLUMN drift_s REAL NOT NULL DEFAULT 0;
ALTER TABLE eras ADD COLUMN even_s REAL NOT NULL DEFAULT 0;
DELETE FROM eras WHERE era LIKE 'process-%' OR era LIKE 'virtual-%';

-- One row at most: the latest instant of the timeline that was seen together with both clocks.
CREATE TABLE mark (
    id INTEGER PRIMARY KEY,
    steady_at REAL NOT NULL,
    wall_at REAL NOT NULL,
    monotonic_s REAL
);

-- How often a lease was given another term since its worker last renewed it itself.
CREATE TABLE spared (
    id TEXT NOT NULL PRIMARY KEY,
    times INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TRIGGER worker_is_spared_no_more AFTER DELETE ON workers
BEGIN
    DELETE FROM spared WHERE id = OLD.id;
END;

-- Time that does not count against total_s: a person was waited for.
ALTER TABLE executions ADD COLUMN paused_s REAL NOT NULL DEFAULT 0;

-- Ends age by the instant of the end on the steady timeline; what ended before there was one has none.
DROP INDEX executions_ended;
CREATE INDEX executions_ended ON executions (coalesce(nullif(since_at, 0.0), updated_at)) WHERE due_at IS NULL;

-- Pages follow the order of the births' commits. What was born before this column has 0 and is paged by id, first.
ALTER TABLE executions ADD COLUMN born INTEGER NOT NULL DEFAULT 0;
ALTER TABLE executions ADD COLUMN born_key TEXT;

DROP INDEX executions_state;
DROP INDEX executions_agent;
DROP INDEX executions_user;
DROP INDEX executions_thread;
DROP INDEX executions_parent;
CREATE INDEX executions_born ON executions (born);
CREATE INDEX executions_state ON executions (state, born);
CREATE INDEX executions_agent ON executions (agent, born);
CREATE INDEX executions_user ON executions (user_id, born);
CREATE INDEX executions_thread ON executions (thread_id, born);
CREATE INDEX executions_parent ON executions (parent_id, born) WHERE parent_id IS NOT NULL;
CREATE INDEX executions_born_key ON executions (user_id, born_key) WHERE born_key IS NOT NULL;

CREATE TRIGGER execution_born_by_key BEFORE INSERT ON executions
WHEN NEW.born_key IS NOT NULL AND EXISTS (
    SELECT 1 FROM executions WHERE user_id = NEW.user_id AND born_key = NEW.born_key
)
BEGIN
    SELECT RAISE (ABORT, 'fsm: this key has created an execution already');
END;

CREATE TRIGGER execution_born_there BEFORE UPDATE OF born, born_key ON executions
BEGIN
    SELECT RAISE (ABORT, 'fsm: what an execution is born with stays');
END;

-- Where a page goes on whose last execution was deleted since. The latest deletions are remembered.
CREATE TABLE places (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    born INTEGER NOT NULL
);

CREATE TRIGGER execution_leaves_its_place AFTER DELETE ON executions
BEGIN
    -- A number even in a damaged record: its deletion must not be refused for it.
    INSERT OR REPLACE INTO places (id, born) VALUES (OLD.id, max(0, CAST(OLD.born AS INTEGER)));
    DELETE FROM places WHERE number <= (SELECT max(number) FROM places) - 100000;
END;

-- --- what these columns hold, whoever writes (see 0007_whole.sql) -------------------------------------------------

CREATE TRIGGER era_begins_whole BEFORE INSERT ON eras
WHEN NOT (
    (NEW.held_at BETWEEN -1e12 AND 1e12) IS NOT 0
    AND NEW.begun_s BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308
    AND NEW.lag_s BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308
    AND NEW.drift_s BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308
    AND NEW.even_s BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308
)
BEGIN
    SELECT RAISE (ABORT, 'fsm: an era is whole: every column is a number');
END;

CREATE TRIGGER mark_begins BEFORE INSERT ON mark
BEGIN
    SELECT CASE
        WHEN NOT (
            NEW.id IS 1 AND NEW.steady_at BETWEEN -1e12 AND 1e12 AND NEW.wall_at BETWEEN -1e12 AND 1e12
            AND (NEW.monotonic_s BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308) IS NOT 0
        ) THEN RAISE (ABORT, 'fsm: there is one mark, and it is two instants')
        WHEN EXISTS (SELECT 1 FROM mark WHERE steady_at >= NEW.steady_at) THEN RAISE (IGNORE)
    END;
END;

CREATE TRIGGER mark_rises BEFORE UPDATE ON mark
WHEN NOT (
    NEW.id IS 1 AND NEW.steady_at > OLD.steady_at
    AND NEW.steady_at BETWEEN -1e12 AND 1e12 AND NEW.wall_at BETWEEN -1e12 AND 1e12
    AND (NEW.monotonic_s BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308) IS NOT 0
)
BEGIN
    SELECT RAISE (ABORT, 'fsm: the mark rises, and is two instants');
END;

CREATE TRIGGER mark_kept BEFORE DELETE ON mark
BEGIN
    SELECT RAISE (ABORT, 'fsm: the mark rises, and is never deleted');
END;

CREATE TRIGGER spared_begins BEFORE INSERT ON spared
WHEN NOT (typeof(NEW.id) = 'text' AND NEW.times IS 1 AND EXISTS (SELECT 1 FROM workers WHERE id = NEW.id))
BEGIN
    SELECT RAISE (ABORT, 'fsm: a worker is spared one time after the other');
END;

CREATE TRIGGER spared_goes_on BEFORE UPDATE ON spared
WHEN NOT (NEW.id IS OLD.id AND NEW.times IS OLD.times + 1)
BEGIN
    SELECT RAISE (ABORT, 'fsm: a worker is spared one time after the other');
END;

CREATE TRIGGER place_begins BEFORE INSERT ON places
WHEN NOT (
    typeof(NEW.id) = 'text' AND typeof(NEW.born) = 'integer' AND NEW.born >= 0
    AND NOT EXISTS (SELECT 1 FROM executions WHERE id = NEW.id)
)
BEGIN
    SELECT RAISE (ABORT, 'fsm: a place is that of a deleted execution');
END;

-- A number far ahead would make the older ones be forgotten.
CREATE TRIGGER place_in_order AFTER INSERT ON places
WHEN NEW.number IS NOT coalesce((SELECT max(number) FROM places WHERE number <> NEW.number), 0) + 1
BEGIN
    SELECT RAISE (ABORT, 'fsm: places are numbered in their order');
END;

CREATE TRIGGER place_stays BEFORE UPDATE ON places
BEGIN
    SELECT RAISE (ABORT, 'fsm: the place of a deleted execution stays');
END;

CREATE TRIGGER place_kept BEFORE DELETE ON places
WHEN OLD.number > (SELECT max(number) FROM places) - 100000
BEGIN
    SELECT RAISE (ABORT, 'fsm: the place of a deleted execution stays');
END;

CREATE TRIGGER execution_born_at_its_place BEFORE INSERT ON executions
WHEN NOT (
    typeof(NEW.born) = 'integer' AND NEW.born IS NEW.position AND typeof(NEW.born_key) <> 'blob'
    AND NEW.paused_s BETWEEN 0 AND 1.7976931348623157e308
)
BEGIN
    SELECT RAISE (ABORT, 'fsm: an execution is born at the position of its first row, with a key that is text');
END;

CREATE TRIGGER execution_pauses BEFORE UPDATE OF paused_s ON executions
WHEN NOT (NEW.paused_s BETWEEN OLD.paused_s AND 1.7976931348623157e308)
BEGIN
    SELECT RAISE (ABORT, 'fsm: the time for which an execution has waited for people never falls');
END;
