"""One class of one case: its two masks, and what several metrics share, each computed once and only if asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from medseg.evaluation.overlap import BoolArray, OverlapCounts, count_overlap
from medseg.evaluation.surface import SurfaceDistances, surface_distances

Situation = Literal["present", "missed", "spurious", "both_empty"]


class MaskPair:
    """Prediction and reference of one class on one grid.

    Args:
        prediction, reference: bool masks of the same shape; may be cropped, as long as no foreground is cut off. The
            arrays' borders count as outside.
        spacing_mm: voxel size per axis of the arrays.
        tolerance_mm: NSD's.
        voxel_volume_mm3: of one voxel; the product of ``spacing_mm`` where not given (a squeezed axis has a size too).
        diagonal_mm: largest distance between two voxel centres of the whole image, the worst a distance can be; from the
            arrays' shape where not given.
    """

    def __init__(
        self,
        prediction: BoolArray,
        reference: BoolArray,
        *,
        spacing_mm: Sequence[float],
        tolerance_mm: float = 1.0,
        voxel_volume_mm3: float | None = None,
        diagonal_mm: float | None = None,
    ) -> None:
        if prediction.shape != reference.shape or len(spacing_mm) != prediction.ndim:
            raise ValueError(
                f"masks of shapes {prediction.shape} and {reference.shape} with {len(spacing_mm)} spacings, "
                "expected one shape and a spacing per axis"
            )
        self.prediction, self.reference = prediction, reference
        self.spacing_mm = tuple(float(size) for size in spacing_mm)
        self.tolerance_mm = tolerance_mm
        self.voxel_volume_mm3 = math.prod(self.spacing_mm) if voxel_volume_mm3 is None else voxel_volume_mm3
        self.diagonal_mm = image_diagonal_mm(prediction.shape, self.spacing_mm) if diagonal_mm is None else diagonal_mm

    @cached_property
    def counts(self) -> OverlapCounts:
        """Voxels in both, in one, in the other."""
        return count_overlap(self.prediction, self.reference)

    @cached_property
    def distances(self) -> SurfaceDistances:
        """Surface distances in both directions, mm."""
        return surface_distances(self.prediction, self.reference, spacing_mm=self.spacing_mm)

    @property
    def situation(self) -> Situation:
        """Which of the masks has any voxel: both, the reference alone (missed), the prediction alone (spurious), none."""
        if self.counts.reference:
            return "present" if self.counts.prediction else "missed"
        return "spurious" if self.counts.prediction else "both_empty"


def image_diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Largest distance between two voxel centres of an image, in mm; 0 for a single voxel."""
    return float(np.linalg.norm([(count - 1) * size for count, size in zip(shape, spacing_mm, strict=True)]))
