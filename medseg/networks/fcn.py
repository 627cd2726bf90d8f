"""The fully convolutional network: scores at several depths of an encoder, added from the coarsest up.

Long, Shelhamer and Darrell, CVPR 2015. Their FCN-8s adds the scores of VGG-16's last three depths; here all depths are added
unless ``fused`` says otherwise, because organs are smaller than the street scenes' cars. Scores are enlarged linearly (their
deconvolutions begin as that), and every sum is a prediction of its own, which deep supervision trains too.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medseg.networks.encoders import build_encoder
from medseg.networks.layers import Dimension, initialise


class FCN(nn.Module):
    """See the module.

    Args:
        dimensions: 2 or 3.
        channels: image channels C.
        classes: output channels K, background included.
        encoder: a ResNet or VGG by name.
        width: channels of the encoder's first stage.
        strides: the plan's per stage.
        kernel_sizes: the plan's per stage.
        fused: how many depths take part, the coarsest first; None takes all.
        norm: "batch", "instance" or "group".
        deep_supervision: in training mode return every sum.

    ``forward`` takes (B, C, X, Y, Z), or (B, C, X, Y) in 2D, and gives logits (B, K, ...) of the same size; in training mode
    with deep supervision a list of logits, full resolution first.
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
        fused: int | None = None,
        norm: str = "instance",
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.deep_supervision = Dimension(dimensions), deep_supervision
        self.encoder = build_encoder(
            encoder,
            dimensions=dimensions,
            channels=channels,
            width=width,
            strides=strides,
            kernel_sizes=kernel_sizes,
            norm=norm,
        )
        widths = self.encoder.widths
        used = widths if fused is None else widths[-fused:]
        self.scores = nn.ModuleList(self.dim.convolution(n, classes, (1, 1, 1)) for n in used)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """See the class."""
        maps = self.encoder(x)[-len(self.scores) :]
        scores = [score(features) for score, features in zip(self.scores, maps, strict=True)]
        sums = [scores.pop()]
        while scores:
            finer = scores.pop()
            sums.append(finer + self.dim.resize(sums[-1], finer.shape[2:]))
        sums[-1] = self.dim.resize(sums[-1], x.shape[2:])
        every = self.training and self.deep_supervision and len(sums) > 1
        return sums[::-1] if every else sums[-1]
