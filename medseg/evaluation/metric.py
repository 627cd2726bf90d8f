"""What a metric is, and those that come in families: with a number of one's own in their name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from medseg.evaluation import bands, overlap, surface, surfels
from medseg.evaluation.confusion import Confusion
from medseg.evaluation.pair import MaskPair

Worst = Literal["zero", "diagonal"] | None
_SPANS = {"zero": (0.0, 1.0), "diagonal": (0.0, math.inf)}


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
        span: what no value can leave; None where ``worst`` tells (0 to 1 for a share, 0 and more for a distance), else nothing.
    """

    name: str
    compute: Callable[[MaskPair], float]
    better: Literal["higher", "lower"] | None
    worst: Worst
    definition: str
    span: tuple[float, float] | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """What no value, and so no mean, can leave."""
        return self.span or _SPANS.get(self.worst or "", (-math.inf, math.inf))

    def worst_value(self, diagonal_mm: float) -> float:
        """The number to impute in an image of this diagonal, NaN if there is none."""
        return {"zero": 0.0, "diagonal": diagonal_mm}.get(self.worst or "", math.nan)


@dataclass(frozen=True)
class CaseMetric:
    """A number of a whole case, over all its classes.

    Attributes:
        name: as in the files.
        compute: its value; NaN where it is undefined.
        definition: one sentence for reports.
    """

    name: str
    compute: Callable[[Confusion], float]
    definition: str


def f_beta_metric(beta: float) -> Metric:
    """F-measure with this weight of recall, e.g. ``f0.5``."""
    definition = f"(1 + b²)TP / ((1 + b²)TP + b² FN + FP) over voxels, b = {beta:g}"
    return Metric(f"f{beta:g}", lambda p: overlap.f_beta(p.counts, beta=beta), "higher", "zero", definition)


def hausdorff_metric(percent: float) -> Metric:
    """HD at this percentile by boundary voxels, e.g. ``hd99_mm``."""
    return Metric(
        f"hd{percent:g}_mm",
        lambda p: surface.hausdorff_percentile(p.distances, percent=percent),
        "lower",
        "diagonal",
        f"larger of the two directed {percent:g}th percentiles of boundary distances, linear interpolation, unweighted",
    )


def hausdorff_surfel_metric(percent: float) -> Metric:
    """HD at this percentile by surface elements, e.g. ``hd99_surfel_mm``."""
    return Metric(
        f"hd{percent:g}_surfel_mm",
        lambda p: surfels.hausdorff_percentile(p.surfels, percent=percent),
        "lower",
        "diagonal",
        f"larger of the two directed distances within which {percent:g} % of a surface's area lie, surface elements",
    )


def nsd_metric(tolerance_mm: float) -> Metric:
    """NSD by boundary voxels at a tolerance of its own, e.g. ``nsd_2mm``."""
    return Metric(
        f"nsd_{tolerance_mm:g}mm",
        lambda p: surface.normalised_surface_dice(p.distances, tolerance_mm=tolerance_mm),
        "higher",
        "zero",
        f"NSD by boundary voxels at {tolerance_mm:g} mm (<= tolerance + 1e-4 mm), whatever the class's own tolerance",
    )


def nsd_surfel_metric(tolerance_mm: float) -> Metric:
    """NSD by surface elements at a tolerance of its own, e.g. ``nsd_surfel_2mm``."""
    return Metric(
        f"nsd_surfel_{tolerance_mm:g}mm",
        lambda p: surfels.surface_dice(p.surfels, tolerance_mm=tolerance_mm),
        "higher",
        "zero",
        f"NSD by area of surface elements at {tolerance_mm:g} mm (<= tolerance + 1e-4 mm), whatever the class's own tolerance",
    )


def boundary_iou_metric(distance_mm: float) -> Metric:
    """Boundary IoU with rims of this width, e.g. ``boundary_iou_3mm``."""
    return Metric(
        f"boundary_iou_{distance_mm:g}mm",
        lambda p: rim_iou(p, distance_mm),
        "higher",
        "zero",
        f"IoU of the masks' rims: voxels at most {distance_mm:g} mm from the outside, and all boundary voxels",
    )


def rim_iou(pair: MaskPair, distance_mm: float) -> float:
    """Boundary IoU of a pair; see :func:`~medseg.evaluation.bands.boundary_iou`."""
    return bands.boundary_iou(pair.prediction, pair.reference, spacing_mm=pair.spacing_mm, distance_mm=distance_mm)


_NUMBER = r"(\d+(?:\.\d+)?)"
FAMILIES: tuple[tuple[str, Callable[[float], Metric], float], ...] = (
    (rf"f{_NUMBER}", f_beta_metric, math.inf),
    (rf"hd{_NUMBER}_mm", hausdorff_metric, 100.0),
    (rf"hd{_NUMBER}_surfel_mm", hausdorff_surfel_metric, 100.0),
    (rf"nsd_{_NUMBER}mm", nsd_metric, math.inf),
    (rf"nsd_surfel_{_NUMBER}mm", nsd_surfel_metric, math.inf),
    (rf"boundary_iou_{_NUMBER}mm", boundary_iou_metric, math.inf),
)
