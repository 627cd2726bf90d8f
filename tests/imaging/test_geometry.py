import itertools

import numpy as np
import pytest

from medseg.errors import GeometryError
from medseg.imaging import (
    AxisChange,
    apply_axes,
    changed_affine,
    changed_shape,
    cropped_affine,
    grid_difference,
    orientation_code,
    ras_change,
    resized_affine,
    spacing_xyz_mm,
    undo_axes,
)
from tests import synthetic

ORIENTATIONS = [
    (permutation, flips)
    for permutation in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
]


def test_spacing_is_length_of_columns():
    affine = synthetic.affine_of((0.5, 2.0, 3.25), synthetic.rotation(30, 20, -70), (1, 2, 3))
    np.testing.assert_allclose(spacing_xyz_mm(affine), (0.5, 2.0, 3.25), rtol=1e-12)


def test_ras_change_on_paper():
    # array x runs to Anterior, y to Left, z to Superior
    affine = np.array([[0.0, -1.2, 0, 5], [0.8, 0, 0, -7], [0, 0, 3, 9], [0, 0, 0, 1]])
    change = ras_change(affine)
    assert change == AxisChange((1, 0, 2), (True, False, False))
    assert orientation_code(affine) == "ALS"
    # voxel (3, 19, 2) of 20 in y becomes (0, 3, 2) and stays at world (5 - 22.8, -7 + 2.4, 15)
    changed = changed_affine(affine, (10, 20, 6), change)
    np.testing.assert_allclose(changed @ [0, 3, 2, 1], [5 - 22.8, -7 + 2.4, 15, 1])
    assert changed_shape((10, 20, 6), change) == (20, 10, 6)


@pytest.mark.parametrize("grid", synthetic.GRIDS)
def test_every_orientation_becomes_the_same_array(grid):
    made = synthetic.scan(grid)
    change = ras_change(made.affine)
    expected = apply_axes(made.image, change)
    affine = changed_affine(made.affine, made.shape, change)
    for permutation, flips in ORIENTATIONS:
        other = synthetic.reoriented(made, permutation, flips)
        change = ras_change(other.affine)
        np.testing.assert_array_equal(apply_axes(other.image, change), expected)
        np.testing.assert_allclose(changed_affine(other.affine, other.shape, change), affine, atol=1e-9)
        np.testing.assert_array_equal(undo_axes(expected, change), other.image)


@pytest.mark.parametrize("degrees", [45.0, -45.0, 135.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_orientation_at_45_degrees_depends_on_the_axes_alone(degrees, axis):
    turn = [0.0, 0.0, 0.0]
    turn[axis] = degrees
    made = synthetic.scan_on((22, 23, 24), synthetic.affine_of((1, 2, 3), synthetic.rotation(*turn)))
    results = []
    for permutation, flips in ORIENTATIONS:
        other = synthetic.reoriented(made, permutation, flips)
        change = ras_change(other.affine)
        results.append(changed_affine(other.affine, other.shape, change))
    for result in results:
        np.testing.assert_allclose(result, results[0], atol=1e-9)


def test_ras_change_refuses_a_vanishing_axis():
    with pytest.raises(GeometryError, match="voxel size 1 x 0 x 1 mm"):
        ras_change(np.diag([1.0, 0, 1, 1]))


def test_apply_axes_leads_with_any_axes_and_is_contiguous():
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    change = AxisChange((2, 0, 1), (False, True, False))
    turned = apply_axes(array, change)
    assert turned.shape == (2, 5, 3, 4)
    assert turned.flags.c_contiguous
    assert turned[1, 4, 0, 2] == array[1, 2, 2, 4]
    np.testing.assert_array_equal(undo_axes(turned, change), array)


def test_cropped_affine_keeps_voxels_in_place():
    affine = synthetic.scan("oblique").affine
    cropped = cropped_affine(affine, (3, -2, 5))
    np.testing.assert_allclose(cropped @ [1, 4, 0, 1], affine @ [4, 2, 5, 1])


def test_resized_affine_keeps_the_extent():
    affine = synthetic.scan("oblique").affine
    resized = resized_affine(affine, (10, 20, 30), (20, 8, 30))
    np.testing.assert_allclose(resized @ [-0.5, -0.5, -0.5, 1], affine @ [-0.5, -0.5, -0.5, 1])
    np.testing.assert_allclose(resized @ [19.5, 7.5, 29.5, 1], affine @ [9.5, 19.5, 29.5, 1])
    np.testing.assert_allclose(resized @ [0, 0, 0, 1], affine @ [-0.25, 0.75, 0, 1])


def _moved(affine, **entries):
    changed = affine.copy()
    for place, value in entries.items():
        changed[int(place[1]), int(place[2])] += value
    return changed


def test_grid_difference_says_what_differs():
    affine = synthetic.affine_of((1, 1, 2), None, (4, 5, 6))
    same = _moved(affine, a03=5e-4)
    assert grid_difference((8, 9, 10), affine, (8, 9, 10), same) is None
    assert grid_difference((8, 9, 10), affine, (8, 9, 11), affine) == "shape is 8x9x10 against 8x9x11"
    spacing = grid_difference((8, 9, 10), affine, (8, 9, 10), _moved(affine, a22=0.5))
    assert spacing == "spacing is 1 x 1 x 2 mm against 1 x 1 x 2.5 mm (corners up to 4.5 mm apart)"
    origin = grid_difference((8, 9, 10), affine, (8, 9, 10), _moved(affine, a13=3.0))
    assert origin == "origin is 4, 5, 6 mm against 4, 8, 6 mm (3 mm apart)"
    flipped = affine @ np.diag([-1.0, 1, 1, 1])
    assert "axes run to RAS against LAS" in (grid_difference((8, 9, 10), affine, (8, 9, 10), flipped) or "")


def test_grid_difference_sees_slice_thickness_of_a_single_slice():
    thin, thick = synthetic.affine_of((1, 1, 1)), synthetic.affine_of((1, 1, 5))
    assert "spacing" in (grid_difference((8, 9, 1), thin, (8, 9, 1), thick) or "")
