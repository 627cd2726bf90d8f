"""Would the label fit its scan better if it were moved, mirrored, or had two classes exchanged?

Every question has one measure: the mean log share that the scan's voxels give to the class the label puts there (a
log-likelihood per voxel concerned), of the changed label minus that of the label as it is. Good labels answer no to all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft

from medseg.audit.sketch import ClassArray, Sketch, foreground

FloatArray = npt.NDArray[np.float32]
Move = tuple[float, float, float]
_REACH_VOXELS = 8
"""Moves of up to so many coarse voxels along each axis are tried."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one case's label answers.

    Attributes:
        fit: mean log share of the class that the label gives to each foreground voxel, minus the background's there;
            how well scan and label go together, below 0 where the scan speaks against the label.
        move_mm: the best move (x, y, z), (0, 0, 0) where the label lies best where it is.
        move_gain: of that move, per foreground voxel; at least 0.
        exchanges: pair of classes to the gain of exchanging them, per voxel of the two; only pairs that the case has both of.
        mirrors: axis (0 = x) to the gain of mirroring the label along it, per foreground voxel.
    """

    fit: float
    move_mm: Move
    move_gain: float
    exchanges: Mapping[tuple[int, int], float]
    mirrors: Mapping[int, float]


def ask(sketch: Sketch, log_shares: FloatArray) -> Answers | None:
    """Asks all questions of one case.

    Args:
        sketch: with a label.
        log_shares: (K, X, Y, Z) log share of each class at each voxel, from whatever has not seen this case's label.

    Returns:
        The answers; None where the label is empty.
    """
    assert sketch.classes is not None
    inside = foreground(sketch.classes)
    if not inside.any():
        return None
    against_background = log_shares - log_shares[:1]
    given = _sum(sketch.classes, against_background)
    count = int(inside.sum())
    move, gain = _best_move(sketch.classes, against_background, given)
    spacing = sketch.spacing_xyz_mm
    return Answers(
        fit=given / count,
        move_mm=(move[0] * spacing[0], move[1] * spacing[1], move[2] * spacing[2]),
        move_gain=gain / count,
        exchanges=dict(_exchanges(sketch.classes, log_shares)),
        mirrors={
            axis: (_sum(np.flip(sketch.classes, axis), against_background) - given) / count
            for axis in range(3)
            if sketch.shape_xyz[axis] > 1
        },
    )


def _sum(classes: ClassArray, log_shares: FloatArray) -> float:
    """Sum over voxels of the value of the class that ``classes`` puts there; class 0 and 255 count 0."""
    total = 0.0
    for index in range(1, len(log_shares)):
        total += float(log_shares[index][classes == index].sum(dtype=np.float64))
    return total


def _exchanges(classes: ClassArray, log_shares: FloatArray) -> Iterator[tuple[tuple[int, int], float]]:
    present = [index for index in range(1, len(log_shares)) if (classes == index).any()]
    for a, b in itertools.combinations(present, 2):
        of_a, of_b = classes == a, classes == b
        gain = float((log_shares[b] - log_shares[a])[of_a].sum()) + float((log_shares[a] - log_shares[b])[of_b].sum())
        yield (a, b), gain / float(of_a.sum() + of_b.sum())


def _best_move(classes: ClassArray, log_shares: FloatArray, given: float) -> tuple[tuple[int, int, int], float]:
    """The move in voxels with the highest sum, and its gain; the label is cut off at the scan's border, as a scan is.

    All moves are tried at once: the sums are a cross-correlation, by FFT padded against wrapping round.
    """
    padded = [fft.next_fast_len(size + min(_REACH_VOXELS, size - 1), real=True) for size in classes.shape]
    total = np.zeros(padded, np.float32)
    for index in range(1, len(log_shares)):
        mask = (classes == index).astype(np.float32)
        if mask.any():
            spectrum = fft.rfftn(log_shares[index], padded) * np.conj(fft.rfftn(mask, padded))
            total += fft.irfftn(spectrum, padded)
    reaches = [min(_REACH_VOXELS, size - 1) for size in classes.shape]
    ranges = [np.arange(-reach, reach + 1) for reach in reaches]
    window = total[np.ix_(*ranges)]
    best = np.unravel_index(int(window.argmax()), window.shape)
    x, y, z = (int(steps[place]) for steps, place in zip(ranges, best, strict=True))
    return (x, y, z), max(0.0, float(window[best]) - given)


def log_shares_of_prediction(predicted: ClassArray, class_count: int, *, sure: float = 0.9) -> FloatArray:
    """A predicted label map as ``ask`` wants it: its class has the share ``sure``, the others what is left.

    Args:
        predicted: (X, Y, Z) class indices on the sketch's grid.
        class_count: K, background included.
        sure: share of the predicted class, above 1/K.
    """
    rest = np.log((1 - sure) / max(1, class_count - 1))
    shares = np.full((class_count, *predicted.shape), rest, np.float32)
    for index in range(class_count):
        shares[index][predicted == index] = np.log(sure)
    return shares


def robust_z(values: Sequence[float], *, floor: float) -> npt.NDArray[np.float64]:
    """How many robust deviations each value lies above the median.

    The deviation is 1.4826 times the median absolute deviation, at least ``floor``, so that trifles in a set of near-equal
    values make no outliers. An empty input gives an empty array.
    """
    array = np.asarray(values, np.float64)
    if not array.size:
        return array
    median = np.median(array)
    deviation = max(1.4826 * float(np.median(np.abs(array - median))), floor)
    scores: npt.NDArray[np.float64] = (array - median) / deviation
    return scores
