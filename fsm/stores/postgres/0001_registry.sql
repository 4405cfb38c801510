-- The registry: machines, executions, the journal, workers, breakers. The schema's name is put in the place of `fsm`.

-- One row: the version that the migrations have brought the schema to.
CREATE TABLE fsm.layout (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version integer NOT NULL
);
INSERT INTO fsm.layout (version) VALUES (0);

-- A machine is immutable data under its content hash. It is sealed once its states and its law are complete.
CREATE TABLE fsm.machines (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    content_hash text COLLATE "C" NOT NULL UNIQUE,
    name text NOT NULL,
    document json NOT NULL,
    sealed boolean NOT NULL DEFAULT false
);

CREATE TABLE fsm.states (
    machine integer NOT NULL REFERENCES fsm.machines,
    name text COLLATE "C" NOT NULL,
    terminal boolean NOT NULL,
    stopping boolean NOT NULL,
    PRIMARY KEY (machine, name)
);

-- The table as law: every (source, event, target) that may happen. The creation's source is ''.
CREATE TABLE fsm.law (
    machine integer NOT NULL REFERENCES fsm.machines,
    source text COLLATE "C" NOT NULL,
    event text COLLATE "C" NOT NULL,
    target text COLLATE "C" NOT NULL,
    PRIMARY KEY (machine, source, event, target),
    FOREIGN KEY (machine, target) REFERENCES fsm.states
);

-- A position is a subscriber's cursor. Positions do not ascend in the order of the commits: see `fsm.sample`.
CREATE SEQUENCE fsm.positions;

-- What its columns hold beyond their types is checked by triggers (0002_law.sql): a constraint is prepared again by each
-- statement, which cost more than the transition itself (measured).
--
-- What an execution is born with, and keeps. It stands apart, so that a transition writes to none of its indexes.
CREATE TABLE fsm.identities (
    id text COLLATE "C" PRIMARY KEY,
    machine integer NOT NULL REFERENCES fsm.machines,
    agent text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL,
    parent_id text COLLATE "C",
    retry_of text COLLATE "C",
    created_at double precision NOT NULL,
    attempts_max bigint NOT NULL,
    model_attempts_max bigint NOT NULL,
    metadata json,
    timeouts json,
    born_at double precision NOT NULL,
    backoff_s double precision NOT NULL,
    backoff_cap_s double precision NOT NULL,
    born_key text COLLATE "C",
    depth bigint NOT NULL,
    born bigint NOT NULL -- the position of its first row: pages follow the order of the births
);
CREATE INDEX identities_born ON fsm.identities (born);
CREATE INDEX identities_agent ON fsm.identities (agent, born);
CREATE INDEX identities_user ON fsm.identities (user_id, born);
CREATE INDEX identities_thread ON fsm.identities (thread_id, born);
CREATE INDEX identities_parent ON fsm.identities (parent_id, born) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX identities_born_key ON fsm.identities (user_id, born_key) WHERE born_key IS NOT NULL;

