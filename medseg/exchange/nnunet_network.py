"""The network in nnU-Net's ``plans.json``: which class, with which layers, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from medseg.exchange.nnunet_labels import refused

NETWORKS = {"PlainConvUNet": False, "ResidualEncoderUNet": True}
"""Classes that our U-Net is the same function as, and whether their encoders are residual."""


def network_values(values: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """(class name, keyword arguments) of a configuration's network, also from plans before nnU-Net 2.4."""
    if "architecture" in values:
        own = values["architecture"]
        return PurePosixPath(str(own["network_class_name"]).replace(".", "/")).name, own["arch_kwargs"]
    name, depths = str(values["UNet_class_name"]), values["n_conv_per_stage_encoder"]
    base, most = int(values["UNet_base_num_features"]), int(values["unet_max_num_features"])
    return name, {
        "n_stages": len(depths),
        "features_per_stage": [min(base * 2**stage, most) for stage in range(len(depths))],
        "kernel_sizes": values["conv_kernel_sizes"],
        "strides": values["pool_op_kernel_sizes"],
        "n_blocks_per_stage" if NETWORKS.get(name) else "n_conv_per_stage": depths,
        "n_conv_per_stage_decoder": values["n_conv_per_stage_decoder"],
        "conv_op": "Conv",
        "norm_op": "InstanceNorm",
        "nonlin": "LeakyReLU",
    }


def refuse_layers(values: Mapping[str, Any]) -> None:
    """Refuses layers that our U-Net builds otherwise."""
    known = {
        "n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage",
        "n_conv_per_stage_decoder", "conv_op", "norm_op", "nonlin",
    }  # fmt: skip
    expected: dict[str, Any] = {
        "conv_bias": (True,),
        "norm_op_kwargs": ({"eps": 1e-5, "affine": True},),
        "dropout_op": (None,),
        "dropout_op_kwargs": (None, {}),
        "nonlin_kwargs": ({"inplace": True}, {}, None, {"inplace": True, "negative_slope": 0.01}),
        "deep_supervision": (True, False),
        "nonlin_first": (False,),
    }
    for key, value in values.items():
        if key in known:
            continue
        if key not in expected or value not in expected[key]:
            raise refused("arch_kwargs", {key: value}, "nnU-Net's own layers")
    for key, name in (("norm_op", "InstanceNorm"), ("nonlin", "LeakyReLU"), ("conv_op", "Conv")):
        own = str(values.get(key)).rpartition(".")[2]  # without an entry nnU-Net leaves the layer out
        if own not in (name, f"{name}2d", f"{name}3d"):
            raise refused("arch_kwargs", {key: own}, name)


def per_stage(value: Any, stages: int) -> list[Any]:
    """A value per stage, of a list or of one for all; ValueError where the list has another length."""
    values = [value] * stages if isinstance(value, int) else list(value)
    if len(values) != stages:
        raise ValueError(f"{len(values)} entries for {stages} stages")
    return values


def features_of(value: Any, stages: int) -> list[int]:
    """Channels per stage, of a list or of the first stage's, which double."""
    return [int(value) * 2**stage for stage in range(stages)] if isinstance(value, int) else [int(n) for n in value]
