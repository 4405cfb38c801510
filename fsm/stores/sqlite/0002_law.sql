-- The table is law here too: whoever writes to this file, with whatever program, is held to it. Each check is written
-- as a trigger that raises, since OR REPLACE and OR IGNORE override a constraint, but no RAISE.

-- --- executions ---------------------------------------------------------------------------------------------------

CREATE TRIGGER execution_begins BEFORE INSERT ON executions
BEGIN
    SELECT CASE
        WHEN EXISTS (SELECT 1 FROM executions WHERE id = NEW.id)
            THEN RAISE (ABORT, 'fsm: this execution exists already')
        WHEN NEW.version IS NOT 0
            OR NOT EXISTS (SELECT 1 FROM machines WHERE id = NEW.machine AND sealed)
            OR NOT EXISTS (
                SELECT 1 FROM law
                WHERE machine = NEW.machine AND source = '' AND event = NEW.event AND target = NEW.state
            )
            THEN RAISE (ABORT, 'fsm: an execution begins at version 0 in the initial state of its machine')
        WHEN NEW.position IS NOT (
            SELECT max((SELECT coalesce(max(position), 0) FROM journal), (SELECT position FROM horizon)) + 1
        )
            THEN RAISE (ABORT, 'fsm: positions have no gap')
    END;
END;

CREATE TRIGGER execution_begun AFTER INSERT ON executions
BEGIN
    INSERT INTO journal
        (position, previous, execution_id, version, machine, event, source, target, at, attempt, fence, owner, key,
         payload)
    VALUES
        (NEW.position, NULL, NEW.id, NEW.version, NEW.machine, NEW.event, NULL, NEW.state, NEW.updated_at,
         NEW.attempt, NEW.fence, NEW.owner, NEW.key, NEW.payload);
END;

-- No row of the law leaves a terminal state (`law_sealed`), so one look-up answers for legality and finality.
CREATE TRIGGER execution_moves BEFORE UPDATE ON executions
BEGIN
    SELECT CASE
        WHEN NOT EXISTS (
            SELECT 1 FROM law
            WHERE machine = OLD.machine AND source = OLD.state AND event = NEW.event AND target = NEW.state
        ) THEN CASE
            WHEN EXISTS (SELECT 1 FROM states WHERE machine = OLD.machine AND name = OLD.state AND terminal)
                THEN RAISE (ABORT, 'fsm: a terminal state is final')
            ELSE RAISE (ABORT, 'fsm: no row of the table')
        END
        WHEN NEW.version IS NOT OLD.version + 1
            THEN RAISE (ABORT, 'fsm: versions have no gap')
        WHEN NEW.position IS NOT (
            SELECT max((SELECT coalesce(max(position), 0) FROM journal), (SELECT position FROM horizon)) + 1
        )
            THEN RAISE (ABORT, 'fsm: positions have no gap')
        -- The upper bound also keeps text out, which SQLite sorts after every number.
        WHEN NOT (NEW.updated_at >= OLD.updated_at AND NEW.updated_at < 1e12)
            THEN RAISE (ABORT, 'fsm: a journal does not run backwards')
    END;
END;

-- Costs nothing where it is kept to: SQLite asks only statements that name one of these columns.
CREATE TRIGGER execution_born_so BEFORE UPDATE OF
    id, machine, agent, user_id, thread_id, parent_id, retry_of, created_at, attempts_max, model_attempts_max,
    metadata, timeouts
ON executions
BEGIN
    SELECT RAISE (ABORT, 'fsm: what an execution is born with stays');
END;

CREATE TRIGGER execution_moved AFTER UPDATE ON executions
BEGIN
    INSERT INTO journal
        (position, previous, execution_id, version, machine, event, source, target, at, attempt, fence, owner, key,
         payload)
    VALUES
        (NEW.position, OLD.position, NEW.id, NEW.version, NEW.machine, NEW.event, OLD.state, NEW.state,
         NEW.updated_at, NEW.attempt, NEW.fence, NEW.owner, NEW.key, NEW.payload);
END;

CREATE TRIGGER execution_stays BEFORE DELETE ON executions
WHEN NOT EXISTS (SELECT 1 FROM states WHERE machine = OLD.machine AND name = OLD.state AND terminal)
BEGIN
    SELECT RAISE (ABORT, 'fsm: an open execution is never deleted');
END;

-- --- the journal: written by two of the triggers above and by nobody else -----------------------------------------

