"""ResNet and VGG as encoders, 2D and 3D, with torchvision's parameter names, so that weights trained elsewhere fit.

Strides and kernels come from the plan, stage by stage: an axis that the plan does not pool yet is not pooled here either, and
its kernels stay 1 wide. Where the plan has fewer stages than the architecture, ResNet goes on at the same resolution with
dilated kernels (as DeepLab does) and VGG ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from medseg.networks.layers import Dimension

RESNETS = {
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
}
"""Name to (bottleneck blocks?, blocks per layer): He et al., CVPR 2016, table 1."""
VGGS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
"""Name to convolutions per block: Simonyan and Zisserman, ICLR 2015, table 1, columns A, B, D, E."""

Triple = Sequence[int]
_ONES = (1, 1, 1)


class _Block(nn.Module):
    """A residual block; parameter names are torchvision's. The stride sits in the (last) 3x3 convolution before expansion."""

    def __init__(
        self,
        dim: Dimension,
        inputs: int,
        width: int,
        kernel: Triple,
        *,
        stride: Triple,
        dilation: Triple,
        norm: str,
        bottleneck: bool,
    ) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            convolutions = [
                dim.convolution(inputs, width, _ONES, bias=False),
                dim.convolution(width, width, kernel, stride=stride, dilation=dilation, bias=False),
                dim.convolution(width, outputs, _ONES, bias=False),
            ]
        else:
            convolutions = [
                dim.convolution(inputs, width, kernel, stride=stride, dilation=dilation, bias=False),
                dim.convolution(width, width, kernel, dilation=dilation, bias=False),
            ]
        self.depth = len(convolutions)
        for number, convolution in enumerate(convolutions, start=1):
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", dim.norm(norm, convolution.out_channels))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if inputs != outputs or any(s > 1 for s in dim.cut(stride)):
            self.downsample = nn.Sequential(
                dim.convolution(inputs, outputs, _ONES, stride=stride, bias=False), dim.norm(norm, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.depth + 1):
            x = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(x))
            if number < self.depth:
                x = self.relu(x)
        return cast(Tensor, self.relu(x + skip))


