"""The surface metrics as their definitions read, in float64, voxel by voxel and distance by distance."""

import itertools
import math

import numpy as np


def boundary_points(mask, spacing):
    """Centres in mm of the foreground voxels with a face neighbour that is outside the mask or outside the array."""
    found = []
    for index in itertools.product(*(range(n) for n in mask.shape)):
        if not mask[index]:
            continue
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            other = list(index)
            other[axis] += step
            if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                found.append([i * s for i, s in zip(index, spacing, strict=True)])
                break
    return np.array(found, dtype=np.float64).reshape(len(found), mask.ndim)


def directed(a, b):
    return np.array([math.sqrt(min(((p - q) ** 2).sum() for q in b)) for p in a])


def surface_metrics(prediction, reference, spacing, tolerance_mm):
    a, b = boundary_points(prediction, spacing), boundary_points(reference, spacing)
    nan = math.nan
    if not len(a) and not len(b):
        return {"hd_mm": nan, "hd95_mm": nan, "assd_mm": nan, "nsd": nan}
    if not len(a) or not len(b):
        return {"hd_mm": nan, "hd95_mm": nan, "assd_mm": nan, "nsd": 0.0}
    ab, ba = directed(a, b), directed(b, a)
    both = np.concatenate([ab, ba])
    return {
        "hd_mm": max(ab.max(), ba.max()),
        "hd95_mm": max(percentile(ab, 95), percentile(ba, 95)),
        "assd_mm": both.mean(),
        "nsd": sum(d <= tolerance_mm + 1e-4 for d in both) / len(both),
    }


def percentile(values, percent):
    ordered = sorted(values)
    place = percent / 100 * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def overlap_metrics(prediction, reference):
    both = only_p = only_r = 0
    for p, r in zip(prediction.ravel(), reference.ravel(), strict=True):
        both += bool(p and r)
        only_p += bool(p and not r)
        only_r += bool(r and not p)

    def share(a, b):
        return a / b if b else math.nan

    return {
        "dice": share(2 * both, 2 * both + only_p + only_r),
        "iou": share(both, both + only_p + only_r),
        "precision": share(both, both + only_p),
        "recall": share(both, both + only_r),
    }


def random_pairs():
    """Name, prediction, reference, spacing: 2D and anisotropic 3D, sparse to dense, at the border, with holes, empty."""
    rng = np.random.default_rng(20)
    shapes = [
        ((9, 8), (0.7, 1.3)),
        ((7, 8, 6), (1.0, 1.0, 1.0)),
        ((8, 7, 5), (0.7, 0.7, 2.5)),
        ((6, 5, 1), (1.0, 2.0, 5.0)),
    ]
    for (shape, spacing), share in itertools.product(shapes, (0.02, 0.3, 0.9)):
        yield f"random-{len(shape)}D-{share}", rng.random(shape) < share, rng.random(shape) < share, spacing
    for shape, spacing in shapes:
        solid = np.zeros(shape, bool)
        solid[1:-2, 1:-2] = True
        hole = solid.copy()
        hole[tuple(n // 2 for n in shape)] = False
        yield f"hole-{shape}", hole, solid, spacing
        yield f"full-{shape}", np.ones(shape, bool), solid, spacing
        nothing = np.zeros(shape, bool)
        yield f"both-empty-{shape}", nothing, nothing, spacing
        yield f"missed-{shape}", nothing, solid, spacing
        yield f"spurious-{shape}", solid, nothing, spacing
        point = nothing.copy()
        point[(0,) * len(shape)] = True
        yield f"one-voxel-{shape}", point, solid, spacing
        yield f"same-{shape}", hole, hole, spacing


PAIRS = list(random_pairs())
