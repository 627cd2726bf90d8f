"""How sure a network is of what it drew: entropy per voxel, and what a mask's probabilities say of each structure.

Everything is summed slab by slab, so that the probabilities of a whole scan are never there at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from medseg.inference.appearance import Appearance, HalfArray, box_of

FloatArray = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]

BINS_PER_OCTAVE = 4
"""Of the histograms of doubt: a bin is a factor of 2^(1/4) wide."""
_OCTAVES = 12
BINS = _OCTAVES * BINS_PER_OCTAVE + 1
"""From a doubt of 1 down to 1/4096; what is surer lies in the last one (inside) or is left out (outside)."""
_SURE = 0.9995
"""Voxels with a higher probability than this count as certain: their entropy is below 1/100 of the largest."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a mask's probabilities say, before any calibration.

    Attributes:
        structures: per class without background its features:

            - ``volume_ml`` of the mask (thousands of pixels of a picture); the only one of an empty structure;
            - ``soft_dice``: the Dice expected if each voxel were right with its own probability p, independently:
              2 Σ_mask p / (|mask| + Σ p);
            - ``entropy``: mean over the mask of the voxels' entropy, 0 to 1;
            - ``rim_mm``: Σ 4 p (1 - p) over all voxels, as a volume, over the mask's surface: how thick the doubtful layer is;
            - ``outside``: probability mass outside the mask over the mask's volume;
            - ``compactness``: surface over volume to the power 2/3 (1/2 in pictures): 6 for a cube, more if in pieces;
            - ``contact``: share of the surface that touches other structures (0 where classes overlap);
            - ``brightness``, ``spread``, ``texture``, ``edge`` of the scan there (`appearance.Appearance.features`), where the
              network's input is at hand;
            - ``length_x_mm``, ``length_y_mm``, ``length_z_mm``: of the piece of each axis that holds 98 % of its voxels.
        inside: histogram of the doubt 1 - p of the voxels that were given to a structure, of all structures together.
        outside: the same of the probability p of each structure in voxels that were not given to it, from 1/4096 on.
        voxel_ml: volume of one voxel of the histograms.
    """

    structures: Mapping[str, Mapping[str, float]]
    inside: tuple[int, ...]
    outside: tuple[int, ...]
    voxel_ml: float


def gather_evidence(
    slabs: Iterable[FloatArray],
    *,
    class_names: Sequence[str],
    spacing_xyz_mm: Sequence[float],
    regions: bool = False,
    image: HalfArray | None = None,
) -> Evidence:
    """The evidence of one scan.

    Args:
        slabs: (K, n, Y, Z) float32 probabilities, one after the other along x: of the classes, or (K - 1, n, Y, Z) of
            regions that may overlap.
        class_names: K of them, background first.
        spacing_xyz_mm: voxel size of the slabs' grid.
        regions: whether the classes overlap.
        image: (C, X, Y, Z) that the network was given, on the slabs' grid; None leaves out what the scan looks like.
    """
    count = len(class_names) - 1
    sums = _Sums(count, spacing_xyz_mm)
    # Structures that overlap are looked at one by one.
    looks = (
        [] if image is None else [Appearance(image, 1) for _ in range(count)] if regions else [Appearance(image, count)]
    )
    for slab in slabs:
        if regions:
            _add_regions(sums, slab)
            for region, look in enumerate(looks):
                look.add((slab[region] > 0.5).astype(np.uint8))
            continue
        winner, top = _winners(slab)
        _add_classes(sums, slab, winner, top)
        for look in looks:
            look.add(winner)
    evidence = sums.evidence(class_names[1:])
    if not looks:
        return evidence
    of = {name: looks[k].features(0) if regions else looks[0].features(k) for k, name in enumerate(class_names[1:])}
    structures = {name: {**own, **of[name]} for name, own in evidence.structures.items()}
    return replace(evidence, structures=structures)


class _Sums:
    """Per structure: voxels, probabilities inside and everywhere, entropy, doubt, surface."""

    def __init__(self, structures: int, spacing_xyz_mm: Sequence[float]) -> None:
        self.spacing = np.asarray(spacing_xyz_mm, np.float64)
        self.voxels, self.mass_inside, self.mass, self.entropy, self.doubt, self.surface, self.contact = np.zeros(
            (7, structures)
        )
        # Per axis, voxels of each structure per plane: one (n, structures) array a slab along x, sums over slabs along y, z.
        self.planes: list[list[Sums]] = [[], [], []]
        self.inside, self.outside = np.zeros((2, BINS), np.int64)
        self.last: npt.NDArray[np.integer] | None = None
        self.planar = True

    def add_outside(self, values: FloatArray, where: npt.NDArray[np.bool_]) -> None:
        """Probabilities of a structure, ``where`` voxels were not given to it."""
        self.outside += _histogram(values[where & (values >= 2.0**-_OCTAVES)])

    def face_mm2(self, axis: int) -> float:
        """Area of a voxel's face across an axis."""
        return float(self.spacing.prod() / self.spacing[axis])

    def add_planes(self, axis: int, counts: Sums) -> None:
        """Voxels per plane and structure, (planes, structures)."""
        if axis == 0 or not self.planes[axis]:
            self.planes[axis].append(counts)
        else:
            self.planes[axis][0] += counts

    def length_mm(self, axis: int, k: int) -> float:
        """Of the piece of an axis that holds all but 1 % of a structure's voxels at either end."""
        below = np.cumsum(np.concatenate(self.planes[axis])[:, k])
        first, last = np.searchsorted(below, [0.01 * below[-1], 0.99 * below[-1]])
        return float((last - first + 1) * self.spacing[axis])

    def evidence(self, names: Sequence[str]) -> Evidence:
        voxel_mm3 = float(self.spacing.prod())
        found: dict[str, Mapping[str, float]] = {}
        for k, name in enumerate(names):
            volume = self.voxels[k] * voxel_mm3
            features = {"volume_ml": volume / 1000}
            if volume > 0:
                surface = max(self.surface[k], self.face_mm2(0))
                features |= {
                    "soft_dice": 2 * self.mass_inside[k] / (self.voxels[k] + self.mass[k]),
                    "entropy": self.entropy[k] / self.voxels[k],
                    "rim_mm": 4 * self.doubt[k] * voxel_mm3 / surface,
                    "outside": (self.mass[k] - self.mass_inside[k]) / self.voxels[k],
                    "compactness": surface / volume ** (1 / 2 if self.planar else 2 / 3),
                    "contact": self.contact[k] / surface,
                }
                features |= {f"length_{axis}_mm": self.length_mm(number, k) for number, axis in enumerate("xyz")}
            # Six digits: sums in another order (threads, slabs) give the same text.
            found[name] = {what: float(f"{max(0.0, float(value)):.6g}") for what, value in features.items()}
        return Evidence(
            structures=found,
            inside=tuple(int(n) for n in self.inside),
            outside=tuple(int(n) for n in self.outside),
            voxel_ml=float(f"{voxel_mm3 / 1000:.6g}"),
        )


