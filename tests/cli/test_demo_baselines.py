"""The demo's baselines, on small arrays whose answer can be worked out by hand."""

import numpy as np
import pytest

from medseg.cli.demo_baselines import Scan, band_scores, best_band
from medseg.cli.demo_scans import make_patient


def scan(image: list[float], labels: list[int]) -> Scan:
    return Scan(np.array(image, np.float32).reshape(-1, 1, 1), np.array(labels, np.uint8).reshape(-1, 1, 1))


def test_a_class_of_its_own_grey_values_is_found_exactly():
    example = scan([0.0] * 50 + [1.0] * 30 + [2.0] * 20, [0] * 50 + [1] * 30 + [2] * 20)
    assert band_scores([example], [example]) == {"organ": 1.0, "duct": 1.0}


def test_equally_bright_background_costs_what_dice_says():
    # 10 voxels of the class among 40 of the same value: the best band takes all 40, Dice 2 * 10 / (40 + 10).
    example = scan([0.0] * 60 + [1.0] * 40, [0] * 60 + [1] * 10 + [0] * 30)
    band = best_band([example], 1)
    assert band.low <= 1.0 < band.high
    assert band.low > 0.0
    assert band_scores([example], [example])["organ"] == pytest.approx(0.4)


def test_the_band_is_chosen_on_training_scans_only():
    bright = scan([0.0] * 50 + [1.0] * 50, [0] * 50 + [1] * 50)
    dark = scan([0.0] * 50 + [1.0] * 50, [1] * 50 + [0] * 50)
    assert band_scores([bright], [dark])["organ"] == 0.0


def test_no_band_solves_the_demo():
    scans = []
    for number in range(4):
        patient = make_patient(number, seed=5)
        image = patient.image.astype(np.float32)
        scans.append(Scan((image - image.mean()) / image.std(), patient.labels))
    scores = band_scores(scans, scans)  # even chosen on the scans it is tried on
    assert 0 < scores["organ"] < 0.5
    assert 0 < scores["duct"] < 0.5
