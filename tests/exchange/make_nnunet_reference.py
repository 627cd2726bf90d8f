"""Writes nnunet_reference.zip: small untrained nnU-Net models, scans, and nnU-Net's own masks of them. Not a test; run by hand.

    pip install nnunetv2==2.8.1      (in an environment of its own)
    python tests/exchange/make_nnunet_reference.py

Weights are random, so that masks are salt and pepper: neighbouring scores are everywhere near each other, and the smallest
difference in arithmetic shows. Between them the models have what nnU-Net's plans can say: transposed axes, CT and masked
z-score, slices resampled apart, two folds, residual blocks, regions, 2D, an ignore label, old plans, a cascade.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(name, tempfile.gettempdir())

TARGET = Path(__file__).with_name("nnunet_reference.zip")
DATASET = "Dataset900_Reference"
KWARGS = {
    f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in ("data", "seg", "probabilities")
} | {
    f"resampling_fn_{kind}_kwargs": {"is_seg": kind == "seg", "order": order, "order_z": 0, "force_separate_z": None}
    for kind, order in (("data", 3), ("seg", 1), ("probabilities", 1))
}  # fmt: skip
FACTS = {
    "max": 9.0,
    "mean": 0.4,
    "median": 0.3,
    "min": -4.0,
    "percentile_00_5": -1.5,
    "percentile_99_5": 1.8,
    "std": 0.9,
}


def architecture(kind, dims, features, kernels, strides, blocks, decoder):
    residual = kind == "ResidualEncoderUNet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
        "arch_kwargs": {
            "n_stages": len(features), "features_per_stage": features,
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d", "kernel_sizes": kernels, "strides": strides,
            "n_blocks_per_stage" if residual else "n_conv_per_stage": blocks, "n_conv_per_stage_decoder": decoder,
            "conv_bias": True, "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }  # fmt: skip


def configuration(patch, spacing, schemes, masks, network, **more):
    return {
        "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "patch_size": patch,
        "median_image_size_in_voxels": [float(2 * n) for n in patch], "spacing": spacing,
        "normalization_schemes": schemes, "use_mask_for_norm": masks, "batch_dice": False, **KWARGS, **network, **more,
    }  # fmt: skip


def plans(name, configurations, forward=(0, 1, 2)):
    return {
        "dataset_name": DATASET, "plans_name": name, "original_median_spacing_after_transp": [4.0, 1.0, 1.0],
        "original_median_shape_after_transp": [8, 20, 20], "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(forward), "transpose_backward": [list(forward).index(n) for n in range(3)],
        "configurations": configurations, "experiment_planner_used": "ExperimentPlanner", "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": FACTS, "1": FACTS},
    }  # fmt: skip


def dataset(channels, labels, **more):
    names = {str(n): channel for n, channel in enumerate(channels)}
    return {"channel_names": names, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz", **more}


PLAIN, RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"
CUBES = [[3, 3, 3], [3, 3, 3]]
HALF = [[1, 1, 1], [2, 2, 2]]
TWO = {"background": 0, "organ": 1, "lesion": 2}
OLD = {
    "UNet_class_name": PLAIN, "UNet_base_num_features": 4, "n_conv_per_stage_encoder": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 2], "num_pool_per_axis": [2, 1], "pool_op_kernel_sizes": [[1, 1], [2, 2], [2, 1]],
    "conv_kernel_sizes": [[3, 3], [3, 1], [3, 3]], "unet_max_num_features": 6,
}  # fmt: skip
# name of plans: plans.json, dataset.json, folds, mirror axes of the last configuration, scan's (size, spacing) in (x, y, z)
MODELS = {
    "Thick": (
        plans("Thick", {"3d_fullres": configuration(
            [4, 12, 10], [3.7, 1.3, 1.1], ["CTNormalization", "ZScoreNormalization"], [False, True],
            {"architecture": architecture(PLAIN, 3, [4, 6], [[1, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2]], [2, 1], [1])},
        )}, (2, 0, 1)),
        dataset(["CT", "MR"], TWO), (0, 1), (0, 1, 2), ((7, 17, 22), (4.6, 0.9, 1.2)),
    ),
    "Regions": (
        plans("Regions", {"3d_fullres": configuration(
            [8, 12, 10], [1.0, 1.5, 1.25], ["ZScoreNormalization"], [False],
            {"architecture": architecture(RESIDUAL, 3, [4, 6], CUBES, [[1, 1, 1], [2, 2, 1]], [1, 2], [1])},
        )}, (1, 0, 2)),
        dataset(["MR"], {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": 3}, regions_class_order=[1, 2, 3]),
        (0,), (0, 2), ((20, 11, 16), (1.0, 1.2, 1.7)),
    ),
    "Slices": (
        plans("Slices", {"2d": configuration([12, 8], [1.2, 0.9], ["RescaleTo01Normalization"], [False], OLD)}),
        dataset(["MR"], TWO | {"ignore": 3}), ("all",), (0, 1), ((13, 19, 5), (0.8, 1.3, 3.0)),
    ),
    "Stages": (
        plans("Stages", {
            "3d_lowres": configuration(
                [8, 8, 8], [2.0, 1.9, 1.7], ["ZScoreNormalization"], [False],
                {"architecture": architecture(PLAIN, 3, [3, 4], CUBES, HALF, [1, 1], [1])}, next_stage="3d_cascade_fullres",
            ),
            "3d_fullres": configuration(
                [8, 12, 8], [1.0, 1.0, 1.0], ["ZScoreNormalization"], [False],
                {"architecture": architecture(PLAIN, 3, [4, 4], CUBES, HALF, [1, 1], [1])},
            ),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        }),
        dataset(["MR"], TWO), (0, 1), None, ((14, 18, 12), (1.1, 0.9, 1.0)),
    ),
}  # fmt: skip


def scan(seed, size, spacing, channel):
    """A smooth random scan with air around it."""
    import SimpleITK as sitk  # noqa: N813 - its own name for itself
    from scipy import ndimage

    generator = np.random.default_rng([seed, channel])
    x = ndimage.gaussian_filter(generator.standard_normal(size[::-1]), 0.8).astype(np.float32) * 3
    x[0], x[:, -2:], x[..., :1] = 0, 0, 0
    x[2:4, 2:5, 3:5] = 0  # a hole, which belongs to the nonzero mask
    image = sitk.GetImageFromArray(x)
    image.SetSpacing(spacing)
    image.SetOrigin((-3.0, 7.0, 11.0))
    return image


def train(folder, name, own_plans, own_dataset, config, folds, mirrors):
    """What nnUNetv2_train would leave, but for the training."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(json.loads(json.dumps(own_plans)))
    values = manager.get_configuration(config)
    top = folder / f"nnUNetTrainer__{name}__{config}"
    for fold in folds:
        (top / f"fold_{fold}").mkdir(parents=True)
        network = get_network_from_plans(
            values.network_arch_class_name, values.network_arch_init_kwargs, values.network_arch_init_kwargs_req_import,
            determine_num_input_channels(manager, values, own_dataset),
            manager.get_label_manager(own_dataset).num_segmentation_heads, deep_supervision=True,
        )  # fmt: skip
        torch.manual_seed(sum(map(ord, f"{name}{config}{fold}")))
        for parameter in network.parameters():
            parameter.data = torch.randn_like(parameter) * (0.5 if parameter.ndim == 1 else 0.3)
        balance(network, values)
        torch.save({
            "network_weights": network.state_dict(), "optimizer_state": {}, "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float64(0.5)], "ema_fg_dice": [np.float32(0.5)]}, "_best_ema": np.float64(0.1),
            "current_epoch": 3, "init_args": {"plans": own_plans, "configuration": config, "fold": fold,
                                              "dataset_json": own_dataset, "device": torch.device("cpu")},
            "trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": mirrors,
        }, top / f"fold_{fold}" / "checkpoint_final.pth")  # fmt: skip
    (top / "plans.json").write_text(json.dumps(own_plans))
    (top / "dataset.json").write_text(json.dumps(own_dataset))
    return top


