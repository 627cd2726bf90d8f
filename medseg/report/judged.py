"""What inference said of its masks without their truth, beside the truth: expected Dice, uncertainty, probabilities."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import MedsegError
from medseg.evaluation.matching import CasePaths
from medseg.imaging import apply_axes, grid_difference, read_volume
from medseg.report.masks import CaseMasks
from medseg.report.planes import shown_box
from medseg.report.scores import ScoreTable

REPORT_NAME = "report.jsonl"
MOST_MAPS = 24
"""Cases whose probability maps are read: a voxel histogram does not change with more, and each is a volume per class."""
_STEPS = 255
_BINS = 10

Pairs = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What was said of the masks.

    Attributes:
        uncertainty, expected, bound: class name to (said, true Dice) pairs; classes without any have an empty list.
        correlation: class name to Spearman's rank correlation of uncertainty with Dice (below 0: unsure where it is wrong).
        said: case id to sentences: flags, differences from the training scans, the reader's warnings.
        curves: class name to (mean probability, share of the class, voxels) per bin.
        mapped: how many cases' probability maps are in ``curves``.
    """

    uncertainty: Pairs = field(default_factory=dict)
    expected: Pairs = field(default_factory=dict)
    bound: Pairs = field(default_factory=dict)
    correlation: Mapping[str, float | None] = field(default_factory=dict)
    said: Mapping[str, Sequence[str]] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[float, float, int]]] = field(default_factory=dict)
    mapped: int = 0

    @property
    def covered(self) -> tuple[int, int]:
        """Masks whose Dice is at least their bound, and masks that have one."""
        pairs = [pair for own in self.bound.values() for pair in own]
        return sum(dice >= bound for bound, dice in pairs), len(pairs)


def read_lines(pairs: Sequence[CasePaths]) -> dict[str, dict[str, Any]]:
    """The lines of ``report.jsonl`` beside the predictions, by case id; damaged ones are passed over."""
    lines: dict[str, dict[str, Any]] = {}
    for folder in sorted({pair.prediction.parent for pair in pairs if pair.prediction is not None}):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for text in (folder / REPORT_NAME).read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    line = json.loads(text)
                    lines[str(line["id"])] = line
    return lines


def judge(table: ScoreTable, lines: Mapping[str, Mapping[str, Any]]) -> Judged:
    """Puts what was said of each mask beside its Dice."""
    found: dict[str, Pairs] = {
        key: {name: [] for name in table.class_names} for key in ("uncertainty", "expected_dice", "dice_bound")
    }
    for row in table.rows:
        quality = (lines.get(row.case) or {}).get("quality") or {}
        for key, pairs in found.items():
            value = (quality.get(key) or {}).get(row.class_name)
            if (
                isinstance(value, int | float)
                and math.isfinite(value)
                and row.dice is not None
                and row.class_name in pairs
            ):
                pairs[row.class_name].append((float(value), row.dice))
    scored = {row.case for row in table.rows}
    return Judged(
        uncertainty=found["uncertainty"],
        expected=found["expected_dice"],
        bound=found["dice_bound"],
        correlation={name: rank_correlation(own) for name, own in found["uncertainty"].items()},
        said={case: sentences for case, line in lines.items() if case in scored and (sentences := _sentences(line))},
    )


def _sentences(line: Mapping[str, Any]) -> list[str]:
    found = [sentence for key in ("flags", "contract_reasons", "warnings") for sentence in line.get(key) or ()]
    return [str(sentence) for sentence in dict.fromkeys(found)]


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's, ties at their mean rank; None below 3 pairs or where one side is all alike."""
    from scipy.stats import rankdata

    if len(pairs) < 3:
        return None
    x, y = (rankdata(side) for side in zip(*pairs, strict=True))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def map_path(prediction: Path, case_id: str, kind: str) -> Path:
    """Where inference puts a case's map of a ``kind`` ("probabilities", "entropy")."""
    return prediction.parent / "maps" / f"{case_id}_{kind}.nii.gz"


def read_map(path: Path, masks: CaseMasks, *, channels: int = 1) -> npt.NDArray[np.float32] | None:
    """A map of the case in RAS order, (K, X, Y, Z) with ``channels`` K; None where there is none on the masks' grid."""
    if not path.is_file():
        return None
    with contextlib.suppress(MedsegError):
        volume = read_volume(path, channels=channels)
        if grid_difference(volume.shape, volume.affine, masks.shape, masks.affine) is None:
            return apply_axes(volume.array, masks.change)
    return None


class Reliability:
    """Counts, voxel by voxel, how often a class is there when it was given a probability.

    Counted are the voxels of the box around all structures with 12 mm around it: a whole scan is nearly all background of
    which the network is sure, and would make any network look calibrated.

    Args:
        class_names: without background, in the order of the maps' channels.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._names = tuple(class_names)
        self._all = np.zeros((len(self._names), _STEPS + 1), np.int64)
        self._true = np.zeros_like(self._all)
        self.cases = 0

    def add(self, masks: CaseMasks, probabilities: npt.NDArray[np.float32]) -> None:
        """Counts a case.

        Args:
            masks: of the case.
            probabilities: (K, X, Y, Z) in RAS order, one channel a class; other shapes are passed over.
        """
        if probabilities.shape != (len(self._names), *masks.truth.shape):
            return
        box = shown_box(masks)
        known = np.ones(masks.truth[box].shape, np.bool_) if masks.ignored is None else ~masks.ignored[box]
        for index, name in enumerate(self._names):
            level = np.rint(np.clip(probabilities[index][box], 0, 1) * _STEPS).astype(np.int64)[known]
            true = np.isin(masks.truth[box], masks.members[name])[known]
            self._all[index] += np.bincount(level, minlength=_STEPS + 1)
            self._true[index] += np.bincount(level[true], minlength=_STEPS + 1)
        self.cases += 1

    def curves(self) -> dict[str, list[tuple[float, float, int]]]:
        """Class name to (mean probability, share of the class, voxels) of each of ten equal bins that has a voxel."""
        levels = np.arange(_STEPS + 1)
        bins = np.minimum(levels * _BINS // (_STEPS + 1), _BINS - 1)
        found = {}
        for index, name in enumerate(self._names):
            curve = []
            for number in range(_BINS):
                inside = bins == number
                count = int(self._all[index][inside].sum())
                if count:
                    mean = float((self._all[index][inside] * levels[inside]).sum()) / count / _STEPS
                    curve.append((mean, float(self._true[index][inside].sum()) / count, count))
            found[name] = curve
        return found


def expected_calibration_error(curve: Sequence[tuple[float, float, int]]) -> float | None:
    """Mean distance of the curve from the diagonal, weighted by voxels; None for an empty curve."""
    total = sum(count for _, _, count in curve)
    return sum(abs(mean - share) * count for mean, share, count in curve) / total if total else None
