import numpy as np
import pytest

from medseg.report.failures import KINDS, _swapped_pairs, failures_of, suspects
from medseg.report.masks import CaseMasks
from medseg.report.scores import Row, ScoreTable

SHAPE = (40, 40, 20)


def box(x, y, z, value=1, shape=SHAPE):
    array = np.zeros(shape, np.uint8)
    array[slice(*x), slice(*y), slice(*z)] = value
    return array


def row(name="organ", *, case="a", dice=0.3, situation="present"):
    return Row(case=case, class_name=name, situation=situation, values={"dice": dice})


def found(masks, *names):
    return {failure.kind: failure.reason for failure in failures_of(masks, [row(name) for name in names or ("organ",)])}


CUBE = box((10, 20), (10, 20), (5, 15))


def test_missed_and_spurious_give_the_volume(masks_of):
    empty = CUBE * 0
    assert found(masks_of(empty, CUBE, spacing=(1, 1, 2))) == {"missed": "the reference has 2 ml"}
    assert found(masks_of(CUBE, empty)) == {"spurious": "the prediction has 1 ml"}
    assert found(masks_of(empty, empty)) == {}


def test_shifted_says_how_far_and_where_to(masks_of):
    # 4 of 10 planes overlap: Dice 0.4, moved back 1. Array axes run right, front, up.
    moved = np.roll(CUBE, (6, -1), axis=(0, 2))
    ((kind, reason),) = found(masks_of(moved, CUBE, spacing=(1.5, 1, 2))).items()
    assert kind == "shifted"
    assert reason == "lies 9 mm right of and 2 mm below the reference; Dice 0.36, moved back 1.00"


@pytest.mark.parametrize(
    ("axis", "step", "words"),
    [
        (0, 6, "right of"), (0, -6, "left of"), (1, 6, "in front of"), (1, -6, "behind"), (2, 4, "above"), (2, -4, "below"),
    ],
)  # fmt: skip
def test_every_direction_makes_a_sentence(masks_of, axis, step, words):
    reason = found(masks_of(np.roll(CUBE, step, axis=axis), CUBE, spacing=(0.5, 0.5, 0.5)))["shifted"]
    assert reason.startswith(f"lies {abs(step) / 2:g} mm {words} the reference; Dice ")


def test_a_small_structure_beside_its_place_is_shifted_and_no_more(masks_of):
    truth = box((10, 14), (10, 14), (5, 9))
    assert set(found(masks_of(np.roll(truth, 6, axis=0), truth))) == {"shifted"}


def test_a_picture_is_moved_in_pixels(masks_of):
    truth = box((5, 15), (5, 15), (0, 1), shape=(40, 40, 1))
    ((kind, reason),) = found(masks_of(np.roll(truth, (-4, 3), axis=(0, 1)), truth, planar=True)).items()
    assert kind == "shifted"
    assert reason.startswith("lies 4 pixels left of and 3 pixels below the reference")


def test_swapped_sides_name_each_other(masks_of):
    truth = box((5, 15), (10, 20), (5, 15), 1) + box((25, 35), (10, 20), (5, 15), 2)
    swapped = np.choose(truth, (0, 2, 1)).astype(np.uint8)
    masks = masks_of(swapped, truth, names=("left", "right"))
    failures = failures_of(masks, [row("left"), row("right")])
    assert [(one.class_name, one.kind) for one in failures] == [("left", "side swapped"), ("right", "side swapped")]
    assert failures[0].reason == "swapped with right: mean Dice of the two 0.00, swapped back 1.00"


def test_a_hundred_classes_are_not_held_as_masks_at_once(masks_of, monkeypatch):
    truth = np.zeros((100, 4, 4), np.uint8)
    truth[:] = np.arange(1, 101, dtype=np.uint8)[:, None, None]
    prediction = truth.copy()
    prediction[[6, 90]] = truth[[90, 6]]
    names = [f"class {index}" for index in range(1, 101)]
    masks = masks_of(prediction, truth, names=names)
    monkeypatch.setattr(CaseMasks, "of_class", None)
    assert _swapped_pairs(masks, set(names)) == {
        "class 7": "swapped with class 91: mean Dice of the two 0.00, swapped back 1.00",
        "class 91": "swapped with class 7: mean Dice of the two 0.00, swapped back 1.00",
    }


