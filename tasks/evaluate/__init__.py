"""Say what the models can do, and what the report shows."""
