-- `root_public`: beside a wrapped seed, so that who cannot open it knows the cluster. `moved_to`: where the cluster was migrated to; from
-- then on nothing here is changed.
ALTER TABLE cluster ADD COLUMN root_public BLOB;
ALTER TABLE cluster ADD COLUMN moved_to TEXT;
