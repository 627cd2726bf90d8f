"""A 3D U-Net that only answers, on a CPU: the same function with fewer multiplications and fewer passes over memory.

oneDNN's direct convolutions run at the speed of a large matrix product, so what is left to gain is to compute less:

- feature maps stay channels last, so that no convolution turns its input and answer around;
- stride 1 convolutions in float32 go by :mod:`medseg.networks.winograd` where maps are large enough to pay for its additions;
- a decoder stage's transposed convolution and the half of the next convolution that reads it are one transposed convolution of
  the product of both kernels (nothing bends between them): 16 products a voxel and channel in place of 29, and nothing is
  concatenated;
- a bias before an instance norm, which takes it out again, is left away;
- an instance norm of one window is a batch norm, which has a kernel for channels last with a mean and then a variance around it
  (group norm's takes the difference of two sums there, which loses digits).

Float32 answers differ from the plain network's by a few times its own rounding error.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.networks.unet import SkipDecoder
from medseg.networks.winograd import TILE, convolve, filter_planes

_LAST = torch.channels_last_3d
# Below this many voxels of a map the additions cost what the products save (measured with 128 and 256 channels).
_LEAST_VOXELS = 1000
_LEAST_CHANNELS = 8


def is_quick(network: nn.Module) -> bool:
    """Whether :func:`quick_unet` knows this network: a U-Net in 3D whose norms are instance norms."""
    if not isinstance(network, SkipDecoder) or not isinstance(network.heads[-1], nn.Conv3d):
        return False
    if network in _REWRITTEN:
        return True
    norms = (nn.InstanceNorm3d, nn.BatchNorm3d, nn.GroupNorm)
    return all(
        isinstance(module, nn.InstanceNorm3d) and not module.track_running_stats
        for module in network.modules()
        if isinstance(module, norms)
    )


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
        for norm in rewritten.norms:
            vars(norm)["forward"] = partial(_norm, norm)
        for convolution, own in rewritten.of.items():
            vars(convolution)["forward"] = partial(own.answer, precision=precision)
        yield
    finally:
        for module in (*rewritten.norms, *rewritten.of):
            vars(module).pop("forward", None)
        vars(network).pop("decode", None)


def _norm(norm: nn.InstanceNorm3d, x: Tensor) -> Tensor:
    # A batch norm of one window is its instance norm.
    norm_of = partial(functional.batch_norm, running_mean=None, running_var=None, training=True, eps=norm.eps)
    each = [norm_of(one[None], weight=norm.weight, bias=norm.bias) for one in torch.unbind(x)]
    return each[0] if len(each) == 1 else torch.cat(each)


def _decode(network: SkipDecoder, rewritten: _Rewritten, precision: torch.dtype | None, skips: list[Tensor]) -> Tensor:
    """``SkipDecoder.decode`` in eval mode."""
    x = skips.pop()
    for up, decoder, joint in zip(network.up, network.decoder, rewritten.joints, strict=True):
        skip = skips.pop()
        if joint is not None and joint.pays(precision):
            x = decoder[1:](decoder[0][1:](joint.answer(x, skip, precision)))  # type: ignore[index]
        else:
            x = decoder(torch.cat((up(x), skip), dim=1))
    return x if network.features_only else network.heads[-1](x)


class _Rewritten:
    """The convolutions of one network in the forms that are computed with, made when they are needed first."""

    def __init__(self, network: SkipDecoder) -> None:
        before_norm = {
            one
            for block in network.modules()
            if isinstance(block, nn.Sequential)
            for one, after in itertools.pairwise(m for m in block if not isinstance(m, nn.Dropout3d))
            if isinstance(after, nn.InstanceNorm3d)
        }
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
        self.norms = [module for module in network.modules() if isinstance(module, nn.InstanceNorm3d)]
        self.of = {one: _Convolution(one, with_bias=one not in before_norm) for one in convolutions}
        self.joints = [
            _Joint(up, decoder[0][0]) if decoder[0][0] in before_norm else None  # type: ignore[index, arg-type]
            for up, decoder in zip(network.up, network.decoder, strict=True)
        ]


_REWRITTEN: WeakKeyDictionary[nn.Module, _Rewritten] = WeakKeyDictionary()


class _Kept:
    """Tensors made of parameters, made anew when these change."""

    def __init__(self, *parameters: Tensor | None) -> None:
        self._parameters = [one for one in parameters if one is not None]
        self._state: list[tuple[int, int]] = []
        self._made: dict[Any, Any] = {}

    def get(self, key: Any, make: Any) -> Any:
        """What ``make`` gave for this key."""
        state = [(one.data_ptr(), one._version) for one in self._parameters]  # noqa: SLF001 - there is no other way to ask
        if state != self._state:
            self._made, self._state = {}, state
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class _Convolution:
    """A convolution, direct or by Winograd; ``part`` of its input channels, with or without its bias."""

    def __init__(self, own: nn.Conv3d, *, with_bias: bool, part: slice = slice(None)) -> None:
        self._own, self._part = own, part
        self._bias = own.bias if with_bias else None
        self._kept = _Kept(own.weight)

    def _weight(self) -> Tensor:
        return self._own.weight.detach()[:, self._part]

    def answer(self, x: Tensor, precision: torch.dtype | None) -> Tensor:
        """(B, C, X, Y, Z) to (B, K, ...), channels last."""
        axis = _winograd_axis(self._own, x) if precision is None else None
        if axis is None:
            kind = precision or torch.float32
            weight = self._kept.get(kind, lambda: self._weight().to(kind).contiguous(memory_format=_LAST))
            return functional.conv3d(x, weight, self._bias, self._own.stride, self._own.padding, self._own.dilation)
        order = (axis, *(n for n in range(3) if n != axis))
        turned = (0, 1, *(2 + n for n in order))
        filters = self._kept.get(axis, lambda: filter_planes(self._weight().permute(turned)))
        padding = [self._own.padding[n] for n in order[1:]]
        y = convolve(x.permute(turned), filters, padding).permute(0, 1, *(2 + order.index(n) for n in range(3)))  # type: ignore[arg-type]
        return y if self._bias is None else y.add_(self._bias[:, None, None, None])


def _winograd_axis(own: nn.Conv3d, x: Tensor) -> int | None:
    """The axis that Winograd's filtering goes along: of those that can, the one with least filled up; None where none pays."""
    small = min(own.in_channels, own.out_channels) < _LEAST_CHANNELS or x[0, 0].numel() < _LEAST_VOXELS
    if small or own.groups != 1 or own.stride != (1, 1, 1) or own.dilation != (1, 1, 1):
        return None
    fit = [n for n in range(3) if own.kernel_size[n] == 3 and own.padding[n] == 1]
    return min(fit, key=lambda n: -(-x.shape[2 + n] // TILE) * TILE / x.shape[2 + n], default=None)


class _Joint:
    """A transposed convolution and the convolution of (its answer, skip), without a bias: an instance norm comes next."""

    def __init__(self, up: nn.ConvTranspose3d, after: nn.Conv3d) -> None:
        self._up, self._after = up, after
        self._kept = _Kept(up.weight, up.bias, after.weight)
        self._padding = tuple(size // 2 for size in after.kernel_size)
        self._of_skip = _Convolution(after, with_bias=False, part=slice(up.out_channels, None))

    def pays(self, precision: torch.dtype | None) -> bool:
        """Whether the product of kernels has fewer products than the two by themselves."""
        after = self._after
        if after.stride != (1, 1, 1) or after.padding != self._padding:
            return False
        joint = 1.0
        for stride, size in zip(self._up.stride, after.kernel_size, strict=True):
            joint *= (stride + size - 1) / stride
        apart = 1.0
        for size in after.kernel_size:
            apart *= size
        half = 0.6 if precision is None else 1.0  # Winograd's products and additions beside direct ones
        return joint * self._up.in_channels < apart * half * self._up.out_channels + self._up.in_channels

    def answer(self, x: Tensor, skip: Tensor, precision: torch.dtype | None) -> Tensor:
        """(B, C, ...) of the stage below and the skip to (B, K, ...)."""
        kind = precision or torch.float32
        kernel = self._kept.get(kind, lambda: self._product().to(kind).contiguous(memory_format=_LAST))
        y = functional.conv_transpose3d(x, kernel, None, self._up.stride, self._padding)
        y += self._of_skip.answer(skip, precision)
        if self._up.bias is not None:
            self._add_border(y)
        return y

    def _product(self) -> Tensor:
        """(C, K, ...) kernel of both: entry t sums the transposed kernel's r times the other's q over all r - q = t - 2."""
        first = self._up.weight.detach().double()
        second = self._after.weight.detach()[:, : self._up.out_channels].double().flip((2, 3, 4))
        return functional.conv_transpose3d(first, second.transpose(0, 1))

    def _add_border(self, y: Tensor) -> None:
        """The transposed convolution's bias is missing where the convolution looks beyond the edge; inside it is a constant."""
        table = self._kept.get("border", self._border_table)
        middle = tuple(kernel // 2 for kernel in self._after.kernel_size)
        places = [_from_edges(*pair) for pair in zip(y.shape[2:], self._after.kernel_size, strict=True)]
        for cell in itertools.product(*places):
            where = tuple(index for index, _ in cell)
            if where != middle:
                value = table[:, where[0], where[1], where[2]]
                y[(slice(None), slice(None), *(own for _, own in cell))] += value[:, None, None, None]

    def _border_table(self) -> Tensor:
        """(K, k, k, k): what the bias gives at each distance from the edges, less what it gives inside."""
        assert self._up.bias is not None
        weight = self._after.weight.detach()[:, : self._up.out_channels].double()
        shape = (1, self._up.out_channels, *self._after.kernel_size)
        ones = self._up.bias.detach().double()[None, :, None, None, None].expand(shape)
        table = functional.conv3d(ones, weight, padding=self._after.padding)[0]
        x, y, z = (kernel // 2 for kernel in self._after.kernel_size)
        return (table - table[:, x : x + 1, y : y + 1, z : z + 1]).float()


def _from_edges(size: int, kernel: int) -> list[tuple[int, slice]]:
    """(index into a border table, where it holds) along one axis: each distance from an edge that is seen, and inside."""
    reach = min(kernel // 2, size // 2)
    first = [(n, slice(n, n + 1)) for n in range(reach)]
    last = [(kernel - reach + n, slice(size - reach + n, size - reach + n + 1)) for n in range(reach)]
    return [*first, (kernel // 2, slice(reach, size - reach)), *last]
