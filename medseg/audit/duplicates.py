"""Cases that are there twice: the same voxels, or the same scan in disguise.

Checksums find equal voxels whatever the file format. For the rest, scans are band-passed (so that brightness, contrast and
slow shading don't matter), candidates are picked by their power spectra (which a shift or a mirroring hardly changes), and
each candidate pair is settled by the highest normalised cross-correlation over all shifts and all mirrorings. Different
patients' fine structure does not line up under any shift; a copy's does, also after scaling, noise, cropping or mirroring.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from medseg.audit.sketch import Sketch

FloatArray = npt.NDArray[np.float32]
ALIKE, SAME_SCAN = 0.65, 0.9
"""Correlations from which two scans are alike, as a patient's left and right are, and one; see docs/audit.md."""
_ALIKE_DEVIATIONS, _SAME_DEVIATIONS = 2.5, 6.0
"""So far a pair must also stand out of the set's other pairs: scans of a phantom, or registered ones, are alike by nature."""
_LEAST_DEVIATION = 0.05
_NULL_PAIRS = 40
_SPECTRUM = 6  # low frequencies kept on either side of 0 along each axis
_NEIGHBOURS = 4
_MOST_PAIRS = 400
_LEAST_OVERLAP = 0.5


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two cases whose scans are one.

    Attributes:
        first, second: case ids, in order.
        identical: every voxel is equal.
        correlation: of the band-passed scans in their best alignment, up to 1.
        same_scan: they are one scan; else they are alike only.
        move_mm: how far the second lies from the first there.
        mirrored: axes (0 = x) along which the second is mirrored.
    """

    first: str
    second: str
    identical: bool
    correlation: float
    same_scan: bool = True
    move_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    mirrored: tuple[int, ...] = ()


def find_duplicates(sketches: Sequence[Sketch]) -> tuple[Pair, ...]:
    """All pairs of cases whose scans are one or alike, the surest first; a set of n identical cases gives n - 1 pairs.

    Args:
        sketches: in any order; all on grids of one spacing.
    """
    ordered = sorted(sketches, key=lambda sketch: sketch.id)
    pairs = list(_identical(ordered))
    copies = {pair.second for pair in pairs}
    rest = [sketch for sketch in ordered if sketch.id not in copies]
    middle, deviation = _null(rest)
    for a, b in _candidates(rest):
        pair = compare(rest[a], rest[b])
        stands_out = (_fisher(pair.correlation) - middle) / deviation
        if pair.correlation >= ALIKE and stands_out >= _ALIKE_DEVIATIONS:
            same = pair.correlation >= SAME_SCAN and stands_out >= _SAME_DEVIATIONS
            pairs.append(replace(pair, same_scan=same))
    return tuple(sorted(pairs, key=_surest_first))


def _surest_first(pair: Pair) -> tuple[bool, bool, float, str, str]:
    return not pair.identical, not pair.same_scan, -pair.correlation, pair.first, pair.second


def _fisher(correlation: float) -> float:
    """Fisher's z of a correlation: even noise on it whether it is small or near 1."""
    return float(np.arctanh(min(max(correlation, -0.999), 0.999)))


def _null(sketches: Sequence[Sketch]) -> tuple[float, float]:
    """Median and robust deviation of Fisher's z over pairs of the set taken at random; of fewer than three pairs (0, 0.05)."""
    count = len(sketches) * (len(sketches) - 1) // 2
    if count < 3:
        return 0.0, _LEAST_DEVIATION
    chosen = np.sort(np.random.default_rng(0).choice(count, min(count, _NULL_PAIRS), replace=False))
    rows, columns = np.triu_indices(len(sketches), 1)
    values = [_fisher(compare(sketches[rows[k]], sketches[columns[k]]).correlation) for k in chosen]
    middle = float(np.median(values))
    return middle, max(1.4826 * float(np.median(np.abs(np.asarray(values) - middle))), _LEAST_DEVIATION)


def same_labels(sketches: Sequence[Sketch]) -> tuple[tuple[str, str], ...]:
    """Pairs of cases with equal, non-empty labels on different scans: one label was copied to the wrong case."""
    by_label = defaultdict(list)
    for sketch in sorted(sketches, key=lambda sketch: sketch.id):
        if sketch.label_sha256 is not None and sketch.shapes:
            by_label[sketch.label_sha256].append(sketch)
    return tuple(
        (group[0].id, other.id)
        for group in by_label.values()
        for other in group[1:]
        if other.image_sha256 != group[0].image_sha256
    )


def _identical(ordered: Sequence[Sketch]) -> Iterator[Pair]:
    first: dict[str, str] = {}
    for sketch in ordered:
        if sketch.image_sha256 in first:
            yield Pair(first=first[sketch.image_sha256], second=sketch.id, identical=True, correlation=1.0)
        else:
            first[sketch.image_sha256] = sketch.id


def band_passed(sketch: Sketch) -> FloatArray:
    """(X, Y, Z) float32 of the channels' mean, mean 0: blurred by 1 voxel minus blurred by 3, faded out at the border."""
    sigma = [1.0 if size > 1 else 0.0 for size in sketch.shape_xyz]
    grey = sketch.image.mean(axis=0)
    fine = ndimage.gaussian_filter(grey, sigma, mode="nearest")
    band = fine - ndimage.gaussian_filter(grey, [3 * s for s in sigma], mode="nearest")
    for axis, size in enumerate(band.shape):
        if size > 1:  # the border of a crop is an edge that all crops share
            fade = np.minimum(1, (np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5) / 3)
            band = band * fade.reshape([-1 if a == axis else 1 for a in range(3)])
    result: FloatArray = (band - band.mean()).astype(np.float32)
    return result


