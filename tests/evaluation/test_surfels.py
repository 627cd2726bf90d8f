import math

import numpy as np
import pytest

from medseg.evaluation import score_masks, surfels
from medseg.evaluation.masks import ClassMask

KEYS = ("nsd_surfel", "hd95_surfel_mm", "hd_surfel_mm", "assd_surfel_mm", "masd_surfel_mm")


def box(shape, *slices):
    mask = np.zeros(shape, bool)
    mask[slices] = True
    return mask


def code(*corners):
    """The pattern of these corners inside."""
    return sum(1 << surfels._corners(len(corners[0])).index(corner) for corner in corners)


def test_areas_on_paper():
    areas = surfels.element_areas((1.0, 1.0, 1.0))
    # A corner is cut off by a triangle of sides sqrt(1/2); an edge by a rectangle; a face by the square in the middle.
    triangle = math.sqrt(3) / 4 / 2
    assert areas[code((0, 0, 0))] == pytest.approx(triangle)
    assert areas[code((0, 0, 0), (0, 0, 1))] == pytest.approx(math.sqrt(0.5))
    assert areas[code((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1))] == pytest.approx(1.0)
    # A corner and its three neighbours: the regular hexagon of side sqrt(1/2).
    assert areas[code((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))] == pytest.approx(1.5 * math.sqrt(3) / 2)
    # Three on a face: half the square, and the trapezium between the diagonals sqrt(2) and sqrt(1/2), sqrt(3/8) high.
    wanted = 0.5 + (math.sqrt(2) + math.sqrt(0.5)) / 2 * math.sqrt(3 / 8)
    assert areas[code((0, 0, 0), (0, 0, 1), (0, 1, 0))] == pytest.approx(wanted)
    assert areas[code((0, 0, 0), (1, 1, 1))] == pytest.approx(2 * triangle)
    assert (areas[0], areas[255]) == (0.0, 0.0)


def test_areas_of_any_spacing():
    areas = surfels.element_areas((0.5, 2.0, 3.0))
    assert areas[code((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1))] == pytest.approx(6.0)  # the face across axis 0
    # Half the area of the triangle's projections, 1/8 of the faces: 6, 1.5 and 1 mm².
    assert areas[code((1, 0, 1))] == pytest.approx(math.hypot(6, 1.5, 1) / 8)


def test_turning_inside_out_keeps_the_area():
    for spacing in ((1.0, 1.0, 1.0), (0.7, 0.7, 2.5), (0.4, 1.9)):
        areas = surfels.element_areas(spacing)
        np.testing.assert_allclose(areas, areas[::-1], rtol=1e-12)


def test_lengths_in_two_dimensions():
    lengths = surfels.element_areas((3.0, 4.0))
    assert lengths[code((0, 0), (0, 1))] == 4.0  # the line between two rows runs along axis 1
    assert lengths[code((0, 0), (1, 0))] == 3.0
    assert lengths[code((0, 0))] == 2.5
    assert lengths[code((0, 0), (0, 1), (1, 0))] == 2.5
    assert lengths[code((0, 0), (1, 1))] == 5.0


def test_area_of_a_box_is_that_of_its_faces_with_edges_cut_off():
    # 4 x 5 x 6 voxels of 1 mm: faces shrink by half a voxel on each side (their outermost points are edges), 12 edges of
    # sqrt(1/2) per point between corners, 8 corners.
    mask = box((8, 9, 10), slice(2, 6), slice(2, 7), slice(2, 8))
    found = surfels.surfel_distances(ClassMask(mask), ClassMask(mask), spacing_mm=(1.0, 1.0, 1.0))
    faces = 2 * (3 * 4 + 3 * 5 + 4 * 5)
    edges = 4 * (3 + 4 + 5) * math.sqrt(0.5)
    assert found.area_prediction.sum() == pytest.approx(faces + edges + 8 * math.sqrt(3) / 8)
    assert found.to_reference.max() == 0