def _winners(slab: FloatArray) -> tuple[npt.NDArray[np.uint8], FloatArray]:
    """(class of each voxel, of equal ones the lowest, and its probability) of (K, n, Y, Z) probabilities."""
    top = slab.max(axis=0)
    winner = np.zeros(top.shape, np.uint8)
    for k in range(len(slab) - 1, 0, -1):
        winner[slab[k] == top] = k
    winner[slab[0] == top] = 0
    return winner, top


def _add_classes(sums: _Sums, slab: FloatArray, winner: npt.NDArray[np.uint8], top: FloatArray) -> None:
    count, flat = len(slab), winner.ravel()
    sums.planar &= slab.shape[3] == 1
    everywhere = slab.reshape(count, -1)
    mass = everywhere.sum(axis=1, dtype=np.float64)[1:]
    sums.mass += mass
    sums.doubt += mass - _squares(everywhere[1:])
    for k, row in enumerate(everywhere[1:], start=1):
        sums.add_outside(row, flat != k)
    # What follows counts in structures alone, mostly a small box of the scan.
    box = box_of(winner)
    if box is not None:
        _add_inside(sums, slab[(slice(None), *box)], winner[box], top[box])
    _add_planes(sums, winner, box, count)
    for axis, before, after in _neighbours(sums, winner):
        unlike = before != after
        one, other = before[unlike], after[unlike]
        faces = np.bincount(one, minlength=count) + np.bincount(other, minlength=count)
        sums.surface += faces[1:] * sums.face_mm2(axis)
        both = (one > 0) & (other > 0)
        shared = np.bincount(one[both], minlength=count) + np.bincount(other[both], minlength=count)
        sums.contact += shared[1:] * sums.face_mm2(axis)


def _add_inside(sums: _Sums, slab: FloatArray, winner: npt.NDArray[np.uint8], top: FloatArray) -> None:
    """The voxels of structures, from a box that holds them all."""
    count, given = len(slab), winner > 0
    own, probability = winner[given], top[given]
    sums.voxels += np.bincount(own, minlength=count)[1:]
    sums.mass_inside += np.bincount(own, probability, minlength=count)[1:]
    sums.inside += _histogram(1 - probability)
    unsure = given & (top < _SURE)
    entropy = _entropy(slab[:, unsure])
    sums.entropy += np.bincount(winner[unsure], entropy, minlength=count)[1:]


def _add_planes(sums: _Sums, winner: npt.NDArray[np.uint8], box: tuple[slice, ...] | None, count: int) -> None:
    for axis, size in enumerate(winner.shape):
        counts = np.zeros((size, count - 1))
        if box is not None:
            inside = winner[box]
            place = np.arange(inside.shape[axis]).reshape([-1 if own == axis else 1 for own in range(3)])
            numbers = np.bincount((place * count + inside).ravel(), minlength=inside.shape[axis] * count)
            counts[box[axis]] = numbers.reshape(-1, count)[:, 1:]
        sums.add_planes(axis, counts)


