"""What happens, in order: one file per figure."""
