"""The ``network`` section: one class per kind, told apart by ``kind``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from medseg.config.base import PositiveInt, Section, Size

Norm = Literal["instance", "batch", "group"]
Dropout = Annotated[float, Field(ge=0, lt=1)]
ResNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
VGGName = Literal["vgg11", "vgg13", "vgg16", "vgg19"]
MonaiName = Literal[
    "AttentionUnet",
    "BasicUNet",
    "BasicUNetPlusPlus",
    "DynUNet",
    "FlexibleUNet",
    "HighResNet",
    "MedNeXt",
    "MedNeXtS",
    "MedNeXtB",
    "MedNeXtM",
    "MedNeXtL",
    "SegResNet",
    "SegResNetDS",
    "SwinUNETR",
    "UNet",
    "UNETR",
    "VNet",
]
"""Networks of MONAI's that ``kind: monai`` builds."""


class UNetSection(Section):
    """nnU-Net's U-Net, plain or with a residual encoder, 2D or 3D. Nulls come from the plan."""

    kind: Literal["unet"] = "unet"
    residual: bool | None = None
    """Residual encoder blocks instead of plain convolutions."""
    features: tuple[PositiveInt, ...] | None = None
    """Channels per stage, top first, e.g. [32, 64, 128, 256]."""
    strides: tuple[Size, ...] | None = None
    """Stride per stage and axis (x, y, z), the first [1, 1, 1]."""
    kernel_sizes: tuple[Size, ...] | None = None
    """Kernel per stage and axis (x, y, z)."""
    convolutions: PositiveInt | tuple[PositiveInt, ...] | None = None
    """Convolutions (or residual blocks) per encoder stage; one number for all, or one per stage, top first."""
    decoder_convolutions: PositiveInt | tuple[PositiveInt, ...] | None = None
    """Convolutions per decoder stage; one number for all, or one per stage but the last, top first."""
    norm: Norm = "instance"
    dropout: Dropout = 0.0
    """Probability of dropping a whole feature map after a convolution."""
    deep_supervision: bool = True
    """Train every decoder stage's own prediction too."""

    @model_validator(mode="after")
    def _same_depth(self) -> UNetSection:
        lists = (self.features, self.strides, self.kernel_sizes, self.convolutions)
        lengths = {len(v) for v in lists if isinstance(v, tuple)}
        if len(lengths) > 1:
            raise ValueError("features, strides, kernel_sizes and convolutions must have one entry per stage each")
        if (
            lengths
            and isinstance(self.decoder_convolutions, tuple)
            and len(self.decoder_convolutions) + 1 not in lengths
        ):
            raise ValueError("decoder_convolutions must have one entry per stage but the last")
        return self


class DynUNetSection(Section):
    """MONAI's DynUNet with the plan's strides and kernels."""

    kind: Literal["dynunet"] = "dynunet"
    features: tuple[PositiveInt, ...] | None = None
    """Channels per stage, top first; null takes the plan's."""
    residual: bool = False
    """Residual blocks in encoder and decoder."""


class FCNSection(Section):
    """Fully convolutional network on a VGG or ResNet encoder with the plan's strides and kernels."""

    kind: Literal["fcn"] = "fcn"
    encoder: VGGName | ResNetName = "vgg16"
    width: PositiveInt = 64
    """Channels of the encoder's first stage; weights from elsewhere need 64."""
    fused: PositiveInt | None = None
    """How many depths of the encoder vote, coarsest first; null takes all, 3 is the original's FCN-8s."""
    norm: Norm = "instance"
    """Encoders that start from weights trained elsewhere need batch."""
    deep_supervision: bool = True
    """Train the coarser sums of votes too."""


class DeepLabSection(Section):
    """DeepLabV3+: atrous pyramid on a ResNet encoder with the plan's strides (to 1/16 at most) and kernels."""

    kind: Literal["deeplabv3plus"] = "deeplabv3plus"
    encoder: ResNetName = "resnet34"
    width: PositiveInt = 64
    """Channels of the encoder's stem; weights from elsewhere need 64."""
    rates: tuple[PositiveInt, ...] | None = None
    """Dilations of the pyramid; null takes 6, 12, 18, scaled down for patches that are small at the encoder's end."""
    norm: Norm = "instance"
    """Encoders that start from weights trained elsewhere need batch."""


class VGGUNetSection(Section):
    """U-Net on a VGG encoder with the plan's strides and kernels."""

    kind: Literal["vgg_unet"] = "vgg_unet"
    encoder: VGGName = "vgg16"
    width: PositiveInt = 64
    """Channels of the first block; weights from elsewhere need 64."""
    decoder_convolutions: PositiveInt = 2
    """Convolutions per decoder stage."""
    norm: Norm = "instance"
    """Encoders that start from weights trained elsewhere need batch."""
    dropout: Dropout = 0.0
    """Probability of dropping a whole feature map after a convolution of the decoder."""
    deep_supervision: bool = True
    """Train every decoder stage's own prediction too."""


class MonaiSection(Section):
    """A network of MONAI's. What is missing in ``arguments`` is MONAI's default, or the plan's where MONAI demands a value."""

    kind: Literal["monai"] = "monai"
    name: MonaiName
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Of its constructor, without spatial_dims, in_channels and out_channels, which are known; checked when training starts."""


NetworkSection = Annotated[
    UNetSection | DynUNetSection | FCNSection | DeepLabSection | VGGUNetSection | MonaiSection,
    Field(discriminator="kind"),
]
