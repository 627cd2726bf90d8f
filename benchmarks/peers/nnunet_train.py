"""A whole nnU-Net training in so many minutes, in nnU-Net's own environment; started by ``bench_whole_training.py``.

    NNUNET_ENV/bin/python benchmarks/peers/nnunet_train.py MANIFEST DATA_ROOT FOLDER FOLD MINUTES [on|off]

nnU-Net's own planning, preprocessing, trainer and validation, 3d_fullres as it comes, its splits set to the manifest's folds.
Its polynomial schedule is fitted to the minutes: 10 epochs of as many steps as a few timed ones allow. FOLDER keeps the
preprocessed data between calls. Where that makes less than a step an epoch it is not trained, and ``step_seconds`` says why.
The last argument says whether masks are averaged over mirrors. Prints one JSON object; the validation masks lie in its
``predictions``.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from pathlib import Path

EPOCHS = 10
TIMED = 3
VALIDATION_STEPS = 2  # a pseudo Dice per epoch, which nnU-Net always computes; 50 would be a tenth of such a short run
NAME = "Dataset001_Set"


def main() -> None:
    """See the module."""
    manifest_file, data_root, folder, fold, minutes, *mirrors = sys.argv[1:]
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(Path(folder).resolve() / name)
        Path(folder, name).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("nnUNet_compile", "0")
    os.environ.setdefault("nnUNet_n_proc_DA", "1")
    with contextlib.redirect_stdout(sys.stderr):
        prepared = prepare(json.loads(Path(manifest_file).read_text()), Path(data_root), Path(folder))
        report = train(prepared, int(fold), float(minutes), mirrors=mirrors != ["off"])
    print(json.dumps(report))


def prepare(manifest: dict, data_root: Path, folder: Path) -> Path:
    """The preprocessed data set; made once."""
    prepared = folder / "nnUNet_preprocessed" / NAME
    if (prepared / "done").exists():
        return prepared
    raw = folder / "nnUNet_raw" / NAME
    for kind in ("imagesTr", "labelsTr"):
        (raw / kind).mkdir(parents=True, exist_ok=True)
    for case in manifest["training"]:
        for file, key in ((f"imagesTr/{case['id']}_0000.nii.gz", "image"), (f"labelsTr/{case['id']}.nii.gz", "label")):
            if not (raw / file).exists():
                (raw / file).symlink_to((data_root / case[key]).resolve())
    names = [c if isinstance(c, str) else c["name"] for c in manifest["channels"]]
    dataset = {
        "channel_names": {str(i): name for i, name in enumerate(names)},
        "labels": {name: i for i, name in enumerate(manifest["labels"])},
        "numTraining": len(manifest["training"]),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(dataset))
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    extract_fingerprints([1], num_processes=2, show_progress_bar=False)
    plan_experiments([1])
    preprocess([1], configurations=["3d_fullres"], num_processes=[2], show_progress_bar=False)
    folds = sorted({case["fold"] for case in manifest["training"]})
    splits = [
        {
            kind: [case["id"] for case in manifest["training"] if (case["fold"] == fold) == (kind == "val")]
            for kind in ("train", "val")
        }
        for fold in folds
    ]
    (prepared / "splits_final.json").write_text(json.dumps(splits))
    (prepared / "done").touch()
    return prepared


def make_trainer(prepared: Path, fold: int, steps: int):
    """nnU-Net's trainer, its schedule fitted to ``steps``."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans = json.loads((prepared / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    dataset = json.loads((prepared / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, "3d_fullres", fold, dataset, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = EPOCHS, steps
    trainer.num_val_iterations_per_epoch = VALIDATION_STEPS
    return trainer


def train(prepared: Path, fold: int, minutes: float, *, mirrors: bool) -> dict:
    """Trains and validates; what it took."""
    began = time.monotonic()
    trial = make_trainer(prepared, fold, 1)
    trial.on_train_start()
    batches = [next(trial.dataloader_train) for _ in range(TIMED + 1)]
    trial.train_step(batches[0])
    timed = time.monotonic()
    for batch in batches[1:]:
        trial.train_step(batch)
    per_step = (time.monotonic() - timed) / TIMED
    for loader in (trial.dataloader_train, trial.dataloader_val):
        loader._finish()  # noqa: SLF001 - ends its process; there is no public way
    left = minutes * 60 - (time.monotonic() - began)
    if left < per_step * EPOCHS:  # not one step an epoch: it does not train in these minutes
        return {
            "minutes": (time.monotonic() - began) / 60,
            "steps": 0,
            "batch": trial.batch_size,
            "step_seconds": per_step,
        }
    # A validation step is a forward pass, about a third of a training step.
    steps = max(1, round(left / per_step / EPOCHS - VALIDATION_STEPS / 3))
    trainer = make_trainer(prepared, fold, steps)
    trainer.run_training()
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if not mirrors:
        trainer.inference_allowed_mirroring_axes = None
    trainer.perform_actual_validation()
    return {
        "minutes": seconds / 60,
        "steps": steps * EPOCHS,
        "batch": trainer.batch_size,
        "peak_mib": peak,
        "predictions": str(Path(trainer.output_folder) / "validation"),
    }


if __name__ == "__main__":
    main()
