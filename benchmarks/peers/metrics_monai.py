"""MONAI's metrics of the pairs in a folder (see compare_metrics.py).

python metrics_monai.py FOLDER
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from monai import metrics

warnings.simplefilter("ignore")  # it warns of empty masks
torch.set_num_threads(1)

for path in sorted(Path(sys.argv[1]).glob("*.npz")):
    pair = np.load(path)
    p, r = (torch.from_numpy(pair[name][None, None].astype(np.float32)) for name in ("prediction", "reference"))
    common = {"include_background": True, "spacing": pair["spacing"].tolist()}
    tolerance = [float(pair["tolerance"])]
    counts = metrics.get_confusion_matrix(p, r, include_background=True)
    values = {
        "dice": metrics.compute_dice(p, r, ignore_empty=False),
        "iou": metrics.compute_iou(p, r, ignore_empty=False),
        "precision": metrics.compute_confusion_matrix_metric("precision", counts),
        "recall": metrics.compute_confusion_matrix_metric("sensitivity", counts),
        "specificity": metrics.compute_confusion_matrix_metric("specificity", counts),
        "mcc": metrics.compute_confusion_matrix_metric("matthews correlation coefficient", counts),
        "hd_mm": metrics.compute_hausdorff_distance(p, r, **common),
        "hd95_mm": metrics.compute_hausdorff_distance(p, r, percentile=95, **common),
        "assd_mm": metrics.compute_average_surface_distance(p, r, symmetric=True, **common),
        "nsd": metrics.compute_surface_dice(p, r, tolerance, **common),
    }
    if p.ndim == 5:  # its table of areas is for 3D
        values["nsd_surfel"] = metrics.compute_surface_dice(p, r, tolerance, use_subvoxels=True, **common)
    print(json.dumps({"pair": path.stem, **{name: float(value) for name, value in values.items()}}))
