import numpy as np
import pytest
from scipy import ndimage

from medseg.imaging import resample_image, resample_labels, resampled_shape, scores_to_classes, separate_axis

SHAPES = [(31, 20, 40), (10, 25, 13), (12, 41, 7), (24, 20, 14), (1, 33, 9)]


def zoomed(array, shape, order):
    """What skimage.transform.resize does (edge, no anti-aliasing, before its clip), in float64."""
    factors = [new / old for new, old in zip(shape, array.shape, strict=True)]
    return ndimage.zoom(array.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 100, shape).astype(np.float32)


def nearest_slice(old, new):
    """Which old slice a new one takes, from the positions of the centres."""
    return np.clip(np.floor((np.arange(new) + 0.5) * old / new), 0, old - 1).astype(int)


@pytest.mark.parametrize("shape", SHAPES)
def test_image_equals_a_cubic_zoom_in_float64(shape):
    image = noise(2, 17, 22, 14)
    resampled = resample_image(image, shape)
    assert resampled.dtype == np.float32
    assert resampled.flags.c_contiguous
    for channel, source in zip(resampled, image, strict=True):
        expected = np.clip(zoomed(source, shape, 3), source.min(), source.max())
        np.testing.assert_allclose(channel, expected, atol=2e-6 * np.abs(source).max() * 4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_image_with_a_separate_axis_goes_slice_by_slice(axis):
    image = noise(17, 22, 14)
    shape = (25, 15, 20)
    resampled = resample_image(image[None], shape, separate_axis=axis)[0]
    in_plane = [size for other, size in enumerate(shape) if other != axis]
    slices = [np.clip(zoomed(part, in_plane, 3), part.min(), part.max()) for part in np.moveaxis(image, axis, 0)]
    picked = np.stack([slices[k] for k in nearest_slice(image.shape[axis], shape[axis])])
    np.testing.assert_allclose(np.moveaxis(resampled, axis, 0), picked, atol=1e-3)


def test_image_in_any_memory_order_gives_the_same_bits():
    image = noise(1, 17, 22, 14)
    turned = np.asfortranarray(image)
    np.testing.assert_array_equal(resample_image(turned, (25, 15, 20)), resample_image(image, (25, 15, 20)))


def test_image_of_equal_shape_is_unchanged_and_range_is_kept():
    image = noise(1, 9, 8, 7)
    np.testing.assert_array_equal(resample_image(image, (9, 8, 7)), image)
    step = np.zeros((1, 20, 1, 1), np.float32)
    step[:, 10:] = 1
    resampled = resample_image(step, (50, 1, 1))
    assert resampled.min() == 0
    assert resampled.max() == 1


def test_large_axis_is_exact_to_float32():
    image = noise(1, 300, 2, 2)
    np.testing.assert_allclose(
        resample_image(image, (467, 2, 2))[0],
        np.clip(zoomed(image[0], (467, 2, 2), 3), image.min(), image.max()),
        atol=1e-3,
    )


def test_labels_follow_nnunets_rule_where_a_label_has_half():
    rng = np.random.default_rng(1)
    labels = ndimage.zoom(rng.integers(0, 4, (5, 6, 4)), 4, order=0).astype(np.uint8)
    labels[labels == 3] = 255
    for shape in [(31, 20, 21), (13, 18, 16), (20, 47, 9)]:
        resampled = resample_labels(labels, shape)
        assert resampled.dtype == np.uint8
        shares = {value: zoomed(labels == value, shape, 1) for value in (0, 1, 2, 255)}
        for value, share in shares.items():
            assert (resampled[share > 0.5 + 1e-5] == value).all()
        # where none has half, the largest share wins
        stacked = np.stack(list(shares.values()))
        wins = np.array(list(shares))[stacked.argmax(0)]
        clear = np.sort(stacked, axis=0)[-1] - np.sort(stacked, axis=0)[-2] > 1e-5
        np.testing.assert_array_equal(resampled[clear], wins[clear])


def test_of_two_halves_the_higher_label_wins():
    labels = np.array([0, 1, 2, 1], np.uint8)[:, None, None]
    assert resample_labels(labels, (2, 1, 1)).ravel().tolist() == [1, 2]


def test_labels_along_a_separate_axis_are_never_mixed():
    labels = np.random.default_rng(2).integers(0, 3, (6, 5, 4)).astype(np.uint8)
    resampled = resample_labels(labels, (6, 5, 9), separate_axis=2)
    np.testing.assert_array_equal(resampled, labels[:, :, nearest_slice(4, 9)])


def test_labels_of_equal_shape_are_a_copy():
    labels = np.ones((3, 3, 3), np.uint8)
    resampled = resample_labels(labels, (3, 3, 3))
    resampled[0] = 0
    assert labels.all()


@pytest.mark.parametrize("slab", [1, 7, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_equal_a_linear_zoom_and_argmax(shape, slab):
    scores = noise(4, 17, 22, 14, seed=5)
    expected = np.stack([zoomed(part, shape, 1) for part in scores])
    classes = scores_to_classes(scores, shape, slab=slab)
    clear = np.sort(expected, axis=0)[-1] - np.sort(expected, axis=0)[-2] > 1e-3
    np.testing.assert_array_equal(classes[clear], expected.argmax(0)[clear])
    assert clear.mean() > 0.99


def test_scores_do_not_depend_on_the_slab_or_memory_order():
    scores = noise(3, 17, 22, 14)
    expected = scores_to_classes(scores, (40, 31, 20), slab=64)
    np.testing.assert_array_equal(scores_to_classes(scores, (40, 31, 20), slab=3), expected)
    np.testing.assert_array_equal(scores_to_classes(np.asfortranarray(scores), (40, 31, 20)), expected)


def test_scores_separate_axis_and_ties():
    scores = noise(3, 6, 5, 4)
    classes = scores_to_classes(scores, (6, 5, 9), separate_axis=2)
    np.testing.assert_array_equal(classes, scores.argmax(0)[:, :, nearest_slice(4, 9)])
    assert not scores_to_classes(np.zeros((3, 4, 4, 4), np.float32), (8, 8, 8)).any()


def test_separate_axis_is_nnunets_rule():
    assert separate_axis((1, 1, 3), (1, 1, 1)) is None
    assert separate_axis((1, 1, 3.01), (1, 1, 1)) == 2
    assert separate_axis((1, 1, 1), (5, 1, 1)) == 0
    assert separate_axis((1, 5, 5), (5, 1, 1)) is None  # two axes share the largest, and the current grid decides


def test_resampled_shape_rounds_half_to_even():
    assert resampled_shape((512, 61, 5), (0.78, 2.5, 1.0), (1.5, 1.0, 2.0)) == (266, 152, 2)
    assert resampled_shape((1, 1, 1), (0.1, 1, 1), (5, 1, 1)) == (1, 1, 1)


@pytest.mark.parametrize("old", range(1, 40, 3))
def test_nearest_slice_is_floor_of_the_centre(old):
    labels = np.arange(1, old + 1, dtype=np.uint8)[None, None]
    for new in range(1, 50, 7):
        resampled = resample_labels(labels, (1, 1, new), separate_axis=2)
        np.testing.assert_array_equal(resampled.ravel() - 1, ((2 * np.arange(new) + 1) * old) // (2 * new))
