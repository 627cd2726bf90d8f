"""One reference from several raters: a majority vote, or STAPLE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.evaluation.overlap import BoolArray
from medseg.imaging import Regions

ClassArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]

MAX_ITERATIONS = 1000
TOLERANCE = 1e-7
_START = 0.99999
_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class Staple:
    """What STAPLE made of R raters' masks.

    Attributes:
        probability: (...) that a voxel is in the true structure.
        sensitivity, specificity: (R,) of each rater against that truth.
        iterations: until no sensitivity or specificity moved by more than 1e-7.
        converged: whether they stopped moving within 1000.
    """

    probability: FloatArray
    sensitivity: FloatArray
    specificity: FloatArray
    iterations: int
    converged: bool

    @property
    def mask(self) -> BoolArray:
        """Where the probability is at least one half."""
        mask: BoolArray = self.probability >= 0.5
        return mask


def staple(masks: BoolArray, *, prior: float | None = None) -> Staple:
    """The true structure and each rater's performance, estimated together by expectation maximisation.

    Warfield, Zou and Wells 2004 (IEEE TMI 23, 903), binary, voxels independent, the prior the same in every voxel. Voxels on
    which the raters say the same are counted, not computed one by one: R raters have at most 2^R patterns.

    Args:
        masks: (R, ...) bool, one mask per rater, R at least 1, cut to the region that is judged: background on which all raters
            agree raises the specificities, and with them changes the estimate.
        prior: share of voxels in the structure; None takes the mean share over the raters.

    Returns:
        For masks that are all empty, or all full, that very mask with certainty.
    """
    raters = len(masks)
    flat = masks.reshape(raters, -1)
    codes = np.zeros(flat.shape[1], np.int64)
    for rater in range(raters):
        codes |= flat[rater].astype(np.int64) << rater
    patterns, index, counts = np.unique(codes, return_inverse=True, return_counts=True)
    said = ((patterns[:, None] >> np.arange(raters)) & 1).astype(np.float64)
    share = float(flat.mean()) if prior is None else prior
    if share in (0.0, 1.0):
        certain = np.full(raters, 1.0)
        return Staple(
            probability=np.full(masks.shape[1:], share),
            sensitivity=certain,
            specificity=certain,
            iterations=0,
            converged=True,
        )
    sensitivity, specificity = np.full(raters, _START), np.full(raters, _START)
    iterations, converged = 0, False
    while iterations < MAX_ITERATIONS and not converged:
        weights = _truth(said, sensitivity, specificity, share)
        inside, outside = weights * counts, (1 - weights) * counts
        next_sensitivity = (inside @ said) / max(float(inside.sum()), _LEAST)
        next_specificity = (outside @ (1 - said)) / max(float(outside.sum()), _LEAST)
        moved = max(np.abs(next_sensitivity - sensitivity).max(), np.abs(next_specificity - specificity).max())
        sensitivity, specificity = next_sensitivity, next_specificity
        iterations, converged = iterations + 1, bool(moved <= TOLERANCE)
    weights = _truth(said, sensitivity, specificity, share)
    return Staple(
        probability=weights[index].reshape(masks.shape[1:]),
        sensitivity=sensitivity,
        specificity=specificity,
        iterations=iterations,
        converged=converged,
    )


def _truth(said: FloatArray, sensitivity: FloatArray, specificity: FloatArray, share: float) -> FloatArray:
    """Chance of each pattern of votes to be inside (equation 14), through logarithms, as many raters make tiny products."""
    p, q = np.clip(sensitivity, _LEAST, 1 - _LEAST), np.clip(specificity, _LEAST, 1 - _LEAST)
    inside = np.log(share) + said @ np.log(p) + (1 - said) @ np.log(1 - p)
    outside = np.log(1 - share) + said @ np.log(1 - q) + (1 - said) @ np.log(q)
    chance: FloatArray = 1 / (1 + np.exp(np.clip(outside - inside, -700, 700)))
    return chance


def majority(masks: BoolArray) -> BoolArray:
    """Where more than half of the raters have the structure; of an even number, half is not enough.

    Args:
        masks: (R, ...) bool.
    """
    votes: BoolArray = 2 * masks.sum(axis=0, dtype=np.int64) > len(masks)
    return votes


def consensus_classes(
    raters: Sequence[ClassArray], *, class_count: int, how: str, ignore: int | None = None
) -> tuple[ClassArray, Mapping[int, Staple]]:
    """One array of class indices from several raters'.

    Majority: the class that more than half of the raters have, else background. STAPLE: of the classes with a probability of
    at least one half the likeliest, else background; per class it looks at the box round all raters' masks, made twice as long
    along every axis (as far as the image goes), for with all of an image's background every rater would look specific.

    Args:
        raters: (X, Y, Z) uint8 class indices each, on one grid.
        class_count: classes, background among them.
        how: ``majority`` or ``staple``.
        ignore: index of voxels that nobody labelled; a voxel that any rater ignores is ignored.

    Returns:
        The consensus, and class index to what STAPLE found (empty for a majority).
    """
    result = np.zeros(raters[0].shape, np.uint8)
    best = np.zeros(raters[0].shape, np.float64)
    found: dict[int, Staple] = {}
    for index in range(1, class_count):
        judged = _judged(np.stack([rater == index for rater in raters]), how)
        if judged is None:
            continue
        box, inside, chance, performance = judged
        if performance is not None:
            found[index] = performance
        wins = inside & (chance > best[box])
        result[box][wins], best[box][wins] = index, chance[wins]
    return _with_ignored(result, raters, ignore), found


def consensus_regions(
    raters: Sequence[ClassArray], *, regions: Regions, how: str, ignore: int | None = None
) -> tuple[ClassArray, Mapping[int, Staple]]:
    """As :func:`consensus_classes`, of labels that overlap: each region is judged on its own.

    Were combinations judged, three raters who agree on a tumour and not on its parts would leave background.

    Args:
        raters: (X, Y, Z) uint8 stored indices each, on one grid.
        regions: what they stand for.
        how: ``majority`` or ``staple``.
        ignore: as there.

    Returns:
        Stored indices, and number of the region, from 1, to what STAPLE found.
    """
    codes = np.zeros(raters[0].shape, np.uint16)
    found: dict[int, Staple] = {}
    for number, name in enumerate(regions.names):
        judged = _judged(np.stack([np.isin(rater, regions.indices_of(name)) for rater in raters]), how)
        if judged is None:
            continue
        box, inside, _, performance = judged
        if performance is not None:
            found[number + 1] = performance
        part = codes[box]
        part[inside] |= np.uint16(1 << number)
    return _with_ignored(regions.join(codes), raters, ignore), found


def _judged(masks: BoolArray, how: str) -> tuple[tuple[slice, ...], BoolArray, FloatArray, Staple | None] | None:
    """One structure of several raters (R, X, Y, Z): where to look, what is inside there and how surely; None of no voxel."""
    box = _box(np.asarray(masks.any(axis=0)))
    if box is None:
        return None
    own = masks[(slice(None), *box)]
    if how == "staple":
        found = staple(own)
        return box, found.mask, found.probability, found
    return box, majority(own), own.mean(axis=0), None


def _with_ignored(classes: ClassArray, raters: Sequence[ClassArray], ignore: int | None) -> ClassArray:
    if ignore is not None:
        classes[np.any([rater == ignore for rater in raters], axis=0)] = ignore
    return classes


def _box(mask: BoolArray) -> tuple[slice, ...] | None:
    """The box round the mask, made twice as long; None where it is empty."""
    if not mask.any():
        return None
    places = [
        np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(mask.ndim)
    ]
    ends = [(int(place[0]), int(place[-1]) + 1) for place in places]
    margins = [(stop - start + 1) // 2 for start, stop in ends]
    return tuple(slice(max(0, start - m), stop + m) for (start, stop), m in zip(ends, margins, strict=True))
