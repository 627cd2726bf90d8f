import math
from dataclasses import replace

import pytest

from medseg.evaluation.aggregate import mean_of_classes, summarise
from medseg.evaluation.case import ClassScores
from medseg.evaluation.policy import POLICIES
from medseg.evaluation.registry import metric_names


def row(class_name, situation, *, diagonal_mm=100.0, **values):
    return ClassScores(
        class_name=class_name,
        situation=situation,
        true_positive=0,
        false_positive=0,
        false_negative=0,
        diagonal_mm=diagonal_mm,
        values={name: values.get(name) for name in metric_names()},
    )


ROWS = {
    "c1": [row("liver", "present", dice=0.9, hd95_mm=2.0), row("tumour", "both_empty")],
    "c2": [row("liver", "present", dice=0.8, hd95_mm=4.0), row("tumour", "spurious", dice=0.0, diagonal_mm=200.0)],
    "c3": [row("liver", "missed", dice=0.0), row("tumour", "present", dice=0.5, hd95_mm=9.0)],
}


def summary(policy, rows=ROWS):
    return {s.class_name: s for s in summarise(rows, ("liver", "tumour"), POLICIES[policy])}


def test_counts_beside_every_mean():
    found = summary("standard")
    assert found["liver"].counts == {"cases": 3, "present": 2, "missed": 1, "spurious": 0, "both_empty": 0}
    assert found["tumour"].counts == {"cases": 3, "present": 1, "missed": 0, "spurious": 1, "both_empty": 1}


def test_means_with_and_without_imputation():
    hd95 = summary("standard")["liver"].metrics["hd95_mm"]
    assert (hd95.n, hd95.n_imputed, hd95.n_defined) == (3, 1, 2)
    assert hd95.mean == pytest.approx((2 + 4 + 100) / 3)
    assert hd95.mean_defined == 3.0
    assert summary("standard")["tumour"].metrics["hd95_mm"].mean == (200 + 9) / 2
    excluded = summary("exclude")["liver"].metrics["hd95_mm"]
    assert (excluded.n, excluded.n_imputed, excluded.mean) == (2, 0, 3.0)


def test_a_missed_structure_never_leaves_the_mean_dice():
    for policy in POLICIES:
        assert summary(policy)["liver"].metrics["dice"].mean == pytest.approx(1.7 / 3)


def test_spread_and_order_statistics():
    dice = summary("standard")["liver"].metrics["dice"]
    mean = 1.7 / 3
    sd = math.sqrt(((0.9 - mean) ** 2 + (0.8 - mean) ** 2 + mean**2) / 2)
    assert dice.sd == pytest.approx(sd)
    assert (dice.q1, dice.median, dice.q3) == pytest.approx((0.4, 0.8, 0.85))
    assert (dice.minimum, dice.maximum) == (0.0, 0.9)
    # Two cases are found and one is missed: Jeffreys' interval of 1 in 3 is 0.0387 to 0.8233, Student's t of the two with 1
    # degree of freedom is 12.706 x 0.05, and the margins add as squares.
    reach = math.hypot(2 / 3 * 12.706 * 0.05, 0.85 * (1 / 3 - 0.0387))
    assert dice.mean_high == pytest.approx(min(1.0, mean + reach), rel=1e-3)
    assert dice.mean_low == pytest.approx(
        max(0.0, mean - math.hypot(2 / 3 * 12.706 * 0.05, 0.85 * (0.8233 - 1 / 3))), rel=1e-3
    )
    assert (dice.median_low, dice.median_high) == (0.0, 0.9)
    assert dice.intervals["mean"]["method"] == "failures + hall"
    assert dice.intervals["median"]["note"].startswith("3 patients: coverage")


def test_failures_are_allowed_for_only_where_they_count():
    rows = {f"c{k}": [row("liver", "present", dice=0.8 + 0.01 * k, hd95_mm=2.0 + k)] for k in range(6)}
    standard, excluded = (summarise(rows, ("liver",), POLICIES[name])[0].metrics for name in ("standard", "exclude"))
    assert standard["dice"] == excluded["dice"]
    assert standard["hd95_mm"].intervals["mean"]["method"] == "failures + hall"
    assert excluded["hd95_mm"].intervals["mean"]["method"] == "hall"
    assert standard["hd95_mm"].mean_high > 20 > excluded["hd95_mm"].mean_high
    assert standard["volume_difference_ml"].n == 0


