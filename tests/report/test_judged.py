import json

import numpy as np
import pytest

from medseg.evaluation.matching import CasePaths
from medseg.report.judged import Reliability, expected_calibration_error, judge, rank_correlation, read_lines
from medseg.report.scores import Row, ScoreTable


def table(dices):
    rows = [
        Row(case=case, class_name="organ", situation="present", values={"dice": dice}) for case, dice in dices.items()
    ]
    return ScoreTable(metrics={"classes": {"organ": {}, "other": {}}}, rows=rows, columns=("dice",))


def quality(**values):
    return {"quality": {name: {"organ": value, "gone": 1.0} for name, value in values.items()}}


def test_what_was_said_stands_beside_the_truth():
    lines = {
        "a": quality(uncertainty=0.1, expected_dice=0.9, dice_bound=0.8)
        | {"flags": ["tiny"], "warnings": ["tiny", "odd"]},
        "b": quality(uncertainty=0.2, expected_dice=None, dice_bound=0.8),
        "c": {"quality": None},
        "d": quality(uncertainty=float("nan")),
        "unscored": {"flags": ["x"]},
    }
    judged = judge(table({"a": 0.95, "b": 0.5, "c": 0.7, "d": 0.6}), lines)
    assert judged.uncertainty == {"organ": [(0.1, 0.95), (0.2, 0.5)], "other": []}
    assert judged.expected["organ"] == [(0.9, 0.95)]
    assert judged.covered == (1, 2)
    assert judged.said == {"a": ["tiny", "odd"]}
    assert judged.correlation == {"organ": None, "other": None}


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [
        ([(1, 9), (2, 8), (3, 1)], -1.0),
        ([(1, 1), (2, 3), (3, 2)], 0.5),
        ([(1, 1), (2, 2)], None),
        ([(1, 1), (1, 2), (1, 3)], None),
    ],
)
def test_rank_correlation(pairs, wanted):
    assert rank_correlation(pairs) == (None if wanted is None else pytest.approx(wanted))


def test_damaged_lines_are_passed_over(tmp_path):
    lines = [json.dumps({"id": "a", "flags": []}), "{", "[]", "3", json.dumps({"id": "b"})]
    (tmp_path / "report.jsonl").write_text("\n".join(lines))
    pair = CasePaths(case_id="a", prediction=tmp_path / "a.nii.gz", reference=None)
    assert set(read_lines([pair])) == {"a", "b"}
    assert read_lines([CasePaths(case_id="a", prediction=tmp_path / "no" / "a.nii.gz", reference=None)]) == {}


def test_reliability_counts_voxels_by_the_probability_they_got(masks_of):
    truth = np.zeros((10, 10, 10), np.uint8)
    truth[:5] = 1
    probabilities = np.zeros((1, 10, 10, 10), np.float32)
    probabilities[0, :, :5] = 0.8  # half of these are of the class
    probabilities[0, :5, 5:] = 1.0
    counts = Reliability(["organ"])
    counts.add(masks_of(truth, truth), probabilities)
    counts.add(masks_of(truth, truth), probabilities[:, :5])  # another grid
    assert counts.cases == 1
    curve = counts.curves()["organ"]
    assert curve == [(0.0, 0.0, 250), (pytest.approx(0.8), 0.5, 500), (1.0, 1.0, 250)]
    assert expected_calibration_error(curve) == pytest.approx(0.15)
    assert expected_calibration_error([]) is None


def test_ignored_voxels_do_not_count(masks_of):
    truth = np.ones((4, 4, 4), np.uint8)
    ignored = np.zeros(truth.shape, np.bool_)
    ignored[0] = True
    counts = Reliability(["organ"])
    counts.add(masks_of(truth, np.where(ignored, 0, truth), ignored=ignored), np.ones((1, 4, 4, 4), np.float32))
    assert counts.curves() == {"organ": [(1.0, 1.0, 48)]}
