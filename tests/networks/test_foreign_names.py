"""Against the names that torchvision 0.29 and timm really give (foreign_names.json, from their own state dicts)."""

import json
from pathlib import Path

import pytest
import torch

from medseg.networks.build import build_network
from medseg.networks.foreign_names import best_naming
from medseg.networks.nnunet_names import to_nnunet

FLAT = {
    "dimensions": 2,
    "channels": 3,
    "classes": 2,
    "strides": [[1, 1, 1], *[[2, 2, 1]] * 5],
    "kernel_sizes": [[3, 3, 1]] * 6,
}
ENCODERS = {
    name: {"kind": "fcn", "encoder": name, "width": 64, "norm": "batch", **FLAT} for name in ("resnet18", "vgg11")
}
EFFICIENT = {
    "kind": "monai", "name": "FlexibleUNet", "dimensions": 2, "channels": 3, "classes": 2,
    "arguments": {"backbone": "efficientnet-b0"},
}  # fmt: skip


@pytest.fixture(scope="module")
def foreign():
    return json.loads(Path(__file__).with_name("foreign_names.json").read_text())


def on_meta(architecture):
    with torch.device("meta"):
        return build_network(architecture)


def weights(names, kernels=()):
    return {name: torch.empty([0] * (4 if name in kernels else 1), device="meta") for name in names}


def unplaced(names, naming):
    return {name for name in names if name not in naming.names}


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_resnet_goes_below_its_encoder(library, foreign):
    names = foreign[f"{library} resnet18"]
    naming = best_naming(weights(names), on_meta(ENCODERS["resnet18"]))
    assert unplaced(names, naming) == {"fc.weight", "fc.bias"}
    assert naming.names["layer2.0.downsample.1.running_var"] == "encoder.layer2.0.downsample.1.running_var"
    assert naming.reversed_axes


def test_vgg_with_norms_goes_below_its_encoder(foreign):
    names = foreign["torchvision vgg11_bn"]
    naming = best_naming(weights(names), on_meta(ENCODERS["vgg11"]))
    assert all(name.startswith("classifier.") for name in unplaced(names, naming))
    assert naming.reversed_axes


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_vgg_without_norms_moves_on_by_one_per_convolution(library, foreign):
    names = foreign[f"{library} vgg11"]
    kernels = {name for name in names if name.startswith("features.") and name.endswith("weight")}
    naming = best_naming(weights(names, kernels), on_meta(ENCODERS["vgg11"]))
    # vgg11: 0, 3, 6, 8, 11, 13, 16, 18; vgg11_bn: 0, 4, 8, 11, 15, 18, 22, 25
    assert naming.names["features.8.weight"] == "encoder.features.11.weight"
    assert naming.names["features.18.bias"] == "encoder.features.25.bias"
    assert len(naming.names) == 16
    assert naming.reversed_axes


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_efficientnets_blocks_are_numbered_through(library, foreign):
    names = foreign[f"{library} efficientnet_b0"]
    network = on_meta(EFFICIENT)
    naming = best_naming(weights(names), network)
    assert all("classifier" in name for name in unplaced(names, naming))
    encoder = {name for name in network.state_dict() if name.startswith("network.encoder.") and "_fc." not in name}
    assert set(naming.names.values()) == encoder
    first = {"torchvision": "features.3.1.block.3.0.weight", "timm": "blocks.2.1.conv_pwl.weight"}[library]
    assert naming.names[first] == "network.encoder._blocks.2.4._project_conv.weight"  # the fifth block of all


def test_our_own_names_are_taken_as_they_are():
    network = on_meta(ENCODERS["resnet18"])
    naming = best_naming(network.state_dict(), network)
    assert naming.names == {name: name for name in network.state_dict()}
    assert not naming.reversed_axes


def test_nnunets_names_are_known_to_our_unet():
    architecture = {
        "kind": "unet", "dimensions": 2, "channels": 1, "classes": 2, "features": [2, 4],
        "strides": [[1, 1, 1], [2, 2, 1]], "kernel_sizes": [[3, 3, 1]] * 2,
    }  # fmt: skip
    network = build_network(architecture)
    naming = best_naming(to_nnunet(network), network)
    assert len(naming.names) == len(network.state_dict())
    assert naming.reversed_axes


def test_wrappers_are_looked_through():
    network = on_meta(ENCODERS["resnet18"])
    names = {f"module.backbone.{name.removeprefix('encoder.')}": t for name, t in network.state_dict().items()}
    assert best_naming(names, network).names["module.backbone.conv1.weight"] == "encoder.conv1.weight"
