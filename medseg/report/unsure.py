"""``uncertainty.csv``, which ``evaluate`` writes where there are maps of entropy: is the model unsure where it is wrong?"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.report.judged import Pairs
from medseg.report.scores import ScoreTable, number_of

FILE_NAME = "uncertainty.csv"


@dataclass(frozen=True, kw_only=True)
class UnsureRow:
    """One class of one case, over the voxels of both masks; None where undefined.

    Attributes:
        case, class_name: which.
        mean_entropy: of all these voxels.
        entropy_wrong, entropy_right: of those that are wrong, and right.
        auroc: chance that a wrong voxel is less sure than a right one; 0.5 knows nothing.
    """

    case: str
    class_name: str
    mean_entropy: float | None
    entropy_wrong: float | None
    entropy_right: float | None
    auroc: float | None


def read_unsure(scores: Path) -> tuple[UnsureRow, ...]:
    """The rows beside the scores, those without a voxel left out; empty where there are none, or the file is damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, csv.Error):
        text = (scores / FILE_NAME).read_text(encoding="utf-8")
        rows = [_row(line) for line in csv.DictReader(io.StringIO(text))]
        return tuple(row for row in rows if row.mean_entropy is not None)
    return ()


def _row(line: dict[str, str]) -> UnsureRow:
    names = ("mean_entropy", "entropy_wrong", "entropy_right", "auroc")
    values = {name: number_of(line[name]) for name in names}
    return UnsureRow(case=line["case"], class_name=line["class"], **values)


def beside_dice(rows: Sequence[UnsureRow], table: ScoreTable) -> Pairs:
    """Class name to (mean entropy, Dice) pairs; classes without any have an empty list."""
    dice = {(row.case, row.class_name): row.dice for row in table.rows}
    found: Pairs = {name: [] for name in table.class_names}
    for row in rows:
        known = dice.get((row.case, row.class_name))
        if row.mean_entropy is not None and known is not None and row.class_name in found:
            found[row.class_name].append((row.mean_entropy, known))
    return found


def class_means(rows: Sequence[UnsureRow], class_name: str) -> tuple[int, list[float | None]]:
    """How many cases, and the means over them of mean entropy, entropy where wrong, where right, and AUROC."""
    own = [row for row in rows if row.class_name == class_name]
    columns = [(row.mean_entropy, row.entropy_wrong, row.entropy_right, row.auroc) for row in own]
    means = []
    for values in zip(*columns, strict=True):
        known = [value for value in values if value is not None]
        means.append(float(np.mean(known)) if known else None)
    return len(own), means or [None] * 4
