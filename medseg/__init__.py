"""Medical-image segmentation from one manifest and one config.

The public API: ``load`` a trained model and ``predict``; read scans and write masks; score masks. Names are imported when
they are first used, so ``import medseg`` costs next to nothing.

Example::

    import medseg

    model = medseg.load("work/hippocampus/runs/fold_0/model")
    label_map = model.predict("scan.nii.gz", output="mask.nii.gz")
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.errors import MedsegError
    from medseg.imaging import LabelMap, Volume, read_label_map, read_volume, write_label_map
    from medseg.inference.predictor import Predictor

_HOMES = {
    "LabelMap": "medseg.imaging",
    "MedsegError": "medseg.errors",
    "Predictor": "medseg.inference.predictor",
    "Volume": "medseg.imaging",
    "read_label_map": "medseg.imaging",
    "read_volume": "medseg.imaging",
    "write_label_map": "medseg.imaging",
}

__all__ = [
    "LabelMap",
    "MedsegError",
    "Predictor",
    "Volume",
    "__version__",
    "load",
    "read_label_map",
    "read_volume",
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
    return __all__
