"""Lesions as things of their own: connected components of both masks, which of them belong together, and scores of that.

A lesion is a component joined over faces, edges and corners (26 neighbours in 3D, 8 in 2D). Two rules say what is found:

- **IoU**: a predicted and a true lesion match if their IoU is above a threshold (0.5, at which a match is unique; below that
  the matching with the largest sum of IoU counts, each lesion once).
- **any**: a true lesion is found, and a predicted one is right, if it shares any voxel with the other mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medseg.evaluation.overlap import BoolArray

IOU_THRESHOLD = 0.5

CountArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class Match(NamedTuple):
    """A predicted and a true lesion, by number from 0, with their overlap."""

    prediction: int
    reference: int
    iou: float
    dice: float


@dataclass(frozen=True, eq=False)
class Instances:
    """The lesions of two masks.

    Attributes:
        sizes_prediction, sizes_reference: voxels of each lesion.
        overlaps: (n, 3): predicted lesion, true lesion, voxels in both; only where there are any.
        confidences: of each predicted lesion, the mean of its voxels' probability; None without a probability map.
    """

    sizes_prediction: CountArray
    sizes_reference: CountArray
    overlaps: CountArray
    confidences: FloatArray | None = None

    @property
    def touched_prediction(self) -> int:
        """Predicted lesions that share a voxel with the reference."""
        return len(set(self.overlaps[:, 0].tolist()))

    @property
    def touched_reference(self) -> int:
        """True lesions that share a voxel with the prediction."""
        return len(set(self.overlaps[:, 1].tolist()))

    def matches(self, threshold: float = IOU_THRESHOLD) -> tuple[Match, ...]:
        """Pairs with an IoU above the threshold, each lesion in one at most, sorted by predicted lesion."""
        sizes = self.sizes_prediction[self.overlaps[:, 0]] + self.sizes_reference[self.overlaps[:, 1]]
        both = self.overlaps[:, 2]
        found = [
            Match(int(p), int(r), float(n / (size - n)), float(2 * n / size))
            for (p, r, _), n, size in zip(self.overlaps, both, sizes, strict=True)
            if n / (size - n) > threshold
        ]
        if threshold < IOU_THRESHOLD:
            found = _assigned(found)
        return tuple(sorted(found))


def _assigned(candidates: Sequence[Match]) -> list[Match]:
    """Those of the candidates that have the largest sum of IoU with no lesion in two of them."""
    from scipy.optimize import linear_sum_assignment

    if not candidates:
        return []
    by_pair = {(match.prediction, match.reference): match for match in candidates}
    rows, columns = (sorted({pair[side] for pair in by_pair}) for side in (0, 1))
    gain = np.array([[by_pair[p, r].iou if (p, r) in by_pair else 0.0 for r in columns] for p in rows])
    chosen = zip(*linear_sum_assignment(gain, maximize=True), strict=True)
    pairs = [(rows[row], columns[column]) for row, column in chosen]
    return [by_pair[pair] for pair in pairs if pair in by_pair]


def find_instances(
    prediction: BoolArray, reference: BoolArray, *, probability: npt.NDArray[np.float32] | None = None
) -> Instances:
    """The lesions of two masks of one shape, any rank; any may be empty.

    Args:
        prediction: the mask that was predicted.
        reference: the true one.
        probability: of the class, of the same shape, for the lesions' confidence.
    """
    numbers_p, sizes_p = _numbered(prediction)
    numbers_r, sizes_r = _numbered(reference)
    where = prediction & reference
    pairs, counts = np.unique(np.stack([numbers_p[where], numbers_r[where]], axis=1), axis=0, return_counts=True)
    confidences: FloatArray | None = None
    if probability is not None:
        sums = np.bincount(numbers_p[prediction], weights=probability[prediction], minlength=sizes_p.size + 1)
        # Rounded, so that equal ones stay equal however many voxels were summed.
        confidences = np.round(sums[1:] / sizes_p.astype(np.float64), 6).astype(np.float64)
    return Instances(
        sizes_p,
        sizes_r,
        np.column_stack([pairs.reshape(-1, 2) - 1, counts]).astype(np.int64),
        confidences,
    )


def _numbered(mask: BoolArray) -> tuple[npt.NDArray[np.int32], CountArray]:
    """Number of each voxel's lesion, 0 outside; voxels of lesion 1, 2, ..."""
    from scipy import ndimage

    numbers = np.empty(mask.shape, np.int32)
    count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim), output=numbers)
    return numbers, np.bincount(numbers[mask], minlength=int(count) + 1)[1:].astype(np.int64)


def true_positives(lesions: Instances, threshold: float = IOU_THRESHOLD) -> int:
    """Matched lesions by the IoU rule. None at all: 0."""
    return len(lesions.matches(threshold))


