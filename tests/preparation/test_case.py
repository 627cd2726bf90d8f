import itertools

import numpy as np
import pytest
from scipy import ndimage

from medseg.errors import GeometryError, ScanError
from medseg.imaging import Volume, grid_difference
from medseg.manifest.cases import Channel
from medseg.preparation.case import (
    align_channels,
    channels_per_file,
    expand_channels,
    load_case,
    prepare_image,
    prepare_labels,
    restore_classes,
)
from medseg.preparation.grid import Grid
from tests.preparation.builders import plan_for
from tests.synthetic import (
    GRIDS,
    affine_of,
    centroid_mm,
    dice,
    rendered,
    reoriented,
    rotation,
    scan,
    scan_on,
    write_scan,
)


def plan_of(made, spacing=None, **changes):
    spacing = spacing or (1.0, 1.0, 1.0)
    return plan_for(spacing, dimensions=2 if made.planar else 3, **changes)


def one_hot(classes, count=3):
    return np.stack([(classes == c) for c in range(count)]).astype(np.float32)


def own_spacing(made):
    """The scan's voxel size along the axes that its prepared array has."""
    _, grid = prepare_image(made.volume, plan_of(made))
    return grid.spacing_xyz_mm


@pytest.mark.parametrize("name", GRIDS)
def test_labels_come_back_unchanged_where_nothing_is_resampled(name):
    made = scan(name)
    image, grid = prepare_image(made.volume, plan_of(made, own_spacing(made)))
    prepared = prepare_labels(made.labels, grid)
    assert image.shape[1:] == prepared.shape == grid.prepared_shape
    assert np.array_equal(restore_classes(one_hot(prepared), grid), made.labels)
    assert grid.original_shape == made.shape
    assert np.array_equal(np.array(grid.original_affine), made.affine)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("factor", [0.6, 0.9, 1.2])
def test_labels_come_back_within_097_where_they_were_resampled(name, factor):
    made = scan(name)
    spacing = own_spacing(made)
    # Along axes with far thicker voxels nobody would resample to coarser ones still.
    target = tuple(s * (min(factor, 1.0) if s > 3 * min(spacing) else factor) for s in spacing)
    # On a coarser grid an object of 8 voxels has under 7, and a label of whole voxels can't hold its surface: the organ
    # as a whole is then the object.
    labels = made.labels if factor < 1 else (made.labels > 0).astype(np.uint8)
    _, grid = prepare_image(made.volume, plan_of(made, target))
    back = restore_classes(one_hot(prepare_labels(labels, grid)), grid)
    assert back.shape == made.shape
    for value in np.unique(labels):
        assert dice(back, labels, value) >= 0.97


@pytest.mark.parametrize("name", GRIDS)
def test_a_marker_is_where_it_is_in_the_world(name):
    made = scan(name)
    shape, affine = made.shape, made.affine
    place = np.array([round(0.3 * (n - 1)) for n in shape])  # off centre along every axis
    world = affine[:3, :3] @ place + affine[:3, 3]
    to_index = np.linalg.inv(affine[:3, :3])

    def marker_at(points):  # a Gaussian of 2 voxels of this scan
        return 1000.0 * np.exp(-0.5 * np.square((points - world) @ to_index.T / 2).sum(axis=-1))

    marker = rendered(shape, affine, marker_at)
    # the same marker in a channel on a grid of its own: turned, finer or coarser, larger
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    other_shape = (70, 70, 70)
    other_affine = affine_of((0.2 * spacing.max() + 0.3,) * 3, rotation(5, 10, -20))
    other_affine[:3, 3] = world - other_affine[:3, :3] @ np.array([33.0, 34, 36])
    other = Volume(rendered(other_shape, other_affine, marker_at)[None], other_affine)
    joined = align_channels([Volume(marker[None], affine, made.header), other], ["first", "second"])
    target = (1.1, 1.1, 1.1) if not made.planar else (1.3, 1.3, 1.0)
    image, grid = prepare_image(joined, plan_of(made, target, channels=2))
    labels = prepare_labels((marker > 500).astype(np.uint8), grid)
    half_a_voxel = 0.5 * np.linalg.norm(grid.affine()[:3, :3], axis=0)
    inverse = np.linalg.inv(grid.affine()[:3, :3])
    for found in (image[0], image[1], labels):
        away = inverse @ (centroid_mm(found, grid.affine()) - world)  # in prepared voxels
        assert (np.abs(away) * np.linalg.norm(grid.affine()[:3, :3], axis=0) <= half_a_voxel).all()


