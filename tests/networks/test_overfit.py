"""Every network, at small widths, learns two cases in 60 steps and draws the same masks after save, load and infer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.config.network_sections import (
    DeepLabSection,
    DynUNetSection,
    FCNSection,
    MonaiSection,
    UNetSection,
    VGGUNetSection,
)
from medseg.networks.build import build_network
from medseg.training.architecture import architecture_of
from tests.training.overfit import SIZES, least_dice, masks, masks_after_infer, overfit, toy_cases, toy_plan


def monai(name, **arguments):
    return MonaiSection(name=name, arguments=arguments)


FEW = [8, 8, 8, 16, 16, 8]
MEDNEXT_BLOCKS = {"blocks_down": [1, 1, 1], "blocks_bottleneck": 1, "blocks_up": [1, 1, 1]}
SWIN = {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 4, "norm_name": "batch"}
LAYERS = [
    {"name": "conv_0", "n_features": 12, "kernel_size": 3},
    *({"name": f"res_{n}", "n_features": 12, "kernels": [3, 3], "repeat": 1} for n in (1, 2, 3)),
    {"name": "conv_1", "n_features": 16, "kernel_size": 1},
    {"name": "conv_2", "kernel_size": 1},
]
NETWORKS = {
    "unet": UNetSection(),
    "unet residual": UNetSection(residual=True, convolutions=(1, 2, 2), decoder_convolutions=1),
    "dynunet": DynUNetSection(),
    "fcn vgg": FCNSection(encoder="vgg16", width=8),
    "fcn resnet": FCNSection(encoder="resnet18", width=8),
    "deeplabv3plus": DeepLabSection(encoder="resnet18", width=8),
    "deeplabv3plus bottleneck": DeepLabSection(encoder="resnet50", width=8, norm="batch"),
    "vgg_unet": VGGUNetSection(encoder="vgg11", width=8),
    "AttentionUnet": monai("AttentionUnet"),
    "BasicUNet": monai("BasicUNet", features=FEW, norm="batch"),
    "BasicUNetPlusPlus": monai("BasicUNetPlusPlus", features=FEW, norm="batch", deep_supervision=True),
    "DynUNet": monai("DynUNet", deep_supervision=True),
    "FlexibleUNet resnet": monai("FlexibleUNet", backbone="resnet10", decoder_channels=[64, 32, 16, 16, 16]),
    "FlexibleUNet efficientnet": monai("FlexibleUNet", backbone="efficientnet-b0"),
    "HighResNet": monai("HighResNet", layer_params=LAYERS),
    # The sizes S to L are this class with 32 filters and more blocks; they have no width to make tiny.
    "MedNeXt": monai("MedNeXt", init_filters=8, kernel_size=3, deep_supervision=True, **MEDNEXT_BLOCKS),
    "SegResNet": monai("SegResNet"),
    "SegResNetDS": monai("SegResNetDS", init_filters=8, dsdepth=3),
    "SwinUNETR": monai("SwinUNETR", **SWIN),
    "UNet": monai("UNet"),
    "UNETR": monai("UNETR", feature_size=4, hidden_size=24, mlp_dim=48, num_heads=2),
    "VNet": monai("VNet"),
}
# Some see too little of the usual toy, for they pool it five times or answer on a grid of a quarter.
LARGER = {
    (2, "FlexibleUNet resnet"): (64, 64, 1),
    (2, "FlexibleUNet efficientnet"): (64, 64, 1),
    (2, "SwinUNETR"): (64, 64, 1),
    (3, "deeplabv3plus"): (24, 24, 24),
    (3, "deeplabv3plus bottleneck"): (24, 24, 24),
    (3, "FlexibleUNet resnet"): (32, 32, 32),
    (3, "FlexibleUNet efficientnet"): (32, 32, 32),
    (3, "SwinUNETR"): (32, 32, 32),
}


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::UserWarning:monai", "ignore::FutureWarning:monai", "ignore::DeprecationWarning:monai"
)
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_learns_two_cases_and_draws_the_same_after_infer(name, dimensions, tmp_path):
    size = LARGER.get((dimensions, name), SIZES[dimensions])
    plan = toy_plan(dimensions, patch_size_xyz=size, median_shape_xyz=size)
    architecture = architecture_of(NETWORKS[name], plan)
    torch.manual_seed(0)
    network = build_network(architecture)
    overfit(network, dimensions, size=size)
    predicted = masks(network, dimensions, size)
    assert least_dice(predicted, toy_cases(dimensions, size)[1]) >= 0.9
    assert np.array_equal(masks_after_infer(tmp_path / "model", network, architecture, plan), predicted)
