"""Lesions of all cases together: counts and scores pooled over cases, FROC and average precision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.evaluation.case import ClassScores

FROC_POINTS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per case at which LUNA16 averages the sensitivity."""


def pooled_lesions(rows: Mapping[str, Sequence[ClassScores]], class_names: Sequence[str]) -> dict[str, Any]:
    """Per class the lesions of all cases seen as one set; {} where no metric of lesions was chosen.

    Args:
        rows: case id to its rows.
        class_names: without background.

    Returns:
        Class name to counts and scores by both rules, and, where every predicted lesion has a confidence, ``froc`` and
        ``average_precision``; their mean over classes under ``mean_average_precision``. None where undefined.
    """
    found: dict[str, Any] = {}
    for name in class_names:
        own = [
            row.lesions for case_id in sorted(rows) for row in rows[case_id] if row.class_name == name and row.lesions
        ]
        if own:
            found[name] = _pooled(own)
    if not found:
        return {}
    precisions = [own["average_precision"] for own in found.values() if own["average_precision"] is not None]
    mean = math.fsum(precisions) / len(precisions) if precisions else None
    return {"classes": found, "mean_average_precision": mean}


def _pooled(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    predicted = [lesion for case in cases for lesion in case["prediction"]]
    wanted = [lesion for case in cases for lesion in case["reference"]]
    hits = sum(lesion["matched"] for lesion in predicted)
    ious = math.fsum(lesion["iou"] for lesion in wanted)
    right, touched = sum(lesion["touched"] for lesion in predicted), sum(lesion["touched"] for lesion in wanted)
    # Where there are maps and nothing was predicted, nothing was found: that is no reason to leave the class out.
    sure = any(case["has_confidence"] for case in cases) and all(one["confidence"] is not None for one in predicted)
    ranked = sorted(((lesion["confidence"], lesion["matched"]) for lesion in predicted), reverse=True) if sure else []
    return {
        "cases": len(cases),
        "predicted": len(predicted),
        "reference": len(wanted),
        "iou_above_0.5": {
            "true_positive": hits,
            "false_positive": len(predicted) - hits,
            "false_negative": len(wanted) - hits,
            "precision": _ratio(hits, len(predicted)),
            "recall": _ratio(hits, len(wanted)),
            "rq": _ratio(2 * hits, len(predicted) + len(wanted)),
            "sq": _ratio(ious, hits),
            "pq": _ratio(2 * ious, len(predicted) + len(wanted)),
            "dice": _ratio(math.fsum(lesion["dice"] for lesion in wanted), len(predicted) + len(wanted) - hits),
        },
        "any_overlap": {
            "predicted_right": right,
            "reference_found": touched,
            "precision": _ratio(right, len(predicted)),
            "recall": _ratio(touched, len(wanted)),
        },
        "froc": froc(ranked, lesions=len(wanted), cases=len(cases)) if sure and wanted else None,
        "average_precision": average_precision(ranked, lesions=len(wanted)) if sure and wanted else None,
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def froc(ranked: Sequence[tuple[float, bool]], *, lesions: int, cases: int) -> dict[str, Any]:
    """Free-response ROC: sensitivity against false positives per case, as the confidence a lesion must have falls.

    Candidates are the components of the predicted masks, so the curve ends where the masks do; beyond, the sensitivity stays.

    Args:
        ranked: (confidence, whether it matches a true lesion at IoU > 0.5) of each predicted lesion of all cases, falling.
        lesions: true lesions, at least 1.
        cases: how many.

    Returns:
        ``false_positives_per_case`` and ``sensitivity`` at each threshold, and ``score``, the mean sensitivity at 1/8, 1/4,
        1/2, 1, 2, 4 and 8 false positives per case, 0 to 1, 1 is best. Source: LUNA16, Setio et al. 2017.
    """
    hits, misses = _cumulated(ranked)
    false_positives, sensitivity = misses / cases, hits / lesions
    at = [float(sensitivity[false_positives <= limit].max(initial=0.0)) for limit in FROC_POINTS]
    return {
        "false_positives_per_case": false_positives.tolist(),
        "sensitivity": sensitivity.tolist(),
        "score": math.fsum(at) / len(at),
    }


def average_precision(ranked: Sequence[tuple[float, bool]], *, lesions: int) -> float:
    """Area under precision against recall at IoU > 0.5, each precision the best at that recall or above, 0 to 1, 1 is best.

    No predicted lesion: 0. Source: PASCAL VOC 2010 to 2012, all points. Arguments as of :func:`froc`.
    """
    hits, misses = _cumulated(ranked)
    if not hits.size:
        return 0.0
    best = np.maximum.accumulate((hits / (hits + misses))[::-1])[::-1]
    return float((np.diff(hits, prepend=0) * best).sum() / lesions)


def _cumulated(ranked: Sequence[tuple[float, bool]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Matches and others among the first lesions, up to each place where the confidence falls: equal ones come together."""
    if not ranked:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    confidences, matched = np.array([c for c, _ in ranked]), np.array([m for _, m in ranked], np.int64)
    last = np.append(np.flatnonzero(np.diff(confidences)), confidences.size - 1)
    return np.cumsum(matched)[last], np.cumsum(1 - matched)[last]
