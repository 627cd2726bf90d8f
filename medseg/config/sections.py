"""The sections of a config: what may be set, its type, range, default and meaning.

Every model is frozen and refuses unknown keys; a stage function is given its own section, never the whole config.
A value that changes a result is a field here; where or how to run is a flag of the command.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Spacing = tuple[Positive, Positive, Positive]
Size = tuple[PositiveInt, PositiveInt, PositiveInt]


class Section(BaseModel):
    """Base of everything people write: frozen, strict, no unknown keys, no NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataSection(Section):
    """Which cases."""

    manifest: str
    """Manifest file (.json or .csv), relative to the config."""
    fold: Annotated[int, Field(ge=0)] | None = 0
    """Cross-validation fold that is held out of training and predicted afterwards; null trains on every case."""


class PrepareSection(Section):
    """Checks, grid and intensities of the prepared data."""

    on_bad_case: Literal["stop", "skip"] = "stop"
    """What a bad case does: stop before any work, or be left out."""
    orientation: Literal["RAS", "native"] = "RAS"
    """RAS flips and permutes axes to Right-Anterior-Superior (never interpolates); native leaves them."""
    spacing_xyz_mm: Spacing | None = None
    """Target voxel size; null takes the plan's (median of the training cases, nnU-Net's rule)."""
    patch_size_xyz: Size | None = None
    """Training patch; null takes the plan's."""
    batch_size: PositiveInt | None = None
    """Patches per step; null takes the plan's."""
    normalisation: Literal["auto", "ct", "zscore", "percentile", "rgb", "none"] = "auto"
    """auto goes by channel name (CT, RGB, else z-score); anything else holds for every channel."""
    dtype: Literal["float16", "float32"] = "float16"
    """Stored image type; float16 halves what has to be read and changes normalised values by less than 5e-4 of their size."""


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


class BudgetSection(Section):
    """How long to train: exactly one of the three."""

    minutes: Positive | None = None
    """From the start of train to the last weights, validation included; turned into steps once, from the first timed steps."""
    steps: PositiveInt | None = None
    epochs: PositiveInt | None = None
    steps_per_epoch: PositiveInt = 250
    """An epoch is this many steps; results are logged and the state saved at its end."""

    @model_validator(mode="after")
    def _one(self) -> BudgetSection:
        if sum(v is not None for v in (self.minutes, self.steps, self.epochs)) != 1:
            raise ValueError("give exactly one of minutes, steps, epochs")
        return self


class OptimiserSection(Section):
    """Optimiser and learning-rate schedule; the schedule ends where the budget ends."""

    kind: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """SGD's Nesterov momentum."""
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps over which the rate rises from 0."""
    gradient_norm: Positive | None = 12.0
    """Gradients are scaled down to this L2 norm; null leaves them."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    """Weights that are kept and validated are an exponential moving average with this decay; 0 keeps the raw weights."""


class AugmentationSection(Section):
    """Random changes of training patches; 0 switches one off. Ranges are nnU-Net's."""

    mirror_axes: tuple[Literal["x", "y", "z"], ...] | None = None
    """Axes that may be mirrored, in training and in inference; null takes all. Leave out x where sides have names."""
    rotation: Probability = 0.2
    scaling: Probability = 0.2
    scale_range: tuple[Positive, Positive] = (0.7, 1.4)
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] | None = None
    """Largest angle per axis; null is 30 in 3D and 180 in 2D."""
    noise: Probability = 0.1
    blur: Probability = 0.2
    brightness: Probability = 0.15
    contrast: Probability = 0.15
    low_resolution: Probability = 0.25
    gamma: Probability = 0.3
    gamma_inverted: Probability = 0.1


class LossSection(Section):
    """Dice + cross-entropy by default, both means over the batch."""

    kind: Literal["dice_ce", "dice", "ce"] = "dice_ce"
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    ce_weight: Annotated[float, Field(ge=0)] = 1.0
    batch_dice: bool | None = None
    """Dice over the whole batch instead of per sample; null takes the plan's."""


class ValidationSection(Section):
    """Sliding-window validation on whole held-out cases, while training."""

    every_epochs: PositiveInt = 1
    cases: Annotated[int, Field(ge=0)] = 8
    """How many validation cases (the first by id) each time; 0 for none. It never decides which weights are kept."""


class TrainSection(Section):
    """Training."""

    budget: BudgetSection = BudgetSection(epochs=100)
    optimiser: OptimiserSection = OptimiserSection()
    loss: LossSection = LossSection()
    augmentation: AugmentationSection = AugmentationSection()
    validation: ValidationSection = ValidationSection()
    foreground_share: Probability = 0.33
    """Share of each batch's patches that is centred on a labelled voxel."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """auto takes bf16 where the hardware has it."""
    save_minutes: Positive = 5.0
    """The state is saved at least this often, besides at the end of each epoch."""


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
    precision: Literal["auto", "float32", "bf16"] = "auto"
    ensemble: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Folds whose models are averaged; empty takes the fold of ``data``."""


class EvaluateSection(Section):
    """Scores."""

    tolerance_mm: Positive | dict[str, Positive] = 1.0
    """NSD's tolerance, one for all classes or one per class."""
    empty: Literal["standard", "exclude"] = "standard"
    """What empty masks count; see docs/metrics.md."""


class TrackingSection(Section):
    """MLflow."""

    enabled: bool = True
    experiment: str | None = None
    """MLflow experiment; null takes the config's name."""
    images: bool = False
    """Log slices of scans. Off unless everyone who can open the tracker may see the data: a slice of a head is a face."""
    wait_seconds: Annotated[float, Field(ge=0)] = 20.0
    """How long a command waits at its end for a slow tracker; what it missed is kept and sent later."""


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
    tracking: TrackingSection = TrackingSection()

    def plain(self) -> dict[str, Any]:
        """The resolved config as plain values, ready for YAML, JSON and hashing."""
        result: dict[str, Any] = self.model_dump(mode="json")
        return result
