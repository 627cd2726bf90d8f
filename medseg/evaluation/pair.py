"""One class of one case: its two masks, and what several metrics share, each computed once and only if asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from medseg.evaluation.centreline import CentrelineCounts, count_centrelines
from medseg.evaluation.instances import Instances, find_instances
from medseg.evaluation.masks import ClassMask
from medseg.evaluation.overlap import BoolArray, OverlapCounts, count_overlap
from medseg.evaluation.reliability import ProbabilityMap, Reliability, whole_image, within_masks
from medseg.evaluation.surface import SurfaceDistances, mask_distances
from medseg.evaluation.surfels import SurfelDistances, surfel_distances

Situation = Literal["present", "missed", "spurious", "both_empty"]


class MaskPair:
    """Prediction and reference of one class on one grid.

    Args:
        prediction, reference: masks of the same shape; may be cropped, as long as no foreground is cut off. The arrays'
            borders count as outside.
        spacing_mm: voxel size per axis of the arrays.
        tolerance_mm: NSD's.
        voxel_volume_mm3: of one voxel; the product of ``spacing_mm`` where not given (a squeezed axis has a size too).
        diagonal_mm: largest distance between two voxel centres of the whole image, the worst a distance can be; from the
            arrays' shape where not given.
        counts: of the voxels, over the whole image; counted in the arrays where not given.
        probability: of the class, where there is a map of it.
    """

    def __init__(
        self,
        prediction: BoolArray | ClassMask,
        reference: BoolArray | ClassMask,
        *,
        spacing_mm: Sequence[float],
        tolerance_mm: float = 1.0,
        voxel_volume_mm3: float | None = None,
        diagonal_mm: float | None = None,
        counts: OverlapCounts | None = None,
        probability: ProbabilityMap | None = None,
    ) -> None:
        if prediction.shape != reference.shape or len(spacing_mm) != prediction.ndim:
            raise ValueError(
                f"masks of shapes {prediction.shape} and {reference.shape} with {len(spacing_mm)} spacings, "
                "expected one shape and a spacing per axis"
            )
        self._prediction, self._reference = (
            mask if isinstance(mask, ClassMask) else ClassMask(mask) for mask in (prediction, reference)
        )
        self.spacing_mm = tuple(float(size) for size in spacing_mm)
        self.tolerance_mm = tolerance_mm
        self.voxel_volume_mm3 = math.prod(self.spacing_mm) if voxel_volume_mm3 is None else voxel_volume_mm3
        self.diagonal_mm = image_diagonal_mm(prediction.shape, self.spacing_mm) if diagonal_mm is None else diagonal_mm
        self.probability = probability
        if counts is not None:
            self.counts = counts

    @property
    def prediction(self) -> BoolArray:
        """The predicted mask."""
        return self._prediction.array

    @property
    def reference(self) -> BoolArray:
        """The true mask."""
        return self._reference.array

    @cached_property
    def counts(self) -> OverlapCounts:
        """Voxels in both, in one, in the other, in none."""
        return count_overlap(self.prediction, self.reference)

    @cached_property
    def distances(self) -> SurfaceDistances:
        """Distances between boundary voxels in both directions, mm."""
        return mask_distances(self._prediction, self._reference, spacing_mm=self.spacing_mm)

    @cached_property
    def surfels(self) -> SurfelDistances:
        """Distances between surface elements in both directions, mm, with the elements' areas."""
        return surfel_distances(self._prediction, self._reference, spacing_mm=self.spacing_mm)

    @cached_property
    def centrelines(self) -> CentrelineCounts:
        """Voxels of both skeletons, and how many lie in the other mask."""
        return count_centrelines(self.prediction, self.reference)

    @cached_property
    def instances(self) -> Instances:
        """The lesions of both masks."""
        own = None if self.probability is None else self.probability.cropped
        return find_instances(self.prediction, self.reference, probability=own)

    @cached_property
    def reliability(self) -> Reliability | None:
        """Promised and kept probability over the whole image; None without a probability map."""
        return None if self.probability is None else whole_image(self.probability, self.reference)

    @cached_property
    def reliability_within(self) -> Reliability | None:
        """The same over the voxels of the two masks."""
        return None if self.probability is None else within_masks(self.probability, self.prediction, self.reference)

    @property
    def situation(self) -> Situation:
        """Which of the masks has any voxel: both, the reference alone (missed), the prediction alone (spurious), none."""
        if self.counts.reference:
            return "present" if self.counts.prediction else "missed"
        return "spurious" if self.counts.prediction else "both_empty"


def image_diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Largest distance between two voxel centres of an image, in mm; 0 for a single voxel."""
    return float(np.linalg.norm([(count - 1) * size for count, size in zip(shape, spacing_mm, strict=True)]))
