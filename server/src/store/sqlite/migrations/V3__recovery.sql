-- The last time that the database went back in time, if it ever did.
CREATE TABLE recovery (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    content TEXT NOT NULL
) STRICT;
