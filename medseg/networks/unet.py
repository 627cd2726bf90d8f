"""The U-Net, plain or with a residual encoder, 2D or 3D, built as nnU-Net builds it.

Isensee et al., Nature Methods 18 (2021) 203-211; residual encoder: Isensee et al., MICCAI 2024 (arXiv 2404.09556).
Block order convolution, norm, LeakyReLU(0.01); the stride sits in the first convolution of a stage; the decoder upsamples by
a transposed convolution whose kernel is the stride and concatenates (upsampled, skip). ``nnunet_names.py`` maps the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from medseg.networks.layers import SLOPE, Dimension, initialise, per_stage

_ONES = (1, 1, 1)


class ResidualBlock(nn.Module):
    """Two convolutions and a skip: average pooling for the stride, a 1x1 convolution where the channels change.

    ResNet-D's block (He et al., CVPR 2019). Dropout, where asked for, follows the first convolution only.
    """

    def __init__(
        self,
        dim: Dimension,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        *,
        norm: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.first = dim.block(inputs, outputs, kernel, stride, norm=norm, dropout=dropout)
        self.second = nn.Sequential(dim.convolution(outputs, outputs, kernel), dim.norm(norm, outputs))
        skip: list[nn.Module] = []
        if any(s > 1 for s in dim.cut(stride)):
            skip.append(dim.average(dim.cut(stride), dim.cut(stride)))  # type: ignore[arg-type]
        if inputs != outputs:
            skip += [dim.convolution(inputs, outputs, _ONES, bias=False), dim.norm(norm, outputs)]
        self.skip = nn.Sequential(*skip)
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to (B, ``outputs``, ... / stride)."""
        return cast(Tensor, self.activation(self.second(self.first(x)) + self.skip(x)))


class SkipDecoder(nn.Module):
    """The decoding half of a U-Net, with one head per stage. A subclass makes its encoder, then calls ``add_decoder``.

    Args:
        deep_supervision: in training mode ``decode`` returns every stage's logits.

    Attributes:
        features_only: in eval mode answer with what the last layer would be given, for whoever applies that layer later.
    """

    def __init__(self, *, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.features_only = False

    def add_decoder(
        self,
        dim: Dimension,
        classes: int,
        *,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        convolutions: int | Sequence[int],
        norm: str,
        dropout: float,
    ) -> None:
        """Makes the layers.

        Args:
            dim: layers of 2D or 3D.
            classes: output channels K.
            features: the encoder's channels per stage, top first, the bottleneck last.
            strides: per stage an (x, y, z) triple, the first (1, 1, 1).
            kernel_sizes: per stage an (x, y, z) triple.
            convolutions: per decoder stage, finest first; one number for all.
            norm: "instance", "batch" or "group".
            dropout: probability of dropping a whole feature map after a convolution.
        """
        counts = per_stage(convolutions, len(features) - 1, "decoder_convolutions")
        self.up, self.decoder, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for stage in range(len(features) - 2, -1, -1):
            width, stride = features[stage], dim.cut(strides[stage + 1])
            self.up.append(dim.transposed(features[stage + 1], width, stride, stride))  # type: ignore[arg-type]
            inputs = (2 * width, *(width,) * (counts[stage] - 1))
            blocks = [dim.block(n, width, kernel_sizes[stage], norm=norm, dropout=dropout) for n in inputs]
            self.decoder.append(nn.Sequential(*blocks))
            self.heads.append(dim.convolution(width, classes, _ONES))

    def decode(self, skips: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Features of every stage, finest first, to logits; a list of logits, finest first, under deep supervision."""
        every = self.training and self.deep_supervision
        logits: list[Tensor] = []
        x, last = skips[-1], len(self.up) - 1
        for i, (up, decoder, head) in enumerate(zip(self.up, self.decoder, self.heads, strict=True)):
            x = decoder(torch.cat((up(x), skips[-2 - i]), dim=1))
            if every or i == last:
                logits.append(x if self.features_only and not self.training else head(x))
        return logits[::-1] if every else logits[0]


class UNet(SkipDecoder):
    """U-Net with one head per decoder stage.

    Args:
        dimensions: 2 or 3.
        channels: image channels C.
        classes: output channels K, background included.
        features: channels per stage, top first; at least two stages.
        strides: per stage an (x, y, z) triple, the first (1, 1, 1); 2D leaves out z.
        kernel_sizes: per stage an (x, y, z) triple of odd numbers.
        convolutions: convolutions (or residual blocks) per encoder stage; one number for all.
        decoder_convolutions: convolutions per decoder stage, finest first; one number for all.
        residual: residual encoder with a stem convolution.
        norm: "instance", "batch" or "group" (8 groups).
        dropout: probability of dropping a whole feature map after a convolution.
        deep_supervision: in training mode return every decoder stage's logits.

    ``forward`` takes (B, C, X, Y, Z), or (B, C, X, Y) in 2D, with sizes divisible by the product of the strides, and gives
    logits (B, K, ...) of the same size; in training mode with deep supervision a list of logits, full resolution first, each
    coarser by its stage's stride, the bottleneck left out.

    Raises:
        ValueError: the lists differ in length, or there are fewer than two stages.
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
        convolutions: int | Sequence[int] = 2,
        decoder_convolutions: int | Sequence[int] = 2,
        residual: bool = False,
        norm: str = "instance",
        dropout: float = 0.0,
        deep_supervision: bool = True,
    ) -> None:
        if len(features) < 2:
            raise ValueError(f"features has {len(features)} entries, expected at least two stages")
        dim = Dimension(dimensions)
        super().__init__(deep_supervision=deep_supervision)
        self.stem = (
            dim.block(channels, features[0], kernel_sizes[0], norm=norm, dropout=dropout) if residual else nn.Identity()
        )
        self.encoder = nn.ModuleList()
        inputs = features[0] if residual else channels
        counts = per_stage(convolutions, len(features), "convolutions")
        for width, stride, kernel, count in zip(features, strides, kernel_sizes, counts, strict=True):
            blocks: list[nn.Module] = []
            for i in range(count):
                step = stride if i == 0 else _ONES
                blocks.append(
                    ResidualBlock(dim, inputs, width, kernel, step, norm=norm, dropout=dropout)
                    if residual
                    else dim.block(inputs, width, kernel, step, norm=norm, dropout=dropout)
                )
                inputs = width
            self.encoder.append(nn.Sequential(*blocks))
        self.add_decoder(
            dim,
            classes,
            features=features,
            strides=strides,
            kernel_sizes=kernel_sizes,
            convolutions=decoder_convolutions,
            norm=norm,
            dropout=dropout,
        )
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """See the class."""
        x = self.stem(x)
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        return self.decode(skips)


def _initialise(module: nn.Module) -> None:
    initialise(module)
    if isinstance(module, ResidualBlock):
        # As nnU-Net: a block begins as its skip alone, which keeps deep residual encoders calm at the start.
        norm = cast(nn.InstanceNorm3d, module.second[1])
        nn.init.zeros_(norm.weight)
        nn.init.zeros_(norm.bias)
