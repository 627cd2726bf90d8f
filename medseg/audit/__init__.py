"""Audit of a data set before money is spent on training: cases that are there twice, labels that look wrong, shapes."""
