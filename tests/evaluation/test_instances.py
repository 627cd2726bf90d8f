import math

import numpy as np
import pytest

from medseg.evaluation import instances, score_masks
from medseg.evaluation.instances import find_instances
from medseg.evaluation.lesions import average_precision, froc, pooled_lesions


def lesions(*runs, size=40):
    """A line with a lesion from each first to each last pixel."""
    mask = np.zeros(size, bool)
    for first, last in runs:
        mask[first:last] = True
    return mask


# True lesions: 0 to 10, 15 to 19, 25 to 28. Predicted: 2 to 10 (IoU .8), 18 to 22 (1 of 7), 35 to 37 (none).
REFERENCE = lesions((0, 10), (15, 19), (25, 28))
PREDICTION = lesions((2, 10), (18, 22), (35, 37))


def test_values_on_paper():
    found = score_masks(PREDICTION, REFERENCE, spacing_mm=(1.0,), metrics=("instances",))
    wanted = {
        "lesions_prediction": 3, "lesions_reference": 3, "lesions_matched": 1, "lesion_precision": 1 / 3,
        "lesion_recall": 1 / 3, "lesion_rq": 1 / 3, "lesion_sq": 0.8, "lesion_pq": 0.8 / 3,
        "lesion_dice": (16 / 18) / 5, "lesion_precision_any": 2 / 3, "lesion_recall_any": 2 / 3, "lesion_f1_any": 2 / 3,
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_diagonal_neighbours_are_one_lesion():
    mask = np.eye(4, dtype=bool)
    assert find_instances(mask, mask).sizes_prediction.tolist() == [4]


def test_iou_of_one_half_is_no_match():
    found = find_instances(lesions((0, 4)), lesions((0, 2)))
    assert found.matches() == ()
    assert len(found.matches(0.4)) == 1


def test_low_thresholds_match_each_lesion_once_with_the_largest_sum():
    # One predicted lesion over both true ones, and one over the second alone: by itself the first would take the second
    # (IoU 3/10), but then the other has none.
    prediction, reference = np.zeros((2, 3, 12), bool)
    reference[0, 0:2], reference[0, 4:10] = True, True
    prediction[0, 0:7] = True  # 2 of 7, 3 of 10
    prediction[2, 9] = True
    prediction[1, 9] = False
    prediction[0, 9] = True  # 1 of 6
    found = find_instances(prediction, reference)
    pairs = [(match.prediction, match.reference) for match in found.matches(0.1)]
    assert pairs == [(0, 0), (1, 1)]


def test_empty_masks():
    some, none = lesions((3, 6)), lesions()
    for prediction, reference, rq, precision, recall in (
        (none, none, math.nan, math.nan, math.nan),
        (none, some, 0.0, math.nan, 0.0),
        (some, none, 0.0, 0.0, math.nan),
        (some, some, 1.0, 1.0, 1.0),
    ):
        found = score_masks(prediction, reference, spacing_mm=(1.0,), metrics=("instances",))
        for names, wanted in (
            (("lesion_rq", "lesion_pq", "lesion_dice", "lesion_f1_any"), rq),
            (("lesion_precision", "lesion_precision_any"), precision),
            (("lesion_recall", "lesion_recall_any"), recall),
        ):
            assert [found[name] for name in names] == pytest.approx([wanted] * len(names), nan_ok=True)


def test_order_and_turning_do_not_matter():
    rng = np.random.default_rng(3)
    prediction, reference = rng.random((2, 12, 11, 10)) < 0.08
    prediction |= reference & (rng.random(reference.shape) < 0.7)
    names = [
        metric
        for metric in score_masks(prediction, reference, spacing_mm=(1, 1, 1), metrics=("instances",))
        if "lesion" in metric
    ]

    def scores(one, other):
        return {name: score_masks(one, other, spacing_mm=(1, 1, 1), metrics=("instances",))[name] for name in names}

    wanted = scores(prediction, reference)
    assert scores(prediction[::-1, :, ::-1], reference[::-1, :, ::-1]) == pytest.approx(wanted)
    assert scores(prediction.transpose(2, 0, 1), reference.transpose(2, 0, 1)) == pytest.approx(wanted)
    swapped = scores(reference, prediction)
    assert swapped["lesion_pq"] == pytest.approx(wanted["lesion_pq"])
    assert swapped["lesion_recall"] == wanted["lesion_precision"]
    assert wanted["lesion_pq"] == pytest.approx(wanted["lesion_sq"] * wanted["lesion_rq"])


def test_confidence_is_the_mean_probability():
    probability = np.linspace(0, 1, 40, dtype=np.float32)
    found = find_instances(PREDICTION, REFERENCE, probability=probability)
    wanted = [probability[first:last].mean() for first, last in ((2, 10), (18, 22), (35, 37))]
    assert found.confidences == pytest.approx(wanted, abs=1e-6)


def test_froc_on_paper():
    # Two cases, four true lesions; falling confidence: hit, miss, hit, miss, miss.
    ranked = [(0.9, True), (0.8, False), (0.7, True), (0.6, False), (0.5, False)]
    found = froc(ranked, lesions=4, cases=2)
    assert found["false_positives_per_case"] == [0.0, 0.5, 0.5, 1.0, 1.5]
    assert found["sensitivity"] == [0.25, 0.25, 0.5, 0.5, 0.5]
    assert found["score"] == pytest.approx((2 * 0.25 + 5 * 0.5) / 7)
    assert average_precision(ranked, lesions=4) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)


