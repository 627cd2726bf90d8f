"""Trains small nnU-Net models and predicts with nnU-Net, for compare_nnunet_inference.py. Runs in nnU-Net's own environment.

    nnunet_env/bin/python benchmarks/make_nnunet_models.py --work WORK --data-root DATA --manifests data_manifests

nnU-Net plans, trains, and predicts the validation cases of fold 0 with its own code; this script only lays out data, shortens
training, and changes plans where said. What is there already is not made again. The models:

    hippocampus_3d   3d_fullres                    hippocampus_2d   2d, two folds
    sarcoma_mr       ResEnc, patch cut to 32x96x96, 8 base features
    regions          synthetic, thick slices along x, three regions that overlap
    cascade          synthetic, 3d_lowres and 3d_cascade_fullres

WORK/models.json lists them with their scans and nnU-Net's masks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path

MODELS = ("hippocampus_3d", "hippocampus_2d", "sarcoma_mr", "regions", "cascade")
EPOCH_STEPS = 50
SYNTHETIC_CASES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, help="with hippocampus/ and sarcoma/")
    parser.add_argument("--manifests", type=Path, default=Path("data_manifests"))
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--features", type=int, help="channels of the first stage, for quick tries")
    parser.add_argument("--most-batch", type=int, default=64, help="2D plans of small scans ask for hundreds")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    work = args.work.resolve()
    for name in ("raw", "preprocessed", "results"):
        (work / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(work / name)
    os.environ |= {"nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
    facts = json.loads((work / "models.json").read_text()) if (work / "models.json").is_file() else {}
    for name in args.only:
        began = time.monotonic()
        facts[name] = make(name, work, args)
        (work / "models.json").write_text(json.dumps(facts, indent=1))
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def make(name: str, work: Path, args: argparse.Namespace) -> dict[str, object]:
    dataset, planner, configurations = {
        "hippocampus_3d": ("Dataset804_Hippocampus", "ExperimentPlanner", ["3d_fullres"]),
        "hippocampus_2d": ("Dataset804_Hippocampus", "ExperimentPlanner", ["2d"]),
        "sarcoma_mr": ("Dataset805_Sarcoma", "nnUNetPlannerResEncM", ["3d_fullres"]),
        "regions": ("Dataset901_Regions", "ExperimentPlanner", ["3d_fullres"]),
        "cascade": ("Dataset902_Cascade", "ExperimentPlanner", ["3d_lowres", "3d_cascade_fullres"]),
    }[name]
    lay_out(name, dataset, work, args)
    plans_name = plan(name, dataset, planner, configurations, work, args)
    folds: list[list[object]] = [[0, 1]] if name == "hippocampus_2d" else [[0]] * len(configurations)
    if name == "cascade":
        folds[0] = ["all"]  # a first stage that has drawn masks of all cases for the second to train on
    previous, found = None, {}
    for configuration, own in zip(configurations, folds, strict=True):
        for fold in own:
            train(dataset, configuration, fold, plans_name, work, args)
        top = work / "results" / dataset / f"nnUNetTrainer__{plans_name}__{configuration}"
        masks = work / "predictions" / f"{name}_{configuration}"
        cases = validation_cases(dataset, work)
        predict(top, own, cases, masks, previous, args.device)
        previous = str(masks)
        found = {"folder": str(top), "folds": [str(fold) for fold in own], "configuration": configuration, "masks": str(masks),
                 "scans": {case: [str(file) for file in files] for case, files in cases.items()}}  # fmt: skip
    return found


# --- data -----------------------------------------------------------------------------------------------------------


def lay_out(name: str, dataset: str, work: Path, args: argparse.Namespace) -> None:
    """nnUNet_raw/<dataset>, and its splits where a manifest has folds."""
    raw = work / "raw" / dataset
    if (raw / "dataset.json").is_file():
        return
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    labels: dict[str, object] = {"background": 0, "organ": 1, "lesion": 2}
    extra: dict[str, object] = {}
    if name in ("regions", "cascade"):
        for number in range(SYNTHETIC_CASES):
            synthetic(raw, f"case_{number:02d}", number, thick=name == "regions", values=3 if name == "regions" else 2)
        if name == "regions":
            labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": 3}
            extra = {"regions_class_order": [1, 2, 3]}
        count = SYNTHETIC_CASES
        folds = {f"case_{number:02d}": number % 5 for number in range(count)}
    else:
        kind = "hippocampus" if name.startswith("hippocampus") else "sarcoma"
        manifest = json.loads((args.manifests / f"{kind if kind == 'hippocampus' else name}.json").read_text())
        labels, count = manifest["labels"], len(manifest["training"])
        top = args.data_root.resolve() / kind
        for case in manifest["training"]:
            (raw / "imagesTr" / f"{case['id']}_0000.nii.gz").symlink_to(top / case["image"])
            (raw / "labelsTr" / f"{case['id']}.nii.gz").symlink_to(top / case["label"])
        folds = {case["id"]: case["fold"] for case in manifest["training"]}
    splits = [
        {"train": [c for c, f in folds.items() if f != fold], "val": [c for c, f in folds.items() if f == fold]}
        for fold in sorted(set(folds.values()))
    ]
    (work / "preprocessed" / dataset).mkdir(parents=True, exist_ok=True)
    (work / "preprocessed" / dataset / "splits_final.json").write_text(json.dumps(splits))
    facts = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": count, "file_ending": ".nii.gz", **extra}
    (raw / "dataset.json").write_text(json.dumps(facts))


def synthetic(raw: Path, case: str, seed: int, *, thick: bool, values: int) -> None:
    """A noisy scan with nested balls in an ellipsoid of tissue; with ``thick`` its slices lie along x."""
    import numpy as np
    import SimpleITK as sitk  # noqa: N813 - its own name for itself
    from scipy import ndimage

    generator = np.random.default_rng(seed)
    shape = np.array([36, 40, 14]) if thick else np.array([34, 40, 36])
    spacing = np.array([4.0, 1.1, 0.9]) if thick else np.array([1.0, 0.9, 1.1])
    grid = (np.indices(shape).transpose(1, 2, 3, 0) + 0.5) / shape
    centre = generator.uniform(0.38, 0.62, 3)
    distance = np.sqrt(np.square((grid - centre) / [0.3, 0.28, 0.3]).sum(axis=-1))
    tissue = np.sqrt(np.square((grid - 0.5) / 0.48).sum(axis=-1)) < 1
    label = np.zeros(shape, np.uint8)
    for value in range(1, values + 1):
        label[distance < 1 - 0.28 * (value - 1)] = value
    image = tissue * (200 + 60 * label.astype(np.float32))
    image += tissue * ndimage.gaussian_filter(generator.standard_normal(shape), 1) * 120
    for array, file in ((image.astype(np.float32), raw / "imagesTr" / f"{case}_0000.nii.gz"),
                        (label, raw / "labelsTr" / f"{case}.nii.gz")):  # fmt: skip
        written = sitk.GetImageFromArray(array)
        written.SetSpacing([float(n) for n in spacing[::-1]])
        written.SetOrigin((5.0, -20.0, 30.0))
        sitk.WriteImage(written, str(file))


def validation_cases(dataset: str, work: Path) -> dict[str, list[Path]]:
    splits = json.loads((work / "preprocessed" / dataset / "splits_final.json").read_text())
    images = work / "raw" / dataset / "imagesTr"
    return {case: [images / f"{case}_0000.nii.gz"] for case in sorted(splits[0]["val"])}


# --- nnU-Net --------------------------------------------------------------------------------------------------------


def plan(name: str, dataset: str, planner: str, configurations: list[str], work: Path, args: argparse.Namespace) -> str:
    """Fingerprint, plans with this script's changes, preprocessed data; gives the plans' name."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    os.environ["nnUNet_n_proc_DA"] = "1"  # noqa: SIM112 - nnU-Net's name; planning wants at least one
    number, plans_name = int(dataset[7:10]), f"{name}Plans"
    folder = work / "preprocessed" / dataset
    file = folder / f"{plans_name}.json"
    if file.is_file():
        return plans_name
    if not (folder / "dataset_fingerprint.json").is_file():
        extract_fingerprints([number], num_processes=1, check_dataset_integrity=False, clean=False, verbose=False)
    plan_experiments([number], planner, overwrite_plans_name=plans_name)
    plans = json.loads(file.read_text())
    file.unlink()
    changed(name, plans, args)
    draft = file.with_suffix(".draft.json")
    for configuration in configurations:
        plans["configurations"][configuration].setdefault("data_identifier", f"{plans_name}_{configuration}")
    draft.write_text(json.dumps(plans))
    shutil.copy(draft, file)
    try:
        preprocess([number], plans_name, configurations=configurations, num_processes=[1] * len(configurations))
    except BaseException:
        file.unlink()
        raise
    return plans_name