def test_the_interval_of_the_mean_of_classes_is_over_patients():
    # Two classes that always score alike tell what one of them tells.
    dices = [0.7, 0.75, 0.8, 0.82, 0.9]
    rows = {f"c{k}": [row("liver", "present", dice=d), row("tumour", "present", dice=d)] for k, d in enumerate(dices)}
    classes = summarise(rows, ("liver", "tumour"), POLICIES["standard"])
    one, both = classes[0].metrics["dice"], mean_of_classes(classes)["dice"]
    assert (both["mean_low"], both["mean_high"]) == pytest.approx((one.mean_low, one.mean_high))
    assert both["interval"]["patients"] == 5


def test_cases_of_one_patient_are_one_cluster():
    rows = {f"c{k}": [row("liver", "present", dice=0.7 + 0.05 * (k // 2))] for k in range(8)}
    alone, paired = (
        summarise(rows, ("liver",), POLICIES["standard"], patients)[0].metrics["dice"]
        for patients in (None, {f"c{k}": str(k // 2) for k in range(8)})
    )
    assert paired.mean == alone.mean
    assert paired.intervals["mean"]["patients"] == 4
    assert paired.mean_high - paired.mean_low > alone.mean_high - alone.mean_low


def test_too_few_values_give_none():
    tumour = summary("exclude")["tumour"].metrics["hd95_mm"]
    assert (tumour.n, tumour.mean, tumour.sd, tumour.mean_low) == (1, 9.0, None, None)
    nothing = summary("standard", {"c1": ROWS["c1"]})["tumour"].metrics["dice"]
    assert (nothing.n, nothing.mean, nothing.mean_defined) == (0, None, None)
    assert summary("standard", {})["liver"].counts["cases"] == 0


def test_order_of_cases_does_not_show():
    backwards = {case_id: ROWS[case_id] for case_id in reversed(ROWS)}
    assert summarise(backwards, ("liver", "tumour"), POLICIES["standard"]) == summarise(
        ROWS, ("liver", "tumour"), POLICIES["standard"]
    )


def test_mean_of_classes_names_the_classes_it_is_of():
    means = mean_of_classes(summarise({"c1": ROWS["c1"]}, ("liver", "tumour"), POLICIES["standard"]))
    found = {key: means["dice"][key] for key in ("mean", "mean_low", "mean_defined", "classes")}
    assert found == {"mean": 0.9, "mean_low": None, "mean_defined": 0.9, "classes": ["liver"]}
    assert (means["assd_mm"]["mean"], means["assd_mm"]["mean_high"], means["assd_mm"]["classes"]) == (None, None, [])
    both = mean_of_classes(summarise(ROWS, ("liver", "tumour"), POLICIES["standard"]))
    assert both["dice"]["mean"] == pytest.approx((1.7 / 3 + 0.25) / 2)
    assert both["dice"]["classes"] == ["liver", "tumour"]


def test_an_interval_stays_where_values_can_be():
    rows = {
        f"c{k}": [row("liver", "present", mcc=mcc, specificity=specificity, volume_difference_percent=percent)]
        for k, (mcc, specificity, percent) in enumerate([(-0.9, 0.2, -99.0), (-0.5, 1.0, 300.0), (-0.8, 1.0, -99.0)])
    }
    (found,) = summarise(rows, ("liver",), POLICIES["standard"])
    mcc, specificity = found.metrics["mcc"], found.metrics["specificity"]
    assert -1 <= mcc.mean_low < mcc.mean < mcc.mean_high
    assert specificity.mean_high == 1.0
    assert found.metrics["volume_difference_percent"].mean_low == -100.0


def test_equal_values_have_no_spread():
    rows = {f"c{k}": [row("liver", "present", dice=0.8361204013377926)] for k in range(3)}
    assert summarise(rows, ("liver",), POLICIES["standard"])[0].metrics["dice"].sd == 0.0


def test_a_class_without_a_row_has_the_chosen_metrics_too():
    liver = row("liver", "present")
    liver = replace(liver, values={**liver.values, "hd99_mm": 3.0})
    found = summarise({"c": [liver]}, ("liver", "tumour"), POLICIES["standard"])
    assert [one.metrics["hd99_mm"].n for one in found] == [1, 0]
