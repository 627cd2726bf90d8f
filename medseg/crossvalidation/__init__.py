"""Cross-validation: folds as child runs, out-of-fold evidence, and what may be decided by it."""
