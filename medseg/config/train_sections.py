"""The ``train`` section and its parts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from medseg.config.base import Positive, PositiveInt, Probability, Section


class BudgetSection(Section):
    """How long to train: exactly one of the three."""

    minutes: Positive | None = None
    """From the start of train to the last weights, validation included; turned into steps once, from the first timed steps."""
    steps: PositiveInt | None = None
    epochs: PositiveInt | None = None
    steps_per_epoch: PositiveInt = 250
    """An epoch is this many steps; results are logged and the state saved at its end."""
    hard: bool = False
    """With minutes: a machine that proves slower than first timed ends the run in time all the same, after fewer steps on a
    rate that still falls to 0. Such a run can't be repeated bit for bit; its record says so."""

    @model_validator(mode="after")
    def _one(self) -> BudgetSection:
        if sum(v is not None for v in (self.minutes, self.steps, self.epochs)) != 1:
            raise ValueError("give exactly one of minutes, steps, epochs")
        if self.hard and self.minutes is None:
            raise ValueError("hard keeps to minutes; give minutes, or leave hard out")
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


class ExtraTransformSection(Section):
    """A random transform of MONAI's by name."""

    name: Literal[
        "RandAdjustContrast", "RandBiasField", "RandCoarseDropout", "RandCoarseShuffle", "RandGaussianNoise",
        "RandGaussianSharpen", "RandGaussianSmooth", "RandGibbsNoise", "RandHistogramShift", "RandKSpaceSpikeNoise",
        "RandRicianNoise", "RandScaleIntensity", "RandScaleIntensityFixedMean", "RandShiftIntensity",
        "RandSimulateLowResolution", "RandStdShiftIntensity", "Rand2DElastic", "Rand3DElastic", "RandGridDistortion",
    ]  # fmt: skip
    """The first change the image alone; the last three bend image and labels together, labels by nearest neighbour."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Plain values for the transform's own arguments, such as prob; checked against its signature when training starts."""


class AugmentationSection(Section):
    """Random changes of training patches; 0 switches one off. Ranges are nnU-Net's."""

    mirror_axes: tuple[Literal["x", "y", "z"], ...] | None = None
    """Axes that may be mirrored, in training and in inference; null takes the plan's: those along which no two classes always
    lie in one order."""
    rotation: Probability = 0.2
    scaling: Probability = 0.2
    scale_range: tuple[Positive, Positive] = (0.7, 1.4)
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] | None = None
    """Largest angle per axis; null is nnU-Net's: 30 in 3D, 180 within the slices of thin stacks and in 2D, 15 in 2D where one
    side of the patch is more than 1.5 times the other."""
    noise: Probability = 0.1
    blur: Probability = 0.2
    brightness: Probability = 0.15
    contrast: Probability = 0.15
    low_resolution: Probability = 0.25
    gamma: Probability = 0.3
    gamma_inverted: Probability = 0.1
    previous_reshaped: Probability = 0.4
    """Of a cascade's second stage: half the classes of the first mask are dilated, eroded, opened or closed by a ball."""
    previous_removed: Probability = 0.2
    """Of a cascade's second stage: half the classes of the first stage's mask lose one connected component."""
    extra: tuple[ExtraTransformSection, ...] = ()
    """MONAI transforms applied after all of these, in their order, seeded per sample."""


class LossSection(Section):
    """Dice + cross-entropy by default, both means over the batch. Definitions: docs/losses.md."""

    kind: Literal[
        "dice_ce",
        "dice",
        "ce",
        "focal",
        "dice_focal",
        "topk_ce",
        "dice_topk_ce",
        "tversky",
        "jaccard",
        "generalised_dice",
        "boundary",
    ] = "dice_ce"
    """boundary is dice_ce with a signed-distance term. Overlapping labels take binary cross-entropy for cross-entropy."""
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the overlap (Dice, Tversky, Jaccard, generalised Dice)."""
    ce_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the cross-entropy, focal or top-k loss."""
    boundary_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the signed-distance term; distances are in units of the patch's longest side."""
    batch_dice: bool | None = None
    """Dice over the whole batch instead of per sample; null takes the plan's."""
    class_weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """Class name to what it counts in every mean over classes or voxels; a class that is not named counts 1."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a voxel's target that is spread evenly over all classes."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    topk_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of each sample's voxels, the hardest, that top-k cross-entropy is taken over."""
    tversky_false_positive: Annotated[float, Field(ge=0)] = 0.3
    tversky_false_negative: Annotated[float, Field(ge=0)] = 0.7


class ValidationSection(Section):
    """Sliding-window validation on whole held-out cases, while training."""

    every_epochs: PositiveInt = 1
    cases: Annotated[int, Field(ge=0)] = 8
    """How many validation cases (the first by id) each time; 0 for none. It never decides which weights are kept."""


class EarlyStoppingSection(Section):
    """Ends a run that no longer gains. Judged on training cases set aside for it, never on the held-out fold."""

    patience_epochs: PositiveInt | None = None
    """Epochs without a gain after which the run ends; null never ends it early and sets no case aside."""
    inner_share: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of the training patients that is set aside and not trained on (at least one)."""
    gain: Annotated[float, Field(ge=0)] = 0.001
    """Mean Dice over the set-aside cases has to rise by this much to count."""
    cooldown: Probability = 0.1
    """The run ends after this many more steps, as a share of those done, while the rate falls to 0."""


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
    micro_batch: PositiveInt | None = None
    """Samples per forward pass; null takes the whole batch. The loss and its gradient are those of the whole batch all the same
    (batch norm and dropout see the part). On a GPU it lowers the memory, on a CPU it can be faster."""
    init_from: str | None = None
    """Model folder or .safetensors file whose matching weights a new run starts with, relative to the config."""
    licence: Annotated[str, Field(min_length=1)] | None = None
    """Text file with the licence that the trained weights are given under, relative to the config; it becomes LICENSE in the
    model folder and all that is made of it. null writes none."""
    early_stopping: EarlyStoppingSection = EarlyStoppingSection()
    workers: Annotated[int, Field(ge=0, le=64)] | None = None
    """Threads that make the next batches meanwhile; 0 makes each when it is asked for. null is 0 on a CPU, whose cores the step
    keeps busy, and up to 4 on a GPU. The batches are the same."""
    save_minutes: Positive = 5.0
    """The state is saved at least this often, besides at the end of each epoch."""