def test_a_marker_worked_out_on_paper():
    # LPS scan, 2 mm: voxel (5, 6, 7) lies at (10 - 2*5, 20 - 2*6, 2*7 + 1) = (0, 8, 15) mm.
    image = np.ones((1, 20, 20, 20), np.float32)
    image[0, 5, 6, 7] = 100
    affine = affine_of((2, 2, 2), np.diag([-1.0, -1, 1]), (10, 20, 1))
    prepared, grid = prepare_image(Volume(image, affine), plan_for((2.0, 2.0, 2.0)))
    # In RAS the first voxel is the old (19, 19, 0) at (-28, -18, 1) mm, so the marker is (28, 26, 14) / 2 mm further.
    assert np.unravel_index(prepared[0].argmax(), prepared.shape[1:]) == (14, 13, 7)
    assert np.array_equal(grid.affine(), affine_of((2, 2, 2), None, (-28, -18, 1)))


def test_the_crop_to_nonzero_is_in_the_grid_and_undone():
    made = scan("oblique_flipped")
    image, labels = np.zeros((1, *made.shape), np.float32), np.zeros(made.shape, np.uint8)
    image[0, 5:20, 8:25, 3:15] = 7
    labels[6:18, 9:24, 4:12] = 1
    prepared, grid = prepare_image(Volume(image, made.affine), plan_for(own_spacing(made)))
    assert sorted(prepared.shape[1:]) == [12, 15, 17]
    assert (prepared == 7).all()
    assert np.array_equal(restore_classes(one_hot(prepare_labels(labels, grid)), grid), labels)


def test_an_empty_scan_is_kept_whole():
    prepared, grid = prepare_image(Volume(np.zeros((1, 5, 6, 7), np.float32), np.eye(4)), plan_for())
    assert prepared.shape == (1, 5, 6, 7)
    assert grid.crop_stop == (5, 6, 7)


def test_the_48_orientations_of_a_scan_are_prepared_alike():
    made = scan("anisotropic_oblique")
    plan = plan_for((0.8, 0.8, 4.0), scheme="zscore")
    expected, expected_grid = prepare_image(made.volume, plan)
    for permutation in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            turned = reoriented(made, permutation, flips)
            image, grid = prepare_image(turned.volume, plan)
            assert np.array_equal(image, expected)
            assert (
                grid_difference(
                    grid.prepared_shape, grid.affine(), expected_grid.prepared_shape, expected_grid.affine()
                )
                is None
            )
            back = restore_classes(one_hot(prepare_labels(turned.labels, grid)), grid)
            assert back.shape == turned.shape
            assert dice(back, turned.labels, 1) >= 0.97


def test_native_orientation_leaves_the_axes():
    made = scan("permuted_flipped")
    _, grid = prepare_image(made.volume, plan_for((1.4, 1.0, 0.7), orientation="native"))
    assert grid.permutation == (0, 1, 2)
    assert grid.prepared_shape == made.shape


