-- What the store asks for in one round trip, each call a transaction of its own.

-- Commits a batch, step by step in its order. A step is an object: the columns of `identities` and `executions` that
-- it writes, and what comes with it:
--     source     the state before; nothing for a creation
--     claims     whether the owner changes
--     orders     whether it orders that children are cancelled
-- For each step there is a row: its position, or why it was kept out ('conflict', or as `fsm.stores.base.Barred`), and
-- the version or the record that it met.
CREATE FUNCTION fsm.append(steps json)
RETURNS TABLE (place bigint, why text, met bigint, who text) LANGUAGE plpgsql AS $$
DECLARE
    s record;
    machine_id integer;
    lost text[] := '{}'; -- what was decided on a step that is lost is lost too
    met_by bigint[] := '{}';
    lost_at integer;
BEGIN
    FOR s IN SELECT * FROM json_to_recordset(steps) AS step (
        id text, machine text, agent text, user_id text, thread_id text, parent_id text, retry_of text,
        created_at double precision, attempts_max bigint, model_attempts_max bigint, metadata text, timeouts text,
        born_at double precision, backoff_s double precision, backoff_cap_s double precision, born_key text,
        depth bigint,
        state text, version bigint, entered_at double precision, updated_at double precision,
        due_at double precision, due_kind text, attempt bigint, owner text, fence bigint, tools text,
        model_attempt bigint, not_before double precision, breaker text, limit_s double precision, ending text,
        since_at double precision, paused_s double precision, suspended boolean,
        event text, key text, payload text, source text, claims boolean, orders boolean
    ) LOOP
        place := NULL;
        why := NULL;
        met := NULL;
        who := NULL;
        lost_at := array_position(lost, s.id);
        IF lost_at IS NOT NULL THEN
            why := 'conflict';
            met := met_by[lost_at];
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF s.source IS NULL THEN
            SELECT e.version INTO met FROM fsm.executions AS e WHERE e.id = s.id;
            IF FOUND OR s.version <> 0 OR fsm.was_deleted(s.id) THEN
                why := 'conflict';
            END IF;
            IF why IS NULL AND s.born_key IS NOT NULL THEN
                SELECT i.id INTO who FROM fsm.identities AS i
                WHERE i.user_id = s.user_id AND i.born_key = s.born_key;
                IF FOUND THEN
                    why := 'key';
                END IF;
            END IF;
            IF why IS NULL AND s.parent_id IS NOT NULL AND NOT fsm.has_open(s.parent_id) THEN
                why := 'parent';
                who := s.parent_id;
            END IF;
            IF why IS NULL THEN
                SELECT m.id INTO machine_id FROM fsm.machines AS m WHERE m.content_hash = s.machine;
                INSERT INTO fsm.identities AS i (
                    id, machine, agent, user_id, thread_id, parent_id, retry_of, created_at, attempts_max,
                    model_attempts_max, metadata, timeouts, born_at, backoff_s, backoff_cap_s, born_key, depth
                ) VALUES (
                    s.id, machine_id, s.agent, s.user_id, s.thread_id, s.parent_id, s.retry_of, s.created_at,
                    s.attempts_max, s.model_attempts_max, s.metadata::json, s.timeouts::json, s.born_at, s.backoff_s,
                    s.backoff_cap_s, s.born_key, s.depth
                ) ON CONFLICT DO NOTHING RETURNING i.born INTO place;
                IF place IS NULL THEN
                    why := 'conflict'; -- somebody was faster: with the id, or with the key
                ELSE
                    INSERT INTO fsm.executions (
                        id, machine, born, state, ended, version, entered_at, updated_at, due_at, due_kind, attempt,
                        owner, fence, tools, model_attempt, not_before, breaker, limit_s, ending, since_at, paused_s,
                        suspended, position, event, key, payload
                    ) VALUES (
                        s.id, machine_id, place, s.state, false, s.version, s.entered_at, s.updated_at, s.due_at,
                        s.due_kind, s.attempt, s.owner, s.fence, s.tools::json, s.model_attempt, s.not_before, s.breaker,
                        s.limit_s, s.ending::json, s.since_at, s.paused_s, s.suspended, place, s.event, s.key, s.payload::json
                    );
                END IF;
            END IF;
        ELSE
            IF s.key IS NOT NULL THEN
                SELECT e.version INTO met FROM fsm.executions AS e
                JOIN fsm.journal AS j ON j.execution_id = e.id AND j.key = s.key WHERE e.id = s.id;
                IF FOUND THEN
                    why := 'conflict';
                END IF;
            END IF;
            IF why IS NULL AND s.claims AND s.owner IS NOT NULL THEN
                PERFORM FROM fsm.executions AS e WHERE e.id = s.id AND e.version = s.version - 1 FOR NO KEY UPDATE;
                IF FOUND AND fsm.has_left(s.owner) THEN
                    why := 'lease';
                    who := s.owner;
                END IF;
            END IF;
            IF why IS NULL THEN
                UPDATE fsm.executions AS e SET
                    state = s.state, version = s.version, entered_at = s.entered_at, updated_at = s.updated_at,
                    due_at = s.due_at, due_kind = s.due_kind, attempt = s.attempt, owner = s.owner, fence = s.fence,
                    tools = s.tools::json, model_attempt = s.model_attempt, not_before = s.not_before,
                    breaker = s.breaker, limit_s = s.limit_s, ending = s.ending::json, since_at = s.since_at,
                    paused_s = s.paused_s, suspended = s.suspended, event = s.event, key = s.key,
                    payload = s.payload::json
                WHERE e.id = s.id AND e.version = s.version - 1 RETURNING e.position INTO place;
                IF place IS NULL THEN
                    why := 'conflict';
                    SELECT e.version INTO met FROM fsm.executions AS e WHERE e.id = s.id;
                ELSIF s.orders AND EXISTS (SELECT FROM fsm.identities AS i WHERE i.parent_id = s.id) THEN
                    INSERT INTO fsm.orders AS o (execution_id, version, event) VALUES (s.id, s.version, s.event)
                    ON CONFLICT (execution_id) DO UPDATE SET version = excluded.version, event = excluded.event;
                END IF;
            END IF;
        END IF;
        IF why = 'conflict' THEN
            lost := lost || s.id;
            met_by := met_by || met;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- What a reader that tails the journal must know, since a transaction may commit a lower position after a higher one:
