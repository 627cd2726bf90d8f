"""What nnU-Net 2.8.1 itself plans. Runs in nnU-Net's own environment (benchmarks/setup_nnunet.sh), without medseg.

    /tmp/nnunet_env/bin/python benchmarks/nnunet_plans.py --output facts.json --manifest data_manifests/hippocampus.json \
        --data-root hippocampus
    /tmp/nnunet_env/bin/python benchmarks/nnunet_plans.py --output facts.json --synthetic 40 --seed 1

A manifest's training cases are put into an nnUNet_raw folder (links; pictures as RGB), nnU-Net's own fingerprint extractor
reads them, and its four planners plan. A synthetic set is a random fingerprint. Facts are lists of sets: shapes and spacings as
nnU-Net counts them (z, y, x), and per preset and configuration what the plans file says, in the plan's own axis order
(``transpose``). Networks are built on torch's meta device: only their shapes count, and a plan then takes seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

PLANNERS = {
    "plain": "ExperimentPlanner",
    "resenc_m": "nnUNetPlannerResEncM",
    "resenc_l": "nnUNetPlannerResEncL",
    "resenc_xl": "nnUNetPlannerResEncXL",
}
RGB = {"0": "rgb_to_0_1", "1": "rgb_to_0_1", "2": "rgb_to_0_1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--synthetic", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[name] = str(Path(folder, name))
            Path(folder, name).mkdir()
        os.environ.setdefault("nnUNet_n_proc_DA", "1")
        sets = []
        if args.manifest:
            sets.append(real_set(args.manifest, args.data_root or args.manifest.parent, Path(folder)))
        for number in range(args.synthetic):
            sets.append(synthetic_set(args.seed, number, Path(folder)))
            print(f"{number + 1} of {args.synthetic}: {sorted(sets[-1]['plans']['plain'])}", flush=True)
    lines = ",\n".join(json.dumps(facts) for facts in sets)
    args.output.write_text(f"[\n{lines}\n]\n")


def real_set(manifest_path: Path, data_root: Path, folder: Path) -> dict:
    manifest = json.loads(manifest_path.read_text())
    picture = manifest["channels"] == ["RGB"]
    raw = folder / "nnUNet_raw" / "Dataset001_Set"
    for kind in ("imagesTr", "labelsTr"):
        (raw / kind).mkdir(parents=True)
    for case in manifest["training"]:
        image, label = (data_root / case[key] for key in ("image", "label"))
        add_picture(raw, case["id"], image, label) if picture else add_volume(raw, case["id"], image, label)
    names = [c if isinstance(c, str) else c["name"] for c in manifest["channels"]]
    write_dataset_json(
        raw,
        channels=RGB if picture else {str(i): name for i, name in enumerate(names)},
        labels={name: i for i, name in enumerate(manifest["labels"])},
        cases=len(manifest["training"]),
        ending=".png" if picture else ".nii.gz",
    )
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    extractor = DatasetFingerprintExtractor(1, 1)
    extractor.show_progress_bar = False
    fingerprint = extractor.run()
    return facts_of(manifest["name"], names * (3 if picture else 1), len(manifest["labels"]), fingerprint, folder)


def add_volume(raw: Path, case: str, image: Path, label: Path) -> None:
    (raw / "imagesTr" / f"{case}_0000.nii.gz").symlink_to(image.resolve())
    (raw / "labelsTr" / f"{case}.nii.gz").symlink_to(label.resolve())


def add_picture(raw: Path, case: str, image: Path, label: Path) -> None:
    import numpy as np
    from skimage import io as pictures

    pictures.imsave(raw / "imagesTr" / f"{case}_0000.png", pictures.imread(image)[..., :3], check_contrast=False)
    mask = (pictures.imread(label) > 0).astype(np.uint8)
    pictures.imsave(raw / "labelsTr" / f"{case}.png", mask, check_contrast=False)


def write_dataset_json(raw: Path, *, channels: dict, labels: dict, cases: int, ending: str, **more: object) -> None:
    content = {"channel_names": channels, "labels": labels, "numTraining": cases, "file_ending": ending, **more}
    (raw / "dataset.json").write_text(json.dumps(content))


def synthetic_set(seed: int, number: int, folder: Path) -> dict:
    rng = random.Random(seed * 100_000 + number)
    cases, names = rng.choice([2, 5, 20, 60, 200, 1000]), rng.choice([["CT"], ["MR"], ["T1", "T2"]])
    flat = rng.random() < 0.2
    geometries = [geometry(rng, flat=flat)]
    for _ in range(rng.randrange(3)):  # other scanners: the same anatomy at other voxel sizes
        shape, spacing = geometries[0]
        factor = [1.0 if flat and axis == 0 else rng.choice([1.0, 0.8, 1.25, 2.0]) for axis in range(3)]
        resized = [max(1, round(n * f)) for n, f in zip(shape, factor, strict=True)]
        geometries.append((resized, [s / f for s, f in zip(spacing, factor, strict=True)]))
    chosen = [rng.choice(geometries) for _ in range(cases)]
    fingerprint = {
        "spacings": [spacing for _, spacing in chosen],
        "shapes_after_crop": [shape for shape, _ in chosen],
        "median_relative_size_after_cropping": rng.choice([1.0, 0.9, 0.74, 0.3]),
        "foreground_intensity_properties_per_channel": {},
    }
    raw = folder / "nnUNet_raw" / "Dataset001_Set"
    for used in ("nnUNet_raw", "nnUNet_preprocessed"):
        shutil.rmtree(folder / used / "Dataset001_Set", ignore_errors=True)
        (folder / used / "Dataset001_Set").mkdir(parents=True)
    classes = rng.choice([2, 3, 5, 14])
    write_dataset_json(
        raw,
        channels={str(i): name for i, name in enumerate(names)},
        labels={"background": 0, **{f"c{i}": i for i in range(1, classes)}},
        cases=cases,
        ending=".nii.gz",
        overwrite_image_reader_writer="SimpleITKIO",
        dataset={"one": {"images": ["one_0000.nii.gz"], "label": "one.nii.gz"}},
    )
    (folder / "nnUNet_preprocessed" / "Dataset001_Set" / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    return facts_of(f"synthetic {seed}.{number}", names, classes, fingerprint, folder)


def geometry(rng: random.Random, *, flat: bool) -> tuple[list[int], list[float]]:
    if flat:
        return [1, rng.randrange(40, 1500), rng.randrange(40, 1500)], [999.0, 1.0, rng.choice([1.0, 1.0, 0.7])]
    in_plane = rng.choice([1.0, 0.7, 0.5, 1.5, round(rng.uniform(0.3, 3), 2)])
    through = in_plane * rng.choice([1.0, 1.0, 2.0, 3.5, 6.0, 0.6, round(rng.uniform(0.5, 8), 2)])
    spacing = [through, in_plane, in_plane * rng.choice([1.0, 1.0, 1.0, 1.1, 2.2])]
    shape = [
        rng.choice([12, 25, 90, 200, 500, 800]),
        rng.choice([35, 60, 250, 512, 700]),
        rng.choice([35, 130, 256, 512, 640]),
    ]
    turn = rng.choice([[0, 1, 2], [0, 1, 2], [1, 0, 2], [2, 1, 0]])
    return [shape[i] for i in turn], [spacing[i] for i in turn]


def facts_of(name: str, channels: list, classes: int, fingerprint: dict, folder: Path) -> dict:
    cases = Counter(
        (tuple(int(n) for n in shape), tuple(float(s) for s in spacing))
        for shape, spacing in zip(fingerprint["shapes_after_crop"], fingerprint["spacings"], strict=True)
    )
    return {
        "name": name,
        "channels": channels,
        "classes": classes,
        "crop_share": float(fingerprint["median_relative_size_after_cropping"]),
        "cases": [[list(shape), list(spacing), count] for (shape, spacing), count in cases.items()],
        "plans": {preset: plans_of(planner, folder) for preset, planner in PLANNERS.items()},
    }


def plans_of(planner: str, folder: Path) -> dict:
    import torch
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as plain
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import (
        residual_encoder_unet_planners as residual,
    )

    made = getattr(plain if planner == "ExperimentPlanner" else residual, planner)(1)
    with contextlib.redirect_stdout(io.StringIO()), torch.device("meta"):
        made.plan_experiment()
    plans_file = folder / "nnUNet_preprocessed" / "Dataset001_Set" / f"{made.plans_identifier}.json"
    plans = json.loads(plans_file.read_text())
    found = {"transpose": plans["transpose_forward"]}
    for name, configuration in plans["configurations"].items():
        found[name] = (
            {"inherits_from": configuration["inherits_from"]} if name == "3d_cascade_fullres" else facts(configuration)
        )
    return found


def facts(configuration: dict) -> dict:
    network = configuration["architecture"]["arch_kwargs"]
    blocks = network.get("n_conv_per_stage") or network["n_blocks_per_stage"]
    return {
        "spacing": configuration["spacing"],
        "median_shape": configuration["median_image_size_in_voxels"],
        "patch_size": configuration["patch_size"],
        "batch_size": configuration["batch_size"],
        "features": network["features_per_stage"],
        "strides": network["strides"],
        "kernel_sizes": network["kernel_sizes"],
        "residual": "n_blocks_per_stage" in network,
        "convolutions": list(blocks),
        "decoder_convolutions": list(network["n_conv_per_stage_decoder"]),
        "normalisation": configuration["normalization_schemes"],
        "use_mask": configuration["use_mask_for_norm"],
        "batch_dice": configuration["batch_dice"],
    }


if __name__ == "__main__":
    main()