CREATE TRIGGER journal_follows BEFORE INSERT ON journal
BEGIN
    SELECT CASE
        WHEN EXISTS (SELECT 1 FROM journal WHERE position = NEW.position)
            THEN RAISE (ABORT, 'fsm: this position is in the journal already')
        WHEN NEW.key IS NOT NULL AND EXISTS (
            SELECT 1 FROM journal WHERE execution_id = NEW.execution_id AND key = NEW.key
        ) THEN RAISE (ABORT, 'fsm: this key is in the journal already')
        WHEN NOT EXISTS (
            SELECT 1 FROM executions
            WHERE id = NEW.execution_id AND position = NEW.position AND version = NEW.version
                AND state = NEW.target AND event = NEW.event AND machine = NEW.machine
        ) THEN RAISE (ABORT, 'fsm: the journal follows the execution')
    END;
END;

CREATE TRIGGER journal_stays BEFORE UPDATE ON journal
BEGIN
    SELECT RAISE (ABORT, 'fsm: the journal is never rewritten');
END;

CREATE TRIGGER journal_kept BEFORE DELETE ON journal
WHEN EXISTS (SELECT 1 FROM executions WHERE id = OLD.execution_id)
    OR OLD.position > (SELECT position FROM horizon)
BEGIN
    SELECT RAISE (ABORT, 'fsm: the journal of an execution is kept as long as the execution');
END;

CREATE TRIGGER horizon_begins BEFORE INSERT ON horizon
BEGIN
    SELECT RAISE (ABORT, 'fsm: there is one horizon');
END;

CREATE TRIGGER horizon_moves BEFORE UPDATE ON horizon
WHEN NEW.id IS NOT 1
    OR NEW.position IS NOT max(OLD.position, (SELECT coalesce(max(position), 0) FROM journal))
BEGIN
    SELECT RAISE (ABORT, 'fsm: the horizon is where the journal ends');
END;

CREATE TRIGGER horizon_stays BEFORE DELETE ON horizon
BEGIN
    SELECT RAISE (ABORT, 'fsm: there is one horizon');
END;

-- --- machines: a row, then its states, then its law, then the seal ------------------------------------------------

CREATE TRIGGER machine_begins BEFORE INSERT ON machines
WHEN NEW.sealed IS NOT 0
    OR EXISTS (SELECT 1 FROM machines WHERE id = NEW.id)
    OR EXISTS (SELECT 1 FROM machines WHERE content_hash = NEW.content_hash)
BEGIN
    SELECT RAISE (ABORT, 'fsm: a machine is immutable');
END;

CREATE TRIGGER machine_stays BEFORE UPDATE ON machines
WHEN OLD.sealed OR NEW.sealed IS NOT 1 OR NEW.id IS NOT OLD.id OR NEW.content_hash IS NOT OLD.content_hash
    OR NEW.name IS NOT OLD.name OR NEW.document IS NOT OLD.document
BEGIN
    SELECT RAISE (ABORT, 'fsm: a machine is immutable');
END;

CREATE TRIGGER machine_kept BEFORE DELETE ON machines
BEGIN
    SELECT RAISE (ABORT, 'fsm: a machine is immutable');
END;

CREATE TRIGGER states_sealed BEFORE INSERT ON states
WHEN NOT EXISTS (SELECT 1 FROM machines WHERE id = NEW.machine AND NOT sealed)
    OR EXISTS (SELECT 1 FROM states WHERE machine = NEW.machine AND name = NEW.name)
BEGIN
    SELECT RAISE (ABORT, 'fsm: a machine is immutable');
END;

CREATE TRIGGER states_stay BEFORE UPDATE ON states
BEGIN
    SELECT RAISE (ABORT, 'fsm: a machine is immutable');
END;

CREATE TRIGGER states_kept BEFORE DELETE ON states
BEGIN
    SELECT RAISE (ABORT, 'fsm: a machine is immutable');
END;

CREATE TRIGGER law_sealed BEFORE INSERT ON law
BEGIN
    SELECT CASE
        WHEN NOT EXISTS (SELECT 1 FROM machines WHERE id = NEW.machine AND NOT sealed)
            THEN RAISE (ABORT, 'fsm: a machine is immutable')
        WHEN NEW.source <> '' AND NOT EXISTS (
            SELECT 1 FROM states WHERE machine = NEW.machine AND name = NEW.source AND NOT terminal
        ) THEN RAISE (ABORT, 'fsm: nothing leaves a terminal state')
        WHEN NOT EXISTS (SELECT 1 FROM states WHERE machine = NEW.machine AND name = NEW.target)
            THEN RAISE (ABORT, 'fsm: a row leads to a state of its machine')
    END;
END;

CREATE TRIGGER law_stays BEFORE UPDATE ON law
BEGIN
    SELECT RAISE (ABORT, 'fsm: a machine is immutable');
END;

CREATE TRIGGER law_kept BEFORE DELETE ON law
BEGIN
    SELECT RAISE (ABORT, 'fsm: a machine is immutable');
END;
