-- Each start of a server's process has an incarnation of its own: of two with one id, one is refused.
ALTER TABLE servers ADD COLUMN incarnation BLOB NOT NULL DEFAULT x'';
ALTER TABLE servers ADD COLUMN host TEXT NOT NULL DEFAULT '';
ALTER TABLE servers ADD COLUMN clock_ahead_ms INTEGER NOT NULL DEFAULT 0;

-- When the present time without a break began in which servers held leases: nobody is absent for longer.
ALTER TABLE presence ADD COLUMN served_since_ms INTEGER NOT NULL DEFAULT 0;
UPDATE presence SET served_since_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER);

-- When the node came or went.
ALTER TABLE sessions ADD COLUMN changed_ms INTEGER NOT NULL DEFAULT 0;
UPDATE sessions SET changed_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER);

-- Who runs what has to be run by one server. The token counts the holders: who was one before writes nothing any more.
CREATE TABLE jobs (
    name TEXT PRIMARY KEY,
    server_id BLOB NOT NULL,
    holder BLOB NOT NULL,
    token INTEGER NOT NULL,
    held_until_ms INTEGER NOT NULL,
    last_run_ms INTEGER
) STRICT;
