"""What one step is trained on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Patches of one step.

    Attributes:
        images: (B, C, X, Y, Z) float32, normalised; no Z in 2D.
        classes: (B, X, Y, Z) uint8 class indices; 255 where nobody labelled the voxel.
        case_ids: where they come from.
        known: (B, K) bool: which classes the sample's case was labelled for; None where every case has all of them.
    """

    images: Tensor
    classes: Tensor
    case_ids: tuple[str, ...]
    known: Tensor | None = None
