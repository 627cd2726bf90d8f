"""Losses of segmentation logits against class maps. A new one is a function and a branch of ``build_loss``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from medseg.config.train_sections import LossSection

IGNORED = 255
"""Class index of voxels that nobody labelled: they take no part in any loss."""

Loss = Callable[[Tensor, Tensor], Tensor]


def soft_dice_loss(logits: Tensor, classes: Tensor, *, batch_dice: bool, smooth: float = 1e-5) -> Tensor:
    """1 minus the mean soft Dice of the foreground classes.

    Args:
        logits: (B, K, ...) with K >= 2; float32 (half precision overflows in the sums).
        classes: (B, ...) uint8 or int64 class indices; 255 is left out.
        batch_dice: sums run over the batch too, one Dice per class; else per sample and class.
        smooth: added to numerator and denominator, so an absent class predicted absent gives 1 (loss 0).

    Returns:
        Scalar in [0, 1].
    """
    probabilities = torch.softmax(logits, dim=1)[:, 1:]
    indices = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *([1] * (logits.ndim - 2)))
    target = classes.unsqueeze(1)
    truth = target == indices
    axes = [0, *range(2, logits.ndim)] if batch_dice else list(range(2, logits.ndim))
    predicted = probabilities * (target != IGNORED)
    overlap = (predicted * truth).sum(axes)
    total = predicted.sum(axes) + truth.sum(axes)
    dice = (2 * overlap + smooth) / (total + smooth).clamp_min(1e-8)
    return 1 - dice.mean()


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy over labelled voxels; 0 where none is labelled. Shapes as in ``soft_dice_loss``."""
    target = classes.long()
    total = functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
    return total / (target != IGNORED).sum().clamp_min(1)


def build_loss(section: LossSection, *, batch_dice: bool) -> Loss:
    """The loss a config names, on one resolution: (logits, classes) to a scalar."""
    use_batch = batch_dice if section.batch_dice is None else section.batch_dice
    dice_weight = section.dice_weight if section.kind != "ce" else 0.0
    ce_weight = section.ce_weight if section.kind != "dice" else 0.0

    def loss(logits: Tensor, classes: Tensor) -> Tensor:
        logits = logits.float()
        total = logits.new_zeros(())
        if dice_weight:
            total = total + dice_weight * soft_dice_loss(logits, classes, batch_dice=use_batch)
        if ce_weight:
            total = total + ce_weight * cross_entropy(logits, classes)
        return total

    return loss


def supervised_loss(outputs: Tensor | Sequence[Tensor], classes: Tensor, loss: Loss) -> Tensor:
    """Loss over all heads: weights 1, 1/2, 1/4, ..., the coarsest head 0 where there are several, normalised to 1.

    Labels are cut down to each head's grid by nearest-exact, as nnU-Net does.
    """
    if isinstance(outputs, Tensor):
        return loss(outputs, classes)
    weights = [2.0**-i for i in range(len(outputs))]
    if len(weights) > 1:
        weights[-1] = 0.0
    total = outputs[0].new_zeros((), dtype=torch.float32)
    for weight, logits in zip(weights, outputs, strict=True):
        if weight:
            total = total + weight / sum(weights) * loss(logits, _shrunk(classes, logits.shape[2:]))
    return total


def _shrunk(classes: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(classes.shape[1:]) == tuple(size):
        return classes
    return functional.interpolate(classes.unsqueeze(1).float(), size=tuple(size), mode="nearest-exact")[:, 0].to(
        classes.dtype
    )
