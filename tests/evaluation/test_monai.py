"""Against MONAI, which defines surfaces the same way and computes in float32."""

import math

import brute_force
import numpy as np
import pytest

from medseg.evaluation import score_masks

pytestmark = pytest.mark.slow  # importing MONAI takes seconds

TOLERANCE_MM = 1.5


@pytest.fixture(scope="module")
def monai_scores():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from monai import metrics

    def scores(prediction, reference, spacing):
        p, r = (
            torch.from_numpy(np.ascontiguousarray(m)[None, None].astype(np.float32)) for m in (prediction, reference)
        )
        common = {"include_background": True, "spacing": list(spacing)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of empty masks
            return {
                "dice": float(metrics.compute_dice(p, r, ignore_empty=False)),
                "iou": float(metrics.compute_iou(p, r, ignore_empty=False)),
                "hd_mm": float(metrics.compute_hausdorff_distance(p, r, **common)),
                "hd95_mm": float(metrics.compute_hausdorff_distance(p, r, percentile=95, **common)),
                "assd_mm": float(metrics.compute_average_surface_distance(p, r, symmetric=True, **common)),
                "nsd": float(metrics.compute_surface_dice(p, r, [TOLERANCE_MM], **common)),
            }

    return scores


def in_our_terms(scores, situation):
    """MONAI's numbers for empty masks, translated: inf is undefined, and with both masks empty so is everything."""
    if situation == "both":
        return dict.fromkeys(scores, math.nan)
    return {key: math.nan if math.isinf(value) else value for key, value in scores.items()}


@pytest.mark.parametrize(
    ("name", "prediction", "reference", "spacing"), brute_force.PAIRS, ids=[pair[0] for pair in brute_force.PAIRS]
)
def test_equal_to_monai(monai_scores, name, prediction, reference, spacing):
    kept = [axis for axis, count in enumerate(prediction.shape) if count > 1]
    flat = prediction.squeeze(), reference.squeeze()
    situation = "both" if not (prediction.any() or reference.any()) else ""
    wanted = in_our_terms(monai_scores(*flat, [spacing[axis] for axis in kept]), situation)
    found = score_masks(prediction, reference, spacing_mm=spacing, tolerance_mm=TOLERANCE_MM)
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=1e-5, abs=1e-6, nan_ok=True)


def test_equal_to_monai_on_larger_anatomy(monai_scores):
    grid = np.ogrid[:60, :50, :30]
    reference = sum(((x - c) / r) ** 2 for x, c, r in zip(grid, (30, 25, 15), (22, 17, 9), strict=True)) < 1
    prediction = sum(((x - c) / r) ** 2 for x, c, r in zip(grid, (33, 24, 16), (20, 18, 10), strict=True)) < 1
    prediction[5:8, 5:8, 3:5] = True
    spacing = (0.7, 0.7, 2.5)
    wanted = monai_scores(prediction, reference, spacing)
    found = score_masks(prediction, reference, spacing_mm=spacing, tolerance_mm=TOLERANCE_MM)
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=1e-5)
