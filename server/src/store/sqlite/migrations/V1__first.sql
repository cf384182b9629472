-- One row. `root_wrapped`: the seed is encrypted under a key that is not in the database.
CREATE TABLE cluster (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    network_id BLOB NOT NULL,
    root_seed BLOB NOT NULL,
    root_wrapped INTEGER NOT NULL DEFAULT 0,
    network_name TEXT NOT NULL,
    overlay_v4 TEXT NOT NULL,
    overlay_v6 TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    last_change BLOB NOT NULL,
    next_node_id INTEGER NOT NULL
) STRICT;

-- `content` is the whole entity as JSON; the other columns of an entity repeat what must be unique.
CREATE TABLE nodes (
    id INTEGER PRIMARY KEY,
    node_key TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    address_v4 TEXT NOT NULL UNIQUE,
    address_v6 TEXT NOT NULL UNIQUE,
    content TEXT NOT NULL
) STRICT;

CREATE TABLE setup_keys (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    content TEXT NOT NULL
) STRICT;

CREATE TABLE removals (
    node_key TEXT PRIMARY KEY,
    content TEXT NOT NULL
) STRICT;

CREATE TABLE changes (
    revision INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    id BLOB NOT NULL UNIQUE,
    at_unix_s INTEGER NOT NULL,
    actor TEXT NOT NULL,
    ops TEXT NOT NULL
) STRICT;

CREATE TABLE servers (
    id BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    urls TEXT NOT NULL,
    version TEXT NOT NULL,
    lease_until_ms INTEGER NOT NULL
) STRICT;

-- One row: orders the writes to `sessions`, so that who reads them by sequence misses none.
CREATE TABLE presence (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    sequence INTEGER NOT NULL
) STRICT;
INSERT INTO presence (only_row, sequence) VALUES (1, 0);

CREATE TABLE sessions (
    node_id INTEGER PRIMARY KEY,
    server_id BLOB NOT NULL,
    boot INTEGER NOT NULL,
    counter INTEGER NOT NULL,
    online INTEGER NOT NULL,
    sequence INTEGER NOT NULL
) STRICT;
CREATE INDEX sessions_by_sequence ON sessions (sequence);

CREATE TABLE signals (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    to_server BLOB NOT NULL,
    payload BLOB NOT NULL,
    sent_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX signals_by_server ON signals (to_server, id);
