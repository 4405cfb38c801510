-- The table is law here too: every writer, with any program, is held to it. What the law refuses has an SQLSTATE
-- of its own: FS001 what breaks it, FS002 a claim by a worker that is gone, FS003 a birth under a parent
-- that is over.
-- `pg_trigger_depth()` is 0 in a condition of a trigger when a statement of a session's own fires it. What writes journals
-- and tombstones does so with the owner's rights, so that a worker's role needs none on them.

-- Refuses whatever it is called for; its first argument says why.
CREATE FUNCTION fsm.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'fsm: %', TG_ARGV[0] USING ERRCODE = 'FS001';
END $$;

-- --- executions ---------------------------------------------------------------------------------------------------

CREATE FUNCTION fsm.is_over(machine_id integer, state_name text) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
DECLARE
    is_terminal boolean;
BEGIN
    SELECT terminal INTO is_terminal FROM fsm.states WHERE machine = machine_id AND name = state_name;
    IF is_terminal IS NULL THEN
        RAISE EXCEPTION 'fsm: % is no state of machine %', state_name, machine_id USING ERRCODE = 'FS001';
    END IF;
    RETURN is_terminal;
END $$;

CREATE FUNCTION fsm.was_deleted(execution_id text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM fsm.tombstones WHERE id = execution_id)
        OR EXISTS (SELECT FROM fsm.bygone WHERE execution_id BETWEEN first AND last);
$$;

