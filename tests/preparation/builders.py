"""Plans and grids for the tests of this folder."""

from __future__ import annotations

from typing import Any

import numpy as np

from medseg.preparation.grid import Grid, rows_of
from medseg.preparation.plan import ChannelPlan, Plan


def plan_for(spacing_xyz_mm=(1.0, 1.0, 1.0), *, channels: int = 1, scheme: str = "none", **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "dimensions": 3,
        "orientation": "RAS",
        "spacing_xyz_mm": spacing_xyz_mm,
        "median_shape_xyz": (32, 32, 32),
        "patch_size_xyz": (32, 32, 32),
        "batch_size": 2,
        "channels": tuple(ChannelPlan(name=f"channel {i}", scheme=scheme) for i in range(channels)),
        "labels": {"background": (0,), "organ": (1,), "lesion": (2,)},
        "features": (32, 64),
        "strides": ((1, 1, 1), (2, 2, 2)),
        "kernel_sizes": ((3, 3, 3), (3, 3, 3)),
        "batch_dice": False,
        "stored_dtype": "float16",
        "fingerprint_sha256": "0" * 64,
    }
    return Plan(**(values | changes))


def plain_grid(shape: tuple[int, int, int]) -> Grid:
    unit = rows_of(np.eye(4))
    return Grid(
        original_shape=shape,
        original_affine=unit,
        permutation=(0, 1, 2),
        flips=(False, False, False),
        crop_start=(0, 0, 0),
        crop_stop=shape,
        spacing_xyz_mm=(1.0, 1.0, 1.0),
        prepared_shape=shape,
        prepared_affine=unit,
        prepared_spacing_xyz_mm=(1.0, 1.0, 1.0),
    )