def changed(name: str, plans: dict, args: argparse.Namespace) -> None:
    """The plans with smaller patches and networks."""
    configurations = plans["configurations"]
    if name == "sarcoma_mr":
        cut(configurations["3d_fullres"], [32, 96, 96], 8)
    if name == "cascade":
        full = configurations["3d_fullres"]
        cut(full, [24, 24, 24], 8)
        low = json.loads(json.dumps(full)) | {
            "spacing": [2 * s for s in full["spacing"]],
            "next_stage": "3d_cascade_fullres",
        }
        low |= {"data_identifier": "cascadePlans_3d_lowres", "batch_dice": False}
        low["median_image_size_in_voxels"] = [n / 2 for n in full["median_image_size_in_voxels"]]
        cut(low, [16, 16, 16], 8)
        configurations["3d_lowres"] = low
        configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    if name == "regions":
        cut(configurations["3d_fullres"], [12, 24, 24], 8)
    for configuration in configurations.values():
        if "batch_size" in configuration:
            configuration["batch_size"] = min(configuration["batch_size"], args.most_batch)
        if args.features and "architecture" in configuration:
            widths = configuration["architecture"]["arch_kwargs"]["features_per_stage"]
            configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [
                args.features * min(2**stage, 8) for stage in range(len(widths))
            ]


