-- Roles with no more rights than they need. The owner of the schema migrates it and grants:
--     SELECT fsm.grant_worker('app');          fires events, sweeps, prunes; changes no table, no law, no trigger
--     SELECT fsm.grant_reader('dashboard');    reads everything, writes nothing
--     SELECT fsm.grant_user('ada_role', 'ada') reads the executions of one user, whatever SQL it writes
--     SELECT fsm.grant_user('chat')            the same, of the user that each session names: ?user_id=ada in the URL,
--                                              or SET agent_fsm.user_id = 'ada'; no rows while none is named
-- A role that is bound to a user by name keeps to it: what its sessions set changes nothing.

CREATE TABLE fsm.bound (
    role name PRIMARY KEY,
    user_id text COLLATE "C" NOT NULL
);

CREATE FUNCTION fsm.bound_user() RETURNS text LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT coalesce(
        (SELECT user_id FROM fsm.bound WHERE role = session_user), current_setting('agent_fsm.user_id', true)
    );
$$;

ALTER TABLE fsm.identities ENABLE ROW LEVEL SECURITY;
ALTER TABLE fsm.executions ENABLE ROW LEVEL SECURITY;
ALTER TABLE fsm.journal ENABLE ROW LEVEL SECURITY;

CREATE FUNCTION fsm.let(role name, which text, condition text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    one name;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %s TO %I', (
        SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'fsm.layout'::regclass
    ), role);
    FOREACH one IN ARRAY ARRAY['identities', 'executions', 'journal']::name[] LOOP
        EXECUTE format('DROP POLICY IF EXISTS %I ON fsm.%I', role, one);
        EXECUTE format(
            'CREATE POLICY %I ON fsm.%I FOR %s TO %I USING (%s)', role, one, which, role,
            CASE WHEN condition = 'true' OR one = 'identities' THEN condition
                -- What is seen of an execution follows from what is seen of its identity.
                WHEN one = 'executions'
                THEN 'EXISTS (SELECT FROM fsm.identities AS i WHERE i.id = executions.id)'
                ELSE 'EXISTS (SELECT FROM fsm.identities AS i WHERE i.id = journal.execution_id)' END
        );
    END LOOP;
END $$;

CREATE FUNCTION fsm.grant_worker(role name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM fsm.let(role, 'ALL', 'true');
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %s TO %I', (
        SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'fsm.layout'::regclass
    ), role);
    EXECUTE format('REVOKE ALL ON fsm.bound FROM %I', role);
    EXECUTE format('GRANT INSERT ON fsm.machines, fsm.states, fsm.law TO %I', role);
    EXECUTE format('GRANT UPDATE (sealed) ON fsm.machines TO %I', role);
    EXECUTE format('GRANT INSERT ON fsm.identities, fsm.breakers, fsm.mark TO %I', role);
    EXECUTE format('GRANT UPDATE ON fsm.breakers, fsm.mark TO %I', role);
    EXECUTE format('GRANT INSERT, UPDATE, DELETE ON fsm.executions, fsm.orders, fsm.workers, fsm.eras, fsm.beats '
        'TO %I', role);
    EXECUTE format('GRANT USAGE, SELECT ON fsm.positions TO %I', role);
END $$;

CREATE FUNCTION fsm.grant_reader(role name) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM fsm.let(role, 'SELECT', 'true');
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %s TO %I', (
        SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'fsm.layout'::regclass
    ), role);
    EXECUTE format('REVOKE ALL ON fsm.bound FROM %I', role);
    EXECUTE format('GRANT SELECT ON fsm.positions TO %I', role);
END $$;

CREATE FUNCTION fsm.grant_user(role name, user_id text DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM fsm.let(role, 'SELECT', 'user_id = fsm.bound_user()');
    DELETE FROM fsm.bound AS b WHERE b.role = grant_user.role;
    IF user_id IS NOT NULL THEN
        INSERT INTO fsm.bound (role, user_id) VALUES (grant_user.role, grant_user.user_id);
    END IF;
    EXECUTE format('GRANT SELECT ON fsm.identities, fsm.executions, fsm.journal, fsm.machines, fsm.states, fsm.law, '
        'fsm.layout, fsm.positions TO %I', role);
END $$;

REVOKE EXECUTE ON FUNCTION fsm.grant_worker(name), fsm.grant_reader(name), fsm.grant_user(name, text),
    fsm.let(name, text, text) FROM PUBLIC;
