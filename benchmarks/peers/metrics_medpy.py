"""medpy's metrics of the pairs in a folder (see compare_metrics.py).

python metrics_medpy.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
from medpy.metric import binary

for path in sorted(Path(sys.argv[1]).glob("*.npz")):
    pair = np.load(path)
    masks, spacing = (pair["prediction"], pair["reference"]), pair["spacing"].tolist()
    values = {}
    try:
        values = {
            "dice": binary.dc(*masks),
            "iou": binary.jc(*masks),
            "precision": binary.precision(*masks),
            "recall": binary.recall(*masks),
            "specificity": binary.specificity(*masks),
            "hd_mm": binary.hd(*masks, voxelspacing=spacing),
            "hd95_pooled_mm": binary.hd95(*masks, voxelspacing=spacing),
            "assd_mm": binary.assd(*masks, voxelspacing=spacing),
            "masd_mm": np.mean([binary.asd(*own, voxelspacing=spacing) for own in (masks, masks[::-1])]),
        }
    except RuntimeError as error:
        values = {"error": str(error)}
    print(json.dumps({"pair": path.stem, **{k: v if k == "error" else float(v) for k, v in values.items()}}))
