"""How a step is done: one file per method."""
