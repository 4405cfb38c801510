-- The table is law here too: whoever writes to this file, with whatever program, is held to it.

CREATE TRIGGER execution_begins BEFORE INSERT ON executions
BEGIN
    SELECT CASE
        WHEN EXISTS (SELECT 1 FROM executions WHERE id = NEW.id)
            THEN RAISE (ABORT, 'fsm: this execution exists already')
        WHEN NEW.version IS NOT 0 OR NOT EXISTS (
            SELECT 1 FROM law
            WHERE machine = NEW.machine AND source = '' AND event = NEW.event AND target = NEW.state
        ) THEN RAISE (ABORT, 'fsm: an execution begins at version 0 in the initial state of its machine')
    END;
END;

CREATE TRIGGER execution_begun AFTER INSERT ON executions
BEGIN
    INSERT INTO journal
        (execution_id, version, machine, event, source, target, at, attempt, fence, owner, key, payload)
    VALUES
        (NEW.id, NEW.version, NEW.machine, NEW.event, NULL, NEW.state, NEW.updated_at,
         NEW.attempt, NEW.fence, NEW.owner, NEW.key, NEW.payload);
END;

CREATE TRIGGER execution_moves BEFORE UPDATE ON executions
BEGIN
    SELECT CASE
        WHEN EXISTS (
            SELECT 1 FROM states WHERE machine = OLD.machine AND name = OLD.state AND terminal
        ) THEN RAISE (ABORT, 'fsm: a terminal state is final')
        WHEN NEW.version IS NOT OLD.version + 1
            THEN RAISE (ABORT, 'fsm: versions have no gap')
        WHEN NEW.id IS NOT OLD.id OR NEW.machine IS NOT OLD.machine OR NEW.user_id IS NOT OLD.user_id
            OR NEW.agent IS NOT OLD.agent OR NEW.thread_id IS NOT OLD.thread_id
            OR NEW.created_at IS NOT OLD.created_at
            THEN RAISE (ABORT, 'fsm: what an execution is born with stays')
        WHEN NEW.updated_at < OLD.updated_at
            THEN RAISE (ABORT, 'fsm: a journal does not run backwards')
        WHEN NOT EXISTS (
            SELECT 1 FROM law
            WHERE machine = OLD.machine AND source = OLD.state AND event = NEW.event AND target = NEW.state
        ) THEN RAISE (ABORT, 'fsm: no row of the table')
    END;
END;

CREATE TRIGGER execution_moved AFTER UPDATE ON executions
BEGIN
    INSERT INTO journal
        (execution_id, version, machine, event, source, target, at, attempt, fence, owner, key, payload)
    VALUES
        (NEW.id, NEW.version, NEW.machine, NEW.event, OLD.state, NEW.state, NEW.updated_at,
         NEW.attempt, NEW.fence, NEW.owner, NEW.key, NEW.payload);
END;

CREATE TRIGGER execution_stays BEFORE DELETE ON executions
WHEN NOT EXISTS (SELECT 1 FROM states WHERE machine = OLD.machine AND name = OLD.state AND terminal)
BEGIN
    SELECT RAISE (ABORT, 'fsm: an open execution is never deleted');
END;

-- The journal is written by the two triggers above and by nobody else.
CREATE TRIGGER journal_follows BEFORE INSERT ON journal
BEGIN
    SELECT CASE
        WHEN EXISTS (
            SELECT 1 FROM journal WHERE execution_id = NEW.execution_id AND version = NEW.version
        ) THEN RAISE (ABORT, 'fsm: this version is in the journal already')
        WHEN NOT EXISTS (
            SELECT 1 FROM executions
            WHERE id = NEW.execution_id AND version = NEW.version AND state = NEW.target
                AND event = NEW.event AND machine = NEW.machine
        ) THEN RAISE (ABORT, 'fsm: the journal follows the execution')
    END;
END;

CREATE TRIGGER journal_stays BEFORE UPDATE ON journal
BEGIN
    SELECT RAISE (ABORT, 'fsm: the journal is never rewritten');
END;

CREATE TRIGGER journal_kept BEFORE DELETE ON journal
WHEN EXISTS (SELECT 1 FROM executions WHERE id = OLD.execution_id)
BEGIN
    SELECT RAISE (ABORT, 'fsm: the journal of an execution is kept as long as the execution');
END;

CREATE TRIGGER law_sealed BEFORE INSERT ON law
BEGIN
    SELECT CASE
        WHEN EXISTS (SELECT 1 FROM machines WHERE id = NEW.machine AND sealed)
            THEN RAISE (ABORT, 'fsm: a machine is immutable')
        WHEN EXISTS (SELECT 1 FROM states WHERE machine = NEW.machine AND name = NEW.source AND terminal)
            THEN RAISE (ABORT, 'fsm: nothing leaves a terminal state')
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

CREATE TRIGGER states_sealed BEFORE INSERT ON states
WHEN EXISTS (SELECT 1 FROM machines WHERE id = NEW.machine AND sealed)
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

CREATE TRIGGER machines_stay BEFORE UPDATE ON machines
WHEN OLD.sealed OR NEW.content_hash IS NOT OLD.content_hash OR NEW.document IS NOT OLD.document
BEGIN
    SELECT RAISE (ABORT, 'fsm: a machine is immutable');
END;

CREATE TRIGGER machines_kept BEFORE DELETE ON machines
BEGIN
    SELECT RAISE (ABORT, 'fsm: a machine is immutable');
END;