def slices_plan(axis, spacing, **changes):
    patch = tuple(1 if a == axis else 32 for a in range(3))
    stride = tuple(1 if a == axis else 2 for a in range(3))
    return plan_for(
        spacing,
        dimensions=2,
        through_plane_axis=axis,
        patch_size_xyz=patch,
        strides=((1, 1, 1), stride),
        kernel_sizes=(tuple(1 if a == axis else 3 for a in range(3)),) * 2,
        **changes,
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_in_2d_each_slice_of_a_volume_is_resampled_by_itself(axis):
    made = scan("ras")  # 1 mm voxels
    image, grid = prepare_image(made.volume, slices_plan(axis, (0.8, 0.8, 0.8)))
    shape = tuple(n if a == axis else round(n / 0.8) for a, n in enumerate(made.shape))
    assert image.shape == (1, *shape)
    assert grid.prepared_spacing_xyz_mm[axis] == 1.0
    for number in (0, 7, made.shape[axis] - 1):
        before = np.take(made.image, number, axis).astype(np.float64)
        wanted = tuple(n for a, n in enumerate(shape) if a != axis)
        factors = [new / old for new, old in zip(wanted, before.shape, strict=True)]
        expected = ndimage.zoom(before, factors, order=3, mode="nearest", grid_mode=True)
        after = np.take(image[0], number, axis)
        inside = (expected > before.min()) & (expected < before.max())  # cubic overshoot is clamped
        np.testing.assert_allclose(after[inside], expected[inside], rtol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", ["ras", "oblique_flipped", "permuted_flipped", "anisotropic_oblique"])
def test_in_2d_labels_of_volumes_come_back_on_the_scans_own_grid(name, axis):
    made = scan(name)
    own = own_spacing(made)
    target = tuple(0.8 * s for s in own)
    image, grid = prepare_image(made.volume, slices_plan(axis, target))
    assert grid.prepared_shape[axis] == grid.cropped_shape[axis]
    back = restore_classes(one_hot(prepare_labels(made.labels, grid)), grid)
    assert back.shape == made.shape
    for value in (1, 2):
        assert dice(back, made.labels, value) >= 0.97
    assert image.shape[1:] == grid.prepared_shape


def test_in_2d_every_volume_keeps_its_own_distance_of_slices():
    plan = slices_plan(2, (1.0, 1.0, 3.0))
    for spacing, slices in (((2.0, 2.0, 1.5), 12), ((0.5, 0.5, 6.0), 5)):
        made = scan_on((20, 24, slices), affine_of(spacing))
        _, grid = prepare_image(made.volume, plan)
        assert grid.prepared_shape == (round(20 * spacing[0]), round(24 * spacing[1]), slices)
        assert grid.prepared_spacing_xyz_mm == (1.0, 1.0, spacing[2])
        np.testing.assert_allclose(np.linalg.norm(grid.affine()[:3, :3], axis=0), (1, 1, spacing[2]))


def test_nothing_is_changed_in_the_scan_that_was_given():
    made = scan("ras")
    before = made.image.copy()
    prepare_image(made.volume, plan_for(own_spacing(made), scheme="zscore"))
    assert np.array_equal(made.image, before)


def test_a_grid_is_plain_values_and_back():
    _, grid = prepare_image(scan("oblique").volume, plan_for())
    assert Grid.from_plain(grid.plain()) == grid


def test_refusals():
    made = scan("ras")
    with pytest.raises(ScanError, match=r"scan: has 1 channels, expected 2"):
        prepare_image(made.volume, plan_for(channels=2))
    with pytest.raises(GeometryError, match="has 26 slices, expected 1; this plan is for pictures"):
        prepare_image(made.volume, plan_for(dimensions=2))
    with pytest.raises(ScanError, match=r"voxels at 0.001 x 0.001 x 0.001 mm, expected at most"):
        prepare_image(made.volume, plan_for((0.001, 0.001, 0.001)))
    _, grid = prepare_image(made.volume, plan_for())
    with pytest.raises(GeometryError, match=r"label map: has shape \[3, 3, 3\]"):
        prepare_labels(np.zeros((3, 3, 3), np.uint8), grid)
    with pytest.raises(GeometryError, match=r"scores: have shape \[4, 4, 4\]"):
        restore_classes(np.zeros((2, 4, 4, 4), np.float32), grid)
    far = Volume(made.image[None], affine_of((1, 1, 1), None, (500, 0, 0)))
    with pytest.raises(GeometryError, match=r"channel second: does not overlap channel first in space"):
        align_channels([made.volume, far], ["first", "second"])


def test_rgb_is_three_channels_of_one_file(tmp_path):
    rgb = expand_channels([Channel(name="RGB"), Channel(name="depth")])
    assert [c.name for c in rgb] == ["red", "green", "blue", "depth"]
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    assert channels_per_file([a, b], rgb) == (3, 1)
    assert channels_per_file([a], rgb[:3]) == (3,)
    assert channels_per_file([a, b, a, b], rgb) == (1, 1, 1, 1)
    with pytest.raises(ScanError, match=r"a.png: comes with 3 files, expected 1 or 2"):
        channels_per_file([a, b, a], rgb)


def test_load_case_joins_files(tmp_path):
    first, _ = write_scan(scan("ras", seed=1), tmp_path, case_id="first")
    second, _ = write_scan(scan("lps", seed=2), tmp_path, case_id="second")
    joined = load_case([first, second], [Channel(name="T1"), Channel(name="T2")])
    assert joined.array.shape == (2, *scan("ras").shape)
    assert np.allclose(joined.array[0], scan("ras", seed=1).image)
    assert grid_difference(joined.shape, joined.affine, scan("ras").shape, scan("ras").affine) is None
