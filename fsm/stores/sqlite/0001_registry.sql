-- The registry: machines, executions, journal.

-- A machine is immutable data under its content hash. `sealed` is set once its states and rows are complete.
CREATE TABLE machines (
    id INTEGER PRIMARY KEY,
    content_hash TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    document TEXT NOT NULL,
    sealed INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE states (
    machine INTEGER NOT NULL REFERENCES machines (id),
    name TEXT NOT NULL,
    terminal INTEGER NOT NULL,
    PRIMARY KEY (machine, name)
) WITHOUT ROWID;

-- The table as law: every (source, event, target) that may happen. The creation's source is ''.
CREATE TABLE law (
    machine INTEGER NOT NULL REFERENCES machines (id),
    source TEXT NOT NULL,
    event TEXT NOT NULL,
    target TEXT NOT NULL,
    PRIMARY KEY (machine, source, event, target)
) WITHOUT ROWID;

-- One row per execution. `event`, `key` and `payload` are those of its last transition, and `position` is that
-- transition's place in the journal: a trigger writes the journal from them, so that state and journal are one
-- statement. Without a rowid there is nothing but the id by which a row could be replaced.
CREATE TABLE executions (
    id TEXT NOT NULL PRIMARY KEY,
    machine INTEGER NOT NULL REFERENCES machines (id),
    agent TEXT NOT NULL,
    user_id TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    parent_id TEXT,
    retry_of TEXT,
    created_at REAL NOT NULL,
    attempts_max INTEGER NOT NULL,
    model_attempts_max INTEGER NOT NULL,
    metadata TEXT,
    timeouts TEXT,
    state TEXT NOT NULL,
    version INTEGER NOT NULL,
    entered_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    due_at REAL,
    due_kind TEXT,
    attempt INTEGER NOT NULL,
    owner TEXT,
    fence INTEGER NOT NULL,
    tools TEXT,
    model_attempt INTEGER NOT NULL,
    not_before REAL,
    breaker TEXT,
    limit_s REAL,
    ending TEXT,
    position INTEGER NOT NULL,
    event TEXT NOT NULL,
    key TEXT,
    payload TEXT
) WITHOUT ROWID;

-- A position is a subscriber's cursor: each is one more than the last, and none is given out twice.
-- `previous` is the position of the same execution's row before: its history is a chain from its last row, and the
-- journal needs no index that every transition would have to write to.
CREATE TABLE journal (
    position INTEGER PRIMARY KEY,
    previous INTEGER,
    execution_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    machine INTEGER NOT NULL,
    event TEXT NOT NULL,
    source TEXT,
    target TEXT NOT NULL,
    at REAL NOT NULL,
    attempt INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    owner TEXT,
    key TEXT,
    payload TEXT
);

-- Positions up to this one were given out, whatever was deleted since.
CREATE TABLE horizon (
    id INTEGER PRIMARY KEY,
    position INTEGER NOT NULL
);
INSERT INTO horizon (id, position) VALUES (1, 0);

CREATE UNIQUE INDEX journal_key ON journal (execution_id, key) WHERE key IS NOT NULL;
CREATE INDEX executions_state ON executions (state, id);
CREATE INDEX executions_agent ON executions (agent, id);
CREATE INDEX executions_user ON executions (user_id, id);
CREATE INDEX executions_thread ON executions (thread_id, id);
CREATE INDEX executions_parent ON executions (parent_id, id) WHERE parent_id IS NOT NULL;
CREATE INDEX executions_due ON executions (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX executions_owner ON executions (owner) WHERE owner IS NOT NULL;