def test_classes_that_overlap_by_definition_are_not_swapped(masks_of):
    masks = masks_of(CUBE * 0, CUBE, names=("whole", "core"))
    masks.members.update(core=(1,))
    assert set(found(masks, "whole", "core")) == {"missed"}


@pytest.mark.parametrize(
    ("planes", "words"), [((5, 11), "40% of the reference lie above"), ((9, 15), "40% of the reference lie below")]
)
def test_a_prediction_that_ends_flat_is_cut(masks_of, planes, words):
    reasons = found(masks_of(box((10, 20), (10, 20), planes), CUBE))
    assert reasons["cut at the border"] == f"{words} the plane where the prediction ends"


def test_a_prediction_that_tapers_off_is_not_cut(masks_of):
    # In its last planes it fills 4 of 100 voxels of the reference's section.
    tapering = box((10, 20), (10, 20), (6, 11)) | box((14, 16), (14, 16), (11, 13)) | box((14, 16), (14, 16), (5, 6))
    assert "cut at the border" not in found(masks_of(tapering, CUBE))


def test_the_scans_border_cuts_a_structure(masks_of):
    truth = box((0, 10), (10, 20), (5, 15))
    reasons = found(masks_of(box((0, 10), (10, 30), (5, 15)), truth))
    assert reasons["cut at the border"] == "the scan's left border cuts it off"


def test_many_small_parts_at_a_border_are_not_cut(masks_of):
    truth = box((0, 4), (0, 4), (5, 15)) | box((10, 14), (0, 4), (5, 15)) | box((20, 24), (0, 4), (5, 15))
    assert "cut at the border" not in found(masks_of(truth | box((30, 34), (0, 4), (5, 15)), truth))


def test_parts_that_are_missed_or_too_many(masks_of):
    two = CUBE | box((30, 35), (30, 35), (5, 15))  # 1000 and 250 voxels
    assert found(masks_of(CUBE, two))["missed part"] == "1 part with 20% of the reference"
    assert found(masks_of(two, CUBE))["spurious part"] == "1 part with 20% of the prediction"


def test_small_parts_do_not_count(masks_of):
    assert "spurious part" not in found(masks_of(CUBE | box((35, 38), (35, 38), (5, 15)), CUBE))  # 90 of 1090


def test_merged_and_fragmented(masks_of):
    halves = box((10, 14), (10, 20), (5, 15)) | box((16, 20), (10, 20), (5, 15))
    assert found(masks_of(CUBE, halves))["merged"] == "one predicted part covers 2 parts of the reference"
    assert found(masks_of(halves, CUBE))["fragmented"] == "2 predicted parts in one part of the reference"


def test_a_mask_of_salt_is_looked_into(masks_of):
    salt = np.zeros((80, 80, 40), np.uint8)
    salt[::2, ::2, ::2] = 1  # 32,000 parts: a matrix of pairs would take a gigabyte
    assert set(found(masks_of(salt, salt))) == {"inexact"}


def test_size_and_what_is_left(masks_of):
    larger = box((8, 22), (8, 22), (4, 16))  # 14 x 14 x 12 = 2352
    assert found(masks_of(larger, CUBE)) == {"too large": "2.35 ml predicted, 1 ml in the reference (x 2.35)"}
    assert found(masks_of(CUBE, larger)) == {"too small": "1 ml predicted, 2.35 ml in the reference (x 0.43)"}
    assert found(masks_of(CUBE, CUBE)) == {"inexact": "1 ml predicted, 1 ml in the reference (x 1.00)"}


def table(rows):
    return ScoreTable(metrics={"classes": {"organ": {}}}, rows=rows, columns=("dice",))


def test_suspects_are_empty_poor_or_outliers_worst_first():
    rows = [row(case=f"c{i}", dice=0.90 + 0.001 * i) for i in range(40)]
    rows += [row(case="outlier", dice=0.8), row(case="poor", dice=0.69), row(case="gone", dice=0.0, situation="missed")]
    rows += [
        row(case="spurious", dice=0.0, situation="spurious"),
        row(case="absent", dice=None, situation="both_empty"),
    ]
    assert [one.case for one in suspects(table(rows))] == ["gone", "spurious", "poor", "outlier"]


def test_few_cases_have_no_outliers():
    assert suspects(table([row(case="a", dice=0.99), row(case="b", dice=0.99), row(case="c", dice=0.8)])) == []


def test_every_kind_has_its_rule():
    assert all(rule for rule in KINDS.values())
