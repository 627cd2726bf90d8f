"""Sketches made from nothing: smooth random scans, each its own, and an organ of two halves at a known place."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medseg.audit.sketch import Sketch

SHAPE = (24, 26, 22)
NAMES = ("background", "left", "right")


def texture(seed, shape=SHAPE):
    """(X, Y, Z) float32 smooth noise of deviation 1."""
    noise = ndimage.gaussian_filter(
        np.random.default_rng(seed).normal(size=shape), [1.2 if n > 1 else 0 for n in shape]
    )
    return (noise / noise.std()).astype(np.float32)


def halves(shape=SHAPE, centre=(12, 13, 11)):
    """(X, Y, Z) uint8: an ellipsoid whose half at lower x is class 1 and at higher x class 2."""
    u = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    radii = (8, 5, 4 if shape[2] > 1 else 1)
    inside = sum(((a - c) / r) ** 2 for a, c, r in zip(u, centre, radii, strict=True)) <= 1
    return np.where(inside, np.where(u[0] < centre[0], 1, 2), 0).astype(np.uint8)


def sketch(case_id, seed=0, *, image=None, classes=None, spacing=(1.0, 1.0, 1.0), **more):
    image = texture(seed) if image is None else image
    image = image[None] if image.ndim == 3 else image
    values = {
        "id": case_id, "image": np.ascontiguousarray(image, np.float32), "classes": classes, "spacing_xyz_mm": spacing,
        "image_sha256": str(hash(image.tobytes())), "label_sha256": None, "shapes": {},
    }  # fmt: skip
    return Sketch(**(values | more))


def organ(case_id, seed):
    """A case whose halves are as bright as told apart (1.5 and 3 over a noisy ground of 0), a little moved by the seed."""
    rng = np.random.default_rng(seed)
    classes = halves(centre=np.array([12, 13, 11]) + rng.integers(-1, 2, 3))
    image = 1.5 * classes + 0.5 * texture(1000 + seed)
    return sketch(case_id, image=image, classes=classes)
