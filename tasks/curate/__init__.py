"""Choose the rows: load, clean, deduplicate, split."""
