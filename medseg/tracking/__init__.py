"""The stage record, the log, what may be logged, and MLflow, which a process of its own imports and nothing else."""

from medseg.tracking.logs import set_up_logging
from medseg.tracking.privacy import PrivacyFilter, safe_params, scrub
from medseg.tracking.record import code_commit, code_sha256, read_stage_record, versions, write_stage_record
from medseg.tracking.run import TrackedRun
from medseg.tracking.tracker import Tracker, open_tracker

__all__ = [
    "PrivacyFilter",
    "TrackedRun",
    "Tracker",
    "code_commit",
    "code_sha256",
    "open_tracker",
    "read_stage_record",
    "safe_params",
    "scrub",
    "set_up_logging",
    "versions",
    "write_stage_record",
]
