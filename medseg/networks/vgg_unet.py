"""A U-Net whose encoder is VGG, so that it can start from VGG's weights.

As TernausNet (Iglovikov and Shvets, arXiv 1801.05746), with the fifth block as the bottleneck and nnU-Net's decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from medseg.networks.encoders import VGG
from medseg.networks.layers import Dimension, initialise
from medseg.networks.unet import SkipDecoder


class VGGUNet(SkipDecoder):
    """See the module.

    Args:
        dimensions: 2 or 3.
        channels: image channels C.
        classes: output channels K, background included.
        encoder: a VGG by name.
        width: channels of the first block.
        strides: the plan's per stage; five stages at most are used.
        kernel_sizes: the plan's per stage.
        decoder_convolutions: convolutions per decoder stage.
        norm: "batch", "instance" or "group".
        dropout: probability of dropping a whole feature map after a convolution of the decoder.
        deep_supervision: in training mode return every decoder stage's logits.

    ``forward`` takes (B, C, X, Y, Z), or (B, C, X, Y) in 2D, with sizes divisible by the product of the strides used, and
    gives logits (B, K, ...) of the same size; in training mode with deep supervision a list, full resolution first.
    """

    def __init__(  # noqa: PLR0913 - plain values, one meaning each
        self,
        *,
        dimensions: int,
        channels: int,
        classes: int,
        encoder: str,
        width: int,
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        decoder_convolutions: int = 2,
        norm: str = "instance",
        dropout: float = 0.0,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__(deep_supervision=deep_supervision)
        self.encoder = VGG(
            encoder,
            dimensions=dimensions,
            channels=channels,
            width=width,
            strides=strides,
            kernel_sizes=kernel_sizes,
            norm=norm,
        )
        self.add_decoder(
            Dimension(dimensions),
            classes,
            features=self.encoder.widths,
            strides=strides,
            kernel_sizes=kernel_sizes,
            convolutions=decoder_convolutions,
            norm=norm,
            dropout=dropout,
        )
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """See the class."""
        return self.decode(self.encoder(x))
