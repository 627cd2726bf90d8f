"""Many cases: worker processes, sidecars that tell what is done, progress."""

from medseg.runner.pool import Outcome, run_cases
from medseg.runner.progress import CaseProgress
from medseg.runner.resources import available_cores, available_memory_bytes, default_processes
from medseg.runner.sidecar import Origin, Sidecar, is_done, read_sidecar, sidecar_path, write_sidecar

__all__ = [
    "CaseProgress",
    "Origin",
    "Outcome",
    "Sidecar",
    "available_cores",
    "available_memory_bytes",
    "default_processes",
    "is_done",
    "read_sidecar",
    "run_cases",
    "sidecar_path",
    "write_sidecar",
]
