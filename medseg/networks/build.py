"""Network kind to network: one line of ``_BUILDERS`` per kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from medseg.networks.deeplab import DeepLabV3Plus
from medseg.networks.fcn import FCN
from medseg.networks.monai_networks import build_monai
from medseg.networks.reordered import build_unet
from medseg.networks.vgg_unet import VGGUNet

Architecture = Mapping[str, Any]
"""Plain values that rebuild a network: ``kind`` and the arguments of its builder. Stored in a model folder."""


def build_network(architecture: Architecture) -> nn.Module:
    """The network that ``architecture`` describes, freshly initialised from torch's global generator.

    Every network maps (B, C, X, Y, Z), or (B, C, X, Y) in 2D, to logits (B, K, ...) of the same size in eval mode; in training
    it may give a list of logits, finest first, for deep supervision.

    Raises:
        ValueError: the kind is unknown, or its values do not fit together.
        ConfigError: MONAI has no such network or refuses the arguments.
    """
    arguments = dict(architecture)
    kind = arguments.pop("kind")
    if kind not in _BUILDERS:
        raise ValueError(f"network kind is {kind!r}, expected one of {', '.join(sorted(_BUILDERS))}")
    return _BUILDERS[kind](**arguments)


def parameter_count(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _dynunet(
    *,
    dimensions: int,
    channels: int,
    classes: int,
    features: Sequence[int],
    strides: Sequence[Sequence[int]],
    kernel_sizes: Sequence[Sequence[int]],
    residual: bool = False,
) -> nn.Module:
    steps, kernels = ([list(size[:dimensions]) for size in sizes] for sizes in (strides, kernel_sizes))
    arguments = {
        "kernel_size": kernels,
        "strides": steps,
        "upsample_kernel_size": steps[1:],
        "filters": list(features),
        "res_block": residual,
    }
    return build_monai(name="DynUNet", dimensions=dimensions, channels=channels, classes=classes, arguments=arguments)


_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "unet": build_unet,
    "dynunet": _dynunet,
    "fcn": FCN,
    "deeplabv3plus": DeepLabV3Plus,
    "vgg_unet": VGGUNet,
    "monai": build_monai,
}
