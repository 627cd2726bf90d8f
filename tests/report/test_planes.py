import numpy as np
import pytest

from medseg.report.planes import (
    AXIAL,
    CORONAL,
    PICTURE,
    SAGITTAL,
    averaged,
    coarsening,
    picked,
    planes_of,
    shown_box,
    shown_indices,
    slices,
    telling_point,
)


def mark(*where, shape=(6, 5, 4)):
    array = np.zeros(shape, np.uint8)
    array[where] = 1
    return array


@pytest.mark.parametrize(
    ("plane", "where", "place"),
    [
        # The patient's right, front and top corner of an array that runs right, front, up.
        (AXIAL, (5, 4, 0), (0, 0)),
        (AXIAL, (0, 0, 0), (4, 5)),
        (CORONAL, (5, 0, 3), (0, 0)),
        (CORONAL, (0, 0, 0), (3, 5)),
        (SAGITTAL, (0, 4, 3), (0, 0)),
        (SAGITTAL, (0, 0, 0), (3, 4)),
        (PICTURE, (0, 0, 0), (0, 0)),
        (PICTURE, (5, 0, 0), (0, 5)),
    ],
)
def test_slices_lie_as_radiologists_look_at_them(plane, where, place):
    shown = slices(mark(*where), plane, [where[plane.through]])[0]
    assert [tuple(at) for at in np.argwhere(shown)] == [place]


def test_colours_stay_last():
    array = np.zeros((6, 5, 1, 3), np.uint8)
    array[2, 1, 0] = (1, 2, 3)
    assert slices(array, PICTURE, [0])[0, 1, 2].tolist() == [1, 2, 3]


def test_the_box_has_a_margin_in_mm_within_the_scan(masks_of):
    truth = np.zeros((60, 60, 20), np.uint8)
    truth[30:32, 2:4, 10] = 1
    box = shown_box(masks_of(truth, truth, spacing=(1.0, 2.0, 10.0)))
    # 12 mm are 12, 6 and 2 voxels; at least 3.
    assert [(side.start, side.stop) for side in box] == [(18, 44), (0, 10), (7, 14)]
    empty = shown_box(masks_of(truth * 0, truth * 0))
    assert [(side.start, side.stop) for side in empty] == [(0, 60), (0, 60), (0, 20)]


def test_planes_of_volumes_single_slices_and_pictures():
    volume, slab = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 1, 4), np.uint8)
    assert planes_of(volume.shape, planar=False) == (AXIAL, CORONAL, SAGITTAL)
    assert planes_of(slab.shape, planar=False) == (CORONAL,)
    assert planes_of((4, 4, 1), planar=True) == (PICTURE,)


def test_the_telling_point_is_where_most_is_wrong():
    wrong = np.zeros((6, 6, 6), np.bool_)
    wrong[1:3, 4, 2] = True
    assert telling_point(wrong, np.ones_like(wrong)) == (2, 4, 2)
    assert telling_point(wrong * False, mark(1, 1, 1, shape=(6, 6, 6)) > 0) == (1, 1, 1)


@pytest.mark.parametrize(("count", "start", "most"), [(100, 37, 12), (10, 9, 3), (5, 0, 5), (7, 3, 1)])
def test_thinned_slices_are_even_and_keep_the_start(count, start, most):
    indices = shown_indices(count, start, most)
    assert start in indices
    assert 0 < len(indices) <= most
    assert len(set(np.diff(indices))) <= 1


def test_large_slices_are_coarsened_to_256_pixels():
    steps = coarsening((512, 300, 10), AXIAL)
    assert steps == (2, 2)
    stack = np.arange(2 * 300 * 512, dtype=np.float32).reshape(2, 300, 512)
    assert picked(stack, steps).shape == averaged(stack, steps).shape == (2, 150, 256)
    assert averaged(stack, steps)[0, 0, 0] == pytest.approx(np.mean([0, 1, 512, 513]))
    assert averaged(np.ones((1, 301, 257), np.float32), (2, 2)).shape == picked(np.ones((1, 301, 257)), (2, 2)).shape