-- What an execution is now. `event`, `key` and `payload` are those of its last transition and `position` is its place
-- in the journal: a trigger writes the journal from them, so that state and journal are one statement.
CREATE TABLE fsm.executions (
    id text COLLATE "C" PRIMARY KEY REFERENCES fsm.identities,
    machine integer NOT NULL REFERENCES fsm.machines,
    born bigint NOT NULL,
    state text COLLATE "C" NOT NULL,
    ended boolean NOT NULL, -- follows from the state
    version bigint NOT NULL,
    entered_at double precision NOT NULL,
    updated_at double precision NOT NULL,
    due_at double precision,
    due_kind text,
    attempt bigint NOT NULL,
    owner text COLLATE "C",
    fence bigint NOT NULL,
    tools json,
    model_attempt bigint NOT NULL,
    not_before double precision,
    breaker text,
    limit_s double precision,
    ending json,
    since_at double precision NOT NULL,
    paused_s double precision NOT NULL,
    suspended boolean NOT NULL,
    position bigint NOT NULL,
    event text COLLATE "C" NOT NULL,
    key text COLLATE "C",
    payload json
) WITH (fillfactor = 80);
CREATE INDEX executions_state ON fsm.executions (state, born);
CREATE INDEX executions_due ON fsm.executions (due_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX executions_owner ON fsm.executions (owner, id) WHERE owner IS NOT NULL AND NOT ended;
CREATE INDEX executions_ended ON fsm.executions (since_at, id) WHERE ended;

CREATE TABLE fsm.journal (
    position bigint PRIMARY KEY,
    execution_id text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    machine integer NOT NULL,
    event text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL, -- '' for the creation
    target text COLLATE "C" NOT NULL,
    at double precision NOT NULL,
    attempt bigint NOT NULL,
    fence bigint NOT NULL,
    owner text COLLATE "C",
    key text COLLATE "C",
    payload json,
    CONSTRAINT journal_law FOREIGN KEY (machine, source, event, target) REFERENCES fsm.law
);
CREATE UNIQUE INDEX journal_version ON fsm.journal (execution_id, version);
CREATE UNIQUE INDEX journal_key ON fsm.journal (execution_id, key) WHERE key IS NOT NULL;

-- What was deleted is not born again. Of more than a million tombstones the smallest, which are the oldest ids, are
-- kept as one range: no id between `first` and `last` is born any more.
CREATE TABLE fsm.tombstones (
    id text COLLATE "C" PRIMARY KEY,
    born bigint NOT NULL -- its place, for pages that go on after it
);
CREATE TABLE fsm.bygone (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    kept bigint NOT NULL,
    first text COLLATE "C",
    last text COLLATE "C"
);
INSERT INTO fsm.bygone (kept) VALUES (0);

-- Written in the transaction of the step that gives the order, deleted when it is carried out.
CREATE TABLE fsm.orders (
    execution_id text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL,
    event text NOT NULL
);

-- --- time and workers ---------------------------------------------------------------------------------------------

CREATE TABLE fsm.eras (
    era text COLLATE "C" PRIMARY KEY,
    number bigint GENERATED ALWAYS AS IDENTITY,
    offset_s double precision NOT NULL,
    held_at double precision,
    begun_s double precision NOT NULL,
    lag_s double precision NOT NULL,
    drift_s double precision NOT NULL,
    even_s double precision NOT NULL
);

CREATE TABLE fsm.mark (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    steady_at double precision NOT NULL CHECK (steady_at BETWEEN -1e12 AND 1e12),
    wall_at double precision NOT NULL CHECK (wall_at BETWEEN -1e12 AND 1e12),
    monotonic_s double precision
);

CREATE TABLE fsm.workers (
    id text COLLATE "C" PRIMARY KEY,
    name text NOT NULL,
    ttl_s double precision NOT NULL CHECK (ttl_s BETWEEN 0 AND 1.7976931348623157e308),
    started_at double precision NOT NULL CHECK (started_at BETWEEN -1e12 AND 1e12),
    renewed_at double precision NOT NULL CHECK (renewed_at BETWEEN -1e12 AND 1e12),
    lost boolean NOT NULL DEFAULT false,
    spared integer NOT NULL DEFAULT 0 -- how often it was given another term since it last renewed
);

CREATE TABLE fsm.departed (
    id text COLLATE "C" PRIMARY KEY,
    number bigint GENERATED ALWAYS AS IDENTITY
);
CREATE INDEX departed_number ON fsm.departed (number);

CREATE TABLE fsm.beats (
    process text COLLATE "C" NOT NULL,
    loop text COLLATE "C" NOT NULL,
    worker text NOT NULL,
    host text NOT NULL,
    pid bigint NOT NULL,
    running boolean NOT NULL,
    turns bigint NOT NULL,
    failures bigint NOT NULL,
    failing bigint NOT NULL,
    last_error text,
    failed_at double precision,
    succeeded_at double precision,
    alive_at double precision,
    started_at double precision NOT NULL,
    seen_at double precision NOT NULL,
    PRIMARY KEY (process, loop)
);
CREATE INDEX beats_seen ON fsm.beats (seen_at);

-- --- breakers -----------------------------------------------------------------------------------------------------

-- `event`, `at`, `actor` and `reason` are those of the last transition; a note that takes no row of the table (a probe
-- that was given back) has no event.
CREATE TABLE fsm.breakers (
    key text COLLATE "C" PRIMARY KEY,
    machine integer NOT NULL REFERENCES fsm.machines,
    state text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    generation bigint NOT NULL,
    changed_at double precision NOT NULL,
    since double precision,
    until double precision,
    openings bigint NOT NULL,
    probes json CHECK (json_typeof(probes) = 'array'),
    successes bigint NOT NULL,
    abandoned bigint NOT NULL,
    event text COLLATE "C",
    at double precision NOT NULL,
    actor text,
    reason text
);

CREATE TABLE fsm.breaker_journal (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    machine integer NOT NULL,
    event text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    target text COLLATE "C" NOT NULL,
    generation bigint NOT NULL,
    at double precision NOT NULL,
    actor text,
    reason text,
    CONSTRAINT breaker_journal_law FOREIGN KEY (machine, source, event, target) REFERENCES fsm.law,
    UNIQUE (key, version)
);
CREATE INDEX breaker_journal_key ON fsm.breaker_journal (key, position);
