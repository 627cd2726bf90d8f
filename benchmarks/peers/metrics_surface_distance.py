"""DeepMind surface-distance's metrics of the pairs in a folder (see compare_metrics.py).

python metrics_surface_distance.py FOLDER
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np

warnings.simplefilter("ignore")  # it uses names that scipy deprecates, and divides by empty surfaces

import surface_distance  # noqa: E402

for path in sorted(Path(sys.argv[1]).glob("*.npz")):
    pair = np.load(path)
    prediction, reference = pair["prediction"], pair["reference"]
    found = surface_distance.compute_surface_distances(reference, prediction, pair["spacing"].tolist())
    to_prediction, to_reference = surface_distance.compute_average_surface_distance(found)
    areas = [found[f"surfel_areas_{name}"].sum() for name in ("gt", "pred")]
    values = {
        "dice": surface_distance.compute_dice_coefficient(reference, prediction),
        "hd_surfel_mm": surface_distance.compute_robust_hausdorff(found, 100.0),
        "hd95_surfel_mm": surface_distance.compute_robust_hausdorff(found, 95.0),
        "masd_surfel_mm": (to_prediction + to_reference) / 2,
        # It leaves it to the caller how the two directions are joined; so the pooled mean is by its areas.
        "assd_surfel_mm": np.dot([to_prediction, to_reference], areas) / sum(areas),
        "nsd_surfel": surface_distance.compute_surface_dice_at_tolerance(found, float(pair["tolerance"])),
    }
    print(json.dumps({"pair": path.stem, **{name: float(value) for name, value in values.items()}}))
