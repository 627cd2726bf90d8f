"""The ``train`` section and its parts."""

from __future__ import annotations

from typing import Annotated, Literal

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
