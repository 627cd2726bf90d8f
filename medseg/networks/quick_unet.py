"""A U-Net that only answers, on a CPU: the same function with fewer multiplications and fewer passes over memory.

oneDNN's direct convolutions run at the speed of a large matrix product, so what is left to gain is to compute less:

- feature maps stay channels last, so that no convolution turns its input and answer around;
- stride 1 convolutions in float32 go by :mod:`medseg.networks.winograd` where maps are large enough to pay for its additions;
- a decoder stage's transposed convolution and the half of the next convolution that reads it are one transposed convolution of
  the product of both kernels (nothing bends between them): 16 products a voxel and channel in place of 29, and nothing is
  concatenated;
- a bias before an instance norm, which takes it out again, is left away;
- an instance norm of one window is a batch norm, which has a kernel for channels last with a mean and then a variance around it
  (group norm's takes the difference of two sums there, which loses digits); few channels go by `thin_instance_norm`;
- a residual block's average pooling and the 1x1 convolution behind it are one convolution with the stride, and its sum is
  taken in place;
- the first convolution of a single channel takes pairs of voxels for channels;
- convolutions are asked of oneDNN itself: with one thread PyTorch takes a kernel of its own for many, four times as slow.

A 2D network computes as a 3D one with a single plane in front.

Float32 answers differ from the plain network's by a few times its own rounding error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.networks.quick_convolutions import Convolution, Joint, are_one, cube, triple
from medseg.networks.quick_norms import is_thin, thin_instance_norm
from medseg.networks.unet import ResidualBlock, SkipDecoder, UNet

_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_POOLS = (nn.AvgPool2d, nn.AvgPool3d)
_Norm: TypeAlias = nn.InstanceNorm2d | nn.InstanceNorm3d


def is_quick(network: nn.Module) -> bool:
    """Whether :func:`quick_unet` knows this network: a U-Net whose norms are instance norms, in 3D with any encoder."""
    if not isinstance(network, SkipDecoder) or not isinstance(network, UNet if _is_flat(network) else SkipDecoder):
        return False
    if network in _REWRITTEN:
        return True
    norms = (*_NORMS, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)
    return all(
        isinstance(module, _NORMS) and not module.track_running_stats
        for module in network.modules()
        if isinstance(module, norms)
    )


def _is_flat(network: SkipDecoder) -> bool:
    return isinstance(network.heads[-1], nn.Conv2d)


@contextmanager
def quick_unet(network: nn.Module, precision: torch.dtype | None) -> Iterator[None]:
    """Within the block the network computes as the module says; its weights stay as they are.

    Args:
        network: one that ``is_quick``, on the CPU, in eval mode.
        precision: the autocast type that it is called under, None for float32.
    """
    assert isinstance(network, SkipDecoder)
    if network not in _REWRITTEN:
        _REWRITTEN[network] = _Rewritten(network)
    rewritten = _REWRITTEN[network]
    try:
        # Past torch's own setter, which first looks for parameters of that name: a scan's share of it was 2 ms.
        vars(network)["decode"] = partial(_decode, network, rewritten, precision)
        for module, forward in rewritten.others.items():
            vars(module)["forward"] = forward
        for convolution, own in rewritten.of.items():
            vars(convolution)["forward"] = partial(own.answer, precision=precision)
        yield
    finally:
        for module in (*rewritten.others, *rewritten.of):
            vars(module).pop("forward", None)
        vars(network).pop("decode", None)


def _forward_of(module: nn.Module, merged: Collection[nn.Module]) -> Callable[[Tensor], Tensor] | None:
    """What a layer other than a convolution computes with; None where that is its own."""
    if module in merged or isinstance(module, nn.Dropout2d):
        return _as_it_is
    if isinstance(module, _NORMS):
        return partial(_norm, module)
    if isinstance(module, ResidualBlock):
        return partial(_residual, module)
    if isinstance(module, nn.AvgPool2d):
        return partial(_pool, module)
    return partial(_transposed, module) if isinstance(module, nn.ConvTranspose2d) else None


def _norm(norm: _Norm, x: Tensor) -> Tensor:
    each = [_norm_of_one(norm, one[None]) for one in torch.unbind(x)]
    return each[0] if len(each) == 1 else torch.cat(each)


def _norm_of_one(norm: _Norm, x: Tensor) -> Tensor:
    if is_thin(x):
        return thin_instance_norm(norm, x)
    # A batch norm of one window is its instance norm.
    return functional.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)


def _residual(block: ResidualBlock, x: Tensor) -> Tensor:
    y = block.second(block.first(x))
    y += block.skip(x)
    return cast(Tensor, block.activation(y))


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _pool(pool: nn.AvgPool2d, x: Tensor) -> Tensor:
    return functional.avg_pool3d(x, triple(pool.kernel_size), triple(pool.stride))


def _transposed(own: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    return functional.conv_transpose3d(x, cube(own.weight), own.bias, triple(own.stride))


def _decode(network: SkipDecoder, rewritten: _Rewritten, precision: torch.dtype | None, skips: list[Tensor]) -> Tensor:
    """``SkipDecoder.decode`` in eval mode."""
    x = skips.pop()
    for up, decoder, joint in zip(network.up, network.decoder, rewritten.joints, strict=True):
        skip = skips.pop()
        if joint is not None and joint.pays(precision):
            x = decoder[1:](decoder[0][1:](joint.answer(x, skip, precision)))  # type: ignore[index]
        else:
            x = decoder(torch.cat((up(x), skip), dim=1))
    answer = x if network.features_only else network.heads[-1](x)
    return answer[:, :, 0] if _is_flat(network) else cast(Tensor, answer)


class _Rewritten:
    """The convolutions of one network in the forms that are computed with, made when they are needed first."""

    def __init__(self, network: SkipDecoder) -> None:
        before_norm = {
            one
            for block in network.modules()
            if isinstance(block, nn.Sequential)
            for one, after in itertools.pairwise(m for m in block if not isinstance(m, nn.Dropout2d | nn.Dropout3d))
            if isinstance(after, _NORMS)
        }
        convolutions = [module for module in network.modules() if isinstance(module, _CONVOLUTIONS)]
        pooled = {
            after: pool
            for block in network.modules()
            if isinstance(block, nn.Sequential)
            for pool, after in itertools.pairwise(block)
            if isinstance(pool, _POOLS) and isinstance(after, _CONVOLUTIONS) and are_one(pool, after)
        }
        merged = set(pooled.values())
        self.others = {
            module: forward for module in network.modules() if (forward := _forward_of(module, merged)) is not None
        }
        self.of = {
            one: Convolution(one, with_bias=one not in before_norm, pool=pooled.get(one)) for one in convolutions
        }
        self.joints = [
            Joint(up, decoder[0][0]) if decoder[0][0] in before_norm else None  # type: ignore[index, arg-type]
            for up, decoder in zip(network.up, network.decoder, strict=True)
        ]


_REWRITTEN: WeakKeyDictionary[nn.Module, _Rewritten] = WeakKeyDictionary()