-- the last position that was given out, and then, in this order, the transactions that write executions. A writer that
-- takes a position holds such a lock before that, and until its commit can be seen. A standby sees no locks of the others.
CREATE FUNCTION fsm.sample(OUT last bigint, OUT writers text[]) LANGUAGE plpgsql AS $$
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'fsm: a standby cannot be asked how far the journal is settled' USING ERRCODE = '25006';
    END IF;
    SELECT CASE WHEN is_called THEN last_value ELSE 0 END INTO last FROM fsm.positions;
    SELECT array_agg(virtualtransaction) INTO writers FROM pg_locks
    WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
        AND relation IN ('fsm.executions'::regclass, 'fsm.identities'::regclass)
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database());
END $$;

CREATE FUNCTION fsm.register(hash text, called text, declared json, its_states json, its_rows json)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    number integer;
BEGIN
    INSERT INTO fsm.machines (content_hash, name, document) VALUES (hash, called, declared)
    ON CONFLICT DO NOTHING RETURNING id INTO number;
    IF number IS NULL THEN
        RETURN; -- another process was faster, and has committed
    END IF;
    INSERT INTO fsm.states (machine, name, terminal, stopping)
    SELECT number, one ->> 0, (one ->> 1)::boolean, (one ->> 2)::boolean FROM json_array_elements(its_states) AS one;
    INSERT INTO fsm.law (machine, source, event, target)
    SELECT number, coalesce(one ->> 0, ''), one ->> 1, one ->> 2 FROM json_array_elements(its_rows) AS one;
    UPDATE fsm.machines SET sealed = true WHERE id = number;
END $$;

-- Marks the workers whose lease ran out before `now_at` as lost, and returns all that are.
--     spare    give them another term, `spared_max` times in a row at most
--     future   a lease that was renewed later than this many seconds from now is renewed now
-- Who could not renew because the server itself was down is spared too, where the timeline is the server's clock.
CREATE FUNCTION fsm.lose(now_at double precision, spare boolean, spared_max integer, future double precision)
RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    up_since double precision := CASE
        WHEN abs(now_at - extract(epoch FROM clock_timestamp())::double precision) <= future
        THEN extract(epoch FROM pg_postmaster_start_time())::double precision ELSE '-Infinity' END;