class ResNet(nn.Module):
    """ResNet without its classifier: the stem and four layers.

    Args:
        name: of ``RESNETS``.
        dimensions: 2 or 3.
        channels: image channels.
        width: channels of the stem; 64 is the original's, and what foreign weights need.
        strides: the plan's per stage; the stem, the pooling and layers 2 to 4 take those of stages 1 to 5.
        kernel_sizes: the plan's per stage; the stem's 7 wide kernel is 1 wide where that of stage 0 is.
        norm: "batch" (the original's), "instance" or "group".

    ``forward`` gives five feature maps: after the stem, and after each layer. ``widths`` holds their channels,
    ``reductions`` their size against the input as (x, y, z) divisors.
    """

    def __init__(
        self,
        name: str,
        *,
        dimensions: int,
        channels: int,
        width: int,
        strides: Sequence[Triple],
        kernel_sizes: Sequence[Triple],
        norm: str,
    ) -> None:
        super().__init__()
        bottleneck, blocks = RESNETS[name]
        dim = Dimension(dimensions)
        steps = [tuple(s) for s in strides[1:6]]
        steps += [_ONES] * (5 - len(steps))
        kernels = [kernel_sizes[min(stage, len(kernel_sizes) - 1)] for stage in range(6)]
        seven = tuple(7 if k > 1 else 1 for k in kernels[0])
        self.conv1 = dim.convolution(channels, width, seven, stride=steps[0], bias=False)
        self.bn1 = dim.norm(norm, width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = _pool(dim, steps[1])
        self.widths, self.reductions = [width], [steps[0]]
        inputs, spread = width, 1
        for number, count in enumerate(blocks, start=1):
            stage = number + 1
            stride = _ONES if number == 1 else steps[number]
            before = spread
            if stage >= len(strides) and number > 1:
                spread *= 2
            narrow = width * 2 ** (number - 1)
            layer = []
            for i in range(count):
                # As torchvision dilates: a layer's first block still has the dilation of the layer before.
                dilation = tuple((before if i == 0 else spread) if k > 1 else 1 for k in kernels[stage])
                layer.append(
                    _Block(
                        dim,
                        inputs,
                        narrow,
                        kernels[stage],
                        stride=stride if i == 0 else _ONES,
                        dilation=dilation,
                        norm=norm,
                        bottleneck=bottleneck,
                    )
                )
                inputs = 4 * narrow if bottleneck else narrow
            self.add_module(f"layer{number}", nn.Sequential(*layer))
            self.widths.append(inputs)
            step = steps[1] if number == 1 else stride
            self.reductions.append(tuple(a * b for a, b in zip(self.reductions[-1], step, strict=True)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, ...) to five feature maps, finest first."""
        x = self.relu(self.bn1(self.conv1(x)))
        maps = [x]
        x = self.maxpool(x)
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
            maps.append(x)
        return maps


def _pool(dim: Dimension, stride: Triple) -> nn.Module:
    size = dim.cut(stride)
    if all(s == 1 for s in size):
        return nn.Identity()
    kernel = tuple(3 if s > 1 else 1 for s in size)
    return dim.maximum(kernel, size, tuple(k // 2 for k in kernel))


class VGG(nn.Module):
    """VGG without its classifier: up to five blocks of 3 wide convolutions with max pooling between them.

    Args:
        name: of ``VGGS``.
        dimensions: 2 or 3.
        channels: image channels.
        width: channels of the first block; 64 is the original's, and what foreign weights need.
        strides: the plan's per stage, the first (1, 1, 1); there are as many blocks as stages, at most five.
        kernel_sizes: the plan's per stage.
        norm: after each convolution: "batch" (torchvision's ``_bn`` variants), "instance" or "group".

    ``forward`` gives each block's features before pooling, finest first; ``widths`` holds their channels, ``reductions`` their
    size against the input as (x, y, z) divisors.
    """

    def __init__(
        self,
        name: str,
        *,
        dimensions: int,
        channels: int,
        width: int,
        strides: Sequence[Triple],
        kernel_sizes: Sequence[Triple],
        norm: str,
    ) -> None:
        super().__init__()
        dim = Dimension(dimensions)
        depths = VGGS[name][: len(strides)]
        layers: list[nn.Module] = []
        self.ends: list[int] = []
        self.widths: list[int] = []
        self.reductions: list[tuple[int, ...]] = []
        inputs, reduction = channels, (1, 1, 1)
        for stage, count in enumerate(depths):
            if stage > 0:
                step = dim.cut(strides[stage])
                layers.append(dim.maximum(step, step))
            outputs = width * min(2**stage, 8)
            for _ in range(count):
                layers.append(dim.convolution(inputs, outputs, kernel_sizes[stage]))
                layers += [dim.norm(norm, outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            reduction = tuple(a * b for a, b in zip(reduction, strides[stage], strict=True))  # type: ignore[assignment]
            self.ends.append(len(layers))
            self.widths.append(outputs)
            self.reductions.append(reduction)
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, ...) to one feature map per block, finest first."""
        maps = []
        for start, end in pairwise((0, *self.ends)):
            x = self.features[start:end](x)
            maps.append(x)
        return maps


def build_encoder(
    name: str,
    *,
    dimensions: int,
    channels: int,
    width: int,
    strides: Sequence[Triple],
    kernel_sizes: Sequence[Triple],
    norm: str,
) -> ResNet | VGG:
    """The encoder of that name; see the classes.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in RESNETS and name not in VGGS:
        raise ValueError(f"encoder is {name!r}, expected one of {', '.join((*RESNETS, *VGGS))}")
    kind = ResNet if name in RESNETS else VGG
    return kind(
        name,
        dimensions=dimensions,
        channels=channels,
        width=width,
        strides=strides,
        kernel_sizes=kernel_sizes,
        norm=norm,
    )
