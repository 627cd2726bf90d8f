import numpy as np
import pytest
from scipy import ndimage

from medseg.augmentation.previous import PreviousDraw, change_previous, draw_previous, reshaped
from medseg.config.train_sections import AugmentationSection


def ball(radius):
    reach = int(np.ceil(radius))
    x, y, z = np.ogrid[-reach : reach + 1, -reach : reach + 1, -reach : reach + 1]
    return x * x + y * y + z * z <= radius * radius


def noise(seed, shape=(24, 21, 18)):
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2) > 0.03


@pytest.mark.parametrize("radius", [1.0, 2.3, 4.0])
@pytest.mark.parametrize("operation", ["dilate", "erode", "close", "open"])
def test_operations_are_those_of_a_ball(operation, radius):
    mask, structure = noise(int(10 * radius)), ball(radius)

    def dilated(values):
        return ndimage.binary_dilation(values, structure)

    def eroded(values):  # beyond the border nothing eats into the mask
        return ndimage.binary_erosion(values, structure, border_value=1)

    expected = {
        "dilate": dilated(mask),
        "erode": eroded(mask),
        "close": eroded(dilated(mask)),
        "open": dilated(eroded(mask)),
    }
    np.testing.assert_array_equal(reshaped(mask, operation, radius), expected[operation])


@pytest.mark.parametrize("operation", ["dilate", "erode", "close", "open"])
def test_a_class_is_changed_in_its_box_as_in_the_whole(operation):
    mask = np.where(noise(1), 2, 0).astype(np.uint8)
    mask[:3] = 1
    before = mask.copy()
    change_previous(mask, PreviousDraw(reshapes=((2, operation, 2.5),)))
    after = reshaped(before == 2, operation, 2.5)
    np.testing.assert_array_equal(mask == 2, after)
    np.testing.assert_array_equal(mask[~after & (before != 2)], before[~after & (before != 2)])
    assert not mask[(before == 2) & ~after].any(), "what a class loses is background"


def test_one_small_component_goes():
    mask = np.zeros((10, 10, 10), np.uint8)
    mask[0:2, 0:2, 0:2], mask[4:6, 4:6, 4:6], mask[:, :, 8:] = 1, 1, 1  # the last is 20 % of the patch
    first, last = mask.copy(), mask.copy()
    change_previous(first, PreviousDraw(removals=((1, 0.0), (2, 0.5))))
    change_previous(last, PreviousDraw(removals=((1, 0.99),)))
    assert first.sum() == last.sum() == 208
    assert not first[:2, :2, :2].any()
    assert not last[4:6, 4:6, 4:6].any()


def test_draws_have_the_sections_shares():
    section, count = AugmentationSection(), 4
    draws = [draw_previous(np.random.default_rng(seed), section, count) for seed in range(2000)]
    reshapes = [one for draw in draws for one in draw.reshapes]
    removals = [one for draw in draws for one in draw.removals]
    assert len(reshapes) / len(draws) == pytest.approx(0.4 * 0.5 * count, rel=0.1)
    assert len(removals) / len(draws) == pytest.approx(0.2 * 0.5 * count, rel=0.15)
    assert {index for index, _, _ in reshapes} == {index for index, _ in removals} == {1, 2, 3, 4}
    assert {operation for _, operation, _ in reshapes} == {"dilate", "erode", "close", "open"}
    assert all(1 <= radius < 8 for _, _, radius in reshapes)
    off = AugmentationSection(previous_reshaped=0, previous_removed=0)
    assert draw_previous(np.random.default_rng(0), off, count) == PreviousDraw()
