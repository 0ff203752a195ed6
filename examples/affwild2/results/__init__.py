"""Training every method over seeds and folds; tables, pictures and reports."""
