-- The list of roots, where the root was ever changed. The current one's secret is the cluster's.
CREATE TABLE roots (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    content TEXT NOT NULL
) STRICT;
