"""What nnU-Net 2.8.1's resampling makes of cases that benchmarks/compare_resampling.py wrote; runs in its environment.

    /tmp/nnunet_env/bin/python benchmarks/nnunet_resampling.py FOLDER

For each ``FOLDER/*.npz`` prints a line of JSON: how far our arrays are from nnU-Net's. No package of ours is imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape

SEPARATE = {"order_z": 0, "force_separate_z": None}


def compare(case: np.lib.npyio.NpzFile) -> dict[str, object]:
    """Differences of one case, its axes turned into nnU-Net's: (z, y, x), the one slices are stacked along first."""
    through = int(case["through"])
    first = [] if through < 0 else [through]
    order = [*first, *(axis for axis in (2, 1, 0) if axis not in first)]

    def turned(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.transpose([0, *(1 + axis for axis in order)]))

    image, classes = turned(case["image"]), turned(case["classes"][None])
    current = [float(case["spacing"][axis]) for axis in order]
    target = [float(case["target"][axis]) for axis in order]
    if first:  # as DefaultPreprocessor.run_case_npy: "in 3d we do not change the spacing between slices"
        target[0] = current[0]
    shape = compute_new_shape(image.shape[1:], current, target)
    resampled = resample_data_or_seg_to_shape(image, shape, current, target, is_seg=False, order=3, **SEPARATE)
    labels = resample_data_or_seg_to_shape(
        classes.astype(np.int8), shape, current, target, is_seg=True, order=1, **SEPARATE
    )
    back = resample_data_or_seg_to_shape(
        turned(case["scores"]), image.shape[1:], target, current, is_seg=False, order=1, **SEPARATE
    ).argmax(axis=0)
    ours = turned(case["our_image"])
    if ours.shape != resampled.shape:
        return {"shape": f"{list(ours.shape)}, nnU-Net {list(resampled.shape)}"}
    return {
        "image": float(np.abs(ours - resampled).max() / np.abs(resampled).max()),
        "labels": int((turned(case["our_labels"][None]) != labels).sum()),
        "foreground": int((labels > 0).sum()),
        "restored": int((turned(case["our_back"][None])[0] != back).sum()),
        "voxels": int(back.size),
    }


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*.npz")):
        with np.load(path) as loaded:
            print(json.dumps({"case": path.stem, **compare(loaded)}), flush=True)
