-- One row, locked by every write: the order of commits is the order of revisions. `root_wrapped`: the seed is encrypted under a key that is
-- not in the database.
CREATE TABLE cluster (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    network_id bytea NOT NULL,
    root_seed bytea NOT NULL,
    root_wrapped boolean NOT NULL DEFAULT false,
    network_name text NOT NULL,
    overlay_v4 text NOT NULL,
    overlay_v6 text NOT NULL,
    epoch bigint NOT NULL,
    revision bigint NOT NULL,
    last_change bytea NOT NULL,
    next_node_id bigint NOT NULL
);

-- `content` is the whole entity; the other columns of an entity repeat what must be unique.
CREATE TABLE nodes (
    id bigint PRIMARY KEY,
    node_key text NOT NULL UNIQUE,
    name text NOT NULL UNIQUE,
    address_v4 text NOT NULL UNIQUE,
    address_v6 text NOT NULL UNIQUE,
    content jsonb NOT NULL
);

CREATE TABLE setup_keys (
    id bigint PRIMARY KEY,
    hash bytea NOT NULL UNIQUE,
    content jsonb NOT NULL
);

CREATE TABLE removals (
    node_key text PRIMARY KEY,
    content jsonb NOT NULL
);

CREATE TABLE changes (
    revision bigint PRIMARY KEY,
    epoch bigint NOT NULL,
    id bytea NOT NULL UNIQUE,
    at_unix_s bigint NOT NULL,
    actor text NOT NULL,
    ops jsonb NOT NULL
);

CREATE TABLE servers (
    id bytea PRIMARY KEY,
    name text NOT NULL,
    urls jsonb NOT NULL,
    version text NOT NULL,
    lease_until timestamptz NOT NULL
);

-- One row: orders the writes to `sessions`, so that who reads them by sequence misses none.
CREATE TABLE presence (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    sequence bigint NOT NULL
);
INSERT INTO presence (sequence) VALUES (0);

CREATE TABLE sessions (
    node_id bigint PRIMARY KEY,
    server_id bytea NOT NULL,
    boot bigint NOT NULL,
    counter bigint NOT NULL,
    online boolean NOT NULL,
    sequence bigint NOT NULL
);
CREATE INDEX sessions_by_sequence ON sessions (sequence);

CREATE TABLE signals (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    to_server bytea NOT NULL,
    payload bytea NOT NULL,
    sent_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX signals_by_server ON signals (to_server, id);
