"""The metrics that are reported. A new one is a function of a :class:`MaskPair` and a line here.

``METRICS`` are cheap and always computed. The other groups cost more or are for some questions only; they, single metrics of
them, and members of the families (HD at another percentile, NSD at another tolerance ...) are chosen by name.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence

from medseg.errors import UsageError
from medseg.evaluation import bands, centreline, confusion, instances, overlap, reliability, surface, surfels
from medseg.evaluation.metric import (
    FAMILIES,
    CaseMetric,
    Metric,
    f_beta_metric,
    hausdorff_metric,
    hausdorff_surfel_metric,
    rim_iou,
)
from medseg.evaluation.reliability import Reliability

__all__ = [
    "CASE_METRICS",
    "GROUPS",
    "METRICS",
    "CaseMetric",
    "Metric",
    "choose_metrics",
    "known_metrics",
    "metric_names",
]


def _of(sums: Reliability | None, score: Callable[[Reliability], float]) -> float:
    return math.nan if sums is None else score(sums)


_SHARE = (0.0, 1.0)
_AMOUNT = (0.0, math.inf)

METRICS: tuple[Metric, ...] = (
    Metric("dice", lambda p: overlap.dice(p.counts), "higher", "zero", "2TP / (2TP + FP + FN) over voxels"),
    Metric("iou", lambda p: overlap.iou(p.counts), "higher", "zero", "TP / (TP + FP + FN) over voxels"),
    Metric("precision", lambda p: overlap.precision(p.counts), "higher", "zero", "TP / (TP + FP) over voxels"),
    Metric("recall", lambda p: overlap.recall(p.counts), "higher", "zero", "TP / (TP + FN) over voxels"),
    Metric(
        "specificity",
        lambda p: overlap.specificity(p.counts),
        "higher",
        None,
        "TN / (TN + FP) over all voxels of the image but the ignored",
        span=_SHARE,
    ),
    f_beta_metric(2.0),
    Metric(
        "mcc",
        lambda p: overlap.matthews(p.counts),
        "higher",
        "zero",
        "Matthews correlation of the two masks over all voxels of the image but the ignored",
        span=(-1.0, 1.0),
    ),
    Metric(
        "volume_similarity",
        lambda p: overlap.volume_similarity(p.counts),
        "higher",
        "zero",
        "1 - |P - R| / (P + R) of the masks' voxels, wherever they lie",
    ),
    Metric(
        "nsd",
        lambda p: surface.normalised_surface_dice(p.distances, tolerance_mm=p.tolerance_mm),
        "higher",
        "zero",
        "share of both masks' boundary voxels within the class's tolerance of the other boundary (<= tolerance + 1e-4 mm)",
    ),
    hausdorff_metric(95.0),
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
        "masd_mm",
        lambda p: surface.mean_average(p.distances),
        "lower",
        "diagonal",
        "mean of the two directed mean boundary distances (both masks weigh the same; not pooled, not ASSD)",
    ),
    Metric(
        "volume_prediction_ml",
        lambda p: overlap.volume_ml(p.counts.prediction, p.voxel_volume_mm3),
        None,
        None,
        "predicted voxels times voxel volume",
        span=_AMOUNT,
    ),
    Metric(
        "volume_reference_ml",
        lambda p: overlap.volume_ml(p.counts.reference, p.voxel_volume_mm3),
        None,
        None,
        "reference voxels times voxel volume",
        span=_AMOUNT,
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
        span=(-100.0, math.inf),
    ),
)


SURFACE_ELEMENTS: tuple[Metric, ...] = (
    Metric(
        "nsd_surfel",
        lambda p: surfels.surface_dice(p.surfels, tolerance_mm=p.tolerance_mm),
        "higher",
        "zero",
        "share of both masks' surface area within the class's tolerance of the other surface (<= tolerance + 1e-4 mm), "
        "surface elements; DeepMind's surface Dice",
    ),
    hausdorff_surfel_metric(95.0),
    Metric(
        "hd_surfel_mm",
        lambda p: surfels.hausdorff_percentile(p.surfels, percent=100.0),
        "lower",
        "diagonal",
        "largest distance from a surface element to the other surface, either direction",
    ),
    Metric(
        "assd_surfel_mm",
        lambda p: surfels.average_symmetric(p.surfels),
        "lower",
        "diagonal",
        "mean distance to the other surface over the area of both surfaces together, surface elements",
    ),
    Metric(
        "masd_surfel_mm",
        lambda p: surfels.mean_average(p.surfels),
        "lower",
        "diagonal",
        "mean of the two directed mean distances by area, surface elements",
    ),
)
POOLED: tuple[Metric, ...] = (
    Metric(
        "hd95_pooled_mm",
        lambda p: surface.hausdorff_percentile_pooled(p.distances, percent=95.0),
        "lower",
        "diagonal",
        "95th percentile of the boundary distances of both directions in one list, linear interpolation (medpy's hd95)",
    ),
)
CENTRELINE: tuple[Metric, ...] = (
    Metric(
        "cldice",
        lambda p: centreline.centreline_dice(p.centrelines),
        "higher",
        "zero",
        "harmonic mean of the shares of each mask's skeleton that lie in the other mask (clDice)",
    ),
)
BOUNDARY_IOU: tuple[Metric, ...] = (
    Metric(
        "boundary_iou",
        lambda p: rim_iou(p, bands.DIAGONAL_SHARE * p.diagonal_mm),
        "higher",
        "zero",
        "IoU of the masks' rims: voxels at most 2 % of the image's diagonal from the outside, and all boundary voxels",
    ),
)
INSTANCES: tuple[Metric, ...] = (
    Metric("lesions_prediction", lambda p: p.instances.sizes_prediction.size, None, None, "predicted lesions", _AMOUNT),
    Metric("lesions_reference", lambda p: p.instances.sizes_reference.size, None, None, "true lesions", _AMOUNT),
    Metric(
        "lesions_matched",
        lambda p: instances.true_positives(p.instances),
        None,
        None,
        "lesions matched at IoU > 0.5",
        span=_AMOUNT,
    ),
    Metric(
        "lesion_precision",
        lambda p: instances.precision(p.instances),
        "higher",
        "zero",
        "share of the predicted lesions that match a true one at IoU > 0.5",
    ),
    Metric(
        "lesion_recall",
        lambda p: instances.recall(p.instances),
        "higher",
        "zero",
        "share of the true lesions that match a predicted one at IoU > 0.5",
    ),
    Metric(
        "lesion_rq",
        lambda p: instances.recognition_quality(p.instances),
        "higher",
        "zero",
        "recognition quality: F1 score of the lesions at IoU > 0.5",
    ),
    Metric(
        "lesion_sq",
        lambda p: instances.segmentation_quality(p.instances),
        "higher",
        "zero",
        "segmentation quality: mean IoU of the lesions matched at IoU > 0.5",
    ),
    Metric(
        "lesion_pq",
        lambda p: instances.panoptic_quality(p.instances),
        "higher",
        "zero",
        "panoptic quality: lesion_sq times lesion_rq",
    ),
    Metric(
        "lesion_dice",
        lambda p: instances.lesion_dice(p.instances),
        "higher",
        "zero",
        "mean Dice over lesions: of those matched at IoU > 0.5, and 0 for each other one, predicted or true",
    ),
    Metric(
        "lesion_precision_any",
        lambda p: instances.precision_any(p.instances),
        "higher",
        "zero",
        "share of the predicted lesions with any voxel in the reference",
    ),
    Metric(
        "lesion_recall_any",
        lambda p: instances.recall_any(p.instances),
        "higher",
        "zero",
        "share of the true lesions with any voxel in the prediction",
    ),
    Metric(
        "lesion_f1_any",
        lambda p: instances.f1_any(p.instances),
        "higher",
        "zero",
        "F1 score of lesion_precision_any and lesion_recall_any",
    ),
)
CALIBRATION: tuple[Metric, ...] = (
    Metric(
        "ece",
        lambda p: _of(p.reliability, reliability.expected_calibration_error),
        "lower",
        None,
        "expected calibration error of the class against all others, 15 equal bins, over all voxels but the ignored",
        span=_SHARE,
    ),
    Metric(
        "ece_masks",
        lambda p: _of(p.reliability_within, reliability.expected_calibration_error),
        "lower",
        None,
        "the same over the voxels of the two masks",
        span=_SHARE,
    ),
    Metric(
        "brier",
        lambda p: _of(p.reliability, reliability.brier_score),
        "lower",
        None,
        "mean (probability - truth)² of the class over all voxels but the ignored",
        span=_SHARE,
    ),
    Metric(
        "brier_masks",
        lambda p: _of(p.reliability_within, reliability.brier_score),
        "lower",
        None,
        "the same over the voxels of the two masks",
        span=_SHARE,
    ),
)

GROUPS: dict[str, tuple[Metric, ...]] = {
    "default": METRICS,
    "surface_elements": SURFACE_ELEMENTS,
    "pooled": POOLED,
    "centreline": CENTRELINE,
    "boundary_iou": BOUNDARY_IOU,
    "instances": INSTANCES,
    "calibration": CALIBRATION,
}
"""What can be chosen together; ``all`` is every one of them."""

_FIXED = {metric.name: metric for metric in itertools.chain(*GROUPS.values())}
_FAMILY_NAMES = "f0.5, hd99_mm, hd99_surfel_mm, nsd_2mm, nsd_surfel_2mm, boundary_iou_3mm"


def choose_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The names of the metrics that a choice means, the default ones first, each once.

    Args:
        names: of groups, metrics, members of a family such as ``hd99_mm``, or ``all``. The default ones always come along.

    Raises:
        UsageError: a name is none of these.
    """
    found = list(metric_names())
    for name in names:
        if name == "all":
            found += _FIXED
        elif name in GROUPS:
            # "boundary_iou" is a group and its only metric.
            found += (metric.name for metric in GROUPS[name])
        else:
            found.append(_named(name).name)
    return tuple(dict.fromkeys(found))