def _add_regions(sums: _Sums, slab: FloatArray) -> None:
    sums.planar &= slab.shape[3] == 1
    everywhere = slab.reshape(len(slab), -1)
    inside = slab > 0.5
    mass = everywhere.sum(axis=1, dtype=np.float64)
    entropy = voxel_entropy(slab, regions=True)
    sums.mass += mass
    sums.doubt += mass - _squares(everywhere)
    codes = np.zeros(slab.shape[1:], np.uint32)
    for k, (own, probability) in enumerate(zip(inside, slab, strict=True)):
        sums.voxels[k] += np.count_nonzero(own)
        sums.mass_inside[k] += probability[own].sum(dtype=np.float64)
        sums.entropy[k] += entropy[own].sum(dtype=np.float64)
        sums.inside += _histogram(1 - probability[own])
        sums.add_outside(probability, ~own)
        codes |= own.astype(np.uint32) << np.uint32(k)
    for axis in range(3):
        others = tuple(1 + own for own in range(3) if own != axis)
        sums.add_planes(axis, inside.sum(axis=others, dtype=np.float64).T)
    for axis, before, after in _neighbours(sums, codes):
        changed = before ^ after
        for k in range(len(slab)):
            sums.surface[k] += np.count_nonzero(changed >> np.uint32(k) & np.uint32(1)) * sums.face_mm2(axis)


def _neighbours(
    sums: _Sums, given: npt.NDArray[np.integer]
) -> Iterable[tuple[int, npt.NDArray[np.integer], npt.NDArray[np.integer]]]:
    """(axis, voxels, those behind them), also across the border to the slab before; pairs without a structure left out."""
    box = box_of(given, margin=1)
    if box is not None:
        inside = given[box]
        yield 0, inside[:-1], inside[1:]
        yield 1, inside[:, :-1], inside[:, 1:]
        yield 2, inside[:, :, :-1], inside[:, :, 1:]
    if sums.last is not None:
        yield 0, sums.last, given[0]
    sums.last = given[-1].copy()


def _squares(rows: FloatArray) -> Sums:
    return np.array([np.dot(row, row) for row in rows], np.float64)


def _histogram(doubt: FloatArray) -> npt.NDArray[np.int64]:
    """Counts of values in (0, 1] by octaves; the last bin also takes all that are smaller."""
    with np.errstate(divide="ignore"):
        places = np.minimum(-np.log2(doubt) * BINS_PER_OCTAVE, BINS - 1)
    return np.bincount(places.astype(np.intp), minlength=BINS)[:BINS]


def voxel_entropy(slab: FloatArray, *, regions: bool = False) -> FloatArray:
    """Entropy per voxel over the largest possible one.

    Args:
        slab: (K, ...) probabilities of classes, or (R, ...) of regions.
        regions: then it is the largest of the regions' binary entropies.

    Returns:
        (...) float32, 0 (certain) to 1 (all classes alike; a region at 0.5). Voxels above 0.9995 (or below 0.0005, of a
        region) count as certain.
    """
    result = np.zeros(slab.shape[1:], np.float32)
    if regions:
        for probability in slab:
            unsure = np.abs(probability - 0.5) < _SURE - 0.5
            values = probability[unsure]
            bits = -(values * np.log2(values) + (1 - values) * np.log2(1 - values))
            result[unsure] = np.maximum(result[unsure], bits)
        return result
    unsure = slab.max(axis=0) < _SURE
    result[unsure] = _entropy(slab[:, unsure])
    return result


def _entropy(values: FloatArray) -> FloatArray:
    """(N,) entropy over the largest possible one, of (K, N) probabilities of classes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(values > 0, values * np.log(values), 0)
    return np.asarray(-terms.sum(axis=0) / math.log(len(values)), np.float32)


def tempered(slab: FloatArray, temperature: float, *, regions: bool = False) -> FloatArray:
    """Probabilities as if the logits had been divided by ``temperature``.

    Args:
        slab: (K, ...) probabilities of classes that sum to 1, or (R, ...) of regions.
        temperature: above 0; 1 changes nothing, more makes less sure.
        regions: whether each stands for itself.
    """
    if temperature == 1:
        return slab
    exponent = np.float32(1 / temperature)
    powers = slab**exponent
    if regions:
        return np.asarray(powers / (powers + (1 - slab) ** exponent), np.float32)
    powers /= powers.sum(axis=0)
    return np.asarray(powers, np.float32)


def doubt_centres() -> Sums:
    """The doubt that each bin of the histograms stands for, (49,): the geometric middle; 0 for what is surer still."""
    centres: Sums = 2.0 ** (-(np.arange(BINS) + 0.5) / BINS_PER_OCTAVE)
    centres[-1] = 0
    return centres