def test_equal_confidences_come_together():
    either = [average_precision([(0.5, one), (0.5, not one)], lesions=1) for one in (True, False)]
    assert either == [0.5, 0.5]
    assert average_precision([], lesions=3) == 0.0
    assert froc([], lesions=3, cases=1)["score"] == 0.0


def test_lesions_of_all_cases_together():
    from medseg.evaluation.case import score_case_arrays

    def rows(prediction, reference, probability):
        return score_case_arrays(
            prediction.astype(np.uint8)[:, None, None], reference.astype(np.uint8)[:, None, None], spacing_xyz_mm=(1, 1, 1),
            class_names=("background", "lesion"), tolerance_mm={"lesion": 1.0}, metrics=("dice", "lesion_pq"),
            probabilities=None if probability is None else np.full((1, 40, 1, 1), probability),
        ).rows  # fmt: skip

    cases = {
        "a": rows(PREDICTION, REFERENCE, 0.7),
        "b": rows(lesions(), lesions((1, 4)), 0.2),
        "c": rows(lesions((1, 4)), lesions((1, 4)), 0.9),
    }
    found = pooled_lesions(cases, ("lesion",))
    own = found["classes"]["lesion"]
    assert (own["cases"], own["predicted"], own["reference"]) == (3, 4, 5)
    counts = own["iou_above_0.5"]
    assert (counts["true_positive"], counts["false_positive"], counts["false_negative"]) == (2, 2, 3)
    assert counts["pq"] == pytest.approx(2 * 1.8 / 9)
    assert counts["dice"] == pytest.approx((16 / 18 + 1) / 7)
    assert own["any_overlap"] == {"predicted_right": 3, "reference_found": 3, "precision": 3 / 4, "recall": 3 / 5}
    # Confidence .9: one hit. Then .7, three at once: one hit, two misses.
    assert own["average_precision"] == pytest.approx(1 / 5 + 1 / 5 * 2 / 4)
    assert own["average_precision"] == found["mean_average_precision"]
    without = pooled_lesions({"a": rows(PREDICTION, REFERENCE, None)}, ("lesion",))
    assert without["classes"]["lesion"]["froc"] is None
    assert without["mean_average_precision"] is None
    assert pooled_lesions({"a": rows(PREDICTION, REFERENCE, None)[:0]}, ("lesion",)) == {}
    empty = instances.as_plain(find_instances(lesions(), lesions()))
    assert empty == {"reference": [], "prediction": [], "has_confidence": False}
    # With maps and no lesion in any mask nothing is found, which must not leave the class out of the mean.
    nothing = pooled_lesions({"b": rows(lesions(), lesions((1, 4)), 0.2)}, ("lesion",))
    assert nothing["mean_average_precision"] == 0.0
    assert nothing["classes"]["lesion"]["froc"]["score"] == 0.0
