import numpy as np
import pytest
import torch

from medseg.config.train_sections import AugmentationSection
from medseg.training.augmentation import (
    SpatialDraw,
    augment_intensity,
    draw_spatial,
    in_plane_axis,
    mirror_axes,
    read_sample,
)

CPU = torch.device("cpu")
OFF = dict.fromkeys(
    ("rotation", "scaling", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted"), 0.0
)


class Scan:
    """A scan in memory; beyond its border everything is 0."""

    id, classes_present = "scan", ()

    def __init__(self, image, labels):
        self.image, self.labels, self.shape_xyz = image, labels, labels.shape

    def locations(self, index):
        return np.argwhere(self.labels == index)

    def read_patch(self, start, size):
        reach = 40
        image = np.pad(self.image, [(0, 0), *[(reach, reach)] * 3])
        labels = np.pad(self.labels, reach)
        box = tuple(slice(s + reach, s + reach + n) for s, n in zip(start, size, strict=True))
        return image[(slice(None), *box)].copy(), labels[box].copy()


def scan():
    rng = np.random.default_rng(0)
    labels = np.zeros((12, 10, 8), np.uint8)
    labels[2:8, 3:7, 2:6] = 1
    labels[5:8, 3:7, 2:6] = 2
    return Scan(rng.normal(size=(1, 12, 10, 8)).astype(np.float32), labels)


def read(source, start, size, draw):
    image, labels = read_sample(source, start, size, draw, class_count=3, device=CPU)
    return image.numpy(), labels.numpy()


def test_the_identity_matrix_changes_nothing():
    source = scan()
    plain = read(source, (1, -2, 0), (9, 12, 8), SpatialDraw(None, ()))
    turned = read(source, (1, -2, 0), (9, 12, 8), SpatialDraw(np.eye(3), ()))
    np.testing.assert_allclose(turned[0], plain[0], atol=1e-5)
    np.testing.assert_array_equal(turned[1], plain[1])


def test_a_quarter_turn_is_a_rotation_of_the_array():
    source = scan()
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    image, labels = read(source, (1, 0, 0), (10, 10, 8), SpatialDraw(quarter, ()))
    # output offset (x, y) samples the scan at (-y, x): np.rot90 by one turn from axis 0 to 1, the other way round
    np.testing.assert_allclose(image, np.rot90(source.image[:, 1:11], k=-1, axes=(1, 2)), atol=1e-5)
    np.testing.assert_array_equal(labels, np.rot90(source.labels[1:11], k=-1))


def test_image_and_labels_are_mirrored_together():
    source = scan()
    image, labels = read(source, (0, 0, 0), (12, 10, 8), SpatialDraw(None, (0, 2)))
    np.testing.assert_array_equal(image, source.image[:, ::-1, :, ::-1])
    np.testing.assert_array_equal(labels, source.labels[::-1, :, ::-1])


def test_halving_the_scale_doubles_the_structure():
    labels = np.zeros((32, 32, 32), np.uint8)
    labels[12:20, 12:20, 12:20] = 1
    source = Scan(labels[None].astype(np.float32), labels)
    _, larger = read(source, (0, 0, 0), (32, 32, 32), SpatialDraw(np.eye(3) * 0.5, ()))
    # sampled a quarter voxel inside each face: a face voxel's share is 3/4, an edge's 9/16, a corner's 27/64 < 1/2
    assert int((larger == 1).sum()) == 16**3 - 8


def test_rotation_is_rigid_in_millimetres():
    spacing = (1.0, 1.0, 4.0)
    section = AugmentationSection(rotation=1.0, scaling=0.0)
    for seed in range(20):
        draw = draw_spatial(
            np.random.default_rng(seed), section, axes=(0, 1, 2), only_axis=None, spacing_xyz_mm=spacing
        )
        in_mm = draw.matrix * np.asarray(spacing)[:, None] / np.asarray(spacing)[None, :]
        np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(in_mm) == pytest.approx(1)


@pytest.mark.parametrize(
    ("size", "spacing", "dimensions", "axis"),
    [
        ((64, 64, 1), (1, 1, 1), 2, 2), ((96, 96, 24), (1, 1, 4), 3, 2),
        ((24, 96, 96), (4, 1, 1), 3, 0), ((40, 56, 40), (1, 1, 1), 3, None),
    ],
)  # fmt: skip
def test_thin_stacks_turn_about_their_stacking_axis(size, spacing, dimensions, axis):
    assert in_plane_axis(size, spacing, dimensions) == axis


def test_only_allowed_axes_are_mirrored():
    assert mirror_axes(AugmentationSection(), 2) == (0, 1)
    section = AugmentationSection(mirror_axes=("y", "z"))
    assert mirror_axes(section, 3) == (1, 2)
    seen = {
        draw_spatial(
            np.random.default_rng(i), section, axes=(1, 2), only_axis=None, spacing_xyz_mm=(1, 1, 1)
        ).mirrored_axes
        for i in range(40)
    }
    assert seen == {(), (1,), (2,), (1, 2)}


def test_everything_off_leaves_the_image():
    image = torch.randn(2, 6, 6, 6)
    result = augment_intensity(image, np.random.default_rng(0), AugmentationSection(**OFF))
    torch.testing.assert_close(result, image)


@pytest.mark.parametrize(
    "name", ["noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted"]
)
def test_each_change_changes_and_repeats(name):
    image = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = image.clone()
    section = AugmentationSection(**OFF | {name: 1.0})
    results = [augment_intensity(image, np.random.default_rng(5), section) for _ in range(2)]
    torch.testing.assert_close(image, kept)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert not torch.equal(results[0], image)
    assert bool(torch.isfinite(results[0]).all())


def test_gamma_keeps_mean_and_spread_and_brightness_scales():
    image = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = augment_intensity(image, np.random.default_rng(1), AugmentationSection(**OFF | {"gamma": 1.0}))
    assert float(changed.mean()) == pytest.approx(float(image.mean()), abs=1e-5)
    assert float(changed.std()) == pytest.approx(float(image.std()), rel=1e-4)
    brighter = augment_intensity(image, np.random.default_rng(1), AugmentationSection(**OFF | {"brightness": 1.0}))
    ratio = brighter / image
    assert float(ratio.std()) < 1e-5
    assert 0.75 <= float(ratio.mean()) <= 1.25


def test_zeros_outside_the_mask_stay_zero():
    image = torch.randn(1, 8, 8, 8)
    image[:, :3] = 0
    section = AugmentationSection(**OFF | {"noise": 1.0, "gamma": 1.0})
    result = augment_intensity(image, np.random.default_rng(0), section, masked_channels=(0,))
    assert float(result[:, :3].abs().max()) == 0


def test_a_flat_patch_stays_finite():
    every = AugmentationSection(**dict.fromkeys(OFF, 1.0))
    result = augment_intensity(torch.zeros(1, 4, 4, 4), np.random.default_rng(0), every)
    assert bool(torch.isfinite(result).all())


def test_two_dimensional_patches_pass_through():
    every = AugmentationSection(**dict.fromkeys(OFF, 1.0))
    result = augment_intensity(torch.randn(3, 16, 16, 1), np.random.default_rng(0), every)
    assert result.shape == (3, 16, 16, 1)
