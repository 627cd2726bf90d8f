"""The plan: how scans become prepared arrays and what network suits them. A file between ``prepare`` and everything after."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from medseg.config.base import Positive, PositiveInt, Section, Size, Spacing
from medseg.config.series import SeriesSection
from medseg.imaging.regions import Regions, index_labels, regions_of

Preset = Literal["plain", "small", "resenc_m", "resenc_l", "resenc_xl"]


class ChannelPlan(Section):
    """How one channel's intensities are normalised.

    ``ct`` clips to [low, high], then subtracts ``mean`` and divides by ``std`` (training foreground's); ``zscore`` uses each
    scan's own mean and SD (inside the nonzero mask where ``use_mask``); ``percentile`` clips to the scan's own 0.5 and 99.5
    percentiles before the z-score; ``range`` takes each scan's own minimum and maximum to 0 and 1; ``rgb`` divides by 255;
    ``none`` leaves them. ``series`` says which series of a DICOM folder is meant.
    """

    name: str
    unit: str | None = None
    scheme: Literal["ct", "zscore", "percentile", "range", "rgb", "none"]
    use_mask: bool = False
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    series: SeriesSection | None = None

    @model_serializer(mode="wrap")
    def _without_no_series(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out where there is none: the keys of stores, made of this, stay what they were.
        content: dict[str, Any] = plain(self)
        if self.series is None:
            content.pop("series", None)
        return content


class Alternative(Section):
    """A configuration that was not chosen: what ``prepare.configuration`` would give. Fields as in `Plan`."""

    spacing_xyz_mm: Spacing
    through_plane_axis: Literal[0, 1, 2] | None = None
    median_shape_xyz: Size
    patch_size_xyz: Size
    batch_size: PositiveInt
    features: tuple[PositiveInt, ...]
    strides: tuple[Size, ...]
    kernel_sizes: tuple[Size, ...]
    batch_dice: bool
    cascade: bool = False


class Plan(Section):
    """See the field docs.

    Axis order is (x, y, z) of the oriented array everywhere; in 2D, patches, strides and kernels have 1 along `slice_axis`.
    """

    format: Literal[1] = 1
    configuration: Literal["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"] | None = None
    """Which of nnU-Net's configurations it is; null in a file from before the field, whose rest says it."""
    preset: Preset = "plain"
    """Whose network and memory reference the rules were given."""
    memory_gb: Positive = 8.0
    """Memory that patch and batch were fitted to, 10^9 bytes as nnU-Net counts them."""
    dimensions: Literal[2, 3]
    """Of the network. 2 with volumes (``through_plane_axis`` is given) goes slice by slice."""
    through_plane_axis: Literal[0, 1, 2] | None = None
    """Axis that the slices of volumes are stacked along in 2D, which is never resampled; null for pictures and in 3D."""
    orientation: Literal["RAS", "native"]
    spacing_xyz_mm: Spacing
    """Target voxel size. Along ``through_plane_axis`` it is the median, and each case keeps its own. 2D pictures without
    physical size have 1 mm."""
    median_shape_xyz: Size
    """Median shape of the training cases after crop and resampling."""
    patch_size_xyz: Size
    batch_size: PositiveInt
    channels: tuple[ChannelPlan, ...]
    labels: dict[str, tuple[int, ...]]
    """Class name to file values, background first; class k is the k-th. Where values overlap, see ``regions``."""
    ignore: int | None = None
    label_table: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """The manifest's: colours and coded terms for files of other programs."""
    features: tuple[PositiveInt, ...]
    strides: tuple[Size, ...]
    kernel_sizes: tuple[Size, ...]
    residual: bool = False
    """Whether encoder stages are residual blocks (the ResEnc presets) instead of plain convolutions."""
    convolutions: tuple[PositiveInt, ...] = ()
    """Convolutions, or residual blocks, per encoder stage; empty is 2 each."""
    decoder_convolutions: tuple[PositiveInt, ...] = ()
    """Convolutions per decoder stage, one stage fewer, the deepest first as nnU-Net lists them; empty is 2 each."""
    cascade: bool = False
    """Whether nnU-Net's rules let a full-resolution network refine this one's masks (3d_cascade_fullres)."""
    previous_channels: Annotated[int, Field(ge=0)] = 0
    """One-hot channels that follow the image's in a cascade's second stage: the first stage's mask, one per foreground class
    index. 0 where there is no first stage."""
    batch_dice: bool
    mirror_axes: tuple[Literal["x", "y", "z"], ...] = ("x", "y", "z")
    """Axes along which patches, and copies in inference, may be mirrored; all of them in a file from before the field."""
    stored_dtype: Literal["float16", "float32"]
    fingerprint_sha256: str
    reasons: dict[str, str] = Field(default_factory=dict)
    """Field name to one sentence saying where its value comes from."""
    made_from_cases: Annotated[int, Field(ge=0)] = 0
    alternatives: dict[str, Alternative] = Field(default_factory=dict)
    """The other configurations that the rules make for these data, by name; for information."""

    @property
    def slice_axis(self) -> Literal[0, 1, 2] | None:
        """The axis that a 2D network does not see and patches have one voxel along; None in 3D, z for pictures."""
        if self.dimensions == 3:
            return None
        return 2 if self.through_plane_axis is None else self.through_plane_axis

    @property
    def of_pictures(self) -> bool:
        """Whether the cases are 2D pictures."""
        return self.dimensions == 2 and self.through_plane_axis is None

    @property
    def input_count(self) -> int:
        """Channels that the network takes: the image's, then those of the first stage's mask."""
        return len(self.channels) + self.previous_channels

    @property
    def regions(self) -> Regions | None:
        """The labels as regions, where they overlap."""
        return regions_of(self.labels)

    @property
    def class_count(self) -> int:
        """Indices that prepared labels may hold, background's 0 included: classes, or combinations of overlapping ones."""
        return len(index_labels(self.labels))

    @property
    def output_count(self) -> int:
        """Channels of the network's logits: one a class with background, or one a region without."""
        return len(self.labels) if self.regions is None else len(self.labels) - 1
