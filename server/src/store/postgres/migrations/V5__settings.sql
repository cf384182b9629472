-- What holds for the whole cluster; without a row, the defaults.
CREATE TABLE settings (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    content jsonb NOT NULL
);
