"""The ``network`` section: one class per kind, told apart by ``kind``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medseg.config.base import PositiveInt, Section, Size


class UNetSection(Section):
    """U-Net, plain or residual, 2D or 3D. Nulls come from the plan."""

    kind: Literal["unet"] = "unet"
    residual: bool = False
    """Residual encoder blocks instead of plain convolutions."""
    features: tuple[PositiveInt, ...] | None = None
    """Channels per stage, top first, e.g. [32, 64, 128, 256]."""
    strides: tuple[Size, ...] | None = None
    """Stride per stage and axis (x, y, z), the first [1, 1, 1]."""
    kernel_sizes: tuple[Size, ...] | None = None
    """Kernel per stage and axis (x, y, z)."""
    convolutions: PositiveInt = 2
    """Convolutions (or residual blocks) per encoder stage."""
    decoder_convolutions: PositiveInt = 2
    """Convolutions per decoder stage."""
    norm: Literal["instance", "batch", "group"] = "instance"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    deep_supervision: bool = True

    @model_validator(mode="after")
    def _same_depth(self) -> UNetSection:
        lengths = {len(v) for v in (self.features, self.strides, self.kernel_sizes) if v is not None}
        if len(lengths) > 1:
            raise ValueError("features, strides and kernel_sizes must have one entry per stage each")
        return self


class DynUNetSection(Section):
    """MONAI's DynUNet with the plan's strides and kernels."""

    kind: Literal["dynunet"] = "dynunet"
    features: tuple[PositiveInt, ...] | None = None
    residual: bool = False


NetworkSection = Annotated[UNetSection | DynUNetSection, Field(discriminator="kind")]
