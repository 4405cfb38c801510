-- Time and death: the steady timeline on which deadlines are laid, workers and their leases, retention.

-- For each era of the monotonic clock (a boot) the offset that makes steady instants of it.
CREATE TABLE eras (
    era TEXT NOT NULL PRIMARY KEY,
    offset_s REAL NOT NULL
);

CREATE TABLE workers (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    ttl_s REAL NOT NULL,
    started_at REAL NOT NULL,
    renewed_at REAL NOT NULL,
    lost INTEGER NOT NULL DEFAULT 0
);

CREATE TRIGGER worker_stays_lost BEFORE UPDATE ON workers
WHEN OLD.lost AND NOT NEW.lost
BEGIN
    SELECT RAISE (ABORT, 'fsm: a worker that was lost stays lost');
END;

ALTER TABLE executions ADD COLUMN born_at REAL NOT NULL DEFAULT 0;
ALTER TABLE executions ADD COLUMN backoff_s REAL NOT NULL DEFAULT 1;
ALTER TABLE executions ADD COLUMN backoff_cap_s REAL NOT NULL DEFAULT 60;
ALTER TABLE executions ADD COLUMN since_at REAL NOT NULL DEFAULT 0;

CREATE INDEX executions_ended ON executions (updated_at) WHERE due_at IS NULL;

CREATE TRIGGER execution_born_with BEFORE UPDATE OF born_at, backoff_s, backoff_cap_s ON executions
BEGIN
    SELECT RAISE (ABORT, 'fsm: what an execution is born with stays');
END;
