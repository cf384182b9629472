-- How often the stored root was overwritten, and up to which of those what was there before is known to be gone from the file, too.
ALTER TABLE cluster ADD COLUMN root_overwritten bigint NOT NULL DEFAULT 0;
ALTER TABLE cluster ADD COLUMN root_erased bigint NOT NULL DEFAULT 0;