def _candidates(sketches: Sequence[Sketch]) -> list[tuple[int, int]]:
    """Index pairs worth a closer look: each case's nearest by power spectrum, the nearest of all first."""
    if len(sketches) < 2:
        return []
    spectra = _spectra([band_passed(sketch) for sketch in sketches])
    nearest: dict[tuple[int, int], float] = {}
    for begin in range(0, len(sketches), 512):  # a block of rows at a time: ten thousand cases make a large matrix
        alike = spectra[begin : begin + 512] @ spectra.T
        for row, values in enumerate(alike, start=begin):
            values[row] = -np.inf
            for other in np.argsort(-values, kind="stable")[:_NEIGHBOURS]:
                pair = (min(row, int(other)), max(row, int(other)))
                nearest[pair] = float(values[other])
    ranked = sorted((pair for pair in nearest if pair[0] != pair[1]), key=lambda pair: (-nearest[pair], pair))
    return ranked[: max(_MOST_PAIRS, len(sketches))]


def _spectra(bands: Sequence[FloatArray]) -> FloatArray:
    """(N, F) float32 rows of length 1: low-frequency magnitudes on one common grid, alike for shifted and mirrored scans.

    The set's mean is taken off, so that what all scans share does not count.
    """
    size = [fft.next_fast_len(max(band.shape[axis] for band in bands), real=True) for axis in range(3)]
    half = [min(_SPECTRUM, n // 2) for n in size]
    rows = []
    for band in bands:
        whole = np.abs(fft.fftn(band, size))
        low = whole[np.ix_(*(np.arange(-h, h + 1) for h in half))]
        folded = sum(low[flip] for flip in itertools.product((slice(None), slice(None, None, -1)), repeat=3))
        row = np.log(np.asarray(folded) + 1e-3 * whole.mean() + 1e-12).ravel()
        rows.append((row - row.mean()) / max(float(row.std()), 1e-6))
    matrix = np.stack(rows).astype(np.float32)
    matrix -= matrix.mean(axis=0)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    result: FloatArray = matrix / np.maximum(lengths, 1e-6)
    return result


def compare(first: Sketch, second: Sketch) -> Pair:
    """The best alignment of two scans over all shifts that leave half of the smaller one, and all mirrorings.

    Every mirroring is tried on every second voxel, the best two then on all.
    """
    fixed, moving = band_passed(first), band_passed(second)
    solid = [axis for axis in range(3) if min(fixed.shape[axis], moving.shape[axis]) > 1]
    choices = [axes for count in range(len(solid) + 1) for axes in itertools.combinations(solid, count)]
    half = slice(None, None, 2)
    coarse, thinned = _Correlation(fixed[half, half, half], moving[half, half, half].shape), moving[half, half, half]
    promising = sorted(choices, key=lambda axes: -coarse.best(np.flip(thinned, axes))[0])[:2]
    fine = _Correlation(fixed, moving.shape)
    found = [(*fine.best(np.flip(moving, axes)), axes) for axes in promising]
    value, move, axes = max(found, key=lambda one: one[0])
    spacing = first.spacing_xyz_mm
    names = (first.id, second.id) if first.id < second.id else (second.id, first.id)
    return Pair(
        first=names[0],
        second=names[1],
        identical=first.image_sha256 == second.image_sha256,
        correlation=value,
        move_mm=(move[0] * spacing[0], move[1] * spacing[1], move[2] * spacing[2]),
        mirrored=axes,
    )


class _Correlation:
    """Normalised cross-correlation over every shift, by FFT; the fixed scan's transforms are made once."""

    def __init__(self, fixed: FloatArray, moving_shape: tuple[int, ...]) -> None:
        self._shape = [fft.next_fast_len(a + b - 1, real=True) for a, b in zip(fixed.shape, moving_shape, strict=True)]
        self._fixed = fft.rfftn(fixed, self._shape)
        self._inside, ones, self._overlap = _boxes(fixed.shape, moving_shape)
        self._fixed_energy = fft.irfftn(fft.rfftn(np.square(fixed), self._shape) * ones, self._shape)
        self._least = _LEAST_OVERLAP * min(fixed.size, int(np.prod(moving_shape)))

    def best(self, moving: FloatArray) -> tuple[float, tuple[int, int, int]]:
        """The highest correlation and the shift in voxels that gives it."""
        product = fft.irfftn(self._fixed * np.conj(fft.rfftn(moving, self._shape)), self._shape)
        energy = fft.irfftn(self._inside * np.conj(fft.rfftn(np.square(moving), self._shape)), self._shape)
        scale = np.sqrt(np.maximum(self._fixed_energy, 0) * np.maximum(energy, 0))
        usable = (self._overlap >= self._least) & (scale > 1e-6 * max(float(scale.max()), 1e-12))
        values = np.where(usable, product / np.where(usable, scale, 1), -1)
        place = np.unravel_index(int(values.argmax()), values.shape)
        x, y, z = (int(p) if p < n - n // 2 else int(p) - n for p, n in zip(place, values.shape, strict=True))
        return float(values[place]), (x, y, z)


@functools.lru_cache(maxsize=8)
def _boxes(
    fixed: tuple[int, ...], moving: tuple[int, ...]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Transforms of two boxes full of ones, the second one's conjugate, and their overlap in voxels by shift."""
    shape = [fft.next_fast_len(a + b - 1, real=True) for a, b in zip(fixed, moving, strict=True)]
    inside = fft.rfftn(np.ones(fixed, np.float32), shape)
    ones = np.conj(fft.rfftn(np.ones(moving, np.float32), shape))
    return inside, ones, fft.irfftn(inside * ones, shape)
