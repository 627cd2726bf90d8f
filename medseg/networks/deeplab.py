"""DeepLabV3+: an atrous spatial pyramid on a ResNet whose last layers are dilated, and a small decoder.

Chen et al., ECCV 2018 (arXiv 1802.02611). Departures: the plan's strides decide how deep the encoder pools, at most to
1/16; the branch of image-wide context has no norm, which one value per channel can't feed; widths scale with ``width``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg.networks.encoders import ResNet
from medseg.networks.layers import SLOPE, Dimension, initialise

_ONES = (1, 1, 1)


class AtrousPyramid(nn.Module):
    """A 1x1 branch, one dilated 3x3 branch per rate, and the mean over the whole patch, mixed to ``outputs`` channels."""

    def __init__(
        self, dim: Dimension, inputs: int, outputs: int, *, kernel: Sequence[int], rates: Sequence[int], norm: str
    ) -> None:
        super().__init__()
        self.dim = dim
        self.branches = nn.ModuleList([dim.block(inputs, outputs, _ONES, norm=norm)])
        for rate in rates:
            dilation = tuple(rate if k > 1 else 1 for k in kernel)
            self.branches.append(
                nn.Sequential(
                    dim.convolution(inputs, outputs, kernel, dilation=dilation),
                    dim.norm(norm, outputs),
                    nn.LeakyReLU(SLOPE, inplace=True),
                )
            )
        self.context = nn.Sequential(dim.convolution(inputs, outputs, _ONES), nn.LeakyReLU(SLOPE, inplace=True))
        self.mix = dim.block((len(rates) + 2) * outputs, outputs, _ONES, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to (B, ``outputs``, ...) of the same size."""
        mean = x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
        context = self.context(mean).expand(-1, -1, *x.shape[2:])
        mixed: Tensor = self.mix(torch.cat([*(branch(x) for branch in self.branches), context], dim=1))
        return mixed


class DeepLabV3Plus(nn.Module):
    """See the module.

    Args:
        dimensions: 2 or 3.
        channels: image channels C.
        classes: output channels K, background included.
        encoder: a ResNet by name.
        width: channels of the encoder's stem; the pyramid has 4 and the low-level branch 3/4 of it (256 and 48 of 64).
        strides: the plan's per stage; four poolings at most are used.
        kernel_sizes: the plan's per stage.
        rates: dilations of the pyramid's 3x3 branches.
        norm: "batch", "instance" or "group".

    ``forward`` takes (B, C, X, Y, Z), or (B, C, X, Y) in 2D, and gives logits (B, K, ...) of the same size, computed on the
    grid of the encoder's first layer and enlarged linearly.
    """

    def __init__(
        self,
        *,
        dimensions: int,
        channels: int,
        classes: int,
        encoder: str,
        width: int,
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        rates: Sequence[int],
        norm: str = "instance",
    ) -> None:
        super().__init__()
        self.dim = dim = Dimension(dimensions)
        self.encoder = ResNet(
            encoder,
            dimensions=dimensions,
            channels=channels,
            width=width,
            strides=strides[:5],
            kernel_sizes=kernel_sizes,
            norm=norm,
        )
        deep, low = 4 * width, max(1, 3 * width // 4)
        kernel = kernel_sizes[-1]
        self.pyramid = AtrousPyramid(dim, self.encoder.widths[-1], deep, kernel=kernel, rates=rates, norm=norm)
        self.low = dim.block(self.encoder.widths[1], low, _ONES, norm=norm)
        kernel = kernel_sizes[min(2, len(kernel_sizes) - 1)]
        self.decoder = nn.Sequential(
            dim.block(deep + low, deep, kernel, norm=norm), dim.block(deep, deep, kernel, norm=norm)
        )
        self.head = dim.convolution(deep, classes, _ONES)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        maps = self.encoder(x)
        low = self.low(maps[1])
        deep = self.dim.resize(self.pyramid(maps[-1]), low.shape[2:])
        return self.dim.resize(self.head(self.decoder(torch.cat((deep, low), dim=1))), x.shape[2:])
