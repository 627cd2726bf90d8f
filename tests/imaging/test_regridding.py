import numpy as np
import pytest
from scipy import ndimage

from medseg.imaging import LabelMap, Volume, resample_labels_to_grid, resample_to_grid, spacing_xyz_mm
from tests import synthetic


@pytest.mark.parametrize("source", ["oblique", "permuted_flipped", "anisotropic_oblique"])
def test_resample_to_grid_finds_a_marker_where_it_is(source):
    made = synthetic.scan(source)
    point = made.affine @ [0.6 * made.shape[0], 0.4 * made.shape[1], 0.55 * made.shape[2], 1]
    spacing = float(spacing_xyz_mm(made.affine).max())
    image = synthetic.rendered(made.shape, made.affine, synthetic.blob(point[:3], 1.5 * spacing))
    affine = synthetic.affine_of((1, 1, 1), synthetic.rotation(5, 10, -30), point[:3] - 30)
    affine[:3, 3] = point[:3] - affine[:3, :3] @ [30.0, 30, 30]
    sampled = resample_to_grid(Volume(image[None], made.affine), (61, 61, 61), affine)
    assert sampled.array.dtype == np.float32
    np.testing.assert_allclose(synthetic.centroid_mm(sampled.array[0], affine), point[:3], atol=0.5)


def test_resample_to_grid_interpolates_holds_the_border_and_is_zero_outside():
    volume = Volume(np.full((1, 4, 4, 4), 7, np.float32) * np.arange(1, 5, dtype=np.float32)[:, None, None], np.eye(4))
    affine = synthetic.affine_of((0.5, 1, 1), None, (-1, 0, 0))
    sampled = resample_to_grid(volume, (12, 1, 1), affine).array[0, :, 0, 0]
    # x = -1, -0.5, 0 ... 4.5; the scan covers -0.5 to 3.5
    np.testing.assert_allclose(sampled, [0, 7, 7, 10.5, 14, 17.5, 21, 24.5, 28, 28, 0, 0])


def test_resample_labels_to_grid_takes_the_nearest():
    labels = LabelMap(np.arange(1, 5, dtype=np.uint16)[:, None, None], np.eye(4))
    sampled = resample_labels_to_grid(labels, (5, 1, 1), synthetic.affine_of((1, 1, 1), None, (0.3, 0, 0))).array
    assert sampled.dtype == np.uint16
    assert sampled.ravel().tolist() == [1, 2, 3, 4, 0]


@pytest.mark.parametrize("axes", [np.eye(3), np.eye(3)[[2, 0, 1]], np.eye(3)[[1, 0, 2]] * [-1, 1, 1]])
def test_parallel_grids_equal_a_general_resampling(axes):
    turn = synthetic.rotation(10, 20, 30)
    image = np.random.default_rng(0).normal(0, 10, (1, 9, 10, 11)).astype(np.float32)
    source = synthetic.affine_of((1.5, 0.7, 2), turn, (3, 4, 5))
    target = synthetic.affine_of((1.1, 1.3, 0.9), turn @ axes, source[:3, :3] @ [3, 4, 5] + source[:3, 3])
    sampled = resample_to_grid(Volume(image, source), (8, 6, 7), target).array[0]
    place = np.linalg.solve(source, target)
    index = np.stack(np.meshgrid(*map(np.arange, (8, 6, 7)), indexing="ij")).reshape(3, -1)
    where = place[:3, :3] @ index + place[:3, 3:]
    expected = ndimage.map_coordinates(image[0].astype(np.float64), where, order=1, mode="nearest").reshape(8, 6, 7)
    outside = ((where < -0.5) | (where > np.array([[8.5], [9.5], [10.5]]))).any(axis=0).reshape(8, 6, 7)
    assert outside.any()
    assert not outside.all()
    np.testing.assert_allclose(sampled, np.where(outside, 0, expected), atol=1e-4)
    labels = LabelMap((image[0] > 0).astype(np.uint8) + 1, source)
    nearest = resample_labels_to_grid(labels, (8, 6, 7), target).array
    rounded = ndimage.map_coordinates(labels.array, where, order=0, mode="nearest").reshape(8, 6, 7)
    np.testing.assert_array_equal(nearest, np.where(outside, 0, rounded))


def test_the_same_grid_gives_the_same_voxels():
    made = synthetic.scan("oblique_left_handed")
    np.testing.assert_allclose(resample_to_grid(made.volume, made.shape, made.affine).array[0], made.image, atol=1e-3)
    np.testing.assert_array_equal(resample_labels_to_grid(made.label_map, made.shape, made.affine).array, made.labels)
