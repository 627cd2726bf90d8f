"""Sliding-window validation on whole prepared cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from medseg.inference.sliding_window import predict_scores
from medseg.preparation.plan import Plan
from medseg.preparation.store import StoredCase
from medseg.training.losses import IGNORED


def validation_dice(
    network: nn.Module,
    cases: Sequence[StoredCase],
    *,
    plan: Plan,
    overlap: float,
    device: torch.device,
    precision: torch.dtype | None,
) -> dict[str, float]:
    """Mean Dice per foreground class over whole cases, on the prepared grid and without mirrors.

    A case where neither the labels nor the prediction have the class does not count for it; a class no case has is left
    out. Voxels nobody labelled do not count.

    Args:
        network: in eval mode.
        cases: with labels; none gives an empty result.
        plan: of the prepared cases.
        overlap: of neighbouring windows.
        device: where the network is.
        precision: autocast type, None for float32.

    Returns:
        Class name to mean Dice in [0, 1].
    """
    scores_by_class: dict[str, list[float]] = {}
    for case in cases:
        image, labels = case.read_all()
        scores = predict_scores(
            image,
            network,
            patch_size_xyz=plan.patch_size_xyz,
            class_count=plan.class_count,
            overlap=overlap,
            planar=plan.dimensions == 2,
            device=device,
            precision=precision,
        )
        predicted = scores.argmax(axis=0)
        predicted[labels == IGNORED] = 0
        for index, name in enumerate(plan.labels):
            total = int(np.count_nonzero(labels == index)) + int(np.count_nonzero(predicted == index))
            if index > 0 and total > 0:
                overlap_voxels = int(np.count_nonzero((labels == index) & (predicted == index)))
                scores_by_class.setdefault(name, []).append(2 * overlap_voxels / total)
    return {name: float(np.mean(values)) for name, values in scores_by_class.items()}
