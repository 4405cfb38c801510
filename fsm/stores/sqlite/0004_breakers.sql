-- Circuit breakers: one row per key that ever changed its state, and the journal of those changes.

-- `event`, `actor` and `reason` are those of the last transition: a trigger writes the journal from them. A note that
-- takes no row of the table (a probe that was given back) has no event.
CREATE TABLE breakers (
    key TEXT NOT NULL PRIMARY KEY,
    machine INTEGER NOT NULL REFERENCES machines (id),
    state TEXT NOT NULL,
    version INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    changed_at REAL NOT NULL,
    since REAL,
    until REAL,
    openings INTEGER NOT NULL,
    probes TEXT,
    successes INTEGER NOT NULL,
    abandoned INTEGER NOT NULL,
    event TEXT,
    at REAL NOT NULL,
    actor TEXT,
    reason TEXT
) WITHOUT ROWID;

CREATE TABLE breaker_journal (
    position INTEGER PRIMARY KEY, -- no line is ever deleted, so no position is given out twice
    key TEXT NOT NULL,
    version INTEGER NOT NULL,
    machine INTEGER NOT NULL,
    event TEXT NOT NULL,
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    generation INTEGER NOT NULL,
    at REAL NOT NULL,
    actor TEXT,
    reason TEXT
);

CREATE INDEX breaker_journal_key ON breaker_journal (key, position);

-- A breaker without a row is in its machine's initial state: the first row is the first change.
CREATE TRIGGER breaker_begins BEFORE INSERT ON breakers
BEGIN
    SELECT CASE
        WHEN EXISTS (SELECT 1 FROM breakers WHERE key = NEW.key)
            THEN RAISE (ABORT, 'fsm: this breaker exists already')
        WHEN NEW.version IS NOT 1 OR NEW.event IS NULL OR NOT EXISTS (
            SELECT 1 FROM law AS birth
            JOIN law AS first ON first.machine = birth.machine AND first.source = birth.target
            WHERE birth.machine = NEW.machine AND birth.source = ''
                AND first.event = NEW.event AND first.target = NEW.state
        ) THEN RAISE (ABORT, 'fsm: a breaker begins with a row of the table, at version 1')
    END;
END;

CREATE TRIGGER breaker_begun AFTER INSERT ON breakers
BEGIN
    INSERT INTO breaker_journal
        (key, version, machine, event, source, target, generation, at, actor, reason)
    SELECT NEW.key, NEW.version, NEW.machine, NEW.event, birth.target, NEW.state, NEW.generation, NEW.at,
        NEW.actor, NEW.reason
    FROM law AS birth WHERE birth.machine = NEW.machine AND birth.source = '';
END;

CREATE TRIGGER breaker_moves BEFORE UPDATE ON breakers
BEGIN
    SELECT CASE
        WHEN NEW.key IS NOT OLD.key THEN RAISE (ABORT, 'fsm: a breaker keeps its key')
        WHEN NEW.version IS NOT OLD.version + 1 THEN RAISE (ABORT, 'fsm: versions have no gap')
        WHEN NEW.state IS NOT OLD.state AND NEW.generation <= OLD.generation
            THEN RAISE (ABORT, 'fsm: a change of state raises the generation')
        WHEN NEW.generation < OLD.generation THEN RAISE (ABORT, 'fsm: generations grow')
        WHEN NEW.machine IS NOT OLD.machine
            AND NOT EXISTS (SELECT 1 FROM machines WHERE id = NEW.machine AND sealed)
            THEN RAISE (ABORT, 'fsm: a machine is law once it is sealed')
        WHEN NEW.event IS NULL AND (NEW.state IS NOT OLD.state OR NEW.generation IS NOT OLD.generation)
            THEN RAISE (ABORT, 'fsm: no row of the table')
        WHEN NEW.event IS NOT NULL AND NOT EXISTS (
            SELECT 1 FROM law
            WHERE machine = NEW.machine AND source = OLD.state AND event = NEW.event AND target = NEW.state
        ) THEN RAISE (ABORT, 'fsm: no row of the table')
    END;
END;

CREATE TRIGGER breaker_moved AFTER UPDATE ON breakers
WHEN NEW.event IS NOT NULL
BEGIN
    INSERT INTO breaker_journal
        (key, version, machine, event, source, target, generation, at, actor, reason)
    VALUES
        (NEW.key, NEW.version, NEW.machine, NEW.event, OLD.state, NEW.state, NEW.generation, NEW.at,
         NEW.actor, NEW.reason);
END;

CREATE TRIGGER breaker_stays BEFORE DELETE ON breakers
BEGIN
    SELECT RAISE (ABORT, 'fsm: a breaker is reset, never deleted');
END;

-- The journal is written by the two triggers above and by nobody else.
CREATE TRIGGER breaker_journal_follows BEFORE INSERT ON breaker_journal
WHEN NOT EXISTS (
    SELECT 1 FROM breakers
    WHERE key = NEW.key AND version = NEW.version AND state = NEW.target AND event = NEW.event
        AND generation = NEW.generation
) OR EXISTS (SELECT 1 FROM breaker_journal WHERE key = NEW.key AND version = NEW.version)
    OR EXISTS (SELECT 1 FROM breaker_journal WHERE position = NEW.position)
BEGIN
    SELECT RAISE (ABORT, 'fsm: the journal follows the breaker');
END;

CREATE TRIGGER breaker_journal_stays BEFORE UPDATE ON breaker_journal
BEGIN
    SELECT RAISE (ABORT, 'fsm: the journal is never rewritten');
END;

CREATE TRIGGER breaker_journal_kept BEFORE DELETE ON breaker_journal
BEGIN
    SELECT RAISE (ABORT, 'fsm: the journal is never rewritten');
END;