BEGIN
    IF EXISTS (
        SELECT FROM fsm.workers WHERE NOT lost AND (renewed_at + ttl_s < now_at OR renewed_at > now_at + future)
    ) THEN
        UPDATE fsm.workers SET renewed_at = now_at WHERE NOT lost AND renewed_at > now_at + future;
        UPDATE fsm.workers SET renewed_at = now_at, spared = spared + 1
        WHERE NOT lost AND renewed_at + ttl_s < now_at AND (spare OR renewed_at < up_since) AND spared < spared_max;
        UPDATE fsm.workers SET lost = true WHERE NOT lost AND renewed_at + ttl_s < now_at;
    END IF;
    RETURN QUERY SELECT id FROM fsm.workers WHERE lost ORDER BY id;
END $$;

-- Deletes ended executions, the first that are named first, and leaves `keep` ended ones if that is not 0.
CREATE FUNCTION fsm.forget(ids text[], keep bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    spare bigint := array_length(ids, 1);
    done bigint;
BEGIN
    -- One after the other: what is to be kept is counted on what is there.
    PERFORM pg_advisory_xact_lock(hashtextextended('fsm.bygone', 0));
    IF keep > 0 THEN
        SELECT count(*) - keep INTO spare FROM fsm.executions WHERE ended;
    END IF;
    DELETE FROM fsm.executions AS e WHERE e.ended AND e.id = ANY (ARRAY(
        SELECT named.id FROM unnest(ids) WITH ORDINALITY AS named (id, number)
        JOIN fsm.executions AS there ON there.id = named.id AND there.ended
        GROUP BY named.id ORDER BY min(named.number) LIMIT greatest(spare, 0)
    ));
    GET DIAGNOSTICS done = ROW_COUNT;
    RETURN done;
END $$;

-- Writes an era's row if it is still as expected, and returns it as it is then; `kept` eras are kept.
CREATE FUNCTION fsm.settle(name text, is_as json, becomes json, kept integer) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    found_row fsm.eras;
    is_now json;
BEGIN
    -- One after the other: an era that has no row yet has none that could be locked.
    PERFORM pg_advisory_xact_lock(hashtextextended('fsm.eras', 0));
    SELECT * INTO found_row FROM fsm.eras WHERE era = name;
    is_now := CASE WHEN found_row.era IS NULL THEN NULL ELSE json_build_array(
        found_row.offset_s, found_row.held_at, found_row.begun_s, found_row.lag_s, found_row.drift_s,
        found_row.even_s) END;
    IF is_now::jsonb IS DISTINCT FROM is_as::jsonb THEN
        RETURN coalesce(is_now, becomes);
    END IF;
    DELETE FROM fsm.eras WHERE era = name;
    INSERT INTO fsm.eras (era, offset_s, held_at, begun_s, lag_s, drift_s, even_s) VALUES (
        name, (becomes ->> 0)::double precision, (becomes ->> 1)::double precision,
        (becomes ->> 2)::double precision, (becomes ->> 3)::double precision, (becomes ->> 4)::double precision,
        (becomes ->> 5)::double precision
    );
    DELETE FROM fsm.eras WHERE number <= (SELECT max(number) FROM fsm.eras) - kept;
    RETURN becomes;
END $$;

-- Keeps reports of loops, and drops old ones and those beyond a number.
CREATE FUNCTION fsm.beat(reports json, kept_s double precision, kept integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO fsm.beats AS b SELECT DISTINCT ON (process, loop) * FROM json_populate_recordset(NULL::fsm.beats, reports)
    ON CONFLICT (process, loop) DO UPDATE SET
        worker = excluded.worker, host = excluded.host, pid = excluded.pid, running = excluded.running,
        turns = excluded.turns, failures = excluded.failures, failing = excluded.failing,
        last_error = excluded.last_error, failed_at = excluded.failed_at, succeeded_at = excluded.succeeded_at,
        alive_at = excluded.alive_at, started_at = excluded.started_at, seen_at = excluded.seen_at;
    DELETE FROM fsm.beats WHERE seen_at < (SELECT max(seen_at) FROM json_populate_recordset(NULL::fsm.beats, reports))
        - kept_s;
    DELETE FROM fsm.beats WHERE (process, loop) IN (
        SELECT process, loop FROM fsm.beats ORDER BY seen_at DESC OFFSET kept
    );
END $$;