def balance(network, values):
    """Moves the last layer's biases, so that every class wins somewhere."""
    import torch

    network.decoder.deep_supervision = False
    channels = next(iter(network.parameters())).shape[1]
    with torch.no_grad():
        answer = network(torch.randn(1, channels, *values.patch_size))
        network.decoder.seg_layers[-1].bias -= answer.flatten(2).mean(dim=2)[0]


def predict(top, folds, files, target, previous=None):
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(top), folds, "checkpoint_final.pth")
    target.mkdir(exist_ok=True)
    predictor.predict_from_files_sequential(
        [[str(file) for file in files]],
        [str(target / top.name.split("__")[1])],
        folder_with_segs_from_prev_stage=previous,
    )
    return target / f"{top.name.split('__')[1]}.nii.gz"


def make(work):
    import SimpleITK as sitk  # noqa: N813 - its own name for itself

    with zipfile.ZipFile(TARGET, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for seed, (name, (own_plans, own_dataset, folds, mirrors, (size, spacing))) in enumerate(MODELS.items()):
            files = []
            for channel in range(len(own_dataset["channel_names"])):
                files.append(work / f"{name}_{channel:04d}.nii.gz")
                sitk.WriteImage(scan(seed, size, spacing, channel), str(files[-1]))
                archive.write(files[-1], f"scans/{files[-1].name}")
            previous = None
            for config in own_plans["configurations"]:
                if name == "Stages" and config == "3d_fullres":
                    continue
                top = train(work / DATASET, name, own_plans, own_dataset, config, folds, mirrors)
                mask = predict(top, folds, files, work / f"{name}_{config}", previous)
                counts = np.bincount(sitk.GetArrayFromImage(sitk.ReadImage(str(mask))).ravel())
                sys.stdout.write(f"{name} {config}: voxels per class {counts}\n")
                archive.write(mask, f"masks/{name}_{config}.nii.gz")
                previous = str(mask.parent)
                for file in sorted(top.rglob("*")):
                    if file.is_file():
                        archive.write(file, file.relative_to(work).as_posix())
    sys.stdout.write(f"{TARGET.stat().st_size} bytes\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
