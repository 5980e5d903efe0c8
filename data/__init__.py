"""What a row is and where it came from."""
