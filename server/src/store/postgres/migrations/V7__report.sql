-- What a server says of itself to people and other servers: its settings and its health.
ALTER TABLE servers ADD COLUMN report jsonb NOT NULL DEFAULT '{}';
