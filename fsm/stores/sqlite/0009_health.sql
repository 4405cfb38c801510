-- What processes say of their loops, and how deep in its family an execution is.

CREATE TABLE beats (
    process TEXT NOT NULL,
    loop TEXT NOT NULL,
    worker TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    running INTEGER NOT NULL,
    turns INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    failing INTEGER NOT NULL,
    last_error TEXT,
    failed_at REAL,
    succeeded_at REAL,
    alive_at REAL,
    started_at REAL NOT NULL,
    seen_at REAL NOT NULL,
    PRIMARY KEY (process, loop)
) WITHOUT ROWID;

-- The number of parents above it. What was created before this column was there counts as a root.
ALTER TABLE executions ADD COLUMN depth INTEGER NOT NULL DEFAULT 0;

CREATE TRIGGER execution_born_at_depth BEFORE INSERT ON executions
WHEN typeof(NEW.depth) <> 'integer' OR NEW.depth < 0
BEGIN
    SELECT RAISE (ABORT, 'fsm: a depth is a number of parents');
END;

CREATE TRIGGER execution_keeps_depth BEFORE UPDATE OF depth ON executions
BEGIN
    SELECT RAISE (ABORT, 'fsm: what an execution is born with stays');
END;
