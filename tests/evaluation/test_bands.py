import math

import numpy as np
import pytest

from medseg.evaluation import score_masks
from medseg.evaluation.bands import boundary_iou


def square(size, first, last):
    mask = np.zeros((size, size), bool)
    mask[first:last, first:last] = True
    return mask


def test_rims_on_paper():
    # Squares of 10 and 8 pixels of 1 mm with one centre. At 1 mm the rims are their boundary pixels: 36 and 28, disjoint.
    one, other = square(20, 5, 15), square(20, 6, 14)
    assert boundary_iou(one, other, spacing_mm=(1, 1), distance_mm=1.0) == 0.0
    # At 2 mm they are 2 pixels wide: 64 and 48, with the smaller one's boundary in common.
    assert boundary_iou(one, other, spacing_mm=(1, 1), distance_mm=2.0) == 28 / (64 + 48 - 28)
    assert boundary_iou(one, other, spacing_mm=(1, 1), distance_mm=50.0) == 64 / 100  # all of both: IoU


def test_the_images_border_is_outside_and_thick_slices_have_a_rim():
    full = np.ones((4, 5), bool)
    assert boundary_iou(full, full, spacing_mm=(1, 1), distance_mm=1) == 1.0
    middle = full.copy()
    middle[1:3, 1:4] = False  # the boundary pixels alone
    assert boundary_iou(full, middle, spacing_mm=(1, 9), distance_mm=1) == 1.0


def test_empty_masks():
    some, none = square(9, 2, 6), np.zeros((9, 9), bool)
    for one, other, wanted in ((none, none, math.nan), (some, none, 0.0), (none, some, 0.0), (some, some, 1.0)):
        assert boundary_iou(one, other, spacing_mm=(1, 1), distance_mm=2.0) == pytest.approx(wanted, nan_ok=True)


def test_width_is_two_percent_of_the_diagonal_or_given():
    rng = np.random.default_rng(0)
    one = square(71, 10, 60)
    other = np.roll(one, 2, 0) & (rng.random(one.shape) < 0.99)
    # 70 * sqrt(2) mm = 99 mm from corner to corner, so 1.98 mm.
    found = score_masks(
        one, other, spacing_mm=(1.0, 1.0), metrics=("boundary_iou", "boundary_iou_1.98mm", "boundary_iou_3mm")
    )
    assert found["boundary_iou"] == found["boundary_iou_1.98mm"] < found["boundary_iou_3mm"]


def test_symmetry_flips_padding_and_scaling():
    rng = np.random.default_rng(5)
    one, other = rng.random((2, 9, 8, 7)) < 0.8
    spacing = (0.7, 0.9, 2.5)
    wanted = boundary_iou(one, other, spacing_mm=spacing, distance_mm=1.0)
    assert boundary_iou(other, one, spacing_mm=spacing, distance_mm=1.0) == wanted
    assert boundary_iou(one[::-1], other[::-1], spacing_mm=spacing, distance_mm=1.0) == wanted
    assert boundary_iou(np.pad(one, 2), np.pad(other, 2), spacing_mm=spacing, distance_mm=1.0) == wanted
    assert boundary_iou(one, other, spacing_mm=[2 * s for s in spacing], distance_mm=2.0) == wanted