def test_shifted_squares_on_paper():
    # Squares of 2 x 2 pixels of 1 mm, 4 mm apart along axis 1. Each has 3 x 3 points but the middle one: 4 corners of length
    # sqrt(1/2) and 4 sides of 1. The columns of one lie 4, 3 and 2 mm from the nearest of the other, and reversed.
    one, other = box((4, 9), slice(1, 3), slice(1, 3)), box((4, 9), slice(1, 3), slice(5, 7))
    scores = score_masks(one, other, spacing_mm=(1.0, 1.0), tolerance_mm=3.0, metrics=("surface_elements",))
    outer, middle = 2 * math.sqrt(0.5) + 1, 2.0
    assert scores["hd_surfel_mm"] == 4.0
    assert scores["hd95_surfel_mm"] == 4.0
    assert scores["assd_surfel_mm"] == pytest.approx((4 * outer + 3 * middle + 2 * outer) / (2 * outer + middle))
    assert scores["nsd_surfel"] == pytest.approx((outer + middle) / (2 * outer + middle))


def test_percentile_is_the_first_distance_that_holds_enough_area():
    distances = surfels.SurfelDistances(
        np.array([3.0, 1.0, 2.0]), np.array([1.0, 6.0, 3.0]), np.array([0.5]), np.array([2.0])
    )
    # Areas 6, 3, 1 at 1, 2, 3 mm.
    assert [surfels.hausdorff_percentile(distances, percent=p) for p in (50, 60, 61, 90, 91, 100)] == [1, 1, 2, 2, 3, 3]
    assert surfels.mean_average(distances) == ((6 + 6 + 3) / 10 + 0.5) / 2
    assert surfels.average_symmetric(distances) == (15 + 1.0) / 12


def test_empty_masks():
    empty, full = np.zeros((4, 4), bool), box((4, 4), slice(1, 3), slice(1, 3))
    for one, other, nsd in ((empty, empty, math.nan), (empty, full, 0.0), (full, empty, 0.0)):
        scores = score_masks(one, other, spacing_mm=(1.0, 1.0), metrics=("surface_elements",))
        assert scores["nsd_surfel"] == pytest.approx(nsd, nan_ok=True)
        assert all(math.isnan(scores[key]) for key in KEYS[1:])


def test_symmetry_flips_padding_scaling_and_chunks(monkeypatch):
    rng = np.random.default_rng(5)
    for shape, spacing in (((9, 8, 7), (0.7, 0.9, 2.5)), ((12, 11), (0.6, 1.7)), ((20,), (1.5,))):
        prediction, reference = rng.random((2, *shape)) < 0.4

        def scores(one, other, scale=1.0, spacing=spacing):
            found = score_masks(
                one,
                other,
                spacing_mm=tuple(scale * s for s in spacing),
                tolerance_mm=scale,
                metrics=("surface_elements",),
            )
            return [found[key] / (1.0 if key == "nsd_surfel" else scale) for key in KEYS]

        wanted = pytest.approx(scores(prediction, reference), rel=1e-9)
        assert scores(reference, prediction) == wanted
        assert scores(prediction[::-1], reference[::-1]) == wanted
        assert scores(np.pad(prediction, 3), np.pad(reference, 3)) == wanted
        assert scores(prediction, reference, scale=2.0) == wanted
        assert scores(prediction.T, reference.T, spacing=spacing[::-1]) == wanted
        assert scores(prediction, prediction) == [1.0, 0.0, 0.0, 0.0, 0.0]
        monkeypatch.setattr(surfels, "_CHUNK_POINTS", 1)
        assert scores(prediction, reference) == wanted
        monkeypatch.undo()


def test_more_than_three_axes_are_refused():
    four = np.ones((2, 2, 2, 2), bool)
    with pytest.raises(ValueError, match="masks have 4 axes, expected at most 3"):
        score_masks(four, four, spacing_mm=(1.0,) * 4, metrics=("surface_elements",))
