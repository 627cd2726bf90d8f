"""Medical-image segmentation from one manifest and one config.

The public API: ``load`` a trained model and ``predict``; read scans and write masks; score masks. Names are imported when
they are first used, so ``import medseg`` costs next to nothing.

Example::

    import medseg

    model = medseg.load("work/hippocampus/runs/fold_0/model")
    label_map = model.predict("scan.nii.gz", output="mask.nii.gz")

    prediction = label_map.array == 1
    reference = medseg.read_label_map("reference.nii.gz").array == 1
    medseg.dice(medseg.count_overlap(prediction, reference))
    distances = medseg.surface_distances(prediction, reference, spacing_mm=(1.0, 1.0, 1.0))
    medseg.hausdorff_percentile(distances, percent=95)
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.errors import MedsegError
    from medseg.evaluation.case import score_masks
    from medseg.evaluation.overlap import count_overlap, dice
    from medseg.evaluation.surface import (
        average_symmetric,
        hausdorff,
        hausdorff_percentile,
        normalised_surface_dice,
        surface_distances,
    )
    from medseg.imaging import LabelMap, Volume, read_label_map, read_volume, write_label_map
    from medseg.inference.predictor import Predictor

_HOMES = {
    "LabelMap": "medseg.imaging",
    "MedsegError": "medseg.errors",
    "Predictor": "medseg.inference.predictor",
    "Volume": "medseg.imaging",
    "average_symmetric": "medseg.evaluation.surface",
    "count_overlap": "medseg.evaluation.overlap",
    "dice": "medseg.evaluation.overlap",
    "hausdorff": "medseg.evaluation.surface",
    "hausdorff_percentile": "medseg.evaluation.surface",
    "normalised_surface_dice": "medseg.evaluation.surface",
    "read_label_map": "medseg.imaging",
    "read_volume": "medseg.imaging",
    "score_masks": "medseg.evaluation.case",
    "surface_distances": "medseg.evaluation.surface",
    "write_label_map": "medseg.imaging",
}

__all__ = [
    "LabelMap",
    "MedsegError",
    "Predictor",
    "Volume",
    "__version__",
    "average_symmetric",
    "count_overlap",
    "dice",
    "hausdorff",
    "hausdorff_percentile",
    "load",
    "normalised_surface_dice",
    "read_label_map",
    "read_volume",
    "score_masks",
    "surface_distances",
    "write_label_map",
]


def load(model_folder: str | os.PathLike[str], device: str | None = "cpu") -> Predictor:
    """Loads a trained model once, for any number of scans.

    Args:
        model_folder: as ``medseg train`` leaves it in ``<work>/runs/<name>/model``.
        device: "cpu", "cuda", "cuda:1"; None takes CUDA where there is one.

    Returns:
        A predictor; ``.predict(scan)`` gives a label map on the scan's own grid.

    Raises:
        ModelError: the folder holds no model, a damaged one, or one of a newer medseg.
        EnvironmentFault: there is no such device.
    """
    from medseg.inference.predictor import load_predictor

    return load_predictor(model_folder, device)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("medseg")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'medseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