def precision(lesions: Instances, threshold: float = IOU_THRESHOLD) -> float:
    """Share of the predicted lesions that match a true one by IoU, 0 to 1, 1 is best. No predicted lesion: NaN (undefined)."""
    return _ratio(len(lesions.matches(threshold)), lesions.sizes_prediction.size)


def recall(lesions: Instances, threshold: float = IOU_THRESHOLD) -> float:
    """Share of the true lesions that match a predicted one by IoU, 0 to 1, 1 is best. No true lesion: NaN (undefined)."""
    return _ratio(len(lesions.matches(threshold)), lesions.sizes_reference.size)


def recognition_quality(lesions: Instances, threshold: float = IOU_THRESHOLD) -> float:
    """RQ, the F1 score of the lesions by IoU: TP / (TP + FP/2 + FN/2), 0 to 1, 1 is best.

    No lesion in either mask: NaN (undefined). In one alone: 0. Source: Kirillov et al. 2019, https://arxiv.org/abs/1801.00868.
    """
    return _ratio(2 * len(lesions.matches(threshold)), lesions.sizes_prediction.size + lesions.sizes_reference.size)


def segmentation_quality(lesions: Instances, threshold: float = IOU_THRESHOLD) -> float:
    """SQ, the mean IoU of the matched lesions, above the threshold to 1, 1 is best.

    No match: NaN (undefined). Source: Kirillov et al. 2019.
    """
    matches = lesions.matches(threshold)
    return _ratio(math.fsum(match.iou for match in matches), len(matches))


def panoptic_quality(lesions: Instances, threshold: float = IOU_THRESHOLD) -> float:
    """PQ = SQ x RQ: sum of the matches' IoU / (TP + FP/2 + FN/2), 0 to 1, 1 is best.

    No lesion in either mask: NaN (undefined). No match: 0. Source: Kirillov et al. 2019.
    """
    total = math.fsum(match.iou for match in lesions.matches(threshold))
    return _ratio(2 * total, lesions.sizes_prediction.size + lesions.sizes_reference.size)


def lesion_dice(lesions: Instances, threshold: float = IOU_THRESHOLD) -> float:
    """Mean Dice per lesion: of the matches, and 0 for each lesion, predicted or true, without one; 0 to 1, 1 is best.

    No lesion in either mask: NaN (undefined). In one alone: 0. Source: the average over TP, FP and FN is that of BraTS 2023's
    lesion-wise Dice (its lesions are dilated before; these are not).
    """
    matches = lesions.matches(threshold)
    whole = lesions.sizes_prediction.size + lesions.sizes_reference.size - len(matches)
    return _ratio(math.fsum(match.dice for match in matches), whole)


def recall_any(lesions: Instances) -> float:
    """Share of the true lesions with any voxel in the prediction, 0 to 1, 1 is best. No true lesion: NaN (undefined)."""
    return _ratio(lesions.touched_reference, lesions.sizes_reference.size)


def precision_any(lesions: Instances) -> float:
    """Share of the predicted lesions with any voxel in the reference, 0 to 1, 1 is best. No predicted lesion: NaN."""
    return _ratio(lesions.touched_prediction, lesions.sizes_prediction.size)


def f1_any(lesions: Instances) -> float:
    """F1 score of the lesions by the rule of any overlap: 2 P R / (P + R) of :func:`precision_any` and :func:`recall_any`.

    0 to 1, 1 is best. No lesion in either mask: NaN (undefined). In one alone: 0.
    """
    if not lesions.sizes_prediction.size and not lesions.sizes_reference.size:
        return math.nan
    if not lesions.touched_reference:
        return 0.0
    p, r = precision_any(lesions), recall_any(lesions)
    return 2 * p * r / (p + r)


def as_plain(lesions: Instances) -> Mapping[str, Any]:
    """Lesion by lesion, for pooling over cases: voxels, Dice of its match (0 without), and what the rules say."""
    matches = lesions.matches()
    dice_p, dice_r = {m.prediction: m.dice for m in matches}, {m.reference: m.dice for m in matches}
    iou_r = {m.reference: m.iou for m in matches}
    touched_p, touched_r = (set(lesions.overlaps[:, side].tolist()) for side in (0, 1))
    confidences = lesions.confidences
    return {
        "reference": [
            {"voxels": int(size), "dice": dice_r.get(k, 0.0), "iou": iou_r.get(k, 0.0), "touched": k in touched_r}
            for k, size in enumerate(lesions.sizes_reference)
        ],
        "prediction": [
            {
                "voxels": int(size),
                "matched": k in dice_p,
                "touched": k in touched_p,
                "confidence": None if confidences is None else float(confidences[k]),
            }
            for k, size in enumerate(lesions.sizes_prediction)
        ],
        "has_confidence": confidences is not None,
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
