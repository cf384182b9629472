-- What holds for the whole cluster; without a row, the defaults.
CREATE TABLE settings (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    content TEXT NOT NULL
) STRICT;
