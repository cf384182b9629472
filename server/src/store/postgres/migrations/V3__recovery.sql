-- The last time that the database went back in time, if it ever did.
CREATE TABLE recovery (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    content jsonb NOT NULL
);
