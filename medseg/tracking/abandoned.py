"""Runs whose process was killed without a word: they get their end, so that none is RUNNING for ever."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from medseg.tracking.spool import SpoolWriter, last_status, spool_folders, writer_is_alive

_log = logging.getLogger(__name__)


def end_abandoned(tracking: Path) -> int:
    """Appends ``end KILLED`` to every spool that was left open by a process that is gone.

    The same stage started again goes on with its run, which is RUNNING then.

    Returns:
        how many runs were ended.
    """
    count = 0
    for folder in spool_folders(tracking):
        if writer_is_alive(folder) or not _is_open(folder):
            continue
        with contextlib.suppress(OSError):  # the stage began again just now: its own end will come
            writer = SpoolWriter(folder)
            try:
                if _is_open(folder):
                    writer.append("end", status="KILLED", reason="the process was killed")
                    writer.sync()
                    count += 1
            finally:
                writer.close()
    if count:
        _log.info("%d runs were left open by killed processes; they are ended as KILLED", count)
    return count


def _is_open(folder: Path) -> bool:
    return last_status(folder) == "RUNNING"
