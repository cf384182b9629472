-- The list of roots, where the root was ever changed. The current one's secret is the cluster's.
CREATE TABLE roots (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    content jsonb NOT NULL
);
