import numpy as np
import pytest

from medseg.audit.alternatives import ask, log_shares_of_prediction, robust_z
from medseg.audit.voxel_model import fit_voxel_models, voxel_features
from tests.audit.sketches import halves, organ, sketch


def test_a_label_that_equals_the_prediction_has_nothing_to_gain():
    classes = halves()
    answers = ask(sketch("a", classes=classes), log_shares_of_prediction(classes, 3))
    assert answers is not None
    assert answers.move_mm == (0, 0, 0)
    assert answers.move_gain == pytest.approx(0, abs=1e-4)
    assert answers.fit == pytest.approx(np.log(0.9) - np.log(0.05))
    # Exchanged, each of the two halves' voxels loses log(0.9 / 0.05).
    assert answers.exchanges[1, 2] == pytest.approx(-np.log(18), rel=1e-5)
    assert all(gain < 0 for axis, gain in answers.mirrors.items() if axis == 0)


def test_a_moved_label_is_told_how_to_move_back():
    classes = halves()
    moved = sketch("a", classes=np.roll(classes, (3, -2, 0), (0, 1, 2)), spacing=(1.0, 0.5, 2.0))
    answers = ask(moved, log_shares_of_prediction(classes, 3))
    assert answers is not None
    assert answers.move_mm == (-3.0, 1.0, 0.0)
    assert answers.move_gain > 0.5
    assert answers.fit + answers.move_gain == pytest.approx(np.log(18), rel=1e-4)


def test_exchanged_classes_gain_by_exchange():
    classes = halves()
    exchanged = np.array([0, 2, 1], np.uint8)[classes]
    answers = ask(sketch("a", classes=exchanged), log_shares_of_prediction(classes, 3))
    assert answers is not None
    assert answers.exchanges == {(1, 2): pytest.approx(np.log(18), rel=1e-5)}


def test_no_label_no_answer():
    empty = np.zeros(halves().shape, np.uint8)
    assert ask(sketch("a", classes=empty), log_shares_of_prediction(empty, 3)) is None
    empty[0, 0, 0] = 255
    assert ask(sketch("a", classes=empty), log_shares_of_prediction(empty * 0, 3)) is None


def test_moves_of_a_picture_stay_in_it():
    classes = halves((30, 30, 1), (15, 15, 0))
    moved = sketch("a", image=np.zeros((30, 30, 1)), classes=np.roll(classes, 4, 1))
    answers = ask(moved, log_shares_of_prediction(classes, 3))
    assert answers is not None
    assert answers.move_mm == (0.0, -4.0, 0.0)
    assert set(answers.mirrors) == {0, 1}


def test_robust_z_of_one_to_nine_and_an_outlier():
    values = [*range(1, 10), 100]  # median 5.5, deviations .5 .5 1.5 1.5 2.5 2.5 3.5 3.5 4.5 94.5: their median 2.5
    z = robust_z(values, floor=0.1)
    assert z[-1] == pytest.approx(94.5 / (1.4826 * 2.5))
    assert robust_z([1, 1, 1, 2], floor=0.5)[-1] == pytest.approx(2)
    assert robust_z([], floor=1).size == 0


def test_the_voxel_model_knows_cases_it_has_not_seen():
    cases = [organ(f"case_{k}", k) for k in range(10)]
    groups = {case.id: k % 5 for k, case in enumerate(cases)}
    models = fit_voxel_models(cases, groups, class_count=3, seed=0)
    shares = models.log_shares(cases[3], groups["case_3"])
    assert shares.shape == (3, *cases[3].shape_xyz)
    assert np.exp(shares).sum(axis=0) == pytest.approx(1, abs=1e-4)
    assert (shares.argmax(axis=0) == cases[3].classes).mean() > 0.95
    again = fit_voxel_models(cases, groups, class_count=3, seed=0).log_shares(cases[3], 3)
    np.testing.assert_array_equal(shares, again)


def test_a_model_does_not_see_its_own_group():
    cases = [organ(f"case_{k}", k) for k in range(6)]
    groups = {case.id: k // 3 for k, case in enumerate(cases)}
    before = fit_voxel_models(cases, groups, class_count=3, seed=0).weights[0]
    assert cases[0].classes is not None
    cases[0].classes[cases[0].classes == 1] = 2
    after = fit_voxel_models(cases, groups, class_count=3, seed=0).weights
    np.testing.assert_allclose(before, after[0], rtol=1e-2, atol=1e-4)  # what was added is subtracted, up to rounding
    assert np.abs(after[1]).max() > 0


def test_features_count_axes_that_exist():
    volume, picture = organ("a", 0), sketch("b", image=np.zeros((12, 10, 1)))
    assert voxel_features(volume).shape == (*volume.shape_xyz, 3 + 2 + 12 + 3)
    assert voxel_features(picture).shape == (12, 10, 1, 3 + 2 + 8 + 2)
