"""What is on disk and not yet in the store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medseg.tracking.address import TRACKING_NAME, StoreAddress, read_sent
from medseg.tracking.spool import SPOOL_NAME, read_records, spool_folders


@dataclass(frozen=True)
class Pending:
    """Counts over the runs of a work folder.

    Attributes:
        records: records that the store does not have.
        runs: runs with such records.
        refused: records that the store refused for good.
    """

    records: int
    runs: int
    refused: int


def count_pending(work: Path, store: StoreAddress) -> Pending:
    """Counts what ``store`` does not have yet; a work folder without spools gives zeros."""
    records = runs = refused = 0
    for folder in spool_folders(work / TRACKING_NAME):
        sent = read_sent(folder, store)
        left = sum(1 for _ in read_records(folder, sent.offset))
        records, runs, refused = records + left, runs + (left > 0), refused + sent.refused
    return Pending(records, runs, refused)


def spool_ends(work: Path) -> dict[Path, int]:
    """The size of each run's spool now; what has to be sent before a command may say that all is sent."""
    sizes: dict[Path, int] = {}
    for folder in spool_folders(work / TRACKING_NAME):
        sizes[folder] = (folder / SPOOL_NAME).stat().st_size
    return sizes
