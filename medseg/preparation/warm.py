"""Imported once by the server that workers are forked from, so that MONAI's seconds are paid once and not per worker."""

from __future__ import annotations

import os

# Before numpy is imported: its thread pool must not exist when workers are forked, and cases run side by side anyway.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import medseg.preparation.facts
import medseg.preparation.loading
import medseg.preparation.work  # noqa: F401
