"""The sections of a config: what may be set, its type, range, default and meaning.

Every model is frozen and refuses unknown keys; a stage function is given its own section, never the whole config.
A value that changes a result is a field here; where or how to run is a flag of the command.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from medseg.config.base import Positive, PositiveInt, Section, Size, Spacing
from medseg.config.network_sections import NetworkSection, UNetSection
from medseg.config.series import Series
from medseg.config.train_sections import TrainSection

Normalisation = Literal["auto", "ct", "zscore", "percentile", "range", "rgb", "none"]


class DataSection(Section):
    """Which cases."""

    manifest: str
    """Manifest file (.json or .csv), relative to the config."""
    fold: Annotated[int, Field(ge=0)] | None = 0
    """Cross-validation fold that is held out of training and predicted afterwards; null trains on every case."""
    series: Series | None = None
    """Rule for DICOM folders of several series, or channel name to rule; null, and a channel without one, take folders of
    one."""


class PrepareSection(Section):
    """Checks, grid and intensities of the prepared data."""

    on_bad_case: Literal["stop", "skip"] = "stop"
    """What a bad case does: stop before any work, or be left out."""
    orientation: Literal["RAS", "native"] = "RAS"
    """RAS flips and permutes axes to Right-Anterior-Superior (never interpolates); native leaves them."""
    configuration: Literal["auto", "2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"] = "auto"
    """nnU-Net's configuration; auto is 2d for pictures and 3d_fullres for volumes. A work folder holds one."""
    previous_work: str | None = None
    """With 3d_cascade_fullres: work folder of the first stage (3d_lowres), all of its folds trained, relative to the config."""
    preset: Literal["plain", "small", "resenc_m", "resenc_l", "resenc_xl"] = "plain"
    """Whose rules fit network, patch and batch: nnU-Net's plain U-Net, one of its residual-encoder presets, or small: ours for
    minutes on few cores."""
    memory_gb: Positive | None = None
    """Memory that patch and batch are fitted to; null takes the preset's own (8 GB; 24 for L, 40 for XL), or less where the
    device has less."""
    spacing_xyz_mm: Spacing | None = None
    """Target voxel size; null takes the plan's (median of the training cases, nnU-Net's rule)."""
    patch_size_xyz: Size | None = None
    """Training patch; null takes the plan's."""
    batch_size: PositiveInt | None = None
    """Patches per step; null takes the plan's."""
    normalisation: Normalisation | dict[str, Normalisation] = "auto"
    """auto goes by channel name (CT, RGB, else z-score); anything else holds for every channel, or for the one it is given
    for by name."""
    mask_normalisation: bool | None = None
    """Whether a z-score takes its statistics inside the nonzero mask; null does so where the crop to nonzero keeps under
    75 % of the median scan."""
    dtype: Literal["float16", "float32"] = "float16"
    """Stored image type; float16 halves what has to be read and changes normalised values by less than 5e-4 of their size."""

    @model_validator(mode="after")
    def _two_stages(self) -> PrepareSection:
        if (self.configuration == "3d_cascade_fullres") != (self.previous_work is not None):
            raise ValueError("3d_cascade_fullres and previous_work belong together; give both or neither")
        return self


class OutputSection(Section):
    """In which files masks are written; ``--format`` and ``--layout`` take its place for a run."""

    format: Literal["auto", "nii.gz", "nrrd", "mha", "seg.nrrd", "png", "tif", "dicom-seg", "rtstruct"] = "auto"
    """auto is PNG for pictures and .nii.gz for volumes; dicom-seg and rtstruct need DICOM scans."""
    layout: Literal["label_map", "per_structure"] = "label_map"
    """One file with all structures, or one per structure in a folder per case."""
    segmentation_type: Literal["BINARY", "LABELMAP"] = "BINARY"
    """Of dicom-seg: BINARY is read everywhere; LABELMAP is smaller, and newer than most viewers."""


