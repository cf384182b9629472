-- Each start of a server's process has an incarnation of its own: of two with one id, one is refused.
ALTER TABLE servers
    ADD COLUMN incarnation bytea NOT NULL DEFAULT '\x',
    ADD COLUMN host text NOT NULL DEFAULT '',
    ADD COLUMN clock_ahead_ms bigint NOT NULL DEFAULT 0;

-- When the present time without a break began in which servers held leases: nobody is absent for longer.
ALTER TABLE presence ADD COLUMN served_since timestamptz NOT NULL DEFAULT clock_timestamp();

-- When the node came or went.
ALTER TABLE sessions ADD COLUMN changed_at timestamptz NOT NULL DEFAULT clock_timestamp();

-- Who runs what has to be run by one server. The token counts the holders: who was one before writes nothing any more.
CREATE TABLE jobs (
    name text PRIMARY KEY,
    server_id bytea NOT NULL,
    holder bytea NOT NULL,
    token bigint NOT NULL,
    held_until timestamptz NOT NULL,
    last_run timestamptz
);