def cut(configuration: dict, patch: list[int], features: int) -> None:
    """Another patch, with strides and kernels as nnU-Net's rules give them for it, and narrower stages."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    _, strides, kernels, patch, _ = get_pool_and_conv_props(configuration["spacing"], patch, 4, 999999)
    own = configuration["architecture"]["arch_kwargs"]
    stages = len(strides)
    configuration |= {"patch_size": [int(n) for n in patch], "batch_size": 2}
    own |= {
        "n_stages": stages,
        "features_per_stage": [min(features * 2**stage, 320) for stage in range(stages)],
        "strides": [[int(n) for n in stride] for stride in strides],
        "kernel_sizes": [[int(n) for n in kernel] for kernel in kernels],
        "n_conv_per_stage_decoder": ([*own["n_conv_per_stage_decoder"], 1, 1, 1, 1])[: stages - 1],
    }
    blocks = "n_blocks_per_stage" if "n_blocks_per_stage" in own else "n_conv_per_stage"
    own[blocks] = ([*own[blocks], 2, 2, 2, 2])[:stages]


def train(
    dataset: str, configuration: str, fold: object, plans_name: str, work: Path, args: argparse.Namespace
) -> None:
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    top = work / "results" / dataset / f"nnUNetTrainer__{plans_name}__{configuration}"
    if not (top / f"fold_{fold}" / "checkpoint_final.pth").is_file():
        torch.manual_seed(12345)
        os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 - augment in this process
        trainer = get_trainer_from_args(dataset, configuration, fold, plans_identifier=plans_name,
                                        device=torch.device(args.device))  # fmt: skip
        trainer.num_epochs = max(1, args.steps // EPOCH_STEPS)
        trainer.num_iterations_per_epoch = -(-args.steps // trainer.num_epochs)
        trainer.num_val_iterations_per_epoch = 1
        trainer.run_training()
        if configuration == "3d_lowres":
            trainer.perform_actual_validation()


def predict(
    top: Path, folds: list[object], cases: dict[str, list[Path]], masks: Path, previous: str | None, device: str
) -> None:
    """nnU-Net's own prediction of each scan, as nnUNetv2_predict makes it, without its worker processes."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    masks.mkdir(parents=True, exist_ok=True)
    left = [case for case in cases if not (masks / f"{case}.nii.gz").is_file()]
    if not left:
        return
    predictor = nnUNetPredictor(
        device=torch.device(device), allow_tqdm=False, perform_everything_on_device=device != "cpu"
    )
    predictor.initialize_from_trained_model_folder(str(top), tuple(folds), "checkpoint_final.pth")
    for case in left:
        predictor.predict_from_files_sequential(
            [[str(file) for file in cases[case]]], [str(masks / case)], folder_with_segs_from_prev_stage=previous
        )


if __name__ == "__main__":
    main()
