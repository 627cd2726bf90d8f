import numpy as np
import pytest

from medseg.augmentation.drawing import (
    draw_intensity,
    draw_spatial,
    in_plane_axis,
    largest_rotation,
    mirror_axes,
)
from medseg.config.train_sections import AugmentationSection

ALL = dict.fromkeys(
    ("rotation", "scaling", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted"), 1.0
)


def spatial(seed, section=None, **changes):
    arguments = {"axes": (0, 1, 2), "only_axis": None, "spacing_xyz_mm": (1.0, 1.0, 1.0), "largest_degrees": 30.0}
    return draw_spatial(np.random.default_rng(seed), section or AugmentationSection(), **arguments | changes)


def test_rotation_is_rigid_in_millimetres():
    spacing = np.array((1.0, 1.0, 4.0))
    for seed in range(20):
        draw = spatial(seed, AugmentationSection(rotation=1.0, scaling=0.0), spacing_xyz_mm=tuple(spacing))
        in_mm = draw.matrix * spacing[:, None] / spacing[None, :]
        np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(in_mm) == pytest.approx(1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_in_plane_only_the_plane_is_turned_and_scaled(axis):
    for seed in range(10):
        draw = spatial(seed, AugmentationSection(rotation=1.0, scaling=1.0), only_axis=axis, largest_degrees=180.0)
        np.testing.assert_array_equal(draw.matrix[axis], np.eye(3)[axis])
        np.testing.assert_array_equal(draw.matrix[:, axis], np.eye(3)[axis])
        plane = np.delete(np.delete(draw.matrix, axis, 0), axis, 1)
        assert 0.7**2 <= np.linalg.det(plane) <= 1.4**2


def test_scales_are_uniform_over_their_range_and_shared_by_all_axes():
    draws = [spatial(seed, AugmentationSection(rotation=0.0, scaling=1.0)).matrix for seed in range(4000)]
    factors = np.array([matrix[0, 0] for matrix in draws])
    assert all(np.array_equal(matrix, np.eye(3) * matrix[0, 0]) for matrix in draws)
    assert 0.7 <= factors.min() < 0.71
    assert 1.39 < factors.max() <= 1.4
    assert factors.mean() == pytest.approx(1.05, abs=4 * 0.7 / np.sqrt(12 * 4000))


def test_each_happens_as_often_as_the_config_says():
    draws = [spatial(seed) for seed in range(4000)]
    # rotation 0.2 or scaling 0.2: 1 - 0.8^2 = 0.36
    assert np.mean([draw.matrix is not None for draw in draws]) == pytest.approx(0.36, abs=4 * 0.48 / np.sqrt(4000))
    for axis in range(3):
        share = np.mean([axis in draw.mirrored_axes for draw in draws])
        assert share == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(4000))
    intensities = [draw_intensity(np.random.default_rng(seed), AugmentationSection(), 2) for seed in range(4000)]
    expected = {
        "noise_sd": 0.1, "blur": 0.2 * 0.75, "brightness": 0.15, "contrast": 0.15, "zoom": 0.25 * 0.75, "gamma": 0.3,
        "gamma_inverted": 0.1,
    }  # fmt: skip
    # blur and low resolution leave each channel with probability 1/2, so both of two with 1/4
    for name, probability in expected.items():
        neutral = 0.0 if name in ("noise_sd", "blur") else 1.0
        share = np.mean([np.any(np.asarray(getattr(draw, name)) != neutral) for draw in intensities])
        assert share == pytest.approx(probability, abs=4 * np.sqrt(probability * (1 - probability) / 4000)), name


def test_ranges_are_those_of_nnunet():
    draws = [draw_intensity(np.random.default_rng(seed), AugmentationSection(**ALL), 3) for seed in range(1000)]
    for name, low, high in (
        ("blur", 0.5, 1.0), ("brightness", 0.75, 1.25), ("contrast", 0.75, 1.25), ("zoom", 0.5, 1.0),
        ("gamma", 0.7, 1.5), ("gamma_inverted", 0.7, 1.5), ("noise_sd", 0.0, 0.1),
    ):  # fmt: skip
        values = np.array([getattr(draw, name) for draw in draws])
        values = values[values > 0] if name == "blur" else values[values != 1] if name == "zoom" else values
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
        if name in ("brightness", "gamma"):  # below and above 1 are equally likely
            assert (values < 1).mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(3000))


def test_channels_differ_and_the_same_generator_gives_the_same():
    one, two = (draw_intensity(np.random.default_rng(3), AugmentationSection(**ALL), 4) for _ in range(2))
    np.testing.assert_array_equal(one.gamma, two.gamma)
    assert one.noise_seed == two.noise_seed
    for name in ("brightness", "contrast", "gamma", "gamma_inverted"):
        assert len(set(getattr(one, name).tolist())) == 4


def test_mirrors_negate_their_columns():
    draw = spatial(0, AugmentationSection(rotation=1.0))
    draw = type(draw)(draw.matrix, (0, 2))
    np.testing.assert_array_equal(draw.with_mirrors, draw.matrix * np.array([-1, 1, -1]))
    np.testing.assert_array_equal(type(draw)(None, (1,)).with_mirrors, np.diag([1.0, -1.0, 1.0]))


@pytest.mark.parametrize(
    ("size", "spacing", "slice_axis", "axis"),
    [
        ((64, 64, 1), (1, 1, 1), 2, 2), ((64, 1, 64), (1, 5, 1), 1, 1), ((96, 96, 24), (1, 1, 4), None, 2),
        ((24, 96, 96), (4, 1, 1), None, 0), ((40, 56, 40), (1, 1, 1), None, None),
        ((96, 96, 32), (1, 1, 4), None, None),  # 3 times is not more than 3 times
        ((96, 24, 96), (1, 1, 4), None, None),  # thin, but not along the coarsest spacing
        ((24, 96, 96), (1, 1, 1), None, None), ((96, 96, 24), (1, 1, 1), None, 2),  # of equals z, as nnU-Net's first axis
    ],
)  # fmt: skip
def test_thin_stacks_turn_about_their_stacking_axis(size, spacing, slice_axis, axis):
    assert in_plane_axis(size, spacing, slice_axis) == axis


@pytest.mark.parametrize(
    ("size", "only_axis", "slice_axis", "degrees"),
    [
        ((128, 128, 128), None, None, 30), ((256, 256, 20), 2, None, 180), ((256, 200, 1), 2, 2, 180),
        ((256, 160, 1), 2, 2, 15), ((96, 64, 1), 2, 2, 180), ((97, 64, 1), 2, 2, 15),
    ],
)  # fmt: skip
def test_angles_are_those_of_nnunet(size, only_axis, slice_axis, degrees):
    assert largest_rotation(size, only_axis, slice_axis) == degrees


def test_the_configs_angle_comes_first():
    section = AugmentationSection(rotation=1.0, rotation_degrees=1.0, scaling=0.0)
    for seed in range(20):
        assert np.abs(spatial(seed, section).matrix - np.eye(3)).max() < np.deg2rad(1.1) * np.sqrt(2)


def test_only_allowed_axes_are_mirrored():
    assert mirror_axes(AugmentationSection(), None) == (0, 1, 2)
    assert mirror_axes(AugmentationSection(), 2) == (0, 1)
    section = AugmentationSection(mirror_axes=("y", "z"))
    assert mirror_axes(section, None) == (1, 2)
    assert mirror_axes(section, 1) == (2,)
    assert {spatial(seed, axes=(1, 2)).mirrored_axes for seed in range(40)} == {(), (1,), (2,), (1, 2)}
