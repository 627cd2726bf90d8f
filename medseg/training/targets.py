"""What a loss compares: the network's logits of one resolution beside what is known of the truth there.

Two kinds of answer exist. Classes exclude each other, so their probabilities are a softmax (``ClassAnswer``). Regions may
overlap (a tumour and its core), so each has a sigmoid of its own (``RegionAnswer``). Both offer the same few quantities,
so that no loss needs to know which it has.
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = 255
"""Class index of voxels that nobody labelled: they take no part in any loss."""


class Answer(Protocol):
    """Logits beside the truth; B samples, R foreground classes or regions."""

    @property
    def probabilities(self) -> Tensor:
        """(B, R, ...) in [0, 1], background left out."""

    @property
    def truth(self) -> Tensor:
        """(B, R, ...) bool."""

    @property
    def labelled(self) -> Tensor:
        """(B, 1, ...) bool: somebody labelled the voxel."""

    @property
    def known(self) -> Tensor | None:
        """(B, R) bool: the sample's case was labelled for it; None where all were."""

    def voxel_losses(self, weights: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every voxel and what it weighs.

        Args:
            weights: (R + 1,) of background and each class or region; None weighs all the same.
            smoothing: share of the target that is spread evenly, in [0, 1).

        Returns:
            Unweighted losses and weights, both (B, ...); the weight is 0 where nothing is known and depends on labels
            alone.
        """

    def voxel_loss_sum(self) -> tuple[Tensor, Tensor]:
        """Sum of the unweighted, unsmoothed voxel losses, and their number."""


class ClassAnswer:
    """Classes of which every voxel has exactly one.

    In a sample that was labelled for some classes only, a voxel called background is background *or* one of the classes
    nobody looked for. Their probabilities are therefore added up before they are compared (the marginal loss of Shi et al.
    2021, doi:10.1016/j.media.2021.101979).

    Args:
        logits: (B, K, ...) float32 or float64, background first.
        classes: (B, ...) class indices; 255 where nobody labelled the voxel.
        known: (B, K) bool, or None where every case was labelled for every class. Column 0 is not looked at. A voxel of a
            class its sample is not known for counts as not labelled.
    """

    def __init__(self, logits: Tensor, classes: Tensor, known: Tensor | None) -> None:
        self._known: Tensor | None = None
        if known is not None:
            self._known = known.clone()
            self._known[:, 0] = True
            logits = _with_unknown_in_background(logits, self._known)
            classes = _unknown_ignored(classes, self._known)
        self._logits, self._target = logits, classes

    @property
    def known(self) -> Tensor | None:
        """(B, K - 1) bool."""
        return None if self._known is None else self._known[:, 1:]

    @cached_property
    def probabilities(self) -> Tensor:
        """(B, K - 1, ...)."""
        return torch.softmax(self._logits, dim=1)[:, 1:]

    @cached_property
    def truth(self) -> Tensor:
        """(B, K - 1, ...) bool."""
        count = self._logits.shape[1]
        indices = torch.arange(1, count, device=self._logits.device).view(1, -1, *([1] * (self._logits.ndim - 2)))
        return self._target.unsqueeze(1) == indices

    @cached_property
    def labelled(self) -> Tensor:
        """(B, 1, ...) bool."""
        return self._target.unsqueeze(1) != IGNORED

    def voxel_loss_sum(self) -> tuple[Tensor, Tensor]:
        """Sum and number of the labelled voxels' cross-entropies."""
        total = functional.cross_entropy(self._logits, self._target.long(), ignore_index=IGNORED, reduction="sum")
        return total, self.labelled.sum()

    def voxel_losses(self, weights: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
        """As in ``Answer``; a smoothed target is spread over the classes the sample is known for."""
        target = self._target.long()
        losses = functional.cross_entropy(self._logits, target, ignore_index=IGNORED, reduction="none")
        if smoothing:
            losses = (1 - smoothing) * losses + smoothing * self._evenly_spread_loss()
        labelled = self.labelled[:, 0]
        if weights is None:
            return losses, labelled.to(losses.dtype)
        return losses, weights[target.masked_fill(~labelled, 0)] * labelled

    def _evenly_spread_loss(self) -> Tensor:
        losses = -torch.log_softmax(self._logits, dim=1)
        if self._known is None:
            return losses.mean(dim=1)
        known = self._known.view(*self._known.shape, *([1] * (losses.ndim - 2)))
        return torch.where(known, losses, 0).sum(dim=1) / known.sum(dim=1)


def _with_unknown_in_background(logits: Tensor, known: Tensor) -> Tensor:
    known = known.view(*known.shape, *([1] * (logits.ndim - 2)))
    # Not -inf: the gradient of a sum over nothing but infinities is NaN.
    nothing = torch.finfo(logits.dtype).min / 4
    elsewhere = ~known
    elsewhere[:, 0] = True
    background = torch.logsumexp(torch.where(elsewhere, logits, nothing), dim=1, keepdim=True)
    return torch.cat((background, torch.where(known, logits, nothing)[:, 1:]), dim=1)


def _unknown_ignored(classes: Tensor, known: Tensor) -> Tensor:
    lookup = functional.pad(known, (0, IGNORED + 1 - known.shape[1]), value=True)
    flat = classes.reshape(len(classes), -1).long()
    return classes.masked_fill(~lookup.gather(1, flat).view(classes.shape), IGNORED)


class RegionAnswer:
    """Regions that may overlap: a sigmoid each.

    Args:
        logits: (B, R, ...) float32 or float64, one channel a region.
        classes: (B, ...) indices of combinations of regions, as labels with overlapping values are stored; 0 is no region
            and 255 a voxel nobody labelled.
        known: (B, R + 1) bool or None; column 0 (background) is not looked at.
        members: (R, A) bool: which combinations a region is part of.
    """

    def __init__(self, logits: Tensor, classes: Tensor, known: Tensor | None, *, members: Tensor) -> None:
        self._logits, self._classes, self._members = logits, classes, members.to(logits.device)
        self._known = known

    @property
    def known(self) -> Tensor | None:
        """(B, R) bool."""
        return None if self._known is None else self._known[:, 1:]

    @cached_property
    def probabilities(self) -> Tensor:
        """(B, R, ...)."""
        return torch.sigmoid(self._logits)

    @cached_property
    def truth(self) -> Tensor:
        """(B, R, ...) bool."""
        lookup = functional.pad(self._members, (0, IGNORED + 1 - self._members.shape[1]), value=False)
        return lookup[:, self._classes.long()].movedim(0, 1)

    @cached_property
    def labelled(self) -> Tensor:
        """(B, 1, ...) bool."""
        return self._classes.unsqueeze(1) != IGNORED

    def voxel_loss_sum(self) -> tuple[Tensor, Tensor]:
        """Sum and number of binary cross-entropies over labelled voxels and known regions."""
        losses, weights = self.voxel_losses(None, 0.0)
        return (losses * weights).sum(), weights.sum()

    def voxel_losses(self, weights: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
        """As in ``Answer``, but (B, R, ...): a binary cross-entropy per region; the background's weight is not used."""
        target = self.truth.to(self._logits.dtype)
        if smoothing:
            target = target * (1 - smoothing) + smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(self._logits, target, reduction="none")
        counted = self.labelled.expand_as(losses).to(losses.dtype)
        axes = [1] * (losses.ndim - 2)
        if self.known is not None:
            counted = counted * self.known.view(*self.known.shape, *axes)
        if weights is not None:
            counted = counted * weights[1:].view(1, -1, *axes)
        return losses, counted
