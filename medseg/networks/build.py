"""Network kind to network: one function and one line of ``_BUILDERS`` per kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from medseg.networks.unet import UNet

Architecture = Mapping[str, Any]
"""Plain values that rebuild a network: ``kind`` and the arguments of its builder. Stored in a model folder."""


def build_network(architecture: Architecture) -> nn.Module:
    """The network that ``architecture`` describes, freshly initialised from torch's global generator.

    Raises:
        ValueError: the kind is unknown.
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
    # MONAI takes seconds to import, and only this kind needs it.
    from monai.networks.nets import DynUNet

    def cut(sizes: Sequence[Sequence[int]]) -> list[list[int]]:
        return [list(size[:dimensions]) for size in sizes]

    network: nn.Module = DynUNet(
        spatial_dims=dimensions,
        in_channels=channels,
        out_channels=classes,
        kernel_size=cut(kernel_sizes),
        strides=cut(strides),
        upsample_kernel_size=cut(strides)[1:],
        filters=list(features),
        res_block=residual,
    )
    return network


_BUILDERS: dict[str, Callable[..., nn.Module]] = {"unet": UNet, "dynunet": _dynunet}
