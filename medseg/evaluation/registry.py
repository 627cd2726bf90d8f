"""The metrics that are reported. A new one is a function of a :class:`MaskPair` and a line in ``METRICS``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from medseg.evaluation import overlap, surface
from medseg.evaluation.pair import MaskPair

Worst = Literal["zero", "diagonal"] | None


@dataclass(frozen=True)
class Metric:
    """One column of the scores.

    Attributes:
        name: column name, ending in its unit where it has one.
        compute: its value for one class of one case; NaN where it is undefined.
        better: which way is better; None for a signed or purely descriptive value.
        worst: the value imputed where it is undefined although one of the two masks has voxels: 0, the image's diagonal
            in mm, or none where no worst exists.
        definition: one sentence for reports.
    """

    name: str
    compute: Callable[[MaskPair], float]
    better: Literal["higher", "lower"] | None
    worst: Worst
    definition: str

    def worst_value(self, diagonal_mm: float) -> float:
        """The number to impute in an image of this diagonal, NaN if there is none."""
        return {"zero": 0.0, "diagonal": diagonal_mm}.get(self.worst or "", math.nan)


METRICS: tuple[Metric, ...] = (
    Metric("dice", lambda p: overlap.dice(p.counts), "higher", "zero", "2TP / (2TP + FP + FN) over voxels"),
    Metric("iou", lambda p: overlap.iou(p.counts), "higher", "zero", "TP / (TP + FP + FN) over voxels"),
    Metric("precision", lambda p: overlap.precision(p.counts), "higher", "zero", "TP / (TP + FP) over voxels"),
    Metric("recall", lambda p: overlap.recall(p.counts), "higher", "zero", "TP / (TP + FN) over voxels"),
    Metric(
        "nsd",
        lambda p: surface.normalised_surface_dice(p.distances, tolerance_mm=p.tolerance_mm),
        "higher",
        "zero",
        "share of both masks' boundary voxels within the class's tolerance of the other boundary (<= tolerance + 1e-4 mm)",
    ),
    Metric(
        "hd95_mm",
        lambda p: surface.hausdorff_percentile(p.distances, percent=95.0),
        "lower",
        "diagonal",
        "larger of the two directed 95th percentiles of boundary distances, linear interpolation, unweighted",
    ),
    Metric(
        "hd_mm",
        lambda p: surface.hausdorff(p.distances),
        "lower",
        "diagonal",
        "largest distance from a boundary voxel to the other boundary, either direction",
    ),
    Metric(
        "assd_mm",
        lambda p: surface.average_symmetric(p.distances),
        "lower",
        "diagonal",
        "mean distance to the other boundary over the boundary voxels of both masks together (pooled, not MASD)",
    ),
    Metric(
        "volume_prediction_ml",
        lambda p: overlap.volume_ml(p.counts.prediction, p.voxel_volume_mm3),
        None,
        None,
        "predicted voxels times voxel volume",
    ),
    Metric(
        "volume_reference_ml",
        lambda p: overlap.volume_ml(p.counts.reference, p.voxel_volume_mm3),
        None,
        None,
        "reference voxels times voxel volume",
    ),
    Metric(
        "volume_difference_ml",
        lambda p: overlap.volume_difference_ml(p.counts, p.voxel_volume_mm3),
        None,
        None,
        "predicted minus reference volume",
    ),
    Metric(
        "volume_difference_percent",
        lambda p: overlap.volume_difference_percent(p.counts),
        None,
        None,
        "predicted minus reference volume, in percent of the reference's",
    ),
)


def metric_names() -> tuple[str, ...]:
    """Names in the order of the tables' columns."""
    return tuple(metric.name for metric in METRICS)
