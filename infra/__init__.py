"""Under what machinery: stages, the store, shards, devices and settings."""
