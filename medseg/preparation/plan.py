"""The plan: how scans become prepared arrays and what network suits them. A file between ``prepare`` and everything after."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medseg.config.base import PositiveInt, Section, Size, Spacing


class ChannelPlan(Section):
    """How one channel's intensities are normalised.

    ``ct`` clips to [low, high], then subtracts ``mean`` and divides by ``std`` (training foreground's); ``zscore`` uses each
    scan's own mean and SD (inside the nonzero mask where ``use_mask``); ``percentile`` clips to the scan's own 0.5 and 99.5
    percentiles before the z-score; ``rgb`` divides by 255; ``none`` leaves them.
    """

    name: str
    unit: str | None = None
    scheme: Literal["ct", "zscore", "percentile", "rgb", "none"]
    use_mask: bool = False
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0


class Plan(Section):
    """See the field docs. Axis order is (x, y, z) of the oriented array everywhere; 2D has z = 1."""

    format: Literal[1] = 1
    dimensions: Literal[2, 3]
    orientation: Literal["RAS", "native"]
    spacing_xyz_mm: Spacing
    """Target voxel size. 2D pictures without physical size have 1 mm."""
    median_shape_xyz: Size
    """Median shape of the training cases after crop and resampling."""
    patch_size_xyz: Size
    batch_size: PositiveInt
    channels: tuple[ChannelPlan, ...]
    labels: dict[str, tuple[int, ...]]
    """Class name to file values, background first; class k is the k-th."""
    ignore: int | None = None
    features: tuple[PositiveInt, ...]
    strides: tuple[Size, ...]
    kernel_sizes: tuple[Size, ...]
    batch_dice: bool
    stored_dtype: Literal["float16", "float32"]
    fingerprint_sha256: str
    reasons: dict[str, str] = Field(default_factory=dict)
    """Field name to one sentence saying where its value comes from."""
    made_from_cases: Annotated[int, Field(ge=0)] = 0

    @property
    def class_count(self) -> int:
        """Classes with background."""
        return len(self.labels)
