"""What the training commands beside the train stage do with the epochs that training yields."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medseg.tracking import TrackedRun
    from medseg.training.loop import EpochResult

_LOG = logging.getLogger(__name__)


def follow_epochs(epochs: Iterable[EpochResult], run: TrackedRun) -> None:
    """Runs the training that ``epochs`` is, to its end or until a signal; says and tracks each epoch that is whole."""
    for epoch in epochs:
        if epoch.complete:
            _LOG.info("%s", epoch)
            run.log_metrics(epoch.metrics(), step=epoch.step)
