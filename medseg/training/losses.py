"""Losses of segmentation logits against class maps: sums that add over samples first, one value later.

A loss that is a ratio over the batch (Dice over all samples) is not the mean of its parts. So every loss here comes in two
steps: ``sums`` of a few samples, which may be added over micro-batches and processes, and ``value`` of the total. However a
batch is split, the value and its gradient stay the same. Definitions and sources: docs/losses.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from medseg.config.train_sections import LossSection
from medseg.errors import ConfigError
from medseg.training.loss_terms import BoundaryTerm, OverlapTerm, Term, VoxelTerm
from medseg.training.targets import IGNORED, Answer, ClassAnswer, RegionAnswer

__all__ = ["IGNORED", "Loss", "WeightedLoss", "build_loss", "supervised_loss", "supervised_sums", "supervised_value"]

_OVERLAP = {
    "dice_ce": "dice",
    "dice": "dice",
    "dice_focal": "dice",
    "dice_topk_ce": "dice",
    "tversky": "tversky",
    "jaccard": "jaccard",
    "generalised_dice": "generalised_dice",
    "boundary": "dice",
}
_VOXELS = {
    "dice_ce": "ce",
    "ce": "ce",
    "focal": "focal",
    "dice_focal": "focal",
    "topk_ce": "topk",
    "dice_topk_ce": "topk",
    "boundary": "ce",
}


class Loss(Protocol):
    """A loss of one resolution."""

    @property
    def needs_whole_batch(self) -> bool:
        """False where the value is linear in those sums that depend on the network, given those that depend on labels."""

    def sums(self, logits: Tensor, classes: Tensor, known: Tensor | None = None) -> Tensor:
        """Sums over samples, differentiable.

        Args:
            logits: (B, K, ...), or (B, R, ...) for regions; computed in float32 at least.
            classes: (B, ...) class indices; 255 where nobody labelled the voxel.
            known: (B, K) bool: classes the sample was labelled for, background first; None where it is all of them.

        Returns:
            (S,) float32 (float64 for float64 logits). Adding the sums of two batches gives those of both together.
        """

    def value(self, sums: Tensor) -> Tensor:
        """Scalar loss of all samples in (S,) ``sums``; 0 where none of them was labelled for anything."""


class WeightedLoss:
    """A weighted sum of terms; made by ``build_loss``."""

    def __init__(self, terms: Sequence[tuple[float, Term]], *, members: Tensor | None) -> None:
        self._terms, self._members = tuple(terms), members

    @property
    def needs_whole_batch(self) -> bool:
        """Whether one of the terms does."""
        return any(term.needs_whole_batch for _, term in self._terms)

    def sums(self, logits: Tensor, classes: Tensor, known: Tensor | None = None) -> Tensor:
        """The terms' sums, one after the other; shapes as in ``Loss``."""
        # Half precision overflows in the sums.
        logits = logits if logits.dtype == torch.float64 else logits.float()
        answer: Answer
        if self._members is None:
            answer = ClassAnswer(logits, classes, known)
        else:
            answer = RegionAnswer(logits, classes, known, members=self._members)
        return torch.cat([term.sums(answer) for _, term in self._terms])

    def value(self, sums: Tensor) -> Tensor:
        """Scalar."""
        total = sums.new_zeros(())
        parts = torch.split(sums, [term.size for _, term in self._terms])
        for (weight, term), part in zip(self._terms, parts, strict=True):
            total = total + weight * term.value(part)
        return total


