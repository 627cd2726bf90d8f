"""Uncertainty beside errors, worked out on paper."""

import numpy as np
import pytest

from medseg.evaluation.unsure import auroc, average_precision, calibration_error, unsure_of_classes, unsure_of_voxels
from medseg.imaging import Regions

NAMES = ("background", "organ", "lesion")


def test_auroc_counts_pairs():
    scores, wrong = np.array([0.9, 0.8, 0.8, 0.1]), np.array([True, False, True, False])
    # Pairs (wrong, right): 0.9 beats 0.8 and 0.1, 0.8 ties with 0.8 and beats 0.1: 3.5 of 4.
    assert auroc(scores, wrong) == pytest.approx(3.5 / 4)
    assert auroc(-scores, wrong) == pytest.approx(0.5 / 4)
    assert auroc(np.ones(4), wrong) == 0.5
    # Precision at 0.9: 1 of 1; at 0.8: 2 of 3. Each brings half of the wrong ones.
    assert average_precision(scores, wrong) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision(np.ones(4), wrong) == 0.5


def test_against_pairs_counted_one_by_one():
    rng = np.random.default_rng(0)
    scores, wrong = rng.integers(0, 6, 60) / 5, rng.random(60) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[wrong] for b in scores[~wrong]]
    assert auroc(scores, wrong) == pytest.approx(np.mean(pairs))


def test_calibration_error_is_the_gap_of_bins():
    # Bin 0.2: entropy 0.25 on average, none wrong; the last bin: 1.0 and half wrong.
    scores, wrong = np.array([0.2, 0.29, 1.0, 1.0]), np.array([False, False, True, False])
    assert calibration_error(scores, wrong) == pytest.approx((0.49 + 1.0) / 4)


def test_a_class_is_judged_over_both_masks():
    prediction = np.array([0, 1, 1, 2, 0, 0], np.uint8).reshape(6, 1, 1)
    reference = np.array([0, 1, 2, 2, 1, 0], np.uint8).reshape(6, 1, 1)
    entropy = np.array([0.9, 0.1, 0.8, 0.2, 0.05, 0.9]).reshape(6, 1, 1)
    organ, lesion = unsure_of_classes(entropy, prediction, reference, class_names=NAMES)
    # Organ: voxels 1 (right, 0.1), 2 (wrong, 0.8), 4 (wrong, 0.05): one of two pairs is in order.
    assert (organ.voxels, organ.wrong_share, organ.auroc) == (3, pytest.approx(2 / 3, abs=1e-5), 0.5)
    assert organ.entropy_wrong == pytest.approx(0.425)
    assert organ.entropy_right == pytest.approx(0.1)
    assert organ.mean_entropy == pytest.approx(0.95 / 3, abs=1e-5)
    # Lesion: voxels 2 (wrong) and 3 (right).
    assert (lesion.voxels, lesion.auroc, lesion.auprc) == (2, 1.0, 1.0)
    ignored = np.zeros((6, 1, 1), bool)
    ignored[2] = True
    organ, lesion = unsure_of_classes(entropy, prediction, reference, class_names=NAMES, ignored=ignored)
    assert (organ.voxels, lesion.voxels, lesion.auroc, lesion.entropy_wrong) == (2, 1, None, None)


def test_overlapping_classes_and_empty_ones():
    regions = Regions({"background": (0,), "organ": (1, 2), "lesion": (2,)})
    prediction, reference = np.array([[[1, 2, 0]]], np.uint8), np.array([[[2, 2, 0]]], np.uint8)
    entropy = np.array([[[0.5, 0.1, 0.2]]])
    organ, lesion = unsure_of_classes(entropy, prediction, reference, class_names=NAMES, regions=regions)
    assert (organ.voxels, organ.wrong_share, organ.auroc) == (2, 0.0, None)
    assert (lesion.voxels, lesion.auroc) == (2, 1.0)
    none = unsure_of_voxels(np.zeros(0), np.zeros(0, bool), "organ")
    assert (none.voxels, none.mean_entropy, none.uce) == (0, None, None)