-- The parent stays as it is until this transaction ends: it cannot end while a child is born under it.
CREATE FUNCTION fsm.has_open(parent text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM fsm.executions AS e
    JOIN fsm.states AS s ON s.machine = e.machine AND s.name = e.state AND NOT s.terminal AND NOT s.stopping
    WHERE e.id = parent FOR SHARE OF e;
    RETURN FOUND;
END $$;

-- A claim is made while the worker is there: it cannot be lost before this transaction ends.
CREATE FUNCTION fsm.has_left(worker text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    is_lost boolean;
BEGIN
    SELECT lost INTO is_lost FROM fsm.workers WHERE id = worker FOR SHARE;
    RETURN coalesce(is_lost, EXISTS (SELECT FROM fsm.departed WHERE id = worker));
END $$;

CREATE FUNCTION fsm.identity_begins() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF fsm.was_deleted(NEW.id) THEN
        RAISE EXCEPTION 'fsm: % was deleted, and is not born again', NEW.id USING ERRCODE = 'FS001';
    END IF;
    IF NEW.parent_id IS NOT NULL AND NOT fsm.has_open(NEW.parent_id) THEN
        RAISE EXCEPTION 'fsm: % has ended, or is about to, and starts no children', NEW.parent_id
            USING ERRCODE = 'FS003';
    END IF;
    IF NOT (
        NEW.created_at BETWEEN '-1e12' AND '1e12' AND NEW.born_at BETWEEN '-1e12' AND '1e12'
        AND NEW.attempts_max > 0 AND NEW.model_attempts_max > 0 AND NEW.depth >= 0
        AND NEW.backoff_s BETWEEN 0 AND '1.7976931348623157e308'
        AND NEW.backoff_cap_s BETWEEN 0 AND '1.7976931348623157e308'
        AND (NEW.metadata IS NULL OR json_typeof(NEW.metadata) = 'object')
        AND (NEW.timeouts IS NULL OR json_typeof(NEW.timeouts) = 'object')
    ) THEN
        RAISE EXCEPTION 'fsm: an execution is born whole: instants and numbers within bounds, JSON objects'
            USING ERRCODE = 'FS001';
    END IF;
    NEW.born := nextval('fsm.positions');
    RETURN NEW;
END $$;
CREATE TRIGGER identity_begins BEFORE INSERT ON fsm.identities
    FOR EACH ROW EXECUTE FUNCTION fsm.identity_begins();
CREATE TRIGGER identity_stays BEFORE UPDATE ON fsm.identities
    FOR EACH ROW EXECUTE FUNCTION fsm.refuse('what an execution is born with stays');
CREATE TRIGGER identity_kept BEFORE DELETE ON fsm.identities
    FOR EACH ROW WHEN (pg_trigger_depth() = 0)
    EXECUTE FUNCTION fsm.refuse('what an execution is born with is kept as long as the execution');

CREATE FUNCTION fsm.execution_begins() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.version <> 0 OR NEW.attempt <> 0 OR NEW.fence <> 0 OR NEW.model_attempt <> 0 OR NEW.suspended
        OR NEW.owner IS NOT NULL OR NEW.tools IS NOT NULL OR NEW.ending IS NOT NULL
        OR NOT EXISTS (SELECT FROM fsm.machines WHERE id = NEW.machine AND sealed)
        OR NOT EXISTS (
            SELECT FROM fsm.identities AS i
            WHERE i.id = NEW.id AND i.machine = NEW.machine AND i.born = NEW.born
        )
    THEN
        RAISE EXCEPTION 'fsm: an execution begins at version 0, with nothing claimed, as its identity says'
            USING ERRCODE = 'FS001';
    END IF;
    NEW.ended := fsm.is_over(NEW.machine, NEW.state);
    IF NOT (
        NEW.entered_at BETWEEN '-1e12' AND '1e12' AND NEW.updated_at BETWEEN '-1e12' AND '1e12'
        AND NEW.since_at BETWEEN '-1e12' AND '1e12'
        AND NEW.paused_s BETWEEN 0 AND '1.7976931348623157e308' AND NEW.model_attempt >= 0
        AND (NEW.due_at IS NULL) = (NEW.due_kind IS NULL)
        AND (NEW.due_at IS NULL OR NEW.due_at BETWEEN '-1.7976931348623157e308' AND '1.7976931348623157e308')
        AND (NEW.not_before IS NULL
            OR NEW.not_before BETWEEN '-1.7976931348623157e308' AND '1.7976931348623157e308')
        AND (NEW.limit_s IS NULL OR NEW.limit_s BETWEEN 0 AND '1.7976931348623157e308')
        AND (NEW.tools IS NULL OR json_typeof(NEW.tools) = 'array')
        AND (NEW.payload IS NULL OR json_typeof(NEW.payload) = 'object')
        AND (NEW.ending IS NULL OR NEW.ended AND json_typeof(NEW.ending) = 'object')
    ) THEN
        RAISE EXCEPTION 'fsm: a record is whole: instants within bounds, a deadline has a kind, JSON where it is kept'
            USING ERRCODE = 'FS001';
    END IF;
    NEW.position := NEW.born;
    RETURN NEW;
END $$;
CREATE TRIGGER execution_begins BEFORE INSERT ON fsm.executions
    FOR EACH ROW EXECUTE FUNCTION fsm.execution_begins();

CREATE FUNCTION fsm.execution_begun() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO fsm.journal
        (position, execution_id, version, machine, event, source, target, at, attempt, fence, owner, key, payload)
    VALUES
        (NEW.position, NEW.id, 0, NEW.machine, NEW.event, '', NEW.state, NEW.updated_at, 0, 0, NULL, NEW.key,
         NEW.payload);
    RETURN NULL;
END $$;
CREATE TRIGGER execution_begun AFTER INSERT ON fsm.executions
    FOR EACH ROW EXECUTE FUNCTION fsm.execution_begun();

-- That the move is a row of the table is the journal's foreign key. No row of it leaves a terminal state
-- (`law_begins`), so that one key answers for legality and finality.
CREATE FUNCTION fsm.execution_moves() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF OLD.ended THEN
        RAISE EXCEPTION 'fsm: a terminal state is final' USING ERRCODE = 'FS001';
    END IF;
    IF NEW.version <> OLD.version + 1 OR NEW.id <> OLD.id OR NEW.machine <> OLD.machine OR NEW.born <> OLD.born THEN
        RAISE EXCEPTION 'fsm: versions have no gap, and what an execution is born with stays' USING ERRCODE = 'FS001';
    END IF;
    IF NEW.updated_at < OLD.updated_at OR NEW.paused_s < OLD.paused_s
        OR NEW.model_attempt > OLD.model_attempt + 1
        OR NEW.entered_at <> OLD.entered_at AND NEW.entered_at <> NEW.updated_at
        OR NEW.fence NOT BETWEEN OLD.fence AND OLD.fence + 1
        OR NEW.attempt NOT BETWEEN OLD.attempt AND OLD.attempt + 1
        OR NEW.fence = OLD.fence AND (NEW.attempt <> OLD.attempt OR NEW.owner IS DISTINCT FROM OLD.owner)
    THEN
        RAISE EXCEPTION 'fsm: time, attempts and fences never fall, and the fence rises with every change of owner'
            USING ERRCODE = 'FS001';
    END IF;
    IF NEW.owner IS DISTINCT FROM OLD.owner AND NEW.owner IS NOT NULL AND fsm.has_left(NEW.owner) THEN
        RAISE EXCEPTION 'fsm: worker % was lost, or has left, and claims nothing', NEW.owner USING ERRCODE = 'FS002';
    END IF;
    NEW.ended := CASE WHEN NEW.state = OLD.state THEN false ELSE fsm.is_over(NEW.machine, NEW.state) END;
    IF NOT (
        NEW.entered_at BETWEEN '-1e12' AND '1e12' AND NEW.updated_at BETWEEN '-1e12' AND '1e12'
        AND NEW.since_at BETWEEN '-1e12' AND '1e12'
        AND NEW.paused_s BETWEEN 0 AND '1.7976931348623157e308' AND NEW.model_attempt >= 0
        AND (NEW.due_at IS NULL) = (NEW.due_kind IS NULL)
        AND (NEW.due_at IS NULL OR NEW.due_at BETWEEN '-1.7976931348623157e308' AND '1.7976931348623157e308')
        AND (NEW.not_before IS NULL
            OR NEW.not_before BETWEEN '-1.7976931348623157e308' AND '1.7976931348623157e308')
        AND (NEW.limit_s IS NULL OR NEW.limit_s BETWEEN 0 AND '1.7976931348623157e308')
        AND (NEW.tools IS NULL OR json_typeof(NEW.tools) = 'array')
        AND (NEW.payload IS NULL OR json_typeof(NEW.payload) = 'object')
        AND (NEW.ending IS NULL OR NEW.ended AND json_typeof(NEW.ending) = 'object')
    ) THEN
        RAISE EXCEPTION 'fsm: a record is whole: instants within bounds, a deadline has a kind, JSON where it is kept'
            USING ERRCODE = 'FS001';
    END IF;
    NEW.position := nextval('fsm.positions');
    INSERT INTO fsm.journal
        (position, execution_id, version, machine, event, source, target, at, attempt, fence, owner, key, payload)
    VALUES
        (NEW.position, NEW.id, NEW.version, NEW.machine, NEW.event, OLD.state, NEW.state, NEW.updated_at,
         NEW.attempt, NEW.fence, NEW.owner, NEW.key, NEW.payload);
    RETURN NEW;
END $$;
CREATE TRIGGER execution_moves BEFORE UPDATE ON fsm.executions
    FOR EACH ROW EXECUTE FUNCTION fsm.execution_moves();

CREATE TRIGGER execution_stays BEFORE DELETE ON fsm.executions
    FOR EACH ROW WHEN (NOT OLD.ended) EXECUTE FUNCTION fsm.refuse('an open execution is never deleted');

-- With an execution goes all that is kept of it; its id stays behind, and its place.
CREATE FUNCTION fsm.executions_buried() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    many bigint;
BEGIN
    DELETE FROM fsm.journal WHERE execution_id IN (SELECT id FROM gone);
    DELETE FROM fsm.identities WHERE id IN (SELECT id FROM gone);
    INSERT INTO fsm.tombstones (id, born) SELECT id, born FROM gone;
    GET DIAGNOSTICS many = ROW_COUNT;
    UPDATE fsm.bygone SET kept = kept + many RETURNING kept - 1000000 INTO many;
    IF many > 0 THEN
        WITH folded AS (
            DELETE FROM fsm.tombstones
            WHERE id IN (SELECT id FROM fsm.tombstones ORDER BY id LIMIT many) RETURNING id
        )
        UPDATE fsm.bygone SET kept = 1000000,
            first = least(first, (SELECT min(id) FROM folded)), last = greatest(last, (SELECT max(id) FROM folded));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER executions_buried AFTER DELETE ON fsm.executions
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION fsm.executions_buried();

CREATE TRIGGER tombstone_follows BEFORE INSERT OR UPDATE OR DELETE ON fsm.tombstones
    FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION fsm.refuse('what was deleted stays so');
CREATE TRIGGER bygone_follows BEFORE INSERT OR UPDATE OR DELETE ON fsm.bygone
    FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION fsm.refuse('what was deleted stays so');

-- --- the journal: written by two of the triggers above and by nothing else -----------------------------------------

CREATE TRIGGER journal_follows BEFORE INSERT OR DELETE ON fsm.journal
    FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION fsm.refuse('the journal follows the execution');
CREATE TRIGGER journal_stays BEFORE UPDATE ON fsm.journal
    FOR EACH ROW EXECUTE FUNCTION fsm.refuse('the journal is never rewritten');

-- --- machines: a row, then its states, then its law, then the seal ------------------------------------------------

CREATE TRIGGER machine_begins BEFORE INSERT ON fsm.machines
    FOR EACH ROW WHEN (NEW.sealed) EXECUTE FUNCTION fsm.refuse('a machine is sealed when it is complete');
CREATE TRIGGER machine_stays BEFORE UPDATE ON fsm.machines
    FOR EACH ROW WHEN (
        OLD.sealed OR NOT NEW.sealed OR NEW.id <> OLD.id OR NEW.content_hash <> OLD.content_hash
        OR NEW.name <> OLD.name OR NEW.document::text <> OLD.document::text
    ) EXECUTE FUNCTION fsm.refuse('a machine is immutable');
CREATE TRIGGER machine_kept BEFORE DELETE ON fsm.machines
    FOR EACH ROW EXECUTE FUNCTION fsm.refuse('a machine is immutable');

CREATE FUNCTION fsm.law_begins() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM fsm.machines WHERE id = NEW.machine AND NOT sealed) THEN
        RAISE EXCEPTION 'fsm: a machine is immutable' USING ERRCODE = 'FS001';
    END IF;
    IF TG_TABLE_NAME = 'law' AND to_jsonb(NEW) ->> 'source' <> '' AND fsm.is_over(
        NEW.machine, to_jsonb(NEW) ->> 'source'
    ) THEN
        RAISE EXCEPTION 'fsm: nothing leaves a terminal state' USING ERRCODE = 'FS001';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER states_begin BEFORE INSERT ON fsm.states FOR EACH ROW EXECUTE FUNCTION fsm.law_begins();
CREATE TRIGGER states_stay BEFORE UPDATE OR DELETE ON fsm.states
    FOR EACH ROW EXECUTE FUNCTION fsm.refuse('a machine is immutable');
CREATE TRIGGER law_begins BEFORE INSERT ON fsm.law FOR EACH ROW EXECUTE FUNCTION fsm.law_begins();
CREATE TRIGGER law_stays BEFORE UPDATE OR DELETE ON fsm.law
    FOR EACH ROW EXECUTE FUNCTION fsm.refuse('a machine is immutable');

-- --- orders and workers -------------------------------------------------------------------------------------------

CREATE FUNCTION fsm.worker_changes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF EXISTS (SELECT FROM fsm.departed WHERE id = NEW.id) THEN
            RAISE EXCEPTION 'fsm: a worker registers once' USING ERRCODE = 'FS001';
        END IF;
    ELSIF OLD.lost AND NOT NEW.lost OR NEW.id <> OLD.id OR NEW.ttl_s <> OLD.ttl_s THEN
        RAISE EXCEPTION 'fsm: a worker renews its lease, and one that was lost stays lost' USING ERRCODE = 'FS001';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER worker_changes BEFORE INSERT OR UPDATE ON fsm.workers
    FOR EACH ROW EXECUTE FUNCTION fsm.worker_changes();

-- Ten thousand that have left are remembered (`fsm.stores.base.DEPARTED`).
CREATE FUNCTION fsm.worker_departs() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO fsm.departed (id) VALUES (OLD.id) ON CONFLICT DO NOTHING;
    DELETE FROM fsm.departed WHERE number <= (SELECT max(number) FROM fsm.departed) - 10000;
    RETURN NULL;
END $$;
CREATE TRIGGER worker_departs AFTER DELETE ON fsm.workers FOR EACH ROW EXECUTE FUNCTION fsm.worker_departs();
CREATE TRIGGER departed_follows BEFORE INSERT OR UPDATE OR DELETE ON fsm.departed
    FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION fsm.refuse('a worker that has left stays away');

-- --- breakers -----------------------------------------------------------------------------------------------------

CREATE FUNCTION fsm.breaker_changes() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before text;
BEGIN
    IF NOT EXISTS (SELECT FROM fsm.machines WHERE id = NEW.machine AND sealed) THEN
        RAISE EXCEPTION 'fsm: a machine is law once it is sealed' USING ERRCODE = 'FS001';
    END IF;
    IF TG_OP = 'INSERT' THEN
        -- A breaker without a row is in its machine's initial state: the first row is the first change.
        SELECT target INTO before FROM fsm.law WHERE machine = NEW.machine AND source = '';
        IF NEW.version <> 1 OR NEW.event IS NULL THEN
            RAISE EXCEPTION 'fsm: a breaker begins with a row of the table, at version 1' USING ERRCODE = 'FS001';
        END IF;
    ELSE
        before := OLD.state;
        IF NEW.key <> OLD.key OR NEW.version <> OLD.version + 1 OR NEW.generation < OLD.generation
            OR NEW.state <> OLD.state AND NEW.generation = OLD.generation
            OR NEW.event IS NULL AND (NEW.state <> OLD.state OR NEW.generation <> OLD.generation)
        THEN
            RAISE EXCEPTION 'fsm: a breaker''s versions have no gap, and a change of state raises the generation'
                USING ERRCODE = 'FS001';
        END IF;
    END IF;
    IF NEW.event IS NULL THEN
        RETURN NULL;
    END IF;
    -- Its lines are few: one writer after the other makes their positions ascend in the order of the commits.
    LOCK TABLE fsm.breaker_journal IN SHARE ROW EXCLUSIVE MODE;
    INSERT INTO fsm.breaker_journal
        (key, version, machine, event, source, target, generation, at, actor, reason)
    VALUES
        (NEW.key, NEW.version, NEW.machine, NEW.event, before, NEW.state, NEW.generation, NEW.at, NEW.actor,
         NEW.reason);
    -- Of each key the newest lines are kept (`fsm.stores.breakers.BREAKER_LINES`).
    DELETE FROM fsm.breaker_journal WHERE key = NEW.key AND position <= (
        SELECT position FROM fsm.breaker_journal WHERE key = NEW.key ORDER BY position DESC OFFSET 1000 LIMIT 1
    );
    RETURN NULL;
END $$;
CREATE TRIGGER breaker_changes AFTER INSERT OR UPDATE ON fsm.breakers
    FOR EACH ROW EXECUTE FUNCTION fsm.breaker_changes();
CREATE TRIGGER breaker_stays BEFORE DELETE ON fsm.breakers
    FOR EACH ROW EXECUTE FUNCTION fsm.refuse('a breaker is reset, never deleted');
CREATE TRIGGER breaker_journal_follows BEFORE INSERT OR DELETE ON fsm.breaker_journal
    FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION fsm.refuse('the journal follows the breaker');
CREATE TRIGGER breaker_journal_stays BEFORE UPDATE ON fsm.breaker_journal
    FOR EACH ROW EXECUTE FUNCTION fsm.refuse('the journal is never rewritten');

-- --- nothing is truncated -----------------------------------------------------------------------------------------

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'machines', 'states', 'law', 'identities', 'executions', 'journal', 'tombstones', 'bygone', 'departed',
        'breakers', 'breaker_journal'
    ] LOOP
        EXECUTE format(
            'CREATE TRIGGER nothing_is_truncated BEFORE TRUNCATE ON fsm.%I FOR EACH STATEMENT '
            'EXECUTE FUNCTION fsm.refuse(''the registry is pruned, never truncated'')', name
        );
    END LOOP;
END $$;
