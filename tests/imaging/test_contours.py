import numpy as np
import pytest
from scipy import ndimage

from medseg.imaging.contours import fill, trace


def square(low, high):
    return np.array([[low, low], [high, low], [high, high], [low, high]], float)


def test_a_pixel_is_inside_when_its_centre_is():
    inside = fill([square(0.9, 3.1)], (6, 6))
    assert inside[1:4, 1:4].all()
    assert inside.sum() == 9
    # A triangle over pixels (0, 0) to (4, 4): the row j holds the centres with x < 4.5 - j.
    triangle = fill([np.array([[-0.5, -0.5], [5.0, -0.5], [-0.5, 5.0]])], (6, 6))
    assert triangle.sum(axis=0).tolist() == [5, 4, 3, 2, 1, 0]


def test_polygons_that_share_an_edge_share_no_pixel():
    left, right = np.array([[0, 0], [2, 0], [2, 4], [0, 4]], float), np.array([[2, 0], [4, 0], [4, 4], [2, 4]], float)
    both = fill([left], (6, 6)).astype(int) + fill([right], (6, 6))
    assert both.max() == 1
    assert both.sum() == 16


def test_even_odd_makes_holes_and_ignores_what_lies_outside():
    ring = fill([square(0.5, 5.5), square(1.5, 4.5)], (7, 7))
    assert ring.sum() == 25 - 9
    assert not ring[2:5, 2:5].any()
    assert fill([square(-10, 2.5)], (4, 4)).sum() == 9
    assert not fill([square(20, 30)], (4, 4)).any()
    assert not fill([], (4, 4)).any()


def test_a_single_pixel_is_a_diamond():
    mask = np.zeros((5, 4), bool)
    mask[2, 1] = True
    (polygon,) = trace(mask)
    assert sorted(map(tuple, polygon)) == [(1.5, 1.0), (2.0, 0.5), (2.0, 1.5), (2.5, 1.0)]
    assert trace(np.zeros((5, 4), bool)) == []


def test_corners_that_touch_stay_apart_and_holes_are_keyholes():
    mask = np.zeros((6, 6), bool)
    mask[1, 1] = mask[2, 2] = True
    assert len(trace(mask)) == 2
    ring = np.ones((7, 7), bool)
    ring[2:5, 2:5] = False
    ring[3, 3] = True
    outer, island = sorted(trace(ring), key=len, reverse=True)
    assert (fill([outer], (7, 7)) == (ring & (fill([island], (7, 7)) == 0))).all()


@pytest.mark.parametrize("sigma", [0.0, 0.8, 2.0])
def test_filling_what_was_traced_gives_the_mask(sigma):
    generator = np.random.default_rng(3)
    for _ in range(15):
        mask = ndimage.gaussian_filter(generator.random((21, 34)), sigma) > 0.5
        np.testing.assert_array_equal(fill(trace(mask), mask.shape), mask)
