"""A whole experiment in small: scans, manifest and config, over which the four stages run in seconds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.synthetic import LABELS, affine_of, scan_on, write_scan

SHAPE_XYZ = (20, 18, 12)
PICTURE_XYZ = (32, 28, 1)
_TURNED = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Experiment:
    """Where a small experiment lies.

    Attributes:
        config: its YAML file.
        data: data root with ``images/``, ``labels/`` and ``dataset.json``.
        work: where the stages write; not made yet.
        held_out: cases of fold 0.
        testing: cases of the testing list.
    """

    config: Path
    data: Path
    work: Path
    held_out: tuple[str, ...]
    testing: tuple[str, ...]

    @property
    def predicted(self) -> dict[str, tuple[str, ...]]:
        """Cases by folder of predictions, with ``infer.cases: all``."""
        return {"fold_0": self.held_out, "testing": self.testing}

    def flags(self, work: Path | None = None) -> list[str]:
        """What every stage is called with."""
        return ["--config", str(self.config), "--work", str(work or self.work), "--device", "cpu"]


def write_experiment(
    folder: Path, *, training: int = 8, testing: int = 2, folds: int = 2, picture: bool = False, steps: int = 8
) -> Experiment:
    """Writes ``folder/data`` and ``folder/small.yaml``: a network of two stages, saved after nearly every step.

    Args:
        folder: made if missing.
        training: cases with a fold, in turn over the ``folds``.
        testing: cases of the testing list, labelled too.
        folds: of cross-validation; fold 0 is held out.
        picture: PNG pictures instead of 3D scans, of which every other one lies turned in the patient.
        steps: of training, four to an epoch.
    """
    data = folder / "data"
    ids = [f"case_{number:02d}" for number in range(training)] + [f"test_{number:02d}" for number in range(testing)]
    cases = [_write_case(data, case_id, seed, picture=picture) for seed, case_id in enumerate(ids)]
    for number, case in enumerate(cases[:training]):
        case["fold"] = number % folds
    manifest = {
        "format": 1,
        "name": "small",
        "licence": "CC0-1.0",
        "channels": ["grey" if picture else "MR"],
        "labels": {name: values[0] for name, values in LABELS.items()},
        "training": cases[:training],
        "testing": cases[training:],
    }
    (data / "dataset.json").write_text(json.dumps(manifest, indent=2) + "\n")
    config = folder / "small.yaml"
    config.write_text(json.dumps(_config(picture=picture, steps=steps), indent=2) + "\n")  # JSON is YAML
    return Experiment(
        config=config,
        data=data,
        work=folder / "work",
        held_out=tuple(ids[:training:folds]),
        testing=tuple(ids[training:]),
    )


def _write_case(data: Path, case_id: str, seed: int, *, picture: bool) -> dict[str, Any]:
    shape = PICTURE_XYZ if picture else SHAPE_XYZ
    affine = np.eye(4) if picture else affine_of((1, 1, 1.5), _TURNED if seed % 2 else None, (3.0 * seed, -5, 7))
    made = scan_on(shape, affine, seed=seed, planar=picture)
    image, label = write_scan(made, data, case_id=case_id, suffix=".png" if picture else ".nii.gz")
    names = {"image": image.relative_to(data).as_posix(), "label": label.relative_to(data).as_posix()}
    return {"id": case_id, "patient": f"patient of {case_id}", **names}


def _config(*, picture: bool, steps: int) -> dict[str, Any]:
    return {
        "format": 1,
        "name": "small",
        "data": {"manifest": "data/dataset.json", "fold": 0},
        "prepare": {"patch_size_xyz": [16, 16, 1] if picture else [16, 16, 8], "batch_size": 2},
        "network": {
            "kind": "unet",
            "features": [4, 8],
            "strides": [[1, 1, 1], [2, 2, 1] if picture else [2, 2, 2]],
            "kernel_sizes": [[3, 3, 1] if picture else [3, 3, 3]] * 2,
        },
        "train": {
            "budget": {"steps": steps, "steps_per_epoch": 4},
            "optimiser": {"learning_rate": 0.01},
            "validation": {"cases": 1},
            "precision": "float32",
            "save_minutes": 1e-6,
        },
        "infer": {"cases": "all", "mirror": False, "precision": "float32"},
        "evaluate": {"report": False},  # drawn in seconds; tests/report looks at it
        "tracking": {"wait_seconds": 5.0},
    }
