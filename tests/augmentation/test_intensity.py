from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.augmentation import intensity
from medseg.augmentation.drawing import draw_intensity
from medseg.augmentation.intensity import change_intensities
from medseg.config.train_sections import AugmentationSection

NAMES = ("noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted")
OFF = dict.fromkeys(NAMES, 0.0)


def patches(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draws(count, channels=1, seed=5, **probabilities):
    section = AugmentationSection(**OFF | probabilities)
    return [draw_intensity(np.random.default_rng(seed + i), section, channels) for i in range(count)]


def changed(images, drawn, **arguments):
    result = images.clone()
    change_intensities(result, drawn, **arguments)
    return result


def test_everything_off_leaves_the_image():
    images = patches(2, 2, 6, 6, 6)
    assert torch.equal(changed(images, draws(2, 2)), images)


@pytest.mark.parametrize("name", NAMES)
def test_each_change_changes_and_repeats_and_does_not_depend_on_the_batch(name):
    images = patches(4, 2, 8, 9, 7)
    drawn = draws(4, 2, **{name: 1.0})
    together = changed(images, drawn)
    assert torch.equal(together, changed(images, drawn))
    assert not torch.equal(together, images)
    assert bool(torch.isfinite(together).all())
    for i in (3, 1, 0, 2):
        assert torch.equal(changed(images[i : i + 1], drawn[i : i + 1])[0], together[i])


def test_the_number_of_threads_changes_no_bit():
    images, drawn = patches(2, 1, 48, 48, 48), draws(2, **dict.fromkeys(NAMES, 1.0))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(changed(images, drawn))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_rows_at_once_are_the_same_as_one_by_one():
    """What a GPU does: one call with a parameter per row."""
    rows = patches(3, 7, 8, 9)
    values, sigmas = torch.tensor([0.7, 1.2, 1.4]), torch.tensor([[0.5, 0.6, 0.7], [0.7, 0.9, 1], [1, 1, 0.5]])
    for change, parameters in (
        (intensity.brighten, values), (intensity.change_contrast, values), (intensity.change_gamma, values),
        (intensity.change_gamma_inverted, values), (intensity.blur, sigmas),
    ):  # fmt: skip
        together = rows.clone()
        change(together, parameters)
        for i in range(3):
            one = rows[i : i + 1].clone()
            change(one, parameters[i : i + 1])
            torch.testing.assert_close(one[0], together[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gamma", "gamma_inverted"])
def test_gamma_is_a_power_of_the_range_with_mean_and_spread_kept(name):
    images, (draw,) = patches(1, 1, 8, 8, 8), draws(1, **{name: 1.0})
    values = images.numpy().astype(float) * (-1 if name == "gamma_inverted" else 1)
    low, high = values.min(), values.max()
    powered = ((values - low) / (high - low)) ** float(getattr(draw, name)[0])
    expected = (powered - powered.mean()) / powered.std(ddof=1) * values.std(ddof=1) + values.mean()
    expected *= -1 if name == "gamma_inverted" else 1
    np.testing.assert_allclose(changed(images, [draw]).numpy(), expected, atol=2e-5)


def test_contrast_stays_in_the_old_range():
    images, (draw,) = patches(1, 1, 8, 8, 8), draws(1, contrast=1.0)
    draw = replace(draw, contrast=np.array([1.25]))
    values = images.numpy()
    expected = np.clip((values - values.mean()) * 1.25 + values.mean(), values.min(), values.max())
    np.testing.assert_allclose(changed(images, [draw]).numpy(), expected, atol=1e-5)


def test_brightness_scales_each_channel_by_its_own_factor():
    images, (draw,) = patches(1, 3, 5, 5, 5), draws(1, 3, brightness=1.0)
    expected = images * torch.tensor(draw.brightness, dtype=torch.float32).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(changed(images, [draw]), expected, rtol=0, atol=0)


def test_noise_has_the_drawn_spread_and_differs_by_channel():
    images, (draw,) = torch.zeros(1, 2, 40, 40, 40), draws(1, 2, noise=1.0)
    noise = changed(images, [draw])[0]
    assert noise.std().item() == pytest.approx(draw.noise_sd, rel=0.02)
    assert abs(np.corrcoef(noise[0].flatten(), noise[1].flatten())[0, 1]) < 0.02


@pytest.mark.parametrize(
    ("sigma", "width"), [(0.5, 3), (0.58, 3), (0.6, 5), (0.9, 5), (0.95, 7), (1.0, 7)]
)  # the nearest odd number to 6 sigma + 0.5
def test_blur_is_a_mirrored_correlation_with_a_sampled_gaussian(sigma, width):
    images = patches(1, 1, 9, 4, 12)
    (draw,) = draws(1)
    draw = replace(draw, blur=np.array([[sigma, 0.8, sigma]]))
    expected = images[0, 0].numpy().astype(float)
    for axis, (own, size) in enumerate(((sigma, width), (0.8, 5), (sigma, width))):
        kernel = np.exp(-0.5 * ((np.arange(size) - size // 2) / own) ** 2)
        expected = ndimage.correlate1d(expected, kernel / kernel.sum(), axis=axis, mode="mirror")
    np.testing.assert_allclose(changed(images, [draw])[0, 0].numpy(), expected, atol=2e-6)


def test_low_resolution_leaves_the_slice_axis():
    images = torch.zeros(1, 1, 8, 8, 6)
    images[0, 0, :, :, 3] = 1
    (draw,) = draws(1)
    draw = replace(draw, zoom=np.array([0.5]))
    in_plane = changed(images, [draw], only_axis=2)
    assert torch.equal(in_plane, images)  # every slice is constant, and slices do not mix
    assert not torch.equal(changed(images, [draw]), images)


def test_zeros_outside_the_mask_stay_zero():
    images = patches(2, 2, 8, 8, 8)
    images[:, :, :3] = 0
    drawn = draws(2, 2, noise=1.0, gamma=1.0, blur=1.0)
    result = changed(images, drawn, masked_channels=(1,))
    assert float(result[:, 1, :3].abs().max()) == 0
    assert float(result[:, 0, :3].abs().max()) > 0


@pytest.mark.parametrize("shape", [(2, 3, 16, 16, 1), (1, 1, 1, 4, 9), (1, 2, 2, 3, 2), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("flat", [False, True])
def test_thin_and_flat_patches_stay_finite(shape, flat):
    images = torch.zeros(shape) if flat else patches(*shape)
    result = changed(images, draws(shape[0], shape[1], **dict.fromkeys(NAMES, 1.0)))
    assert result.shape == shape
    assert bool(torch.isfinite(result).all())
