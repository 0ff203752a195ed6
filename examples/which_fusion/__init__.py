"""Which fusion for which relation: made-up streams, every method, one budget."""
