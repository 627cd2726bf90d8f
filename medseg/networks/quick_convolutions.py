"""Convolutions that only answer, on a CPU, by whichever way costs least; for :mod:`medseg.networks.quick_unet`.

All of them take and give (B, C, X, Y, Z), channels last; a layer in 2D has a single plane in front.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.networks.winograd import TILE, convolve, filter_planes

Pool: TypeAlias = nn.AvgPool2d | nn.AvgPool3d
Own: TypeAlias = nn.Conv2d | nn.Conv3d
_Up: TypeAlias = nn.ConvTranspose2d | nn.ConvTranspose3d
_Size: TypeAlias = tuple[int, int, int]
_LAST = torch.channels_last_3d
# Below this many voxels of a map the additions cost what the products save (measured with 128 and 256 channels).
_LEAST_VOXELS = 1000
# Products a channel and voxel (harmonic mean of channels times taps) below which the same holds (measured: 8 channels of 1x3x3
# lose 4 ms of 7, 16 of 3x3x3 gain nothing, 32 gain a quarter).
_LEAST_PRODUCTS = 600


def triple(size: Any, first: int = 1) -> _Size:
    """Sizes in 3D: those of 2D with ``first`` in front."""
    return cast(_Size, tuple(size) if len(size) == 3 else (first, *size))


def cube(weight: Tensor) -> Tensor:
    """A kernel in 3D, (K, C, x, y, z): one of 2D with a single plane."""
    return weight if weight.ndim == 5 else weight[:, :, None]


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


@dataclass(frozen=True)
class _Sizes:
    """A convolution's sizes in 3D."""

    kernel: _Size
    stride: _Size
    padding: _Size
    dilation: _Size
    groups: int
    inputs: int
    outputs: int

    @classmethod
    def of(cls, own: Own | _Up) -> _Sizes:
        """Those of a layer in 2D or 3D."""
        return cls(
            kernel=triple(own.kernel_size),
            stride=triple(own.stride),
            padding=triple(own.padding, 0),
            dilation=triple(own.dilation),
            groups=own.groups,
            inputs=own.in_channels,
            outputs=own.out_channels,
        )

    @property
    def plain(self) -> bool:
        """No stride, no dilation, no groups."""
        return self.stride == self.dilation == (1, 1, 1) and self.groups == 1


class Convolution:
    """A convolution, direct or by Winograd; ``part`` of its input channels, with or without its bias.

    A ``pool`` before a 1x1 convolution, of windows that don't overlap, becomes its kernel and stride.
    """

    def __init__(self, own: Own, *, with_bias: bool, part: slice = slice(None), pool: Pool | None = None) -> None:
        self._own, self._part, self._pool = own, part, pool
        self._bias = own.bias if with_bias else None
        self._sizes = _Sizes.of(own)
        if pool is not None:
            self._sizes = replace(self._sizes, stride=triple(pool.stride))
        self._kept = _Kept(own.weight)

    def _weight(self) -> Tensor:
        weight = cube(self._own.weight.detach()[:, self._part])
        if self._pool is None:
            return weight
        stride = self._sizes.stride
        share = 1 / math.prod(stride)
        return share * weight.expand(*weight.shape[:2], *stride)

    def answer(self, x: Tensor, precision: torch.dtype | None) -> Tensor:
        """(B, C, X, Y, Z), or (B, C, Y, Z) into a 2D network, to (B, K, X, Y, Z), channels last."""
        x = x if x.ndim == 5 else x[:, :, None]
        sizes = self._sizes
        axis = _winograd_axis(sizes, x) if precision is None else None
        if axis is None:
            kind = precision or torch.float32
            if x.shape[1] == 1 and _can_pair(sizes, x):
                return self._of_pairs(x[:, 0].to(kind))
            weight = self._kept.get(kind, lambda: self._weight().to(kind).contiguous(memory_format=_LAST))
            return _direct(x, weight, self._bias, sizes)
        order = (axis, *(n for n in range(3) if n != axis))
        turned = (0, 1, *(2 + n for n in order))
        filters = self._kept.get(axis, lambda: filter_planes(self._weight().permute(turned)))
        padding = [sizes.padding[n] for n in order[1:]]
        y = convolve(x.permute(turned), filters, padding).permute(0, 1, *(2 + order.index(n) for n in range(3)))
        return y if self._bias is None else y.add_(self._bias[:, None, None, None])

    def _of_pairs(self, x: Tensor) -> Tensor:
        """(B, X, Y, Z) of one channel to (B, K, X, Y, Z), channels last: two voxels along z count as two channels.

        One channel leaves most of a vector empty, and oneDNN's answer to it would not be channels last.
        """
        kernel = self._kept.get(
            ("pairs", x.dtype), lambda: _pair_kernel(self._weight()).to(x.dtype).contiguous(memory_format=_LAST)
        )
        bias = None if self._bias is None else self._bias.repeat(2)
        pairs = x.reshape(*x.shape[:3], -1, 2).permute(0, 4, 1, 2, 3)
        y = _direct(pairs, kernel, bias, self._sizes)
        return y.permute(0, 2, 3, 4, 1).reshape(*x.shape, -1).permute(0, 4, 1, 2, 3)


def _can_pair(sizes: _Sizes, x: Tensor) -> bool:
    return sizes.plain and sizes.kernel[2] == 3 and sizes.padding[2] == 1 and x.shape[4] % 2 == 0


