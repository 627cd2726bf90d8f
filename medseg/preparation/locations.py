"""Where a class is: a bounded sample of its voxels per case, from which patch centres are drawn."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

_AT_LEAST = 10_000
_SHARE = 0.01
_AT_MOST = 100_000
IGNORE = 255


def seed_of(*parts: str) -> int:
    """A seed that depends on these texts only, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "little")


def sample_locations(classes: npt.NDArray[np.uint8], *, case_id: str) -> dict[int, npt.NDArray[np.int64]]:
    """A sample of every foreground class's voxels, fixed by the case's id.

    Of a class's voxels 10,000 or 1 % are kept, whichever is more, and at most 100,000; a smaller class is kept whole. Where
    some voxels are unlabelled (255) background is sampled too, so that a centre can be drawn among labelled voxels.

    Args:
        classes: (X, Y, Z) class indices.
        case_id: seeds the draw.

    Returns:
        Class index to sorted flat indices in C order.
    """
    flat = classes.reshape(-1)
    counts = np.bincount(flat, minlength=256)
    wanted = [int(c) for c in np.flatnonzero(counts) if 0 < c < IGNORE or (c == 0 and counts[IGNORE])]
    sample = {}
    for index in wanted:
        where = np.flatnonzero(flat == index)
        keep = min(max(_AT_LEAST, int(np.ceil(where.size * _SHARE))), _AT_MOST)
        if where.size > keep:
            where = np.random.default_rng(seed_of(case_id, str(index))).choice(
                where, keep, replace=False, shuffle=False
            )
            where.sort()
        sample[index] = where.astype(np.int64)
    return sample
