"""Surface metrics as their definitions read, from all distances between all points; shares no code with medseg.

    python metrics_brute_force.py FOLDER

Prints one JSON object per pair of FOLDER (see compare_metrics.py): both definitions of the surface.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist


def boundary_points(mask, spacing):
    found = []
    for index in np.argwhere(mask):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            other = index.copy()
            other[axis] += step
            if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                found.append(index * spacing)
                break
    return np.array(found, np.float64).reshape(-1, mask.ndim)


def surface_metrics(prediction, reference, spacing, tolerance):
    a, b = boundary_points(prediction, spacing), boundary_points(reference, spacing)
    if not len(a) or not len(b):
        return {}
    table = cdist(a, b)
    ab, ba = table.min(axis=1), table.min(axis=0)
    both = np.concatenate([ab, ba])
    return {
        "hd_mm": both.max(),
        "hd95_mm": max(np.percentile(ab, 95), np.percentile(ba, 95)),
        "hd95_pooled_mm": np.percentile(both, 95),
        "assd_mm": both.mean(),
        "masd_mm": (ab.mean() + ba.mean()) / 2,
        "nsd": np.mean(both <= tolerance + 1e-4),
    }


def overlap_metrics(prediction, reference):
    tp, fp = int((prediction & reference).sum()), int((prediction & ~reference).sum())
    fn, tn = int((~prediction & reference).sum()), int((~prediction & ~reference).sum())
    share = {
        "dice": (2 * tp, 2 * tp + fp + fn),
        "iou": (tp, tp + fp + fn),
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "f2": (5 * tp, 5 * tp + 4 * fn + fp),
        "volume_similarity": (tp + fp + tp + fn - abs(fp - fn), tp + fp + tp + fn),
    }
    found = {name: part / whole for name, (part, whole) in share.items() if whole}
    if min(tp + fp, tp + fn, tn + fp, tn + fn):
        found["mcc"] = np.corrcoef(prediction.ravel(), reference.ravel())[0, 1]
    return found


for path in sorted(Path(sys.argv[1]).glob("*.npz")):
    pair = np.load(path)
    masks = pair["prediction"], pair["reference"]
    values = overlap_metrics(*masks) | surface_metrics(*masks, pair["spacing"], float(pair["tolerance"]))
    print(json.dumps({"pair": path.stem, **{name: float(value) for name, value in values.items()}}))
