"""Layers of a network by name: which ones Grad-CAM can look at, and the deepest of the encoder, where it looks by default."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.networks.deeplab import DeepLabV3Plus
from medseg.networks.encoders import VGG, ResNet
from medseg.networks.fcn import FCN
from medseg.networks.unet import UNet
from medseg.networks.vgg_unet import VGGUNet

_MOST_LISTED = 60


def spatial_layers(network: nn.Module, x: Tensor) -> dict[str, tuple[int, ...]]:
    """The layers that answer with one map per feature, in the order in which they end.

    Args:
        network: in eval mode.
        x: (1, C, ...) input.

    Returns:
        Module name to the shape (F, ...) of its answer; the network itself and layers with other answers are left out.
    """
    found: dict[str, tuple[int, ...]] = {}

    def noting(name: str) -> torch.utils.hooks.RemovableHandle:
        def note(_module: nn.Module, _inputs: object, answer: object) -> None:
            if isinstance(answer, Tensor) and answer.ndim == x.ndim:
                found[name] = tuple(answer.shape[1:])

        return network.get_submodule(name).register_forward_hook(note)

    handles = [noting(name) for name, _ in network.named_modules() if name]
    try:
        with torch.inference_mode():
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def choose_layer(network: nn.Module, x: Tensor, asked: str | None) -> str:
    """The layer to look at.

    Args:
        network: in eval mode.
        x: (1, C, ...) input.
        asked: a module's name; None takes the deepest stage of the encoder: of our networks by their construction, of
            MONAI's the last of the layers with the coarsest maps (of more than one voxel and one feature).

    Raises:
        UsageError: there is no such layer, or it does not answer with maps; the message lists those that do.
    """
    if asked is None and (own := _of_our_networks(network)) is not None:
        return own
    layers = spatial_layers(network, x)
    if asked is not None:
        if asked not in layers:
            raise UsageError(f"--layer: is {asked!r}, expected a layer with maps: {_listed(layers)}")
        return asked
    # As many maps as classes are scores: the answer, or a coarser head that only deep supervision listens to.
    classes = layers[list(layers)[-1]][0] if layers else 0
    inner = {name: shape for name, shape in layers.items() if shape[0] not in (1, classes)}
    sizes = {name: math.prod(shape[1:]) for name, shape in inner.items()}
    coarsest = sorted((size, -place, name) for place, (name, size) in enumerate(sizes.items()) if size > 1)
    for _, _, name in coarsest:
        if _matters(network, x, name):
            return name
    raise UsageError("--layer: none of the network's layers answers with maps; take --method occlusion")


def _matters(network: nn.Module, x: Tensor, name: str) -> bool:
    """Whether the network would answer otherwise if a layer answered with nothing: some are there and never listened to."""

    def silence(_module: nn.Module, _inputs: object, answer: Tensor) -> Tensor:
        return torch.zeros_like(answer)

    with torch.inference_mode():
        plain = network(x)
        handle = network.get_submodule(name).register_forward_hook(silence)
        try:
            return not torch.equal(plain, network(x))
        finally:
            handle.remove()


def _of_our_networks(network: nn.Module) -> str | None:
    if isinstance(network, UNet):
        return f"encoder.{len(network.encoder) - 1}"
    encoder = network.encoder if isinstance(network, VGGUNet | FCN | DeepLabV3Plus) else None
    if isinstance(encoder, ResNet):
        return "encoder.layer4"
    return f"encoder.features.{encoder.ends[-1] - 1}" if isinstance(encoder, VGG) else None


def _listed(layers: Mapping[str, object]) -> str:
    # Stages before what they consist of: names with few dots.
    names = sorted(layers, key=lambda name: name.count("."))[:_MOST_LISTED]
    more = f" and {len(layers) - len(names)} more" if len(layers) > len(names) else ""
    return ", ".join(name for name in layers if name in set(names)) + more