def known_metrics(names: Iterable[str]) -> tuple[Metric, ...]:
    """The metrics of these names, in their order.

    Raises:
        UsageError: there is none of a name.
    """
    return tuple(_named(name) for name in names)


def find_metric(name: str) -> Metric | None:
    """The metric of this name, None where there is none."""
    try:
        return _named(name)
    except UsageError:
        return None


def _named(name: str) -> Metric:
    if name in _FIXED:
        return _FIXED[name]
    for pattern, make, highest in FAMILIES:
        match = re.fullmatch(pattern, name)
        if match and 0 < float(match[1]) <= highest:
            made = make(float(match[1]))
            # A number that its own name can't hold (1e-07, or more than six digits) would not be found again.
            again = re.fullmatch(pattern, made.name)
            if again and float(again[1]) == float(match[1]):
                return made
    raise UsageError(
        f"metrics: has {name!r}, expected a group ({', '.join(GROUPS)}, all), a metric ({', '.join(_FIXED)}), or one with a "
        f"number of yours of at most six digits, such as {_FAMILY_NAMES}"
    )


CASE_METRICS: tuple[CaseMetric, ...] = (
    CaseMetric(
        "pixel_accuracy",
        confusion.pixel_accuracy,
        "share of all voxels but the ignored whose class is right, background included",
    ),
    CaseMetric(
        "mean_iou",
        confusion.mean_iou,
        "unweighted mean of TP / (TP + FP + FN) over the classes in either mask, background included",
    ),
    CaseMetric(
        "frequency_weighted_iou",
        confusion.frequency_weighted_iou,
        "mean of the same, each class weighted by its share of the reference's voxels",
    ),
)


def metric_names() -> tuple[str, ...]:
    """Names of those that are always computed, in the order of the tables' columns."""
    return tuple(metric.name for metric in METRICS)
