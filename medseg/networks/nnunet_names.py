"""Our U-Net's parameter names beside nnU-Net's (dynamic-network-architectures 0.4), and weights from one to the other.

nnU-Net's arrays run (z, y, x) after its ``transpose_forward``, ours (x, y, z): kernels are turned along with the names. A
network of theirs with strides and kernels in (z, y, x) is the same function as ours with them in (x, y, z), features, counts
and heads being equal. Its decoder counts run coarsest first, ours finest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from medseg.networks.unet import ResidualBlock, UNet


def nnunet_names(network: UNet) -> dict[str, str]:
    """Every entry of our state dict to its name in nnU-Net's PlainConvUNet or ResidualEncoderUNet."""
    modules = dict(_modules(network))
    names = {}
    for key in network.state_dict():
        module, _, leaf = key.rpartition(".")
        names[key] = f"{modules[module]}.{leaf}"
    return names


def from_nnunet(
    weights: Mapping[str, Tensor], network: UNet, *, axes: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """nnU-Net's weights as a state dict of ``network``, for ``load_state_dict``.

    Args:
        weights: nnU-Net's ``network_weights``. The copies it keeps under further names (``all_modules``,
            ``decoder.encoder``) are not looked at; ``module.`` and ``_orig_mod.`` before a name are dropped.
        network: of ours, with the values of nnU-Net's plan.
        axes: which spatial axis of theirs is our first, second (and third); None turns the order around, which is right where
            ``transpose_forward`` changed nothing.

    Raises:
        ValueError: a tensor is missing, or has another shape or kind of numbers than ours.
    """
    plain = {_bare(key): tensor for key, tensor in weights.items()}
    own = network.state_dict()
    result = {}
    for ours, theirs in nnunet_names(network).items():
        if theirs not in plain:
            raise ValueError(f"nnU-Net weights: {theirs} is missing, expected the tensors of the plan's network")
        tensor = _turned(plain[theirs], axes)
        if tensor.shape != own[ours].shape:
            got, expected = list(tensor.shape), list(own[ours].shape)
            raise ValueError(f"nnU-Net weights: {theirs} has shape {got}, expected {expected} by the plan's values")
        if tensor.is_floating_point() != own[ours].is_floating_point():
            raise ValueError(f"nnU-Net weights: {theirs} is {tensor.dtype}, expected {own[ours].dtype}")
        result[ours] = tensor.contiguous()  # not before: a forged shape may be larger than any memory
    return result


def to_nnunet(network: UNet, *, axes: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Our weights under nnU-Net's names, one name per tensor.

    Args:
        network: of ours.
        axes: which spatial axis of ours is their first, second (and third); None turns the order around.
    """
    own = network.state_dict()
    return {theirs: _turned(own[ours], axes).contiguous() for ours, theirs in nnunet_names(network).items()}


def _bare(key: str) -> str:
    return key.replace("_orig_mod.", "").removeprefix("module.")


def _turned(tensor: Tensor, axes: Sequence[int] | None) -> Tensor:
    """A kernel (O, I, spatial ...) with its spatial axes in another order, as a view; anything else as it is."""
    spatial = tensor.ndim - 2
    if spatial < 2:
        return tensor
    order = tuple(range(spatial))[::-1] if axes is None else tuple(axes)
    return tensor.permute(0, 1, *(2 + axis for axis in order))


def _modules(network: UNet) -> Iterator[tuple[str, str]]:
    """Paths of modules that have weights, ours and theirs."""
    if isinstance(network.stem, nn.Sequential):
        yield from _block("stem", network.stem, "encoder.stem.convs.0")
    for s, stage in enumerate(network.encoder):
        for b, block in enumerate(stage.children()):
            ours = f"encoder.{s}.{b}"
            if isinstance(block, ResidualBlock):
                theirs = f"encoder.stages.{s}.blocks.{b}"
                yield from _block(f"{ours}.first", block.first, f"{theirs}.conv1")
                yield from _block(f"{ours}.second", block.second, f"{theirs}.conv2")
                at = next((i for i, layer in enumerate(block.skip) if any(True for _ in layer.parameters())), 0)
                yield from _block(f"{ours}.skip", block.skip, f"{theirs}.skip.{at}")
            else:
                yield from _block(ours, block, f"encoder.stages.{s}.0.convs.{b}")
    for s, (stage, _) in enumerate(zip(network.decoder, network.up, strict=True)):
        yield f"up.{s}", f"decoder.transpconvs.{s}"
        yield f"heads.{s}", f"decoder.seg_layers.{s}"
        for b, block in enumerate(stage.children()):
            yield from _block(f"decoder.{s}.{b}", block, f"decoder.stages.{s}.convs.{b}")


def _block(ours: str, block: nn.Module, theirs: str) -> Iterator[tuple[str, str]]:
    """A convolution and its norm, wherever dropout or pooling moved them."""
    for name, layer in block.named_children():
        if any(True for _ in layer.parameters()):
            yield f"{ours}.{name}", f"{theirs}.{'conv' if isinstance(layer, nn.Conv2d | nn.Conv3d) else 'norm'}"
