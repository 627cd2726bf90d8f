"""A small model of what each class looks like and where it lies, fitted in closed form and never used on its own cases.

Ridge regression of one-hot classes on random cosine features (Rahimi and Recht 2007) of each voxel's surroundings and
place. It is no substitute for a network, but it needs no training run, and it only has to be good enough to tell whether a
label fits its scan better after being moved, mirrored or exchanged. Cases of one group are scored by a model that was fitted
to the other groups: sums over voxels are kept per group, so leaving one out is a subtraction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.audit.sketch import Sketch, foreground
from medseg.imaging import IGNORE

FloatArray = npt.NDArray[np.float32]
_COSINES = 384
_VOXELS_PER_CASE = 2500
_RIDGE = 1e-3
_LEAST_SHARE = 0.02
"""A class's share of a voxel is taken to be at least this: one voxel can't condemn a label."""
_BLOCK = 32768


def voxel_features(sketch: Sketch) -> FloatArray:
    """(X, Y, Z, F) float32: what a voxel's surroundings look like, and where it lies.

    Per channel: the scan at three degrees of blur, its edges, the blurred scan a few voxels away along each axis; and the
    voxel's place, -1 to 1 per axis.
    """
    solid = [axis for axis in range(3) if sketch.shape_xyz[axis] > 1]
    planes = []
    for channel in sketch.image:
        blurred = [_blur(channel, sigma, solid) for sigma in (0.7, 1.5, 3.0)]
        planes += blurred
        for image in blurred[:2]:
            planes.append(np.sqrt(sum(np.square(np.gradient(image, axis=axis)) for axis in solid) + 1e-12))
        for image, reach in ((blurred[1], 3), (blurred[2], 7)):
            for axis in solid:
                planes += [_moved(image, reach, axis), _moved(image, -reach, axis)]
    for axis in solid:
        line = np.linspace(-1, 1, sketch.shape_xyz[axis], dtype=np.float32)
        planes.append(np.broadcast_to(line.reshape([-1 if a == axis else 1 for a in range(3)]), sketch.shape_xyz))
    return np.stack(planes, axis=-1).astype(np.float32)


def _blur(channel: FloatArray, sigma: float, solid: Sequence[int]) -> FloatArray:
    blurred = ndimage.gaussian_filter(channel, [sigma if a in solid else 0 for a in range(3)], mode="nearest")
    return np.asarray(blurred, np.float32)


def _moved(image: FloatArray, reach: int, axis: int) -> FloatArray:
    places = np.clip(np.arange(image.shape[axis]) + reach, 0, image.shape[axis] - 1)
    return np.take(image, places, axis)


@dataclass
class _Sums:
    """Sums over voxels of one group: features x features and features x classes."""

    gram: npt.NDArray[np.float64]
    cross: npt.NDArray[np.float64]

    def __sub__(self, other: Self) -> _Sums:
        return _Sums(self.gram - other.gram, self.cross - other.cross)


@dataclass(frozen=True, eq=False)
class VoxelModels:
    """One model per group, each fitted to all other groups.

    Attributes:
        mean, deviation: of the features, (F,).
        directions, phases: of the cosines, (F, 384) and (384,).
        weights: group to (features, K).
    """

    mean: FloatArray
    deviation: FloatArray
    directions: FloatArray
    phases: FloatArray
    weights: Mapping[int, FloatArray]

    def log_shares(self, sketch: Sketch, group: int) -> FloatArray:
        """(K, X, Y, Z) float32: log of each class's share of each voxel, at least log 0.02, by the model without ``group``."""
        features = voxel_features(sketch)
        flat = features.reshape(-1, features.shape[-1])
        weights = self.weights[group]
        shares = np.concatenate(
            [
                _lifted(flat[n : n + _BLOCK], self.mean, self.deviation, self.directions, self.phases) @ weights
                for n in range(0, len(flat), _BLOCK)
            ]
        )
        shares = np.maximum(shares, _LEAST_SHARE)
        shares /= shares.sum(axis=1, keepdims=True)
        logs: FloatArray = np.log(shares).T.reshape(weights.shape[1], *sketch.shape_xyz).astype(np.float32)
        return logs


def _lifted(
    features: FloatArray, mean: FloatArray, deviation: FloatArray, directions: FloatArray, phases: FloatArray
) -> FloatArray:
    scaled = np.clip((features - mean) / deviation, -4, 4)
    ones = np.ones((len(features), 1), np.float32)
    return np.concatenate((ones, scaled, np.cos(scaled @ directions + phases)), axis=1)


def fit_voxel_models(
    sketches: Sequence[Sketch], groups: Mapping[str, int], *, class_count: int, seed: int
) -> VoxelModels:
    """Fits the models.

    Args:
        sketches: labelled cases, all with the same number of channels; at least two groups of them.
        groups: case id to its group, which parts no patient.
        class_count: K, background included.
        seed: of which voxels are taken and of the cosines.
    """
    samples = {sketch.id: _sample(sketch, np.random.default_rng((seed, k))) for k, sketch in enumerate(sketches)}
    stacked = np.concatenate([features for features, _ in samples.values()])
    mean, deviation = stacked.mean(axis=0), np.maximum(stacked.std(axis=0), 1e-6)
    rng = np.random.default_rng((seed, len(sketches), 1))
    directions = (rng.normal(size=(stacked.shape[1], _COSINES)) / np.sqrt(stacked.shape[1])).astype(np.float32)
    phases = rng.uniform(0, 2 * np.pi, _COSINES).astype(np.float32)
    size = 1 + stacked.shape[1] + _COSINES
    sums = {group: _Sums(np.zeros((size, size)), np.zeros((size, class_count))) for group in set(groups.values())}
    for case_id, (features, classes) in samples.items():
        lifted = _lifted(features, mean, deviation, directions, phases)
        group = sums[groups[case_id]]
        group.gram += lifted.T @ lifted
        group.cross += lifted.T @ np.eye(class_count, dtype=np.float32)[classes]
    total = _Sums(sum(s.gram for s in sums.values()), sum(s.cross for s in sums.values()))  # type: ignore[arg-type]
    weights = {group: _solved(total - own) for group, own in sums.items()}
    return VoxelModels(mean, deviation, directions, phases, weights)


def _sample(sketch: Sketch, rng: np.random.Generator) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
    """Voxels of a case, half of them from near its foreground, the rest from anywhere that is labelled."""
    assert sketch.classes is not None
    known = np.flatnonzero(sketch.classes != IGNORE)
    solid = [3 if size > 1 else 1 for size in sketch.shape_xyz]
    near = ndimage.binary_dilation(foreground(sketch.classes), np.ones(solid), iterations=3)
    near_known = np.flatnonzero(near & (sketch.classes != IGNORE))
    taken = [rng.choice(place, min(len(place), _VOXELS_PER_CASE // 2), replace=False) for place in (known, near_known)]
    chosen = np.concatenate(taken)
    features = voxel_features(sketch)
    return features.reshape(-1, features.shape[-1])[chosen], sketch.classes.ravel()[chosen]


def _solved(sums: _Sums) -> FloatArray:
    gram = sums.gram + _RIDGE * np.trace(sums.gram) / len(sums.gram) * np.eye(len(sums.gram))
    solved: FloatArray = np.linalg.solve(gram, sums.cross).astype(np.float32)
    return solved
