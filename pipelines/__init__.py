"""The four stages as scripts: prepare, train, infer, evaluate."""