class InferSection(Section):
    """Sliding-window inference."""

    cases: Literal["validation", "testing", "all"] = "validation"
    """With a config: the fold's held-out cases, the manifest's testing list, or both."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a window that the next one covers at least."""
    mirror: bool = True
    """Average over mirrored copies along the axes that training mirrored."""
    batch_size: PositiveInt | None = None
    """Windows per forward pass; null chooses by device."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network; auto takes bf16 where the hardware has it. fp16 needs CUDA."""
    accumulate: Literal["fp32", "fp16"] = "fp32"
    """Blending of windows. fp16 is nnU-Net's own half-precision arithmetic, operation for operation, for exact comparison."""
    skip_background: bool = True
    """Compute the answer for windows that hold nothing but the scan's lowest value once instead of for each of them."""
    resampling: Literal["scores", "labels"] = "scores"
    """What goes back to the scan's grid: class scores, then the highest wins; labels decides first: faster, coarser edges."""
    ensemble: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Folds whose models are averaged; empty takes the fold of ``data``."""
    postprocess: bool = True
    """Apply the clean-up that a model folder brings along, which cross-validation adopted."""
    contract: Literal["refuse", "warn", "off"] = "refuse"
    """What becomes of a scan that the model's training scans have nothing in common with; off looks at no scan."""
    quality: bool = True
    """Measure the uncertainty of each mask, and estimate its Dice where the model folder brings a calibration."""
    probabilities: Literal["uint8", "fp16"] | None = None
    """Write each class' probability as well, in steps of 1/255 (.nii.gz) or in half precision (.npz); null writes none."""
    uncertainty: Literal["entropy", "disagreement"] | None = None
    """Write a map as well: each voxel's entropy, or the share of an ensemble's models that would draw something else; null
    writes none."""
    output: OutputSection = OutputSection()
    series: Series | None = None
    """Rule for DICOM folders of several series, or channel name to rule; null, like a channel without one, takes that of
    ``data``, which a model brings along."""


class EvaluateSection(Section):
    """Scores."""

    tolerance_mm: Positive | dict[str, Positive] = 1.0
    """NSD's tolerance, one for all classes or one per class."""
    empty: Literal["standard", "exclude"] = "standard"
    """What empty masks count; see docs/metrics.md."""
    subgroups: list[str] | None = None
    """Columns of the manifest (site, scanner, sex ...) to give scores per value of; null takes all of 2 to 20 values."""
    raters: Literal["first", "majority", "staple", "each"] = "first"
    """The reference of a case with several: the first, a consensus, or each in turn; see docs/statistics.md."""
    error_maps: bool = False
    """Write a label map per case and class of where the mask is right, too much and too little."""
    report: bool = True
    """Make report.html and report.md beside the scores; scans appear in it only with ``tracking.images``."""
    metrics: tuple[str, ...] = ()
    """What to compute besides the default metrics: groups such as surface_elements or instances, single ones, or all."""


class DistilSection(Section):
    """A narrower student that learns from a trained model (medseg distil)."""

    width: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Features per stage, as a share of the config's network."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the teacher's answers in the loss; the labels have the rest."""
    temperature: Positive = 2.0
    """What logits are divided by before they are compared; above 1 the teacher's doubts count more."""


class TrackingSection(Section):
    """MLflow."""

    enabled: bool = True
    experiment: str | None = None
    """MLflow experiment; null takes the config's name."""
    images: bool = False
    """Log slices of scans, and show them in reports. Off unless everyone who can open the tracker or a report may see
    the data: a slice of a head is a face."""
    wait_seconds: Annotated[float, Field(ge=0)] = 20.0
    """How long a command waits at its end for a slow tracker; what it missed is kept and sent later."""
    registered_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")] | None = None
    """Name in MLflow's model registry under which a finished training becomes a version; null registers nothing."""


class Config(Section):
    """One experiment."""

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 12345
    data: DataSection
    prepare: PrepareSection = PrepareSection()
    network: NetworkSection = UNetSection()
    train: TrainSection = TrainSection()
    infer: InferSection = InferSection()
    evaluate: EvaluateSection = EvaluateSection()
    distil: DistilSection = DistilSection()
    tracking: TrackingSection = TrackingSection()

    def plain(self) -> dict[str, Any]:
        """The resolved config as plain values, ready for YAML, JSON and hashing."""
        result: dict[str, Any] = self.model_dump(mode="json")
        return result
