"""The medseg command: shared flags, exit codes, and one small file per verb that is no stage."""
