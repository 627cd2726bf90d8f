"""The U-Net, plain or with a residual encoder, 2D or 3D, built as nnU-Net builds it.

Isensee et al., Nature Methods 18 (2021) 203-211; residual encoder: Isensee et al., MICCAI 2024 (arXiv 2404.09556).
Block order convolution, norm, LeakyReLU(0.01); the stride sits in the first convolution of a stage; the decoder upsamples by
a transposed convolution whose kernel is the stride and concatenates (upsampled, skip).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

_SLOPE = 0.01  # LeakyReLU's negative slope, also the ``a`` of the He initialisation


class _Dimension:
    """The layers of one dimensionality, and how an (x, y, z) triple is cut down to it."""

    def __init__(self, dimensions: int) -> None:
        self.count = dimensions
        self.conv: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.transposed: type[nn.ConvTranspose2d | nn.ConvTranspose3d] = (
            nn.ConvTranspose2d if dimensions == 2 else nn.ConvTranspose3d
        )
        self.dropout: type[nn.Dropout2d | nn.Dropout3d] = nn.Dropout2d if dimensions == 2 else nn.Dropout3d
        self.average: type[nn.AvgPool2d | nn.AvgPool3d] = nn.AvgPool2d if dimensions == 2 else nn.AvgPool3d

    def cut(self, size: Sequence[int]) -> tuple[int, ...]:
        return tuple(size[: self.count])

    def norm(self, kind: str, channels: int) -> nn.Module:
        if kind == "batch":
            return nn.BatchNorm2d(channels) if self.count == 2 else nn.BatchNorm3d(channels)
        if kind == "group":
            return nn.GroupNorm(min(8, channels), channels)
        return (nn.InstanceNorm2d if self.count == 2 else nn.InstanceNorm3d)(channels, eps=1e-5, affine=True)


def _convolution(
    dim: _Dimension,
    inputs: int,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    *,
    norm: str,
    dropout: float,
) -> nn.Sequential:
    size = dim.cut(kernel)
    padding = tuple(k // 2 for k in size)
    layers: list[nn.Module] = [dim.conv(inputs, outputs, size, dim.cut(stride), padding)]  # type: ignore[arg-type]
    if dropout > 0:
        layers.append(dim.dropout(dropout))
    layers += [dim.norm(norm, outputs), nn.LeakyReLU(_SLOPE, inplace=True)]
    return nn.Sequential(*layers)


class _ResidualBlock(nn.Module):
    """Two convolutions and a skip: average pooling for the stride, a 1x1 convolution where the channels change."""

    def __init__(
        self,
        dim: _Dimension,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        *,
        norm: str,
        dropout: float,
    ) -> None:
        super().__init__()
        ones = (1,) * dim.count
        size = dim.cut(kernel)
        padding = tuple(k // 2 for k in size)
        self.first = _convolution(dim, inputs, outputs, kernel, stride, norm=norm, dropout=dropout)
        self.second = nn.Sequential(
            dim.conv(outputs, outputs, size, ones, padding),  # type: ignore[arg-type]
            dim.norm(norm, outputs),
        )
        skip: list[nn.Module] = []
        if any(s > 1 for s in dim.cut(stride)):
            skip.append(dim.average(dim.cut(stride), dim.cut(stride)))  # type: ignore[arg-type]
        if inputs != outputs:
            skip += [dim.conv(inputs, outputs, ones, bias=False), dim.norm(norm, outputs)]  # type: ignore[arg-type]
        self.skip = nn.Sequential(*skip)
        self.activation = nn.LeakyReLU(_SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.activation(self.second(self.first(x)) + self.skip(x)))


class UNet(nn.Module):
    """U-Net with one head per decoder stage.

    Args:
        dimensions: 2 or 3.
        channels: image channels C.
        classes: output channels K, background included.
        features: channels per stage, top first.
        strides: per stage an (x, y, z) triple, the first (1, 1, 1); 2D leaves out z.
        kernel_sizes: per stage an (x, y, z) triple of odd numbers.
        convolutions: convolutions (or residual blocks) per encoder stage.
        decoder_convolutions: convolutions per decoder stage.
        residual: residual encoder with a stem convolution.
        norm: "instance", "batch" or "group" (8 groups).
        dropout: probability of dropping a whole feature map after a convolution.
        deep_supervision: in training mode return every decoder stage's logits.

    ``forward`` takes (B, C, X, Y, Z), or (B, C, X, Y) in 2D, with sizes divisible by the product of the strides, and gives
    logits (B, K, ...) of the same size; in training mode with deep supervision a list of logits, full resolution first, each
    coarser by its stage's stride, the bottleneck left out.
    """

    def __init__(  # noqa: PLR0913 - plain values, one meaning each
        self,
        *,
        dimensions: int,
        channels: int,
        classes: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        convolutions: int = 2,
        decoder_convolutions: int = 2,
        residual: bool = False,
        norm: str = "instance",
        dropout: float = 0.0,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        dim = _Dimension(dimensions)
        ones = (1, 1, 1)
        self.deep_supervision = deep_supervision
        self.stem = (
            _convolution(dim, channels, features[0], kernel_sizes[0], ones, norm=norm, dropout=dropout)
            if residual
            else nn.Identity()
        )
        block = _ResidualBlock if residual else _convolution
        self.encoder = nn.ModuleList()
        inputs = features[0] if residual else channels
        for width, stride, kernel in zip(features, strides, kernel_sizes, strict=True):
            blocks = []
            for i in range(convolutions):
                blocks.append(block(dim, inputs, width, kernel, stride if i == 0 else ones, norm=norm, dropout=dropout))
                inputs = width
            self.encoder.append(nn.Sequential(*blocks))
        self.up, self.decoder, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for stage in range(len(features) - 2, -1, -1):
            width, stride = features[stage], dim.cut(strides[stage + 1])
            self.up.append(dim.transposed(features[stage + 1], width, stride, stride))  # type: ignore[arg-type]
            self.decoder.append(
                nn.Sequential(
                    *(
                        _convolution(
                            dim,
                            2 * width if i == 0 else width,
                            width,
                            kernel_sizes[stage],
                            ones,
                            norm=norm,
                            dropout=dropout,
                        )
                        for i in range(decoder_convolutions)
                    )
                )
            )
            self.heads.append(dim.conv(width, classes, (1,) * dimensions))  # type: ignore[arg-type]
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """See the class."""
        x = self.stem(x)
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        every = self.training and self.deep_supervision
        logits: list[Tensor] = []
        last = len(self.up) - 1
        for i, (up, decoder, head) in enumerate(zip(self.up, self.decoder, self.heads, strict=True)):
            x = decoder(torch.cat((up(x), skips[-2 - i]), dim=1))
            if every or i == last:
                logits.append(head(x))
        return logits[::-1] if every else logits[0]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
