"""Imported once by the server that workers are forked from, so that MONAI's seconds are paid once and not per worker."""

from __future__ import annotations

import os

# Before numpy is imported: its thread pool must not exist when workers are forked, and cases run side by side anyway.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

from medseg.runner.worker import die_with_parent

# Before the slow imports: while they last, the server does not see that the command which started it was killed.
die_with_parent(os.getppid())

import medseg.preparation.facts  # noqa: E402
import medseg.preparation.loading  # noqa: E402
import medseg.preparation.work  # noqa: E402, F401
