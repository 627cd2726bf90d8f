"""SimpleITK's metrics of the pairs in a folder (see compare_metrics.py).

    python metrics_simpleitk.py FOLDER

Its Hausdorff filter measures between all voxels of both masks ("filled"); between their contours (faces, with a margin so that
the image's border counts) it measures what medseg does.
"""

import json
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813


def image(mask, spacing):
    padded = np.ascontiguousarray(np.pad(mask, 1).astype(np.uint8))
    made = sitk.GetImageFromArray(padded)
    made.SetSpacing([float(size) for size in spacing[::-1]])
    return made


for path in sorted(Path(sys.argv[1]).glob("*.npz")):
    pair = np.load(path)
    filled = [image(pair[name], pair["spacing"]) for name in ("prediction", "reference")]
    values = {}
    try:
        overlap = sitk.LabelOverlapMeasuresImageFilter()
        overlap.Execute(*filled)
        values = {"dice": overlap.GetDiceCoefficient(1), "iou": overlap.GetJaccardCoefficient(1)}
        contours = [sitk.LabelContour(own, fullyConnected=False) for own in filled]
        distance = sitk.HausdorffDistanceImageFilter()
        distance.Execute(*contours)
        values["hd_mm"] = distance.GetHausdorffDistance()
        distance.Execute(*filled)
        values["hd_filled_mm"] = distance.GetHausdorffDistance()
    except RuntimeError:
        values["error"] = "RuntimeError"
    print(json.dumps({"pair": path.stem, **values}))