def _pair_kernel(weight: Tensor) -> Tensor:
    """(K, 1, a, b, 3) to (2 K, 2, a, b, 3): what each voxel of a pair takes from its own pair and the two beside it."""
    count = len(weight)
    paired = weight.new_zeros((2 * count, 2, *weight.shape[2:]))
    for place in range(2):
        for tap in range(3):
            pair, other = divmod(place + tap - 1, 2)
            paired[place * count : (place + 1) * count, other, :, :, pair + 1] = weight[:, 0, :, :, tap]
    return paired


def are_one(pool: Pool, after: Own) -> bool:
    """Whether the two are a convolution with the pool's windows as kernel and stride."""
    sizes = _Sizes.of(after)
    apart = (
        isinstance(pool.stride, tuple) and pool.stride == pool.kernel_size and not pool.padding and not pool.ceil_mode
    )
    return apart and sizes.plain and sizes.kernel == (1, 1, 1) and sizes.padding == (0, 0, 0)


def _direct(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: _Sizes) -> Tensor:
    stride, padding, dilation = sizes.stride, sizes.padding, sizes.dilation
    if weight.dtype == torch.float32 == x.dtype and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return cast(Tensor, torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, stride, dilation, sizes.groups))
    return functional.conv3d(x, weight, bias, stride, padding, dilation, sizes.groups)


def _by_winograd(sizes: _Sizes) -> bool:
    """Whether it has products enough to pay for the additions, on a map that is not small."""
    channels = 2 / (1 / sizes.inputs + 1 / sizes.outputs)
    return sizes.plain and channels * math.prod(sizes.kernel) >= _LEAST_PRODUCTS


def _winograd_axis(sizes: _Sizes, x: Tensor) -> int | None:
    """The axis that Winograd's filtering goes along: of those that can, the one with least filled up; None where none pays."""
    if not _by_winograd(sizes) or x[0, 0].numel() < _LEAST_VOXELS:
        return None
    fit = [n for n in range(3) if sizes.kernel[n] == 3 and sizes.padding[n] == 1]
    return min(fit, key=lambda n: -(-x.shape[2 + n] // TILE) * TILE / x.shape[2 + n], default=None)


class Joint:
    """A transposed convolution and the convolution of (its answer, skip), without a bias: an instance norm comes next."""

    def __init__(self, up: _Up, after: Own) -> None:
        self._up, self._after = up, after
        self._stride, self._sizes = triple(up.stride), _Sizes.of(after)
        self._kept = _Kept(up.weight, up.bias, after.weight)
        self._of_skip = Convolution(after, with_bias=False, part=slice(up.out_channels, None))

    def pays(self, precision: torch.dtype | None) -> bool:
        """Whether the product of kernels has fewer products than the two by themselves."""
        sizes = self._sizes
        if not sizes.plain or sizes.padding != tuple(size // 2 for size in sizes.kernel):
            return False
        joint = math.prod((s + k - 1) / s for s, k in zip(self._stride, sizes.kernel, strict=True))
        apart = math.prod(sizes.kernel)
        half = 0.6 if precision is None and _by_winograd(sizes) else 1.0  # of the direct convolution's time
        return joint * self._up.in_channels < apart * half * self._up.out_channels + self._up.in_channels

    def answer(self, x: Tensor, skip: Tensor, precision: torch.dtype | None) -> Tensor:
        """(B, C, ...) of the stage below and the skip to (B, K, ...)."""
        kind = precision or torch.float32
        kernel = self._kept.get(kind, lambda: self._product().to(kind).contiguous(memory_format=_LAST))
        y = functional.conv_transpose3d(x, kernel, None, self._stride, self._sizes.padding)
        y += self._of_skip.answer(skip, precision)
        if self._up.bias is not None:
            self._add_border(y)
        return y

    def _product(self) -> Tensor:
        """(C, K, ...) kernel of both: entry t sums the transposed kernel's r times the other's q over all r - q = t - 2."""
        first = cube(self._up.weight.detach()).double()
        second = cube(self._after.weight.detach()[:, : self._up.out_channels]).double().flip((2, 3, 4))
        return functional.conv_transpose3d(first, second.transpose(0, 1))

    def _add_border(self, y: Tensor) -> None:
        """The transposed convolution's bias is missing where the convolution looks beyond the edge; inside it is a constant."""
        table = self._kept.get("border", self._border_table)
        kernel = self._sizes.kernel
        middle = tuple(size // 2 for size in kernel)
        places = [_from_edges(*pair) for pair in zip(y.shape[2:], kernel, strict=True)]
        for cell in itertools.product(*places):
            where = tuple(index for index, _ in cell)
            if where != middle:
                value = table[:, where[0], where[1], where[2]]
                y[(slice(None), slice(None), *(own for _, own in cell))] += value[:, None, None, None]

    def _border_table(self) -> Tensor:
        """(K, k, k, k): what the bias gives at each distance from the edges, less what it gives inside."""
        assert self._up.bias is not None
        weight = cube(self._after.weight.detach()[:, : self._up.out_channels]).double()
        shape = (1, self._up.out_channels, *self._sizes.kernel)
        ones = self._up.bias.detach().double()[None, :, None, None, None].expand(shape)
        table = functional.conv3d(ones, weight, padding=self._sizes.padding)[0]
        x, y, z = (kernel // 2 for kernel in self._sizes.kernel)
        return (table - table[:, x : x + 1, y : y + 1, z : z + 1]).float()


def _from_edges(size: int, kernel: int) -> list[tuple[int, slice]]:
    """(index into a border table, where it holds) along one axis: each distance from an edge that is seen, and inside."""
    reach = min(kernel // 2, size // 2)
    first = [(n, slice(n, n + 1)) for n in range(reach)]
    last = [(kernel - reach + n, slice(size - reach + n, size - reach + n + 1)) for n in range(reach)]
    return [*first, (kernel // 2, slice(reach, size - reach)), *last]
