"""The terms losses are made of; each gives sums that add over samples, and a value of the total."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from medseg.training.distances import signed_distances
from medseg.training.targets import Answer

_SMOOTH = 1e-5  # added to numerator and denominator: a class absent and predicted absent gives 1 (no loss)


class Term(Protocol):
    """One term."""

    @property
    def size(self) -> int:
        """Number of its sums."""

    @property
    def needs_whole_batch(self) -> bool:
        """As in ``Loss``."""

    def sums(self, answer: Answer) -> Tensor:
        """(size,) sums over the samples."""

    def value(self, sums: Tensor) -> Tensor:
        """Scalar of the total."""


class OverlapTerm:
    """1 minus a soft overlap of prediction P and truth T with intersection I, per class.

    - dice: 2 I / (P + T)
    - jaccard: I / (P + T - I)
    - tversky: I / (I + a (P - I) + b (T - I)), a for false positives, b for false negatives
    - generalised_dice: 2 sum(w I) / sum(w (P + T)) over the classes, w = 1 / T^2; one number for all

    All but the last are averaged over the classes (and, without ``over_batch``, the samples) that are known.

    Args:
        kind: one of the four.
        count: R foreground classes or regions.
        over_batch: I, P and T are summed over the samples first; else each sample has its own overlap.
        weights: (R + 1,) of background and classes in the mean; None for equal ones.
        false_positive_weight: Tversky's a.
        false_negative_weight: Tversky's b.
    """

    def __init__(
        self,
        kind: str,
        count: int,
        *,
        over_batch: bool,
        weights: Sequence[float] | None = None,
        false_positive_weight: float = 0.3,
        false_negative_weight: float = 0.7,
    ) -> None:
        self._kind, self._count, self._over_batch = kind, count, over_batch
        self._weights = None if weights is None else tuple(weights[1:])
        self._false_positive, self._false_negative = false_positive_weight, false_negative_weight

    @property
    def size(self) -> int:
        """4 R over the batch, else 2."""
        return 4 * self._count if self._over_batch else 2

    @property
    def needs_whole_batch(self) -> bool:
        """A ratio of sums over samples does, a sum of ratios does not."""
        return self._over_batch

    def sums(self, answer: Answer) -> Tensor:
        """Over the batch: I, P, T and the number of samples known, each (R,). Else the overlaps' sum and their number."""
        truth, known = answer.truth, answer.known
        predicted = answer.probabilities * answer.labelled
        if known is not None:
            mask = known.view(*known.shape, *([1] * (truth.ndim - 2)))
            predicted, truth = predicted * mask, truth & mask
        truth = truth & answer.labelled
        axes = list(range(2, truth.ndim))
        known = truth.new_ones(truth.shape[:2]) if known is None else known
        number = known.to(predicted.dtype)
        if self._over_batch:
            axes = [0, *axes]
            overlap = (predicted * truth).sum(axes)
            return torch.cat((overlap, predicted.sum(axes), truth.sum(axes).to(overlap.dtype), number.sum(0)))
        overlap, total, target = (predicted * truth).sum(axes), predicted.sum(axes), truth.sum(axes).to(predicted.dtype)
        scores, counted = self._scores(overlap, total, target, number)
        return torch.stack(((scores * counted).sum(), counted.sum()))

    def value(self, sums: Tensor) -> Tensor:
        """1 minus the mean overlap, in [0, 1]; 0 where nothing was known."""
        if self._over_batch:
            overlap, predicted, truth, number = sums.view(4, self._count)
            scores, counted = self._scores(overlap, predicted, truth, (number > 0).to(sums.dtype))
            sums = torch.stack(((scores * counted).sum(), counted.sum()))
        score, number = sums
        return torch.where(number > 0, 1 - score / torch.where(number > 0, number, 1), 0)

    def _scores(self, overlap: Tensor, predicted: Tensor, truth: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Overlaps and what each counts in the mean, (..., R), or (..., 1) for generalised Dice."""
        if self._weights is not None:
            number = number * number.new_tensor(self._weights)
        if self._kind == "generalised_dice":
            weights = _inverse_squares(truth, number)
            numerator = 2 * (weights * overlap).sum(-1, keepdim=True)
            denominator = (weights * (predicted + truth)).sum(-1, keepdim=True)
            return _share(numerator, denominator), (number.sum(-1, keepdim=True) > 0).to(overlap.dtype)
        if self._kind == "dice":
            return _share(2 * overlap, predicted + truth), number
        if self._kind == "jaccard":
            return _share(overlap, predicted + truth - overlap), number
        wrong = self._false_positive * (predicted - overlap) + self._false_negative * (truth - overlap)
        return _share(overlap, overlap + wrong), number


def _share(numerator: Tensor, denominator: Tensor) -> Tensor:
    return (numerator + _SMOOTH) / (denominator + _SMOOTH).clamp_min(1e-8)


def _inverse_squares(truth: Tensor, number: Tensor) -> Tensor:
    """1 / T^2 scaled so that the largest is 1; a class without voxels weighs as much as the smallest one with any."""
    # 1 / 0 would drown every other class; with no voxels at all, all classes weigh the same.
    smallest = torch.where((truth > 0) & (number > 0), truth, math.inf).amin(-1, keepdim=True)
    smallest = torch.where(torch.isfinite(smallest), smallest, 1)
    return number * (smallest / torch.where(truth > 0, truth, smallest)) ** 2


class VoxelTerm:
    """A mean over voxels of their cross-entropy (regions: binary cross-entropy).

    - ce: as it is
    - focal: times (1 - p)^gamma, p the probability of the truth
    - topk: only over the ``share`` of each sample's labelled voxels with the highest loss

    Args:
        kind: one of the three.
        weights: (R + 1,) of background and classes; the mean is a weighted one.
        smoothing: share of the target that is spread over all classes.
        gamma: focal's exponent.
        share: top-k's.
    """

    def __init__(
        self,
        kind: str,
        *,
        weights: Sequence[float] | None = None,
        smoothing: float = 0.0,
        gamma: float = 2.0,
        share: float = 0.1,
    ) -> None:
        self._kind, self._weights, self._smoothing = kind, weights, smoothing
        self._gamma, self._share = gamma, share

    @property
    def size(self) -> int:
        """2: the sum and what was counted."""
        return 2

    @property
    def needs_whole_batch(self) -> bool:
        """No."""
        return False

    def sums(self, answer: Answer) -> Tensor:
        """Sum of the losses and of their weights."""
        if self._kind == "ce" and self._weights is None and not self._smoothing:
            total, count = answer.voxel_loss_sum()
            return torch.stack((total, count.to(total.dtype)))
        weights = None if self._weights is None else answer.probabilities.new_tensor(self._weights)
        losses, counted = answer.voxel_losses(weights, self._smoothing)
        if self._kind == "focal":
            # p from the loss itself: exp(-loss), which smoothing must not touch.
            plain = answer.voxel_losses(None, 0.0)[0] if self._smoothing else losses
            losses = (1 - torch.exp(-plain)).clamp_min(0) ** self._gamma * losses
        if self._kind == "topk":
            losses, counted = _hardest(losses, counted, self._share)
        return torch.stack(((losses * counted).sum(), counted.sum()))

    def value(self, sums: Tensor) -> Tensor:
        """The mean; 0 where nothing was labelled."""
        return _mean(sums)


def _mean(sums: Tensor) -> Tensor:
    return sums[0] / torch.where(sums[1] > 0, sums[1], 1)


def _hardest(losses: Tensor, weights: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Each sample's hardest losses, weighted, (B, n), and 1 where they are among the ``share`` of labelled ones."""
    flat = (losses * weights).flatten(1)
    labelled = (weights > 0).flatten(1).sum(dim=1, keepdim=True)
    wanted = (labelled * share).ceil()
    hardest = flat.topk(math.ceil(flat.shape[1] * share), dim=1).values
    return hardest, (torch.arange(hardest.shape[1], device=flat.device) < wanted).to(flat.dtype)


class BoundaryTerm:
    """Mean of probability times signed distance to the true surface (Kervadec et al. 2019, arXiv:1812.07032).

    Distances are negative inside and in units of the patch's longest side, so that the term does not grow with the patch.
    A class that a patch does not hold has no surface, so it adds nothing. The term has no sense of its own far from a
    good answer; add it to an overlap.

    Args:
        weights: (R + 1,) of background and classes in the mean.
        spacing: voxel size per axis, in any unit; None for cubes.
    """

    def __init__(self, *, weights: Sequence[float] | None = None, spacing: Sequence[float] | None = None) -> None:
        self._weights, self._spacing = weights, spacing

    @property
    def size(self) -> int:
        """2."""
        return 2

    @property
    def needs_whole_batch(self) -> bool:
        """No."""
        return False

    def sums(self, answer: Answer) -> Tensor:
        """Sum of probability times distance, and of what it counts."""
        probabilities, rank = answer.probabilities, answer.probabilities.ndim - 2
        spacing = tuple(self._spacing[:rank]) if self._spacing is not None else (1.0,) * rank
        distances = signed_distances(answer.truth, spacing).to(probabilities.dtype)
        longest = max(size * step for size, step in zip(probabilities.shape[2:], spacing, strict=True))
        counted = answer.labelled.to(probabilities.dtype)
        axes = [1] * rank
        if answer.known is not None:
            counted = counted * answer.known.view(*answer.known.shape, *axes)
        if self._weights is not None:
            counted = counted * probabilities.new_tensor(self._weights[1:]).view(1, -1, *axes)
        counted = counted.expand_as(probabilities)
        return torch.stack(((probabilities * distances / longest * counted).sum(), counted.sum()))

    def value(self, sums: Tensor) -> Tensor:
        """The mean, in [-1, 1]."""
        return _mean(sums)
