-- Who holds what is claimed exclusively; without a row, nobody ever did.
CREATE TABLE holdings (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    content TEXT NOT NULL
) STRICT;

-- That a holder lives, as the server says that serves it. Who has no row is not known to live.
CREATE TABLE holder_leases (
    node_id INTEGER PRIMARY KEY,
    until_ms INTEGER NOT NULL
) STRICT;