def build_loss(
    section: LossSection,
    *,
    class_count: int,
    batch_dice: bool,
    regions: Sequence[Sequence[bool]] | None = None,
    class_names: Sequence[str] = (),
    spacing: Sequence[float] | None = None,
) -> Loss:
    """The loss a config names.

    Args:
        section: the config's ``train.loss``.
        class_count: K, the labels with background.
        batch_dice: the plan's choice, where the section leaves it open.
        regions: for labels that overlap, of each of the K - 1 regions which stored class indices belong to it (R, A);
            the network then has R outputs. None for classes that exclude each other.
        class_names: background first, for ``class_weights``.
        spacing: voxel size along the axes that the network sees, for distances; None takes voxels as cubes.

    Raises:
        ConfigError: ``class_weights`` names a class that is not there.
    """
    use_batch = batch_dice if section.batch_dice is None else section.batch_dice
    weights = _class_weights(section.class_weights, class_names, class_count)
    terms: list[tuple[float, Term]] = []
    if (overlap := _OVERLAP.get(section.kind)) and section.dice_weight:
        term = OverlapTerm(
            overlap,
            class_count - 1,
            over_batch=use_batch,
            weights=weights,
            false_positive_weight=section.tversky_false_positive,
            false_negative_weight=section.tversky_false_negative,
        )
        terms.append((section.dice_weight, term))
    if (voxels := _VOXELS.get(section.kind)) and section.ce_weight:
        voxel_term = VoxelTerm(
            voxels,
            weights=weights,
            smoothing=section.label_smoothing,
            gamma=section.focal_gamma,
            share=section.topk_share,
        )
        terms.append((section.ce_weight, voxel_term))
    if section.kind == "boundary" and section.boundary_weight:
        terms.append((section.boundary_weight, BoundaryTerm(weights=weights, spacing=spacing)))
    members = None if regions is None else torch.tensor([list(row) for row in regions], dtype=torch.bool)
    return WeightedLoss(terms, members=members)


def _class_weights(
    given: Mapping[str, float] | None, class_names: Sequence[str], class_count: int
) -> tuple[float, ...] | None:
    if not given:
        return None
    strangers = [name for name in given if name not in class_names]
    if strangers:
        known = ", ".join(class_names)
        raise ConfigError(
            [f"train.loss.class_weights: names {', '.join(strangers)}, expected classes of the manifest ({known})"]
        )
    weights = tuple(float(given.get(name, 1.0)) for name in class_names)
    assert len(weights) == class_count
    return weights


def supervised_sums(outputs: Tensor | Sequence[Tensor], classes: Tensor, known: Tensor | None, loss: Loss) -> Tensor:
    """Sums of every head that counts: (heads, S), finest first.

    Labels are cut down to each head's grid by nearest-exact, as nnU-Net does. The coarsest of several heads is left out.

    Args:
        outputs: logits, or in training those of several resolutions, finest first.
        classes: (B, ...) on the finest grid.
        known: (B, K) bool or None.
        loss: of one resolution.
    """
    if isinstance(outputs, Tensor):
        outputs = (outputs,)
    counted = outputs[:-1] if len(outputs) > 1 else outputs
    return torch.stack([loss.sums(logits, _shrunk(classes, logits.shape[2:]), known) for logits in counted])


def supervised_value(sums: Tensor, loss: Loss) -> Tensor:
    """Scalar of (heads, S) sums: weights 1, 1/2, 1/4, ..., normalised to 1."""
    weights = [2.0**-i for i in range(len(sums))]
    total = sums.new_zeros(())
    for weight, row in zip(weights, sums, strict=True):
        total = total + weight / sum(weights) * loss.value(row)
    return total


def supervised_loss(
    outputs: Tensor | Sequence[Tensor], classes: Tensor, loss: Loss, known: Tensor | None = None
) -> Tensor:
    """Value of a batch that is not split; arguments as in ``supervised_sums``."""
    return supervised_value(supervised_sums(outputs, classes, known, loss), loss)


def _shrunk(classes: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(classes.shape[-len(size) :]) == tuple(size):
        return classes
    has_channels = classes.ndim == len(size) + 2  # pretraining's targets
    planes = classes if has_channels else classes.unsqueeze(1)
    shrunk = functional.interpolate(planes.float(), size=tuple(size), mode="nearest-exact").to(classes.dtype)
    return shrunk if has_channels else shrunk[:, 0]
