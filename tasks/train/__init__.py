"""Make the models, thinly over TRL."""
