-- Who holds what is claimed exclusively; without a row, nobody ever did.
CREATE TABLE holdings (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    content jsonb NOT NULL
);

-- That a holder lives, as the server says that serves it. Who has no row is not known to live.
CREATE TABLE holder_leases (
    node_id bigint PRIMARY KEY,
    until timestamptz NOT NULL
);
