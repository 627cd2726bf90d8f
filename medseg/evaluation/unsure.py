"""Is a model unsure where it is wrong? A map of its uncertainty beside a mask and the truth, as numbers per class."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from medseg.imaging import Regions

ClassArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.floating]

_BINS = 10


@dataclass(frozen=True, kw_only=True)
class Unsure:
    """One class of one case, over the voxels that either mask gives to it: their union.

    Background far from both masks is left out: it is right, sure and endless, and with it any map would seem to know where
    the errors are.

    Attributes:
        class_name: as in the labels.
        voxels: of the union.
        wrong_share: of them that only one of the masks has; what ``auprc`` of a map that knows nothing would be.
        mean_entropy: over the union.
        entropy_wrong, entropy_right: over the voxels of the union that are wrong, and right; None where there is none.
        auroc: chance that a wrong voxel of the union is less sure than a right one, equals counting half; 0.5 knows nothing.
            None where all are right or all wrong.
        auprc: average precision of finding wrong voxels, the least sure first; None likewise.
        uce: uncertainty calibration error (Laves et al. 2019): over ten bins of entropy, the mean gap between a bin's entropy
            and its share of wrong voxels, weighted by voxels.
    """

    class_name: str
    voxels: int
    wrong_share: float | None = None
    mean_entropy: float | None = None
    entropy_wrong: float | None = None
    entropy_right: float | None = None
    auroc: float | None = None
    auprc: float | None = None
    uce: float | None = None


COLUMNS = tuple("class" if name == "class_name" else name for name in Unsure.__dataclass_fields__)
"""Of ``uncertainty.csv``, after ``case``."""


def unsure_of_classes(
    entropy: FloatArray,
    prediction: ClassArray,
    reference: ClassArray,
    *,
    class_names: tuple[str, ...],
    regions: Regions | None = None,
    ignored: BoolArray | None = None,
) -> tuple[Unsure, ...]:
    """The numbers of every class but the background.

    Args:
        entropy: (X, Y, Z), 0 (certain) to 1; any other measure that grows with doubt works too, but for ``uce``.
        prediction: (X, Y, Z) class indices.
        reference: the same.
        class_names: background first.
        regions: where classes overlap; indices are combinations of them then.
        ignored: (X, Y, Z) voxels that count for nothing; None leaves out none.

    Returns:
        One entry a class; with ``voxels`` 0 and all else None where neither mask has it.
    """
    found = []
    for index, name in enumerate(class_names[1:], start=1):
        members = (index,) if regions is None else regions.indices_of(name)
        predicted, wanted = np.isin(prediction, members), np.isin(reference, members)
        either = predicted | wanted
        if ignored is not None:
            either &= ~ignored
        wrong = (predicted != wanted)[either]
        found.append(unsure_of_voxels(np.asarray(entropy[either], np.float64), wrong, name))
    return tuple(found)


def unsure_of_voxels(entropy: npt.NDArray[np.float64], wrong: BoolArray, class_name: str) -> Unsure:
    """The numbers of one class from the entropy (n,) of its voxels and whether each is wrong (n,)."""
    count, bad = len(wrong), int(np.count_nonzero(wrong))
    if count == 0:
        return Unsure(class_name=class_name, voxels=0)
    both = 0 < bad < count
    return Unsure(
        class_name=class_name,
        voxels=count,
        wrong_share=_digits(bad / count),
        mean_entropy=_digits(float(entropy.mean())),
        entropy_wrong=_digits(float(entropy[wrong].mean())) if bad else None,
        entropy_right=_digits(float(entropy[~wrong].mean())) if bad < count else None,
        auroc=_digits(auroc(entropy, wrong)) if both else None,
        auprc=_digits(average_precision(entropy, wrong)) if both else None,
        uce=_digits(calibration_error(entropy, wrong)),
    )


def _digits(value: float) -> float:
    return float(f"{value:.6g}")


def _by_value(
    scores: npt.NDArray[np.float64], positive: BoolArray
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positives and all at each distinct score, the highest first."""
    values, places = np.unique(-scores, return_inverse=True)
    hits = np.bincount(places, weights=positive, minlength=len(values))
    return hits.astype(np.int64), np.bincount(places, minlength=len(values)).astype(np.int64)


def auroc(scores: npt.NDArray[np.float64], positive: BoolArray) -> float:
    """Area under the ROC curve: chance that a positive scores higher than a negative, equals counting half.

    Args:
        scores: (n,).
        positive: (n,), with at least one of either kind.
    """
    hits, every = _by_value(scores, positive)
    misses = every - hits
    above = np.cumsum(hits) - hits
    won = float((misses * (above + hits / 2)).sum())
    return won / (float(hits.sum()) * float(misses.sum()))


def average_precision(scores: npt.NDArray[np.float64], positive: BoolArray) -> float:
    """Area under the precision-recall curve by steps: sum of precision times gain in recall, equals taken together."""
    hits, every = _by_value(scores, positive)
    precision = np.cumsum(hits) / np.cumsum(every)
    return float((precision * hits).sum() / hits.sum())


def calibration_error(scores: npt.NDArray[np.float64], wrong: BoolArray) -> float:
    """Mean gap between entropy and share of errors over ten bins of equal width, weighted by their voxels."""
    bins = np.clip((scores * _BINS).astype(np.intp), 0, _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    entropies = np.bincount(bins, weights=scores, minlength=_BINS)
    errors = np.bincount(bins, weights=wrong, minlength=_BINS)
    return math.fsum(np.abs(entropies - errors)) / float(counts.sum())


def plain_row(case_id: str, one: Unsure) -> dict[str, str | int | float | None]:
    """A line of ``uncertainty.csv``."""
    return {"case": case_id} | {("class" if key == "class_name" else key): value for key, value in asdict(one).items()}
